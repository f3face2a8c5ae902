"""A page opens on ten million requests: ``python -m benchmarks page [--quick]``.

The file is made by SQL, as a long run leaves it, with as many sums of the last day as there may be of a
few models and two tags. Each look is the first one of a process.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from benchmarks.growing import TEAM, _now_ms, fill
from benchmarks.harness import Row, undisturbed
from scheduler.request import RequestState
from scheduler.server.page.day import DAY_MS
from scheduler.server.page.desk import Desk
from scheduler.stores.course import QUARTER_MS
from scheduler.stores.sqlite import SqliteStore
from scheduler.stores.tagged import MOST_VALUES

MANY, FEW = 10_000_000, 100_000
GOAL_MS = 1_000
MODELS, BUCKETS = 8, 40

Looking = Callable[[Desk], Awaitable[object]]

LOOKS: dict[str, Looking] = {
    "the page": lambda desk: desk.picture(),
    "the page again": lambda desk: desk.picture(),
    "how a budget is used up": lambda desk: desk.burn(1, 0),
    "what waits": lambda desk: desk.requests([RequestState.QUEUED, RequestState.PARKED], 0),
    "what failed": lambda desk: desk.requests([RequestState.FAILED], 0),
    "what was answered": lambda desk: desk.requests([RequestState.SUCCEEDED], 0),
    "one request": lambda desk: desk.request(500),
}  # fmt: skip


def fill_day(path: Path, finished: int) -> None:
    """What the last day's sums may hold, and some that failed, behind all that did not."""
    quarter_ms = _now_ms(finished) - _now_ms(finished) % QUARTER_MS
    quarters = [quarter_ms - QUARTER_MS * n for n in range(DAY_MS // QUARTER_MS)]
    with closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO took VALUES (?, ?, ?, 9, 4000, 9000)", [
            (at_ms, f"model-{model}", bucket)
            for at_ms in quarters for model in range(MODELS) for bucket in range(20, 20 + BUCKETS)
        ])  # fmt: skip
        db.executemany("INSERT INTO spent_of_tags VALUES (?, ?, ?, 5, 2000, 200)", [
            (at_ms, tag, f"{tag}-{value}")
            for at_ms in quarters for tag in ("user", "page") for value in range(MOST_VALUES)
        ])  # fmt: skip
        db.execute(
            "UPDATE requests SET state = 'failed' WHERE id BETWEEN ? AND ?",
            (finished - 9, finished),
        )
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def measured(path: Path, look: Looking, finished: int, *, again: bool = False) -> float:
    """Milliseconds of one look at a file that was just opened."""

    async def main() -> float:
        store = SqliteStore(path)
        await store.open(_now_ms(finished))
        desk = Desk(store, TEAM.name, now_ms=lambda: _now_ms(finished))
        if again:
            await look(desk)
        with undisturbed():
            begun_s = time.perf_counter()
            await look(desk)
            spent_s = time.perf_counter() - begun_s
        await store.aclose()
        return 1_000 * spent_s

    return asyncio.run(main())


def run(quick: bool) -> list[Row]:
    """The looks at a small file and at a large one."""
    many = FEW if quick else MANY
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"{count}.db" for count in (1_000, many)}
        for count, path in files.items():
            fill(path, count)
            fill_day(path, count)
        for name, look in LOOKS.items():
            few, much = (
                measured(path, look, count, again=name.endswith("again"))
                for count, path in files.items()
            )
            rows.append(Row(
                f"{name}, {many:,} requests", f"{much:,.1f} ms", f"1,000: {few:,.1f}",
                much / GOAL_MS, "1x", much <= GOAL_MS,
            ))  # fmt: skip
    return rows
