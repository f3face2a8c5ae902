"""How long to wait for a stream: in all, and between two of its events."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from scheduler.errors import CallTimeout


class Patience:
    """Bounds a stream; use it as an async context manager around all of it.

    While its reader takes their time, nothing runs out: it is not the other side that is slow.
    What ends it raises `TimeoutError` at its end, with `has_ended`. A reader may raise
    `TimeoutError` too: that is not ours, and is let through as it is.

    Args:
        total_s: For all of it, from connecting to the last byte.
        silence_s: Between two events, once it has begun; None: no limit. Comments, and bytes that
            make no event, are silence.
    """

    def __init__(self, total_s: float, silence_s: float | None) -> None:
        self._total_s, self._silence_s = total_s, silence_s
        self._left_s, self._quiet_s = total_s, math.inf
        self._timeout = asyncio.timeout(total_s)
        self._since_s = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._cancels = 0

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._task = asyncio.current_task()
        self._cancels = self._task.cancelling() if self._task is not None else 0
        self._since_s = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._timeout.__aexit__(*exc)

    @property
    def has_ended(self) -> bool:
        """Whether it is this that ended the wait."""
        return self._timeout.expired()

    def begin(self) -> None:
        """Its head has come: events are to follow."""
        self._left_s -= asyncio.get_running_loop().time() - self._since_s
        self.resume(is_news=True)

    def pause(self) -> None:
        """Some bytes have come, and their reader takes their time.

        Raises:
            CancelledError: It was to end, by this or by somebody else, in the very moment in which
                they came: pyreqwest gives them and forgets the rest, so it would never end.
        """
        if self._task is not None and self._task.cancelling() > self._cancels:
            raise asyncio.CancelledError
        waited_s = asyncio.get_running_loop().time() - self._since_s
        self._left_s -= waited_s
        self._quiet_s -= waited_s
        self._reschedule(None)

    def resume(self, is_news: bool) -> None:
        """More is asked for; `is_news`: there was an event in what came last."""
        now_s = self._since_s = asyncio.get_running_loop().time()
        if is_news and self._silence_s is not None:
            self._quiet_s = self._silence_s
        self._reschedule(now_s + max(0.0, min(self._left_s, self._quiet_s)))

    def _reschedule(self, at_s: float | None) -> None:
        if not self.has_ended:
            self._timeout.reschedule(at_s)

    def error(self) -> CallTimeout:
        """What has run out."""
        if self._quiet_s < self._left_s:
            return CallTimeout(f"no event for {self._silence_s:g} s (silence_timeout)")
        return CallTimeout(f"no end of the answer within {self._total_s:g} s (timeout)")
