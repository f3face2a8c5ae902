"""Open lanes in the order in which admission looks at them.

A lane stands by provider, priority and model, at the place of the oldest request that may wait in
it. That is a lower bound: whoever was cancelled is found gone when the lane is looked at. Nothing
here walks over all lanes: a turn takes from the front as many as it has places to give.

Lanes of a model at whose gate somebody waits are passed as one. What may not wait, or has a lent
place, is looked at in every turn, whatever places there are.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from scheduler.admission.plan import MOST_IN_VAIN, Planner

if TYPE_CHECKING:
    from scheduler.stores.lanes import Lane

MOST_AT_ONCE = 2_048  # lanes of one provider in a batch
MOST_CLOSED = 512  # lanes of closed providers in one turn: to be parked, or one of them to try

_Entry = tuple[int, int, "Lane"]  # the oldest that may wait in it, ticket: stale without its place


class _Row:
    """Lanes of one provider and priority."""

    __slots__ = ("_by_model", "_fronts", "_listed", "_passed", "priority", "provider")

    def __init__(self, provider: str, priority: int) -> None:
        self.provider, self.priority = provider, priority
        self._by_model: dict[str, list[_Entry]] = {}  # heaps of (oldest, ticket, lane)
        self._fronts: list[tuple[int, str]] = []  # heap of models by the oldest of each
        self._listed: dict[str, int] = {}  # where a model stands in it
        self._passed: list[str] = []  # models that are held back in this turn

    def put(self, lane: Lane, ticket: int) -> None:
        """Give a lane its place."""
        model, lane.place = lane.key.model, (lane.head_id, ticket)
        heap = self._by_model.get(model)
        if heap is None:
            heap = self._by_model[model] = []
        heapq.heappush(heap, (*lane.place, lane))
        self._list(model, heap)

    def _list(self, model: str, heap: list[_Entry]) -> None:
        oldest = heap[0][0]
        at = self._listed.get(model)
        if at is None or oldest < at:
            self._listed[model] = oldest
            heapq.heappush(self._fronts, (oldest, model))

    def oldest(self, planner: Planner | None) -> int | None:
        """The oldest that may wait in a lane of those that are not held back; None: there is none."""
        fronts, listed = self._fronts, self._listed
        while fronts:
            at, model = fronts[0]
            if listed.get(model) != at:
                heapq.heappop(fronts)
                continue
            if planner is not None and planner.places.is_held(self.provider, model):
                heapq.heappop(fronts)
                del listed[model]
                self._passed.append(model)
                continue
            heap = self._by_model[model]
            while heap and heap[0][2].place != heap[0][:2]:
                heapq.heappop(heap)  # it went elsewhere, or is given already
            if not heap:
                del self._by_model[model], listed[model]
                heapq.heappop(fronts)
            elif heap[0][0] != at:
                listed[model] = heap[0][0]
                heapq.heapreplace(fronts, (heap[0][0], model))
            else:
                return at
        return None

    def pop(self) -> Lane:
        """Take the first lane, right after `oldest` told of it."""
        _, model = self._fronts[0]
        lane = heapq.heappop(self._by_model[model])[2]
        lane.place = None
        return lane

    def restore(self) -> None:
        """Nobody is held back any more."""
        for model in self._passed:
            heap = self._by_model.get(model)
            if heap:
                self._list(model, heap)
        self._passed.clear()


class Ready:
    """The lanes that are open and in which somebody waits."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, _Row]] = {}  # by provider and priority
        self._always: dict[int, Lane] = {}  # to be looked at in every turn
        self._planner: Planner | None = None
        self._given: dict[int, Lane] = {}  # in this turn, and not put back yet
        self._tickets = itertools.count()
        self._round = self._looked_at = 0  # batches, and lanes, in this turn
        self._closed_given = 0

    def put(self, lane: Lane) -> None:
        """A lane is open, or somebody older has joined it."""
        self._given.pop(lane.id, None)
        key = lane.key
        if key.is_lent or not key.may_wait:
            self._always[lane.id] = lane
            return
        if lane.place is not None and lane.place[0] == lane.head_id:
            return
        rows = self._rows.get(key.provider)
        if rows is None:
            rows = self._rows[key.provider] = {}
        row = rows.get(key.priority)
        if row is None:
            row = rows[key.priority] = _Row(key.provider, key.priority)
        row.put(lane, next(self._tickets))

    def drop(self, lane: Lane) -> None:
        """A lane is shut, or empty."""
        lane.place = None
        self._always.pop(lane.id, None)
        self._given.pop(lane.id, None)

    def batch(self, planner: Planner, closed: Mapping[str, bool]) -> list[Lane]:
        """The next lanes worth a look; none: there are no more in this turn.

        Args:
            planner: Who looks at them; it is told what comes first of those not given.
            closed: Providers that are closed, and whether somebody may try.
        """
        batch: list[Lane] = []
        if planner is not self._planner:
            self._begin(planner)
            batch += self._always.values()
        batch += self._of_closed(planner, closed)
        rows = [
            row
            for provider, free in planner.places.free.items()
            if free > 0 and provider not in closed
            for row in self._rows.get(provider, {}).values()
        ]
        if rows and self._looked_at - planner.found < MOST_IN_VAIN:
            more = self._next(planner, rows)
            batch += more
            self._looked_at += len(more)
            self._round += 1
        elif rows:
            planner.is_cut |= any(row.oldest(planner) is not None for row in rows)
        planner.beyond = self._beyond(planner, rows)
        return batch

    def _begin(self, planner: Planner) -> None:
        self._planner = planner
        self._round = self._looked_at = self._closed_given = 0
        for lane in list(self._given.values()):
            self.put(lane)  # it was given to a turn that came to nothing
        for provider, rows in list(self._rows.items()):
            for priority, row in list(rows.items()):
                row.restore()
                if row.oldest(None) is None:
                    del rows[priority]
            if not rows:
                del self._rows[provider]

    def _next(self, planner: Planner, rows: list[_Row]) -> list[Lane]:
        """Of each provider as many as it has places, and the oldest of the less urgent ones."""
        places = planner.places.free
        least = 4 << min(self._round, 5) if self._round else 1
        wanted = {row.provider: min(MOST_AT_ONCE, max(least, places[row.provider])) for row in rows}
        aged = planner.aged(sum(places[provider] for provider in wanted))
        if self._round:
            aged = max(1, aged)
        batch = list(self._in_order(planner, rows, wanted))
        if aged and len({row.priority for row in rows}) > 1:
            top = min(row.priority for row in rows)
            for row in rows:
                for _ in range(aged if row.priority > top else 0):
                    if row.oldest(planner) is None:
                        break
                    batch.append(self._give(row))
        return batch

    def _in_order(
        self, planner: Planner, rows: list[_Row], wanted: dict[str, int]
    ) -> Iterator[Lane]:
        heads = [
            (row.priority, oldest, number)
            for number, row in enumerate(rows)
            if (oldest := row.oldest(planner)) is not None
        ]
        heapq.heapify(heads)
        while heads:
            priority, _, number = heads[0]
            row = rows[number]
            if not wanted[row.provider]:
                heapq.heappop(heads)
                continue
            wanted[row.provider] -= 1
            yield self._give(row)
            oldest = row.oldest(planner)
            if oldest is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (priority, oldest, number))

    def _of_closed(self, planner: Planner, closed: Mapping[str, bool]) -> Iterator[Lane]:
        """Lanes of closed providers: all, so that the right one tries; they are parked then."""
        for provider, may_try in closed.items():
            if may_try and planner.places.free.get(provider, 0) <= 0:
                continue
            rows = self._rows.get(provider, {})
            for priority in sorted(rows):
                while rows[priority].oldest(planner) is not None:
                    if self._closed_given == MOST_CLOSED:
                        planner.is_cut = True
                        return
                    self._closed_given += 1
                    yield self._give(rows[priority])

    def _give(self, row: _Row) -> Lane:
        lane = row.pop()
        self._given[lane.id] = lane
        return lane

    def _beyond(self, planner: Planner, rows: list[_Row]) -> dict[int, int]:
        beyond: dict[int, int] = {}
        for row in rows:
            oldest = row.oldest(planner)
            if oldest is not None:
                beyond[row.priority] = min(oldest, beyond.get(row.priority, oldest))
        return beyond
