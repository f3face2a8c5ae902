"""Which inner requests can never go, because callers that wait hold what they need; pure.

The best is assumed of everybody else: a call that waits for nothing ends, and turns out free. Then
whoever is waited for and fits ends, too, and so does its caller, and so on, until nothing more can
end. Whoever is left is stuck, whatever happens: only a raise, or an error of one of them, helps.

What waits for a reset or for a raise is not stuck, unless its money is held so until long after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from scheduler.admission.plan import LaneKey
from scheduler.errors import HeldByCallers, SchedulerError, WaitsForItself
from scheduler.ledger.account import Needs, unit_index
from scheduler.stats import BudgetStatus, CapStatus
from scheduler.stores.base import Claimed

PATIENCE_S = 60.0  # for money of which nobody can tell whether it comes back, and for a reset


class Inner(Protocol):
    """A request that a call waits for."""

    request_id: int | None
    lane: LaneKey | None
    needs: Needs

    @property
    def key(self) -> str | None: ...  # noqa: D102


class Holding(NamedTuple):
    """A call under way, and the inner requests it waits for.

    `awaited` None: it waits for none; empty: it may, nobody can tell.
    """

    claimed: Claimed
    awaited: Sequence[Inner] | None


Balances = Callable[[Collection[int]], list[BudgetStatus]]


class _Cap:
    """One cap of a budget, and what calls hold of it.

    Attributes:
        own: All calls of this process.
        locked: Those of them that cannot end.
        unclear: Those of which nobody can tell.
    """

    def __init__(self, status: BudgetStatus, cap: CapStatus, now_ms: int) -> None:
        self.status, self.cap, self._now_ms = status, cap, now_ms
        self.index = unit_index(cap.cap.unit)
        self.own = self.locked = self.unclear = 0

    def held_by(self, claimed: Claimed) -> int:
        """How much of it a call holds."""
        window = self.cap.cap.window
        if window.slot_start_ms(claimed.made_at_ms) < window.oldest_counting_ms(self._now_ms):
            return 0
        return (claimed.ceiling_nusd, claimed.ceiling_tokens, 1)[self.index]

    @property
    def doubtful(self) -> int:
        """What may come back or not: other processes hold it, or nobody can tell."""
        return self.unclear + max(0, self.cap.reserved - self.cap.suspense - self.own)

    def gives(self, need: int, priority: int, *, at_best: bool) -> bool:
        """Whether so much may be had of it; `at_best`: what is doubtful comes back, too."""
        cap = self.cap
        if not need or cap.limit is None or self.status.paused:
            return True
        best = cap.limit - cap.posted - cap.suspense
        kept = self.keeps(priority)
        if need + kept > best or need + kept <= cap.limit - cap.counted:
            return (
                True  # it waits for a reset, a release or a raise, as anybody does, or for nothing
            )
        held = self.locked + (0 if at_best else self.doubtful)
        if cap.kept is not None:  # calls count at less than their ceilings
            held = held * cap.kept // max(1, cap.reserved - cap.suspense)
        soon_ms = self._now_ms + int(1000 * PATIENCE_S)
        window = cap.cap.window
        ends_at_ms = window.stops_counting_ms(window.slot_start_ms(self._now_ms))
        if ends_at_ms is not None and ends_at_ms <= soon_ms:
            return True
        return need + cap.cap.keeps(priority, soon_ms) <= best - held

    def keeps(self, priority: int) -> int:
        """What of it is kept now for others than a priority's requests."""
        return self.cap.cap.keeps(priority, self._now_ms)


