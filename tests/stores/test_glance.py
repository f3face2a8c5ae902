"""What is told at a glance is found by index, however many requests a file has."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from scheduler.stores.sql import outbox, standing
from scheduler.stores.sql.dialect import SQLITE
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "sql",
    [
        standing.WAITING.format(queued_at=SQLITE.queued_at), standing.LATER, standing.RUNNING,
        standing.UNKNOWN, outbox.DUE.replace("?", "1"),
    ],
)  # fmt: skip
async def test_no_table_that_grows_is_read_from_end_to_end(sql, tmp_path):
    path = tmp_path / "s.db"
    store = SqliteStore(path)
    await store.open(T0)
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]

    for step in steps:
        whole = step.startswith("SCAN") and "INDEX" not in step
        assert not whole or step == "SCAN l", steps  # of lanes there are few
    assert "AUTOMATIC" not in " ".join(steps)
