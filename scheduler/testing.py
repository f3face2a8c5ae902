"""Time that the tests own: an event loop in which waiting takes no time.

`run` runs a coroutine in a loop whose clock jumps to the next timer instead of
sleeping, so that a month of windows passes in milliseconds, always in the same
order. `VirtualClock` tells the scheduler the same time. With worker threads
outstanding (a SQLite store) virtual time would run ahead of them, so use it with
the memory store.

    >>> import asyncio
    >>> async def nap():
    ...     before = VirtualClock().now_ms()
    ...     await asyncio.sleep(3600)
    ...     return VirtualClock().now_ms() - before
    >>> run(nap())
    3600000
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC


class Deadlock(RuntimeError):
    """Nothing is left to happen, and the coroutine still waits."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for `timeout`, moves the clock on by it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock("nothing is left to happen, and the main coroutine still waits")
            self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which timers come due at once, in order."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # What is due within that is due. After some months seconds have fewer digits than the real
        # clock's resolution: a timer that is due now would never be, and the loop would spin.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Seconds since the loop was made, in virtual time."""
        return self._jumping.now_s


class VirtualClock:
    """Wall clock that follows the running virtual loop.

    Args:
        start_ms: Unix time in milliseconds at the loop's beginning.
    """

    def __init__(self, start_ms: int = START_MS) -> None:
        self.start_ms = start_ms

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        # Rounded, not cut: a timer for an instant must find that instant reached.
        return self.start_ms + round(asyncio.get_running_loop().time() * 1000)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
