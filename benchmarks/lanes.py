"""What a request costs beside budgets, or lanes, in all of which others wait: eight places."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.dispatch import BODY, provider
from benchmarks.harness import Row, undisturbed
from scheduler import Budget, Request, Scheduler

SIZES = (1, 100, 1_000, 10_000)
PLACES, REQUESTS, STEP_MS, RATIO = 8, 2_000, 20.0, 1.5


class Steps:
    """The longest step of the loop."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._run = asyncio.Handle._run

    def __enter__(self) -> Steps:
        run = self._run

        def measured(handle: asyncio.Handle) -> None:
            start = time.perf_counter()
            run(handle)
            self.longest_ms = max(self.longest_ms, 1000 * (time.perf_counter() - start))

        asyncio.Handle._run = measured  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.Handle._run = self._run  # type: ignore[method-assign]


async def measured(store: Path | None, kind: str, number: int) -> dict[str, float]:
    """Microseconds a request, longest step, and milliseconds of a change and of a look."""
    budgets = [Budget(f"user-{each}", "$1000000") for each in range(number)]
    async with Scheduler(
        store, budgets=budgets if kind == "budgets" else budgets[:1], providers=provider(),
        concurrency=PLACES,
    ) as s:  # fmt: skip
        requests = [
            Request({**BODY, "model": f"m-{each % number}" if kind == "lanes" else BODY["model"]},
                    budget=f"user-{each % number}" if kind == "budgets" else "user-0")
            for each in range(max(number, REQUESTS) + REQUESTS)
        ]  # fmt: skip
        return await _run(s, requests, number, kind)


async def _run(s: Scheduler, requests: list[Request], number: int, kind: str) -> dict[str, float]:
    futures = [s.submit(each) for each in requests]
    await futures[0]
    found = {}
    with undisturbed(), Steps() as steps:
        start = time.perf_counter()
        await futures[REQUESTS - 1]
        found["request"] = 1e6 * (time.perf_counter() - start) / (REQUESTS - 1)
        for name, change in (
            ("set_limit", s.set_limit("user-0", "$2000000")),
            ("ensure", s.ensure(Budget("new", "$5"))),
        ):
            start = time.perf_counter()
            await change
            found[name] = 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        s.stats()
        found["stats"] = 1e3 * (time.perf_counter() - start)
    found["step"] = steps.longest_ms
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
    return found


def run(quick: bool) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for store in ("memory", "SQLite"):
            for kind in ("budgets", "lanes"):
                sizes = SIZES[:-1] if quick else SIZES
                found = {}
                for size in sizes:
                    path = Path(folder) / f"{kind}-{size}.db" if store == "SQLite" else None
                    found[size] = asyncio.run(measured(path, kind, size))
                one = found[1]
                for size in sizes[1:]:
                    each = found[size]
                    ratio = each["request"] / one["request"]
                    rows.append(Row(
                        f"a request, {size:,} {kind} waiting, {store}", f"{each['request']:.0f} µs",
                        f"1: {one['request']:.0f} µs", ratio, f"{RATIO} ×", ratio <= RATIO,
                    ))  # fmt: skip
                    rows.append(Row(
                        f"longest step of the loop, {size:,} {kind}, {store}",
                        f"{each['step']:.1f} ms", f"1: {one['step']:.1f} ms", None,
                        f"{STEP_MS:.0f} ms", each["step"] <= STEP_MS,
                    ))  # fmt: skip
                    rows += [
                        Row(f"{name}, {size:,} {kind} waiting, {store}", f"{each[name]:.2f} ms",
                            f"1: {one[name]:.2f} ms", None, "", None)
                        for name in ("set_limit", "ensure", "stats")
                    ]  # fmt: skip
    return rows
