"""What the store says to its engine is what PostgreSQL takes, too."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.request import RequestState
from scheduler.stores.base import Outcome
from scheduler.stores.papers import Paper
from scheduler.stores.sql.dialect import INT, SQLITE, TEXT, Insert
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import FAILED, T0, Bench, end, new, post
from tests.stores.strict import StrictConnection


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("scheduler.stores.file.SqliteConnection", StrictConnection)
    store = SqliteStore(tmp_path / "s.db")
    await store.open(T0)
    yield Bench(store)
    await store.aclose()


async def test_two_words_on_one_attempt_in_one_turn_are_one_row_written(bench):
    await bench.define(Budget("team", "$1"))
    (claimed,) = (await bench.submit(new([bench.ids["team"]], 50, key="k"))).claimed

    lost, told = end(claimed, Outcome.SUSPEND, RequestState.QUEUED, why="silence"), post(claimed, 7)
    result = await bench.settle(lost, told, slots=None)

    assert result.settled == [True, True]
    assert await bench.balance() == (7, 0)
    assert [row.posted_nusd for row in await bench.store.spend("model")] == [7]
    (done,) = [each async for each in bench.store.finished("")]
    assert done.response.body == {"n": 1}
    assert await bench.is_sound()


async def test_views_and_upkeep_of_everything_there_is(bench):
    await bench.define(Budget("team", "$1/day"), Budget("child", "$1", parent="team"))
    ids = [bench.ids["team"], bench.ids["child"]]
    asked = [new(ids, 30, key=f"k{n}", job="j") for n in range(8)]
    claimed = (await bench.submit(*asked, new(ids), slots=5)).claimed
    bench.now_ms += 5
    await bench.settle(
        end(claimed[0], Outcome.SUSPEND, FAILED), end(claimed[1], Outcome.VOID, FAILED),
        *[post(each, 99) for each in claimed[2:]], slots=2,
    )  # fmt: skip
    store, now_ms = bench.store, bench.now_ms
    live = [RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING, FAILED]
    for job in ("j", None):
        assert await store.queue(live, now_ms, job=job)
        assert (await store.counts(job)).running
        assert await store.suspended(job=job)
    for by in ("model", "job", "budget"):
        assert await store.spend(by, T0 + 1)
    (unknown,) = await store.suspended_of([claimed[0].reservation_id])
    assert await store.suspended_since(T0)
    assert await store.known("j", ["k0", "k7"])
    assert await store.pictures([unknown.request_id])
    assert await store.outcomes([unknown.request_id])
    assert await store.still_mine([unknown.request_id])
    await bench.define(Budget("team", "$1/20h"))
    await store.delivered([claimed[1].request_id])
    while await store.prune(now_ms + 1, now_ms + 1, undelivered=True):
        pass
    await store.pause("child", True, now_ms)
    await store.remove("child", now_ms)
    await store.set_price("m", "1/2")
    assert await store.prices() == {"m": "1/2"}
    await store.note("kind", "name", "text")
    assert await store.notes("kind") == {"name": "text"}
    paper = Paper("kind", "name", "ann", "{}", now_ms, True)
    await store.add_paper(paper)
    await store.change_paper(paper, "{1}", True)
    await store.write_page("kind", "name", 0, "text")
    assert await store.pages("kind", "name") == [(0, "text")]
    assert await store.papers("kind", "ann", limit=1) == await store.open_papers("kind")
    assert await store.papers("kind", "ann", limit=1, after="name", newest_first=False) == []
    assert await store.remove_paper("kind", "name")
    await store.forget("j", now_ms)
    assert await bench.is_sound()


@pytest.mark.parametrize("name", ["été", "50 % off!", "a_b", 'q"t', "back\\slash", "!"])
async def test_a_parent_is_known_by_any_name(bench, name):
    await bench.define(Budget(name, "$1"), Budget("child", "$1", parent=name))

    with pytest.raises(Exception, match="is the parent of 'child'"):
        await bench.store.remove(name, T0)


def test_no_rows_are_never_given_as_rows():
    """An engine that takes an array for each column would not know how many there are."""
    with pytest.raises(AssertionError):
        SQLITE.row_values([])
    assert SQLITE.bulk(Insert("t", {"id": INT, "name": TEXT})).startswith("INSERT INTO t")
