"""When all that waits will be done: rehearsed now and then while somebody looks, and told meanwhile.

A rehearsal takes about a second of processor time, so it is done in a thread, not for each look, and
not sooner again than after some twenty times as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.rehearsal import FEW, Finish, finish
from scheduler.rehearsal.remaining import remaining
from scheduler.stores.base import Store

EVERY_S = 10.0
RATIO = 20
logger = logger_of("scheduler.server")


class Forecast:
    """Tells when what waits in a store will be done.

    Args:
        store: It, open.
        now_ms: The time.
        clock_s: A clock that never goes backwards.
    """

    def __init__(
        self, store: Store, now_ms: Callable[[], int], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._now_ms, self._clock_s = store, now_ms, clock_s
        self._task: asyncio.Task[None] | None = None
        self._due_s = 0.0
        self._told: Finish | None = None

    def look(self, waiting: int) -> Finish | None:
        """What was found out last; None: nothing waits, or it is not known yet. Never waits for it.

        Args:
            waiting: How many requests wait.
        """
        if not waiting:
            self._told, self._due_s = None, 0.0
            return None
        if self._clock_s() >= self._due_s and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._rehearse())
        return self._told

    async def _rehearse(self) -> None:
        began_s = self._clock_s()
        try:
            scene = await remaining(self._store, self._now_ms())
            found = await asyncio.to_thread(finish, scene, most=FEW)
            self._told = found if found.requests else None
        except SchedulerError as exc:
            logger.debug("the page could not tell when all will be done: %s", exc)
        now_s = self._clock_s()
        self._due_s = max(began_s + EVERY_S, now_s + RATIO * (now_s - began_s))
