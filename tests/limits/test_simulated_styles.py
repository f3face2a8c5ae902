"""The simulated provider's limits by themselves, against senders that know nothing of ours.

A sender a little above the limit is refused, one a little below it never is.
"""

import asyncio

import pytest

from scheduler.errors import RateLimited
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import Request
from scheduler.testing import run

PER_SECOND = 10
STYLES = ["plain", "openai", "openai-per-second", "azure", "anthropic", "groq", "window", "silent",
          "silent-minute"]  # fmt: skip


def ask(n=0, **more):
    return Request.chat("sim-small", f"question {n:06d}", **{"max_tokens": 100, **more})


def send_evenly(provider, share, seconds):
    """Send at a share of ten a second; how many were refused, and the last error."""

    async def main():
        refused, last = 0, None
        for n in range(int(PER_SECOND * share * seconds)):
            try:
                await provider.send(ask(n))
            except RateLimited as error:
                refused, last = refused + 1, error
            await asyncio.sleep(1 / (PER_SECOND * share))
        return refused, last

    return run(main())


@pytest.mark.parametrize("style", STYLES)
def test_a_little_below_the_limit_nothing_is_refused(style):
    refused, _ = send_evenly(Simulated(style=style, rpm=600), 0.98, 300)

    assert refused == 0


@pytest.mark.parametrize("style", STYLES)
def test_above_the_limit_it_refuses(style):
    refused, error = send_evenly(Simulated(style=style, rpm=600), 1.3, 300)

    assert refused > 200
    says_when = not style.startswith("silent")
    assert (error.retry_after_ms is not None) is says_when


@pytest.mark.parametrize(("style", "at_once"), [
    ("openai", 600), ("openai-per-second", 10), ("azure", 100), ("window", 600), ("silent", 10),
    ("silent-minute", 600),
])  # fmt: skip
def test_what_may_go_at_once_is_as_much_as_its_bucket_holds(style, at_once):
    provider = Simulated(style=style, rpm=600)

    async def main():
        answers = await asyncio.gather(*(provider.send(ask(n)) for n in range(700)),
                                       return_exceptions=True)  # fmt: skip
        return sum(not isinstance(each, Exception) for each in answers)

    assert run(main()) == at_once


@pytest.mark.parametrize(("style", "counts"), [("plain", False), ("openai", True)])
def test_what_is_refused_counts_or_not(style, counts):
    provider = Simulated(style=style, rpm=60)

    async def main():
        await asyncio.gather(*(provider.send(ask(n)) for n in range(60)))
        for _ in range(50):
            await asyncio.sleep(0.9)  # nine tenths of a request come back
            with pytest.raises(RateLimited):
                await provider.send(ask())
            if not counts:
                return

    run(main())


@pytest.mark.parametrize(
    ("style", "limit", "taken", "after"),
    [
        ("openai", {"tpm": 10_000}, 100, 100),  # the cap, and it stays
        ("azure", {"tpm": 10_000}, 100, None),  # input and cap, until the end
        ("anthropic", {"otpm": 10_000}, 0, None),  # output, once it is there
        ("groq", {"tpm": 10_000}, None, None),  # what it used
    ],
)
def test_tokens_are_counted_in_its_own_way(style, limit, taken, after):
    provider = Simulated(style=style, **limit, latency=0.01, output_tokens=40)

    async def main():
        call = asyncio.ensure_future(provider.send(ask()))
        await asyncio.sleep(0)
        (bucket,) = provider.limiter.buckets
        during = bucket.holds - bucket.level
        answer = await call
        return during, bucket.holds - bucket.level, answer.usage

    during, finally_, usage = run(main())
    used = usage.output_tokens if style == "anthropic" else usage.total_tokens
    expected = {None: used}.get(taken, taken)
    if style == "azure":
        expected = usage.input_tokens + 100
    assert during == pytest.approx(expected)
    assert finally_ == pytest.approx(used if after is None else after)


def test_a_call_that_fails_has_produced_nothing():
    provider = Simulated(style="anthropic", otpm=1000, fail={"503": 1.0})

    async def main():
        await asyncio.gather(*(provider.send(ask(n)) for n in range(4)), return_exceptions=True)

    run(main())
    assert provider.limiter.buckets[0].level == 1000


def test_so_many_calls_at_once_and_no_more():
    provider = Simulated(style="concurrent", concurrent=3, latency=1)

    async def main():
        answers = await asyncio.gather(*(provider.send(ask(n)) for n in range(5)),
                                       return_exceptions=True)  # fmt: skip
        await provider.send(ask())  # there is room again
        return sum(isinstance(each, RateLimited) for each in answers)

    assert run(main()) == 2


@pytest.mark.parametrize(("style", "dimensions"), [
    ("openai", {"requests", "tokens"}), ("groq", {"requests", "tokens"}), ("azure", set()),
    ("window", {"requests", "tokens"}), ("anthropic", {"requests", "tokens"}), ("silent", set()),
])  # fmt: skip
def test_its_headers_are_those_of_the_real_one(style, dimensions):
    provider = Simulated(style=style, rpm=600, tpm=60_000)

    async def main():
        return await provider.send(ask())

    assert {seen.dimension.value for seen in run(main()).limits} == dimensions


def test_anthropic_refuses_in_its_own_words():
    provider = Simulated(style="anthropic", rpm=1)

    async def main():
        await provider.send(ask())
        await provider.send(ask())

    with pytest.raises(RateLimited) as caught:
        run(main())
    assert caught.value.code == "rate_limit_error"


def test_azure_tells_what_remains_but_not_of_how_much():
    provider = Simulated(style="azure", rpm=600, tpm=60_000)

    async def main():
        return await provider.send(ask())

    told = {name for name in run(main()).headers if name.startswith("x-ratelimit")}
    assert told == {"x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"}


@pytest.mark.parametrize("style", ["groq", "openrouter", "gemini", "openai"])
def test_so_many_requests_a_day_and_no_more(style):
    provider = Simulated(style=style, rpd=20)

    async def main():
        answers = await asyncio.gather(*(provider.send(ask(n)) for n in range(25)),
                                       return_exceptions=True)  # fmt: skip
        refused = [each for each in answers if isinstance(each, RateLimited)]
        await asyncio.sleep(2 * 86_400)
        await provider.send(ask())
        return refused

    refused = run(main())
    assert len(refused) == 5
    (day,) = {(seen.limit, seen.remaining) for seen in refused[0].limits}
    assert day == (20, 0)
