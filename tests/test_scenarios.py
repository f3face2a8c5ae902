"""Scenario facts a budget must get right, each by its id.

B: from bugs of budget trackers; R: reservations; S: sessions; P: providers' budgets;
T: time and resets; Q: queueing. They were collected from the tests and issue threads
of LiteLLM; where its fact is about its own parts, the one that matters here stands.
"""

from __future__ import annotations

import asyncio
import pickle

import pytest

from scheduler import Budget, BudgetExceeded, DeadlineExceeded, PriceUnknown, Scheduler
from scheduler.errors import QueueFull, TransportFailed
from scheduler.prices.book import PriceBook
from scheduler.request import Request, Usage
from scheduler.shortfall import ParkReason
from scheduler.testing import START_MS, VirtualClock, run
from scheduler.window import Window
from tests.conftest import Bench, ask

DAY_MS = 86_400_000
SCENARIOS = {}


def scenario(id: str, fact: str):
    def register(function):
        SCENARIOS[f"{id} {fact}"] = function
        return function

    return register


def open_scheduler(provider=None, *budgets: Budget, **options):
    options.setdefault("clock", VirtualClock())
    return Scheduler(budgets=budgets, providers=provider or Bench(), **options)


def team(spec: str = "$0.0000001/day", **options) -> Budget:
    return Budget("team", spec, **options)


def cap(s: Scheduler, name: str = "team"):
    return next(b.caps[0] for b in s.stats().budgets if b.budget.name == name)


@scenario("B1", "a burst of 200 on a budget for two admits exactly two, parks 198")
async def _():
    provider = Bench(cost_nusd=100)
    async with open_scheduler(provider, team("$0.0000002/day")) as s:
        for _ in range(200):
            s.submit(ask())
        await asyncio.sleep(1)
        assert (len(provider.sent), sum(s.stats().parked.values())) == (2, 198)


@scenario("B2", "an estimate above what remains parks, it is not admitted")
async def _():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        await s.run(ask())
        future = s.submit(ask())
        await asyncio.sleep(1)
        assert (len(provider.sent), future.state) == (1, "parked")


@scenario("B3", "an estimate above the whole limit says that no reset will help")
async def _():
    async with open_scheduler(None, team()) as s:
        with pytest.raises(BudgetExceeded):
            await s.run(ask(ceiling=101), on_exceeded="raise")
        future = s.submit(ask(ceiling=101))
        await asyncio.sleep(1)
        assert future.parked.reason is ParkReason.LARGER_THAN_LIMIT
        assert future.parked.resumes_at_ms is None


@scenario("B4", "an unknown price is an error, never zero")
async def _():
    with pytest.raises(PriceUnknown):
        PriceBook().tariff().quote(Request.chat("unheard-of", "hi"))


@scenario("B5", "a long prompt is held at the long-context rate")
async def _():
    book = PriceBook()
    quote = book.tariff("google").quote(Request.chat("gemini-2.5-pro", "x" * 300_000, max_tokens=9))
    assert quote.ceiling_nusd >= book.rates("gemini-2.5-pro", "google").cost_nusd(Usage(300_000, 9))


@scenario("B6", "a park reason shows spent and reserved apart")
async def _():
    async with open_scheduler(None, team("$0.00000018/day")) as s:
        await s.run(ask())
        running, waiting = s.submit(ask(seconds=9)), s.submit(ask())
        await asyncio.sleep(1)
        assert (waiting.parked.posted, waiting.parked.reserved) == (60, 100)
        await running


@scenario("B8", "48 hours are 48 hours, not the next midnight")
async def _():
    async with open_scheduler(None, team("$0.0000001/48h")) as s:
        await s.run(ask())
        await s.run(ask())
        waited_ms = VirtualClock().now_ms() - START_MS
        assert 2 * DAY_MS <= waited_ms <= 2 * DAY_MS * (1 + 2 / 60)


@scenario("B9", "a day in Tokyo ends at Tokyo's midnight")
async def _():
    async with open_scheduler(None, team("$0.0000001/day @Asia/Tokyo")) as s:
        await s.run(ask())
        await s.run(ask())
        assert VirtualClock().now_ms() == START_MS + 15 * 3_600_000


@scenario("B10", "320 settlements of 0.0005 sum to exactly 0.16")
async def _():
    async with open_scheduler(None, team("$1/day")) as s:
        await asyncio.gather(*[s.submit(ask(cost=500_000, ceiling=500_000)) for _ in range(320)])
        assert cap(s).posted == 160_000_000


