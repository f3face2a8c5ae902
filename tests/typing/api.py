"""Uses of the public API that have to type-check; never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from decimal import Decimal
from typing import assert_type

from openai import AsyncOpenAI
from openai import OpenAI as OpenAIClient

import scheduler
from scheduler import (
    Budget,
    BudgetExceeded,
    Client,
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
    instrument,
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


async def in_pieces(text: str) -> AsyncGenerator[bytes, None]:
    yield text.encode()


async def translate(text: str, *, model: str) -> bytes:
    return text.encode()


async def adopt(s: Scheduler) -> None:
    assert_type(s.wrap(AsyncOpenAI()), AsyncOpenAI)
    with s.tag(budget="team", priority="batch", tags={"user": "ann"}):
        assert_type(await s.call(translate, "hi", model="m"), bytes)
    budgeted = s.budgeted(quote="$0.01", cost=lambda result: 0.005, job="nightly")(translate)
    assert_type(await budgeted("hi", model="m"), bytes)
    async for piece in s.budgeted(quote="$0.01")(in_pieces)("hi"):
        assert_type(piece, bytes)
    with instrument(s, on_exceeded="raise"):
        pass


def plain() -> None:
    with scheduler.open(budgets="$1/day") as s:
        assert_type(s.run(Request({})), Response)
        assert_type(s.submit(Request({})), Future[Response])
        assert_type(s.call(len, [1]), int)
        assert_type(s.wrap(OpenAIClient()), OpenAIClient)
    client = Client(api_key="k", cost_tracking_budget=100)
    client.cost_tracking_budget = "$150"
    assert_type(client.current_cost, Decimal)
