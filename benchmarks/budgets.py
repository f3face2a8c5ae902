"""What one budget costs among many: ensuring, raising, looking, beside the same with a hundred."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.dispatch import BODY, provider
from benchmarks.harness import Row, undisturbed
from scheduler import Budget, Request, Scheduler

FEW, TIMES, LOOP_MS = 100, 40, 1.0

Doing = Callable[[Scheduler, int], Awaitable[object]]


async def ensure(s: Scheduler, number: int) -> None:
    await s.ensure(Budget(f"new-{number}", f"${number + 1}/day", parent="app"))


async def raise_it(s: Scheduler, number: int) -> None:
    await s.set_limit(f"user-{number}", f"${number + 7}")


async def look(s: Scheduler, number: int) -> None:
    assert len(s.stats().budgets) > number


async def submit(s: Scheduler, number: int) -> None:
    await s.run(Request(BODY, budget=f"user-{number}"))


DOING: dict[str, Doing] = {
    "ensure": ensure, "set_limit": raise_it, "stats": look, "a request for another": submit,
}  # fmt: skip


@contextmanager
def loop_time(loop: asyncio.AbstractEventLoop) -> Iterator[list[float]]:
    """Processor time of the loop's own thread, and the time that passed, in milliseconds."""
    spent: list[float] = []
    with undisturbed():
        cpu, wall = time.thread_time(), time.perf_counter()
        yield spent
        spent += [1000 * (time.thread_time() - cpu), 1000 * (time.perf_counter() - wall)]


async def measured(store: Path | None, count: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of the loop, and in all, for each thing done once."""
    budgets = [Budget("app", "$9000000")]
    budgets += [Budget(f"user-{n}", f"${n + 5}/day", parent="app") for n in range(count)]
    found = {}
    async with Scheduler(store, budgets=budgets, providers=provider()) as s:
        s.stats()
        for name, do in DOING.items():
            with loop_time(asyncio.get_running_loop()) as spent:
                for number in range(TIMES):
                    await do(s, number)
            found[name] = (spent[0] / TIMES, spent[1] / TIMES)
    return found


def run(quick: bool) -> list[Row]:
    many = 1_000 if quick else 10_000
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("memory", "SQLite"):
            few, all_of = (
                asyncio.run(measured(Path(folder) / f"{n}.db" if kind == "SQLite" else None, n))
                for n in (FEW, many)
            )
            for name, (loop_ms, wall_ms) in all_of.items():
                rows.append(
                    Row(
                        f"{name}, {many:,} budgets, {kind}",
                        f"{loop_ms:.2f} ms of the loop, {wall_ms:.2f} in all",
                        f"{FEW} budgets: {few[name][0]:.2f}, {few[name][1]:.2f}",
                        loop_ms / few[name][0],
                        f"{LOOP_MS:.0f} ms",
                        loop_ms <= LOOP_MS,
                    )
                )
    return rows
