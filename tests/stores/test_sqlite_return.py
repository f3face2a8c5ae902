"""Processes that come back after others took them for lost or gone, and files opened again."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest

from scheduler import Scheduler
from scheduler.budget import Budget
from scheduler.core.steady import Steady
from scheduler.providers.function import FunctionProvider
from scheduler.request import Request
from scheduler.stores.base import Outcome
from scheduler.stores.process import GONE_MS, Process, this_process
from scheduler.stores.sql import changes
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import until
from tests.stores.conformance import CANCELLED, DAY_MS, FAILED, T0, Bench, end, new, post

LEASE_MS = 400


def store_of(path, host: str) -> SqliteStore:
    """A store of a process that nobody else can see: its silence decides."""
    store = SqliteStore(path)
    store._transactions.process = Process(host, 1, "1")
    return store


@pytest.fixture
async def two(tmp_path):
    """Two processes of different hosts on one file."""
    here, there = (Bench(store_of(tmp_path / "s.db", host)) for host in ("here", "there"))
    for bench in (here, there):
        await bench.store.open(T0)
    await here.define(Budget("team", "$1/day"))
    there.ids = here.ids
    yield here, there
    for bench in (here, there):
        await bench.store.aclose()


@pytest.mark.parametrize("outcome", [Outcome.POST, Outcome.VOID])
@pytest.mark.parametrize("is_assumed", [True, False])
async def test_an_answer_ends_its_request_whatever_was_said_of_its_money(two, outcome, is_assumed):
    here, there = two
    (claimed,) = (await here.submit(new([1], key="k"))).claimed
    there.now_ms += here.store.lease_ms + 1
    await there.turn()  # it is lost: its call is unknown now
    (unknown,) = await there.store.suspended()
    said = end(claimed, outcome, FAILED, nusd=7, tokens=7, is_assumed=is_assumed)
    assert await there.store.resolve([said], there.now_ms) == [True]

    here.now_ms = there.now_ms
    result = await here.settle(post(claimed, 4))

    assert unknown.id == claimed.reservation_id
    assert result.claimed == []  # it is not sent again
    assert result.superseded == {}
    (again,) = (await here.submit(new([1], key="k"))).submitted
    assert again.finished.response.body == {"n": 1}
    said_nusd = 7 if outcome is Outcome.POST else 0
    assert await here.balance() == (4 if is_assumed else said_nusd, 0)


async def test_a_call_that_ends_without_an_answer_after_others_took_it_does_not_end_its_request(
    two,
):
    here, there = two
    (claimed,) = (await here.submit(new([1]))).claimed
    there.now_ms += here.store.lease_ms + 1
    await there.turn()

    here.now_ms = there.now_ms
    result = await here.settle(end(claimed, Outcome.SUSPEND, FAILED), slots=0)

    assert result.superseded == {claimed.reservation_id: True}  # it lives on
    assert (await here.store.counts()).waiting == 1


@pytest.mark.parametrize("is_far_behind", [True, False])
@pytest.mark.parametrize("answers", [True, False])
async def test_what_others_put_back_counts_beside_what_the_last_to_know_of_it_adds(
    two, answers, is_far_behind, monkeypatch
):
    """It stood still in the middle of a turn: the time of that is from before."""
    here, there = two
    (claimed,) = (await here.submit(new([1], key="a"))).claimed
    there.now_ms += here.store.lease_ms + 1
    await there.turn()
    if is_far_behind:  # nobody can say any more what was changed
        monkeypatch.setattr(changes, "KEPT_CHANGES", 1)
        monkeypatch.setattr(changes, "EVERY", 1)
        for name in ("one", "two", "three"):
            await there.define(Budget(name, "$1"))

    result = await here.submit(new([1], key="b"), slots=0)
    assert not result.was_lost
    assert (await there.store.counts()).waiting == 2
    here.now_ms = there.now_ms
    if answers:
        await here.settle(post(claimed, 4), slots=0)

    claimed = (await here.turn()).claimed
    assert [each.request.key for each in claimed] == ["b"] if answers else ["a", "b"]


async def test_nothing_waits_in_a_lane_that_others_emptied_and_removed(two):
    here, there = two
    await there.submit(new([1], key="k"), slots=0)
    here.now_ms = T0 + GONE_MS + 1
    (claimed,) = (await here.submit(new([1], key="k"), slots=1)).claimed
    await here.settle(post(claimed, 1))
    while await here.store.prune(here.now_ms, here.now_ms, undelivered=True):
        pass

    there.now_ms = here.now_ms + 1
    assert (await there.turn()).was_lost
    assert there.store.lanes() == []


async def test_a_number_is_never_given_to_another_process_s_lane(two):
    here, there = two
    await there.submit(new([1], priority=1), slots=0)
    (claimed,) = (await here.submit(new([1], key="k"), slots=1)).claimed
    await here.settle(post(claimed, 1))
    there.now_ms = T0 + GONE_MS + 1
    result = await there.submit(new([1], priority=1))
    await there.settle(*[post(each, 1) for each in result.claimed])
    while await there.store.prune(there.now_ms, there.now_ms, undelivered=True):
        pass
    await there.submit(new([1], priority=5), slots=0)  # makes a lane

    here.now_ms = there.now_ms + 1
    back = await here.submit(new([1], key="a"), new([1], key="b"), slots=0)

    assert back.was_lost
    ids = [each.id for each in back.submitted]
    assert await here.store.still_mine(ids) == set(ids)
    there.now_ms = here.now_ms
    assert [each.request.key for each in (await there.turn()).claimed] == [None]
    assert [each.request.key for each in (await here.turn()).claimed] == ["a", "b"]


async def test_a_store_that_is_opened_again_is_another_process(tmp_path):
    bench, other = (Bench(SqliteStore(tmp_path / "s.db")) for _ in range(2))
    await bench.store.open(T0)
    await bench.define(Budget("team", "$1/day"))
    await bench.submit(new([1], key="first"))
    await bench.store.aclose()

    await bench.store.open(T0 + 1000)
    bench.now_ms = T0 + 1000
    await bench.submit(new([1], key="k"), slots=0)

    await other.store.open(T0 + 1000)
    (theirs,) = (await other.submit(new([1], key="k"))).submitted
    assert theirs.is_elsewhere  # somebody has it
    assert [each.request.key for each in (await bench.turn()).claimed] == ["k"]
    for each in (bench, other):
        await each.store.aclose()


async def test_what_a_process_sent_that_never_signed_in_is_unknown_too(tmp_path):
    """However it came to be without a row: its key must not wait for it for ever."""
    dying, heir = (Bench(SqliteStore(tmp_path / "s.db")) for _ in range(2))
    dying.store._transactions.process = Process(this_process().host, 2**22 + 1, "1")
    await dying.store.open(T0)
    await dying.define(Budget("team", "$1/day"))
    await dying.submit(new([1], key="k"))
    await dying.store._run(lambda db: db.execute("DELETE FROM workers"))

    await heir.store.open(T0)
    (taken,) = (await heir.submit(new([1], key="k"))).submitted

    assert not taken.is_elsewhere
    assert len(await heir.store.suspended()) == 1
    for each in (heir, dying):
        await each.store.aclose()


async def test_a_new_cap_counts_what_was_pruned_under_another(tmp_path):
    bench = Bench(SqliteStore(tmp_path / "s.db"))
    bench.now_ms = T0 + 20 * DAY_MS  # a Wednesday
    await bench.store.open(bench.now_ms)
    await bench.define(Budget("team", "$10/day, $100/month"))
    for cost in (40, 1, 1):
        (claimed,) = (await bench.submit(new([bench.ids["team"]]))).claimed
        await bench.settle(post(claimed, cost))
    bench.now_ms += 3_600_000
    while await bench.store.prune(bench.now_ms, bench.now_ms, undelivered=True):
        pass

    await bench.define(Budget("team", "$10/day"))
    await bench.define(Budget("team", "$10/day, $1/week"))

    assert await bench.balance(cap=1) == (42, 0)
    assert await bench.is_sound()
    await bench.store.aclose()


async def test_what_may_still_be_answered_is_not_pruned(two):
    here, _ = two
    (claimed,) = (await here.submit(new([1]))).claimed
    await here.settle(end(claimed, Outcome.SUSPEND, CANCELLED))
    await here.submit(new([1], key="later"))
    await here.store.resolve([end(claimed, Outcome.VOID, FAILED, is_assumed=True)], T0)

    here.now_ms = T0 + DAY_MS
    assert await here.store.prune(here.now_ms, here.now_ms, undelivered=True) == []

    assert (await here.settle(post(claimed, 9))).settled == [True]


async def test_one_damaged_request_hides_no_other_unknown_outcome(two):
    here, _ = two
    first, second = (await here.submit(new([1], key="a"), new([1], key="b"))).claimed
    await here.settle(*[end(each, Outcome.SUSPEND, FAILED) for each in (first, second)])
    await here.store._run(
        lambda db: db.execute("UPDATE requests SET payload = '{\"x' WHERE key = 'a'")
    )

    found = await here.store.suspended()

    assert [each.request and each.request.key for each in found] == [None, "b"]


# Whole schedulers


def provider(gate: asyncio.Event | None = None) -> FunctionProvider:
    async def call(request: Request) -> dict[str, bool]:
        if gate is not None:
            await gate.wait()
        return {"ok": True}

    return FunctionProvider("p", call, quote="$0.01", cost="$0.01")


@asynccontextmanager
async def frozen(s: Scheduler, seconds: float):
    """Nothing of it runs meanwhile but the caller's own code, as in a frozen container."""
    s._pump._tasks[1].tear()
    await asyncio.sleep(seconds)
    yield
    s._pump._tasks[1] = Steady(s._pump._lookout.run(lambda: None), lambda: None, s.loop, "poll")
    s._pump.wake()


