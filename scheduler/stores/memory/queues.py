"""Who waits in which lane of the memory store, in the order in which admission looks at them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from scheduler.admission.fairness import Shares, tenant_key
from scheduler.admission.plan import LaneView
from scheduler.ledger.account import Account
from scheduler.limits import Gates
from scheduler.request import RequestState
from scheduler.stores.lanes import Lane, Lanes
from scheduler.stores.memory.rows import Entry, Row, Shelf

Accounts = Callable[[tuple[int, ...]], list[Account]]


class Queues:
    """A heap for each lane; where a provider is short of credit, a shelf beside it.

    Args:
        rows: All requests, by id.
        lanes: The book of the lanes.
        shares: What is known of tenants.

    Attributes:
        heaps: By lane.
    """

    def __init__(self, rows: Mapping[int, Row], lanes: Lanes, shares: Shares) -> None:
        self._rows, self._lanes, self._shares = rows, lanes, shares
        self.heaps: dict[int, list[Entry]] = {}
        self._shelves: dict[int, Shelf] = {}

    def __len__(self) -> int:
        return len(self.heaps)

    def forget(self, lane: Lane) -> None:
        """It has been empty for long."""
        self.heaps.pop(lane.id, None)
        self._shelves.pop(lane.id, None)

    def first(self, lane_id: int) -> Row | None:
        """Who is first in a lane, or near it: those that left are passed over."""
        for _, request_id, ticket in self.heaps.get(lane_id, ())[:100]:
            row = self._rows.get(request_id)
            if row is not None and row.ticket == ticket:
                return row
        return None

    def some(self, lane_id: int, few: int) -> Iterator[Row]:
        """About so many of a lane, from all over it."""
        queue = self.heaps.get(lane_id, ())
        for _, request_id, ticket in queue[:: max(1, len(queue) // few)]:
            row = self._rows.get(request_id)
            if row is not None and row.ticket == ticket and row.state is RequestState.QUEUED:
                yield row

    def put_back(self, lane: Lane, seen: Sequence[Row]) -> bool:
        """Those that a plan saw and left; whether there is more of a shelf to look at."""
        queue = self.heaps[lane.id]
        for row in seen:
            if row.state is RequestState.QUEUED:
                heapq.heappush(queue, (*lane.key.head(row), row.ticket))
        return lane.id in self._shelves and self._shelves[lane.id].is_cut

    def show(
        self, passed: list[list[Row]], accounts_of: Accounts, gates: Gates, lanes: Sequence[Lane]
    ) -> list[LaneView]:
        """Lanes as a plan sees them; notes in `passed` whom it takes out of their queues."""
        views = []
        for lane in lanes:
            seen: list[Row] = []
            passed.append(seen)
            key, tenant = lane.key, None
            before = gates.of(key.provider, key.model)
            closed = before[0].closed if before else None
            larger = size_by_id = None
            if closed is None or not closed.is_of_credit or not key.may_wait:
                if lane.id in self._shelves:
                    self._shelves.pop(lane.id).clear()
                waiting = self._candidates(lane, seen)
            else:
                if lane.id not in self._shelves:
                    self._shelves[lane.id] = Shelf(self.heaps[lane.id], self._rows)
                shelf, reach = self._shelves[lane.id], closed.reach(key.model)
                waiting = shelf.small(self._candidates(lane, []), seen, reach)
                larger = partial(shelf.large, self._candidates(lane, []), seen, reach)
                size_by_id = partial(shelf.size_by_id, lane)
            if self._shares.fairness is not None:
                self._lanes.rise(tenant_key(key))
                tenant = self._shares.of(tenant_key(key))
            accounts = accounts_of(key.budgets)
            views.append(LaneView(key, accounts, waiting, before, larger, size_by_id, tenant))
        return views

    def _candidates(self, lane: Lane, seen: list[Row]) -> Iterator[Row]:
        queue = self.heaps[lane.id]
        while queue:
            _, request_id, ticket = heapq.heappop(queue)
            row = self._rows.get(request_id)
            if row is not None and row.ticket == ticket and row.state is RequestState.QUEUED:
                seen.append(row)
                yield row
