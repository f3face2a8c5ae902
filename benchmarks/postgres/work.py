"""One worker in a process of its own: ``python -m benchmarks.postgres.work KIND DSN NAME SIZE SECONDS``."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import time
from dataclasses import asdict

from benchmarks.postgres.gauge import Counting, Told, net_bytes

WARM_S = 0.5


async def main(kind: str, dsn: str, name: str, size: int, seconds: float) -> None:
    counts = Counting()
    worker = importlib.import_module(f"benchmarks.postgres.{kind}").Worker(dsn, name)
    await worker.begin()
    print("ready", flush=True)
    sys.stdin.readline()
    until_s = time.monotonic() + WARM_S
    while time.monotonic() < until_s:
        await worker.turn(size)
    gc.collect()
    gc.freeze()
    told, before = Told(), (counts.statements, counts.trips, worker.held.s)
    told.net_bytes = -net_bytes()
    print("warm", flush=True)
    sys.stdin.readline()
    began_s, cpu_s = time.monotonic(), time.process_time()
    while time.monotonic() - began_s < seconds:
        told.lifecycles += await worker.turn(size)
        told.turns += 1
    told.wall_s, told.cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    told.statements, told.trips = counts.statements - before[0], counts.trips - before[1]
    told.net_bytes += net_bytes()
    told.held_s = worker.held.s - before[2]
    print(json.dumps(asdict(told)), flush=True)
    sys.stdin.readline()
    await worker.end()


if __name__ == "__main__":
    kind, dsn, name, size, seconds = sys.argv[1:]
    asyncio.run(main(kind, dsn, name, int(size), float(seconds)))
