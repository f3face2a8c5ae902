"""Which journal a file has, who may change it, and that all who are in it agree."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import sys

import pytest

from scheduler.budget import Budget
from scheduler.errors import StoreLocked
from scheduler.stores import file as stores_file
from scheduler.stores import sqlite as stores_sqlite
from scheduler.stores.lockfile import LockFile
from scheduler.stores.sqlite import SqliteStore
from tests.stores import newest
from tests.stores.conformance import T0, Bench, new, post
from tests.stores.disk import Disk, DiskFile, World, bench_on, work
from tests.stores.test_lockfile import is_free

NO_LOG = "it is on a nfs4 file system"


@pytest.fixture
def far(monkeypatch):
    """Sets whether stores that are opened see the file through a network."""

    def see(why=NO_LOG):
        monkeypatch.setattr(stores_file, "why_no_log", lambda path: why)

    return see


async def opened(path, **options) -> SqliteStore:
    store = SqliteStore(path, **options)
    await store.open(T0)
    return store


async def pragma(store: SqliteStore, name: str):
    return await store._run(lambda db: db.execute(f"PRAGMA {name}").fetchone()[0])


async def spend(store: SqliteStore, key: str) -> int:
    """Spend 4 of what there is; what is posted then."""
    bench = Bench(store)
    await bench.define(Budget("team", "$0.0000001/day"))
    (claimed,) = (await bench.submit(new([bench.ids["team"]], key=key))).claimed
    await bench.settle(post(claimed, 4), slots=None)
    return (await bench.balance())[0]


async def test_a_commit_is_in_a_log_that_is_synced_and_that_stays_small(tmp_path):
    store = await opened(tmp_path / "s.db")

    assert await pragma(store, "journal_mode") == "wal"
    assert await pragma(store, "synchronous") == 2  # FULL
    assert await pragma(store, "wal_autocheckpoint") == stores_sqlite.LOG_PAGES
    assert await pragma(store, "journal_size_limit") == stores_file.KEPT_JOURNAL_BYTES
    assert {each.name for each in tmp_path.iterdir()} == {
        "s.db", "s.db-wal", "s.db-shm", "s.db.write-lock",
    }  # fmt: skip
    modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {0o600}
    await store.aclose()
    assert {each.name for each in tmp_path.iterdir()} == {"s.db", "s.db.write-lock"}


async def test_a_file_without_a_log_gets_one_when_it_is_opened_where_that_is_safe(tmp_path, far):
    path = tmp_path / "s.db"
    far()
    store = await opened(path)
    assert await pragma(store, "journal_mode") == "persist"
    assert await spend(store, "a") == 4
    await store.aclose()
    assert (tmp_path / "s.db-journal").exists()
    assert not (tmp_path / "s.db.write-lock").exists()  # locks may not work there either

    far(None)
    store = await opened(path)
    assert await pragma(store, "journal_mode") == "wal"
    assert not (tmp_path / "s.db-journal").exists()
    assert await spend(store, "b") == 8
    await store.aclose()


async def test_a_folder_in_which_a_log_does_not_work_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(stores_file, "tried", lambda folder: f"{folder.name} has no memory")
    store = await opened(tmp_path / "s.db")
    assert await pragma(store, "journal_mode") == "persist"
    assert await spend(store, "a") == 4
    await store.aclose()


async def test_a_file_that_others_read_stays_as_it_is_and_all_go_on(tmp_path, far, monkeypatch):
    monkeypatch.setattr(stores_file, "CHANGING_MS", 20)
    path = tmp_path / "s.db"
    far()
    await (await opened(path)).aclose()
    far(None)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        first = await opened(path)
        assert await pragma(first, "journal_mode") == "persist"
        reader.execute("ROLLBACK")
    assert await spend(first, "a") == 4

    second = await opened(path)
    assert [await spend(second, "b"), await spend(first, "c")] == [8, 12]
    assert [await pragma(each, "journal_mode") for each in (second, first)] == ["wal", "wal"]
    await first.aclose()
    await second.aclose()


async def test_who_sees_it_through_a_network_does_not_share_a_log(tmp_path, far):
    """Neither one that is there, nor one that is begun while it has the file open."""
    path = tmp_path / "s.db"
    far()
    distant = await opened(path)
    assert await spend(distant, "a") == 4
    far(None)
    near = await opened(path)
    assert await spend(near, "b") == 8

    with pytest.raises(StoreLocked, match=f"write-ahead log.*{NO_LOG}; nothing was changed"):
        await distant.define([Budget("other", "$1")], T0)
    await distant.aclose()
    far()
    with pytest.raises(StoreLocked, match=f"write-ahead log.*{NO_LOG}; nothing was changed"):
        await opened(path)
    await near.aclose()

    alone = await opened(path)  # which turns it back
    assert await pragma(alone, "journal_mode") == "persist"
    assert await spend(alone, "c") == 12
    await alone.aclose()


async def test_an_older_version_at_work_keeps_its_journal(tmp_path, far):
    path = tmp_path / "s.db"
    far()
    older = await opened(path)
    await Bench(older).submit(new(key="a"))  # as a process that is there
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 8")
    far(None)
    with pytest.raises(StoreLocked, match="older version"):
        await opened(path)
    assert await pragma(older, "journal_mode") == "persist"
    await older.aclose()

    await (await opened(path)).aclose()
    assert path.read_bytes()[18] == 2  # a log since then


# Who is alone when


@pytest.mark.skipif(sys.platform == "win32", reason="SQLite calls its files otherwise there")
@pytest.mark.parametrize("pages", [3, 1_000], ids=["commits checkpoint", "closing does"])
async def test_whatever_is_written_to_file_or_log_is_written_under_the_lock(
    tmp_path, monkeypatch, pages
):
    """From the file's making over commits and checkpoints to its closing, seen by the file system."""
    path, free, kinds = tmp_path / "s.db", [], set()
    disk = Disk(f"locked-{pages}")
    newest.install(monkeypatch.setattr, disk.name)
    monkeypatch.setattr(stores_sqlite, "LOG_PAGES", pages)
    plain_write, plain_truncate = DiskFile.xWrite, DiskFile.xTruncate

    def check(self, what):
        name = self.path.removeprefix(str(path))
        if name in ("", "-wal", "-journal"):
            kinds.add((name, what))
            if is_free(path):
                free.append((name, what))

    def write(self, data, offset):
        check(self, "write")
        plain_write(self, data, offset)

    def truncate(self, size):
        check(self, "truncate")
        plain_truncate(self, size)

    monkeypatch.setattr(DiskFile, "xWrite", write)
    monkeypatch.setattr(DiskFile, "xTruncate", truncate)
    world = World()
    await work(bench_on(SqliteStore(path), dead=True), world, lambda: None)
    disk.unregister()

    assert world.billed > 0
    assert {("", "write"), ("-wal", "write")} <= kinds
    assert free == []