@scenario("B11", "two schedulers do not share budgets by accident")
async def _():
    async with open_scheduler(None, team()) as one, open_scheduler(None, team()) as two:
        await one.run(ask())
        assert (cap(one).posted, cap(two).posted) == (60, 0)


@scenario("B12", "a raise wakes what is parked in order of priority")
async def _():
    provider = Bench()
    async with open_scheduler(provider, team("$0"), concurrency=1) as s:
        words = ["idle", "batch", "normal", "interactive"]
        futures = [s.submit(ask(word, priority=word)) for word in words]
        await asyncio.sleep(1)
        await s.set_limit("team", "$1")
        await asyncio.gather(*futures)
    assert [r.body["n"] for r in provider.sent] == words[::-1]


@scenario("B13", "cancelling what is parked frees nothing but itself")
async def _():
    async with open_scheduler(None, team()) as s:
        await s.run(ask())
        one, two = s.submit(ask()), s.submit(ask())
        await asyncio.sleep(1)
        one.cancel()
        await asyncio.sleep(1)
        assert (cap(s).posted, cap(s).reserved, two.state) == (60, 0, "parked")


@scenario("B14", "the exception can be pickled, numbers and all")
async def _():
    async with open_scheduler(None, team("$0"), on_exceeded="raise") as s:
        with pytest.raises(BudgetExceeded) as caught:
            await s.run(ask())
    assert vars(pickle.loads(pickle.dumps(caught.value))) == vars(caught.value)


@scenario("R1", "two live reservations add up")
@scenario("R2", "settling one leaves the other")
async def _():
    async with open_scheduler(None, team("$1")) as s:
        s.submit(ask(ceiling=40, cost=0, seconds=1))
        s.submit(ask(ceiling=30, cost=0, seconds=5))
        await asyncio.sleep(0.5)
        assert cap(s).reserved == 70
        await asyncio.sleep(1)
        assert cap(s).reserved == 30


@scenario("R5", "reservations of one budget do not touch another")
async def _():
    async with open_scheduler(None, team("$1"), Budget("other", "$1")) as s:
        s.submit(ask(budget="team", seconds=9))
        await asyncio.sleep(1)
        assert (cap(s).reserved, cap(s, "other").reserved) == (100, 0)


@scenario("R6", "asking what a request may cost touches no budget")
async def _():
    async with open_scheduler(None, team()) as s:
        s.quote(ask())
        assert (cap(s).posted, cap(s).reserved) == (0, 0)


@scenario("R10", "a raise for now and back: the limit is what was last said")
async def _():
    async with open_scheduler(None, team("$2/day")) as s:
        for limit, nusd in [("$3", 3 * 10**9), ("$2", 2 * 10**9), (None, None), ("$0", 0)]:
            await s.set_limit("team", limit)
            assert cap(s).limit == nusd


@scenario("R11", "a changed price changes the next estimate")
async def _():
    book = PriceBook({"m": "1/1"})
    first = book.tariff().quote(Request.chat("m", "hi", max_tokens=5)).ceiling_nusd
    book.set("m", "1000/1000")
    assert book.tariff().quote(Request.chat("m", "hi", max_tokens=5)).ceiling_nusd == 1000 * first


@scenario("R13", "a cancel after sending is charged, not refunded")
async def _():
    provider = Bench()
    async with open_scheduler(provider, team()) as s:
        future = s.submit(ask(seconds=9))
        await asyncio.sleep(1)
        future.cancel()
        await asyncio.sleep(1)
        assert cap(s).posted + cap(s).reserved == 100 >= provider.billed_nusd > 0


@scenario("S1", "under its budget a session passes")
@scenario("S3", "sessions are independent")
async def _():
    sessions = [Budget(name, "$0.0000001", tags={"session": name}) for name in ("one", "two")]
    async with open_scheduler(None, *sessions) as s:
        for name in ("one", "two"):
            await s.run(ask(budget=(), tags={"session": name}))
        assert (cap(s, "one").posted, cap(s, "two").posted) == (60, 60)


@scenario("S2", "a session that has spent more than its budget is refused")
async def _():
    async with open_scheduler(None, team("$0.0000001")) as s:
        await s.run(ask(cost=150))
        with pytest.raises(BudgetExceeded) as caught:
            await s.run(ask(), on_exceeded="raise")
        assert (caught.value.posted, caught.value.limit) == (150, 100)


@scenario("S4", "without a budget everything passes, and is counted")
async def _():
    async with open_scheduler() as s:
        await asyncio.gather(*[s.submit(ask()) for _ in range(50)])
        assert s.stats().posted_nusd == 50 * 60


