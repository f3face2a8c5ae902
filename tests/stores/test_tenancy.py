"""Tenants and deadlines, in memory, in a file, and of two processes on one."""

from __future__ import annotations

from unittest import mock

import pytest

from scheduler.admission import fairness
from scheduler.request import RequestState as STATES
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sql import tenants
from scheduler.stores.sql.claim import FEWEST
from scheduler.stores.sql.heads import Heads
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, post
from tests.stores.kinds import InFile, InMemory
from tests.stores.tenancy import FAIR, Tenancy, of, one_by_one


class TestMemory(InMemory, Tenancy):
    pass


class TestSqlite(InFile, Tenancy):
    pass


@pytest.fixture
async def two(tmp_path):
    """Two processes on one file."""
    made = []
    for _ in range(2):
        store = SqliteStore(tmp_path / "s.db")
        store.share(FAIR)
        await store.open(T0)
        made.append(Bench(store))
    yield made
    for bench in made:
        await bench.store.aclose()


@pytest.mark.anyio
async def test_two_processes_share_the_times(two):
    """What one served counts in the other: their tenants' requests are each process's own."""
    here, there = two
    await here.submit(*[of("both") for _ in range(50)], slots=0)
    await there.submit(*[of("both") for _ in range(50)], *[of("there") for _ in range(50)], slots=0)
    # One call at a time, in turn in both, so that "both" gets more than half in all.
    order = []
    for _ in range(20):
        await one_by_one(here, 1)
        order += await one_by_one(there, 1)

    assert order.count("both") <= 1  # it had as much as the other one, in the other process
    assert {each.tenant: each.waiting for each in await here.store.tenants(T0)} == {
        "both": 80 - order.count("both"), "there": 50 - order.count("there")
    }  # fmt: skip


@pytest.mark.anyio
async def test_a_process_hears_that_something_was_given_back_by_another(two):
    """It knew the tenant to be far ahead, so without a word it would look at others first."""
    here, there = two
    big = [of("a", 1_000) for _ in range(2)]
    claimed = (await there.submit(*big, slots=2)).claimed
    others = [of("b") for _ in range(3 * FEWEST)]  # more lanes than are read together
    for n, each in enumerate(others):
        each.lane = each.lane._replace(model=f"m{n}")
    await here.submit(of("a"), *others, slots=0)
    assert "a" not in await one_by_one(here, 3)

    await there.turn(0, settle=[post(each, 0) for each in claimed])

    assert await one_by_one(here, 1) == ["a"]


@pytest.mark.anyio
async def test_shared_lanes_carry_the_tenant_and_the_deadline(two):
    here, there = two
    for n in range(6):
        made = of("hog" if n < 4 else f"t{n}", key=f"k{n}")
        made.lane = made.lane._replace(is_shared=True, is_due=n == 3)
        made.due_at_ms = made.expires_at_ms = T0 + 1_000 if n == 3 else None
        await here.submit(made, slots=0)

    order = await one_by_one(there, 4)

    assert sorted(order[:3]) == ["hog", "t4", "t5"]
    row = {each.key: each for each in await here.store.queue(list(STATES), T0)}["k3"]
    assert (row.tenant, row.due_at_ms) == ("hog", T0 + 1_000)
    assert row.state.is_final  # of the hog's the one with a deadline went first


@pytest.mark.anyio
async def test_a_thousand_tenants_cost_a_turn_what_it_has_places_for(two):
    here = two[0]
    await here.submit(*[of(f"t{n}") for n in range(1_000)], slots=0)
    looked = []
    views = Heads.views
    with mock.patch.object(Heads, "views", lambda self: looked.extend(self._lanes) or views(self)):
        for _ in range(5):
            claimed = (await here.turn(4)).claimed
            await here.turn(0, settle=[post(each, 3) for each in claimed])

    assert len(looked) <= 5 * FEWEST
    assert len(here.store._transactions.shares.tenants) <= 5 * FEWEST


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_idle_tenants_are_forgotten(kind, tmp_path):
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "s.db")
    store.share(FAIR)
    await store.open(T0)
    bench = Bench(store)
    shares = store._shares if kind == "memory" else store._transactions.shares
    with mock.patch.object(fairness, "FEWEST_KEPT", 20), mock.patch.object(tenants, "EVERY", 8):
        shares._most = 20
        for n in range(150):
            bench.now_ms += 120_000
            result = await bench.submit(of(f"t{n}"), slots=1)
            await bench.settle(post(result.claimed[0], 7))
        kept = len(await store.tenants(bench.now_ms))

    assert len(shares.tenants) <= 2 * 120 + 20
    assert kept <= 120  # of whom anything is to be told: those of the last two hours
    if kind == "sqlite":
        count = await store._read(lambda db: db.value("SELECT count(*) FROM tenants"))
        assert count <= 120 + 2
    await store.aclose()
