"""The invariants, each by its name, on the whole system in virtual time.

A seeded storm of requests, failures, cancellations, raises and cuts runs against a
provider that keeps its own bill. After every transaction the ledger is compared
with it. Those invariants that are about one room alone have their tests there.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from scheduler import Budget, CallFailed, RequestRejected, Scheduler, events
from scheduler.errors import ProviderRefused, RateLimited, TransportFailed
from scheduler.stores.memory import MemoryStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

CEILING, LIMIT = 100, 1000


class Watched(MemoryStore):
    """A memory store that checks the books after every turn."""

    def __init__(self, provider: Bench) -> None:
        super().__init__()
        self.provider, self.limits = provider, {}
        self.claimed, self.settled = set(), set()
        self.turns = 0

    async def turn(self, turn):
        held_before = {b.budget.name: b.caps[0].posted + b.caps[0].reserved for b in self.latest()}
        result = await super().turn(turn)
        self.turns += 1
        for settlement, is_first in zip(turn.settle, result.settled, strict=True):
            if is_first:
                assert settlement.reservation_id not in self.settled  # invariant 2
                self.settled.add(settlement.reservation_id)
        for claimed in result.claimed:
            assert claimed.reservation_id not in self.claimed
            self.claimed.add(claimed.reservation_id)
        if result.claimed:
            for status in self.latest():
                cap = status.caps[0]
                if (
                    cap.limit is not None
                    and cap.posted + cap.reserved > held_before[status.budget.name]
                ):
                    assert cap.posted + cap.reserved <= cap.limit  # invariant 1
        audit = await self.audit(turn.now_ms)
        assert audit.discrepancies == ()  # invariant 10
        return result


def storm(seed: int, unbounded: bool = False):
    """One seed's run; returns the provider, the store and how every request ended."""

    async def main():
        rng = random.Random(seed)
        provider = Bench(ceiling_nusd=CEILING)
        store = Watched(provider)
        sent_with: set[int] = set()

        async def before(request):
            assert len(store.claimed) > len(sent_with)  # invariant 3: a reservation came first
            sent_with.add(id(request) ^ len(sent_with))

        provider.before = before
        ended: list[object] = []
        budgets = [Budget("org", "$0.000001/hour"), Budget("team", "$0.0000005/10m", parent="org")]
        async with Scheduler(
            store, budgets=budgets, providers=provider, concurrency=8, clock=VirtualClock(),
            retry_wait_s=lambda attempt: rng.choice([0.0, 5.0, 60.0]),
        ) as s:  # fmt: skip
            s.on(events.Settled, lambda event: check_bill(provider, s, unbounded))
            tasks = [asyncio.create_task(one(s, rng.random(), i)) for i in range(60)]
            helper = asyncio.create_task(meddle(s, rng))
            ended += await asyncio.gather(*tasks, return_exceptions=True)
            helper.cancel()
            await asyncio.gather(helper, return_exceptions=True)
            await s.join()
            check_bill(provider, s, unbounded)
            stats, counts = s.stats(), await store.counts()
        return provider, store, ended, stats, counts

    return run(main())


def check_bill(provider, s, unbounded):
    """Invariant 4: what the ledger counts is never below what was billed."""
    stats = s.stats()
    counted = stats.posted_nusd + stats.reserved_nusd + stats.suspense_nusd
    assert counted >= provider.billed_nusd or unbounded


async def one(s, luck: float, i: int):
    rng = random.Random(luck)
    await asyncio.sleep(rng.random() * 1800)
    failure = rng.choice(
        [None] * 6
        + [TransportFailed("refused", is_billed=False), TransportFailed("reset"),
           ProviderRefused(400, "no"), RateLimited(429, "busy", retry_after_ms=3000), ValueError("odd")]
    )  # fmt: skip
    if isinstance(failure, RateLimited):
        failure = None  # refused for ever would be tried for ever
    request = ask(
        i,
        seconds=rng.choice([0, 0.5, 20, 400]),
        cost=rng.randint(0, CEILING),
        ceiling=rng.choice([CEILING, 40, 10]) if failure else CEILING,
        fail=failure,
        budget="team",
        priority=rng.choice(["interactive", "normal", "batch", "idle"]),
        max_wait=rng.choice([None, None, "20m"]),
    )
    if failure is not None:
        request.body["cost"] = min(request.body["cost"], request.body["ceiling"])
    future = s.submit(request, on_exceeded=rng.choice(["wait", "wait", "wait", "raise"]))
    if rng.random() < 0.15:
        await asyncio.sleep(rng.random() * 600)
        future.cancel()
    return await future


async def meddle(s, rng):
    while True:
        await asyncio.sleep(rng.random() * 900)
        await s.set_limit("team", rng.choice(["$0.0000001", "$0.0000005", "$0.000001", None]))


@pytest.mark.parametrize("seed", range(40))
def test_the_books_are_right_after_every_step_of_a_storm(seed):
    provider, store, ended, stats, counts = storm(seed)

    assert store.turns > 50
    assert len(provider.sent) <= len(store.claimed)  # invariant 3
    assert store.settled == store.claimed  # invariant 2: none left open
    assert stats.reserved_nusd == 0
    assert counts.total == 60  # invariant 5
    assert counts.running == counts.waiting == 0
    allowed = (asyncio.CancelledError, CallFailed, RequestRejected)
    assert all(not isinstance(end, BaseException) or isinstance(end, allowed) for end in ended)
    answered = sum(not isinstance(end, BaseException) for end in ended)
    assert answered == counts.succeeded > 0


def test_what_was_never_sent_costs_nothing():
    async def main():
        provider = Bench()
        async with Scheduler(
            budgets=Budget("team", "$0"), providers=provider, clock=VirtualClock()
        ) as s:
            futures = [s.submit(ask(max_wait="1m")) for _ in range(5)]
            futures[0].cancel()
            await asyncio.gather(*futures, return_exceptions=True)
            cap = s.stats().budgets[0].caps[0]
            assert (provider.sent, cap.posted, cap.reserved) == ([], 0, 0)

    run(main())


def test_a_storm_is_the_same_every_time():
    first, second = storm(7), storm(7)

    assert [r.body["n"] for r in first[0].sent] == [r.body["n"] for r in second[0].sent]
    assert first[4] == second[4]
