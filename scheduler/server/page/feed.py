"""One look at the store for all who watch, at most once a second, and only while somebody does.

Each watcher has room for one picture: who reads slowly misses some, and always gets the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.server.page.desk import Desk

EVERY_S = 1.0
RATIO = 5  # a look that takes long is repeated only after so many times as long
BEAT_S = 15.0
logger = logger_of("scheduler.server")


class Feed:
    """Tells watchers what changed.

    Args:
        desk: Looks at the store.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watchers: set[asyncio.Queue[str]] = set()
        self._task: asyncio.Task[None] | None = None
        self._last = ""

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events for one watcher, until it goes."""
        queue: asyncio.Queue[str] = asyncio.Queue(1)
        if self._last:
            queue.put_nowait(self._last)
        self._watchers.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            yield "retry: 2000\n\n"
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        yield await queue.get()
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._watchers.discard(queue)
            if not self._watchers and self._task is not None:
                self._task.cancel()

    async def aclose(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        clock = asyncio.get_running_loop()
        known = ""
        while self._watchers:
            began_s = clock.time()
            try:
                picture = await self._desk.picture()
                what = json.dumps({**picture, "at_ms": 0})
                if what != known:
                    known = what
                    self._tell("picture", picture)
            except SchedulerError as exc:
                logger.warning("the page could not look at the store: %s", exc)
                known = ""
                self._tell("trouble", {"said": str(exc)})
            took_s = clock.time() - began_s
            await asyncio.sleep(max(EVERY_S, RATIO * took_s))

    def _tell(self, kind: str, value: Any) -> None:
        self._last = f"event: {kind}\ndata: {json.dumps(value)}\n\n"
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(self._last)
