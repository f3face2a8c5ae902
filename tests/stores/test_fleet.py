"""Who sends what others submit, and what waits for a provider that nobody serves."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from scheduler.budget import Budget
from scheduler.stores.file import SCHEMA_VERSION
from scheduler.stores.process import Process, this_process
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, new, post
from tests.stores.test_shared_lanes import LEASE_MS, shared

pytestmark = pytest.mark.anyio
OPENAI = {"p": "https://one.example/v1"}


class Fleet:
    """Processes on one file."""

    def __init__(self, path):
        self.path, self.benches, self.ids = path, [], {}

    async def one(self, serves=None, *, at_once=4, process=None, registers=True):
        store = SqliteStore(self.path)
        if process is not None:
            store._transactions.process = process
        bench = Bench(store)
        if self.benches:
            bench.now_ms = max(each.now_ms for each in self.benches)
        await store.open(bench.now_ms)
        if not self.benches:
            await bench.define(Budget("team", "$1"))
            self.ids = bench.ids
        bench.ids = self.ids
        self.benches.append(bench)
        if serves is not None:
            store.serve(serves, at_once=at_once)
        if registers:
            await bench.turn(0)
        return bench

    def pass_ms(self, ms):
        for each in self.benches:
            each.now_ms += ms


@pytest.fixture
async def fleet(tmp_path):
    made = Fleet(tmp_path / "s.db")
    yield made
    for each in made.benches:
        await each.store.aclose()


def asks(service, *, key, provider="p", need=10):
    made = shared([1], need, key=key)
    made.lane = made.lane._replace(service=service, provider=provider)
    return made


async def told(bench, job=None):
    return [
        (each.provider, each.service, each.waiting)
        for each in await bench.store.unserved(bench.now_ms, job)
    ]


async def test_a_worker_says_what_it_serves_how_many_at_once_and_since_when(fleet):
    await fleet.one(OPENAI, at_once=7)
    looking = await fleet.one(registers=False)

    (worker,) = await looking.store.workers(looking.now_ms)

    assert (worker.pid, worker.serves, worker.own) == (os.getpid(), OPENAI, frozenset())
    assert (worker.concurrency, worker.running, worker.is_live) == (7, 0, True)
    assert worker.since_ms == worker.seen_at_ms == T0
    assert worker.host
    assert " " not in worker.host


async def test_who_sends_nothing_for_others_is_no_worker(fleet):
    await fleet.one(OPENAI, at_once=None)  # a client
    looking = await fleet.one({}, at_once=5)  # it has functions of its own only

    assert await looking.store.workers(T0) == []


async def test_what_it_serves_later_is_told_with_the_next_turn(fleet):
    worker = await fleet.one(OPENAI)
    worker.store.serve(OPENAI | {"q": "https://two.example"}, at_once=9)
    await worker.turn(0)

    (told,) = await worker.store.workers(worker.now_ms)

    assert set(told.serves) == {"p", "q"}
    assert told.concurrency == 9


async def test_its_calls_under_way_are_counted_and_it_is_seen_with_each_heartbeat(fleet):
    worker = await fleet.one(OPENAI)
    claimed = (await worker.submit(*[asks(OPENAI["p"], key=f"k{n}") for n in range(3)])).claimed
    assert [each.running for each in await worker.store.workers(T0)] == [len(claimed)] == [3]

    worker.now_ms += LEASE_MS // 3
    await worker.settle(*[post(each, 1) for each in claimed])

    (status,) = await worker.store.workers(worker.now_ms)
    assert (status.running, status.since_ms, status.seen_at_ms) == (0, T0, worker.now_ms)


async def test_one_that_is_silent_or_dead_is_not_live(fleet):
    me = this_process()
    worker = await fleet.one(OPENAI)
    looking = await fleet.one(registers=False)
    worker_ms = worker.now_ms
    dead = Process(me.host, 2**22 + 1, "1")
    await fleet.one(OPENAI, process=dead)

    live = {each.pid: each.is_live for each in await looking.store.workers(worker_ms)}
    assert live == {me.pid: True, dead.pid: False}
    late_ms = worker_ms + LEASE_MS + 1
    assert not any(each.is_live for each in await looking.store.workers(late_ms))


async def test_what_no_live_worker_serves_is_told_by_provider_and_service(fleet):
    worker = await fleet.one(OPENAI)
    client = await fleet.one(OPENAI, at_once=None)
    other, gone = "https://two.example/v1", "https://three.example/v1"
    await client.submit(
        asks(OPENAI["p"], key="served"),
        *[asks(other, key=f"o{n}") for n in range(3)], asks(gone, key="g", provider="q"), slots=0,
    )  # fmt: skip

    assert await told(client) == [("p", other, 3), ("q", gone, 1)]
    assert await told(client, "default") == []
    assert await told(client, new(key="x").request.job) == await told(client)

    fleet.pass_ms(LEASE_MS + 1)  # its worker is silent, too
    assert ("p", OPENAI["p"], 1) in await told(client)
    await worker.turn(0)
    assert ("p", OPENAI["p"], 1) not in await told(client)


async def test_what_a_circle_shares_waits_for_its_own_command(fleet):
    service = f"{OPENAI['p']} c1rc1e"
    run = await fleet.one({"p": service})
    await run.submit(asks(service, key="k"), asks(OPENAI["p"], key="anybodys"), slots=0)

    (status,) = await run.store.workers(T0)

    assert (status.serves, status.own) == (OPENAI, {"p"})
    assert await told(run) == [("p", OPENAI["p"], 1)]  # it is not this one's business


async def test_what_a_dead_worker_was_sending_waits_for_one_that_lives(fleet):
    me = this_process()
    dead = await fleet.one(OPENAI, process=Process(me.host, 2**22 + 1, "1"))
    await dead.submit(asks(OPENAI["p"], key="sent"), asks(OPENAI["p"], key="waits"), slots=1)
    looking = await fleet.one(registers=False)
    assert await told(looking) == [("p", OPENAI["p"], 2)]
    assert await told(looking, new(key="x").request.job) == [("p", OPENAI["p"], 2)]
    assert await told(looking, "default") == []

    await fleet.one(OPENAI)
    assert await told(looking) == []


# Silence


async def test_one_that_stands_still_on_this_machine_is_lost_after_its_lease(fleet):
    stopped = await fleet.one(OPENAI)
    other = await fleet.one(OPENAI)
    (claimed,) = (await stopped.submit(asks(OPENAI["p"], key="k"))).claimed
    for _ in range(4):  # the other one goes on all the time
        other.now_ms += LEASE_MS // 3
        last = (await other.turn()).claimed

    assert [each.request.key for each in last] == ["k"]
    assert [each.id for each in await other.store.suspended()] == [claimed.reservation_id]

    stopped.now_ms = other.now_ms
    back = await stopped.settle(post(claimed, 4))
    assert back.was_lost
    assert back.claimed == []
    assert (await other.balance())[0] == 4  # what it had sent is settled by its answer
    await other.settle(post(last[0], 3))


async def test_who_stood_still_itself_takes_nobody_of_its_machine_for_lost_at_once(fleet):
    one, other = await fleet.one(OPENAI), await fleet.one(OPENAI)
    (claimed,) = (await one.submit(asks(OPENAI["p"], key="k"))).claimed
    fleet.pass_ms(10 * LEASE_MS)  # the machine slept

    assert (await other.turn()).claimed == []
    assert await other.store.suspended() == []
    assert not (await one.settle(post(claimed, 4))).was_lost

    fleet.pass_ms(LEASE_MS // 3)
    await other.turn()
    assert await other.store.suspended() == []


# Older files


async def test_a_file_of_the_version_before_is_brought_up_to_date(tmp_path):
    path = tmp_path / "s.db"
    store = SqliteStore(path)
    await store.open(T0)
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE notes")
        db.execute("DROP TABLE papers")
        db.execute("DROP TABLE pages")
        db.execute("DROP TABLE took")
        db.execute("DROP TABLE lengths")
        db.execute("DROP TABLE outbox")
        db.execute("DROP INDEX accounts_at_risk")
        db.execute("ALTER TABLE accounts DROP COLUMN risk")
        db.execute("ALTER TABLE workers DROP COLUMN about")
        db.execute("DROP INDEX requests_due")
        db.execute("ALTER TABLE requests DROP COLUMN due_at_ms")
        db.execute("DROP INDEX lanes_shared")
        db.execute("ALTER TABLE lanes DROP COLUMN tenant")
        db.execute("ALTER TABLE lanes DROP COLUMN is_due")
        db.execute(
            "CREATE UNIQUE INDEX lanes_shared ON lanes"
            " (provider, model, budgets, priority, may_wait, service) WHERE worker_id = 0"
        )
        db.execute("DROP TABLE tenants")
        db.execute("DROP TABLE spent_of_tags")
        db.execute("DROP INDEX requests_by_end")
        db.execute("ALTER TABLE requests DROP COLUMN tags")
        db.execute("ALTER TABLE reservations DROP COLUMN tags")
        db.execute("PRAGMA user_version = 4")

    store = SqliteStore(path)
    store.serve(OPENAI, at_once=2)
    await store.open(T0)
    await Bench(store).turn(0)

    assert [each.serves for each in await store.workers(T0)] == [OPENAI]
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert path.with_name("s.db.v4.bak").exists()
