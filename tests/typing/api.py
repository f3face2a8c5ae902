"""Uses of the public API that have to type-check; never run."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import assert_type

from scheduler import (
    Budget,
    BudgetExceeded,
    FunctionProvider,
    OpenAI,
    PriceBook,
    Quote,
    Request,
    RequestFuture,
    Response,
    Scheduler,
    Shortfall,
    Simulated,
    Stats,
    events,
)  # fmt: skip


async def call(request: Request) -> dict[str, str]:
    return {"model": request.model}


async def main() -> None:
    providers = [
        OpenAI(),
        Simulated(seed=1),
        FunctionProvider("f", call, quote="$0.01", cost=0.005),
    ]
    budgets = [Budget("a", "$5/day", models=["gpt-*"], tags={"user": "*"}), Budget("b", Decimal(5))]
    async with Scheduler(
        "sqlite:///x.db", budgets=budgets, providers=providers, prices=PriceBook({"m": "1/2"})
    ) as s:
        assert_type(await s.run(Request.chat("m", "hi", max_tokens=5)), Response)
        future = s.submit(Request({"model": "m"}, priority="idle", deadline="2m", max_cost=0.5))
        assert_type(future, RequestFuture)
        assert_type(future.parked, Shortfall | None)
        assert_type(await asyncio.gather(future, future), tuple[Response, Response])
        async for response in s.map([Request({})], ordered=True):
            assert_type(response.cost, Decimal)
        assert_type(s.stats(), Stats)
        assert_type(s.quote(Request({})), Quote)
        await s.set_limit("a", None)
        stop = s.on(events.Parked, lambda event: print(event.shortfall.missing))
        stop()
        try:
            await future
        except BudgetExceeded as error:
            assert_type(error.needed, int)
