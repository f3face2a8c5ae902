"""What admission is shown of a lane, and what it finds of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scheduler.ledger.account import Account, Needs
from scheduler.request import Tokens
from scheduler.shortfall import Shortfall

if TYPE_CHECKING:
    from scheduler.admission.places import Places
    from scheduler.limits import Closed, Metered

DEPTH = 100
NEVER = math.inf


class LaneKey(NamedTuple):
    """What the requests of one lane have in common.

    `may_wait` False: refuse what does not fit instead of parking it. `is_lent`: a call under way
    waits for it, and lends it its place. `is_shared`: any process that serves the provider may
    send them.
    """

    provider: str
    budgets: tuple[int, ...]
    priority: int
    may_wait: bool = True
    model: str = ""
    is_lent: bool = False
    is_shared: bool = False


class Candidate(Protocol):
    """A waiting request, as far as admission is concerned."""

    @property
    def id(self) -> int: ...  # noqa: D102
    @property
    def needs(self) -> Needs: ...  # noqa: D102
    @property
    def tokens(self) -> Tokens: ...  # noqa: D102


@dataclass(slots=True)
class LaneView:
    """A lane as `plan` sees it: its accounts, looked at now, who waits, oldest first, its gates.

    Attributes:
        larger: Of a provider that is short of credit: those that need more than `Closed.reach`,
            smallest first. They are then not among the candidates. None: all are.
        size_by_id: With these: the size of who waits in the lane; None: it does not.
    """

    key: LaneKey
    accounts: Sequence[Account]
    candidates: Iterator[Candidate]
    gates: Sequence[Metered] = ()
    larger: Callable[[], Iterator[Candidate]] | None = None
    size_by_id: Callable[[int], int | None] | None = None

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
        beyond: Account id → the first for whom there was no place in line, by priority and id.
        held: Account id → most that a request hopes to get from calls under way; once
            so much has been spent that they cannot give it, it waits for something else.
        resumes_at_ms: The earliest reset that lets one of its requests go on.
        fits: The largest size (`limits.size_of`) that a closed provider lets go meanwhile.
        head_id: The oldest that goes on waiting in the lane; None: not known.
    """

    shortfall: Shortfall | None = None
    wakes: dict[int, int] = field(default_factory=dict)
    smallest: dict[int, int] = field(default_factory=dict)
    behind: set[int] = field(default_factory=set)
    beyond: dict[int, tuple[int, int]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    resumes_at_ms: int | None = None
    fits: int = -1
    head_id: int | None = None

    def clear(self) -> None:
        """Nothing is lacking after all."""
        self.shortfall, self.resumes_at_ms, self.fits = None, None, -1
        self.wakes.clear()
        self.smallest.clear()
        self.behind.clear()
        self.beyond.clear()
        self.held.clear()


class Scan:
    """Where the planner is in one lane."""

    __slots__ = (
        "blocked",
        "has_lined_up",
        "head",
        "is_beyond",
        "verdict",
        "view",
        "waits_for_place",
    )

    def __init__(self, view: LaneView, verdict: Verdict) -> None:
        self.view, self.verdict, self.blocked = view, verdict, 0
        self.is_beyond = False  # there was no place in line for one: nor is there for later ones
        self.waits_for_place = self.has_lined_up = False
        self.head: Candidate

    def advance(self) -> bool:
        """Go to the next candidate; False at the end or when looked deep enough."""
        if self.blocked > DEPTH and not self.view.key.is_lent:
            return False
        head = next(self.view.candidates, None)
        if head is None:
            return False
        self.head = head
        return True

    def stays(self) -> None:
        """The head of the lane goes on waiting."""
        if self.verdict.head_id is None and self.view.larger is None:
            self.verdict.head_id = self.head.id


@dataclass(slots=True)
class Plan:
    """Whom to admit, in order, what to refuse, and a verdict for each lane that was looked at.

    Attributes:
        places: What was free, what is left of it, and the gates where somebody waits.
        now_ms: The instant all accounts were looked at.
        moved: Accounts in whose line somebody gave up its place, which lets others go on.
        is_cut: Not all lanes worth a look were looked at: go on in the next turn.
    """

    places: Places
    now_ms: int
    admitted: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Candidate, Shortfall]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)
    is_cut: bool = False

    @property
    def look_again_at_ms(self) -> int | None:
        """When a gate opens by itself that holds somebody back; None: none does."""
        if self.is_cut:
            return self.now_ms
        return None if self.places.opens_at_ms == NEVER else math.ceil(self.places.opens_at_ms)
