"""Where queue and ledger live, and what every store promises.

One method is hot: `turn` does everything that waits (settlements, submissions,
cancellations, the next claim) in one transaction, and answers after the commit.
The scheduler's pump calls it again as soon as it answers, so a slow disk makes
bigger transactions, not more of them.

A store's promises, checked by one suite for all of them (`scheduler.testing`):

- a turn happens as a whole or not at all; what it answered is durable;
- a claim reserves money and takes the request in the same transaction, deciding
  on what is stored, never on a copy that outlived its transaction;
- settling a reservation, submitting a key, or cancelling again changes nothing;
- a request is run by the process that submitted it; when that process is gone,
  what it may have sent goes to suspense and what it had not sent waits to be
  submitted again under its key, here or elsewhere.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Container,
    Iterable,
    Mapping,
    Sequence,
)  # fmt: skip
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scheduler.admission.fairness import Fairness
from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.clock import Clock
from scheduler.guards.texts import check_names
from scheduler.ledger.account import Crossing
from scheduler.ledger.burning import Burning
from scheduler.limits import Gates, GateStatus, Heard, Report
from scheduler.request import UNTOLD_TOKENS, Request, RequestState, Response, Tokens
from scheduler.shortfall import Shortfall
from scheduler.stores.history import History
from scheduler.stores.noting import Noting
from scheduler.stores.outbox import Outbox
from scheduler.stores.papers import Papers
from scheduler.stores.refusing import is_refusal

if TYPE_CHECKING:
    from scheduler.stats import (
        Audit,
        BudgetStatus,
        Counts,
        QueueRow,
        TenantStatus,
        Unserved,
        WorkerStatus,
    )

# Outcomes of keys that a store in memory keeps, unless it is told otherwise.
KEEP_FINISHED = 100_000
StorePrompts = Literal["full", "hash", "none"]
"""What of a request a durable store keeps on the disk.

``"full"``: all of it; a queue outlives its process by itself. ``"hash"``: its key, model,
amounts and a fingerprint, so that a key used for another body is noticed. ``"none"``: not
even the fingerprint. Without the body what waits stays in memory, and going on after a
restart needs the same requests submitted again. Answers of requests with a key are kept
in every case, until pruned.
"""


class Outcome(StrEnum):
    """How a reservation ends."""

    POST = "post"  # it cost this much
    VOID = "void"  # provably nothing was sent or billed
    SUSPEND = "suspend"  # nobody knows: the promise keeps counting


@dataclass(slots=True)
class NewRequest:
    """A request to put in the queue.

    Attributes:
        digest: Fingerprint of what would be sent; only requests with a key have one.
        expires_at_ms: When it is dropped if it was not sent by then; None: never.
        due_at_ms: Its deadline, by which it goes before others; None: it has none.
        keeps_time: Of one that is amended: both of these stay as they were.
        retry_failed: Queue a key again that failed before; otherwise a known key gives
            back what is known.
        is_kept: Somebody waits for it in this process: the request may stay in memory.
        payload: The request as text, written by `Store.prepare`.
        tokens: What rate limits count of it.
    """

    request: Request
    lane: LaneKey
    ceiling_nusd: int
    ceiling_tokens: int = 0
    expected_nusd: int = 0
    digest: str = ""
    expires_at_ms: int | None = None
    due_at_ms: int | None = None
    keeps_time: bool = False
    retry_failed: bool = False
    is_kept: bool = False
    payload: str | None = None
    tokens: Tokens = UNTOLD_TOKENS

    def set_time(self, expires_at_ms: int | None, due_at_ms: int | None) -> None:
        """When it is dropped, and by when it goes before others, whatever its request says."""
        self.expires_at_ms, self.due_at_ms = expires_at_ms, due_at_ms
        self.lane = self.lane._replace(is_due=due_at_ms is not None)


@dataclass(slots=True)
class Finished:
    """The end of a request, as the store keeps it."""

    id: int
    key: str | None
    state: RequestState
    response: Response | None = None
    error: Mapping[str, Any] | None = None  # code, message, status
    cost_nusd: int = 0
    attempts: int = 0
    digest: str = ""  # of what was asked; empty: not kept

    @property
    def is_unsent(self) -> bool:
        """Whether it ended because of its callers' own terms: another may ask for its key anew."""
        gave_up = self.state in (RequestState.CANCELLED, RequestState.EXPIRED)
        return gave_up or is_refusal(self.error)


