"""The gateway beside a bare pass-through and others: one core for it, one for provider and clients.

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
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Row
from benchmarks.passing import Canned, Load, ask
from benchmarks.peers import PEERS, LeftOut

PATH = "/v1/chat/completions"
CONNECTIONS = 50
KINDS = ("bare", "memory", "SQLite")


@dataclass
class Side:
    """A gateway, and what was measured of it."""

    process: subprocess.Popen[str]
    port: int
    headers: Sequence[str]
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

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
    return Side(process, port, [f"authorization: Bearer {told['token']}"])


def begin_peers(provider_url: str, folder: Path, installs: bool) -> dict[str, Side | str]:
    """The other gateways, on the same core; or why one is left out."""
    found: dict[str, Side | str] = {}
    for name, (begin_one, _) in PEERS.items():
        try:
            begun = begin_one(provider_url, folder, installs=installs)
        except LeftOut as exc:
            found[name] = str(exc)
            print(f"{name} is left out: {exc}", file=sys.stderr)
            continue
        _pin(begun.process.pid, 0)
        found[name] = Side(begun.process, begun.port, begun.headers)
    return found


def sync_ms(folder: Path) -> float:
    """How long the disk takes to say that something is on it."""
    took = []
    with (folder / "sync").open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 8192)
            file.flush()
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began_s)
    return 1000 * statistics.median(took)


def _pin(pid: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


@dataclass
class Found:
    """What was measured.

    Attributes:
        left_out: Peers that were not measured, and why.
        calm: By kind, what clients saw at half of the rate; and of the bare one, at the same.
        sync_ms: What the disk took for a sync meanwhile.
    """

    sides: dict[str, Side]
    left_out: dict[str, str]
    calm: dict[str, Load] = field(default_factory=dict)
    sync_ms: list[float] = field(default_factory=list)


async def measured(
    seconds: float, rounds: int, kinds: tuple[str, ...] = KINDS, *, installs: bool = False
) -> Found:
    """All sides, in turns: as fast as it goes, then the delays at half of what ours can do."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Canned, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    _pin(os.getpid(), 1)
    with tempfile.TemporaryDirectory() as folder:
        peers = await asyncio.to_thread(begin_peers, url, Path(folder), installs)
        sides = {kind: begin(kind, url, Path(folder)) for kind in kinds}
        found = Found(sides, {name: it for name, it in peers.items() if isinstance(it, str)})
        sides |= {name: it for name, it in peers.items() if isinstance(it, Side)}
        try:
            for name, side in sides.items():
                await _asked(side, 3.0 if name in peers else 1.0)  # nobody is measured cold
            for _ in range(rounds):
                found.sync_ms.append(sync_ms(Path(folder)))
                for side in sides.values():
                    before_s = side.cpu_s()
                    load = await _asked(side, seconds)
                    side.loads.append(load)
                    side.cpu_us.append((side.cpu_s() - before_s) / len(load.took_s) * 1e6)
            for kind in kinds:
                half = sides[kind].rate / 2
                found.calm[kind] = await _asked(sides[kind], seconds, half)
                if kind != "bare" and "bare" in sides:  # the same pace without us
                    found.calm[f"bare for {kind}"] = await _asked(sides["bare"], seconds, half)
        finally:
            for side in sides.values():
                side.process.terminate()
            for side in sides.values():
                _wait(side.process)
    server.close()
    return found


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _asked(side: Side, seconds: float, rate: float | None = None) -> Load:
    load = await ask(side.port, PATH, side.headers, CONNECTIONS, seconds, rate)
    if load.bad:
        raise RuntimeError(f"{load.bad} of {len(load.took_s)} were no answers")
    return load


def run(quick: bool) -> list[Row]:
    runner: Any = asyncio.Runner
    import uvloop

    with runner(loop_factory=uvloop.new_event_loop) as made:
        found = made.run(measured(1.0 if quick else 4.0, 2 if quick else 5, installs=not quick))
    sides, calm = found.sides, found.calm
    bare, rows = sides["bare"], list[Row]()
    for kind, goal in (("memory", 0.45), ("SQLite", 0.25)):
        side = sides[kind]
        ratio = side.rate / bare.rate
        cpu = f"{statistics.median(side.cpu_us):,.0f} µs CPU"
        if kind == "SQLite":
            cpu += f", a sync {statistics.median(found.sync_ms):.1f} ms"
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
    return rows + [_beside(name, goal, found) for name, (_, goal) in PEERS.items()]


def _beside(name: str, goal: float, found: Found) -> Row:
    """Ours in memory beside another gateway."""
    what, ours = f"gateway, memory, beside {name}", found.sides["memory"]
    if name in found.left_out:
        return Row(what, f"{ours.rate:,.0f}/s", f"left out: {found.left_out[name]}", None,
                   f">= {goal:g} x", None)  # fmt: skip
    peer = found.sides[name]
    said = [
        f"{side.rate:,.0f}/s, p99 {statistics.median(each.percentile_ms(99) for each in side.loads):.0f} ms"
        for side in (ours, peer)
    ]  # fmt: skip
    ratio = ours.rate / peer.rate
    return Row(what, said[0], f"{name} {said[1]}", ratio, f">= {goal:g} x", ratio >= goal)
