"""One process of several on a file, or a database: ``python -m tests.processes.worker '{…}'``.

Asks its questions, and checks at every event that no budget is above its limit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import anyio

from scheduler import OpenAI, Request, Scheduler, events
from scheduler.stores import open_store
from scheduler.stores import process as processes
from scheduler.stores.sql.store import SqlStore
from tests.stores import newest


def store(options: dict[str, Any]) -> SqlStore:
    place = options.get("store") or Path(options["path"])
    made = open_store(place)
    assert isinstance(made, SqlStore)
    if "lease_ms" in options:
        made.lease_ms = made._transactions.lease_ms = options["lease_ms"]
    if "host" in options:  # as in another container: nobody sees whether it lives
        me = processes.this_process()
        made._transactions.process = processes.Process(options["host"], me.pid, me.started)
    return made


def set_clock(off_s: float) -> None:
    """The machine's clock is wrong, for all that asks it."""
    now_s, now_ns = time.time, time.time_ns
    time.time = lambda: now_s() + off_s
    time.time_ns = lambda: now_ns() + int(off_s * 1e9)


async def main(options: dict[str, Any]) -> None:
    set_clock(options.get("clock_off_s", 0))
    if options.get("newest"):
        newest.install()
    provider = OpenAI(base_url=options["url"], api_key="sk-test")
    wakened_s: list[float] = []
    async with Scheduler(
        store(options), providers=provider, prices={"sim-small": "0.15/0.60"},
        concurrency=options.get("concurrency", 4), poll_interval=options.get("poll_s", 0.2),
    ) as s:  # fmt: skip
        s.on(events.Settled, lambda _: check(s))
        s.on(events.Unparked, lambda _: wakened_s.append(time.time()))
        requests = [
            Request.chat("sim-small", f"question {name}", max_tokens=options.get("max_tokens", 40),
                         key=name, budget=options.get("budget"))
            for name in options["names"]
        ]  # fmt: skip
        print("ready", flush=True)
        while not await anyio.Path(options.get("starts_at", "/")).exists():  # all at once
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(s.run(each) for each in requests))
        told = {"cost_nusd": sum(each.cost_nusd for each in answers), "answers": len(answers),
                "unparked_at_s": wakened_s}  # fmt: skip
        print(json.dumps(told), flush=True)


def check(s: Scheduler) -> None:
    for status in s.stats().budgets:
        for cap in status.caps:
            if cap.limit is not None and cap.posted + cap.reserved > cap.limit:
                print(f"OVERSPENT {cap}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
