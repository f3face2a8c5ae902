"""Who is passed in a simulated world, and for how long: every plan is judged by its outcome.

The memory store only: of several processes none sees who waits in the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from scheduler.admission.plan import MAX_BYPASS_MS, MAX_BYPASSED, LaneKey, Plan, Planner
from scheduler.ledger.account import Account
from scheduler.stores.lineup import Lineup
from scheduler.stores.memory.rows import Row
from tests.traffic import rooms

if TYPE_CHECKING:
    from tests.simulation.world import World


class Line:
    """Looks at what a plan did to those who wait for money that comes back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since_ms: dict[tuple[int, int], int] = {}  # request, account → first in line since
        self._passed: Counter[tuple[int, int]] = Counter()

    def forget(self) -> None:
        """Nobody is in line any more."""
        self._since_ms.clear()
        self._passed.clear()

    def planner(self, lineup: Lineup, *args: Any) -> _Judged:
        """In place of `admission.plan.Planner`."""
        return _Judged(self, lineup, *args)

    def decide(self, lineup: Lineup, *args: Any) -> Plan:
        """What a planner decides."""
        accounts = {each.id: each for each in self._accounts()}
        before = {each.id: _Balance(each) for each in accounts.values()}
        decided = Planner(lineup, *args).decide()
        try:
            looked = zip(lineup.looked, decided.verdicts, strict=True)
            shut = {lane.key for lane, verdict in looked if verdict.shortfall is not None}
            lanes = self._world.inner._lanes
            open_ = {lane.key for lane in lanes if lane.shortfall is None} - shut
            self._judge(decided, before, open_, args[1])
        except AssertionError as exc:
            self._world.failure = self._world.failure or exc
            raise
        return decided

    def _accounts(self) -> Iterator[Account]:
        store = self._world.inner
        for budget in list(store._budgets):
            yield from store._accounts_of((budget.id,))

    def _judge(
        self, decided: Plan, before: dict[int, _Balance], open_: set[LaneKey], now_ms: int
    ) -> None:
        store = self._world.inner
        # Some stand in line although those behind them in their lane have it open: they want a place.
        in_line = {each.request_id for account in self._accounts() for each in account.line
                   if each.away_until_ms <= now_ms}  # fmt: skip
        waits = [row for row in self._waiting() if row.lane.key not in open_ or row.id in in_line]
        waiting = sorted(waits, key=_order)
        for candidate in decided.admitted:
            row = store._rows[candidate.id]
            for account in store._accounts_of(row.lane.key.budgets):
                balance, need = before[account.id], row.needs[account.index]
                if need > 0:
                    first = self._first(waiting, account.id, before)
                    # Whoever waits may wait for the very call within which one was made.
                    is_passed = first is not None and not row.lane.key.is_lent
                    if is_passed and self._is_before(first, row):
                        self._count(first, row, balance, before, now_ms)
                    balance.take(need)
            if row in waiting:
                waiting.remove(row)
        firsts = {(first.id, each) for each in before
                  if (first := self._first(waiting, each, before)) is not None}  # fmt: skip
        by_id = {row.id: row for row in waiting}
        self._since_ms = {
            (request_id, each): self._since_ms.get((request_id, each), now_ms)
            for request_id, each in firsts | self._since_ms.keys()
            if request_id in by_id and self._is_in_line(by_id[request_id], before, each, now_ms)
        }

    def _is_before(self, first: Row, row: Row) -> bool:
        """Whether who goes is no more urgent; of two tenants only a less urgent priority is, for sure."""
        if first.lane.key.tenant != row.lane.key.tenant:
            return first.lane.key.priority < row.lane.key.priority
        return _order(first) < _order(row)

    def _starts_ms(
        self, row: Row, balances: dict[int, _Balance], now_ms: int
    ) -> dict[int, float | None]:
        accounts = self._world.inner._accounts_of(row.lane.key.budgets)
        return {each.id: balances[each.id].starts_ms(row.needs[each.index], now_ms)
                for each in accounts}  # fmt: skip

    def _is_in_line(
        self, row: Row, balances: dict[int, _Balance], account_id: int, now_ms: int
    ) -> bool:
        """Unless it waits so long elsewhere that it is not in line here meanwhile."""
        starts_ms = self._starts_ms(row, balances, now_ms)
        known = [each for each in starts_ms.values() if each is not None]
        if len(known) < len(starts_ms):
            return False
        last_ms = max(known)
        return starts_ms[account_id] == last_ms or balances[account_id].leaves_ms > last_ms

    def _waiting(self) -> Iterator[Row]:
        """Who waits, and for nothing else than money that may come back: neither place nor gate."""
        store = self._world.inner
        if store.gates.is_closed("world"):
            return
        for row in store._rows.values():
            accounts = store._accounts_of(row.lane.key.budgets)
            if (
                row.state.value == "queued"
                and not row.is_delayed
                and row.id not in store._orphans
                and row.lane.key.may_wait
                and not any(each.paused for each in accounts)
                and all(row.needs[each.index] <= each.limit for each in accounts)
            ):
                yield row

    def _first(
        self, waiting: Sequence[Row], account_id: int, balances: dict[int, _Balance]
    ) -> Row | None:
        account = balances[account_id]
        for row in waiting:
            draws = account.budget_id in row.lane.key.budgets
            if draws and row.needs[account.index] > account.available:
                return row
        return None

    def _count(
        self, first: Row, row: Row, balance: _Balance, balances: dict[int, _Balance], now_ms: int
    ) -> None:
        """Invariant 9, where passing could delay the first."""
        starts_ms = self._starts_ms(first, balances, now_ms).values()
        if None in starts_ms:
            return  # only a raise helps
        start_ms = max(each for each in starts_ms if each is not None)
        taken = 0 if balance.leaves_ms <= start_ms else row.needs[balance.index]
        if start_ms > now_ms and (
            balance.room(start_ms, now_ms) - taken >= first.needs[balance.index]
        ):
            return
        key = first.id, balance.id
        self._passed[key] += 1
        assert self._passed[key] <= MAX_BYPASSED, f"{first.id} was passed {self._passed[key]} times"
        waited_ms = now_ms - self._since_ms.get(key, now_ms)
        assert waited_ms < MAX_BYPASS_MS, f"{first.id} was passed by {row.id} after {waited_ms} ms"


