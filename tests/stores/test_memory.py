from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.stores.memory.store import MemoryStore
from tests.stores.conformance import T0, Bench, Conformance, new, post
from tests.stores.kinds import InMemory


class TestMemory(InMemory, Conformance):
    pass


@pytest.mark.anyio
async def test_a_rolling_window_forgets_slots_that_no_longer_count():
    store = MemoryStore()
    await store.open(T0)
    bench = Bench(store)
    await bench.define(Budget("team", "$1/60s"))
    for _ in range(300):
        bench.now_ms += 1000
        result = await bench.submit(new([bench.ids["team"]]))
        await bench.settle(*[post(claimed, 1) for claimed in result.claimed])

    (account,) = store._budgets._get("team").accounts
    assert len(account.slots) <= 62


@pytest.mark.anyio
async def test_memory_does_not_grow_with_requests_that_are_done():
    store = MemoryStore()
    await store.open(T0)
    bench = Bench(store)
    for _ in range(50):
        result = await bench.submit(*[new() for _ in range(10)])
        await bench.settle(*[post(claimed, 1) for claimed in result.claimed])

    assert (len(store._rows), len(store._holds), len(store._journal._sums)) == (0, 0, 1)
    assert (await store.counts()).succeeded == 500
