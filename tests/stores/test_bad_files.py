"""Files that are damaged, missing, not to be written or held by others: clear errors, no change."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scheduler.budget import Budget
from scheduler.errors import StoreError, StoreLocked
from scheduler.stores import file as stores_file
from scheduler.stores.sqlite import SqliteStore
from tests import warm
from tests.stores import newest
from tests.stores.conformance import T0, new
from tests.stores.disk import World, bench_on, work

LATER = T0 + 60_000


@pytest.fixture
def path(tmp_path) -> Path:
    """A store's file with work in it, on the system's SQLite."""
    store = bench_on(SqliteStore(tmp_path / "s.db"), dead=True)
    asyncio.run(work(store, World(), lambda: None))
    return tmp_path / "s.db"


def cut_in_the_middle(content: bytes) -> bytes:
    return content[: len(content) // 2]


def header_overwritten(content: bytes) -> bytes:
    return content[:16] + b"\xa5" * 84 + content[100:]


def tables_overwritten(content: bytes) -> bytes:
    return content[:4096] + b"\xa5" * (len(content) - 4096)


@pytest.mark.parametrize("damage", [cut_in_the_middle, header_overwritten, tables_overwritten])
async def test_a_damaged_file_is_a_clear_error_and_stays_as_it_is(path, damage):
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    store = SqliteStore(path)

    with pytest.raises(StoreError, match=r"s\.db.* (malformed|damaged)"):
        await store.open(LATER)

    await store.aclose()
    assert path.read_bytes() == damaged


async def test_an_empty_file_is_a_new_store(tmp_path):
    (tmp_path / "s.db").touch()
    bench = bench_on(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    assert (await bench.store.counts()).total == 0
    await bench.store.aclose()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("", "is a folder; name a file with --store"), ("no/s.db", "there is no folder .*no")],
)
async def test_a_path_that_is_no_file_is_a_clear_error(tmp_path, name, problem):
    with pytest.raises(StoreError, match=problem):
        await SqliteStore(tmp_path / name).open(T0)
    assert list(tmp_path.iterdir()) == []


# Without its capabilities root may write no more than its owner's rights say.
POWERLESS = """
import asyncio, ctypes, pathlib, sys
from scheduler.budget import Budget
from scheduler.stores.sqlite import SqliteStore
if sys.platform == "linux":
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
async def main():
    store = SqliteStore(pathlib.Path(sys.argv[1]))
    try:
        await store.open(0)
        await store.define([Budget("other", "$1")], 0)
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}")
    await store.aclose()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "problem"),
    [
        (0o400, 0o700, "cannot be written: Permission denied"),
        (0o000, 0o700, "Permission denied"),
        (0o600, 0o500, "(unable to open|readonly)"),
        (None, 0o500, "Permission denied"),
    ],
    ids=["read-only file", "unreadable file", "read-only folder", "no file in such a folder"],
)
def test_a_file_that_may_not_be_written_is_a_clear_error(path, file_mode, folder_mode, problem):
    content = path.read_bytes()
    path.with_name("s.db-journal").unlink(missing_ok=True)
    if file_mode is None:
        path.unlink()
    else:
        path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    try:
        said = warm.run(
            [sys.executable, "-c", POWERLESS, str(path)], capture_output=True, text=True, timeout=60
        )
    finally:
        path.parent.chmod(0o700)
    assert re.search(rf"^StoreError: .*s\.db.* {problem}", said.stdout), said
    if file_mode is not None:
        path.chmod(0o600)
        assert path.read_bytes() == content


def remove(path):
    for each in path.parent.iterdir():  # its journal or log as well
        each.unlink()


def replace(path):
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").replace(path)


def move_its_folder(path):
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.skipif(sys.platform == "win32", reason="an open file keeps its name there")
@pytest.mark.parametrize("change", [remove, replace, move_its_folder])
@pytest.mark.parametrize("is_newest", [False, True], ids=["this SQLite", "with a log"])
async def test_a_file_that_lost_its_name_while_it_was_open_takes_nothing_more(
    tmp_path, monkeypatch, change, is_newest
):
    """Else the next process would find a new one, with all of the budget in it."""
    if is_newest:
        newest.install(monkeypatch.setattr)
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "s.db"
    store = SqliteStore(path)
    await store.open(0)
    await store.define([Budget("team", "$1")], 0)
    change(path)

    with pytest.raises(StoreError, match="was removed, renamed or replaced while it was open"):
        await store.define([Budget("team", "$2")], 0)

    await store.aclose()


async def test_a_process_that_goes_to_another_folder_keeps_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    store = SqliteStore(Path("s.db"))
    await store.open(0)
    monkeypatch.chdir(tmp_path / "folder")

    await store.define([Budget("team", "$1")], 0)

    await store.aclose()


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the file to itself until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


@pytest.mark.parametrize("no_log", [None, "a network"], ids=["with a log", "without"])
async def test_a_file_that_is_held_too_long_is_a_clear_error_and_nothing_is_changed(
    path, monkeypatch, no_log
):
    monkeypatch.setattr(stores_file, "BUSY_MS", 20)
    monkeypatch.setattr(stores_file, "why_no_log", lambda path: no_log)
    bench = bench_on(SqliteStore(path, patience_s=0.1), now_ms=LATER)
    await bench.store.open(LATER)
    content = path.read_bytes()
    with holding(path) as holder:
        advice = rf"{path} is held by another process .*; nothing was changed.*scheduler doctor"
        with pytest.raises(StoreLocked, match=advice):
            await bench.submit(new(key="later"))
        if no_log is None:  # reading waits for nobody then
            assert (await bench.store.counts()).total > 0
        else:
            with pytest.raises(StoreLocked, match=advice):
                await SqliteStore(path).open(LATER)
        assert path.read_bytes() == content
        holder.stdin.close()
        assert await asyncio.to_thread(holder.wait, 10) == 0

    assert len((await bench.submit(new(key="later"))).claimed) == 1
    assert await bench.is_sound()
    await bench.store.aclose()
