"""Pruning and resolving read what they are about, however much else is kept or unknown."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from scheduler import Scheduler
from scheduler.budget import Budget, parse_caps
from scheduler.core.resolver import FIND_EVERY_MS
from scheduler.errors import CallFailed
from scheduler.ledger.account import Account
from scheduler.request import RequestState
from scheduler.stores.base import Outcome
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sql import listing, spent
from scheduler.stores.sql import prune as sqlite_prune
from scheduler.stores.sql import views as sqlite_views
from scheduler.stores.sql.connection import SqliteConnection
from scheduler.stores.sqlite import SqliteStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench as Provider
from tests.conftest import ask
from tests.stores.conformance import FAILED, T0, Bench, end, new, post

HOUR_S = 3600.0
BEFORE = T0 + 10_000


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    yield Bench(store)
    await store.aclose()


async def finish(bench, *keys, delivered=True):
    """Requests that have ended, each a millisecond after the one before."""
    ids = []
    for key in keys:
        (claimed,) = (await bench.submit(new(key=key), slots=1)).claimed
        bench.now_ms += 1
        await bench.settle(post(claimed, 4), slots=None)
        ids.append(claimed.request_id)
    if delivered:
        await bench.store.delivered(ids)


async def lose(bench, *keys):
    """Requests whose outcome nobody knows."""
    ids = []
    for key in keys:
        (claimed,) = (await bench.submit(new(key=key), slots=1)).claimed
        bench.now_ms += 1
        await bench.settle(end(claimed, Outcome.SUSPEND, FAILED), slots=None)
        ids.append(claimed)
    return ids


async def one_more(bench):
    """The newest of all, which stays: its id must not be given again."""
    bench.now_ms = max(bench.now_ms, BEFORE)
    await finish(bench, "newest", delivered=False)


async def pages(bench, limit, undelivered=False):
    found = []
    while page := await bench.store.prune(
        BEFORE, bench.now_ms, undelivered=undelivered, limit=limit
    ):
        assert len(page) <= limit
        found += [each.key for each in page]
    return found


# Pruning


async def test_pages_go_on_where_the_last_one_ended_and_leave_out_nothing(bench):
    await finish(bench, "a", "b")
    lost = await lose(bench, "lost-1", "lost-2")
    await bench.store.delivered([each.request_id for each in lost])
    await finish(bench, "c", "d", "e")
    await finish(bench, "kept-1", "kept-2", delivered=False)
    await one_more(bench)

    assert sorted(await pages(bench, 2)) == ["a", "b", "c", "d", "e"]
    assert await pages(bench, 2) == []
    said = [end(each, Outcome.VOID, FAILED) for each in lost]
    assert await bench.store.resolve(said, bench.now_ms) == [True, True]
    gone = await pages(bench, 1, undelivered=True)
    assert sorted(set(gone) - {"lost-1", "lost-2"}) == ["kept-1", "kept-2"]
    assert await bench.is_sound()


async def test_what_could_not_be_forgotten_is_looked_at_again_in_the_next_round(bench):
    await finish(bench, "a")
    (lost,) = await lose(bench, "lost")
    await bench.store.delivered([lost.request_id])
    await finish(bench, "b")
    settled_at_ms = bench.now_ms
    await one_more(bench)
    assert sorted(await pages(bench, 1)) == ["a", "b"]

    await bench.store.resolve([end(lost, Outcome.POST, FAILED, nusd=3)], settled_at_ms)

    page = await bench.store.prune(bench.now_ms + 1, bench.now_ms + 1, limit=1)
    assert [each.key for each in page] == ["lost"]


async def test_an_archive_that_fails_leaves_the_page_where_it_was(bench):
    await finish(bench, "a", "b", "c")
    await finish(bench, "d", delivered=False)
    await one_more(bench)

    def fail(page):
        raise OSError("the disk is full")

    for undelivered in (False, True):
        with pytest.raises(Exception, match="the disk is full"):
            await bench.store.prune(
                BEFORE, bench.now_ms, undelivered=undelivered, limit=2, archive=fail
            )

    assert await pages(bench, 2, undelivered=True) == ["a", "b", "c", "d"]


async def test_one_that_was_asked_again_is_not_forgotten_as_what_it_was(bench):
    (claimed,) = (await bench.submit(new(key="k"), slots=1)).claimed
    await bench.settle(end(claimed, Outcome.VOID, FAILED), slots=None)
    await bench.store.delivered([claimed.request_id])
    await finish(bench, "other")
    await finish(bench, "newer", delivered=False)
    (again,) = (await bench.submit(new(key="k", retry_failed=True), slots=1)).claimed
    assert await pages(bench, 1) == ["other"]
    bench.now_ms += 1
    await bench.settle(post(again, 4), slots=None)
    await one_more(bench)
    assert sorted(await pages(bench, 1, undelivered=True)) == ["k", "newer"]


class Unscanned(dict):
    """A table that must not be read from end to end."""

    def _no(self):
        raise AssertionError("all rows were read")

    values = items = __iter__ = _no


async def test_in_memory_no_page_reads_all_rows_or_reservations():
    store = MemoryStore()
    await store.open(T0)
    bench = Bench(store)
    await finish(bench, "a", "b", "c")
    await finish(bench, "kept", delivered=False)
    await lose(bench, "lost")
    store._rows, store._holds = Unscanned(store._rows), Unscanned(store._holds)

    assert await pages(bench, 2) == ["a", "b", "c"]
    assert await pages(bench, 2, undelivered=True) == ["kept"]
    assert [each.key for each in await store.suspended()] == ["lost"]


async def steps_of_a_page(bench, **options):
    """How much work SQLite does for a page that finds nothing, in steps of its machine."""
    count = [0]

    def step():
        count[0] += 1

    connection = bench.store._connection
    await connection.run(lambda db: db.set_progress_handler(step, 1))
    try:
        assert await bench.store.prune(BEFORE, bench.now_ms, **options) == []
    finally:
        await connection.run(lambda db: db.set_progress_handler(None, 0))
    return count[0]


async def test_a_last_page_costs_the_same_however_much_is_kept(tmp_path):
    """Kept are undelivered ones, ones that ended later, and lanes of processes that have gone."""
    steps = []
    for kept in (4, 200):
        bench = Bench(SqliteStore(tmp_path / f"{kept}.db"))
        await bench.store.open(T0)
        await finish(bench, *[f"u{n}" for n in range(kept)], delivered=False)
        bench.now_ms = BEFORE
        await finish(bench, *[f"n{n}" for n in range(kept)])
        await bench.submit(*[new(key=f"q{n}") for n in range(kept)], slots=None)
        await bench.store.aclose()
        await bench.store.open(bench.now_ms)
        steps.append(await steps_of_a_page(bench))
        await bench.store.aclose()

    assert steps[1] <= steps[0] + 20


async def test_lanes_of_gone_processes_go_with_their_last_request(tmp_path):
    path = tmp_path / "s.db"
    bench = Bench(SqliteStore(path))
    for key, waits in (("done", False), ("waits", True)):
        await bench.store.open(bench.now_ms)
        if waits:
            await bench.submit(new(key=key, priority=20), slots=None)
        else:
            await finish(bench, key)
        await bench.store.aclose()
    await bench.store.open(bench.now_ms)
    await one_more(bench)

    assert await pages(bench, 5) == ["done"]

    with closing(sqlite3.connect(path)) as db:
        lanes = db.execute("SELECT id FROM lanes").fetchall()
        used = db.execute("SELECT DISTINCT lane_id FROM requests").fetchall()
    await bench.store.aclose()
    assert sorted(lanes) == sorted(used)
    assert len(lanes) == 2


# How SQLite finds things

# Indexes of what lives, or is unknown: what is kept is in none of them.
SMALL = {
    "requests_delayed", "reservations_pending", "reservations_suspense", "reservations_unknown",
}  # fmt: skip
FEW = {"lanes", "l", "json_each", "jobs", "budgets", "tallies", "h", "spent", "spent_of_budgets"}


class Recorded(SqliteConnection):
    """Notes what is read with."""

    def __init__(self, raw):
        super().__init__(raw)
        self.statements = []

    def read(self, sql, *values):
        self.statements.append((sql, values))
        return super().read(sql, *values)

    def scan(self, sql, *values):
        self.statements.append((sql, values))
        return super().scan(sql, *values)

    def write(self, sql, *values):
        self.statements.append((sql, values))
        super().write(sql, *values)


LIVE = [RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING]
NEW = Account(9, 1, "team", parse_caps("$5")[0])
LATELY = Account(9, 1, "team", parse_caps("$5/1h")[0])
LOOKS = {
    "a page to prune": lambda db: sqlite_prune._old(
        db, sqlite_prune.Place(1, 1, 5, 1), BEFORE, True, 1
    ),
    "unused lanes": lambda db: db.write(sqlite_prune.UNUSED_LANES),
    "unknown since": lambda db: sqlite_views.suspended_since(db, 0, 0, 1),
    "unknown of": lambda db: sqlite_views.suspended_of(db, [1]),
    "unknown": lambda db: sqlite_views.suspended(db, None, 1, 0),
    "finished": lambda db: sqlite_views.finished_page(db, "", False, 5, 10),
    "undelivered": lambda db: sqlite_views.finished_page(db, "", True, 5, 10),
    "ended": lambda db: sqlite_views.ended_page(db, "", 5, 10),
    "outcomes": lambda db: sqlite_views.outcomes(db, [1, 2]),
    "queue": lambda db: listing.queue(db, LIVE, T0, None, 10, 0),
    "queue of a job": lambda db: listing.queue(db, LIVE, T0, "", 10, 0),
    "parked": lambda db: listing.queue(db, LIVE[1:2], T0, None, 10, 5),
    "spend": lambda db: sqlite_views.spend(db, "model", T0 + 1),
    "spend on budgets": lambda db: sqlite_views.spend(db, "budget", T0 + 1),
    "spend of jobs": lambda db: sqlite_views.spend(db, "job", 0),
    "a total anew": lambda db: spent.Recount(db, [NEW], T0).run(),
    "a span anew": lambda db: spent.Recount(db, [LATELY], T0).run(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
async def test_no_statement_reads_a_table_of_what_is_kept_from_end_to_end(tmp_path, look):
    bench = Bench(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    await bench.define(Budget("team", "$1"))
    await finish(bench, "a", "b", "c")
    (claimed,) = (await bench.submit(new([bench.ids["team"]], key="on"), slots=1)).claimed
    await bench.settle(post(claimed, 4), slots=None)
    await bench.submit(new(key="live"), slots=1)
    await bench.submit(new(key="waits"), slots=None)
    await bench.store.aclose()

    with closing(sqlite3.connect(tmp_path / "s.db")) as raw:
        db = Recorded(raw)
        look(db)
        assert db.statements
        for sql, values in db.statements:
            for *_, step in raw.execute(f"EXPLAIN QUERY PLAN {sql}", values):
                if step.startswith("SCAN") and step.split()[1] not in FEW:
                    assert step.rpartition(" ")[2] in SMALL, (step, sql)
                # SQLite would make one of its own from the whole table, for this statement alone.
                assert "AUTOMATIC" not in step, (step, sql)


# What is unknown


async def test_unknown_outcomes_are_found_in_the_order_in_which_they_became_so(bench):
    first, second = (await bench.submit(new(key="1"), new(key="2"))).claimed
    bench.now_ms += 5
    await bench.settle(end(second, Outcome.SUSPEND, FAILED), slots=None)
    bench.now_ms += 5
    await bench.settle(end(first, Outcome.SUSPEND, FAILED), slots=None)
    third, fourth = (await bench.submit(new(key="3"), new(key="4"))).claimed
    await bench.settle(
        end(third, Outcome.SUSPEND, FAILED), end(fourth, Outcome.SUSPEND, FAILED), slots=None
    )

    found, since_ms, after_id = [], 0, 0
    while page := await bench.store.suspended_since(since_ms, after_id=after_id, limit=1):
        ((since_ms, after_id),) = page
        found.append(after_id)
    calls = second, first, third, fourth
    assert found == [each.reservation_id for each in calls]
    assert await bench.store.suspended_since(0) == [
        (at_ms, each.reservation_id)
        for at_ms, each in zip((T0 + 5, T0 + 10, T0 + 10, T0 + 10), calls, strict=True)
    ]
    later = await bench.store.suspended_since(T0 + 6)
    assert [each for _, each in later] == found[1:]

    await bench.store.resolve([end(first, Outcome.VOID, FAILED)], bench.now_ms)
    ids = [first.reservation_id, third.reservation_id, 10**6]
    assert [each.key for each in await bench.store.suspended_of(ids)] == ["3"]
    assert [each.key for each in await bench.store.suspended()] == ["2", "3", "4"]


class Counting(MemoryStore):
    """Counts how many unknown outcomes it was made to hand out."""

    def __init__(self):
        super().__init__()
        self.handed_out = 0

    async def suspended_of(self, ids):
        found = await super().suspended_of(ids)
        self.handed_out += len(found)
        return found


def resolved_by(policy, main, provider=None):
    """Run `main(scheduler, store, provider)` in virtual time."""
    provider, store = provider or Provider(), Counting()
    provider.on_unknown = policy

    async def body():
        async with Scheduler(
            store, providers=provider, clock=VirtualClock(), max_attempts=1, concurrency=100
        ) as s:
            return await main(s, store, provider)

    return run(body())


async def lose_calls(s, count):
    calls = [ask(n, fail=CallFailed("silence")) for n in range(count)]
    ends = await asyncio.gather(*map(s.run, calls), return_exceptions=True)
    assert {type(each) for each in ends} == {CallFailed}
    await asyncio.sleep(5)


def test_one_more_unknown_outcome_costs_a_look_at_that_one():
    async def main(s, store, provider):
        await lose_calls(s, 300)
        await asyncio.sleep(10 * FIND_EVERY_MS / 1000)
        before = store.handed_out
        await lose_calls(s, 1)
        return store.handed_out - before

    assert resolved_by("release after 10h", main) == 1


def test_each_is_looked_at_when_it_is_new_and_when_it_is_due_and_never_in_between():
    async def main(s, store, provider):
        await lose_calls(s, 100)
        await asyncio.sleep(HOUR_S - 10)
        waiting = store.handed_out, s.stats().suspense_nusd
        await asyncio.sleep(20)
        return *waiting, store.handed_out, s.stats().suspense_nusd

    waiting, held_nusd, after, left_nusd = resolved_by("release after 1h", main)

    assert (waiting, after) == (100, 200)
    assert (held_nusd, left_nusd) == (100 * 100, 0)


def test_what_another_process_left_is_found_within_a_minute_of_the_next_look():
    async def main(s, store, provider):
        await lose_calls(s, 1)
        (mine,) = await store.suspended()
        # As if another process had written it: nobody tells this resolver.
        s._resolver.wake = s._pump.suspended = lambda reservation_id, told: None
        await lose_calls(s, 1)
        s._pump.suspended = type(s._resolver).wake.__get__(s._resolver)
        await asyncio.sleep(FIND_EVERY_MS / 1000)
        await lose_calls(s, 1)
        await asyncio.sleep(HOUR_S + 2 * FIND_EVERY_MS / 1000)
        return mine, await store.suspended()

    mine, left = resolved_by("release after 1h", main)

    assert mine.key is None
    assert left == []


def test_a_store_that_fails_in_the_middle_loses_none():
    async def main(s, store, provider):
        await lose_calls(s, 20)
        resolve, failures = store.resolve, []

        async def fail(settlements, now_ms):
            failures.append(len(settlements))
            if len(failures) == 2:
                raise OSError("no disk")
            return await resolve(settlements, now_ms)

        store.resolve = fail
        await asyncio.sleep(2 * HOUR_S)
        return failures, await store.suspended()

    failures, left = resolved_by("release after 1h", main)

    assert len(failures) > 3
    assert left == []
