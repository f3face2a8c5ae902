"""A file after its process: older versions, lost leases, keyless requests, prompts not kept."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scheduler import Scheduler
from scheduler.budget import Budget
from scheduler.core.steady import Steady
from scheduler.errors import ConfigError, StoreLocked
from scheduler.request import RequestState
from scheduler.stores.base import Outcome
from scheduler.stores.file import SCHEMA_VERSION
from scheduler.stores.process import GONE_MS, Process
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench as Provider
from tests.conftest import ask, until
from tests.stores.conformance import T0, Bench, end, new, post
from tests.stores.test_sqlite import other_process

QUEUED, SUCCEEDED = RequestState.QUEUED, RequestState.SUCCEEDED
V1 = Path(__file__).with_name("schema_v1.sql")


async def opened(path: Path, **options) -> SqliteStore:
    store = SqliteStore(path, **options)
    await store.open(T0)
    return store


@pytest.fixture
async def bench(tmp_path):
    made = Bench(await opened(tmp_path / "s.db"))
    await made.define(Budget("team", "$0.0000001/day"))
    yield made
    await made.store.aclose()


def rows(path: Path, sql: str) -> list[tuple]:
    """What a file says, closed again at once."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


# An older file


def make_v1(path: Path, *, worker: Process | None = None) -> None:
    """A file as the first version left it: one posted, one in suspense, one waiting."""
    db = sqlite3.connect(path)
    db.executescript(V1.read_text())
    db.executescript(
        f"""
        PRAGMA application_id = {0x4C4C4D53}; PRAGMA user_version = 1;
        INSERT INTO budgets VALUES (1, 'team', '{{"spec": "$1/day", "models": [], "tags": {{}}, "parent": null}}', 0);
        INSERT INTO accounts (id, budget_id, position, cap) VALUES (1, 1, 0, '$1/day');
        INSERT INTO balances VALUES (1, {T0}, 7, 10, 10, 0);
        INSERT INTO jobs VALUES (1, '');
        INSERT INTO lanes (id, worker_id, provider, budgets, priority, may_wait, waiting) VALUES (1, 9, 'p', ',1,', 10, 1, 1);
        INSERT INTO tallies VALUES (1, 'succeeded', 1), (1, 'failed', 1), (1, 'queued', 1);
        INSERT INTO responses VALUES (1, '{{"body": {{"n": 1}}, "usage": null}}');
        """
    )
    columns = (
        "id, job_id, key, digest, lane_id, state, model, ceiling_nusd, ceiling_tokens, expected_nusd,"
        " submitted_at_ms, parked_mark_ms, cost_nusd, attempts, reservation_id, is_delivered, payload"
    )
    for number, state in ((1, "succeeded"), (2, "failed"), (3, "queued")):
        digest = new(key="k").digest
        values = (
            number, 1, f"k{number}", digest, 1, state, "m", 10, 10, 5, T0, 0, 7 if number == 1 else 0,
            int(number < 3), number if number < 3 else None, 0, None,
        )  # fmt: skip
        db.execute(f"INSERT INTO requests ({columns}) VALUES ({', '.join('?' * 17)})", values)
    for number, state, nusd in ((1, "posted", 7), (2, "suspense", 0)):
        db.execute(
            "INSERT INTO reservations VALUES (?, ?, 9, 1, ',1,', 'm', ?, ?, ?, 10, 10, ?, ?)",
            (number, number, state, T0, T0, nusd, nusd),
        )
    if worker is not None:
        values = (9, worker.host, worker.pid, worker.started, T0)
        db.execute("INSERT INTO workers VALUES (?, ?, ?, ?, ?)", values)
    db.commit()
    db.close()


async def test_an_older_file_is_upgraded_after_a_copy_and_loses_nothing(tmp_path):
    path = tmp_path / "s.db"
    make_v1(path)
    before = path.read_bytes()

    bench = Bench(await opened(path))
    bench.ids = {each.budget.name: each.id for each in await bench.store.budgets(T0)}

    assert await bench.balance() == (7, 10)
    assert (await bench.store.audit(T0)).discrepancies == ()
    (unknown,) = await bench.store.suspended()
    assert unknown.key == "k2"
    (known, free) = (await bench.submit(new(key="k1"), new([1], key="k3"))).submitted
    assert known.finished.response.body == {"n": 1}
    assert not free.is_known  # its process is gone: it waits under this one now
    await bench.store.aclose()
    copy = tmp_path / "s.db.v1.bak"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(copy, "PRAGMA user_version") == [(1,)]
    assert len(copy.read_bytes()) == len(before)
    assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


