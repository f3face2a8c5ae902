"""Who has no key leaves requests to others: in memory, in a file, and of two processes on one."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.stores.lanes import Lanes
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench
from tests.stores.kinds import InFile, InMemory
from tests.stores.leaving import SERVED, Leaving, shared


class TestMemory(InMemory, Leaving):
    pass


class TestSqlite(InFile, Leaving):
    pass


@pytest.mark.anyio
async def test_another_process_with_the_key_sends_it_and_is_the_only_one_told_of(tmp_path):
    here, there = (Bench(SqliteStore(tmp_path / "s.db")) for _ in range(2))
    for bench, left in ((here, ["p"]), (there, ())):
        await bench.store.open(T0)
        bench.store.serve(SERVED, at_once=4, left=left)
    await here.define(Budget("team", "$1"))

    assert (await here.submit(shared("p", "k"))).claimed == []
    (unserved,) = await here.store.unserved(T0)
    assert (unserved.provider, unserved.waiting) == ("p", 1)
    (claimed,) = (await there.turn()).claimed

    assert claimed.request.key == "k"
    assert await here.store.unserved(T0) == []
    told = {frozenset(each.serves) for each in await here.store.workers(T0)}
    assert told == {frozenset({"q"}), frozenset({"p", "q"})}
    for bench in (here, there):
        await bench.store.aclose()


@pytest.mark.anyio
async def test_what_is_left_is_not_looked_at_however_much_it_is(tmp_path, monkeypatch):
    bench = Bench(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    bench.store.serve(SERVED, at_once=4, left=["q"])
    for level in range(20):  # a lane for each
        more = [shared("q", f"{level}-{n}", priority=level) for n in range(20)]
        await bench.submit(*more, slots=0)
    looked = []
    settle = Lanes.settle
    monkeypatch.setattr(Lanes, "settle", lambda self, lane, *how: (
        looked.append(lane.key.provider), settle(self, lane, *how)))  # fmt: skip

    assert (await bench.submit(shared("p", "mine"))).claimed

    assert set(looked) == {"p"}
    assert len(bench.store._transactions.lanes.open._lanes) == 0
    await bench.store.aclose()
