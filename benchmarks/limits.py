"""How much of a rate limit does a way of sending use, and how often is it refused?

In virtual time over several seeds and styles of provider, and once over real HTTP. The policies:
a semaphore with exponential backoff and full jitter that heeds Retry-After; aiolimiter at the
stated limit of requests before the same; the scheduler that was told the limits; the scheduler that learns.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from dataclasses import replace

from benchmarks.harness import Row
from scheduler import Limits, OpenAI, RateLimited, Request, Scheduler
from scheduler.providers.simulated.server import running_server
from tests.limits.harness import (
    PRICE,
    Policy,
    Workload,
    aiolimiter,
    backoff,
    given,
    learned,
    measure,
)

POLICIES: dict[str, Policy] = {
    "semaphore + backoff": backoff,
    "aiolimiter": aiolimiter,
    "scheduler, told": given,
    "scheduler, learning": learned,
}
BINDING_RPM = 600
WORKLOADS = {
    "openai, 600 requests/min": Workload("openai"),
    "openai, per second": Workload("openai-per-second"),
    "openai, 600,000 tokens/min": Workload("openai", rpm=6000, tpm=600_000),
    "anthropic, 600 requests/min": Workload("anthropic"),
    "anthropic, 100,000 output/min": Workload("anthropic", rpm=6000, otpm=100_000),
    "azure, 600 requests/min": Workload("azure"),
    "fixed windows": Workload("window"),
    "silent, a second's bucket": Workload("silent"),
    "silent, a minute's bucket": Workload("silent-minute"),
    "20 calls at once": Workload("concurrent", rpm=None, concurrent=20),
}


def run(quick: bool) -> list[Row]:
    """One row for each provider and policy: the lowest utilisation and the most refusals of all seeds."""
    seeds = (1,) if quick else (1, 2, 3)
    rows = []
    for name, workload in WORKLOADS.items():
        worst = {}
        for policy, send in POLICIES.items():
            if send is aiolimiter and workload.rpm != BINDING_RPM:
                continue  # it limits requests, and something else binds here
            results = [measure(replace(workload, seed=seed), send) for seed in seeds]
            used = min(result.utilisation for result in results)
            refused = max(result.refused_share for result in results)
            worst[policy] = (used, refused)
        for policy, (used, refused) in worst.items():
            if policy.startswith("scheduler"):
                rows.append(_row(f"{name}: {policy}", used, refused, worst["semaphore + backoff"]))
        if "aiolimiter" in worst:
            peer = worst["semaphore + backoff"]
            rows.append(_row(f"{name}: aiolimiter", *worst["aiolimiter"], peer))
    return rows + asyncio.run(_over_http(60 if quick else 300))


def _row(name: str, used: float, refused: float, peer: tuple[float, float]) -> Row:
    return Row(
        name, f"{used:.1%} used, {refused:.2%} refused",
        f"semaphore + backoff: {peer[0]:.1%}, {peer[1]:.2%}", used / peer[0], "", None,
    )  # fmt: skip


async def _over_http(count: int) -> list[Row]:
    """The same with real time and bytes: 1,200 requests a minute, a second's worth at once."""
    options = ("--rpm", "1200", "--style", "openai-per-second", "--latency", "200ms")
    told = []
    for name in ("scheduler, told", "semaphore + backoff"):
        with running_server(*options) as url:
            provider = OpenAI(base_url=url, api_key="sk-test")
            provider.counting = "openai-per-second"
            requests = [Request.chat("sim-small", f"{n}", max_tokens=5) for n in range(count)]
            began_s = time.perf_counter()
            if name.startswith("scheduler"):
                provider.limits = Limits(requests_per_minute=1200)
                async with Scheduler(providers=provider, prices=PRICE) as s:
                    await asyncio.gather(*map(s.run, requests))
            else:
                await _backing_off(provider, requests)
            took_s = time.perf_counter() - began_s
            bound_s = (count - 20) / 20 + 0.2
            bill = await asyncio.to_thread(_bill, url)
            told.append((bound_s / took_s, (bill["received"] - bill["calls"]) / count))
            await provider.aclose()
    ours, peer = told
    return [_row("over HTTP, 1,200/min: scheduler, told", *ours, peer)]


def _bill(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/billed") as answer:
        told: dict[str, int] = json.load(answer)
    return told


async def _backing_off(provider: OpenAI, requests: list[Request]) -> None:
    semaphore, rng = asyncio.Semaphore(64), random.Random(1)

    async def one(request: Request) -> None:
        async with semaphore:
            for attempt in range(1000):
                try:
                    await provider.send(request)
                    return
                except RateLimited as error:
                    wait_s = rng.uniform(0, min(60.0, 0.5 * 2 ** min(attempt, 10)))
                    await asyncio.sleep(max(wait_s, (error.retry_after_ms or 0) / 1000))

    await asyncio.gather(*map(one, requests))