class Picture(NamedTuple):
    """How a request is doing, whichever process has it.

    `lack`: why it is parked; None: it is not.
    """

    id: int
    state: RequestState
    lack: Shortfall | None


@dataclass(frozen=True, slots=True)
class Known:
    """What a store has under a key already, wherever that stands.

    Attributes:
        digest: Of what was asked; empty: not kept.
        error: What it ended with, if it failed.
    """

    state: RequestState
    digest: str = ""
    error: Mapping[str, Any] | None = None

    def is_conflict(self, digest: str) -> bool:
        """Whether submitting the key for this body is refused."""
        return bool(self.digest) and self.digest != digest


@dataclass(slots=True)
class Submitted:
    """What became of one `NewRequest`.

    Attributes:
        is_known: The key was submitted before; nothing was queued.
        is_conflict: It was submitted with another body.
        is_elsewhere: The key waits or runs in another live process, which will finish it.
        submitted_at_ms: When a known key was first submitted.
        finished: The outcome, if the key has one already.
        held: The request of a known key as it waits or runs in this process; None: it does not.
    """

    id: int
    state: RequestState = RequestState.QUEUED
    is_known: bool = False
    is_conflict: bool = False
    is_elsewhere: bool = False
    submitted_at_ms: int = 0
    finished: Finished | None = None
    held: NewRequest | None = field(default=None, compare=False)


@dataclass(slots=True)
class Settlement:
    """The end of one attempt: what it cost, and what becomes of its request.

    Attributes:
        state: SUCCEEDED, FAILED or CANCELLED end the request; QUEUED puts it back
            in its place, for now or for `not_before_ms`.
        is_attempt: False: it does not count as an attempt (the provider was too busy).
        is_decided: What becomes of the request stands, even if the provider is down.
        is_assumed: Somebody else than the call itself says so, of what is in suspense: its own
            answer, should it still come, corrects it.
        provider_id: The provider's own id for the call, if it gave one before it was lost.
        why: What is known of an unknown outcome, for people.
        report: What the attempt told about its provider; None: nothing.
        text: The response as text, if a store has written it already.
    """

    reservation_id: int
    request_id: int
    outcome: Outcome
    state: RequestState
    nusd: int = 0
    tokens: int = 0
    not_before_ms: int | None = None
    is_attempt: bool = True
    is_decided: bool = False
    response: Response | None = None
    error: Mapping[str, Any] | None = None
    is_assumed: bool = False
    provider_id: str | None = None
    why: str | None = None
    report: Report | None = None
    text: str | None = None

    @property
    def used_nothing_up(self) -> bool:
        """Whether nothing was spent and nothing learned: the provider is down, and did no work."""
        heard = None if self.report is None else self.report.heard
        is_free = self.outcome is Outcome.VOID and not self.is_decided
        return is_free and heard in (Heard.DOWN, Heard.BUSY)

    def try_again(self) -> None:
        """Back into the queue; it was no attempt."""
        self.state, self.is_attempt = RequestState.QUEUED, False
        self.error = self.not_before_ms = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """An attempt whose outcome nobody knows; its reservation keeps counting.

    Attributes:
        id: Of its reservation.
        provider_id: The provider's own id for the call, if it gave one.
        why: What happened, as far as is known.
        request: What was sent; None if the store keeps no prompts, or not this one's.
    """

    id: int
    request_id: int
    key: str | None
    job: str
    model: str
    provider: str
    made_at_ms: int
    suspended_at_ms: int
    ceiling_nusd: int
    ceiling_tokens: int
    provider_id: str | None = None
    why: str | None = None
    request: Request | None = None


@dataclass(slots=True)
class Claimed:
    """A request admitted: its reservation is committed, it may be sent now.

    Attributes:
        attempt: 1 for the first.
        spent_nusd: What earlier attempts count in the ledger.
        digest: Fingerprint of what was asked; empty without a key, or if it is not kept.
        budgets: On which it draws.
        made_at_ms: When it was reserved.
        is_shared: Any process might have sent it.
    """

    request_id: int
    reservation_id: int
    request: Request
    attempt: int
    ceiling_nusd: int
    ceiling_tokens: int
    spent_nusd: int
    submitted_at_ms: int
    parked_ms: int
    digest: str = ""
    budgets: tuple[int, ...] = ()
    made_at_ms: int = 0
    is_shared: bool = False


