"""Finds streams that nobody reads and nobody closed, while others wait for what they hold.

SDKs hold streams in circles of references, so that one which was left by ``break`` is noticed by
the garbage collector only, and that does not run while all that is left to do is to wait.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler

FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 60.0


class Stream(Protocol):
    """A stream that was handed over to its reader.

    Attributes:
        is_told: The scheduler has heard of its end.
        pieces: How many its reader has taken.
    """

    is_told: bool
    pieces: int


_WATCHES: WeakKeyDictionary[Scheduler, Watch] = WeakKeyDictionary()


def watch(scheduler: Scheduler, stream: Stream) -> None:
    """Look after a stream; in the scheduler's loop."""
    found = _WATCHES.get(scheduler)
    if found is None:
        found = _WATCHES[scheduler] = Watch(scheduler)
    found.add(stream)


class Watch:
    """Looks after the streams of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._loop = ref(scheduler), scheduler.loop
        self._streams: WeakKeyDictionary[Stream, int] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_LOOK_S

    def add(self, stream: Stream) -> None:
        """There is one more."""
        self._streams[stream] = stream.pieces
        if self._timer is None:
            self._pause_s = FIRST_LOOK_S
            self._timer = self._loop.call_later(self._pause_s, self._look)

    def _look(self) -> None:
        self._timer = None
        scheduler, idle = self._scheduler(), 0
        if scheduler is None or scheduler.is_closed:
            return
        for stream, pieces in list(self._streams.items()):
            if stream.is_told:
                del self._streams[stream]
            elif stream.pieces == pieces:
                idle += 1
            else:
                self._streams[stream] = stream.pieces
        if not self._streams:
            return
        if idle and scheduler.is_waiting:
            gc.collect()
            self._pause_s = min(LONGEST_LOOK_S, 2 * self._pause_s)
        self._timer = self._loop.call_later(self._pause_s, self._look)
