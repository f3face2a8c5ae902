"""What events tell of requests that were sent, and of those that never were."""

from __future__ import annotations

import pytest

from scheduler import Budget, Scheduler, events
from scheduler.errors import BudgetExceeded, DeadlineExceeded
from tests.conftest import Bench, ask

pytestmark = pytest.mark.anyio


def heard(s, *kinds):
    told = []
    for kind in kinds:
        s.on(kind, told.append)
    return told


async def test_an_end_tells_its_budget_and_what_was_put_aside():
    bench = Bench(ceiling_nusd=100, cost_nusd=60)
    async with Scheduler(budgets=Budget("team", "$1"), providers=bench) as s:
        told = heard(s, events.Admitted, events.Settled)
        await s.run(ask(priority="batch"))

    admitted, settled = told
    assert (admitted.model, admitted.provider, admitted.priority) == ("m", "bench", 20)
    assert (admitted.budget, settled.budget, settled.reserved_nusd) == ("team", "team", 100)
    assert settled.took_ms >= 0
    assert admitted.waited_ms >= 0


async def test_a_budget_that_was_not_named_is_told_without_its_parents():
    budgets = [Budget("org", "$1"), Budget("team", "$1", parent="org")]
    async with Scheduler(budgets=budgets, providers=Bench()) as s:
        told = heard(s, events.Settled)
        await s.run(ask(budget="team"))
        await s.run(ask(budget=("org", "team")))
        await s.run(ask(budget=()))

    assert [each.budget for each in told] == ["team", "org+team", ""]


async def test_what_is_refused_cancelled_or_too_late_is_told_with_its_names():
    async with Scheduler(budgets=Budget("team", "$0.0000001"), providers=Bench()) as s:
        told = heard(s, events.Refused, events.Cancelled, events.Expired)
        await s.run(ask(cost=90))
        with pytest.raises(BudgetExceeded):
            await s.run(ask(job="j"), on_exceeded="raise")
        waits = s.submit(ask(key="k"))
        late = s.submit(ask(deadline=0.05))
        with pytest.raises(DeadlineExceeded):
            await late
        waits.cancel()
        while len(told) < 3:
            await s._pump.turned()

    assert [type(each) for each in told] == [events.Refused, events.Expired, events.Cancelled]
    assert {(each.model, each.budget) for each in told} == {("m", "team")}
    assert (told[0].job, told[2].key) == ("j", "k")
