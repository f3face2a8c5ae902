"""The gateway beside a bare pass-through: one core for it, one for provider and clients.

Each side is a process of its own, and they take turns in one run. ``python -m benchmarks gateway``.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Row
from benchmarks.passing import Canned, Load, ask

PATH = "/v1/chat/completions"
CONNECTIONS = 50
KINDS = ("bare", "memory", "SQLite")


@dataclass
class Side:
    """A gateway, and what was measured of it."""

    process: subprocess.Popen[str]
    port: int
    token: str
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    @property
    def headers(self) -> list[str]:
        return [f"authorization: Bearer {self.token}"]

    @property
    def rate(self) -> float:
        return statistics.median(each.rate for each in self.loads)

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


def begin(kind: str, provider_url: str, folder: Path) -> Side:
    """Start one, on a core of its own."""
    if kind == "bare":
        words = ["-m", "benchmarks.bare_gateway", provider_url]
    else:
        store = "memory://" if kind == "memory" else f"{folder}/{kind}.db"
        words = ["-m", "scheduler", "serve", "--port", "0", "--json", "--store", store,
                 "--base-url", f"{provider_url}/v1", "--budget", "$1000000/day",
                 "--price", "gpt-4o-mini=0.15/0.60"]  # fmt: skip
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    _pin(process.pid, 0)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    port = int(told["url"].rpartition(":")[2].partition("/")[0])
    return Side(process, port, told["token"])


def _pin(pid: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


async def measured(
    seconds: float, rounds: int, kinds: tuple[str, ...] = KINDS
) -> tuple[dict[str, Side], dict[str, Load]]:
    """All sides, in turns: as fast as it goes, then the delays at half of what ours can do."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Canned, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    _pin(os.getpid(), 1)
    calm: dict[str, Load] = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = {kind: begin(kind, url, Path(folder)) for kind in kinds}
        try:
            for side in sides.values():
                await _asked(side, 1.0)
            for _ in range(rounds):
                for side in sides.values():
                    before_s = side.cpu_s()
                    load = await _asked(side, seconds)
                    side.loads.append(load)
                    side.cpu_us.append((side.cpu_s() - before_s) / len(load.took_s) * 1e6)
            for kind, side in sides.items():
                half = side.rate / 2
                calm[kind] = await _asked(side, seconds, half)
                if kind != "bare" and "bare" in sides:  # the same pace without us
                    calm[f"bare for {kind}"] = await _asked(sides["bare"], seconds, half)
        finally:
            for side in sides.values():
                side.process.terminate()
                side.process.wait()
    server.close()
    return sides, calm


async def _asked(side: Side, seconds: float, rate: float | None = None) -> Load:
    load = await ask(side.port, PATH, side.headers, CONNECTIONS, seconds, rate)
    if load.bad:
        raise RuntimeError(f"{load.bad} of {len(load.took_s)} were no answers")
    return load


def run(quick: bool) -> list[Row]:
    runner: Any = asyncio.Runner
    import uvloop

    with runner(loop_factory=uvloop.new_event_loop) as made:
        sides, calm = made.run(measured(1.0 if quick else 4.0, 2 if quick else 5))
    bare, rows = sides["bare"], []
    for kind, goal in (("memory", 0.45), ("SQLite", 0.25)):
        side = sides[kind]
        ratio = side.rate / bare.rate
        cpu = f"{statistics.median(side.cpu_us):,.0f} µs CPU"
        other = f"bare {bare.rate:,.0f}/s, {statistics.median(bare.cpu_us):,.0f} µs CPU"
        rows.append(
            Row(f"gateway, {kind}, {CONNECTIONS} connections", f"{side.rate:,.0f}/s, {cpu}", other,
                ratio, f">= {goal} x", ratio >= goal)
        )  # fmt: skip
        ours_ms = calm[kind].percentile_ms(99)
        bare_ms = calm[f"bare for {kind}"].percentile_ms(99)
        rows.append(
            Row(f"gateway, {kind}, p99 at half of that", f"{ours_ms:.2f} ms", f"bare {bare_ms:.2f} ms",
                None, "< 10 ms more", ours_ms - bare_ms < 10)
        )  # fmt: skip
    return rows
