"""Who is due next is found by the index of those with deadlines, however many wait and have ended."""

from __future__ import annotations

import psycopg
import pytest

from scheduler.stores.postgres.address import parse
from scheduler.stores.postgres.dialect import POSTGRES
from scheduler.stores.sql import heads
from tests.postgres.test_store import plain
from tests.stores.conformance import T0, Bench
from tests.stores.tenancy import due

pytestmark = pytest.mark.anyio


async def test_the_earliest_of_a_lane_are_read_by_their_own_index(opened, url):
    bench = Bench(await opened())
    await bench.submit(*[due(1_000 + n % 977) for n in range(4_000)], slots=0)
    sql = POSTGRES.firsts(
        heads._COLUMNS, heads._groups(True), "requests", heads._DATED, heads.BY_DATE
    )
    values = "'{1,2}', '{0,0}', '{0,0}', '{0,0}'"
    for value in (*values.split(", "), str(T0), "10"):
        sql = sql.replace("?", value, 1)
    with psycopg.connect(plain(url), autocommit=True) as db:
        db.execute(f"SET search_path TO {parse(url).schema}")
        db.execute("ANALYZE requests")
        shown = "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}").fetchall())

    assert "requests_due" in shown, shown
    assert "Sort" not in shown, shown
