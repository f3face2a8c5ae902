"""What it costs to wait: submitting a million, memory, idle processor time, waking up."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.dispatch import BODY, provider
from benchmarks.harness import Row, watched
from scheduler import Budget, Request, Scheduler

RAISE = "scheduler budget set team $1000 --store {store}"


def memory_mib() -> float:
    """The most this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def fill(s: Scheduler, count: int) -> None:
    for _ in range(0, count, 1000):
        await s.enqueue([Request(BODY) for _ in range(1000)])


async def submitting(place: Path, count: int) -> list[Row]:
    budget = Budget("team", "$0")
    async with Scheduler(place / "fill.db", budgets=budget, providers=provider()) as s:
        await fill(s, 2_000)
        before = memory_mib()
        with watched() as watch:
            await fill(s, count)
        grown = memory_mib() - before
        rate = count / watch.wall_s
        cpu = time.process_time()
        await asyncio.sleep(3)
        idle = (time.process_time() - cpu) / 3
    return [
        Row(f"submit {count:,} to SQLite", f"{rate:,.0f}/s", "-", None, "20,000/s", rate >= 20_000),
        Row(f"memory with {count:,} waiting", f"+{grown:.0f} MiB", "-", None, "flat", grown < 64),
        Row(f"idle with {count:,} parked", f"{idle:.2%} of a core", "-", None, "1 %", idle < 0.01),
    ]


async def waking(place: Path) -> list[Row]:
    called: list[float] = []

    def note(event: object) -> None:
        called.append(time.perf_counter())

    from scheduler import events

    store = place / "wake.db"
    async with Scheduler(store, budgets=Budget("team", "$0/day"), providers=provider()) as s:
        s.on(events.Admitted, note)
        s.submit(Request(BODY))
        await asyncio.sleep(0.3)
        begun = time.perf_counter()
        await s.set_limit("team", "$0.0000011")
        await asyncio.sleep(0.2)
        inside_ms = (called[0] - begun) * 1000
        s.submit(Request(BODY))
        await asyncio.sleep(0.3)
        code = (
            "import asyncio, sys, time\nfrom scheduler import Budget\n"
            "from scheduler.stores import open_store\n"
            "async def main():\n"
            "    store = open_store(sys.argv[1])\n"
            "    await store.open(time.time_ns() // 10**6)\n"
            "    await store.define([Budget('team', '$1000/day')], time.time_ns() // 10**6)\n"
            "    print(time.time(), flush=True)\n"
            "    await store.aclose()\n"
            "asyncio.run(main())\n"
        )
        child = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code, f"sqlite:///{store}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        raised_at = float(child.stdout) - time.time() + time.perf_counter()
        await s.join()
        outside_ms = (called[1] - raised_at) * 1000
    return [
        Row("raise to first call, same process", f"{inside_ms:.1f} ms", "-", None, "20 ms", inside_ms < 20),
        Row("raise to first call, other process", f"{outside_ms:.0f} ms", "-", None, "500 ms", outside_ms < 500),
    ]  # fmt: skip


def importing() -> Row:
    def seconds(code: str) -> float:
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - begun)
        return sorted(times)[3]

    bare, ours = seconds("pass"), seconds("import scheduler")
    ms = (ours - bare) * 1000
    return Row(
        "import scheduler",
        f"{ms:.0f} ms",
        f"python alone {bare * 1000:.0f} ms",
        ours / bare,
        "150 ms",
        ms < 150,
    )


def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = asyncio.run(submitting(place, 20_000 if quick else 1_000_000))
        rows += asyncio.run(waking(place))
    return [*rows, importing()]
