"""A budget that takes a risk, through the whole scheduler, in virtual time."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

import pytest

from scheduler import Budget, FunctionProvider, Request, Scheduler
from scheduler.errors import BudgetExceeded
from scheduler.request import Quote
from scheduler.testing import VirtualClock, run

CEILING = 4_000_000
CALLS = 600


def lengths(seed=5):
    draw = random.Random(seed)
    return [min(4_000, max(1, int(draw.lognormvariate(5, 0.8)))) for _ in range(CALLS)]


async def spend(risk, *, on_exceeded="wait"):
    """Spend half of what all calls cost; returns when 90 % of it were, what was, and what was told."""
    costs = [1_000 * length for length in lengths()]
    limit = sum(costs) // 2
    spent, at_90, told = 0, None, []

    async def call(request):
        nonlocal spent, at_90
        cost = costs[request.body["row"]]
        await asyncio.sleep(0.2 + cost / 50_000)
        spent += cost
        if at_90 is None and spent >= 0.9 * limit:
            at_90 = asyncio.get_running_loop().time()
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}

    provider = FunctionProvider(
        "f", call, quote=lambda request: Quote(CEILING, CEILING),
        cost=lambda request, body: Decimal(costs[request.body["row"]]) / 10**9,
    )  # fmt: skip
    budget = Budget("b", Decimal(limit) / 10**9, risk=risk)
    async with Scheduler(
        budgets=budget, providers=provider, clock=VirtualClock(), concurrency=64,
        on_exceeded=on_exceeded,
    ) as s:  # fmt: skip
        futures = [s.submit(Request({"model": "m", "row": n}, provider="f")) for n in range(CALLS)]
        for _ in range(600):
            await asyncio.sleep(0.5)
            (status,) = s.stats().budgets
            told.append(status.caps[0])
            if not s.stats().running:
                break
        audit = await s.store.audit(s.now_ms())
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    assert audit.discrepancies == ()
    return at_90, spent / limit, told


def test_with_a_risk_the_same_budget_is_spent_sooner_and_not_beyond_it():
    strict, careful = (run(spend(risk)) for risk in ("none", "default"))

    assert careful[1] <= 1.002
    assert strict[1] <= 1
    assert careful[0] < 0.6 * strict[0]


def test_statistics_say_what_a_risk_brings():
    _, _, told = run(spend("default"))
    _, _, strict = run(spend("none"))

    assert max(cap.more_calls for cap in told) > 10
    assert any(cap.kept is not None and cap.kept < cap.reserved for cap in told)
    assert all((cap.kept, cap.more_calls) == (None, 0) for cap in strict)


def test_who_does_not_want_to_wait_is_told_what_is_kept():
    async def main():
        async with Scheduler(
            budgets=Budget("b", "$0.000001", risk="high"), clock=VirtualClock(),
            providers=FunctionProvider("f", answer, quote=lambda request: Quote(600, 600)),
            on_exceeded="raise",
        ) as s:  # fmt: skip
            first = s.submit(Request({"model": "m"}, provider="f"))
            with pytest.raises(BudgetExceeded) as caught:
                await s.submit(Request({"model": "m"}, provider="f"))
            await first
            return caught.value

    assert "budget 'b'" in str(run(main()))


async def answer(request):
    await asyncio.sleep(1)
    return {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
