"""What time it is; a value the tests own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time; `scheduler.testing` has one that follows a virtual loop."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""


class SystemClock:
    """The computer's own clock."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000
