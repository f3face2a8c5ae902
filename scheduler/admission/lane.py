"""What admission is shown of a lane, what it finds of it, and where it is in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scheduler.admission.fairness import Tenant
from scheduler.foresight import Kind
from scheduler.ledger.account import FAR, Account, Needs, Standing
from scheduler.request import Tokens
from scheduler.shortfall import Shortfall

if TYPE_CHECKING:
    from scheduler.limits import Closed, Metered, Rank

DEPTH = 100
NEVER = math.inf
Head = tuple[int, int]  # who is first in a lane: when it is due (`FAR`: no deadline), and its id
Level = tuple[
    int, bool
]  # a priority, and whether of those without a deadline: these are less urgent


class Dated(Protocol):
    """A request, as far as its place among others is concerned."""

    @property
    def id(self) -> int: ...  # noqa: D102
    @property
    def due_at_ms(self) -> int | None: ...  # noqa: D102


class LaneKey(NamedTuple):
    """What the requests of one lane have in common.

    `may_wait` False: refuse what does not fit instead of parking it. `is_lent`: a call under way
    waits for it, and lends it its place. `is_shared`: any process that serves the provider may
    send them, if it asks the same `service` by that name. `tenant`: with whom it shares what there
    is, where tenants share. `is_due`: they have deadlines, and go by these.
    """

    provider: str
    budgets: tuple[int, ...]
    priority: int
    may_wait: bool = True
    model: str = ""
    is_lent: bool = False
    is_shared: bool = False
    service: str = ""
    tenant: str = ""
    is_due: bool = False

    @property
    def level(self) -> Level:
        """How urgent its requests are."""
        return self.priority, not self.is_due

    @property
    def lowest(self) -> Head:
        """Nobody in the lane is before this."""
        return (0, 0) if self.is_due else (FAR, 0)

    def head(self, candidate: Dated) -> Head:
        """The place of a request in the lane."""
        if not self[9]:  # `is_due`, read often
            return FAR, candidate.id
        due_ms = candidate.due_at_ms
        return FAR if due_ms is None else due_ms, candidate.id

    def as_private(self) -> LaneKey:
        """The lane of the same requests that only one process can send."""
        return self._replace(is_shared=False, service="") if self.is_shared else self


class Candidate(Dated, Protocol):
    """A waiting request, as far as admission is concerned."""

    @property
    def needs(self) -> Needs: ...  # noqa: D102
    @property
    def tokens(self) -> Tokens: ...  # noqa: D102
    @property
    def kind(self) -> Kind: ...  # noqa: D102


@dataclass(slots=True)
class LaneView:
    """A lane as `plan` sees it: its accounts, looked at now, who waits, oldest first, its gates.

    Attributes:
        larger: Of a provider that is short of credit: those that need more than `Closed.reach`,
            smallest first. They are then not among the candidates. None: all are.
        size_by_id: With these: the size of who waits in the lane; None: it does not.
        tenant: Whose requests they are; None: nobody shares with anybody.
    """

    key: LaneKey
    accounts: Sequence[Account]
    candidates: Iterator[Candidate]
    gates: Sequence[Metered] = ()
    larger: Callable[[], Iterator[Candidate]] | None = None
    size_by_id: Callable[[int], int | None] | None = None
    tenant: Tenant | None = None

    @property
    def closed(self) -> Closed | None:
        """Why nothing goes to its provider but a probe; None: it is open."""
        return self.gates[0].closed if self.gates else None


@dataclass(slots=True)
class Verdict:
    """What the plan found for one lane.

    Attributes:
        shortfall: What the first request that does not fit lacks; None: the lane stays open.
        wakes: Account id → amount that must become available for another look.
        smallest: Account id → the smallest amount of those that wait for it.
        behind: Accounts in whose line somebody has to go first, or give up.
        beyond: Account id → the first for whom there was no place in line, by priority, deadline
            and id.
        held: Account id → most that a request hopes to get from calls under way; once
            so much has been spent that they cannot give it, it waits for something else.
        resumes_at_ms: The earliest reset that lets one of its requests go on.
        fits: The largest size (`gates.size_of`) that a closed provider lets go meanwhile.
    """

    shortfall: Shortfall | None = None
    wakes: dict[int, int] = field(default_factory=dict)
    smallest: dict[int, int] = field(default_factory=dict)
    behind: set[int] = field(default_factory=set)
    beyond: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    resumes_at_ms: int | None = None
    fits: int = -1

    def clear(self) -> None:
        """Nothing is lacking after all."""
        self.shortfall, self.resumes_at_ms, self.fits = None, None, -1
        self.wakes.clear()
        self.smallest.clear()
        self.behind.clear()
        self.beyond.clear()
        self.held.clear()


@dataclass(slots=True)
class Plan:
    """Whom to admit, in order, what to refuse, and a verdict for each lane given.

    Attributes:
        opens_at_ms: When the first gate opens that holds somebody back; `NEVER`: none, or
            only when calls under way end.
        moved: Accounts in whose line somebody gave up its place, which lets others go on.
        rests: For each lane: nobody before this place waits in it any more.
        is_cut: There are more lanes to look at, at once.
    """

    admitted: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Candidate, Shortfall]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    opens_at_ms: float = NEVER
    moved: set[int] = field(default_factory=set)
    rests: list[Head] = field(default_factory=list)
    is_cut: bool = False
    _held: dict[int, float] = field(default_factory=dict)  # gate where somebody waits → until when
    triers: dict[str, list[Trier]] = field(default_factory=dict)  # who may probe, by provider

    @property
    def look_again_at_ms(self) -> int | None:
        """When a gate opens by itself; None: none does."""
        return None if self.opens_at_ms == NEVER else math.ceil(self.opens_at_ms)

    def is_held(self, gates: Sequence[Metered]) -> bool:
        """Whether somebody waits at one of these gates."""
        return any(id(gate) in self._held for gate in gates)

    def holds_back(
        self, gates: Sequence[Metered], candidate: Candidate, now_ms: int, is_lent: bool = False
    ) -> bool:
        """Whether a gate is shut for the candidate, or for somebody before it.

        With a lent place it passes whoever waits for a place.
        """
        opens_at_ms = 0.0
        for gate in gates:
            held_until_ms = self._held.get(id(gate)) if self._held else None
            if held_until_ms is not None and not (is_lent and held_until_ms == NEVER):
                return True
            at_ms = gate.opens_at_ms(candidate.tokens, now_ms, is_lent)
            if at_ms > now_ms:
                self._held[id(gate)] = at_ms
                opens_at_ms = max(opens_at_ms, at_ms)
        if not opens_at_ms:
            return False
        self.opens_at_ms = min(self.opens_at_ms, opens_at_ms)
        return True


class Trier(NamedTuple):
    """Who may try whether its provider is open again."""

    rank: Rank
    scan: Scan
    candidate: Candidate


class Scan:
    """Where the plan is in one lane."""

    __slots__ = (
        "blocked",
        "has_begun",
        "has_lined_up",
        "head",
        "is_beyond",
        "left",
        "position",
        "verdict",
        "view",
        "waits_for_place",
    )

    def __init__(self, view: LaneView) -> None:
        self.view, self.verdict, self.blocked = view, Verdict(), 0
        self.left: Head | None = None  # the first one that stays
        self.position = 0
        self.is_beyond = False  # there was no place in line for one: nor is there for later ones
        self.waits_for_place = self.has_lined_up = False
        self.head: Candidate
        self.has_begun = False

    @property
    def rest(self) -> Head:
        """Nobody before this place waits in the lane any more."""
        key = self.view.key
        if self.view.larger is not None or not self.has_begun:
            return key.lowest
        if self.left is not None:
            return self.left
        due_ms, id_ = key.head(self.head)
        return due_ms, id_ + 1

    @property
    def start(self) -> int:
        """Where its tenant would start now. Who is waited for, on a lent place, goes first."""
        view = self.view
        return 0 if view.tenant is None or view.key.is_lent else view.tenant.start

    @property
    def standing(self) -> Standing:
        """Of the head of the lane: before whom it goes. Who is in line keeps the turn it had."""
        view, turn = self.view, 0
        due_ms, id_ = view.key.head(self.head)
        if view.tenant is not None:
            for account in view.accounts:
                if account.line and (own := account.waiter_of(id_)) is not None:
                    return own.standing
            turn = view.tenant.turn
        return Standing(view.key.priority, turn, due_ms, id_)

    def advance(self) -> bool:
        """Go to the next candidate; False at the end or when looked deep enough."""
        if self.blocked > DEPTH and not self.view.key.is_lent:
            return False
        head = next(self.view.candidates, None)
        if head is None:
            return False
        self.head, self.has_begun = head, True
        return True


def has_place(key: LaneKey, free: Mapping[str, int]) -> bool:
    """Whether one of that lane has a place: a free one, or a lent one."""
    return free.get(key.provider, 0) > 0 or (key.is_lent and key.provider in free)
