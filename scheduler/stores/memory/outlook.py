"""What people ask of a store in memory; nothing here writes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import islice

from scheduler.ledger.account import Account
from scheduler.request import RequestState
from scheduler.stats import Audit, Discrepancy, Queued, SpendRow, Took
from scheduler.stores.base import Settlement, Store
from scheduler.stores.lanes import Lanes
from scheduler.stores.memory.budgets import Budgets
from scheduler.stores.memory.journal import Journal
from scheduler.stores.memory.queues import Queues
from scheduler.stores.memory.rows import Hold, Row
from scheduler.stores.views import compare

MOST_TOOK = 1_000  # calls of which it is remembered how they went


class Outlook(Store):
    """Sums, and what is known of those who wait."""

    _budgets: Budgets
    _holds: Mapping[int, Hold]
    _journal: Journal
    _lanes: Lanes
    _queues: Queues
    _rows: Mapping[int, Row]

    def __init__(self) -> None:
        super().__init__()
        self._went: deque[Took] = deque(maxlen=MOST_TOOK)

    def _look(self, now_ms: int) -> int:
        """See to it that all is as of now; returns that."""
        raise NotImplementedError

    def _remember(self, hold: Hold, row: Row | None, end: Settlement, now_ms: int) -> None:
        """Note how a call went that was answered."""
        model, expected, guess = hold.kind[0], -1, 0
        if row is not None:
            expected, guess = row.expected_nusd, row.tokens.input
        self._went.append(
            Took(model, end.nusd, end.tokens, now_ms - hold.made_at_ms, expected, guess)
        )

    async def took(self, limit: int = 1000) -> list[Took]:
        """See `History.took`."""
        return list(islice(reversed(self._went), limit))

    async def queued(self, most: int = 2000) -> list[Queued]:
        """See `History.queued`."""
        running = Counter(
            row.lane.key for row in map(self._rows.get, {h.request_id for h in self._holds.values()})
            if row is not None and row.state is RequestState.RUNNING
        )  # fmt: skip
        found = []
        waiting = [lane for lane in self._lanes if lane.waiting]
        for lane in waiting:
            key, few = lane.key, max(1, most // len(waiting))
            rows = list(islice(self._queues.some(lane.id, few), few))
            asks = tuple((*row.needs[:2], row.expected_nusd, *row.tokens) for row in rows)
            count = lane.waiting + running.pop(key, 0)
            found.append(Queued(key.provider, key.model, key.priority, key.budgets, count, asks))
        found += [
            Queued(key.provider, key.model, key.priority, key.budgets, count, ())
            for key, count in running.items()
        ]
        return found

    async def spend(self, by: str, since_ms: int = 0) -> list[SpendRow]:
        """See `Store.spend`."""
        return self._journal.spend(by, since_ms, self._holds.values(), self._budgets.names())

    async def audit(self, now_ms: int) -> Audit:
        """See `Store.audit`."""
        now_ms = self._look(now_ms)
        found: list[Discrepancy] = []
        balances = 0
        for account in self._all_accounts():
            account.look(now_ms)
            fresh = Account(account.id, account.budget_id, account.budget, account.cap)
            self._journal.replay(fresh, self._holds.values())
            balances += len(account.slots)
            found += compare(account, fresh, account.oldest_ms)
        return Audit(
            balances, len(self._holds) + self._journal.count, tuple(found), self._journal.overruns
        )

    def _all_accounts(self) -> Iterable[Account]:
        return self._budgets.all_accounts()
