"""A file's budgets, spend, queue and answers go on in a database, and nobody spends them twice."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scheduler import Budget, Request, Scheduler
from scheduler.errors import CallTimeout, ConfigError, StoreError, StoreLocked
from scheduler.providers.simulated.provider import Simulated
from scheduler.stores.postgres import mover
from scheduler.stores.postgres.mover import move
from tests.conftest import Bench, ask

pytestmark = pytest.mark.anyio
TEAM = Budget("team", "$0.0000005/day")  # 500 nano-dollars: five at their ceilings
SHARED = "shared"


def shared(n):
    return Request.chat("sim-small", f"q{n}", max_tokens=5, key=f"s{n}", job=SHARED)


async def time_out(request):
    raise CallTimeout("no answer")


async def made(path):
    """A file with answers, something unknown, a private and a shared queue, and a price."""
    provider, simulated = Bench(), Simulated()
    simulated.service = "sim"
    async with Scheduler(path, providers=[provider, simulated], budgets=[TEAM]) as s:
        for n in range(5):
            await s.run(ask(n, key=f"k{n}"))
        provider.before = time_out
        future = s.submit(ask(5))
        while not s.stats().suspense_nusd:
            await asyncio.sleep(0.01)
        await s.enqueue([ask(n, key=f"w{n}") for n in range(10, 13)])
        await s.store.set_price("mine", "1/2")
        s.stop_admitting()
        future.cancel()
        async with Scheduler(path, providers=simulated, role="client") as client:
            await client.enqueue([shared(n) for n in range(3)])
        return await s.store.budgets(0), await s.store.counts()


def sums(statuses):
    return [(each.budget.name, [(cap.posted, cap.reserved, cap.suspense) for cap in each.caps])
            for each in statuses]  # fmt: skip


async def test_everything_goes_on_where_it_was_and_nothing_is_paid_twice(tmp_path, url):
    path = tmp_path / "s.db"
    budgets, counts = await made(path)
    moved = await asyncio.to_thread(move, path, url)

    assert not path.exists()
    assert moved.kept.is_file()
    assert moved.rows["requests"] == counts.total
    provider, simulated = Bench(), Simulated()
    async with Scheduler(url, providers=[provider, simulated]) as s:
        assert sums(await s.store.budgets(0)) == sums(budgets)
        assert not (await s.store.audit(0)).discrepancies
        assert await s.store.prices() == {"mine": "1/2"}
        assert (await s.run(ask(1, key="k1"))).cost_nusd == 60  # as it was answered
        assert provider.sent == []
        await s.set_limit("team", "$1/day")
        answers = await asyncio.gather(*[s.run(ask(n, key=f"w{n}")) for n in range(10, 13)])
        assert len(answers) == len(provider.sent) == 3
        answers = await asyncio.gather(*[s.run(shared(n)) for n in range(3)])
        assert [each.key for each in answers] == ["s0", "s1", "s2"]
        assert not (await s.store.audit(0)).discrepancies


async def test_a_file_that_a_process_works_on_stays_where_it_is(tmp_path, url):
    path = tmp_path / "s.db"
    async with Scheduler(path, providers=Bench(), budgets=[TEAM]) as s:
        await s.run(ask(1))
        with pytest.raises(StoreLocked, match="in use by process"):
            await asyncio.to_thread(move, path, url)
        await s.run(ask(2))
    assert (await asyncio.to_thread(move, path, url)).rows["reservations"] == 2


async def test_a_database_that_holds_a_store_is_left_alone(tmp_path, url):
    path = tmp_path / "s.db"
    async with Scheduler(url, providers=Bench(), budgets=[TEAM]) as s:
        await s.run(ask(1))
    async with Scheduler(path, providers=Bench(), budgets=[TEAM]) as s:
        await s.run(ask(1))
        await s.run(ask(2))

    with pytest.raises(StoreError, match="holds a store already"):
        await asyncio.to_thread(move, path, url)
    assert path.is_file()


async def test_killed_before_the_file_was_put_aside_it_is_put_aside_by_the_next(
    tmp_path, url, monkeypatch
):
    path = tmp_path / "s.db"
    await made(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move(path, url)
    assert path.is_file()
    again = move(path, url)

    assert again.was_there
    assert not path.exists()


async def test_whoever_went_on_there_meanwhile_keeps_what_they_did(tmp_path, url, monkeypatch):
    path = tmp_path / "s.db"
    await made(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move(path, url)
    async with Scheduler(url, providers=Bench()) as s:
        await s.run(ask(99, budget=()))

    with pytest.raises(StoreError, match="which is not that of"):
        move(path, url)
    assert path.is_file()


def rows_of(path):
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


@pytest.mark.parametrize("table", ["requests", "reservations", "gates"])
async def test_what_breaks_on_the_way_leaves_both_as_they_were(tmp_path, url, monkeypatch, table):
    path = tmp_path / "s.db"
    await made(path)
    before = rows_of(path)
    fill = mover._fill

    def break_off(file, link, name):
        fill(file, link, name)
        if name == table:
            link.pgconn.finish()

    with monkeypatch.context() as patch:
        patch.setattr(mover, "_fill", break_off)
        with pytest.raises(StoreError, match="is as it was"):
            move(path, url)
    assert rows_of(path) == before
    assert not move(path, url).was_there


async def test_a_key_that_postgres_cannot_hold_is_told_and_nothing_is_changed(tmp_path, url):
    path = tmp_path / "s.db"
    async with Scheduler(path, providers=Bench(), budgets=[TEAM]) as s:
        await s.run(ask(1, key="a\0b"))
    with pytest.raises(ConfigError, match="nothing was changed"):
        move(path, url)
    assert path.is_file()


async def test_ids_are_never_given_twice(tmp_path, url):
    path = tmp_path / "s.db"
    await made(path)
    with closing(sqlite3.connect(path)) as db:
        last = dict(db.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    move(path, url)
    async with Scheduler(url, providers=Bench()) as s:
        await s.run(ask(1, budget=()))
        assert s.store._transactions.worker_id > last["workers"]


def command(*words, **env):
    return subprocess.run(
        [sys.executable, "-m", "scheduler", "move", *words], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


async def test_the_command(tmp_path, url):
    path = tmp_path / "s.db"
    await made(path)
    done = command("--store", str(path), "--to", url)
    again = command("--store", str(path), "--to", url)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("moved 1 budget, ")
    assert "s.db is s.db.moved now; go on with --store 'postgresql://" in done.stderr
    assert "pg-secret" not in done.stdout + done.stderr
    assert again.returncode == 3
    assert "there is no store at" in again.stderr

    wrong = command("--store", str(path), "--to", "sqlite:///other.db")
    assert wrong.returncode == 3
    assert "is not a postgresql:// URL" in wrong.stderr


async def test_the_command_for_programs(tmp_path, url):
    path = tmp_path / "s.db"
    await made(path)
    told = json.loads(command("--store", str(path), "--to", url, "--json").stdout)

    assert told["clean"] is True
    assert told["rows"]["budgets"] == 1