@dataclass(slots=True)
class Turn:
    """Everything that waits to be written, and room for what may start.

    Attributes:
        amend: Requests that live, and what to ask in their place, on which terms. Whoever waits
            keeps their age, and their place in line for money.
        slots: Free places per provider; None: claim nothing.
        holds: Requests that live on when they are refused, since others hold them who may wait.
        lend: Requests that wait, and whether a call under way lends them its place from now on.
    """

    now_ms: int
    settle: Sequence[Settlement] = ()
    amend: Sequence[tuple[int, NewRequest]] = ()
    submit: Sequence[NewRequest] = ()
    cancel: Sequence[int] = ()
    slots: Mapping[str, int] | None = None
    holds: Container[int] = ()
    lend: Sequence[tuple[int, bool]] = ()


class Refused(NamedTuple):
    """A request that was not allowed to wait for what it lacks."""

    id: int
    request: Request
    lack: Shortfall


@dataclass(frozen=True, slots=True)
class ExpiredRequest:
    """A request whose time ran out while it waited. Final.

    Attributes:
        lack: What it was parked for; None: it was not parked.
        expires_at_ms: When its time was over.
        is_shared: Any process might have sent it.
    """

    id: int
    waited_ms: int
    key: str | None
    job: str
    lack: Shortfall | None = None
    expires_at_ms: int = field(default=0, compare=False)
    is_shared: bool = field(default=False, compare=False)


@dataclass(slots=True)
class LaneStatus:
    """A lane that was shut or opened in this turn."""

    key: LaneKey
    waiting: int
    shortfall: Shortfall | None  # None: open


@dataclass(slots=True)
class TurnResult:
    """What a committed turn did; lists are aligned with the turn's.

    Attributes:
        settled: Whether each settlement was the first for its reservation.
        cancelled: Whether each request was still waiting, and is now cancelled.
        refused: Requests that were not allowed to wait, with what lacked. Final, but for those
            with a `Request.fallback` and those that others hold: these still wait, and are to be
            amended in the next turn.
        expired: Requests whose time ran out unsent. Final.
        look_again_at_ms: When a claim could do more without anything else happening.
        lease_ms: How long from the turn's `now_ms` others leave this process's claims
            alone, whatever happens to it; None: for as long as it lives.
        superseded: Settlements, by reservation, that their requests did not follow, since
            others had taken those back meanwhile; and whether the request lives on.
        answered: Requests that wait here, and were answered by a process that had been taken
            for dead, after all.
        was_lost: Others had taken this process for dead: its keys may be theirs now.
        waiting: How many of its requests wait, told when it was lost, or when one was answered
            that had been queued again, here or by others; None: as known.
        waiting_shared: How many wait in the shared lanes that this process serves, and has the key for.
    """

    submitted: list[Submitted] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)
    cancelled: list[bool] = field(default_factory=list)
    claimed: list[Claimed] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    expired: list[ExpiredRequest] = field(default_factory=list)
    lanes: list[LaneStatus] = field(default_factory=list)
    crossings: list[Crossing | Burning] = field(default_factory=list)
    look_again_at_ms: int | None = None
    lease_ms: int | None = None
    superseded: dict[int, bool] = field(default_factory=dict)
    answered: list[Finished] = field(default_factory=list)
    was_lost: bool = False
    waiting: int | None = None
    waiting_shared: int = 0


Archive = Callable[[Sequence[Finished]], None]


