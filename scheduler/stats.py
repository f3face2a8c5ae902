"""Frozen pictures of what is going on, for people, programs and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.budget import Budget, Cap, Unit
from scheduler.money import format_usd
from scheduler.request import Request, RequestState
from scheduler.shortfall import Shortfall

if TYPE_CHECKING:
    from scheduler.limits import GateStatus


@dataclass(frozen=True, slots=True)
class CapStatus:
    """One cap of a budget now. Amounts in the cap's unit; `limit` None: no limit.

    Attributes:
        reserved: Promised to calls under way, including `suspense`.
        suspense: The part of `reserved` whose outcome nobody knows.
        resets_at_ms: When the window ends, or money next leaves a rolling one; None: never.
        overrun: Posted above what was reserved, in this window.
        allowed: Of a paced cap, how much of the limit may be used up by now; None: all of it.
        kept: What is kept for calls under way, where that is less than their ceilings, by the
            budget's risk; None: their ceilings are. `reserved` has the ceilings in any case.
        calls: How many these are; 0 where `kept` is None.
        slots: Of a rolling window, what was posted when: the beginnings of its parts, and amounts.
    """

    cap: Cap
    limit: int | None
    posted: int
    reserved: int
    suspense: int
    window_start_ms: int
    resets_at_ms: int | None
    overrun: int = 0
    allowed: int | None = None
    kept: int | None = None
    calls: int = 0
    slots: tuple[tuple[int, int], ...] = ()

    @property
    def counted(self) -> int:
        """What of the limit is used: posted, in suspense, and kept for calls under way."""
        return self.posted + (self.reserved if self.kept is None else self.suspense + self.kept)

    @property
    def available(self) -> int | None:
        """What may still be reserved; negative after an overrun or a cut; None: no limit."""
        limit = self.limit if self.allowed is None else self.allowed
        return None if limit is None else limit - self.counted

    @property
    def more_calls(self) -> int:
        """How many of the calls under way would wait if their ceilings were kept."""
        ceilings = self.reserved - self.suspense
        if self.kept is None or self.limit is None or ceilings <= 0:
            return 0
        left = max(0, self.limit - self.posted - self.suspense)
        return self.calls - min(self.calls, self.calls * left // ceilings)


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget and the balances of its caps now."""

    id: int
    budget: Budget
    paused: bool
    caps: tuple[CapStatus, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by state; `parked_by_reason` splits `parked`."""

    queued: int = 0
    parked: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    parked_by_reason: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Queued and parked together."""
        return self.queued + self.parked

    @property
    def total(self) -> int:
        """Every request ever submitted."""
        done = self.succeeded + self.failed + self.cancelled + self.expired
        return self.waiting + self.running + done


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One request as a list shows it.

    Attributes:
        service: What any process may ask in its place; empty: its own process asks.
        tenant: With whom it shares what there is; ``""``: it has no such tag, or nobody shares.
        due_at_ms: Its deadline; None: it has none.
    """

    id: int
    key: str | None
    job: str
    state: RequestState
    model: str
    provider: str
    priority: int
    submitted_at_ms: int
    attempts: int
    ceiling_nusd: int
    cost_nusd: int
    parked_ms: int
    shortfall: Shortfall | None
    request: Request | None = None
    error: Mapping[str, Any] | None = None
    service: str = ""
    tenant: str = ""
    due_at_ms: int | None = None


class TenantStatus(NamedTuple):
    """How a tenant is doing.

    Attributes:
        tenant: The value of its tag; ``""``: those without one.
        waiting: Its requests that wait.
        served_nusd: What was reserved and spent for it in this hour and the one before, in
            nano-dollars; of models that cost nothing, tokens.
        weight: What it gets in terms of others, of whom most weigh 1.
    """

    tenant: str
    waiting: int
    served_nusd: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Live requests of one priority that are in one state for one reason.

    Attributes:
        priority: As an int; see `Priority`.
        reason: Why they are parked; ``"retry_later"`` for queued ones that were tried and wait for
            another attempt; else empty.
        budget: Of parked ones the budget, or the provider, that lacks something; else empty.
        oldest_at_ms: When the oldest of them was submitted; of running ones, when the oldest was
            reserved.
        since_ms: Since when they are parked, the longest of them; 0: they are not.
        lack: Why, for the one that is parked longest; None: they are not parked.
    """

    state: RequestState
    priority: int
    reason: str
    budget: str
    requests: int
    oldest_at_ms: int
    since_ms: int = 0
    lack: Shortfall | None = None


class UnknownSum(NamedTuple):
    """Attempts whose outcome nobody knows: how many, what they hold, since when; 0: there is none."""

    attempts: int = 0
    nusd: int = 0
    oldest_at_ms: int = 0


class Past(NamedTuple):
    """What one answered request came to.

    `guess` is what was guessed of its prompt's tokens, `input_tokens` and `output_tokens` what was
    billed; `ms` is how long it took; `expected_nusd` what was expected before it was sent.
    """

    model: str
    cost_nusd: int
    input_tokens: int
    output_tokens: int
    guess: int
    ceiling_nusd: int
    ceiling_tokens: int
    ms: int
    expected_nusd: int = 0


class Took(NamedTuple):
    """What one call took and cost.

    `expected_nusd` is what was expected of its cost before it was sent, -1: nobody knows any more;
    `guess` what was guessed of its prompt's tokens.
    """

    model: str
    nusd: int
    tokens: int
    ms: int
    expected_nusd: int = -1
    guess: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """Those who wait or run in one lane, and what some of them may come to.

    Of each of these, `asks` has its ceiling in nano-dollars and in tokens, what it is expected to cost,
    its prompt's tokens, as they are guessed, and the cap of its answer.
    """

    provider: str
    model: str
    priority: int
    budgets: tuple[int, ...]
    count: int
    asks: tuple[tuple[int, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A process that sends what others submit.

    Attributes:
        host: Its machine.
        serves: The services it asks, by provider's name.
        own: Providers of which it sends nothing but the work it shares with a few others, such as
            the runs of one batch.
        concurrency: Most calls at once.
        since_ms: When it began.
        seen_at_ms: When it last said that it is there.
        running: Its calls under way.
        is_live: It is there, as far as others can tell.
    """

    id: int
    host: str
    pid: int
    serves: Mapping[str, str]
    own: frozenset[str]
    concurrency: int
    since_ms: int
    seen_at_ms: int
    running: int
    is_live: bool


@dataclass(frozen=True, slots=True)
class Unserved:
    """Requests that wait for a provider that no live process serves."""

    provider: str
    service: str
    waiting: int


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Money under one heading. `reserved_nusd` includes `suspense_nusd`."""

    name: str
    attempts: int
    posted_nusd: int
    reserved_nusd: int
    suspense_nusd: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A stored balance that differs from the one recomputed from its reservations."""

    budget: str
    cap: str
    unit: Unit
    window_start_ms: int
    what: str  # "posted" or "reserved"
    stored: int
    recomputed: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of recomputing every balance; fine if `discrepancies` is empty."""

    balances: int
    reservations: int
    discrepancies: tuple[Discrepancy, ...] = ()
    overruns: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """A scheduler at one instant; requests are those of this process.

    Attributes:
        posted_nusd: Spent by this scheduler since it was opened.
        reserved_nusd: Promised by this scheduler to calls under way.
        suspense_nusd: Promised by this scheduler to calls whose outcome nobody knows.
        overruns: Calls that cost more than their ceiling.
        resumes_at_ms: The earliest instant at which something parked may go on by
            itself; None: nothing is parked, or only a raise helps.
        shortfalls: Why lanes are parked now.
        limited: What providers' rate limits hold back now.
        tenants: Who shares what there is (`fair_by`), whoever has been served most lately first.
    """

    queued: int
    parked: Mapping[str, int]
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    posted_nusd: int
    reserved_nusd: int
    suspense_nusd: int
    overruns: int
    resumes_at_ms: int | None
    shortfalls: tuple[Shortfall, ...]
    budgets: tuple[BudgetStatus, ...]
    limited: tuple[GateStatus, ...] = ()
    tenants: tuple[TenantStatus, ...] = ()

    def __str__(self) -> str:
        parked = sum(self.parked.values())
        unknown = f", {format_usd(self.suspense_nusd)} unknown" if self.suspense_nusd else ""
        return (
            f"{self.running} running | {self.queued} queued, {parked} parked | "
            f"{self.succeeded} done, {self.failed} failed | "
            f"{format_usd(self.posted_nusd)} spent, {format_usd(self.reserved_nusd)} reserved"
            f"{unknown}"
        )
