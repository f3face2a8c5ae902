"""A share that is kept for urgent requests, in memory, in a file, and of two processes on one."""

from __future__ import annotations

import pytest

from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, new
from tests.stores.keeping import BATCH, DAILY, URGENT, Budget, Keeping, costs
from tests.stores.kinds import InFile, InMemory


class TestMemory(InMemory, Keeping):
    pass


class TestSqlite(InFile, Keeping):
    pass


@pytest.mark.anyio
async def test_another_process_leaves_what_the_first_one_said_is_kept(tmp_path):
    here, there = (Bench(SqliteStore(tmp_path / "s.db")) for _ in range(2))
    await here.store.open(T0)
    await here.define(Budget("team", DAILY))
    await there.store.open(T0)
    team = [here.ids["team"]]

    first = await here.submit(*[new(team, 100, priority=BATCH) for _ in range(3)])
    second = await there.submit(*[new(team, 100, priority=BATCH) for _ in range(3)])
    urgent = await there.submit(*[new(team, 100, priority=URGENT) for _ in range(3)])

    assert [*map(costs, (first, second, urgent))] == [[100] * 3, [100], [100] * 2]
    for bench in (here, there):
        assert await bench.is_sound()
        await bench.store.aclose()
