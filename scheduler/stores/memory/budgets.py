"""Budgets of the memory store, with their accounts and pictures of them.

Whatever is done costs what it is about: one budget of ten thousand is defined as quickly as one of
ten, and a picture is made anew only of those whose balances, or windows, have changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from scheduler.budget import Budget
from scheduler.errors import BudgetUnknown
from scheduler.foresight import PRESETS, Flight, Histories, Pool
from scheduler.ledger.account import Account, ReservationState, Tally
from scheduler.ledger.burning import Burn
from scheduler.stats import BudgetStatus
from scheduler.stores.lanes import Lanes
from scheduler.stores.memory.journal import Journal
from scheduler.stores.memory.rows import Hold
from scheduler.stores.views import budget_status, changes_at_ms, check_childless, risk_of


class Entry:
    """A budget and its accounts; one that was removed stays for what it spent."""

    __slots__ = ("accounts", "budget", "id", "is_removed", "paused")

    def __init__(self, id: int, budget: Budget) -> None:
        self.id, self.budget = id, budget
        self.paused = self.is_removed = False
        self.accounts: list[Account] = []


class Budgets:
    """All budgets there ever were.

    Args:
        make_id: Gives ids, to budgets and accounts.
        journal: Counts in a new account what was reserved before,
        holds: and these, which are still open.
        lanes: Told whose budget has changed.
    """

    def __init__(
        self, make_id: Callable[[], int], journal: Journal, holds: Mapping[int, Hold], lanes: Lanes
    ) -> None:
        self._make_id, self._journal, self._holds, self._lanes = make_id, journal, holds, lanes
        self._by_name: dict[str, Entry] = {}
        self._by_id: dict[int, Entry] = {}
        self._histories = Histories()
        self._of_lane: dict[tuple[int, ...], list[Account]] = {}
        self._children: dict[str, dict[str, None]] = {}  # by parent, of those not removed
        self._pictures: dict[int, BudgetStatus | None] = {}  # None: it was removed
        self._touched: set[int] = set()  # whose picture may be no longer right
        self._until: dict[int, int] = {}  # when a picture is no longer right by itself
        self._ends: list[tuple[int, int]] = []  # heap of these

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    def accounts_of(self, budgets: tuple[int, ...], now_ms: int) -> list[Account]:
        """The accounts of these budgets, looked at now, to be changed."""
        accounts = self._of_lane.get(budgets)
        if accounts is None:
            accounts = [account for each in budgets for account in self._accounts(each)]
            self._of_lane[budgets] = accounts
        self._touched.update(budgets)
        for account in accounts:
            if account.looked_ms != now_ms:
                _look(account, now_ms)
        return accounts

    def _accounts(self, budget_id: int) -> Sequence[Account]:
        entry = self._by_id.get(budget_id)
        return () if entry is None else entry.accounts

    def all_accounts(self) -> Iterator[Account]:
        """Every account, those of removed budgets as well."""
        for entry in self._by_id.values():
            yield from entry.accounts

    # Changes

    def define(self, budget: Budget, now_ms: int) -> None:
        """Create a budget, or change it; one that was removed is there again, as it was left."""
        entry = self._by_name.get(budget.name)
        is_new = entry is None
        if entry is not None and entry.budget == budget and not entry.is_removed:
            return  # as in a file, nobody has to look again
        if entry is None:
            entry = self._by_name[budget.name] = Entry(self._make_id(), budget)
            self._by_id[entry.id] = entry
        self._change(entry, budget, is_new, now_ms)

    def begin_with(self, name: str, position: int, slot_ms: int, amount: int) -> None:
        """Have a cap begin as if so much had been posted in a slot: for worlds that are played."""
        entry = self._get(name)
        account = entry.accounts[position]
        account.slots.setdefault(slot_ms, Tally()).posted += amount
        account.look(account.looked_ms)
        self._touched.add(entry.id)

    def learn(self, flight: Flight, ended_at_ms: int, costs: tuple[int, int]) -> None:
        """Know how an earlier call went."""
        self._histories.learn(flight, ended_at_ms, costs)

    def remove(self, name: str, now_ms: int) -> None:
        """Let a budget bind nobody any more; what was spent on it stays known.

        Raises:
            BudgetUnknown: There is none of that name.
            ConfigError: It is others' parent.
        """
        entry = self._get(name)
        check_childless(name, self._children.get(name, ()))
        entry.paused = False
        self._change(entry, entry.budget.with_limit(None), False, now_ms)
        entry.is_removed = True
        self._adopt(entry.budget, None)

    def pause(self, name: str, paused: bool, now_ms: int) -> None:
        """As `Store.pause`."""
        entry = self._get(name)
        entry.paused = paused
        for account in entry.accounts:
            account.paused = paused
        self._touched.add(entry.id)
        self._lanes.wake_on(entry.id, now_ms)

    def _get(self, name: str) -> Entry:
        entry = self._by_name.get(name)
        if entry is None or entry.is_removed:
            known = tuple(e.budget.name for e in self._by_id.values() if not e.is_removed)
            raise BudgetUnknown(name, known)
        return entry

    def _change(self, entry: Entry, budget: Budget, is_new: bool, now_ms: int) -> None:
        """Keep the account of every cap whose window stays; count anew for the others."""
        self._adopt(None if is_new or entry.is_removed else entry.budget, budget)
        entry.budget, entry.is_removed = budget, False
        kept = {(a.cap.unit, a.cap.window): a for a in entry.accounts}
        was_foreseen = any(account.pool is not None for account in entry.accounts)
        accounts = []
        for cap in budget.caps:
            account = kept.get((cap.unit, cap.window))
            if account is None:
                account = Account(self._make_id(), entry.id, budget.name, cap, entry.paused)
                if not is_new:  # in a new one nothing was reserved
                    self._journal.replay(account, self._holds.values())
            account.redefine(cap)
            if Burn.watches(cap):
                account.burn = account.burn or Burn()
            self._foresee(account, budget)
            account.paused = entry.paused
            _look(account, now_ms)
            accounts.append(account)
        if accounts != entry.accounts:
            for budgets in self._lanes.combinations(entry.id):
                self._of_lane.pop(budgets, None)
        entry.accounts = accounts
        if was_foreseen:  # calls that count on no other such budget are not followed any more
            self._histories.forget_flights()
            for account in self.all_accounts():
                if account.pool is not None:
                    account.pool.tell()
        self._touched.add(entry.id)
        self._lanes.wake_on(entry.id, now_ms)

    def _foresee(self, account: Account, budget: Budget) -> None:
        """Have calls of an account count at less than their ceilings, or at these again."""
        name, pool = risk_of(account.cap, budget), account.pool
        if name is None:
            account.pool = None
        elif pool is not None:
            pool.risk = PRESETS[name]
        else:
            account.pool = pool = Pool(PRESETS[name], account.index, self._histories)
            for hold in self._holds.values():
                if account.budget_id in hold.budgets and hold.state is ReservationState.PENDING:
                    pool.enter(hold.request_id, Flight(hold.kind, hold.made_at_ms, hold.needs[:2]))

    def _adopt(self, old: Budget | None, new: Budget | None) -> None:
        """Note whose child a budget is."""
        if old is not None and old.parent is not None:
            children = self._children[old.parent]
            del children[old.name]
            if not children:
                del self._children[old.parent]
        if new is not None and new.parent is not None:
            self._children.setdefault(new.parent, {})[new.name] = None

    # Pictures

    def defined(self, names: Iterable[str]) -> list[tuple[int, Budget]]:
        """Those of these names, with their ids."""
        found = [self._by_name[each] for each in names if each in self._by_name]
        return [(each.id, each.budget) for each in found if not each.is_removed]

    def names(self) -> dict[int, str]:
        """Names by id, of removed ones as well."""
        return {entry.id: entry.budget.name for entry in self._by_id.values()}

    def pictures(self, now_ms: int) -> list[BudgetStatus]:
        """All budgets with their balances now, in the order they were defined."""
        while self._ends and self._ends[0][0] <= now_ms:
            at_ms, budget_id = heapq.heappop(self._ends)
            if self._until.get(budget_id) == at_ms:
                del self._until[budget_id]
                self._touched.add(budget_id)
        for budget_id in sorted(self._touched):
            entry = self._by_id.get(budget_id)
            if entry is not None:
                self._pictures[budget_id] = None if entry.is_removed else self._draw(entry, now_ms)
        self._touched.clear()
        return [picture for picture in self._pictures.values() if picture is not None]

    def pictures_of(self, budgets: Iterable[int], now_ms: int) -> list[BudgetStatus]:
        """Some budgets with their balances now, but for those that were removed."""
        found = (self._by_id.get(each) for each in budgets)
        return [self._draw(each, now_ms) for each in found if each and not each.is_removed]

    def _draw(self, entry: Entry, now_ms: int) -> BudgetStatus:
        for account in entry.accounts:
            if account.looked_ms != now_ms:
                _look(account, now_ms)
        changes = [changes_at_ms(account) for account in entry.accounts]
        until_ms = min((each for each in changes if each is not None), default=None)
        if until_ms is not None and self._until.get(entry.id) != until_ms:
            self._until[entry.id] = until_ms
            heapq.heappush(self._ends, (until_ms, entry.id))
        return budget_status(entry.id, entry.budget, entry.paused, entry.accounts, now_ms)


def _look(account: Account, now_ms: int) -> None:
    account.take_changed()  # nothing to write: old slots may go
    account.look(now_ms)