async def test_a_close_that_does_not_get_its_turn_closes_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(stores_file, "CLOSING_S", 0.02)
    store = await opened(tmp_path / "s.db")
    assert await spend(store, "a") == 4
    other = LockFile(store.path)
    with other.held(0):
        store._transactions.worker_id = 0  # nothing to sign off
        await store.aclose()
    other.close()
    assert not (tmp_path / "s.db-wal").exists()
    store = await opened(tmp_path / "s.db")
    assert await spend(store, "b") == 8
    await store.aclose()


async def test_a_turn_that_others_do_not_give_is_a_clear_error_while_the_loop_goes_on(tmp_path):
    path = tmp_path / "s.db"
    store = await opened(path, patience_s=0.2)
    other, ticks = LockFile(path), 0
    with other.held(0):
        waiting = asyncio.ensure_future(store.define([Budget("team", "$1")], T0))
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(StoreLocked, match=r"s\.db is held by another process"):
            await waiting
    other.close()
    assert ticks > 3
    await store.define([Budget("team", "$1")], T0)
    await store.aclose()


async def test_opening_a_file_that_this_process_has_open_does_not_end_its_locks(tmp_path):
    """As closing any file of it would: then another process could take it for its own."""
    path = tmp_path / "s.db"
    first = await opened(path)
    await first._run(lambda db: db.execute("BEGIN IMMEDIATE"))
    second = await opened(path)
    code = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)\n"
        "print(db.execute('PRAGMA journal_mode = delete').fetchone()[0])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, told = await process.communicate()

    assert b"database is locked" in told
    await first._run(lambda db: db.execute("ROLLBACK"))
    await first.aclose()
    await second.aclose()