def schedulers(path, gate=None, **options):
    """One that will be frozen, and one that will not."""
    made = []
    for host, each in (("here", provider(gate)), ("there", provider())):
        store = store_of(path, host)
        store.lease_ms = store._transactions.lease_ms = LEASE_MS
        made.append(Scheduler(store, providers=each, **options))
    return made


async def test_a_process_taken_for_gone_answers_its_callers_when_it_comes_back(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("scheduler.stores.sql.workers.GONE_MS", 700)
    gate = asyncio.Event()
    ours, theirs = schedulers(tmp_path / "s.db", gate, budgets=Budget("team", "$1"))
    ours.concurrency = 1
    async with ours:
        running = ours.submit(Request.chat("m", "x", budget="team"))
        await until(lambda: running.is_running)
        waiting = ours.submit(Request.chat("m", "y", budget="team"))
        await until(lambda: waiting.request_id)
        async with frozen(ours, 1.2), theirs:
            await theirs.run(Request.chat("m", "z", budget="team"))
            assert (await theirs.store.counts()).cancelled == 2
        gate.set()

        answers = await asyncio.wait_for(asyncio.gather(running, waiting), 20)

        assert [each.body for each in answers] == [{"ok": True}] * 2
        await asyncio.wait_for(ours.join(), 60)
        (cap,) = ours.stats().budgets[0].caps
        assert (cap.posted, cap.reserved) == (30_000_000, 0)  # three calls, once each


async def test_join_waits_for_what_a_lost_process_has_left(tmp_path):
    ours, theirs = schedulers(tmp_path / "s.db", budgets=Budget("team", "$0"))
    async with ours:
        taken = [ours.submit(Request.chat("m", "x", key=key, budget="team")) for key in "ab"]
        kept = [ours.submit(Request.chat("m", "y", key=key, budget="team")) for key in "cd"]
        await until(lambda: all(each.parked for each in (*taken, *kept)))
        async with frozen(ours, 1.0), theirs:
            await theirs.define(Budget("team", "$1"))
            for key in "ab":
                await theirs.run(Request.chat("m", "x", key=key, budget="team"))
            await theirs.define(Budget("team", "$0"))
        await asyncio.wait_for(asyncio.gather(*taken), 20)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.join(), 1)

        assert sum(ours.stats().parked.values()) == 2
        await ours.define(Budget("team", "$1"))
        await asyncio.wait_for(asyncio.gather(*kept, ours.join()), 20)