class Stuck:
    """What `find_stuck` found.

    Attributes:
        newest: Of those that can never go the one that came last; None: there are none.
        doubtful: Those that go only if what is doubtful comes back.
    """

    def __init__(self, calls: Iterable[Holding], now_ms: int) -> None:
        self._calls = {each.claimed.request_id: each for each in calls}
        self._waiting = {id_: each.awaited for id_, each in self._calls.items() if each.awaited}
        self._caps: dict[int, list[_Cap]] = {}
        self._now_ms = now_ms
        self.newest: Inner | None = None
        self.doubtful: set[Inner] = set()
        self._is_patient: Callable[[Inner], bool]

    def find(self, balances: Balances, is_patient: Callable[[Inner], bool]) -> None:
        """Let everybody end who can, and see who is left."""
        self._is_patient = is_patient
        budgets = {budget for each in self._left() for budget in _budgets(each)}
        self._caps = {
            status.id: [_Cap(status, cap, self._now_ms) for cap in status.caps]
            for status in balances(budgets)
        }
        for id_, (claimed, awaited) in self._calls.items():
            for cap in self._caps_of(claimed.budgets):
                held = cap.held_by(claimed)
                cap.own += held
                cap.locked += held * (id_ in self._waiting)
                cap.unclear += held * (awaited is not None and not awaited)
        self._let_end(self._goes)
        self._let_end(self._may_go)
        stuck = [each for each in self._left() if not self._may_go(each)]
        lacking = [each for each in stuck if each.request_id not in self._calls]
        # Where nobody lacks money, calls wait for each other by their keys.
        self.newest = max(lacking or stuck, key=lambda each: each.request_id or 0, default=None)

    def _let_end(self, goes: Callable[[Inner], bool]) -> None:
        has_ended = True
        while has_ended:
            has_ended = False
            for id_, awaited in list(self._waiting.items()):
                if all(map(goes, awaited)):
                    has_ended = True
                    self._end(id_)

    def _left(self) -> Iterator[Inner]:
        return (each for awaited in self._waiting.values() for each in awaited)

    def _caps_of(self, budgets: Iterable[int]) -> Iterator[_Cap]:
        return (cap for budget in budgets for cap in self._caps.get(budget, ()))

    def _end(self, id_: int) -> None:
        del self._waiting[id_]
        claimed = self._calls[id_].claimed
        for cap in self._caps_of(claimed.budgets):
            cap.locked -= cap.held_by(claimed)

    def _goes(self, inner: Inner) -> bool:
        if inner.request_id in self._calls:
            return inner.request_id not in self._waiting
        return self._lack(inner, at_best=False) is None

    def _may_go(self, inner: Inner) -> bool:
        """As `_goes`, if what is doubtful comes back in time."""
        if self._goes(inner):
            return True
        if inner.request_id in self._calls or self._lack(inner, at_best=True) is not None:
            return False
        self.doubtful.add(inner)
        return self._is_patient(inner)

    def _lack(self, inner: Inner, *, at_best: bool) -> _Cap | None:
        for cap in self._caps_of(_budgets(inner)):
            if not cap.gives(inner.needs[cap.index], _priority(inner), at_best=at_best):
                return cap
        return None

    def error(self) -> SchedulerError:
        """What the newest is told."""
        newest = self.newest
        assert newest is not None
        cap = self._lack(newest, at_best=True) or self._lack(newest, at_best=False)
        if cap is None or newest.request_id in self._calls:
            return WaitsForItself(newest.key or "")
        told, held = cap.cap, min(cap.cap.reserved, cap.locked + cap.doubtful)
        return HeldByCallers(
            cap.status.budget.name, told.limit or 0, told.posted, told.reserved,
            newest.needs[cap.index], told.resets_at_ms, told.cap.window.zone, told.cap.unit.value,
            held, cap.keeps(_priority(newest)),
        )  # fmt: skip


def _priority(inner: Inner) -> int:
    return 0 if inner.lane is None else inner.lane.priority


def _budgets(inner: Inner) -> tuple[int, ...]:
    return () if inner.lane is None else inner.lane.budgets


def find_stuck(
    calls: Iterable[Holding],
    balances: Balances,
    is_patient: Callable[[Inner], bool],
    now_ms: int,
) -> Stuck:
    """Find the inner requests that can never go.

    Args:
        calls: All calls under way of this process.
        balances: Tells those of some budgets.
        is_patient: Whether an inner request still waits for what is doubtful.
        now_ms: The time.
    """
    found = Stuck(calls, now_ms)
    found.find(balances, is_patient)
    return found
