"""Over real HTTP to a server in another process, with a durable ledger."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
from pathlib import Path

from benchmarks.harness import Row, best, watched
from scheduler import Budget, OpenAI, Request, Scheduler
from scheduler.providers.simulated.server import running_server

CONCURRENCY = 256
MESSAGES = [{"role": "user", "content": "hi"}]


async def through_us(url: str, store: Path, count: int) -> float:
    budget = Budget("team", "$1000/day")
    prices = {"sim-small": "0.15/0.60"}
    async with Scheduler(
        store,
        budgets=budget,
        providers=OpenAI(base_url=url),
        prices=prices,
        concurrency=CONCURRENCY,
    ) as s:
        await s.run(Request.chat("sim-small", "warm up", max_tokens=5))
        with watched() as watch:
            requests = [Request.chat("sim-small", "hi", max_tokens=5) for _ in range(count)]
            await asyncio.gather(*[s.submit(request) for request in requests])
    return count / watch.wall_s


async def through_sdk(url: str, count: int) -> float:
    import openai

    gate = asyncio.Semaphore(CONCURRENCY)
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:

        async def one() -> object:
            async with gate:
                return await client.chat.completions.create(
                    model="sim-small", messages=MESSAGES, max_tokens=5
                )

        await one()
        with watched() as watch:
            await asyncio.gather(*[one() for _ in range(count)])
    return count / watch.wall_s


def run(quick: bool) -> list[Row]:
    count = 1_000 if quick else 8_000
    with tempfile.TemporaryDirectory() as folder, running_server() as url:
        numbers = iter(range(100))
        ours = best(
            lambda: asyncio.run(through_us(url, Path(folder) / f"{next(numbers)}.db", count))
        )
        if importlib.util.find_spec("openai") is None:
            return [
                Row(
                    "HTTP, durable",
                    f"{ours:,.0f}/s",
                    "openai SDK: not installed",
                    None,
                    "12 x",
                    None,
                )
            ]
        sdk = asyncio.run(through_sdk(url, max(100, count // 10)))
    return [
        Row("HTTP, durable", f"{ours:,.0f}/s", f"openai SDK {sdk:,.0f}/s", ours / sdk, "12 x",
            ours / sdk >= 12)
    ]  # fmt: skip
