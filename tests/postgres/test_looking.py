"""What is told of a store in a database, to terminals, metrics and webhooks."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import Budget, Scheduler
from scheduler.cli.top import View, top_row
from scheduler.stores.outbox import News
from tests.conftest import Bench as Provider
from tests.conftest import ask
from tests.stores.conformance import T0, Bench, new

pytestmark = pytest.mark.anyio


async def test_top_and_metrics_tell_the_same_of_it(url, opened):
    pytest.importorskip("prometheus_client")
    budgets = Budget("team", "$0.0000001/day")
    async with Scheduler(url, budgets=budgets, providers=Provider()) as s:
        await s.run(ask())
        waits = s.submit(ask(priority="batch"))
        while waits.parked is None:
            await asyncio.sleep(0.01)
        view = View(await opened(), url)
        row, text = top_row(await view.look()), (await s.metrics().text()).decode()
        waits.cancel()

    (parked,) = row["queue"]
    assert (parked["state"], parked["priority"], parked["reason"], parked["requests"]) == (
        "parked", "batch", "window_spent", 1,
    )  # fmt: skip
    assert row["budgets"][0]["posted_usd"] == "0.00000006"
    assert 'scheduler_budget_spent_usd{budget="team",window="day"} 6e-08' in text
    assert [each["posted_usd"] for each in row["lately"]["models"]] == ["0.00000006"]


async def test_news_that_many_note_at_once_is_taken_by_one(opened):
    stores = [await opened() for _ in range(4)]
    bench = Bench(stores[0])
    await bench.define(Budget("team", "$1"))
    await bench.submit(new([bench.ids["team"]], 5))
    news = [News("ops", f"topic {n}", "{}") for n in range(10)]

    await asyncio.gather(*(each.announce(news, T0) for each in stores))
    taken = await asyncio.gather(*(each.take_news({"ops"}, T0, lease_ms=60_000) for each in stores))
    await asyncio.gather(*(each.arm(["job:a"], T0) for each in stores))
    fired = await asyncio.gather(*(each.fire("job:a", [], T0) for each in stores))

    assert sorted(each.topic for some in taken for each in some) == sorted(n.topic for n in news)
    assert sorted(fired) == [False, False, False, True]
