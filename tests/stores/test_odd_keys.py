"""A key is any text: none breaks a store, and none is taken for another."""

from __future__ import annotations

import pytest

from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, new, post

ODD = (
    "a\0b",
    "a",
    "\0",
    "a\0",
    "",
    "a'b",
    'a"b',
    "\u202e",
    "[1]",
    "%",
    "x" * 200_000,
    "ü",
    "\\u0000",
)


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    yield Bench(store)
    await store.aclose()


@pytest.mark.parametrize("job", ["", "nightly", "j\0b"])
async def test_every_text_as_a_key_is_kept_whole_and_known_again(bench, job):
    requests = [new(key=key, job=job, body=key) for key in ODD]
    first = await bench.submit(*requests, slots=len(ODD))
    await bench.settle(*[post(each, 4) for each in first.claimed], slots=None)
    if isinstance(bench.store, SqliteStore):
        await bench.store.aclose()
        await bench.store.open(bench.now_ms)

    again = await bench.submit(*[new(key=key, job=job, body=key) for key in ODD], slots=len(ODD))

    assert [each.finished.key for each in again.submitted] == list(ODD)
    assert again.claimed == []
    kept = [each async for each in bench.store.finished(job)]
    assert sorted(each.key for each in kept) == sorted(ODD)
    assert await bench.is_sound()


async def test_one_such_key_for_two_bodies_is_a_conflict(bench):
    await bench.submit(new(key="a\0b", body="one"), slots=None)

    (answer,) = (await bench.submit(new(key="a\0b", body="two"), slots=None)).submitted

    assert answer.is_conflict