async def test_a_copy_that_is_there_already_is_not_taken_for_the_newest(tmp_path):
    path, copy = tmp_path / "s.db", tmp_path / "s.db.v1.bak"
    make_v1(path)
    copy.write_bytes(b"of another day")

    await (await opened(path)).aclose()

    assert copy.read_bytes() == b"of another day"
    assert rows(tmp_path / "s.db.v1.bak2", "SELECT count(*) FROM requests") == [(3,)]
    assert not list(tmp_path.glob("*.part"))


async def test_an_upgraded_file_looks_like_a_new_one(tmp_path):
    make_v1(tmp_path / "old.db")
    for name in ("old.db", "new.db"):
        await (await opened(tmp_path / name)).aclose()

    def shape(name: str) -> object:
        path = tmp_path / name
        tables = rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
        columns = {
            table: sorted(row[1:5] for row in rows(path, f"PRAGMA table_info({table})"))
            for (table,) in tables
        }
        statements = rows(
            path, "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"
        )
        indexes = sorted(" ".join(sql.split()) for (sql,) in statements)
        return columns, indexes

    assert shape("old.db") == shape("new.db")


async def test_a_file_in_use_by_the_older_version_is_not_upgraded(tmp_path):
    path = tmp_path / "s.db"
    me = SqliteStore(path)._transactions.process
    make_v1(path, worker=me)

    with pytest.raises(StoreLocked, match=f"in use by process {me.pid}.*Stop it first"):
        await opened(path)

    assert rows(path, "PRAGMA user_version") == [(1,)]


async def test_a_process_of_the_older_version_that_was_silent_for_long_is_not_waited_for(tmp_path):
    path = tmp_path / "s.db"
    make_v1(path, worker=Process("another machine", 7, "1"))
    store = SqliteStore(path)
    with pytest.raises(StoreLocked, match=r"last seen 1h ago.*taken for gone after a day"):
        await store.open(T0 + 3_600_000)

    await store.open(T0 + GONE_MS + 1)

    assert len(await store.suspended()) == 1
    await store.aclose()


async def test_an_upgrade_that_fails_changes_nothing(tmp_path, monkeypatch):
    from scheduler.stores.sql import upgrade as sqlite_upgrade

    path = tmp_path / "s.db"
    make_v1(path)
    monkeypatch.setitem(sqlite_upgrade.STEPS, 1, (*sqlite_upgrade.STEPS[1], "SELECT nonsense"))
    with pytest.raises(Exception, match="nonsense"):
        await opened(path)

    monkeypatch.undo()
    store = await opened(path)
    assert len(await store.suspended()) == 1
    await store.aclose()


# A process that is gone, or only silent


async def test_without_a_key_what_waits_ends_with_its_process(bench):
    gone = other_process(bench, dead=True)
    await gone.store.open(T0)
    (sent, *_) = (
        await gone.submit(*[new([1], 60) for _ in range(3)], new([1], 60, key="k"))
    ).claimed
    await gone.store._connection.close()
    gone.store._connection = None

    await bench.turn()

    counts = await bench.store.counts()
    assert (counts.cancelled, counts.waiting, counts.running) == (3, 1, 0)
    assert await bench.balance() == (0, 60)  # what may have been sent keeps counting
    late = await bench.settle(post(sent, 20))
    assert late.settled == [True]
    assert await bench.balance() == (20, 0)


async def test_closing_ends_what_waits_without_a_key(bench):
    await bench.submit(new([1], 200), new([1], 200, key="k"))
    await bench.store.aclose()

    again = Bench(await opened(bench.store.path))
    counts = await again.store.counts()
    assert (counts.cancelled, counts.parked) == (1, 1)
    rows = await again.store.queue([RequestState.CANCELLED], T0)
    assert "nobody can ask for it" in rows[0].error["message"]
    await again.store.aclose()


