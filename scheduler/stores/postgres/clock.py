"""The database's clock, as a process knows it between two answers.

>>> clock = DatabaseClock(monotonic_s=lambda: 5.0)
>>> clock.is_(1_000_000)
>>> clock.now_ms()
1000000
"""

from __future__ import annotations

import time
from collections.abc import Callable

from scheduler.clock import SystemClock


class DatabaseClock:
    """Goes on from what the server said last; before that, it is the machine's own.

    It is behind by how long that answer took, never ahead: a timer that it sets finds its instant
    reached.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s, self._own = monotonic_s, SystemClock()
        self._told: tuple[int, float] | None = None

    def is_(self, now_ms: int) -> None:
        """The server says that it is now this time."""
        self._told = now_ms, self._monotonic_s()

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        if self._told is None:
            return self._own.now_ms()
        told_ms, at_s = self._told
        return told_ms + int((self._monotonic_s() - at_s) * 1000)