class Store(Noting, Papers, History, Outbox, ABC):
    """Keeps requests, budgets and reservations. All amounts are integers."""

    @abstractmethod
    async def open(self, now_ms: int) -> None:
        """Make the store ready and register this process.

        Raises:
            StoreError: Not ours, too new, locked, or not readable.
            ConfigError: It is open: it is another scheduler's.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Give waiting requests back to whoever submits them again; let go of files."""

    @abstractmethod
    async def turn(self, turn: Turn) -> TurnResult:
        """Do all of it in one transaction.

        In this order: settle, cancel, amend, lend, submit, claim.

        It is awaited in a task that cannot be cancelled, so it must not lean on that: no
        ``asyncio.timeout`` in it.

        Raises:
            StoreError: It happened as a whole or not at all, and nobody knows which: go no
                further with what is in memory.
        """

    @abstractmethod
    async def changed(self, now_ms: int) -> bool:
        """Whether another process wrote since the last look; also renews the lease."""

    def prepare(self, new: NewRequest) -> None:
        """Check, before it is queued, that a request can be stored.

        Raises:
            ConfigError: It cannot; nothing was queued.
        """
        check_names(new.request)

    def use(self, gates: Gates) -> None:
        """Decide by these gates, too: a turn hears its settlements' reports and takes from them.

        A store that is shared keeps what other processes need to know of them.
        """
        self.gates = gates

    def serve(
        self, services: Mapping[str, str], *, at_once: int | None = None, left: Collection[str] = ()
    ) -> None:
        """Have this process claim what is in shared lanes of these services, by provider's name.

        Args:
            services: What it may send.
            at_once: So many calls at once, as others are told; None: it sends nothing, and only
                follows what waits there.
            left: Names of those among them that it cannot send to, for want of a key: what waits
                there is followed, too, and left to others.
        """

    def share(self, fairness: Fairness | None) -> None:
        """Have tenants share what there is; None: there are none."""

    async def pause_for_others(self, seconds: float) -> None:
        """Sleep so long; shorter, if the store hears that other processes changed something."""
        await asyncio.sleep(seconds)

    clock: Clock | None = None
    """The clock by which the store itself goes, for those who tell it the time; None: it has none.

    Set to None, it goes by what it is told.
    """

    gates: Gates = Gates()
    """What holds requests back besides money; without rules, nothing."""

    # What this process knows without asking: as of its last transaction

    is_shared = False
    """Whether other processes may change what is stored."""

    keeps_whole = False
    """Whether others find there all that is needed to send a request."""

    lease_ms = 30_000
    """How long this process may be silent before others take it for dead."""

    most_per_turn = 5_000
    """How many requests a turn should submit, cancel or amend at most, so that it is short."""

    @abstractmethod
    def latest(self) -> list[BudgetStatus]:
        """Budgets with their balances."""

    def balances(self, budgets: Collection[int]) -> list[BudgetStatus]:
        """Those of these budgets."""
        return [status for status in self.latest() if status.id in budgets]

    @abstractmethod
    def lanes(self) -> list[LaneStatus]:
        """This process's lanes in which something waits."""

    @abstractmethod
    def shortfall(self, key: LaneKey) -> Shortfall | None:
        """Why a lane is shut; None: it is open."""

    async def limited(self, now_ms: int) -> list[GateStatus]:
        """What providers' limits hold back now, as far as processes told each other."""
        return self.gates.statuses(now_ms)

    def sharing(self, now_ms: int) -> list[TenantStatus]:
        """How tenants are doing, as far as this process knows; nobody shares: none."""
        return []

    async def tenants(self, now_ms: int) -> list[TenantStatus]:
        """How tenants are doing, in all processes."""
        return self.sharing(now_ms)

    # Budgets

    @abstractmethod
    async def define(self, budgets: Sequence[Budget], now_ms: int) -> None:
        """Create budgets, or change them to this definition; what was spent stays spent.

        It costs what these budgets do, however many others there are.
        """

    @abstractmethod
    async def remove(self, name: str, now_ms: int) -> None:
        """Have a budget bind nobody any more; who waits for nothing else goes on.

        Reservations settle in it as they would have, and what was spent stays in `spend` and
        `audit`. Defined again, it is the same one, with what it spent.

        Raises:
            BudgetUnknown: There is none of that name.
            ConfigError: It is the parent of others; nothing was changed.
        """

    @abstractmethod
    async def defined(self, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """Those of these budgets that there are, with their ids; reads no others."""

    async def redefined(self, now_ms: int) -> tuple[list[tuple[int, Budget]], list[str]]:
        """Budgets that other processes made or changed since this one heard of them, and the names
        of those that were removed.
        """  # noqa: D205
        return [], []

    @abstractmethod
    async def budgets(self, now_ms: int) -> list[BudgetStatus]:
        """All budgets with their balances now, in the order they were defined."""

    @abstractmethod
    async def pause(self, name: str, paused: bool, now_ms: int) -> None:
        """Stop or go on admitting on a budget. Raises `BudgetUnknown`."""

    # The user's own prices

    @abstractmethod
    async def prices(self) -> dict[str, str]:
        """Model to price, in the form `PriceBook` reads: ``"IN/OUT"``."""

    @abstractmethod
    async def set_price(self, model: str, price: str | None) -> None:
        """Keep a price of the user's own; None removes it."""

    # Looking

    @abstractmethod
    async def counts(self, job: str | None = None) -> Counts:
        """How many requests are in each state, parked ones by reason."""

    @abstractmethod
    async def queue(
        self, states: Iterable[RequestState], now_ms: int, *, job: str | None = None,
        limit: int = 1000, after_id: int = 0,
    ) -> list[QueueRow]:  # fmt: skip
        """Requests in these states, oldest first, a page at a time."""

    @abstractmethod
    async def audit(self, now_ms: int) -> Audit:
        """Recompute every balance from the reservations and compare."""

    # What nobody knows

    @abstractmethod
    async def suspended(
        self, *, job: str | None = None, limit: int = 1000, after_id: int = 0
    ) -> list[Unknown]:
        """Attempts whose outcome is unknown, oldest first, a page at a time."""

    @abstractmethod
    async def suspended_since(
        self, since_ms: int, *, after_id: int = 0, limit: int = 10_000
    ) -> list[tuple[int, int]]:
        """When attempts became unknown, and their ids: from that instant on, in that order.

        Args:
            since_ms: The instant.
            after_id: Of those of that very instant, only those with a higher id.
            limit: Most of them.
        """

    @abstractmethod
    async def suspended_of(self, ids: Sequence[int]) -> list[Unknown]:
        """Those of these attempts whose outcome is unknown."""

    @abstractmethod
    async def resolve(self, settlements: Sequence[Settlement], now_ms: int) -> list[bool]:
        """Settle what is in suspense; whether each settlement changed anything.

        What became of the requests themselves stays as it is.
        """

    async def still_mine(self, ids: Sequence[int]) -> set[int]:
        """Those of these requests that no other process has taken over."""
        return set(ids)

    async def ended_since(self, seq: int) -> tuple[int, list[int] | None]:
        """Requests that ended since then and that other processes may wait for, and up to where.

        Those of shared lanes, and all with a key where several processes work on the store.

        Args:
            seq: What the last call returned; 0: from the beginning.

        Returns:
            What to ask with next; and the requests in the order in which they ended. None: so many
            did that nobody knows which.
        """
        return 0, []

    async def pictures(self, ids: Sequence[int]) -> list[Picture]:
        """How these requests are doing, those of other processes too."""
        return []

    async def processes(self) -> frozenset[int]:
        """The processes that look after requests here, as far as they are not taken for dead."""
        return frozenset()

    async def workers(self, now_ms: int) -> list[WorkerStatus]:
        """The processes that send what others submit, also those that seem to be lost."""
        return []

    async def unserved(self, now_ms: int, job: str | None = None) -> list[Unserved]:
        """What waits for a provider that no live process serves; of one job, or of all."""
        return []

    # Results kept for files

    @abstractmethod
    def finished(self, job: str, *, undelivered: bool = True) -> AsyncIterator[Finished]:
        """Outcomes of a job's keyed requests, oldest first."""

    def ended(self, job: str) -> AsyncIterator[Finished]:
        """As `finished`, of all that have ended, without answers and errors."""
        return self.finished(job, undelivered=False)

    async def jobs(self) -> list[str]:
        """The names of all jobs there ever were."""
        return [row.name for row in await self.spend("job")]

    @abstractmethod
    async def known(self, job: str, keys: Sequence[str]) -> dict[str, Known]:
        """What a job has under these keys already, for whoever wants to know before submitting."""

    @abstractmethod
    async def outcomes(self, ids: Sequence[int]) -> list[Finished]:
        """Those of these requests that have ended."""

    @abstractmethod
    async def forget(self, job: str, now_ms: int) -> None:
        """Let a job start anew: cancel what waits, take its keys back. Costs stay counted.

        Raises:
            StoreLocked: Another process is running the job.
        """

    @abstractmethod
    async def delivered(self, ids: Sequence[int]) -> None:
        """Note that these outcomes reached their file."""

    @abstractmethod
    async def prune(
        self, before_ms: int, now_ms: int, *, undelivered: bool = False, limit: int = 1000,
        archive: Archive | None = None,
    ) -> list[Finished]:  # fmt: skip
        """Forget requests that ended before then; returns a page of them.

        Call again until it returns an empty page. No balance changes: what they cost stays counted,
        in sums. Requests with an attempt in suspense stay. Their keys are free again.

        Args:
            before_ms: Those that ended before then.
            now_ms: The time.
            undelivered: Also those whose outcome never reached a file.
            limit: Most requests of a page.
            archive: Called with the page, on the store's own thread, before anything is
                deleted; what it raises leaves everything as it was.
        """
