"""Tags without plumbing: what a block says of the requests made within it."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Budget, ConfigError, Request, Scheduler
from scheduler.core.marks import merge
from scheduler.testing import run
from tests.conftest import Bench, ask


def test_inner_blocks_come_first_and_tags_add_up():
    outer = {"budget": "a", "job": "nightly", "tags": {"user": "ann", "page": "1"}}
    inner = {"budget": "b", "tags": {"page": "2"}}

    assert merge(outer, inner) == {
        "budget": "b", "job": "nightly", "tags": {"user": "ann", "page": "2"},
    }  # fmt: skip
    assert outer["tags"] == {"user": "ann", "page": "1"}


@pytest.mark.parametrize(
    ("marks", "problem"),
    [({"bugdet": "a"}, "'bugdet' is not one of"), ({"priority": "urgent"}, "is not one of")],
)
def test_a_wrong_mark_is_told_where_it_is_made(marks, problem):
    with pytest.raises(ConfigError, match=problem), Scheduler(providers=Bench()).tag(**marks):
        raise AssertionError("the block is not entered")


BUDGETS = (Budget("a", "$1"), Budget("b", "$1"), Budget("of-ann", "$1", tags={"user": "ann"}))


def drawn(s):
    """Names of budgets that something was spent from."""
    return {each.budget.name for each in s.stats().budgets if each.caps[0].posted}


def test_tags_hold_for_all_requests_of_a_block_and_the_tasks_begun_in_it():
    async def main():
        async with Scheduler(budgets=BUDGETS, providers=Bench()) as s:
            with s.tag(budget="a", tags={"user": "ann"}, job="nightly"):
                begun = asyncio.create_task(s.run(ask(1)))
            await begun
            assert drawn(s) == {"a", "of-ann"}
            assert [row.name for row in await s.store.spend("job")] == ["nightly"]

            with s.tag(budget="a"), s.tag(budget="b"):
                await s.run(ask(2))
            assert drawn(s) == {"a", "b", "of-ann"}

    run(main())


def test_what_a_request_says_itself_comes_before_tags():
    bench = Bench()

    async def main():
        async with Scheduler(budgets=BUDGETS, providers=bench) as s:
            with s.tag(budget="a", priority="batch", job="tag"):
                await s.run(Request.chat("m", "hi", budget="b", job="mine", priority="normal"))
            assert drawn(s) == {"b"}
            (sent,) = bench.sent
            assert (sent.job, sent.priority) == ("mine", "normal")

    run(main())


def test_tags_of_one_scheduler_are_not_anothers_and_end_with_their_block():
    async def main():
        async with (
            Scheduler(budgets=BUDGETS, providers=Bench()) as one,
            Scheduler(budgets=Budget("only", "$1"), providers=Bench()) as other,
        ):
            with one.tag(budget="a"):
                await other.run(ask(1))
                assert other.marks == {}
            assert one.marks == {}

    run(main())


def test_a_budget_is_ensured_without_undoing_a_raise():
    async def main():
        async with Scheduler(budgets=Budget("app", "$9"), providers=Bench()) as s:
            await s.ensure(Budget("ann", "$1", parent="app"))
            await s.set_limit("ann", "$5")
            await s.ensure(Budget("ann", "$1", parent="app"))
            limits = {each.budget.name: each.budget.spec for each in s.stats().budgets}
            assert limits == {"app": "$9", "ann": "$5"}

    run(main())


async def in_two_processes(path):
    budgets = Budget("app", "$9")
    async with (
        Scheduler(path, budgets=budgets, providers=Bench(), poll_interval=60) as one,
        Scheduler(path, budgets=budgets, providers=Bench(), poll_interval=60) as other,
    ):
        await one.ensure(Budget("ann", "$1", parent="app"))
        await one.set_limit("ann", "$5")
        await other.ensure(Budget("ann", "$1", parent="app"))  # it has not heard of it yet
        found = await one.store.budgets(one.now_ms())
        return {each.budget.name: each.budget.spec for each in found}


def test_a_budget_that_another_process_made_is_left_alone(tmp_path):
    assert asyncio.run(in_two_processes(tmp_path / "s.db")) == {"app": "$9", "ann": "$5"}
