"""What is done to one budget costs one row, however many others there are."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import pytest

from scheduler import Scheduler
from scheduler.budget import Budget
from scheduler.ledger.matching import MAX_REMEMBERED
from scheduler.stores.memory.journal import Journal
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.process import Process
from scheduler.stores.sql import books as sqlite_books
from scheduler.stores.sql import budgets as sqlite_budgets
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench as Provider
from tests.conftest import ask
from tests.simulation.stores import InlineSqlite
from tests.stores.conformance import T0, Bench, new, post

FEW, MANY = 100, MAX_REMEMBERED + 904


class Work:
    """Counts calls of functions, statements, and steps of SQLite's machine."""

    def __init__(self):
        self.counts = Counter()
        self.store = None

    def count_statement(self, sql):
        self.counts["statements"] += 1

    def __enter__(self):
        self.counts.clear()
        if isinstance(self.store, InlineSqlite):
            self.store._db.set_progress_handler(self._step, 10)
        sys.setprofile(self._called)
        return self.counts

    def _called(self, frame, event, arg):
        if event in ("call", "c_call"):
            self.counts["calls"] += 1

    def _step(self):
        self.counts["steps"] += 1

    def __exit__(self, *error):
        sys.setprofile(None)
        if isinstance(self.store, InlineSqlite):
            self.store._db.set_progress_handler(None, 10)


@pytest.fixture(params=["memory", "sqlite"])
def opened(request, tmp_path):
    """Makes a store, and what counts its work."""

    def make(name):
        work = Work()
        work.store = MemoryStore()
        if request.param == "sqlite":
            me = Process("here", 1, "1")
            work.store = InlineSqlite(tmp_path / f"{name}.db", me, 30_000, work.count_statement)
        return work

    return make


async def ensure_one(s):
    await s.ensure(Budget("new", "$1/day", parent="app"))


async def ensure_known(s):
    await s.ensure(Budget("user-7", "$1/day"))


async def raise_one(s):
    await s.set_limit("user-8", "$2")


async def remove_one(s):
    await s.remove_budget("user-9")


async def pause_one(s):
    await s.pause("user-10")


async def look(s):
    await s.run(ask(budget="user-11"))
    assert len(s.stats().budgets) > FEW


DONE = [ensure_one, ensure_known, raise_one, remove_one, pause_one, look]


def work_of(done, opened, count):
    work = opened(f"{count}")

    async def main():
        budgets = [Budget("app", "$9"), *(user(i) for i in range(count))]
        clock = VirtualClock()
        async with Scheduler(
            work.store, budgets=budgets, providers=Provider(), clock=clock, poll_interval=3600
        ) as s:
            await s.run(ask(budget="user-1"))
            s.stats()
            with work as counts:
                await done(s)
            return Counter(counts)

    return run(main())


def user(number):
    """Every one has a limit of its own, so that no two have the same text."""
    return Budget(f"user-{number}", f"${number + 1}/day", parent="app")


@pytest.mark.parametrize("done", DONE, ids=lambda each: each.__name__)
def test_one_of_many_costs_what_one_of_few_does(done, opened):
    few, many = (work_of(done, opened, count) for count in (FEW, MANY))

    assert few["calls"] > 0
    if done is remove_one and "statements" in few:
        # Rare, and on the store's own thread: the file is searched for children.
        few, many = Counter(statements=few["statements"]), Counter(statements=many["statements"])
    for what in few:  # an index has another level or two, and a hash another probe
        assert many[what] <= few[what] * 1.2 + 30, (what, few, many)


def test_asking_in_a_circle_costs_no_more_beyond_what_is_remembered():
    def calls_for_each(count):
        work = Work()

        async def main():
            # Rules, too: one for each user, by a tag.
            budgets = [Budget("app", "$9"), *(user(i) for i in range(count))]
            budgets += [Budget(f"r{i}", "$1", tags={"user": f"{i}"}) for i in range(count)]
            async with Scheduler(budgets=budgets, providers=Provider()) as s:
                prepare = s._intake.prepare
                asks = [ask(budget=f"user-{i}", tags={"user": f"{i}"}) for i in range(count)]
                for each in asks:
                    prepare(each, None)
                with work as counts:
                    for each in asks:
                        prepare(each, None)
                return counts["calls"] / count

        return run(main())

    few, many = calls_for_each(FEW), calls_for_each(MANY)

    assert many < 3 * few  # a miss finds it again, from its own rule and its own name


def test_looking_in_a_circle_reads_no_text_again(tmp_path, monkeypatch):
    read = Counter()
    for name in ("decode_budget", "parse_caps"):
        function = getattr(sqlite_books, name)

        def counted(*args, name=name, function=function):
            read[name] += 1
            return function(*args)

        monkeypatch.setattr(sqlite_books, name, counted)

    async def main():
        store = InlineSqlite(tmp_path / "s.db", Process("here", 1, "1"), 30_000, lambda sql: None)
        await store.open(T0)
        await store.define([user(i) for i in range(MANY)], T0)
        await store.budgets(T0)
        read.clear()
        await store.budgets(T0 + 1)
        await store.audit(T0 + 1)
        await store.redefined(T0 + 1)
        await store.aclose()

    asyncio.run(main())
    assert (read["decode_budget"], read["parse_caps"]) == (0, 0)


@pytest.mark.parametrize(("name", "spec", "times"), [("new", "$1", 0), ("team", "$1, $9/100d", 1)])
def test_in_a_new_budget_nothing_is_counted_again(opened, monkeypatch, name, spec, times):
    work, replays = opened("replayed"), []
    for place, what in ((Journal, "replay"), (sqlite_budgets.Recount, "run")):
        replay = getattr(place, what)
        monkeypatch.setattr(
            place, what, lambda *args, replay=replay: replays.append(1) or replay(*args)
        )

    async def main():
        await work.store.open(T0)
        bench = Bench(work.store)
        await bench.define(Budget("team", "$1"))
        result = await bench.submit(new([bench.ids["team"]]))
        await bench.settle(post(result.claimed[0], 1))
        replays.clear()
        await work.store.define([Budget(name, spec)], bench.now_ms)
        counted = len(replays)
        assert await bench.is_sound()
        await work.store.aclose()
        return counted

    assert asyncio.run(main()) == times
