"""Requests of every size and priority against budgets of every window, in virtual time.

A `Traffic` drives one store, or several processes on one file, and looks only when something
ends, arrives, or the store said to look again. Beside them it keeps a ledger of its own, by
which it judges every admission: whom it passed that waited for the same money, whether that
could delay it, how often that happened and for how long.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

from scheduler.admission.plan import MAX_BYPASS_MS, MAX_BYPASSED, LaneKey
from scheduler.budget import UNLIMITED, Budget, Cap, Window, WindowKind
from scheduler.ledger.account import unit_index
from scheduler.request import Request, RequestState
from scheduler.stores.base import Claimed, NewRequest, Outcome, Settlement, Store, Turn, TurnResult
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.process import Process
from tests.simulation.stores import InlineSqlite

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC
POLL_MS = 200
PLENTY = 10**10  # percent
REQUEST = Request({"model": "m"})


@dataclass(frozen=True)
class Stream:
    """Requests of one kind that keep coming.

    Attributes:
        draws: Positions of the budgets it draws on.
        every_ms: How often one arrives; 0: whenever another one has started.
        at_once: So many arrive together.
        count: How many arrive in all.
        share: What a call costs, in percent of its ceiling.
        lost: Every so manieth outcome is unknown, and resolved `runs_ms` later; 0: none.
        patience_ms: How long one waits; None: for ever.
        process: Who submits it.
    """

    draws: tuple[int, ...] = (0,)
    priority: int = 10
    need: int = 1
    first_ms: int = 0
    every_ms: int = 1000
    at_once: int = 1
    count: int = 100
    runs_ms: int = 100
    share: int = 100
    lost: int = 0
    patience_ms: int | None = None
    may_wait: bool = True
    process: int = 0


@dataclass(slots=True)
class _Asked:
    """A request as the judge sees it."""

    order: tuple[int, int]
    process: int
    id: int
    stream: Stream
    needs: tuple[int, int, int]
    accounts: list[_Sums]
    since_ms: dict[int, int] = field(default_factory=dict)  # account → first in line since
    passed: Counter[int] = field(default_factory=Counter)
    left: dict[int, int] = field(default_factory=dict)

    def __lt__(self, other: _Asked) -> bool:
        return self.order < other.order

    def forget_line(self) -> None:
        """It waits for a raise: it is in no line, and joins anew after that."""
        self.since_ms.clear()
        self.passed.clear()
        self.left.clear()


class _Sums:
    """One cap, counted from what was claimed and settled."""

    def __init__(self, number: int, cap: Cap) -> None:
        self.number, self.index = number, unit_index(cap.unit)
        self.waiting: list[_Asked] = []  # in order
        self.held: dict[int, list[int]] = {}  # slot → [posted, pending, suspense]
        self.redefine(cap)

    def redefine(self, cap: Cap) -> None:
        self.cap, self.window = cap, cap.window
        self.limit = UNLIMITED if cap.limit is None else cap.limit

    def slot(self, at_ms: int) -> list[int]:
        return self.held.setdefault(self.window.slot_start_ms(at_ms), [0, 0, 0])

    def look(self, now_ms: int) -> None:
        self.now_ms = now_ms
        oldest_ms = self.window.oldest_counting_ms(now_ms)
        for start in [start for start in self.held if start < oldest_ms]:
            if not any(self.held[start][1:]):
                del self.held[start]
        counting = [sums for start, sums in self.held.items() if start >= oldest_ms]
        self.posted, self.pending, self.suspense = (
            sum(each) for each in zip(*counting, (0, 0, 0), strict=True)
        )

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.pending - self.suspense

    def starts_ms(self, need: int) -> float:
        """When there is so much: any moment if by calls under way, else when it has left."""
        if need <= self.limit - self.posted - self.suspense:
            return self.now_ms
        return next((at for at, room in self._rooms() if room >= need), math.inf)

    def room(self, at_ms: float) -> float:
        """What there is at an instant, by itself."""
        return max((room for at, room in self._rooms() if at <= at_ms), default=self.available)

    def _rooms(self) -> Iterable[tuple[float, int]]:
        counted = {start: sum(sums) for start, sums in self.held.items()}
        return rooms(self.window, counted, self.now_ms, self.available)

    def leaves_ms(self) -> float:
        """When what is reserved now counts no longer."""
        at_ms = self.window.stops_counting_ms(self.window.slot_start_ms(self.now_ms))
        return math.inf if at_ms is None else at_ms

    def first(self) -> _Asked | None:
        """The first in line: who lacks money here, and could have it one day.

        None also if only by what those before it will take.
        """
        ahead = 0
        for asked in self.waiting:
            need = asked.needs[self.index]
            if ahead + need > self.available and all(n <= e.limit for e, n in _pairs(asked)):
                return asked if need > self.available else None
            ahead += need
        return None


def _pairs(asked: _Asked) -> Iterable[tuple[_Sums, int]]:
    return ((each, asked.needs[each.index]) for each in asked.accounts)


def rooms(
    window: Window, counted: dict[int, int], now_ms: int, available: int
) -> Iterable[tuple[float, int]]:
    """At which instants something leaves a window by itself, and what there is from then on."""
    oldest_ms = window.oldest_counting_ms(now_ms)
    for start in sorted(counted):
        at_ms = window.stops_counting_ms(start)
        if start >= oldest_ms and at_ms is not None:
            available += counted[start]
            yield at_ms, available


class Traffic:
    """See the module.

    Args:
        budgets: What is drawn on; each `Stream.draws` names positions.
        streams: What comes.
        slots: Calls at once.
        path: A file for several processes; None: the memory store.
        processes: How many share the file.
        limits: Instants in ms from the start, the budget, and its limits from then on, in
            percent of what they were.
    """

    def __init__(
        self, budgets: Sequence[str], streams: Sequence[Stream], *, slots: int = 8,
        path: Path | None = None, processes: int = 1, limits: Sequence[tuple[int, int, int]] = (),
    ) -> None:  # fmt: skip
        self.now_ms, self.slots = T0, slots
        self.stores: list[Store] = [MemoryStore()]
        if path is not None:
            self.stores = [
                InlineSqlite(path, Process("here", number, "1"), 1 << 50, lambda sql: None)
                for number in range(1, processes + 1)
            ]
        self.streams = list(streams)
        self.sums: list[list[_Sums]] = []
        numbers = itertools.count()
        self.specs = list(budgets)
        self.budgets = [Budget(f"b{i}", spec) for i, spec in enumerate(budgets)]
        for budget in self.budgets:
            self.sums.append([_Sums(next(numbers), cap) for cap in budget.caps])
        self.asked: dict[int, _Asked] = {}
        self.running: dict[int, tuple[_Asked, int]] = {}  # reservation → who, since when
        self.busy = [0] * len(self.stores)
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._work: list[dict[str, list[Any]]] = [{} for _ in self.stores]
        self._wakes: list[int | None] = [None] * len(self.stores)
        self._left = [each.count for each in self.streams]
        self._ended = [0] * len(self.streams)
        self.arrived = self.started = self.turns = self.idle_turns = 0
        self._idle_since_ms = T0
        self.worst: dict[int, tuple[int, int]] = {}  # priority → most passed, and for how long
        self.limits = limits

    # The run

    def run(self, until_ms: int | None = None, go_on: Callable[[], bool] = lambda: True) -> Self:
        """Go on until nothing happens any more, for a time, or for as long as told."""
        with mock.patch("scheduler.stores.sql.workers.is_dead", return_value=False):
            for store in self.stores:
                _now(store.open(self.now_ms))
            self._define(range(len(self.budgets)))
            for stream in range(len(self.streams)):
                first_ms = T0 + self.streams[stream].first_ms
                self._at(first_ms, lambda stream=stream: self._arrive(stream))
            for after_ms, number, percent in self.limits:
                self._at(T0 + after_ms, lambda n=number, p=percent: self._relimit(n, p))
            while go_on() and self._step(until_ms):
                pass
        return self

    def release(self) -> Self:
        """Money for all: whatever waits has to start by itself, or be heard of no more."""
        with mock.patch("scheduler.stores.sql.workers.is_dead", return_value=False):
            for number in range(len(self.budgets)):
                self._relimit(number, PLENTY)
            while self._step(None):
                pass
        return self

    def _at(self, at_ms: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (at_ms, next(self._order), what))

    def _step(self, until_ms: int | None) -> bool:
        """One instant: what happens then, and the turns that follow from it."""
        wakes = [each for each in self._wakes if each is not None]
        instants = [each[0] for each in self.events[:1]] + wakes
        if not instants or (until_ms is not None and min(instants) > T0 + until_ms):
            return False
        self.now_ms = max(self.now_ms, min(instants))
        while self.events and self.events[0][0] <= self.now_ms:
            heapq.heappop(self.events)[2]()
        for position, work in enumerate(self._work):
            at_ms = self._wakes[position]
            if any(work.values()) or (at_ms is not None and at_ms <= self.now_ms):
                self._turn(position)
        return True

    def _define(self, numbers: Iterable[int]) -> None:
        store = self.stores[0]
        _now(store.define([self.budgets[number] for number in numbers], self.now_ms))
        ids = {each.budget.name: each.id for each in _now(store.budgets(self.now_ms))}
        self.ids = [ids[budget.name] for budget in self.budgets]
        self._heard(-1)

    def _relimit(self, number: int, percent: int) -> None:
        """Other limits over the same windows, in percent of the first ones."""
        budget = Budget(f"b{number}", scaled(self.specs[number], percent))
        self.budgets[number] = budget
        for sums, cap in zip(self.sums[number], budget.caps, strict=True):
            sums.redefine(cap)
        for asked in self.asked.values():
            if any(need > each.limit for each, need in _pairs(asked)):
                asked.forget_line()
        self._define([number])

    def _heard(self, writer: int) -> None:
        """Processes look now and then whether others have changed the file."""
        for position in range(len(self.stores)):
            if position != writer:
                soon_ms = self.now_ms + (POLL_MS if len(self.stores) > 1 else 0)
                self._wakes[position] = min(self._wakes[position] or soon_ms, soon_ms)

    # What comes and goes

    def _arrive(self, number: int) -> None:
        stream = self.streams[number]
        for _ in range(min(stream.at_once, self._left[number])):
            self._left[number] -= 1
            self._submit(stream)
        if stream.every_ms and self._left[number]:
            self._at(self.now_ms + stream.every_ms, lambda: self._arrive(number))

    def _submit(self, stream: Stream) -> None:
        self.arrived += 1
        expires_ms = None if stream.patience_ms is None else self.now_ms + stream.patience_ms
        lane = LaneKey(
            "p", tuple(sorted(self.ids[i] for i in stream.draws)), stream.priority, stream.may_wait
        )
        new = NewRequest(REQUEST, lane, stream.need, stream.need, expires_at_ms=expires_ms)
        self.stores[stream.process].prepare(new)
        work = self._work[stream.process]
        work.setdefault("submit", []).append(new)
        work.setdefault("streams", []).append(stream)

    def _turn(self, position: int) -> None:
        work, self._work[position] = self._work[position], {}
        streams = work.pop("streams", [])
        slots = {"p": self.slots - self.busy[position]}
        _now(self.stores[position].changed(self.now_ms))
        result = _now(self.stores[position].turn(Turn(self.now_ms, slots=slots, **work)))
        self._wakes[position] = result.look_again_at_ms
        for each in work.get("settle", ()):
            self._settled(each)
        self._look()
        for submitted, stream in zip(result.submitted, streams, strict=True):
            self._stand_in_line(submitted.id, stream)
        for gone in (*result.expired, *result.refused):
            self._leave(self.asked[gone.id])
        for claimed in result.claimed:
            self._started(position, claimed)
        self._note_first()
        self._count(work, result)
        if work or result.claimed:
            self._heard(position)

    def _count(self, work: dict[str, Any], result: TurnResult) -> None:
        """Turns that do nothing are few: two a slot that leaves."""
        self.turns += 1
        if work or result.claimed or result.expired:
            self.idle_turns, self._idle_since_ms = 0, self.now_ms
            return
        self.idle_turns += 1
        spans = [each.window.bucket_ms or 1000 for sums in self.sums for each in sums]
        slots = sum(2 + (self.now_ms - self._idle_since_ms) / span for span in spans)
        most = 20 + 4 * len(self.stores) * len(self.streams) * slots
        assert self.idle_turns <= most, f"{self.idle_turns} turns did nothing"

    def _look(self) -> None:
        for sums in self.sums:
            for each in sums:
                each.look(self.now_ms)

    def _stand_in_line(self, request_id: int, stream: Stream) -> None:
        accounts = [each for i in stream.draws for each in self.sums[i]]
        asked = _Asked(
            (stream.priority, request_id), stream.process, request_id, stream,
            (stream.need, stream.need, 1), accounts,
        )  # fmt: skip
        self.asked[request_id] = asked
        if stream.may_wait:
            for each in accounts:
                insort(each.waiting, asked)

    def _leave(self, asked: _Asked) -> None:
        del self.asked[asked.id]
        if asked.stream.may_wait:
            for each in asked.accounts:
                del each.waiting[bisect_left(each.waiting, asked)]

    def _started(self, position: int, claimed: Claimed) -> None:
        self.started += 1
        asked = self.asked[claimed.request_id]
        self._leave(asked)
        for each, need in _pairs(asked):
            if need > 0:
                first = each.first()
                if first is not None and first < asked and each.number in first.since_ms:
                    self._judge(each, first, asked, need)
        for each, need in _pairs(asked):
            assert need <= max(0, each.available), "more than there is"
            each.slot(self.now_ms)[1] += need
            each.pending += need
        self.running[claimed.reservation_id] = asked, self.now_ms
        self.busy[position] += 1
        number = self.streams.index(asked.stream)
        self._at(
            self.now_ms + asked.stream.runs_ms,
            lambda: self._end(position, claimed.reservation_id, number),
        )
        if not asked.stream.every_ms and self._left[number]:
            self._left[number] -= 1
            self._at(self.now_ms, lambda: self._submit(asked.stream))

    def _end(self, position: int, reservation_id: int, number: int) -> None:
        asked, _ = self.running[reservation_id]
        stream = asked.stream
        cost = asked.needs[0] * stream.share // 100
        self._ended[number] += 1
        outcome = Outcome.POST if cost else Outcome.VOID
        if stream.lost and self._ended[number] % stream.lost == 0:
            outcome = Outcome.SUSPEND
            self._at(
                self.now_ms + max(1000, stream.runs_ms),
                lambda: self._resolve(position, reservation_id, cost),
            )
        self.busy[position] -= 1
        self._work[position].setdefault("settle", []).append(
            Settlement(reservation_id, asked.id, outcome, RequestState.FAILED, cost, cost)
        )

    def _resolve(self, position: int, reservation_id: int, cost: int) -> None:
        """Somebody says what became of an unknown outcome."""
        asked, _ = self.running[reservation_id]
        told = Settlement(
            reservation_id, asked.id, Outcome.POST if cost else Outcome.VOID, RequestState.FAILED,
            cost, cost,
        )  # fmt: skip
        _now(self.stores[position].resolve([told], self.now_ms))
        self._settled(told, 2)
        for each in range(len(self.stores)):
            self._wakes[each] = self.now_ms
        self._look()

    def _settled(self, told: Settlement, held_as: int = 1) -> None:
        asked, made_ms = self.running[told.reservation_id]
        for each, need in _pairs(asked):
            sums = each.slot(made_ms)
            sums[held_as] -= need
            if told.outcome is Outcome.SUSPEND:
                sums[2] += need
            elif told.outcome is Outcome.POST:
                sums[0] += 1 if each.index == 2 else told.nusd
        if told.outcome is not Outcome.SUSPEND:
            del self.running[told.reservation_id]

    # The judge

    def _note_first(self) -> None:
        for sums in self.sums:
            for each in sums:
                first = each.first()
                if first is None or self.busy[first.process] >= self.slots:
                    continue  # nobody, or one that waits for a place
                first.since_ms.setdefault(each.number, self.now_ms)
                for asked in each.waiting[:20] if each.window.kind is WindowKind.TOTAL else ():
                    if each.starts_ms(asked.needs[each.index]) == math.inf:
                        asked.left.setdefault(each.number, each.limit - each.suspense)

    def _judge(self, sums: _Sums, first: _Asked, asked: _Asked, need: int) -> None:
        """Count a passing that could delay the first in line; fail beyond the bound.

        The first waits for money from the turn on in which there was a place for it.
        """
        wanted = first.needs[sums.index]
        elsewhere = [each.starts_ms(amount) for each, amount in _pairs(first) if each is not sums]
        if math.inf in elsewhere:
            return  # it waits for a raise of another limit
        starts_ms = max(sums.starts_ms(wanted), *elsewhere, 0)
        if starts_ms > self.now_ms:
            if starts_ms == math.inf:
                left = first.left.get(sums.number, math.inf)
                if sums.posted + sums.pending + need <= left:
                    return
            else:
                taken = need if sums.leaves_ms() > starts_ms else 0
                if sums.room(starts_ms) - taken >= wanted:
                    return
        first.passed[sums.number] += 1
        passed = first.passed[sums.number]
        waited_ms = self.now_ms - first.since_ms[sums.number]
        most = self.worst.get(first.order[0], (0, 0))
        self.worst[first.order[0]] = max(most[0], passed), max(most[1], waited_ms)
        self.check(first, asked, passed, waited_ms)

    def check(self, first: _Asked, asked: _Asked, passed: int, waited_ms: int) -> None:
        """Invariant 9."""
        assert passed <= MAX_BYPASSED, f"{first.order} was passed {passed} times"
        assert waited_ms < MAX_BYPASS_MS, f"{first.order} was passed for {waited_ms} ms"


def scaled(spec: str, percent: int) -> str:
    """The same caps with other limits."""

    def one(figure: re.Match[str]) -> str:
        if figure[1]:
            return f"${float(figure[2]) * percent / 100:.12f}"
        return str(int(figure[2]) * percent // 100)

    return ", ".join(re.sub(r"^(\$?)([\d.]+)", one, cap) for cap in spec.split(", "))


def _now(coroutine: Any) -> Any:
    """The result of a coroutine that does not really wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")
