"""Rings when the clock shows an instant, however it gets there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from scheduler.clock import Clock

# The computer's clock may be set, or the computer put to sleep, while we wait.
LONGEST_TIMER_S = 30.0


class Alarm:
    """One alarm, which may be set anew. Used by `Pump`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, ring: Callable[[], object]
    ) -> None:
        self._loop, self._clock, self._ring = loop, clock, ring
        self._timer: asyncio.TimerHandle | None = None
        self._longest_s = math.inf if getattr(clock, "is_steady", False) else LONGEST_TIMER_S

    def set(self, at_ms: int | None) -> None:
        """Ring then, and not when it was set to before; None: not at all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_ms is not None:
            self._await(at_ms)

    def _await(self, at_ms: int) -> None:
        delay_s = (at_ms - self._clock.now_ms()) / 1000
        if delay_s > self._longest_s:
            self._timer = self._loop.call_later(self._longest_s, self._await, at_ms)
        else:
            self._timer = self._loop.call_later(max(0.0, delay_s), self._ring)
