"""What the shell does in one step of the event loop, and what it holds on to, however many wait."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from typing import ClassVar

import pytest

from scheduler import Budget, DeadlineExceeded, FunctionProvider, Scheduler
from scheduler.core.steps import STEP
from scheduler.errors import BudgetExceeded, SchedulerError
from scheduler.stores.memory import MemoryStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

MANY = 4_000


class Forgetful(Bench):
    """Holds on to nothing that it was sent."""

    async def send(self, request):
        answer = await super().send(request)
        self.sent.clear()
        return answer


class Watched(MemoryStore):
    """Knows how much its turns brought, and did."""

    def __init__(self):
        super().__init__()
        self.most = 0

    async def turn(self, turn):
        result = await super().turn(turn)
        brought = len(turn.submit) + len(turn.cancel) + len(turn.amend)
        self.most = max(self.most, brought, len(result.expired))
        return result


class Rounds:
    """Counts how often the event loop has gone round, and what ended in each round."""

    def __init__(self):
        self.count, self.ended = 0, Counter()
        loop = asyncio.get_running_loop()
        once = loop._run_once

        def counted():
            self.count += 1
            once()

        loop._run_once = counted

    def watch(self, futures):
        for each in futures:
            each.add_done_callback(lambda _: self.ended.update([self.count]))


def in_steps(do, budget="$0", **options):
    """Run `do(s, rounds)`, and see to it that no turn of the store was large."""

    async def main():
        store = Watched()
        async with Scheduler(
            store, providers=Forgetful(), budgets=Budget("team", budget), clock=VirtualClock(),
            **options,
        ) as s:  # fmt: skip
            await do(s, Rounds())
        assert store.most <= 2 * store.most_per_turn

    run(main())


async def submit_all(s, many=MANY, **options):
    futures = [s.submit(ask(n, **options)) for n in range(many)]
    while not all(each.request_id for each in futures):
        await asyncio.sleep(0)
    return futures


def test_many_submissions_are_stored_in_steps():
    async def do(s, rounds):
        await submit_all(s)
        assert rounds.count >= MANY // s.store.most_per_turn
        assert s.stats().parked == {"larger_than_limit": MANY}

    in_steps(do)


def test_many_are_enqueued_in_steps_and_all_are_there_in_the_end():
    async def do(s, rounds):
        done = await s.enqueue([ask(n, key=f"k{n}") for n in range(MANY)])
        assert rounds.count >= MANY // s.store.most_per_turn
        assert len({each.id for each in done}) == MANY
        assert (await s.store.counts()).parked == MANY

    in_steps(do)


@pytest.mark.parametrize("term", ["deadline", "max_wait"])
def test_many_whose_time_ends_at_one_instant_end_in_steps_and_none_is_sent(term):
    async def do(s, rounds):
        futures = await submit_all(s, **{term: "60s"})
        rounds.watch(futures)
        await asyncio.sleep(59.9)
        assert not any(each.done() for each in futures)
        await s.set_limit("team", "$1")  # a little later there would be enough for them
        await s.pause("team")
        await asyncio.sleep(0.1)
        await s.resume("team")
        await asyncio.wait(futures)
        assert all(isinstance(each.exception(), DeadlineExceeded) for each in futures)
        assert max(rounds.ended.values()) <= 2 * STEP
        assert s.stats().expired == MANY

    async def paused(s, rounds):
        await s.pause("team")
        await do(s, rounds)

    in_steps(paused)


def test_many_cancelled_at_once_are_taken_out_in_steps_and_their_keys_are_free():
    async def do(s, rounds):
        futures = await submit_all(s, tags={})
        keyed = [s.submit(ask(n, key=f"k{n}")) for n in range(MANY)]
        await asyncio.sleep(0.1)
        begun = rounds.count
        for each in [*futures, *keyed]:
            each.cancel()
        again = [s.submit(ask(n, key=f"k{n}")) for n in range(MANY)]
        await asyncio.sleep(0.1)
        assert rounds.count - begun >= 3 * MANY // s.store.most_per_turn
        assert (await s.store.counts()).parked == MANY
        await s.set_limit("team", "$1")
        assert len({(await each).key for each in again}) == MANY
        assert s.stats().cancelled == 2 * MANY or s.stats().cancelled == MANY

    in_steps(do)


def test_many_that_are_cancelled_before_they_are_stored_never_are():
    async def do(s, rounds):
        for each in [s.submit(ask(n)) for n in range(MANY)]:
            each.cancel()
        await s.join()
        assert s.stats().cancelled == MANY
        assert s.store.most == 0

    in_steps(do)


def test_many_callers_of_one_key_who_give_up_at_one_instant_do_so_in_steps():
    async def do(s, rounds):
        patient = s.submit(ask(1, key="k"))
        futures = [s.submit(ask(1, key="k", max_wait="60s")) for _ in range(MANY // 4)]
        await asyncio.sleep(1)
        await asyncio.wait(futures)
        assert all(isinstance(each.exception(), DeadlineExceeded) for each in futures)
        assert not patient.done()

    in_steps(do)


def test_many_that_may_not_wait_are_refused_in_steps():
    async def do(s, rounds):
        futures = [s.submit(ask(n), on_exceeded="raise") for n in range(MANY)]
        rounds.watch(futures)
        await asyncio.wait(futures)
        assert all(isinstance(each.exception(), BudgetExceeded) for each in futures)
        assert max(rounds.ended.values()) <= 2 * STEP

    in_steps(do)


def test_other_work_has_its_turn_while_many_are_seen_to():
    async def do(s, rounds):
        [s.submit(ask(n)) for n in range(MANY)]
        urgent = s.submit(ask(0, budget=(), priority="interactive"))
        assert (await urgent).cost_nusd == 60

    in_steps(do)


@pytest.mark.parametrize("concurrency", [STEP + 6, 3 * STEP])
def test_calls_that_end_together_are_settled_together(concurrency):
    # The last are begun some steps after the first: a turn between their ends would be one more
    # for each of both halves, from then on.
    class Settles(MemoryStore):
        counts: ClassVar[list[int]] = []

        async def turn(self, turn):
            self.counts.append(len(turn.settle))
            return await super().turn(turn)

    async def answer(request):
        return {"text": "ok"}

    async def main():
        provider = FunctionProvider("f", answer, quote="0.001", cost="0.001")
        async with Scheduler(
            Settles(), providers=provider, clock=VirtualClock(), concurrency=concurrency
        ) as s:
            await asyncio.gather(*[s.submit(ask(n, budget=())) for n in range(2 * MANY)])

    run(main())
    begun = Settles.counts.index(concurrency)  # when so many had been answered that all may go
    *full, last = filter(None, Settles.counts[begun:])
    assert full == [concurrency] * len(full)
    assert last <= concurrency


# What is held on to


class Mark:
    """Lives as long as a request that holds it."""


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_map_holds_what_it_has_taken_ahead_and_nothing_that_was_given_back(ordered, fails):
    alive = weakref.WeakSet()
    seen = []

    def requests():
        for n in range(2_000):
            mark = Mark()
            alive.add(mark)
            yield ask(n, metadata=mark, max_cost="$0.00000001" if fails else None)

    async def do(s, rounds):
        async for given in s.map(requests(), ordered=ordered, window=50, return_exceptions=True):
            assert isinstance(given, SchedulerError) is fails
            if given.index % 400 == 399:
                gc.collect()
                seen.append(len(alive))

    in_steps(do, budget="$1", concurrency=8)
    # Besides those ahead, what calls that ended a moment ago still hold.
    assert max(seen) <= 50 + 3 * 8


def test_a_stream_of_keys_leaves_nothing_behind_but_what_is_kept():
    async def main():
        store = MemoryStore(keep_finished=100)
        async with Scheduler(store, providers=Forgetful(), clock=VirtualClock()) as s:
            for start in range(0, 6_000, 500):
                await asyncio.gather(
                    *(s.run(ask(n, key=f"k{n}")) for n in range(start, start + 500))
                )
            pump = s._pump
            assert len(store._delivered) <= 3_000
            assert len(store._rows) <= 120
            assert not pump._desk.waiters.ids()
            assert not pump._desk.read
            assert not pump._tries._tried

    run(main())