async def test_who_took_a_key_over_hears_of_the_answer_that_comes_after_all(tmp_path):
    gate = asyncio.Event()
    ours, theirs = schedulers(tmp_path / "s.db", gate, budgets=Budget("team", "$0.01"))
    async with ours, theirs:
        running = ours.submit(Request.chat("m", "x", key="a", budget="team"))
        await until(lambda: running.is_running)
        async with frozen(ours, 1.0):
            taken = theirs.submit(Request.chat("m", "x", key="a", budget="team"))
            while taken.parked is None:  # what may have been paid for is all there is
                await asyncio.sleep(0.05)
        gate.set()

        answers = await asyncio.wait_for(asyncio.gather(running, taken), 10)

        assert [each.body for each in answers] == [{"ok": True}] * 2
        await asyncio.wait_for(theirs.join(), 60)
        assert theirs.store.lanes() == []


async def test_a_caller_who_comes_as_another_process_gives_a_key_up_is_not_lost(tmp_path):
    ours, theirs = (
        Scheduler(
            store_of(tmp_path / "s.db", host), budgets=Budget("team", "$0"), providers=provider()
        )
        for host in ("here", "there")
    )  # with the usual lease: neither takes the other for lost, however busy the machine is
    request = Request.chat("m", "x", key="a", budget="team")

    async def write():
        for n in itertools.count(1):
            await theirs.define(Budget("other", f"${n}"))
            await asyncio.sleep(0.05)

    async with ours, theirs, asyncio.timeout(60):
        given_up = theirs.submit(request)
        while given_up.parked is None:  # so that it is theirs
            await asyncio.sleep(0.05)
        writing = asyncio.create_task(write())
        follows = ours.submit(request)
        while follows.parked is None:  # though the file changes all the time
            await asyncio.sleep(0.05)
        writing.cancel()
        async with frozen(ours, 0.0):
            given_up.cancel()
            # Not until its state says so: what `ours` was about to ask may have queued it anew.
            while theirs.store.lanes():
                await asyncio.sleep(0.05)
            comes = ours.submit(request)  # before it is known here that nobody has it
            while comes.parked is None:
                await asyncio.sleep(0.05)
        await theirs.define(Budget("team", "$1"))

        answers = await asyncio.gather(follows, comes)

        assert [each.body for each in answers] == [{"ok": True}] * 2
        await ours.join()
