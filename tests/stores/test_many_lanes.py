"""What opens, counts and lists many lanes or requests costs a page of them, not all there are."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from unittest import mock

from scheduler import Budget, FunctionProvider, Request, Scheduler
from scheduler.admission.plan import LaneKey, LaneView, Planner, Verdict
from scheduler.budget import Unit
from scheduler.ledger.account import FAR
from scheduler.limits import Gates
from scheduler.request import RequestState, Tokens
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stores.base import Turn
from scheduler.stores.lanes import MOST_IDLE, MOST_OPENED, Lanes
from scheduler.stores.lineup import Lineup
from scheduler.stores.memory import MemoryStore
from scheduler.stores.process import Process
from scheduler.testing import VirtualClock, run
from tests.simulation.stores import InlineSqlite
from tests.stores.conformance import new

LACK = Shortfall(ParkReason.WINDOW_SPENT, "b", Unit.USD, 1, 1, 0, 1, 1, 5, "UTC", "day")


@dataclass
class Waiting:
    id: int
    needs = (0, 0, 1)
    tokens = Tokens()


def a_book(number, *, resumes_at_ms=None, budgets=lambda each: (1,)):
    book, ids = Lanes(), count(1)
    for each in range(number):
        lane = book.get(LaneKey("p", budgets(each), 10 + each % 3, True, f"m{each}"), ids.__next__)
        book.add(lane, (FAR, lane.id))
        book.settle(lane, Verdict(LACK, resumes_at_ms=resumes_at_ms), (FAR, lane.id), 0)
    return book


def opened(book):
    return [lane for lane in book if lane.shortfall is None]


def is_by_priority(book, before):
    """Whether no lane that is shut is more urgent than one opened since."""
    shut = [lane.key.priority for lane in book if lane.shortfall is not None]
    new = [lane.key.priority for lane in opened(book) if lane.id not in before]
    return not shut or max(new) <= min(shut)


def test_a_raise_that_many_lanes_wait_for_opens_them_bit_by_bit_the_most_urgent_first():
    book = a_book(3 * MOST_OPENED)
    book.wake_on(1, 7)
    assert book.due_ms == 7, "the next turn goes on"

    steps, before = 0, set()
    while book.due_ms is not None:
        book.wake_due(7)
        assert len(opened(book)) - len(before) <= MOST_OPENED
        assert is_by_priority(book, before)
        steps, before = steps + 1, {lane.id for lane in opened(book)}
    assert (steps, len(before)) == (3, 3 * MOST_OPENED)


def test_a_reset_that_many_lanes_wait_for_opens_them_bit_by_bit_the_most_urgent_first():
    book = a_book(2 * MOST_OPENED + 1, resumes_at_ms=5)
    steps = 0
    while book.due_ms is not None:
        assert book.due_ms == 5
        before = {lane.id for lane in opened(book)}
        book.wake_due(5)
        assert is_by_priority(book, before)
        steps += 1
    assert (steps, len(opened(book))) == (3, 2 * MOST_OPENED + 1)


def test_a_provider_that_is_back_and_others_changes_open_bit_by_bit_as_well():
    for wake in (lambda book: book.wake_for({"p"}, 3), lambda book: book.wake_all(3)):
        book = a_book(MOST_OPENED + 5)
        wake(book)
        assert opened(book) == []
        book.wake_due(3)
        book.wake_due(3)
        assert len(opened(book)) == MOST_OPENED + 5


def test_a_change_of_one_budget_opens_its_own_lanes_at_once():
    book = a_book(3 * MOST_OPENED, budgets=lambda each: (each,))
    book.wake_on(17, 3)
    assert [lane.key.budgets for lane in opened(book)] == [(17,)]
    assert book.due_ms is None


def test_a_lane_shut_again_meanwhile_is_not_opened_by_what_is_over():
    book = a_book(MOST_OPENED + 1)
    book.wake_on(1, 3)
    lane = next(iter(book))
    book.reopen(lane, 3)
    book.settle(lane, Verdict(LACK), (FAR, lane.id), 3)
    book.wake_due(3)
    book.wake_due(3)
    assert lane.shortfall is LACK


def test_how_many_are_parked_is_kept_by_reason():
    book = a_book(5)
    lane = next(iter(book))
    book.add(lane, (FAR, 9), 3)
    assert book.parked == {"window_spent": 8}
    book.remove(lane, 0, 2)
    book.wake_on(1, 0)
    assert +book.parked == {}


def provider():
    return FunctionProvider(
        "p", lambda request: answer(request), quote="$0.000001", cost="$0.000001"
    )


async def answer(request):
    return {"text": "ok"}


def test_lanes_of_models_long_unused_are_forgotten_and_made_anew():
    store = MemoryStore()

    async def main():
        async with Scheduler(store, providers=provider(), clock=VirtualClock()) as s:
            for each in range(MOST_IDLE + 50):
                await s.run(Request({"model": f"m{each}"}))
            assert len(list(store._lanes)) <= MOST_IDLE + 1
            assert len(store._queues) == len(list(store._lanes))
            assert (await s.run(Request({"model": "m0"}))).body == {"text": "ok"}
            assert store._lanes._of_budget == {} or all(store._lanes._of_budget.values())

    run(main())


def test_counts_and_pages_are_those_of_the_rows():
    store = MemoryStore()

    async def main():
        budgets = [Budget("spent", "$0.0000001"), Budget("rich", "$9")]
        async with Scheduler(
            store, budgets=budgets, providers=provider(), clock=VirtualClock()
        ) as s:
            parked = [s.submit(Request({"model": "m"}, budget="spent", key=f"k{n}", job="a"))
                      for n in range(2_500)]  # fmt: skip
            for n in range(10):
                await s.run(Request({"model": "m"}, budget="rich", key=f"r{n}", job="b"))
            for _ in range(10):
                await s.run(Request({"model": "m"}, budget="rich"))
            parked[7].cancel()
            await s.run(Request({"model": "m"}, budget="rich"))

            counts = await store.counts()
            assert (counts.parked, counts.queued, counts.running) == (2_499, 0, 0)
            assert (counts.succeeded, counts.cancelled) == (21, 1)
            assert counts.parked_by_reason == {"larger_than_limit": 2_499}
            assert (await store.counts("b")).succeeded == 10
            assert (await store.counts("a")).parked == 2_499

            seen, after = [], 0
            while page := await store.queue([RequestState.PARKED], 0, limit=999, after_id=after):
                seen += [row.id for row in page]
                after = seen[-1]
            assert len(seen) == len(set(seen)) == 2_499
            assert seen == sorted(seen)
            assert len(await store.queue([RequestState.SUCCEEDED], 0, job="b")) == 10
            assert await store.queue([RequestState.PARKED], 0, job="b") == []
            for future in parked:
                future.cancel()

    run(main())


def test_a_provider_whose_places_are_taken_is_left_as_one_however_many_models_wait_there():
    book, ids = Lanes(), count(1)
    for each in range(1_000):
        lane = book.get(LaneKey("p", (), 10, True, f"m{each}"), ids.__next__)
        book.add(lane, (FAR, lane.id))
    met = Counter()

    def show(lanes):
        met.update(lane.id for lane in lanes)
        return [LaneView(lane.key, [], iter([Waiting(lane.id)])) for lane in lanes]

    lineup = Lineup(book.open, show, Gates(), {"p": 2}, 0)
    top = mock.Mock(wraps=book.open._rank_of)
    with mock.patch.object(book.open, "_rank_of", top):
        decided = Planner(lineup, {"p": 2}, 0, 0).decide()

    assert [each.id for each in decided.admitted] == [1, 2]
    assert len(met) <= 3
    assert top.call_count < 30


def test_who_begins_looks_at_no_more_lanes_of_others_than_there_are_places(tmp_path):
    """One a user, ten thousand of them: whose turn it is is known without looking at each."""
    path, lanes, looks = tmp_path / "s.db", 600, []

    def store(pid, statement=lambda sql: None):
        return InlineSqlite(path, Process("here", pid, "1"), 30_000, statement)

    async def main():
        one, other = store(1), store(2, looks.append)
        await one.open(0)
        await one.define([Budget(f"user-{each}", "$1/day") for each in range(lanes)], 0)
        ids = [each.id for each in await one.budgets(0)]
        batch = [
            replace(each, lane=each.lane._replace(is_shared=True, service="s"))
            for each in (new([budget], key=f"{at}") for at, budget in enumerate(ids))
        ]
        for each in batch:
            one.prepare(each)
        await one.turn(Turn(0, submit=batch))
        await other.open(0)
        other.serve({"p": "s"})
        looks.clear()
        return (await other.turn(Turn(0, slots={"p": 8}))).claimed

    claimed = asyncio.run(main())

    assert [each.request.key for each in claimed] == [f"{at}" for at in range(8)]
    assert sum("FROM accounts" in sql for sql in looks) <= 4
    assert len(looks) < 60
