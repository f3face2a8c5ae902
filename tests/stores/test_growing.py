"""What has ended costs nobody anything who looks at what lives, at sums, or at the next page."""

from __future__ import annotations

import random

import pytest

from scheduler.budget import Budget
from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement
from scheduler.stores.sql import views
from scheduler.stores.sql.connection import SqliteConnection
from scheduler.stores.sql.spent import QUARTER_MS
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import FAILED, T0, Bench, end, new, post

LIVE = [RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING]
FEW, MANY = 20, 400
MINUTE_MS = 60_000


@pytest.fixture
async def bench(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    yield Bench(store)
    await store.aclose()


async def finish(bench, count, *, job="", delivered=True, budgets=()):
    """So many requests that have ended."""
    start = bench.now_ms
    wanted = [new(budgets, key=f"{job}-{start}-{n}", job=job) for n in range(count)]
    claimed = (await bench.submit(*wanted, slots=count)).claimed
    bench.now_ms += count
    await bench.settle(*[post(each, 4) for each in claimed], slots=None)
    if delivered:
        await bench.store.delivered([each.request_id for each in claimed])
    return [each.request_id for each in claimed]


async def steps(bench, look):
    """How much work SQLite does for a look, in steps of its machine."""
    count = [0]

    def step():
        count[0] += 1

    connection = bench.store._connection
    await connection.run(lambda db: db.set_progress_handler(step, 1))
    try:
        await look(bench)
    finally:
        await connection.run(lambda db: db.set_progress_handler(None, 0))
    return count[0]


async def last_page(bench):
    async for each in bench.store.ended("old"):
        assert each
    found = [each async for each in bench.store.ended("none")]
    assert found == []


async def define(bench, name, spec):
    await bench.store.define([Budget(name, spec)], bench.now_ms)


LOOKS = {
    "the queue": lambda b: b.store.queue(LIVE, b.now_ms, limit=5),
    "what runs": lambda b: b.store.queue(LIVE[2:], b.now_ms, limit=5),
    "what is parked": lambda b: b.store.queue(LIVE[1:2], b.now_ms, limit=5),
    "what is parked of a job": lambda b: b.store.queue(LIVE[1:2], b.now_ms, job="new", limit=5),
    "the queue of a job": lambda b: b.store.queue(LIVE, b.now_ms, job="new", limit=5),
    "the queue of a job that has ended": lambda b: b.store.queue(LIVE, b.now_ms, job="old"),
    "what failed, if nothing did": lambda b: b.store.queue([RequestState.FAILED], b.now_ms),
    "spend by model": lambda b: b.store.spend("model"),
    "spend by job": lambda b: b.store.spend("job", T0),
    "spend by budget since the next quarter": lambda b: b.store.spend("budget", T0 + QUARTER_MS),
    "a new budget": lambda b: define(b, "new", "$3"),
    "a budget that becomes a total": lambda b: define(b, "team", "$9"),
    "a budget that becomes a month": lambda b: define(b, "team", "$9/month @Europe/Athens"),
    "a budget that becomes a short span": lambda b: define(b, "team", "$9/1h"),
    "outcomes of another job": lambda b: _all(b.store.finished("new", undelivered=False)),
}


async def _all(found):
    return [each async for each in found]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
async def test_a_look_costs_the_same_however_much_has_ended(tmp_path, look):
    found = []
    for count in (FEW, MANY):
        bench = Bench(SqliteStore(tmp_path / f"{count}.db"))
        await bench.store.open(T0)
        await bench.define(Budget("team", "$9/day"))
        await finish(bench, count, job="old", budgets=[bench.ids["team"]])
        bench.now_ms = T0 + 4 * 3_600_000  # a while later
        await finish(bench, 1, job="new", budgets=[bench.ids["team"]])
        await bench.submit(*[new(key=f"live-{n}", job="new") for n in range(9)], slots=2)
        found.append(await steps(bench, look))
        await bench.store.aclose()

    assert found[1] <= found[0] * 1.1 + 30


async def pages(bench, read):
    """Steps of every page, the last ones told first."""
    after_id, found = 0, []
    while True:
        got = []

        async def look(bench, after_id=after_id, got=got):
            got += await read(bench, after_id)

        found.append(await steps(bench, look))
        if not got:
            return found
        after_id = got[-1].id


@pytest.mark.parametrize("undelivered", [True, False])
@pytest.mark.parametrize("nth", [0, 2, 5])
async def test_each_page_of_a_jobs_outcomes_costs_a_page(bench, monkeypatch, undelivered, nth):
    monkeypatch.setattr("scheduler.stores.sql.store.PAGE", 10)
    ids = await finish(bench, 200, job="old", delivered=False)
    await finish(bench, 100, job="other", delivered=False)
    await bench.store.delivered(ids[::nth] if nth else [])

    def read(bench, after_id):
        return bench.store._run(
            lambda db: views.finished_page(SqliteConnection(db), "old", undelivered, after_id, 10)
        )

    found = await pages(bench, read)

    left = 200 - (len(ids[::nth]) if undelivered and nth else 0)
    assert len(found) == -(-left // 10) + 1
    assert max(found[1:]) <= 1.2 * found[0] + 20


async def test_pages_of_outcomes_tell_each_one_once_and_in_order(bench, monkeypatch):
    monkeypatch.setattr("scheduler.stores.sql.store.PAGE", 7)
    ids = await finish(bench, 40, job="old", delivered=False)
    chance = random.Random(5)
    await bench.store.delivered(chance.sample(ids, 23))
    seen = []
    async for each in bench.store.finished("old", undelivered=False):
        seen.append(each.id)
        if len(seen) == 9:  # what is delivered meanwhile is told all the same
            await bench.store.delivered(ids[8:12])

    assert seen == ids
    assert [each.id async for each in bench.store.ended("old")] == ids


# The queue


@pytest.mark.parametrize("lanes", [1, 3, 30])
async def test_a_page_of_the_queue_holds_the_oldest_of_all_lanes(bench, lanes):
    await bench.define(Budget("shut", "$0"))
    chance = random.Random(lanes)
    await finish(bench, 5)
    wanted = []
    for n in range(60):
        budgets = [bench.ids["shut"]] if n % 3 == 0 else []
        wanted.append(new(budgets, key=f"k{n}", job=f"j{n % 2}", priority=chance.randrange(lanes)))
    await bench.submit(*wanted[:40], slots=60)
    await bench.submit(*wanted[40:], slots=None)
    every = await bench.store.queue(LIVE, bench.now_ms)
    assert [row.key for row in every] == [f"k{n}" for n in range(60)]
    assert {row.state for row in every} == set(LIVE)

    for states in (LIVE, LIVE[:1], LIVE[1:2], LIVE[2:], LIVE[:2], LIVE[1:]):
        for job in (None, "j0", "j1", "none"):
            right = [
                row.key for row in every if row.state in states and job in (None, row.job)
            ]  # fmt: skip
            found, after_id = [], 0
            while page := await bench.store.queue(
                states, bench.now_ms, job=job, limit=7, after_id=after_id
            ):
                assert len(page) <= 7
                found += [row.key for row in page]
                after_id = page[-1].id
            assert found == right, (states, job)


async def test_a_page_costs_a_page_however_many_wait(tmp_path):
    found = []
    for count in (FEW, MANY):
        bench = Bench(SqliteStore(tmp_path / f"{count}.db"))
        await bench.store.open(T0)
        await bench.submit(*[new(key=f"k{n}") for n in range(count)], slots=None)
        found.append(await steps(bench, lambda b: b.store.queue(LIVE, b.now_ms, limit=5)))
        found.append(await steps(bench, lambda b: b.store.queue(LIVE[1:2], b.now_ms, limit=5)))
        await bench.store.aclose()

    assert found[2] <= found[0] * 1.1 + 30
    assert found[3] <= found[1] + 30


# Sums

SPECS = (
    "$50", "$50/day", "$50/day @Asia/Kolkata from 06:05", "$50/month", "$50/minute", "$50/1h",
    "$50/20h", "$50/90s", "900000 tokens/hour", "9000 requests/2h", "9000 requests",
)  # fmt: skip


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("spec", SPECS)
async def test_a_budget_with_another_window_counts_what_all_its_reservations_say(
    bench, spec, pruned
):
    """The audit recomputes from the reservations, one by one."""
    chance = random.Random(spec)
    await bench.define(Budget("team", "$60/365d"), Budget("other", "$60"))
    for _ in range(40):
        bench.now_ms += chance.choice((50, 20_000, 300_000, 3_000_000))
        budgets = [bench.ids["other"], bench.ids["team"]][chance.randrange(2) :]
        claimed = (await bench.submit(new(budgets, 100), slots=1)).claimed
        for each in claimed:
            ends = [post(each, 40), post(each, 170), end(each, Outcome.VOID, FAILED)]
            if chance.random() < 0.08:
                ends = [end(each, Outcome.SUSPEND, FAILED)]
            if chance.random() < 0.95:
                bench.now_ms += chance.choice((1, 2000))
                await bench.settle(chance.choice(ends), slots=None)
    (lost,) = (await bench.submit(new([bench.ids["team"]], 9), slots=1)).claimed
    await bench.settle(end(lost, Outcome.SUSPEND, FAILED), slots=None)
    if pruned:
        while await bench.store.prune(bench.now_ms - 1_000_000, bench.now_ms, limit=9):
            pass
    await bench.define(Budget("team", spec))

    assert await bench.is_sound()
    (unknown, *_) = await bench.store.suspended()
    await bench.store.resolve([_resolved(unknown)], bench.now_ms)
    assert await bench.is_sound()


def _resolved(unknown):
    return Settlement(
        unknown.id, unknown.request_id, Outcome.POST, RequestState.FAILED, 33, 3, is_assumed=True
    )


async def test_sums_follow_what_is_corrected(bench):
    """An outcome that was assumed, then told by the late answer, counts once."""
    await bench.define(Budget("team", "$1"))
    (claimed,) = (await bench.submit(new([bench.ids["team"]], key="k"), slots=1)).claimed
    await bench.settle(end(claimed, Outcome.SUSPEND, FAILED), slots=None)
    (unknown,) = await bench.store.suspended()
    await bench.store.resolve([_resolved(unknown)], bench.now_ms)
    (row,) = await bench.store.spend("model")
    assert (row.attempts, row.posted_nusd, row.tokens, row.reserved_nusd) == (1, 33, 3, 0)

    await bench.settle(post(claimed, 7), slots=None)
    assert [(r.attempts, r.posted_nusd, r.tokens) for r in await bench.store.spend("budget")] == [
        (1, 7, 3)
    ]
    assert await bench.is_sound()


async def test_an_audit_sees_that_a_sum_is_off(bench):
    await bench.define(Budget("team", "$1"))
    await finish(bench, 3, budgets=[bench.ids["team"]])

    await bench.store._run(lambda db: db.execute("UPDATE spent_of_budgets SET nusd = nusd + 1"))
    (off,) = (await bench.store.audit(bench.now_ms)).discrepancies

    assert (off.budget, off.what, off.stored - off.recomputed) == ("team", "spent", 1)


@pytest.mark.parametrize("pruned", [False, True])
async def test_what_was_spent_since_an_instant_is_exact(bench, pruned):
    chance = random.Random(3)
    await bench.define(Budget("team", "$1"))
    made = []
    for _ in range(40):
        bench.now_ms += chance.choice((0, 10, 50_000, 400_000, 2_000_000))
        job = chance.choice("ab")
        asked = new([bench.ids["team"]], 100, job=job)
        (claimed,) = (await bench.submit(asked, slots=1)).claimed
        how = chance.choice(("post", "post", "void", "suspend", "run"))
        made.append((claimed.made_at_ms, job, how))
        if how == "post":
            await bench.settle(post(claimed, 9), slots=None)
        elif how != "run":
            outcome = Outcome.VOID if how == "void" else Outcome.SUSPEND
            await bench.settle(end(claimed, outcome, FAILED), slots=None)
    whole_ms = MINUTE_MS if pruned else 1
    if pruned:
        while await bench.store.prune(bench.now_ms - 4_000_000, bench.now_ms, limit=9):
            pass
    for _ in range(40):
        since_ms = chance.randrange(T0 - 1000, bench.now_ms + 1000)
        since_ms -= since_ms % whole_ms
        since_ms = chance.choice((0, since_ms, since_ms - since_ms % QUARTER_MS))
        rows = {row.name: row for row in await bench.store.spend("job", since_ms)}
        for job in "ab":
            hows = [how for at_ms, of, how in made if at_ms >= since_ms and of == job]
            row, posted = rows.pop(job, None), hows.count("post")
            found = (0, 0, 0, 0, 0)
            if row is not None:
                found = (row.attempts, row.posted_nusd, row.reserved_nusd, row.suspense_nusd,
                         row.tokens)  # fmt: skip
            unknown, runs = 100 * hows.count("suspend"), 100 * hows.count("run")
            assert found == (
                len(hows) - hows.count("void"), 9 * posted, unknown + runs, unknown, 3 * posted
            )  # fmt: skip
        assert not rows


# Pruning behind what has to stay


async def test_a_page_goes_on_behind_what_has_to_stay(tmp_path):
    found = []
    for count in (FEW, MANY):
        bench = Bench(SqliteStore(tmp_path / f"{count}.db"))
        await bench.store.open(T0)
        lost = (await bench.submit(*[new(key=f"l{n}") for n in range(count)], slots=count)).claimed
        await bench.settle(*[end(each, Outcome.SUSPEND, FAILED) for each in lost], slots=None)
        await bench.store.delivered([each.request_id for each in lost])
        await finish(bench, 30)
        bench.now_ms += 10
        await finish(bench, 1, delivered=False)

        async def page(bench):
            got = await bench.store.prune(bench.now_ms, bench.now_ms, limit=10)
            assert len(got) == 10

        await page(bench)  # passes them once
        found.append(await steps(bench, page))
        await bench.store.aclose()

    assert found[1] <= found[0] * 1.1 + 30


# Unknown outcomes


async def test_one_more_unknown_outcome_costs_the_same_however_many_there_are(tmp_path):
    """Finding it, settling it, and every turn meanwhile, also one that renews the lease."""
    found = {}
    for count in (FEW, MANY):
        bench = Bench(SqliteStore(tmp_path / f"{count}.db"))
        await bench.store.open(T0)
        lost = (await bench.submit(*[new(key=f"l{n}") for n in range(count)], slots=count)).claimed
        await bench.settle(*[end(each, Outcome.SUSPEND, FAILED) for each in lost], slots=None)
        bench.now_ms += 60_000
        (more,) = (await bench.submit(new(key="more"), slots=1)).claimed
        now_ms = bench.now_ms
        looks = [
            lambda b, more=more: b.settle(end(more, Outcome.SUSPEND, FAILED), slots=None),
            lambda b, now_ms=now_ms: b.store.suspended_since(now_ms - 1),
            lambda b, more=more: b.store.suspended_of([more.reservation_id]),
            lambda b: b.store.suspended(limit=3),
            lambda b, more=more: b.store.resolve([end(more, Outcome.VOID, FAILED)], b.now_ms),
        ]
        found[count] = [await steps(bench, look) for look in looks]
        bench.now_ms += bench.store.lease_ms
        found[count] += [await steps(bench, lambda b: b.turn(slots=None))]
        await bench.store.aclose()

    for few, many in zip(found[FEW], found[MANY], strict=True):
        assert many <= few * 1.1 + 30
