"""What wrapping an SDK's client costs per call, beside the same SDK bare, in turns in one run."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, watched
from scheduler import Budget, Scheduler
from scheduler.providers.simulated.server import running_server

MESSAGES = [{"role": "user", "content": "hi"}]
CONCURRENCY = 32
ROUNDS = 5


async def cpu_us(client: Any, count: int) -> float:
    """Microseconds of processor time a call."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one() -> None:
        async with gate:
            await client.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=5)

    await one()
    with watched() as watch:
        await asyncio.gather(*[one() for _ in range(count)])
    return watch.cpu_s / count * 1e6


async def compare(url: str, store: Path | None, count: int) -> tuple[float, float]:
    import openai

    options: dict[str, Any] = {"base_url": url, "api_key": "x", "max_retries": 0}
    prices = {"sim-small": "0.15/0.60"}
    bare, wrapped = [], []
    async with (
        Scheduler(store, budgets=Budget("team", "$1000/day"), prices=prices) as s,
        openai.AsyncOpenAI(**options) as plain,
        openai.AsyncOpenAI(**options) as other,
    ):
        through_us = s.wrap(other)
        for _ in range(ROUNDS):  # in turns, so that both meet the same minutes
            bare.append(await cpu_us(plain, count))
            wrapped.append(await cpu_us(through_us, count))
    return statistics.median(bare), statistics.median(wrapped)


def run(quick: bool) -> list[Row]:
    if importlib.util.find_spec("openai") is None:
        return [Row("wrap", "-", "openai SDK: not installed", None, "1.5 x", None)]
    count = 100 if quick else 500
    rows = []
    with tempfile.TemporaryDirectory() as folder, running_server() as url:
        for name, store in (("in memory", None), ("in a file", Path(folder) / "s.db")):
            bare, wrapped = asyncio.run(compare(url, store, count))
            ratio = wrapped / bare
            ours = f"{wrapped:,.0f} µs CPU a call (+{wrapped - bare:,.0f})"
            rows.append(
                Row(f"openai SDK, wrapped, {name}", ours, f"bare {bare:,.0f} µs", ratio, "< 1.5 x",
                    ratio < 1.5)
            )  # fmt: skip
    return rows