async def test_a_silent_process_keeps_what_has_no_key_and_goes_on_with_it(bench):
    silent = other_process(bench, dead=False)
    await silent.store.open(T0)
    await silent.submit(new([1]), new([1], key="k"), slots=0)
    bench.now_ms += bench.store.lease_ms + 1
    taken = (await bench.submit(new([1], key="k"), slots=0)).submitted
    assert not taken[0].is_known  # the key is taken over

    silent.now_ms = bench.now_ms
    back = await silent.turn()

    assert back.was_lost
    assert [claimed.request.key for claimed in back.claimed] == [None]
    assert await silent.store.still_mine([1, 2]) == {1}
    assert not (await silent.turn()).was_lost
    await silent.store.aclose()


async def test_a_process_silent_for_a_day_is_taken_for_gone(bench):
    silent = other_process(bench, dead=False)
    await silent.store.open(T0)
    await silent.submit(new([1]), slots=0)
    for passed_ms in (bench.store.lease_ms + 1, GONE_MS + 1):
        bench.now_ms = T0 + passed_ms
        await bench.turn()

    assert (await bench.store.counts()).cancelled == 1
    await silent.store.aclose()


async def test_what_a_lost_process_waited_for_is_answered_to_it_all_the_same(tmp_path):
    """Others took it for dead and answered its key; its future gets that answer."""
    ours, theirs = SqliteStore(tmp_path / "s.db"), SqliteStore(tmp_path / "s.db")
    for store, host in ((ours, "here"), (theirs, "there")):
        store._transactions.process = Process(host, 1, "1")
        store.lease_ms = store._transactions.lease_ms = 300
    async with Scheduler(ours, budgets=Budget("team", "$0"), providers=Provider()) as s:
        future = s.submit(ask(1, key="k"))
        await until(lambda: future.parked)
        # The process stands still: nothing of it runs until the others are done.
        s._pump._tasks[1].tear()
        await asyncio.sleep(0.5)
        async with Scheduler(theirs, budgets=Budget("team", "$1"), providers=Provider()) as other:
            assert (await other.run(ask(1, key="k"))).body == {"answer": 1}
        s._pump._tasks[1] = Steady(s._pump._lookout.run(lambda: None), lambda: None, s.loop, "poll")

        response = await asyncio.wait_for(future, 60)

        assert response.body == {"answer": 1}
        assert s.stats().queued == 0
        await asyncio.wait_for(s.join(), 60)


async def test_a_job_that_another_process_runs_is_not_forgotten(bench):
    other = other_process(bench, dead=False)
    await other.store.open(T0)
    await other.submit(new([1], 500, key="k", job="j"))

    with pytest.raises(StoreLocked, match="is running the job 'j'; nothing was changed"):
        await bench.store.forget("j", T0)

    await other.store.aclose()
    await bench.store.forget("j", T0)
    assert (await bench.store.counts("j")).waiting == 0


# Prompts that are not kept


@pytest.mark.parametrize("mode", ["hash", "none"])
async def test_prompts_that_are_not_kept_are_nowhere_in_the_file(tmp_path, mode):
    path = tmp_path / "s.db"
    bench = Bench(await opened(path, store_prompts=mode))
    request = new(key="k", body="a secret question")
    (claimed,) = (await bench.submit(request)).claimed
    assert claimed.request is request.request
    (again,) = (await bench.settle(end(claimed, Outcome.VOID, QUEUED))).claimed
    assert again.request is request.request  # a retry has it too
    await bench.submit(new(body="a secret without a key"), slots=0)
    await bench.store.aclose()

    for file in tmp_path.iterdir():
        assert b"secret" not in file.read_bytes()
    bench = Bench(await opened(path, store_prompts=mode))
    (other,) = (await bench.submit(new(key="k", body="another"), slots=0)).submitted
    assert other.is_conflict is (mode == "hash")
    (same,) = (await bench.submit(request)).claimed  # the same question goes on
    await bench.settle(post(same, 1))
    await bench.store.aclose()


def test_an_unknown_way_to_keep_prompts_is_a_clear_error():
    with pytest.raises(ConfigError, match="'some' is not one of full, hash, none"):
        SqliteStore(Path("x.db"), store_prompts="some")
