"""Calls on which nobody works lend their places: callers that wait for money, and streams.

A caller whose inner calls all lack money (`nesting`) lends its place until one of them goes on.
So does a stream while its reader is busy with what it was given.

A place is held while a provider works and its reader waits. A reader that does something else
between two reads, such as another call, would else wait for its own place as soon as open streams
hold all of them. So while somebody waits for a place, streams rest that were not asked for more
for `REST_S`: one that is read on without a break keeps its place, and so the number of calls. At
the next read a stream takes its place again, beyond the number if need be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial

from scheduler.core.flight import Call, Flight
from scheduler.core.future import RequestFuture
from scheduler.core.nested.pace import Pace
from scheduler.stores.base import Store

REST_S = 0.05


class Resting:
    """Which calls of one process have lent their places. Used by `Pump` alone.

    Args:
        flight: The calls under way, and the places.
        store: Knows who waits, and the gates.
        wake: Has the pump take a turn.
    """

    def __init__(self, flight: Flight, store: Store, wake: Callable[[], None]) -> None:
        self._flight, self._store, self._wake = flight, store, wake
        self._loop = asyncio.get_running_loop()
        self._streams: set[RequestFuture] = set()
        self._callers: set[Call] = set()  # that rest
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: RequestFuture) -> None:
        """The answer of one is read as it comes."""
        self._streams.add(future)
        call = self._flight.calls.get(future.request_id or 0)
        if call is not None:
            call.pace = future.pace
            for gate in self._store.gates.of(call.provider, call.claimed.request.model):
                gate.begun(call.claimed.request_id)
            self._wake()
        self.look_soon()

    def rest(self, callers: Collection[Call]) -> None:
        """Lend the places of these, which wait for money, and of no other callers; look at streams."""
        if callers or self._callers:
            now = set(callers)
            for call in self._callers - now:
                self._end(call)
            for call in now - self._callers:
                if call.end_rest is None:
                    self._begin(call)
                    self._wake()
            self._callers = now
        self.look_soon()

    def look_soon(self) -> None:
        """Look, a little later, whether places can be lent, if anybody waits for one.

        Not before a reader is busy: who waits for more may do so for a day.
        """
        if not self._streams or self._timer is not None or not self._is_short():
            return
        paces = [pace for _, pace in self._holding()]
        for pace in paces:
            if pace.busy_since_s is None:
                pace.noticed = self.look_soon
        # Looked at only now: a reader in another thread may have got busy meanwhile.
        if any(pace.busy_since_s is not None for pace in paces):
            self._timer = self._loop.call_later(REST_S, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _is_short(self) -> bool:
        return any(lane.shortfall is None for lane in self._store.lanes())

    def _holding(self) -> list[tuple[Call, Pace]]:
        """The streams that are read and hold their places."""
        self._streams = {each for each in self._streams if not each.done()}
        found = []
        for future in self._streams:
            call = self._flight.calls.get(future.request_id or 0)
            if call is None or call.is_over or call.end_rest is not None:
                continue
            if future.pace is not None:
                found.append((call, future.pace))
        return found

    def _look(self) -> None:
        self._timer = None
        has_rested, before_s = False, self._loop.time() - REST_S
        for call, pace in self._holding():
            if pace.busy_since_s is not None and pace.busy_since_s <= before_s:
                pace.back = self._begin(call)
                has_rested = True
                if pace.busy_since_s is None:  # it was asked in this moment, in another thread
                    call.end_rest()
        if has_rested:
            self._wake()
        else:
            self.look_soon()

    def _begin(self, call: Call) -> Callable[[], None]:
        self._count(call, 1)
        if call.attempt is not None:
            call.attempt.has_waited = True
        end = call.end_rest = partial(self._end, call)
        return end

    def _end(self, call: Call) -> None:
        """It is worked on again, or has ended."""
        if call.end_rest is not None:
            call.end_rest = None
            self._count(call, -1)

    def _count(self, call: Call, change: int) -> None:
        self._flight.slots[call.provider] += change
        for gate in self._store.gates.of(call.provider, call.claimed.request.model):
            gate.resting += change
