"""Commits to a file as fast as it goes: ``python -m tests.processes.committer '{…}'``.

Brings the log into the file at almost every commit, closes and opens again all the time, and says
what was answered: a line for each turn, with the keys whose cost is posted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from scheduler.stores import sqlite as stores_sqlite
from scheduler.stores.sqlite import SqliteStore
from tests.stores import newest
from tests.stores.conformance import T0, Bench, new, post

NEED, COST = 10, 4  # nano-dollars


async def main(options: dict[str, Any]) -> None:
    if options.get("newest"):
        newest.install()
    random, number = Random(options["name"]), 0
    while True:
        stores_sqlite.LOG_PAGES = random.choice([1, 1, 2, 8])
        store = SqliteStore(Path(options["path"]))
        await store.open(T0)
        bench = Bench(store)
        ids = [each.id for each in await store.budgets(T0)]
        for _ in range(random.randrange(1, 20)):
            keys = [f"{options['name']} {number + n}" for n in range(random.randrange(1, 4))]
            number += len(keys)
            turn = await bench.submit(*[new(ids, NEED, key=key) for key in keys], slots=len(keys))
            await bench.settle(*[post(each, COST) for each in turn.claimed], slots=None)
            print(json.dumps([each.request.key for each in turn.claimed]), flush=True)
            await asyncio.sleep(random.choice([0, 0, 0.002]))
        await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
