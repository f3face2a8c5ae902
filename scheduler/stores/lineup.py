"""Open lanes in the order in which a turn looks at them: as many as it has places for.

A lane is known by the id of its head, or by a lower bound of that, so whoever looks at it may find
that another lane comes first. Lanes for one model at one provider stand together: where there is no
free place for them, or a gate is shut, none of them is looked at, however many there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from scheduler.admission.plan import NEVER, LaneView

if TYPE_CHECKING:
    from scheduler.limits import Gates
    from scheduler.stores.lanes import Lane

Views = Callable[[Sequence["Lane"]], Sequence[LaneView]]
_Group = tuple[int, str, str]  # priority, provider, model
_Top = tuple[int, _Group]  # with its head


class Book:
    """Open lanes in which somebody waits."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._always: dict[int, Lane] = {}
        self._heaps: dict[_Group, list[tuple[int, int, int]]] = {}  # of heads, lanes, tickets
        # By priority and provider, of heads and groups. A group counts with its last entry, whose
        # head may be of who has gone: that is found when it is met.
        self._tops: dict[int, dict[str, list[_Top]]] = {}
        self._top_of: dict[_Group, int] = {}  # the head in that entry

    def __len__(self) -> int:
        return len(self._lanes)

    def put(self, lane: Lane) -> None:
        """A lane is open, or there is an older head in it than was known."""
        key = lane.key
        self._lanes[lane.id] = lane
        lane.ticket += 1
        if key.is_lent or not key.may_wait:
            self._always[lane.id] = lane
            return
        group = (key.priority, key.provider, key.model)
        heap = self._heaps.get(group)
        if heap is None:
            heap = self._heaps[group] = []
        if not heap or lane.head_id < heap[0][0]:
            self._put_top(lane.head_id, group)
        heapq.heappush(heap, (lane.head_id, lane.id, lane.ticket))

    def drop(self, lane: Lane) -> None:
        """A lane is shut, or nobody waits in it."""
        if self._lanes.pop(lane.id, None) is not None:
            self._always.pop(lane.id, None)
            lane.ticket += 1

    def always(self) -> list[Lane]:
        """Lanes that are looked at whatever places there are: they may not wait, or are lent one."""
        return list(self._always.values())

    def of_provider(self, provider: str, most: int) -> list[Lane]:
        """Some of a provider's lanes, taken out of the book."""
        found: list[Lane] = []
        for group in [each for each in self._heaps if each[1] == provider]:
            while len(found) < most and (head_id := self._head_of(group)) is not None:
                found.append(self.take(head_id, group))
        return found

    def priorities(self) -> Sequence[int]:
        """Those of lanes that wait for a place."""
        return tuple(self._tops)

    def providers(self, priority: int) -> Sequence[str]:
        """Those of lanes of a priority that wait for a place."""
        return tuple(self._tops.get(priority, ()))

    def top(self, priority: int, provider: str, is_left: Callable[[_Group], bool]) -> _Top | None:
        """The lowest head of them, and its group, but for groups that are left alone.

        Those are out of the book until they are put back by `restore`.
        """
        rows = self._tops.get(priority, {})
        tops = rows.get(provider)
        while tops:
            head_id, group = tops[0]
            if self._top_of.get(group) != head_id:
                heapq.heappop(tops)
                continue
            actual_id = self._head_of(group)
            if actual_id == head_id and not is_left(group):
                return head_id, group
            heapq.heappop(tops)
            del self._top_of[group]
            if actual_id is not None and actual_id > head_id:
                self._put_top(actual_id, group)
        if tops is not None:
            del rows[provider]
            if not rows:
                del self._tops[priority]
        return None

    def take(self, head_id: int, group: _Group) -> Lane:
        """Take the lane with the lowest head out of the book."""
        lane = self._lanes[heapq.heappop(self._heaps[group])[1]]
        lane.ticket += 1
        self.restore(group)
        return lane

    def restore(self, group: _Group) -> None:
        """Let a group be found by its lowest head."""
        head_id = self._head_of(group)
        if head_id is not None:
            self._put_top(head_id, group)

    def _put_top(self, head_id: int, group: _Group) -> None:
        if head_id >= self._top_of.get(group, NEVER):
            return  # it is found by an earlier one
        self._top_of[group] = head_id
        priority, provider, _ = group
        tops = self._tops.setdefault(priority, {}).setdefault(provider, [])
        heapq.heappush(tops, (head_id, group))

    def _head_of(self, group: _Group) -> int | None:
        heap = self._heaps.get(group)
        while heap:
            head_id, lane_id, ticket = heap[0]
            lane = self._lanes.get(lane_id)
            if lane is not None and lane.ticket == ticket:
                return head_id
            heapq.heappop(heap)
        if heap is not None:
            del self._heaps[group]
        return None


