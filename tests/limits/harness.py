"""How much of a provider's limit does a way of sending use, and how often is it refused?

In virtual time: an hour takes seconds. Utilisation is a lower bound on the time any client needs,
divided by the time this one took:

    T = max( max over limits of (Σ charges − burst) / rate + shortest latency,
             Σ latencies / concurrency, longest latency )

and for fixed windows (⌈Σ charges / limit⌉ − 1) windows in place of the first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from scheduler import Limits, RateLimited, Request, Scheduler
from scheduler.providers.simulated.limits import Bucket, Window
from scheduler.providers.simulated.provider import Simulated, Spread
from scheduler.testing import VirtualClock, run

TWO_SECONDS = Spread(2.0, 0.3)
PRICE = {"sim-small": "0/0"}


@dataclass(frozen=True)
class Workload:
    """What is asked, and how fast the provider lets it through."""

    style: str
    count: int = 4000
    rpm: int | None = 600
    tpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    concurrent: int | None = None
    latency: Spread = TWO_SECONDS
    prompt_words: tuple[int, int] = (5, 30)
    max_tokens: int = 600
    seed: int = 0

    def provider(self) -> Measured:
        return Measured(
            seed=self.seed, style=self.style, rpm=self.rpm, tpm=self.tpm, itpm=self.itpm,
            otpm=self.otpm, concurrent=self.concurrent, latency=self.latency,
            output_tokens=Spread(200, 0.5), prices=PRICE,
        )  # fmt: skip

    def requests(self) -> list[Request]:
        rng = random.Random(self.seed)
        return [
            Request.chat(
                "sim-small", f"{n} " + "word " * rng.randint(*self.prompt_words),
                max_tokens=self.max_tokens,
            )
            for n in range(self.count)
        ]  # fmt: skip

    @property
    def limits(self) -> Limits:
        return Limits(self.rpm, self.tpm, self.itpm, self.otpm)


class Measured(Simulated):
    """Notes what each accepted call took from the limits, and for how long it ran."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.taken: dict[str, float] = {}
        self.latencies_s: list[float] = []

    def reply(self, url: str, body: Any) -> Any:
        reply = super().reply(url, body)
        charge = reply.charge
        if charge is not None and reply.status == 200:
            self.latencies_s.append(reply.wait_s)
            used = charge.input + charge.output
            tokens = used if self.limiter.style.corrects else charge.tokens
            for unit, amount in (("requests", 1), ("tokens", tokens),
                                 ("input-tokens", charge.input), ("output-tokens", charge.output)):  # fmt: skip
                self.taken[unit] = self.taken.get(unit, 0) + amount
        return reply

    def lower_bound_s(self, concurrency: int, with_burst: bool = True) -> float:
        """No client can be quicker; without the burst: none that never uses it."""
        by_limit = [
            _least_s(bucket, self.taken[bucket.unit], with_burst) + min(self.latencies_s)
            for bucket in self.limiter.buckets
        ]
        return max([*by_limit, sum(self.latencies_s) / concurrency, max(self.latencies_s)])


def _least_s(bucket: Bucket, taken: float, with_burst: bool) -> float:
    """How long a limit keeps the last of them waiting.

    A fixed window gives nothing back before it ends: so many whole windows must pass.
    """
    if isinstance(bucket, Window) and with_burst:
        return (math.ceil(taken / bucket.holds - 1e-9) - 1) * bucket.span_s
    return max(0.0, taken - with_burst * bucket.holds) * 60 / bucket.per_minute


@dataclass
class Result:
    """What came of it."""

    utilisation: float
    steady: float  # the same without what may go at once in the beginning
    refused_share: float
    makespan_s: float
    provider: Measured = field(repr=False)


Policy = Callable[[Workload, Measured, int], Awaitable[None]]


def measure(workload: Workload, policy: Policy, concurrency: int = 256) -> Result:
    """Run a workload in virtual time."""
    provider = workload.provider()

    async def main() -> float:
        began_s = asyncio.get_running_loop().time()
        await policy(workload, provider, concurrency)
        return asyncio.get_running_loop().time() - began_s

    makespan_s = run(main())
    at_once = min(concurrency, workload.concurrent or concurrency)
    return Result(
        provider.lower_bound_s(at_once) / makespan_s,
        provider.lower_bound_s(at_once, with_burst=False) / makespan_s,
        provider.limiter.refused / workload.count,
        makespan_s,
        provider,
    )


async def given(workload: Workload, provider: Measured, concurrency: int) -> None:
    """The scheduler, told the limits and how the provider counts."""
    provider.limits, provider.counting = workload.limits, COUNTED_AS[workload.style]
    await learned(workload, provider, concurrency)


async def learned(workload: Workload, provider: Measured, concurrency: int) -> None:
    """The scheduler, told nothing."""
    async with Scheduler(
        providers=provider, prices=PRICE, clock=VirtualClock(), concurrency=concurrency
    ) as s:
        for future in [s.submit(request) for request in workload.requests()]:
            await future


COUNTED_AS = {
    "plain": "default", "openai": "openai", "openai-per-second": "openai-per-second",
    "azure": "azure", "anthropic": "anthropic", "groq": "groq", "window": "window",
    "silent": "default", "silent-minute": "default", "concurrent": "default",
}  # fmt: skip


async def backoff(workload: Workload, provider: Measured, concurrency: int) -> None:
    """What people write: a semaphore, and exponential backoff with full jitter."""
    await _each(workload, provider, asyncio.Semaphore(64), None)


async def aiolimiter(workload: Workload, provider: Measured, concurrency: int) -> None:
    """A leaky bucket at the limit before the same."""
    from aiolimiter import AsyncLimiter

    class Rounded(AsyncLimiter):
        """In virtual time a rounding error of its sums would never be waited off."""

        def _leak(self) -> None:
            super()._leak()
            self._level = round(self._level, 6)

    limiter = None if workload.rpm is None else Rounded(workload.rpm, 60)
    await _each(workload, provider, asyncio.Semaphore(concurrency), limiter)


async def _each(
    workload: Workload, provider: Measured, semaphore: asyncio.Semaphore, limiter: Any
) -> None:
    rng = random.Random(workload.seed)

    async def one(request: Request) -> None:
        async with semaphore:
            for attempt in range(1000):
                if limiter is not None:
                    await limiter.acquire()
                try:
                    await provider.send(request)
                    return
                except RateLimited as error:
                    wait_s = rng.uniform(0, min(60.0, 0.5 * 2 ** min(attempt, 10)))
                    await asyncio.sleep(max(wait_s, (error.retry_after_ms or 0) / 1000))

    await asyncio.gather(*map(one, workload.requests()))
