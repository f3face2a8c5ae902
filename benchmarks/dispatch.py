"""How many requests a second go through, with a provider that answers at once."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sqlite3
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Row, best, watched
from scheduler import Budget, FunctionProvider, Quote, Request, Scheduler

CONCURRENCY = 256
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


async def answer(request: Request) -> dict[str, str]:
    return {"text": "ok"}


def provider() -> FunctionProvider:
    return FunctionProvider("f", answer, quote=Quote(1000, 500, 10), cost="0.0000005")


async def through_us(store: str | None, count: int, waiting: int = 0) -> float:
    """Requests a second per core: submit, reserve, call, settle, resolve."""
    budgets = [Budget("team", "$1000/day"), Budget("later", "$0")]
    async with Scheduler(
        store, budgets=budgets, providers=provider(), concurrency=CONCURRENCY
    ) as s:
        for _ in range(0, waiting, 1000):
            await s.enqueue([Request(BODY, budget="later") for _ in range(1000)])
        with watched() as watch:
            futures = [s.submit(Request(BODY, budget="team")) for _ in range(count)]
            await asyncio.gather(*futures)
    return count / watch.wall_s


async def bare_loop(count: int) -> float:
    """The same calls, each a task behind a semaphore, without queue or money."""
    gate = asyncio.Semaphore(CONCURRENCY)
    request = Request(BODY)

    async def one() -> dict[str, str]:
        async with gate:
            return await answer(request)

    with watched() as watch:
        await asyncio.gather(*[asyncio.create_task(one()) for _ in range(count)])
    return count / watch.wall_s


async def through_litellm(count: int) -> float:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no fetching at import
    import litellm

    litellm.suppress_debug_info = True
    params = {"model": "gpt-4o-mini", "api_key": "x"}
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": params}])
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one() -> object:
        async with gate:
            return await router.acompletion(
                model="m", messages=BODY["messages"], mock_response="ok", max_tokens=5
            )

    await one()
    with watched() as watch:
        await asyncio.gather(*[one() for _ in range(count)])
    return count / watch.wall_s


def naive_sqlite(path: Path, count: int) -> float:
    """One durable commit a request: what group commit is measured against."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, state TEXT)")
    begun = time.perf_counter()
    for number in range(count):
        db.execute("INSERT INTO t VALUES (?, 'queued')", (number,))
        db.execute("UPDATE t SET state = 'running' WHERE id = ?", (number,))
        db.execute("UPDATE t SET state = 'done' WHERE id = ?", (number,))
    db.close()
    return count / (time.perf_counter() - begun)


def run(quick: bool) -> list[Row]:
    count = 3_000 if quick else 20_000
    ours = best(lambda: asyncio.run(through_us(None, count)))
    bare = best(lambda: asyncio.run(bare_loop(count)))
    rows = [
        Row("dispatch, memory", f"{ours:,.0f}/s", f"bare loop {bare:,.0f}/s", ours / bare,
            "30,000/s", ours >= 30_000),
    ]  # fmt: skip
    if importlib.util.find_spec("litellm") is None:
        rows.append(
            Row(
                "dispatch, memory",
                f"{ours:,.0f}/s",
                "LiteLLM Router: not installed",
                None,
                "60 x",
                None,
            )
        )
    else:
        peer = asyncio.run(through_litellm(100 if quick else 500))
        rows.append(
            Row("dispatch, memory", f"{ours:,.0f}/s", f"LiteLLM Router {peer:,.0f}/s", ours / peer,
                "60 x", ours / peer >= 60)
        )  # fmt: skip
    return rows + durable(quick, count)


def durable(quick: bool, count: int) -> list[Row]:
    many = 20_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        numbers = iter(range(1000))

        def measure(waiting: int) -> float:
            store = f"sqlite:///{place}/{next(numbers)}.db"
            return asyncio.run(through_us(store, count, waiting))

        shallow = best(lambda: measure(1_000))
        deep = best(lambda: measure(many), 1 if not quick else 2)
        naive = naive_sqlite(place / "naive.db", 300)
    return [
        Row("dispatch, SQLite FULL, 1,000 waiting", f"{shallow:,.0f}/s",
            f"a commit per step {naive:,.0f}/s", shallow / naive, "8,000/s", shallow >= 8_000),
        Row(f"dispatch, SQLite FULL, {many:,} waiting", f"{deep:,.0f}/s",
            f"1,000 waiting {shallow:,.0f}/s", deep / shallow, "1/1.3 = 0.77 x", deep >= 0.77 * shallow),
    ]  # fmt: skip
