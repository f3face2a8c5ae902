"""What a database has that a file has not: a URL, a schema, a clock, and others who are told."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections import Counter

import psycopg
import pytest

from scheduler import Request, Scheduler
from scheduler.budget import Budget
from scheduler.errors import ConfigError, StoreError, StoreForeign, StoreLocked, StoreTooNew
from scheduler.guards.plain import without_password
from scheduler.request import RequestState
from scheduler.stores import open_store
from scheduler.stores.postgres.address import parse
from scheduler.stores.postgres.connection import PostgresConnection
from scheduler.stores.postgres.schema import VERSION
from scheduler.stores.postgres.store import PostgresStore
from scheduler.stores.process import Process
from tests.conftest import Bench as BenchProvider
from tests.conftest import ask
from tests.stores.conformance import T0, Bench, new, post
from tests.stores.test_statements import MOST, Work, all_kinds

TEAM = Budget("team", "$0.0000001/day")  # 100 nano-dollars


def plain(url: str) -> str:
    """A URL without what is ours."""
    return parse(url).url.get_secret_value()


# Names


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_names_a_store(scheme):
    store = open_store(f"{scheme}://ann:the-password@db.example.com/calls?sslmode=require&schema=q")

    assert isinstance(store, PostgresStore)
    assert store.address.schema == "q"
    assert plain(f"{scheme}://ann:pw@db/calls?schema=q&sslmode=require") == (
        f"{scheme}://ann:pw@db/calls?sslmode=require"
    )
    assert "the-password" not in repr(store) + repr(store.address) + repr(vars(store))


@pytest.mark.parametrize(
    "wrong", ["schema=", "notify=perhaps", "patience=soon", f"schema={'x' * 64}"]
)
def test_what_it_does_not_understand_of_a_url_is_refused_without_the_password(wrong):
    with pytest.raises(ConfigError) as failure:
        open_store(f"postgresql://ann:the-password@db/calls?{wrong}")

    assert "the-password" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://ann:the-pass%word@127.0.0.1:1/x", "postgresql://ann:the-password@127.0.0.1:port/x",
     "postgresql://ann:the-password@127.0.0.1:1/x?nonsense=the-password",
     "postgresql://ann:the-password@127.0.0.1:1/x?password=the-password"],
)  # fmt: skip
async def test_what_libpq_does_not_understand_is_refused_without_the_password(url):
    store = open_store(url)
    with pytest.raises(StoreError) as failure:
        await store.open(T0)

    error: BaseException | None = failure.value
    while error is not None:
        assert "the-pass" not in str(error)
        frame = error.__traceback__
        while frame is not None:
            if "test_store" not in frame.tb_frame.f_code.co_filename:
                assert "the-pass" not in repr(frame.tb_frame.f_locals)
            frame = frame.tb_next
        error = error.__cause__ or error.__context__


def test_without_psycopg_the_extra_is_named():
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from scheduler import Scheduler\n"
        "try: Scheduler('postgresql://ann:the-password@db/calls')\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "llm-budget-scheduler[postgres]" in done.stdout
    assert done.stdout.startswith("ConfigError")
    assert "the-password" not in done.stdout


# The schema


async def test_stores_in_two_schemas_know_nothing_of_each_other(fresh, opened):
    one = Bench(await opened())
    await one.define(TEAM)
    other = PostgresStore(fresh())
    await other.open(T0)

    assert await other.budgets(T0) == []
    await other.aclose()


async def test_many_make_the_tables_at_once_and_all_are_well(url):
    stores = [PostgresStore(url) for _ in range(6)]
    await asyncio.gather(*(store.open(T0) for store in stores))
    await stores[0].define([TEAM], T0)

    assert {len(await store.budgets(T0)) for store in stores} == {1}
    for store in stores:
        await store.aclose()


async def test_looking_makes_nothing(url):
    store = PostgresStore(url, create=False)
    with pytest.raises(StoreError, match="there is no store in the schema"):
        await store.open(T0)
    with psycopg.connect(plain(url)) as db:
        found = db.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s",
                           (parse(url).schema,)).fetchone()  # fmt: skip
    assert found == (0,)


async def test_a_newer_schema_is_refused(opened, url):
    await opened()
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"UPDATE {parse(url).schema}.store SET version = {VERSION + 1}")
    with pytest.raises(StoreTooNew):
        await PostgresStore(url).open(T0)


# As a store of version 5 had it.
_FIVE = """
DROP TABLE lengths, notes, papers, pages, took, outbox;
ALTER TABLE accounts DROP COLUMN risk;
DROP INDEX requests_queued, reservations_made;
CREATE INDEX requests_queued ON requests (lane_id, id) WHERE state = 'queued';
CREATE INDEX reservations_made ON reservations (made_at_ms);
ALTER TABLE requests RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
  autovacuum_analyze_scale_factor);
ALTER TABLE reservations RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
  autovacuum_analyze_scale_factor);
