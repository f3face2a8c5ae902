"""Lifecycles a second on one hot budget in PostgreSQL: ``python -m benchmarks.postgres``.

Each worker is a process that in every turn settles what it had, submits as many new requests, and
claims them: no provider, no scheduler, only the store. The server is one that is started for it, with
fsync on, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time

from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget
from scheduler.request import Request, RequestState, Response, Usage
from scheduler.stores.base import Claimed, NewRequest, Outcome, Settlement, Turn
from scheduler.stores.postgres.store import PostgresStore

PROVIDER = "p"


def settled(claimed: Claimed) -> Settlement:
    return Settlement(
        claimed.reservation_id, claimed.request_id, Outcome.POST, RequestState.SUCCEEDED, 5, 3,
        response=Response({"n": 1}, usage=Usage(1, 2), key=claimed.request.key),
    )  # fmt: skip


async def work(url: str, size: int, seconds: float, name: str) -> None:
    """One worker; tells lifecycles and turns a second, and its own CPU time for a turn."""
    store = PostgresStore(url)
    await store.open(0)
    lane = LaneKey(PROVIDER, tuple(each.id for each in await store.budgets(0)), 10)
    claimed: list[Claimed] = []
    number = done = turns = 0
    print("ready", flush=True)
    sys.stdin.readline()
    began_s, cpu_s = time.monotonic(), time.process_time()
    while time.monotonic() - began_s < seconds:
        batch = []
        for _ in range(size):
            number += 1
            request = Request.chat("m", "hi", key=f"{name}-{number}")
            batch.append(NewRequest(request, lane, 10, 10, 5, request.digest()))
            store.prepare(batch[-1])
        turn = Turn(0, [settled(each) for each in claimed], submit=batch, slots={PROVIDER: size})
        result = await store.turn(turn)
        done, turns, claimed = done + len(claimed), turns + 1, result.claimed
    took_s = time.monotonic() - began_s
    cpu_ms = (time.process_time() - cpu_s) / turns * 1000
    print(json.dumps([done / took_s, turns / took_s, cpu_ms]), flush=True)
    await store.aclose()


async def define(url: str) -> None:
    store = PostgresStore(url)
    await store.open(0)
    await store.define([Budget("team", "$100")], 0)
    await store.aclose()


def measure(url: str, workers: int, size: int, seconds: float) -> None:
    """So many workers at once, and a line of what they told."""
    asyncio.run(define(url))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.postgres", "--work", url, "--sizes", str(size),
             "--seconds", str(seconds), "--name", f"w{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(workers)
    ]  # fmt: skip
    for each in running:
        assert each.stdout is not None
        each.stdout.readline()
    told = []
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in running:
        out, _ = each.communicate()
        told.append(json.loads(out))
    lifecycles, turns = sum(each[0] for each in told), sum(each[1] for each in told)
    print(f"{workers:8} {size:8} {lifecycles:14,.0f} {turns:10,.0f} {told[0][2]:10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4", help="how many at once (1,2,4)")
    parser.add_argument("--sizes", default="16,64,256", help="requests of a turn (16,64,256)")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(options.work, int(options.sizes), options.seconds, options.name))
        return
    from tests.postgres.server import running

    print(f"{'workers':>8} {'turns of':>8} {'lifecycles/s':>14} {'turns/s':>10} {'CPU ms':>10}")
    with running(is_hasty=False) as server:
        for workers in map(int, options.workers.split(",")):
            for size in map(int, options.sizes.split(",")):
                url = f"{server.dsn}?schema=workers_{workers}_{size}"
                measure(url, workers, size, options.seconds)


if __name__ == "__main__":
    main()