def _order(row: Row) -> tuple[int, int, int]:
    return row.lane.key.priority, *row.lane.key.head(row)


class _Balance:
    """What an account had when the plan began, and has left as it goes on."""

    def __init__(self, account: Account) -> None:
        self.id, self.budget_id, self.index = account.id, account.budget_id, account.index
        self.window, self.slot_ms = account.cap.window, account.slot_ms
        self.limit, self.available, self.at_best = (
            account.limit, account.available, account.at_best,
        )  # fmt: skip
        self.counted = {start: each.posted + each.reserved for start, each in account.slots.items()}

    def take(self, need: int) -> None:
        self.available -= need
        self.counted[self.slot_ms] = self.counted.get(self.slot_ms, 0) + need

    def starts_ms(self, need: int, now_ms: int) -> float | None:
        if need <= self.at_best:
            return now_ms
        found = rooms(self.window, self.counted, now_ms, self.available)
        return next((at_ms for at_ms, room in found if room >= need), None)

    def room(self, at_ms: float, now_ms: int) -> int:
        found = rooms(self.window, self.counted, now_ms, self.available)
        return max((room for each_ms, room in found if each_ms <= at_ms), default=self.available)

    @property
    def leaves_ms(self) -> float:
        at_ms = self.window.stops_counting_ms(self.slot_ms)
        return float("inf") if at_ms is None else at_ms


class _Judged:
    """A planner whose plans are judged."""

    def __init__(self, line: Line, *args: Any) -> None:
        self._line, self._args = line, args

    def decide(self) -> Plan:
        return self._line.decide(*self._args)
