"""Functions of a user's own that give nonsense: nothing that was paid for is lost by it."""

import asyncio
import logging
import re
from decimal import Decimal
from fractions import Fraction

import pytest

from scheduler import (
    Budget,
    ConfigError,
    FunctionProvider,
    Request,
    Retry,
    Scheduler,
    Simulated,
    TransportFailed,
    events,
)
from scheduler.answer import Answer
from scheduler.clock import TrustedClock
from scheduler.guards import hooks
from scheduler.money import parse_usd
from scheduler.prices.book import PriceBook
from scheduler.providers.base import Provider
from scheduler.request import Quote, Usage
from scheduler.testing import VirtualClock, run


class Shy:
    """Cannot even say what it is."""

    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__

    def __bool__(self):
        raise RuntimeError("no")


class Odd(BaseException):
    """Neither an `Exception` nor the program's end."""


NONSENSE = {
    "nan": float("nan"), "below zero": -0.5, "infinite": float("inf"), "a text": "much",
    "an empty text": "", "a bool": True, "huge": 10**400, "huge float": 1e308, "an object": object(),
    "shy": Shy(), "a list": [0.1], "bytes": b"1", "complex": 1j, "signalling": Decimal("sNaN"),
    "a class": int, "a fraction": Fraction(-1, 3), "an answer": Answer({}),
}  # fmt: skip
RAISED = [
    ValueError("no"), StopIteration(3), StopAsyncIteration(), GeneratorExit(), Odd(), RecursionError(),
    asyncio.CancelledError(), MemoryError(), KeyError(Shy()), TransportFailed("of mine", False),
    ConfigError("cost", "of mine"), TimeoutError(),
]  # fmt: skip


def giver(value):
    def hook(*args):
        return value

    return hook


def raiser(error):
    def hook(*args):
        raise error

    return hook


async def coroutine(*args):
    return 0.1


HOOKS = [
    *(pytest.param(giver(value), id=name) for name, value in NONSENSE.items()),
    *(pytest.param(raiser(error), id=type(error).__name__) for error in RAISED),
    pytest.param(coroutine, id="async"),
]


@pytest.fixture(autouse=True)
def untold():
    hooks._told.clear()


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "scheduler.hooks")

    def names():
        return [r.getMessage() for r in caplog.records if r.name == "scheduler.hooks"]

    return names


def world(main, **options):
    async def inside():
        options.setdefault("budgets", Budget("team", "$1"))
        options.setdefault("clock", VirtualClock())
        async with Scheduler(**options) as s:
            done = await main(s)
            assert s.stats().running == 0
            return done

    return run(inside())


async def answers(request):
    return {"n": request.body["n"]}


@pytest.mark.parametrize("cost", HOOKS)
def test_a_cost_that_makes_no_sense_leaves_the_answer_and_the_quote_counts(cost, told):
    async def main(s):
        responses = [await s.run(Request({"n": n}, budget="team")) for n in range(3)]
        assert [response.body["n"] for response in responses] == [0, 1, 2]
        assert all(response.is_estimated for response in responses)
        return s.stats().posted_nusd

    provider = FunctionProvider("f", answers, quote="$0.01", cost=cost)

    assert world(main, providers=provider) == 3 * 10_000_000
    (words,) = told()
    assert cost.__qualname__ in words
    assert "what was quoted counts" in words


@pytest.mark.parametrize("cost", HOOKS)
def test_a_budgeted_functions_cost_likewise(cost, told):
    async def main(s):
        @s.budgeted(quote="$0.01", cost=cost)
        async def ask(n):
            return n

        assert [await ask(n) for n in range(3)] == [0, 1, 2]
        return s.stats().posted_nusd

    assert world(main, providers=Simulated()) == 3 * 10_000_000
    assert len(told()) == 1


@pytest.mark.parametrize(
    ("cost", "nusd"),
    [
        (None, 10_000_000), ("$0.002", 2_000_000), (0, 0), (Fraction(1, 4).__float__(), 250_000_000),
        (Decimal("0.001000000000000000000000000000000000000001"), 1_000_001),
    ],
)  # fmt: skip
def test_a_cost_that_makes_sense_is_posted(cost, nusd, told):
    async def main(s):
        await s.run(Request({"n": 1}, budget="team"))
        return s.stats().posted_nusd

    provider = FunctionProvider("f", answers, quote="$0.01", cost=giver(cost))

    assert world(main, providers=provider) == nusd
    assert told() == []


def test_an_amount_does_not_depend_on_the_programs_own_decimals():
    import decimal

    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.Inexact] = True
        assert parse_usd("123.456789") == 123_456_789_000


class Tariffed(Provider):
    """A provider with a tariff and answers of its own."""

    name, price_source, can_look_up = "own", None, False

    def __init__(self, cost=lambda *args: 5, quote=lambda *args: Quote(100, 50, 10), **said):
        self.tariff = self
        self._cost, self._quote, self.said, self.sent = cost, quote, said, 0

    def quote(self, request):
        return self._quote(request)

    def cost_nusd(self, request, answer):
        return self._cost(request, answer)

    async def send(self, request):
        self.sent += 1
        return Answer({"n": request.body["n"]}, **self.said)


@pytest.mark.parametrize("cost", HOOKS)
def test_a_tariff_likewise(cost, told):
    async def main(s):
        assert (await s.run(Request({"n": 1}, budget="team"))).body == {"n": 1}
        return s.stats().posted_nusd

    assert world(main, providers=Tariffed(cost)) == 100
    assert len(told()) == 1


