"""Limits of a day: kept until they are given back, for one refusal at most, and shown as such."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from scheduler import Limits, Request, Scheduler
from scheduler.errors import RateLimited
from scheduler.limits import Gates, Heard, ProviderRules, Report
from scheduler.limits.meter import DAY_MS, HOUR_MS, MINUTE_MS, Dimension, Seen
from scheduler.providers.answers import read_answer
from scheduler.providers.limit_headers import read_limits
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import Tokens
from scheduler.testing import VirtualClock, run

REQUESTS, TOKENS, INPUT = Dimension.REQUESTS, Dimension.TOKENS, Dimension.INPUT
PRICE = {"sim-small": "0/0"}
DAY_S = 86_400
T0 = 1_000_000_000


def send_all(provider, count, at_once=16):
    """Send so many; how long it took, and what was held back when all that could had gone."""

    async def main():
        loop, told = asyncio.get_running_loop(), []
        began_s = loop.time()
        async with Scheduler(
            providers=provider, prices=PRICE, clock=VirtualClock(), concurrency=at_once
        ) as s:
            futures = [s.submit(Request.chat("sim-small", f"{n}", max_tokens=5))
                       for n in range(count)]  # fmt: skip
            await asyncio.sleep(600)
            told = [(each.why, each.until_ms) for each in s.stats().limited]
            now_ms = s._clock.now_ms()
            await asyncio.gather(*futures)
        return loop.time() - began_s, told, now_ms

    return run(main())


@pytest.mark.parametrize("counting", ["groq", "default", "openai"])
@pytest.mark.parametrize("given", [None, Limits(requests_per_minute=30)])
def test_requests_a_day_that_come_back_steadily_are_waited_for(counting, given):
    provider = Simulated(style="groq", rpd=100, latency=0.5)
    provider.counting, provider.limits = counting, given

    took_s, told, now_ms = send_all(provider, 110)

    assert provider.limiter.refused <= 1
    assert provider.bill.calls == 110
    assert 10 * 864 <= took_s + 1 <= 14 * 864
    whys = [why for why, _ in told]
    assert any("at its limit of 100 requests a day" in why for why in whys), told
    assert all(until_ms is None or until_ms > now_ms for _, until_ms in told)


@pytest.mark.parametrize(
    ("style", "zone"), [("openrouter", UTC), ("gemini", ZoneInfo("America/Los_Angeles"))]
)
def test_requests_a_day_until_midnight_are_waited_for(style, zone):
    provider = Simulated(style=style, rpd=50, latency=0.5)
    now = datetime.now(zone)
    day = datetime(now.year, now.month, now.day, tzinfo=zone) + timedelta(days=1)
    midnight_s = day.timestamp() - now.timestamp()

    took_s, told, now_ms = send_all(provider, 90, at_once=1)

    assert provider.limiter.refused == 1
    assert provider.bill.calls == 90
    assert midnight_s - 60 <= took_s <= midnight_s + 900
    ((why, until_ms),) = told
    assert "at its limit of 50 requests a day" in why
    assert abs(until_ms - now_ms - (midnight_s - 600) * 1000) < 120_000


GROQ = ("Rate limit reached for model `llama-3.3-70b` in organization `org_1` service tier "
        "`on_demand` on {}: Limit {}, Used {}, Requested {}. Please try again in {}.")  # fmt: skip


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (GROQ.format("requests per day (RPD)", 14400, 14400, 1, "6s"),
         Seen(REQUESTS, 14400, 0, None, DAY_MS)),
        (GROQ.format("tokens per day (TPD)", 100000, 97050, 3619, "9m38.016s"),
         Seen(TOKENS, 100000, 2950, None, DAY_MS)),
        (GROQ.format("tokens per minute (TPM)", 6000, 5034, 1443, "4.77s"),
         Seen(TOKENS, 6000, 966, None, MINUTE_MS)),
        ("Rate limit reached for gpt-4o in organization org-1 on requests per day (RPD): Limit 200, "
         "Used 200, Requested 1. Please try again in 7m12s.", Seen(REQUESTS, 200, 0, None, DAY_MS)),
        ("Rate limit reached for gpt-4 on requests per min. Limit: 3 / min. Please try again in 20s.",
         Seen(REQUESTS, 3, 0, None, MINUTE_MS)),
        ("Rate limit reached for x on tokens per min. Limit: 40,000 / min. Current: 41,200 / min.",
         Seen(TOKENS, 40_000, 0, None, MINUTE_MS)),
        (GROQ.format("input tokens per hour (ITPH)", 1000, 900, 200, "6m"),
         Seen(INPUT, 1000, 100, None, HOUR_MS)),
    ],
)  # fmt: skip
def test_a_refusal_that_names_its_limit_in_words_is_understood(message, expected):
    with pytest.raises(RateLimited) as caught:
        read_answer(429, {}, json.dumps({"error": {"message": message}}).encode())

    assert caught.value.limits == (expected,)


def refusal(error, headers=None):
    with pytest.raises(RateLimited) as caught:
        read_answer(429, headers or {}, json.dumps({"error": error}).encode())
    return caught.value


def violation(quota, value="20"):
    return {"quotaId": quota, "quotaValue": value, "quotaMetric": "x"}


def google(*violations, delay="5s"):
    start = "type.googleapis.com/google.rpc."
    return {
        "code": 429, "status": "RESOURCE_EXHAUSTED",
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "details": [{"@type": f"{start}QuotaFailure", "violations": list(violations)},
                    {"@type": f"{start}RetryInfo", "retryDelay": delay}],
    }  # fmt: skip


def test_geminis_day_is_no_empty_purse_and_lasts_until_midnight_in_california():
    error = refusal(google(violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier")))

    (seen,) = error.limits
    assert (seen.limit, seen.remaining, seen.span_ms, seen.is_window) == (20, 0, DAY_MS, True)
    assert error.credit is None
    assert 0 < seen.full_in_ms <= DAY_MS + HOUR_MS
    assert error.retry_after_ms == pytest.approx(seen.full_in_ms, abs=60_000)


def test_geminis_minute_is_waited_for_as_it_says():
    error = refusal(google(
        violation("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10"),
        violation("GenerateContentInputTokensPerModelPerMinute-FreeTier", "250000"),
    ))  # fmt: skip

    assert error.retry_after_ms == 5000
    assert [(s.dimension, s.limit, s.span_ms) for s in error.limits] == [
        (REQUESTS, 10, MINUTE_MS), (INPUT, 250_000, MINUTE_MS)]  # fmt: skip


def test_a_day_whose_limit_is_not_told_is_waited_for_all_the_same():
    quota = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}

    for error in (refusal(google(quota)),
                  refusal({"message": "Rate limit exceeded: free-models-per-day-high-balance."})):  # fmt: skip
        assert error.limits == ()
        assert 0 < error.retry_after_ms <= DAY_MS + HOUR_MS


def test_what_openrouter_has_in_its_body_is_read():
    at_ms = round((datetime.now(UTC) + timedelta(hours=3)).timestamp() * 1000)
    told = {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(at_ms),
    }
    minute, day = (
        refusal({"message": f"Rate limit exceeded: free-models-per-{span}. Add 10 credits to unlock "
                 "1000 free model requests per day", "code": 429, "metadata": {"headers": told}})
        for span in ("min", "day")
    )  # fmt: skip

    assert [seen.span_ms for seen in minute.limits] == [MINUTE_MS]
    (seen,) = day.limits
    assert (seen.limit, seen.span_ms, seen.is_window) == (20, DAY_MS, True)
    assert day.retry_after_ms == pytest.approx(3 * HOUR_MS, abs=60_000)


@pytest.mark.parametrize(
    "error",
    [{"details": "x"}, {"details": [{"violations": [1, {"quotaId": 3}]}]}, {"metadata": [1]},
     {"metadata": {"headers": {"X-RateLimit-Limit": "x"}}}, {"details": [None]},
     google(violation("GenerateRequestsPerDay", "0")), google(violation("PerDay", "9" * 99))],
)  # fmt: skip
def test_nonsense_in_a_refusal_is_no_error(error):
    assert refusal({"message": "slow down", **error}).limits == ()


def test_headers_that_name_their_span_are_read():
    told = {
        "x-ratelimit-limit-requests-day": "1000", "x-ratelimit-remaining-requests-day": "999",
        "x-ratelimit-reset-requests-day": "33011.382867",
        "x-ratelimit-limit-tokens-minute": "60000", "x-ratelimit-remaining-tokens-minute": "59000",
        "x-ratelimit-reset-tokens-minute": "11.38",
        "x-ratelimit-limit-req-hour": "9", "x-ratelimit-remaining-req-hour": "8",
    }  # fmt: skip

    assert read_limits(told) == (
        Seen(REQUESTS, 1000, 999, 33_011_383, DAY_MS),
        Seen(TOKENS, 60_000, 59_000, 11_380, MINUTE_MS),
        Seen(REQUESTS, 9, 8, None, HOUR_MS),
    )


def test_an_absolute_instant_is_a_reset_too():
    at = datetime.now(UTC) + timedelta(seconds=40)
    for text in (str(int(at.timestamp())), str(round(at.timestamp() * 1000)), at.isoformat()):
        told = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": text}  # fmt: skip
        (seen,) = read_limits(told)
        assert 35_000 < seen.full_in_ms <= 41_000


# The gate


def gate_of(limits=None, **rules):
    gates = Gates({"p": ProviderRules(model_limits={"m": limits or Limits()}, **rules)})
    return gates, gates.of("p", "m")[1]


def test_the_minute_that_was_given_and_the_day_that_is_told_are_both_kept():
    gates, gate = gate_of(Limits(requests_per_minute=30), counting="groq")
    gate.take(1, Tokens(10, 10), T0)
    seen = (Seen(REQUESTS, 14_400, 14_399, 6_000),)
    gates.hear([Report(1, "p", "m", Heard.ANSWERED, T0, seen=seen)])

    assert {key: meter.limit for key, meter in gate.meters.items()} == {
        "requests": 30, "requests a day": 14_400}  # fmt: skip


def test_a_day_that_is_used_up_slows_nothing_else_down_and_is_told():
    gates, gate = gate_of(Limits(tokens_per_minute=6000), counting="groq")
    gate.take(1, Tokens(10, 10), T0)
    seen = (Seen(REQUESTS, 100, 0, None, DAY_MS),)
    gates.hear([Report(1, "p", "m", Heard.LIMITED, T0, seen=seen, retry_after_ms=864_000)])

    assert gate.share == 1.0
    assert gate.meters["tokens"].level(T0, 1.0) > 50
    (status,) = gates.statuses(T0)
    assert "at its limit of 100 requests a day" in status.why
    assert status.until_ms >= T0 + 864_000


def test_a_minute_that_is_used_up_does_not_slow_down_the_day():
    gates, gate = gate_of(counting="groq")
    gate.take(1, Tokens(10, 10), T0)
    gates.hear([Report(1, "p", "m", Heard.ANSWERED, T0, seen=(Seen(REQUESTS, 1000, 900),))])
    gate.take(2, Tokens(10, 10), T0)
    seen = (Seen(TOKENS, 6000, 0, 4000),)
    gates.hear([Report(2, "p", "m", Heard.LIMITED, T0, seen=seen, retry_after_ms=4000)])

    assert gate.meters["requests a day"].level(T0 + 5000, 1.0) > 800


def test_others_who_used_up_the_day_are_noticed_without_a_refusal():
    gates, gate = gate_of(counting="groq")
    gate.take(1, Tokens(10, 10), T0)
    seen = (Seen(REQUESTS, 1000, 0, DAY_MS),)
    gates.hear([Report(1, "p", "m", Heard.ANSWERED, T0, seen=seen)])

    assert gate.opens_at_ms(Tokens(10, 10), T0) > T0 + 60_000
    assert "requests a day" in gates.statuses(T0)[0].why
