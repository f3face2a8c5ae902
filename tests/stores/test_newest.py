"""The store on the newest SQLite: same promises, with the write-ahead log."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from scheduler.budget import Budget
from scheduler.stores.sqlite import SqliteStore
from tests.stores import newest
from tests.stores.conformance import T0, Bench, Conformance, new, post


@pytest.fixture
def on_newest(monkeypatch):
    newest.install(monkeypatch.setattr)


async def opened(path) -> SqliteStore:
    store = SqliteStore(path)
    await store.open(T0)
    return store


async def pragma(store: SqliteStore, name: str):
    return await store._run(lambda db: db.execute(f"PRAGMA {name}").fetchone()[0])


class TestNewest(Conformance):
    @pytest.fixture
    async def store(self, tmp_path, on_newest):
        store = await opened(tmp_path / "s.db")
        yield store
        await store.aclose()
        assert not (tmp_path / "s.db-wal").exists()


async def test_it_is_the_newest_that_is_tried(tmp_path, on_newest):
    store = await opened(tmp_path / "s.db")

    assert await store._run(lambda db: type(db)) is newest.Connection
    assert await pragma(store, "journal_mode") == "wal"
    await store.aclose()


# Processes


async def _contend(path: Path) -> None:
    """Claim and post, one at a time, until nothing fits; say how many it were."""
    bench = Bench(await opened(path))
    ids = [each.id for each in await bench.store.budgets(T0)]
    print("ready", flush=True)
    sys.stdin.readline()
    count = 0
    result = await bench.submit(*[new(ids, NEED) for _ in range(LIMIT // COST)], slots=1)
    while result.claimed:
        count += 1
        (status,) = await bench.store.budgets(T0)
        assert status.caps[0].posted + status.caps[0].reserved <= LIMIT
        await asyncio.sleep(0.001)  # let the other one have the file
        result = await bench.settle(post(result.claimed[0], COST), slots=1)
    print(count, flush=True)
    sys.stdin.readline()
    await bench.store.aclose()


async def _contend_on_newest(path: Path) -> None:
    newest.install()
    await _contend(path)


NEED, COST, LIMIT = 10, 4, 400  # nano-dollars


@contextlib.asynccontextmanager
async def child(function: str, path):
    """A process running one of this module's coroutines; it is gone at the end."""
    code = (
        "import asyncio, pathlib\n"
        f"from {__name__} import {function} as run\n"
        f"asyncio.run(run(pathlib.Path({str(path)!r})))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.write(b"end\n")
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()


@pytest.mark.parametrize("other", ["_contend", "_contend_on_newest"])
async def test_two_processes_on_one_write_ahead_log_never_pass_the_limit(
    tmp_path, on_newest, other
):
    path = tmp_path / "s.db"
    bench = Bench(await opened(path))
    await bench.define(Budget("team", f"${LIMIT / 1e9:.9f}"))

    async with child("_contend_on_newest", path) as one, child(other, path) as two:
        for each in (one, two):
            each.stdin.write(b"go\n")
        counts = [int(await each.stdout.readline()) for each in (one, two)]

        posted, reserved = await bench.balance()
        assert (posted, reserved) == (sum(counts) * COST, 0)
        assert LIMIT - NEED < posted <= LIMIT
        assert min(counts) > 0
        assert await bench.is_sound()
    assert await bench.store._run(lambda db: db.execute("PRAGMA integrity_check").fetchall()) == [
        ("ok",)
    ]
    await bench.store.aclose()


# From one SQLite to the other


async def spend(path, key: str, cost: int) -> None:
    bench = Bench(await opened(path))
    await bench.define(Budget("team", "$0.0000001/day"))
    (claimed,) = (await bench.submit(new([bench.ids["team"]], 20, key=key))).claimed
    await bench.settle(post(claimed, cost), slots=None)
    await bench.store.aclose()


async def test_a_file_goes_from_the_older_sqlite_to_the_newest_and_back(tmp_path):
    path = tmp_path / "s.db"
    modes = []
    for number in range(4):
        with pytest.MonkeyPatch.context() as patch:
            if number % 2:
                newest.install(patch.setattr)
            await spend(path, f"k{number}", 10 + number)
            bench = Bench(await opened(path))
            modes.append(await pragma(bench.store, "journal_mode"))
            assert await bench.is_sound()
            await bench.store.aclose()

    assert modes == ["wal"] * 4
    bench = Bench(await opened(path))
    assert await bench.balance() == (10 + 11 + 12 + 13, 0)
    assert [each.key async for each in bench.store.finished("")] == ["k0", "k1", "k2", "k3"]
    await bench.store.aclose()
