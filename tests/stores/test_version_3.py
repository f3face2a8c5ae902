"""A file that the third version wrote, with some of everything in it, opens and goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scheduler.stores.file import APPLICATION_ID, SCHEMA_VERSION
from scheduler.stores.process import GONE_MS
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import FAILED, QUEUED, T0, Bench, new, post

pytestmark = pytest.mark.anyio
V3 = Path(__file__).with_name("file_v3.sql")
LATER = T0 + GONE_MS + 1  # its process, on a machine that is gone, is taken for gone, too


@pytest.fixture
def path(tmp_path):
    """As it was left by a process that died: of its requests one in each state."""
    made = tmp_path / "s.db"
    with closing(sqlite3.connect(made)) as db:
        db.executescript(V3.read_text())
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 3")
    return made


def rows(path, sql):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


async def test_it_opens_with_a_copy_of_what_it_was_and_goes_on(path):
    before = rows(path, "SELECT id, state, cost_nusd FROM requests ORDER BY id")
    store = SqliteStore(path)
    await store.open(LATER)
    bench = Bench(store)
    bench.now_ms = LATER
    bench.ids = {each.budget.name: each.id for each in await store.budgets(LATER)}

    assert rows(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    copy = path.with_name("s.db.v3.bak")
    assert rows(copy, "PRAGMA user_version") == [(3,)]
    assert rows(copy, "SELECT id, state, cost_nusd FROM requests ORDER BY id") == before
    assert rows(path, "SELECT id, state, cost_nusd FROM requests ORDER BY id") == before
    assert (await store.audit(LATER)).discrepancies == ()
    spent = {row.name: row.posted_nusd for row in await store.spend("budget")}
    assert spent == {"team": 7}

    team = [bench.ids["team"]]
    keys = [*(f"k{n}" for n in range(5)), "late"]
    answers = (await bench.submit(*[new(team, 30, key=key) for key in keys], slots=0)).submitted
    done = [each for each in answers if each.finished is not None]
    assert [each.finished.response is not None for each in done] == [True, False]
    sent = []
    while claimed := (await bench.turn(2)).claimed:
        sent += [each.request.key for each in claimed]
        await bench.settle(*[post(each, 3) for each in claimed], slots=0)
    assert sorted(sent) == ["k2", "k3", "k4", "late"]
    assert await bench.is_sound()
    await store.aclose()


async def test_what_is_due_in_it_is_due_for_the_one_whose_it_is(path):
    owners = rows(path, "SELECT DISTINCT worker_id FROM lanes")
    store = SqliteStore(path)
    await store.open(LATER)

    found = rows(
        path,
        "SELECT DISTINCT worker_id FROM requests WHERE state IN ('queued', 'delayed', 'running')",
    )
    assert found == owners
    bench = Bench(store)
    bench.now_ms = LATER
    result = await bench.turn()
    assert (result.claimed, result.expired) == ([], [])  # they wait for their keys
    listed = {row.key: row.state for row in await store.queue([QUEUED, FAILED], LATER)}
    assert listed["late"] is QUEUED
    assert listed["k1"] is FAILED
    await store.aclose()
