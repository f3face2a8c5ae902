"""Open lanes in the order in which a turn looks at them: as many as it has places for.

A lane is known by the place of its head, or by a lower bound of that, so whoever looks at it may find
that another lane comes first. Lanes for one model at one provider, of one level, stand together: where
there is no free place for them, or a gate is shut, none of them is looked at, however many there are.
Within such a group those of one tenant stand together, whose start moves all of them at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from scheduler.admission.fairness import Shares, TenantKey, tenant_key
from scheduler.admission.lane import Head, Level
from scheduler.admission.plan import LaneView, Rank

if TYPE_CHECKING:
    from scheduler.limits import Gates
    from scheduler.stores.lanes import Lane

Views = Callable[[Sequence["Lane"]], Sequence[LaneView]]
SPARE = 64  # entries of a heap that are no longer true, before it is made anew


Group = tuple[str, Level, str]  # a provider, how urgent, a model
_Top = tuple[Rank, Group]  # with the rank of its first
_Waiting = list[tuple[Head, int, int]]  # heap of heads, lanes, tickets


class _Crowd:
    """The lanes of one group, by tenant.

    Attributes:
        lanes: Those of each tenant.
        order: A heap of ranks and tenants. A tenant counts with its last entry, whose rank may be
            too low: that is found when it is met.
        rank_of: The rank in that entry.
    """

    __slots__ = ("lanes", "order", "rank_of")

    def __init__(self) -> None:
        self.lanes: dict[str, _Waiting] = {}
        self.order: list[tuple[Rank, str]] = []
        self.rank_of: dict[str, Rank] = {}

    def note(self, tenant: str, rank: Rank) -> None:
        """A tenant may be found by this rank, unless it is by an earlier one."""
        known = self.rank_of.get(tenant)
        if known is not None and known <= rank:
            return
        self.rank_of[tenant] = rank
        heapq.heappush(self.order, (rank, tenant))
        if len(self.order) > 4 * len(self.rank_of) + SPARE:
            self.order = [(each, name) for name, each in self.rank_of.items()]
            heapq.heapify(self.order)


class Book:
    """Open lanes in which somebody waits.

    Args:
        shares: Knows where tenants start.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._lanes: dict[int, Lane] = {}
        self._always: dict[int, Lane] = {}
        # Heaps of ranks, lanes and tickets, of groups in which nobody shares with anybody.
        self._plain: dict[Group, list[tuple[Rank, int, int]]] = {}
        self._crowds: dict[Group, _Crowd] = {}  # of all others
        self._groups_of: dict[TenantKey, set[Group]] = {}
        # By provider and level, of ranks and groups. A group counts with its last entry, whose
        # rank may be of who has gone: that is found when it is met.
        self._tops: dict[str, dict[Level, list[_Top]]] = {}
        self._top_of: dict[Group, Rank] = {}  # the rank in that entry

    def __len__(self) -> int:
        return len(self._lanes)

    def put(self, lane: Lane) -> None:
        """A lane is open, or there is an earlier head in it than was known."""
        key = lane.key
        self._lanes[lane.id] = lane
        lane.ticket += 1
        if key.is_lent or not key.may_wait:
            self._always[lane.id] = lane
            return
        group = lane.group
        plain = self._plain.get(group)
        if plain is None:
            if self._shares.fairness is not None or group in self._crowds:
                self._put_fairly(lane, group)
                return
            plain = self._plain[group] = []
        due_ms, id_ = lane.head
        rank = (0, due_ms, id_)
        heapq.heappush(plain, (rank, lane.id, lane.ticket))
        self._put_top(rank, group)

    def _put_fairly(self, lane: Lane, group: Group) -> None:
        key = lane.key
        crowd = self._crowds.get(group)
        if crowd is None:
            crowd = self._crowds[group] = _Crowd()
        waiting = crowd.lanes.get(key.tenant)
        if waiting is None:
            waiting = crowd.lanes[key.tenant] = []
            self._groups_of.setdefault(tenant_key(key), set()).add(group)
        heapq.heappush(waiting, (lane.head, lane.id, lane.ticket))
        rank = (self._shares.start(key.provider, key.priority, key.tenant), *lane.head)
        crowd.note(key.tenant, rank)
        self._put_top(rank, group)

    def drop(self, lane: Lane) -> None:
        """A lane is shut, or nobody waits in it."""
        if self._lanes.pop(lane.id, None) is not None:
            self._always.pop(lane.id, None)
            lane.ticket += 1

    @property
    def is_fair(self) -> bool:
        """Whether there are tenants."""
        return self._shares.fairness is not None

    def has(self, tenant: TenantKey) -> bool:
        """Whether there may be lanes of a tenant here."""
        return tenant in self._groups_of

    def tenants(self) -> Sequence[TenantKey]:
        """Those of whom there may be lanes here."""
        return tuple(self._groups_of)

    def moved_up(self, tenant: TenantKey) -> None:
        """A tenant starts earlier than was known."""
        start = self._shares.start(*tenant)
        for group in self._groups_of.get(tenant, ()):
            crowd = self._crowds[group]
            rank = (start, *crowd.rank_of[tenant.tenant][1:])
            crowd.note(tenant.tenant, rank)
            self._put_top(rank, group)

    def always(self) -> list[Lane]:
        """Lanes that are looked at whatever places there are: they may not wait, or are lent one."""
        return list(self._always.values())

    def of_provider(self, provider: str, most: int) -> list[Lane]:
        """Some of a provider's lanes, taken out of the book."""
        found: list[Lane] = []
        for group in [each for each in (*self._plain, *self._crowds) if each[0] == provider]:
            while len(found) < most and self._rank_of(group) is not None:
                found.append(self.take(group))
        return found

    def providers(self) -> Sequence[str]:
        """Where lanes wait for a place."""
        return tuple(self._tops)

    def levels(self, provider: str) -> Sequence[Level]:
        """How urgent the lanes are that wait for a place there."""
        return tuple(self._tops.get(provider, ()))

    def top(self, provider: str, level: Level, is_left: Callable[[Group], bool]) -> _Top | None:
        """The first of them, and its group, but for groups that are left alone.

        Those are out of the book until they are put back by `restore`.
        """
        rows = self._tops.get(provider, {})
        tops = rows.get(level)
        while tops:
            rank, group = tops[0]
            if self._top_of.get(group) != rank:
                heapq.heappop(tops)
                continue
            actual = self._rank_of(group)
            if actual == rank and not is_left(group):
                return rank, group
            heapq.heappop(tops)
            del self._top_of[group]
            if actual is not None and actual != rank:
                self._put_top(actual, group)
        if tops is not None:
            del rows[level]
            if not rows:
                del self._tops[provider]
        return None

    def lead(self, provider: str, priority: int, start: int) -> int:
        """How far a start is ahead of the clock there."""
        clock = self._shares.clocks.get((provider, priority))
        return start if clock is None else start - clock.now

    def take(self, group: Group) -> Lane:
        """Take the first lane of a group, which has one, out of the book."""
        plain = self._plain.get(group)
        if plain is not None:
            lane_id = heapq.heappop(plain)[1]
        else:
            crowd = self._crowds[group]
            lane_id = heapq.heappop(crowd.lanes[crowd.order[0][1]])[1]
        lane = self._lanes[lane_id]
        lane.ticket += 1
        self.restore(group)
        return lane

    def restore(self, group: Group) -> None:
        """Let a group be found by its first."""
        rank = self._rank_of(group)
        if rank is not None:
            self._put_top(rank, group)

    def _put_top(self, rank: Rank, group: Group) -> None:
        known = self._top_of.get(group)
        if known is not None and known <= rank:
            return  # it is found by an earlier one
        self._top_of[group] = rank
        rows = self._tops.get(group[0])
        if rows is None:
            rows = self._tops[group[0]] = {}
        tops = rows.get(group[1])
        if tops is None:
            tops = rows[group[1]] = []
        heapq.heappush(tops, (rank, group))
        if len(tops) > 4 * len(self._top_of) + SPARE:
            tops[:] = [each for each in set(tops) if self._top_of.get(each[1]) == each[0]]
            heapq.heapify(tops)

    def _rank_of(self, group: Group) -> Rank | None:
        """The rank of a group's first, which is then on top of its order; None: nobody is left."""
        plain = self._plain.get(group)
        if plain is not None:
            while plain:
                found, lane_id, ticket = plain[0]
                lane = self._lanes.get(lane_id)
                if lane is not None and lane.ticket == ticket:
                    return found
                heapq.heappop(plain)
            del self._plain[group]
            return None
        crowd = self._crowds.get(group)
        while crowd is not None and crowd.order:
            rank, tenant = crowd.order[0]
            if crowd.rank_of.get(tenant) != rank:
                heapq.heappop(crowd.order)
                continue
            head = self._head_of(crowd.lanes[tenant])
            if head is None:
                heapq.heappop(crowd.order)
                self._forget(group, crowd, tenant)
                continue
            start = self._shares.start(group[0], group[1][0], tenant)
            if start == rank[0] and head == rank[1:]:
                return rank
            actual = (start, *head)
            crowd.rank_of[tenant] = actual
            heapq.heapreplace(crowd.order, (actual, tenant))
        if crowd is not None:
            del self._crowds[group]
        return None

    def _forget(self, group: Group, crowd: _Crowd, tenant: str) -> None:
        """Nobody of a tenant waits in a group any more."""
        del crowd.lanes[tenant], crowd.rank_of[tenant]
        key = TenantKey(group[0], group[1][0], tenant)
        groups = self._groups_of.get(key)
        if groups is not None:
            groups.discard(group)
            if not groups:
                del self._groups_of[key]

    def _head_of(self, waiting: _Waiting) -> Head | None:
        while waiting:
            head, lane_id, ticket = waiting[0]
            lane = self._lanes.get(lane_id)
            if lane is not None and lane.ticket == ticket:
                return head
            heapq.heappop(waiting)
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
        self._is_fair = book.is_fair  # then starts move
        self._is_left: dict[tuple[str, str | None], bool] = {}  # by provider and model; None: all
        self._aside: list[Group] = []
        self._top: dict[str, tuple[int, Rank, Group] | None] = {}  # by provider, as last seen
        self.looked: list[Lane] = []

    def always(self) -> Sequence[LaneView]:
        """Those that are looked at whatever places there are, and whoever may try a closed provider."""
        lanes = self._book.always()
        for provider, closed in self._closed.items():
            if closed.may_probe(self._now_ms):
                lanes += self._book.of_provider(provider, MOST_AT_ONCE)
        return self._look_at(lanes)

    def providers(self) -> Sequence[str]:
        """Where there are lanes to come."""
        return [each for each in self._book.providers() if not self._leaves_all(each)]

    def top(self, provider: str) -> tuple[int, Rank] | None:
        """Priority and rank of the first of a provider's lanes to come."""
        if provider not in self._top or self._is_fair:
            self._top[provider] = None if self._leaves_all(provider) else self._first_of(provider)
        top = self._top[provider]
        return top and top[:2]

    def _first_of(self, provider: str) -> tuple[int, Rank, Group] | None:
        found: tuple[int, Rank, Group] | None = None
        levels = self._book.levels(provider)
        if len(levels) == 1:
            (level,) = levels
            top = self._book.top(provider, level, self._leaves)
            return top and (level[0], *top)
        for level in sorted(levels):
            if found is not None and level[0] > found[0]:
                break
            top = self._book.top(provider, level, self._leaves)
            if top is not None and (found is None or top[0] < found[1]):
                found = level[0], *top
        return found

    def lead(self, provider: str, priority: int, start: int) -> int:
        """How far a start is ahead of the clock there."""
        return self._book.lead(provider, priority, start)

    def below(self, level: Level) -> Iterator[tuple[str, Level, Rank]]:
        """Of each provider, the first of each level that is less urgent."""
        for provider in self.providers():
            for each in self._book.levels(provider):
                top = self._book.top(provider, each, self._leaves) if each > level else None
                if top is not None:
                    yield provider, each, top[0]

    def pull(self, provider: str, level: Level) -> Sequence[LaneView]:
        """The next lanes of a level at a provider."""
        lanes: list[Lane] = []
        known = self._top.pop(provider, None)
        if known is not None and known[2][1] == level and not self._is_fair:
            lanes.append(self._book.take(known[2]))
        while len(lanes) < self._at_once:
            top = self._book.top(provider, level, self._leaves)
            if top is None:
                break
            lanes.append(self._book.take(top[1]))
        return self._look_at(lanes)

    def leave(self, provider: str, model: str | None = None) -> None:
        """Show no more lanes of a provider, or of one of its models, in this turn."""
        self._is_left[provider, model] = True
        self._top.pop(provider, None)

    def end(self) -> None:
        """Let the book be whole again, but for the lanes that were shown."""
        for group in self._aside:
            self._book.restore(group)

    def _look_at(self, lanes: Sequence[Lane]) -> Sequence[LaneView]:
        self.looked += lanes
        return self._show(lanes) if lanes else ()

    def _leaves_all(self, provider: str) -> bool:
        is_left = self._is_left.get((provider, None))
        if is_left is None:
            is_left = self._is_left[provider, None] = not self._has_place(provider)
        return is_left

    def _leaves(self, group: Group) -> bool:
        """Whether a group is left alone; its provider is not."""
        if not self._is_left.get((group[0], group[2]), False):
            return False
        self._aside.append(group)
        return True

    def _has_place(self, provider: str) -> bool:
        if self._slots.get(provider, 0) > 0:
            return True
        closed = self._closed.get(provider)  # whoever meets it is parked: for that there is room
        return closed is not None and not closed.is_ajar