ALTER TABLE accounts RESET (fillfactor);
ALTER TABLE balances RESET (fillfactor);
ALTER TABLE lanes RESET (fillfactor);
ALTER TABLE tallies RESET (fillfactor);
ALTER TABLE spent RESET (fillfactor);
ALTER TABLE spent_of_budgets RESET (fillfactor);
DROP TABLE tenants, spent_of_tags;
DROP INDEX requests_by_end;
ALTER TABLE requests DROP COLUMN tags;
ALTER TABLE reservations DROP COLUMN tags;
DROP INDEX requests_due;
ALTER TABLE requests DROP COLUMN due_at_ms;
DROP INDEX lanes_shared;
ALTER TABLE lanes DROP COLUMN tenant, DROP COLUMN is_due;
CREATE UNIQUE INDEX lanes_shared ON lanes
  (provider, model, budgets, priority, may_wait, service) WHERE worker_id = 0;
UPDATE store SET version = 5
"""


def laid_out(url):
    """Indexes and options of all tables."""
    schema = parse(url).schema
    with psycopg.connect(plain(url)) as db:
        indexes = db.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = %s", (schema,))
        found = {row[0].replace(f"{schema}.", "") for row in indexes.fetchall()}
        options = db.execute(
            "SELECT relname, reloptions FROM pg_class WHERE relnamespace = %s::regnamespace"
            " AND reloptions IS NOT NULL",
            (schema,),
        )
        return found, {(name, *sorted(each)) for name, each in options.fetchall()}


async def test_an_older_schema_is_brought_up_to_date_while_nobody_works_on_it(opened, url):
    old = await opened()
    bench = Bench(old)
    await bench.define(TEAM)
    await bench.submit(new([bench.ids["team"]], 5, key="a"))
    wanted = laid_out(url)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"SET search_path TO {parse(url).schema}")
        db.execute(_FIVE)
        db.execute("UPDATE workers SET seen_at_ms = extract(epoch FROM now()) * 1000")

    assert laid_out(url) != wanted
    with pytest.raises(StoreLocked, match=r"version 5, .* 1 processes of the older one"):
        await PostgresStore(url).open(T0)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"DELETE FROM {parse(url).schema}.workers")  # as it leaves
    store = await opened()

    assert laid_out(url) == wanted
    assert [row.key for row in await store.queue(list(RequestState), T0)] == ["a"]


async def test_a_schema_of_another_program_is_left_alone(url):
    schema = parse(url).schema
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        db.execute(f"CREATE TABLE {schema}.requests (id int)")
    with pytest.raises(StoreForeign, match="another program"):
        await PostgresStore(url).open(T0)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"DROP SCHEMA {schema} CASCADE")


async def test_who_may_not_make_a_schema_may_use_one_or_is_told(url):
    address = parse(url)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS weak")
        db.execute("CREATE ROLE weak LOGIN PASSWORD 'the-password'")
        database = db.info.dbname
        db.execute(f"REVOKE CREATE ON DATABASE {database} FROM weak")
        host, port = db.info.host, db.info.port
    weak = f"postgresql://weak:the-password@{host}:{port}/{database}?schema={address.schema}"
    with pytest.raises(StoreError, match="CREATE SCHEMA"):
        await PostgresStore(weak).open(T0)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {address.schema} AUTHORIZATION weak")
    store = PostgresStore(weak)
    await store.open(T0)
    await store.define([TEAM], T0)
    await store.aclose()
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute("SET client_min_messages = error")
        db.execute("DROP OWNED BY weak CASCADE")
        db.execute("DROP ROLE weak")


# What cannot be stored


@pytest.mark.parametrize("what", ["key", "job", "model", "provider"])
@pytest.mark.parametrize("name", ["a\0b", "é" * 1_100])
async def test_names_that_it_could_not_find_again_are_refused(opened, what, name):
    store = await opened()
    asked = new(key="k")
    if what == "provider":
        asked.lane = asked.lane._replace(provider=name)
    elif what == "model":
        asked.request = Request.chat(name, "hi")
    else:
        asked.request = Request.chat("m", "hi", **{"key": "k", what: name})
    with pytest.raises(ConfigError, match=what):
        store.prepare(asked)


async def test_what_others_say_is_stored_whatever_it_is(opened):
    bench = Bench(await opened())
    await bench.define(TEAM)
    (claimed,) = (
        await bench.submit(new([bench.ids["team"]], 30, key="k", body="a\0\ud800"))
    ).claimed
    said = post(claimed, 5)
    said.error = {"message": "no\0thing \ud800"}
    said.why, said.provider_id = "why\0", "id\0\ud800"

    await bench.settle(said)

    (done,) = [each async for each in bench.store.finished("")]
    assert done.error == {"message": "no\0thing \ud800"}
    with pytest.raises(ConfigError):
        await bench.store.define([Budget("a\0b", "$1")], T0)


# Time


async def test_leases_and_windows_go_by_the_databases_clock(url):
    """One process's clock is an hour behind, the other's an hour ahead."""
    stores = [PostgresStore(url), PostgresStore(url)]
    hour_ms, now_ms = 3_600_000, int(time.time() * 1000)
    for number, store in enumerate(stores):
        store._transactions.process = Process(f"far {number}", 1, "1")
    behind, ahead = benches = [Bench(store) for store in stores]
    behind.now_ms, ahead.now_ms = now_ms - hour_ms, now_ms + hour_ms
    for bench in benches:
        await bench.store.open(bench.now_ms)
    await behind.define(Budget("team", "$0.0000001/10m"))
    ahead.ids = behind.ids
    (claimed,) = (await behind.submit(new([behind.ids["team"]], 60, key="a"))).claimed

    after = await ahead.submit(new([ahead.ids["team"]], 60, key="b"), new([], 1, key="c"))

    assert [each.request.key for each in after.claimed] == ["c"]  # no window has rolled
    assert abs(after.claimed[0].made_at_ms - now_ms) < 60_000
    assert 0 < after.lease_ms <= ahead.store.lease_ms
    (status,) = await ahead.store.budgets(ahead.now_ms)
    assert (status.caps[0].reserved, status.caps[0].suspense) == (60, 0)  # nobody took it for dead
    assert (await behind.settle(post(claimed, 10))).settled == [True]
    assert await behind.is_sound()
    for store in stores:
        await store.aclose()


async def test_a_scheduler_goes_by_the_stores_clock(url):
    async with Scheduler(url, providers=BenchProvider()) as s:
        assert s._clock is s.store.clock
        assert (await s.run(ask(key="a"))).cost_nusd == 60
        assert abs(s._clock.now_ms() - time.time() * 1000) < 60_000


# Others


@pytest.mark.parametrize("notify", ["on", "off"])
async def test_a_raise_wakes_who_waits_elsewhere(url, notify, caplog):
    caplog.set_level(logging.WARNING, "scheduler.pump")
    url = f"{url}&notify={notify}"
    options = {"providers": BenchProvider(), "poll_interval": 30 if notify == "on" else 0.1}
    async with (
        Scheduler(url, budgets=[TEAM], **options) as one,
        Scheduler(url, **options) as two,
    ):
        await one.run(ask(key="spent", ceiling=100, cost=100))
        waiting = two.submit(ask(key="waits", ceiling=100))
        while waiting.parked is None:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)  # so that it listens
        await one.set_limit("team", "$1")

        async with asyncio.timeout(20):
            assert (await waiting).cost_nusd == 60
        assert bool(two.store._ears) == (notify == "on")
    assert not caplog.records


async def test_work_for_anybody_and_its_answer_are_heard_of_at_once(url):
    """Each looks only every half a minute; what is told in between arrives."""
    worker = BenchProvider()
    worker.service = "somewhere"
    client = BenchProvider()
    client.service = "somewhere"
    async with (
        Scheduler(url, providers=worker, poll_interval=30),
        Scheduler(url, providers=client, role="client", poll_interval=30) as c,
    ):
        await asyncio.sleep(0.3)
        async with asyncio.timeout(20):
            assert (await c.run(ask(key="a"))).cost_nusd == 60
    assert (len(worker.sent), len(client.sent)) == (1, 0)


async def test_nobody_is_told_who_need_not_look(opened, monkeypatch):
    bench = Bench(await opened())
    told: list[str] = []
    monkeypatch.setattr(bench.store._session, "notify", told.append)
    await bench.define(TEAM)
    await asyncio.sleep(0.05)
    assert len(told) == 1  # a budget is new

    for number in range(5):
        result = await bench.submit(new([bench.ids["team"]], 5, key=f"{number}"))
        await bench.settle(*[post(each, 1) for each in result.claimed])
    await bench.turn(0)
    await asyncio.sleep(0.05)

    assert len(told) == 1  # it is alone


# What a turn costs


@pytest.fixture
def counted(monkeypatch):
    """Statements by their beginning, and round trips."""
    counts: Counter[str] = Counter()
    execute, expect_all = PostgresConnection._execute, PostgresConnection._expect_all

    def executing(self, sql, values=()):
        counts[sql[:90]] += 1
        return execute(self, sql, values)

    def expecting(self):
        counts["(round trips)"] += 1
        return expect_all(self)

    monkeypatch.setattr(PostgresConnection, "_execute", executing)
    monkeypatch.setattr(PostgresConnection, "_expect_all", expecting)
    return counts


async def test_a_turn_takes_as_many_round_trips_however_many_requests_are_in_it(fresh, counted):
    found = {}
    for size in (1, 64, 300):
        work = Work(None, size, 1, counted)
        store = PostgresStore(fresh())
        store.clock = None
        work.bench = Bench(store)
        async with work:
            await all_kinds(work)
            assert await work.bench.is_sound()
        found[size] = work.most
    for name in found[1]:
        few, *more = (sum(found[size][name].values()) for size in found)
        trips = [found[size][name]["(round trips)"] for size in found]
        assert few - trips[0] <= MOST + 6, found[1][name]
        assert max(trips) <= 20, (name, trips)
        assert max(more) <= few + 6, (name, found[1][name], found[300][name])


def test_a_password_is_not_shown_where_a_store_is_named():
    url = "postgresql://ann:the-password@db:5432/calls?schema=q&sslpassword=the-password&notify=off"

    shown = without_password(url)

    assert shown == "postgresql://***@db:5432/calls?schema=q&sslpassword=***&notify=off"
