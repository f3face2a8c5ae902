"""Cancelled at any step: nothing leaks, and only what was sent counts.

A step is one round of the event loop. Every test runs the same small world again and again
and strikes one step later each time, until the world has ended by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scheduler import Budget, Scheduler
from scheduler.clock import SystemClock
from scheduler.request import RequestState
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench, ask

STEPS = 60  # more than the small world takes on the memory store
LIMIT = "$0.000000150"  # one call at a time fits
RUNNING = (RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING)


async def rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def check_books(s: Scheduler, provider: Bench) -> None:
    """Nothing is pending, the ledger covers the bill, and what was not sent costs nothing."""
    async with asyncio.timeout(60):
        await s.join()
    now_ms = SystemClock().now_ms()
    (status,) = await s.store.budgets(now_ms)
    cap = status.caps[0]
    assert cap.reserved == cap.suspense
    assert provider.billed_nusd <= cap.posted + cap.suspense <= 100 * len(provider.sent)
    assert (await s.store.audit(now_ms)).discrepancies == ()
    assert await s.store.queue(RUNNING, now_ms) == []
    assert s._pump is not None
    assert (s._pump._desk.waiters.ids(), s._pump._flight.calls, s._pump._tries._tried) == (
        [],
        {},
        {},
    )
    assert s._pump._flight.slots == {"bench": s.concurrency}
    lanes = s.store.lanes()
    assert lanes == []
    # And it works on.
    await s.set_limit("team", None)
    assert (await s.run(ask(99, budget="team"))).body == {"answer": 99}


Strike = Callable[[Scheduler, list[asyncio.Future]], Awaitable[None]]


async def one_future(s: Scheduler, futures: list[asyncio.Future]) -> None:
    futures[0].cancel()


async def all_futures(s: Scheduler, futures: list[asyncio.Future]) -> None:
    for future in futures:
        future.cancel()


async def every_second_and_then_the_rest(s: Scheduler, futures: list[asyncio.Future]) -> None:
    for future in futures[::2]:
        future.cancel()
    await rounds(1)
    for future in futures[1::2]:
        future.cancel()


async def and_asked_again(s: Scheduler, futures: list[asyncio.Future]) -> None:
    """The same key, in the moment its only caller loses interest."""
    futures[1].cancel()
    again = s.submit(ask(1, budget="team", key="k1", seconds=0.001))
    await s.set_limit("team", None)
    assert (await again).body == {"answer": 1}


STRIKES = [one_future, all_futures, every_second_and_then_the_rest, and_asked_again]


async def small_world(store, steps: int, strike: Strike) -> None:
    """Four requests, of which one fits at a time; after `steps` rounds something is cancelled."""
    provider = Bench()
    async with Scheduler(
        store, budgets=Budget("team", LIMIT), providers=provider, concurrency=2
    ) as s:
        futures = [
            s.submit(ask(n, budget="team", key="k1" if n == 1 else None, seconds=0.001 * (n % 2)))
            for n in range(4)
        ]
        await rounds(steps)
        await strike(s, futures)
        await asyncio.sleep(0)
        await s.set_limit("team", None)
        ended = await asyncio.gather(*futures, return_exceptions=True)
        for n, end in enumerate(ended):
            assert isinstance(end, asyncio.CancelledError) or end.body == {"answer": n}
        await check_books(s, provider)


@pytest.mark.parametrize("strike", STRIKES)
async def test_futures_cancelled_at_any_step_in_memory(strike):
    for steps in range(STEPS):
        await small_world(None, steps, strike)


@pytest.mark.parametrize("strike", STRIKES)
async def test_futures_cancelled_at_any_step_on_a_file(strike, tmp_path):
    for steps in range(0, 24, 3):
        await small_world(SqliteStore(tmp_path / f"{steps}.db"), steps, strike)


@pytest.mark.parametrize("steps", range(0, 40, 2))
async def test_a_task_group_torn_down_at_any_step(steps):
    provider = Bench()

    class Enough(Exception):
        pass

    async def tear_down():
        await rounds(steps)
        raise Enough

    async def gathered(s):
        async with asyncio.TaskGroup() as group:
            for n in range(4):
                group.create_task(s.run(ask(n, budget="team", seconds=0.001)))
            group.create_task(tear_down())

    async with Scheduler(budgets=Budget("team", LIMIT), providers=provider, concurrency=2) as s:
        with pytest.raises(ExceptionGroup):
            await gathered(s)
        await check_books(s, provider)


@pytest.mark.parametrize("steps", range(0, 40, 2))
async def test_leaving_a_map_at_any_step(steps):
    provider = Bench()
    async with Scheduler(budgets=Budget("team", LIMIT), providers=provider, concurrency=2) as s:

        async def read():
            async for _ in s.map(ask(n, budget="team") for n in range(8)):
                await asyncio.sleep(0)

        reading = asyncio.create_task(read())
        await rounds(steps)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await rounds(3)
        await check_books(s, provider)


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("steps", range(0, 20, 2))
async def test_closing_at_any_step_leaves_a_file_that_goes_on(steps, drain, tmp_path):
    path: Path = tmp_path / "s.db"
    provider = Bench()
    s = Scheduler(path, budgets=Budget("team", LIMIT), providers=provider, concurrency=2)
    async with s:
        futures = [s.submit(ask(n, budget="team", key=f"k{n}")) for n in range(4)]
        await rounds(steps)
        closing = asyncio.create_task(s.aclose(drain=drain))
        await rounds(1)
        closing.cancel()  # whoever waits for it may go; the closing itself goes on
        await asyncio.gather(closing, *futures, return_exceptions=True)
    assert all(future.done() for future in futures)

    async with Scheduler(path, budgets=Budget("team", None), providers=provider) as again:
        answers = await asyncio.gather(
            *(again.run(ask(n, budget="team", key=f"k{n}")) for n in range(4))
        )
        assert [answer.body for answer in answers] == [{"answer": n} for n in range(4)]
        await check_books(again, provider)