MOST_AT_ONCE = 512  # lanes of a closed provider from which it is found out who may try


class Lineup:
    """One turn's way through the book; see `plan.Lineup`. Ends with `end`.

    Args:
        book: The open lanes.
        show: Gives the views of some lanes, read in one go.
        gates: Know which providers are closed.
        slots: Free places per provider.
        now_ms: The time.
        at_once: Most lanes that are shown in one go.

    Attributes:
        looked: The lanes that were shown, in that order.
    """

    def __init__(
        self, book: Book, show: Views, gates: Gates, slots: Mapping[str, int], now_ms: int,
        at_once: int = 1,
    ) -> None:  # fmt: skip
        self._book, self._show, self._at_once = book, show, at_once
        self._closed, self._slots, self._now_ms = gates.closed(), slots, now_ms
        self._is_left: dict[tuple[str, str | None], bool] = {}  # by provider and model; None: all
        self._aside: list[_Group] = []
        self._tops: dict[int, list[_Top]] = {}  # by priority: one of each provider, as last seen
        self.looked: list[Lane] = []

    def always(self) -> Sequence[LaneView]:
        """Those that are looked at whatever places there are, and whoever may try a closed provider."""
        lanes = self._book.always()
        for provider, closed in self._closed.items():
            if closed.may_probe(self._now_ms):
                lanes += self._book.of_provider(provider, MOST_AT_ONCE)
        return self._look_at(lanes)

    def top(self, below: int | None = None) -> tuple[int, int] | None:
        """Priority and lowest head of the lanes to come.

        Args:
            below: Of all that are less urgent than this priority, where the oldest is. None: of
                the most urgent.
        """
        found = None
        for priority in self._book.priorities():
            if below is not None and priority <= below:
                continue
            if found is not None and below is None and priority > found[0]:
                continue
            head = self._top_of(priority)
            if head is None:
                continue
            if found is None or (priority < found[0] if below is None else head[0] < found[1]):
                found = priority, head[0]
        return found

    def pull(self, priority: int) -> Sequence[LaneView]:
        """The next lanes of a priority."""
        lanes: list[Lane] = []
        while len(lanes) < self._at_once and (top := self._top_of(priority)) is not None:
            lanes.append(self._book.take(*top))
        return self._look_at(lanes)

    def leave(self, provider: str, model: str | None = None) -> None:
        """Show no more lanes of a provider, or of one of its models, in this turn."""
        self._is_left[provider, model] = True

    def end(self) -> None:
        """Let the book be whole again, but for the lanes that were shown."""
        for group in self._aside:
            self._book.restore(group)

    def _look_at(self, lanes: Sequence[Lane]) -> Sequence[LaneView]:
        self.looked += lanes
        return self._show(lanes) if lanes else ()

    def _top_of(self, priority: int) -> _Top | None:
        tops = self._tops.get(priority)
        if tops is None:
            found = (
                self._book.top(priority, provider, self._leaves)
                for provider in self._book.providers(priority)
                if not self._leaves_all(provider)
            )
            tops = self._tops[priority] = [top for top in found if top is not None]
            heapq.heapify(tops)
        while tops:
            provider = tops[0][1][1]
            now = None
            if not self._leaves_all(provider):
                now = self._book.top(priority, provider, self._leaves)
            if now is None:
                heapq.heappop(tops)
            elif now != tops[0]:
                heapq.heapreplace(tops, now)
            else:
                return now
        return None

    def _leaves_all(self, provider: str) -> bool:
        is_left = self._is_left.get((provider, None))
        if is_left is None:
            is_left = self._is_left[provider, None] = not self._has_place(provider)
        return is_left

    def _leaves(self, group: _Group) -> bool:
        """Whether a group is left alone; its provider is not."""
        _, provider, model = group
        if not self._is_left.get((provider, model), False):
            return False
        self._aside.append(group)
        return True

    def _has_place(self, provider: str) -> bool:
        if self._slots.get(provider, 0) > 0:
            return True
        closed = self._closed.get(provider)  # whoever meets it is parked: for that there is room
        return closed is not None and not closed.is_ajar