@pytest.mark.parametrize(
    "usage",
    [{"input_tokens": 1}, Usage(float("nan"), 1), Usage(-1, 1), Usage("1", "2"), Usage(1, 1, "x"), 7,
     Usage(10**30, 1), Usage(True, False), "much"],
)  # fmt: skip
def test_a_usage_that_makes_no_sense_counts_as_not_told(usage):
    async def main(s):
        response = await s.run(Request({"n": 1}, budget="team"))
        assert (response.body, response.usage) == ({"n": 1}, None)
        await s.run(Request({"n": 2}, budget="team"))  # and the limits go on

    world(main, providers=Tariffed(usage=usage))


@pytest.mark.parametrize("quote", HOOKS)
def test_a_quote_that_makes_no_sense_is_refused_before_anything_is_called(quote):
    called = []

    async def call(request):
        called.append(request)

    async def main(s):
        for _ in range(2):
            with pytest.raises((ConfigError, Exception)) as caught:
                await s.run(Request({"n": 1}, budget="team"))
        assert s.stats().queued == 0
        return caught.value

    error = world(main, providers=FunctionProvider("f", call, quote=quote))

    assert called == []
    is_raised = any(error is each for each in RAISED)
    assert isinstance(error, ConfigError) or (is_raised and isinstance(error, Exception))


@pytest.mark.parametrize(
    "quote",
    [Quote(-1, 0), Quote(1.5, 1), Quote(float("nan"), 1), Quote("1", 1), Quote(1, 1, -3), Quote(True, 1),
     Quote(1, -1), Quote(1, 1, 1, tokens=(1, "2")), None, "$1", 7],
)  # fmt: skip
def test_a_tariffs_quote_that_makes_no_sense_is_refused_by_its_name(quote):
    provider = Tariffed(quote=giver(quote))

    async def main(s):
        with pytest.raises(ConfigError, match=re.escape("Tariffed.quote gave")):
            await s.run(Request({"n": 1}, budget="team"))

    world(main, providers=provider)
    assert provider.sent == 0


@pytest.mark.parametrize("quote", [float("nan"), -0.5, "much", True, object(), float("inf")])
def test_a_fixed_amount_that_makes_no_sense_is_told_where_it_is_written(quote):
    with pytest.raises(ConfigError):
        FunctionProvider("f", answers, quote=quote)
    with pytest.raises(ConfigError):
        FunctionProvider("f", answers, quote="$1", cost=quote)


@pytest.mark.parametrize("count", HOOKS)
def test_a_count_of_tokens_that_makes_no_sense_is_refused(count):
    async def main(s):
        with pytest.raises((ConfigError, Exception)):
            await s.run(Request.chat("sim-small", "hi", max_tokens=5))

    provider = Simulated()
    world(main, providers=provider, prices=PriceBook({"sim-small": "1/4"}, count_tokens=count))
    assert provider.calls == 0


@pytest.mark.parametrize("strategy", HOOKS)
@pytest.mark.parametrize("which", ["stop", "wait", "retry_wait_s"])
def test_a_strategy_that_makes_no_sense_leaves_the_usual_one(strategy, which):
    tries = []

    async def call(request):
        tries.append(1)
        raise TransportFailed("reset")

    async def main(s):
        with pytest.raises(TransportFailed) as caught:
            await s.run(Request({"n": 1}, budget="team"))
        return caught.value

    options = (
        {which: strategy} if which == "retry_wait_s" else {"retry": Retry(**{which: strategy})}
    )
    error = world(main, providers=FunctionProvider("f", call, quote="$0.01"), **options)

    assert 1 <= len(tries) <= 3
    assert error.attempts == len(tries)


@pytest.mark.parametrize("clock", HOOKS)
def test_a_clock_that_makes_no_sense_is_replaced_by_the_computers(clock, told):
    class Clock:
        now_ms = staticmethod(clock)

    async def main(s):
        return (await s.run(Request({"n": 1}, budget="team"))).body

    async def inside():
        provider = FunctionProvider("f", answers, quote="$0.01")
        async with Scheduler(providers=provider, budgets=Budget("team", "$1"), clock=Clock()) as s:
            return await main(s)

    assert asyncio.run(inside()) == {"n": 1}
    assert TrustedClock(Clock()).now_ms() > 10**12
    assert len(told()) == 1


@pytest.mark.parametrize("callback", HOOKS[-len(RAISED) - 1 : -1])
def test_a_subscriber_that_raises_harms_nobody(callback):
    async def main(s):
        s.on(events.Event, callback)
        return (await s.run(Request({"n": 1}, budget="team"))).body

    assert world(main, providers=FunctionProvider("f", answers, quote="$0.01")) == {"n": 1}


@pytest.mark.parametrize("found", HOOKS[:-1])
def test_a_look_up_that_makes_no_sense_leaves_what_was_reserved(found):
    async def look_up(unknown):
        return found(unknown)

    async def call(request):
        raise TransportFailed("reset")

    async def main(s):
        with pytest.raises(TransportFailed):
            await s.run(Request({"n": 1}, budget="team"))
        await asyncio.sleep(100)
        return s.stats().suspense_nusd + s.stats().posted_nusd

    provider = FunctionProvider("f", call, quote="$0.01", look_up=look_up)
    assert world(main, providers=provider, max_attempts=1) == 10_000_000


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_it(ending):
    def cost(request, body):
        raise ending

    async def main(s):
        await s.run(Request({"n": 1}, budget="team"))

    with pytest.raises(ending):
        world(main, providers=FunctionProvider("f", answers, quote="$0.01", cost=cost))
