"""What time it is; a value the tests own."""

from __future__ import annotations

import time
from typing import Protocol

from scheduler.guards.hooks import instant_ms


class Clock(Protocol):
    """Tells the time; `scheduler.testing` has one that follows a virtual loop."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""


class SystemClock:
    """The computer's own clock."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000


class TrustedClock:
    """A clock of the user's own, which may be wrong but breaks nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_steady = getattr(clock, "is_steady", False) is True  # goes as its loop does

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return instant_ms(self._clock.now_ms, SystemClock().now_ms)
