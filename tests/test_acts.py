"""Who changed what: noted whoever does it, in whichever store, and never in the way of the change."""

from __future__ import annotations

import logging
import os

import pytest

from scheduler import Budget, Scheduler
from scheduler.errors import StoreError
from scheduler.stores.acts import KEPT, KIND, MOST_AT_ONCE, Act, note, noted
from scheduler.stores.base import Outcome
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import Bench as Provider
from tests.stores.conformance import FAILED, T0, Bench, end, new

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "s.db")


def told(acts):
    return [(act.what, act.name, act.before, act.after) for act in acts]


async def test_what_a_program_changes_is_noted(store):
    async with Scheduler(store, providers=Provider(), budgets=[Budget("team", "$1/day")]) as s:
        assert await noted(store) == []  # made, not changed
        await s.set_limit("team", "$2")
        await s.set_limit("team", "$2")  # as it is
        await s.define(Budget("team", "$3/day"), Budget("new", "$1"))
        await s.ensure(Budget("other", "$1"))
        await s.pause("team")
        await s.resume("team")
        await s.remove_budget("new")

        found = await noted(store)

    assert told(found) == [
        ("remove", "new", "$1", ""), ("resume", "team", "paused", "goes on"),
        ("pause", "team", "goes on", "paused"), ("limit", "team", "$2/day", "$3/day"),
        ("limit", "team", "$1/day", "$2/day"),
    ]  # fmt: skip
    assert {act.who.partition("(")[2] for act in found} == {f"process {os.getpid()})"}


async def test_a_program_that_begins_with_another_limit_than_was_set_is_noted(tmp_path):
    path = tmp_path / "s.db"
    for limit in ("$1/day", "$1/day", "$5/day"):
        async with Scheduler(path, providers=Provider(), budgets=[Budget("team", limit)]) as s:
            found = await noted(s.store)

    assert told(found) == [("limit", "team", "$1/day", "$5/day")]


async def test_of_many_at_once_the_first_are_told_one_by_one_and_the_oldest_go(store):
    await store.open(T0)
    await note(store)
    await note(store, *[Act(T0, "me", "void", str(n), "$1", "$0") for n in range(100)])
    found = await noted(store)
    assert len(found) == MOST_AT_ONCE + 1
    assert (found[0].name, found[1].name) == ("80 more", "19")
    for n in range(KEPT):
        await note(store, Act(T0 + 1, "me", "limit", f"b{n}", "", ""))

    found = await noted(store)
    assert (len(found), found[0].name, found[-1].name) == (KEPT, f"b{KEPT - 1}", "b0")
    assert len(await store.notes(KIND)) == KEPT
    await store.aclose()


async def test_what_cannot_be_noted_has_happened_all_the_same(caplog):
    store = MemoryStore()
    async with Scheduler(store, providers=Provider(), budgets=[Budget("team", "$1/day")]) as s:

        async def full(*args, **options):
            raise StoreError("the disk is full")

        store.note = full
        with caplog.at_level(logging.WARNING):
            await s.set_limit("team", "$2")

        assert s.stats().budgets[0].budget.text == "$2/day"
    assert "could not be noted (limit team): the disk is full" in caplog.text


async def test_what_was_said_of_an_unknown_outcome_is_noted(store):
    bench = Bench(store)
    await store.open(T0)
    (claimed,) = (await bench.submit(new((), 40))).claimed
    await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
    await store.aclose()
    async with Scheduler(store, providers=Provider()) as s:
        (unknown,) = await s.suspended()
        assert await s.resolve(unknown, charge="0.00000002")
        assert not await s.resolve(unknown, charge=None)  # it is known

        (act,) = await noted(store)
    assert act[2:] == ("charge", str(claimed.reservation_id), "$0.00000004", "$0.00000002")