@scenario("P1", "a provider's models over their budget wait while others go")
@scenario("P2", "a provider's models within their budget go")
async def _():
    gpt = Budget("gpt", "$0.0000001", models=["gpt-*"])
    async with open_scheduler(None, gpt) as s:
        await s.run(Request.chat("gpt-4o", "hi"))
        waiting = s.submit(Request.chat("gpt-4o", "hi"))
        await s.run(Request.chat("claude", "hi"))
        assert waiting.state == "parked"


@scenario("P3", "a window without a cap is no limit")
async def _():
    async with open_scheduler(None, team("none/day")) as s:
        await asyncio.gather(*[s.submit(ask()) for _ in range(20)])
        assert (cap(s).limit, cap(s).posted) == (None, 1200)


@scenario("T1", "past the reset nothing counts and the next reset lies ahead")
async def _():
    async with open_scheduler(None, team()) as s:
        await s.run(ask())
        await asyncio.sleep(DAY_MS / 1000)
        await s.run(ask())
        assert (cap(s).posted, cap(s).resets_at_ms) == (60, START_MS + 2 * DAY_MS)


@scenario("T4", "what is spent at the instant of the reset belongs to the new window")
async def _():
    day = Window.parse("day")
    assert day.slot_start_ms(START_MS) == START_MS
    assert day.slot_start_ms(START_MS - 1) == START_MS - DAY_MS


@scenario("Q1", "the lower number goes first")
@scenario("Q8", "equals go in order of arrival")
async def _():
    provider = Bench()
    async with open_scheduler(provider, concurrency=1) as s:
        order = [(5, "c"), (1, "a"), (5, "d"), (1, "b")]
        await asyncio.gather(*[s.submit(ask(name, priority=number)) for number, name in order])
    assert [r.body["n"] for r in provider.sent] == ["a", "b", "c", "d"]


@scenario("Q2", "a full provider does not hold up another")
async def _():
    slow, quick = Bench("slow"), Bench("quick")
    async with open_scheduler([slow, quick], concurrency=1) as s:
        for _ in range(3):
            s.submit(ask(provider="slow", seconds=100))
        await s.run(ask(provider="quick"))
        assert VirtualClock().now_ms() == START_MS


@scenario("Q3", "taking one out of the middle keeps the order of the others")
async def _():
    provider = Bench()
    async with open_scheduler(provider, team("$0"), concurrency=1) as s:
        futures = [s.submit(ask(n)) for n in range(3)]
        await asyncio.sleep(1)
        futures[1].cancel()
        await s.set_limit("team", "$1")
        await asyncio.gather(futures[0], futures[2])
    assert [r.body["n"] for r in provider.sent] == [0, 2]


@scenario("Q4", "a full queue refuses at once")
async def _():
    async with open_scheduler(None, team("$0"), max_queue=2) as s:
        s.submit(ask()), s.submit(ask())
        with pytest.raises(QueueFull):
            s.submit(ask())
        assert VirtualClock().now_ms() == START_MS


@scenario("Q5", "past its deadline a request is refused with the time it waited, and never sent")
async def _():
    provider = Bench()
    async with open_scheduler(provider, team("$0")) as s:
        with pytest.raises(DeadlineExceeded) as caught:
            await s.run(ask(deadline="90s"))
        await s.set_limit("team", "$1")
        await asyncio.sleep(10)
        assert (caught.value.waited_ms, provider.sent) == (90_000, [])


@scenario("Q6", "whoever has gone is not admitted, and no slot is lost")
async def _():
    provider = Bench()
    async with open_scheduler(provider, concurrency=1) as s:
        s.submit(ask(1, seconds=5))
        gone = s.submit(ask(2))
        await asyncio.sleep(1)
        gone.cancel()
        await s.run(ask(3))
    assert [r.body["n"] for r in provider.sent] == [1, 3]


@scenario("Q9", "one blocked by its own budget lets another fit")
async def _():
    async with open_scheduler(None, team("$0"), Budget("other", "$1")) as s:
        blocked = s.submit(ask(budget="team", priority="interactive"))
        await s.run(ask(budget="other", priority="idle"))
        assert not blocked.done()


@scenario("Q10", "waiting through failed tries loses no turn")
async def _():
    provider = Bench()
    tries = [TransportFailed("refused", is_billed=False)] * 2

    async def before(request):
        if request.body["n"] == 1 and tries:
            raise tries.pop()

    provider.before = before
    async with open_scheduler(provider, concurrency=1, retry_wait_s=lambda attempt: 0.0) as s:
        await asyncio.gather(*[s.submit(ask(n)) for n in (1, 2, 3)])
    assert [r.body["n"] for r in provider.sent] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    run(SCENARIOS[name]())
