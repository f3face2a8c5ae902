"""What models, jobs and tags cost and took in the last 24 hours, from the sums that are kept of them.

These are as many as quarters of an hour, models, durations and values of tags. Where they are many, so
that reading them takes long, they are read again only after twenty times as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scheduler.server.page import figures
from scheduler.stores.base import Store
from scheduler.stores.course import QUARTER_MS

DAY_MS = 86_400_000
QUICK_S = 0.05  # what takes less is read for each look
RATIO = 20


class Day:
    """Reads what the last day was like.

    Args:
        store: It, open.
        clock_s: A clock that never goes backwards.
    """

    def __init__(self, store: Store, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock_s = store, clock_s
        self._due_s = 0.0
        self._last: dict[str, Any] | None = None

    async def look(self, now_ms: int) -> dict[str, Any]:
        """The tables of it."""
        began_s = self._clock_s()
        if self._last is None or began_s >= self._due_s:
            self._last = await self._read(now_ms)
            now_s = self._clock_s()
            took_s = now_s - began_s
            self._due_s = 0.0 if took_s < QUICK_S else now_s + RATIO * took_s
        return self._last

    async def _read(self, now_ms: int) -> dict[str, Any]:
        # From the beginning of a quarter of an hour: what is told from within one reads its attempts.
        since_ms = now_ms - DAY_MS - (now_ms - DAY_MS) % QUARTER_MS
        store = self._store
        took = await store.durations(since_ms)
        spend = {
            by: [figures.spend_row(row) for row in await store.spend(by, since_ms)]
            for by in ("model", "job")
        }
        return {
            "spend": {by: rows[: figures.MOST_ROWS] for by, rows in spend.items()},
            "tags": figures.tag_rows(await store.spend("tag", since_ms)),
            "models": figures.model_rows(took),
            "throughput": figures.throughput(took),
        }
