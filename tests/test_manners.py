"""Good manners with providers: parks on their empty purse, pauses, retries, falls back, prevents."""

import asyncio
import json
from pathlib import Path

import pytest
import tenacity

from scheduler import (
    Budget,
    BudgetExceeded,
    CallTimeout,
    CostTooHigh,
    FunctionProvider,
    Limits,
    ParkReason,
    PriceUnknown,
    PromptTooLong,
    ProviderRefused,
    ProviderUnavailable,
    RateLimited,
    Request,
    RequestState,
    Retry,
    Scheduler,
    Simulated,
    TransportFailed,
    events,
)
from scheduler.providers.answers import read_error
from scheduler.request import Quote, Tokens
from scheduler.testing import VirtualClock, run

FIXTURES = json.loads((Path(__file__).parent / "fixtures" / "refusals.json").read_text())
EMPTY_PURSES = [told for told in FIXTURES if told["reads"] == "credit"]


class Service:
    """A provider that does as it is told, and notes when it was asked."""

    def __init__(self, fail=lambda number: None, latency_s=1.0):
        self.fail, self.latency_s = fail, latency_s
        self.asked_s, self.answered = [], 0
        self.provider = FunctionProvider("f", self.call, quote=Quote(100, 50, 10), cost="0.0000001")

    async def call(self, request):
        self.asked_s.append(asyncio.get_running_loop().time())
        number = len(self.asked_s)
        await asyncio.sleep(self.latency_s)
        error = self.fail(number)
        if error is not None:
            raise error
        self.answered += 1
        return {"n": number}


def world(service, main, **options):
    async def inside():
        options.setdefault("budgets", Budget("team", "$1"))
        async with Scheduler(providers=service.provider, clock=VirtualClock(), **options) as s:
            return await main(s)

    return run(inside())


def ask(s, count):
    return [s.submit(Request({"n": n}, budget="team")) for n in range(count)]


# The provider's own purse


@pytest.mark.parametrize("told", EMPTY_PURSES, ids=lambda told: told["name"])
def test_every_empty_purse_parks_is_probed_and_goes_on_after_a_top_up(told):
    is_empty = True

    def fail(number):
        content = json.dumps(told["body"]).encode()
        return read_error(told["status"], told["headers"], content) if is_empty else None

    service = Service(fail)

    async def main(s):
        nonlocal is_empty
        parked = []
        s.on(events.Parked, parked.append)
        futures = ask(s, 20)
        await asyncio.sleep(5)
        asked_first = len(service.asked_s)
        lack = futures[7].parked
        assert (lack.reason, lack.budget) == (ParkReason.PROVIDER_CREDIT, "f")
        assert lack.words in json.dumps(told["body"], ensure_ascii=False) or lack.words
        assert lack.resumes_at_ms is not None
        assert s.stats().parked == {"provider_credit": 20}
        assert s.stats().reserved_nusd == 0
        await asyncio.sleep(200)
        probes = len(service.asked_s) - asked_first
        assert 2 <= probes <= 4  # one at a time, ever more rarely
        is_empty = False
        responses = await asyncio.gather(*futures)
        assert parked[0].shortfall.reason is ParkReason.PROVIDER_CREDIT
        return [response.attempts for response in responses]

    assert world(service, main, max_attempts=1) == [1] * 20


def test_whoever_has_paid_need_not_wait_for_the_timer():
    is_empty = True
    service = Service(lambda n: _no_credit() if is_empty else None)

    async def main(s):
        nonlocal is_empty
        futures = ask(s, 3)
        await asyncio.sleep(500)
        is_empty = False
        began_s = asyncio.get_running_loop().time()
        assert s.probe("f")
        await asyncio.gather(*futures)
        assert not s.probe("f")
        return asyncio.get_running_loop().time() - began_s

    assert world(service, main) < 5


def test_who_may_not_wait_is_told_whose_purse_is_empty():
    service = Service(lambda n: _no_credit())

    async def main(s):
        with pytest.raises(ProviderUnavailable, match="its own credit is used up") as caught:
            await s.run(Request({"n": 1}, budget="team"), on_exceeded="raise")
        return caught.value

    error = world(service, main)
    assert (error.provider, error.reason, error.words) == ("f", "provider_credit", "quota is spent")


def _no_credit():
    error = RateLimited(429, "quota is spent", "insufficient_quota")
    error.is_retryable, error.credit = False, "quota is spent"
    return error


# Rates


def test_a_refusal_uses_no_attempt_and_pauses_all_of_that_model():
    def fail(number):
        return RateLimited(429, "slow down", retry_after_ms=7000) if number == 1 else None

    service = Service(fail, latency_s=0.1)

    async def main(s):
        responses = await asyncio.gather(*ask(s, 3))
        return [response.attempts for response in responses]

    assert world(service, main, max_attempts=1, concurrency=1) == [1, 1, 1]
    assert [round(at_s - service.asked_s[0], 1) for at_s in service.asked_s] == [0, 7.1, 7.2, 7.3]


def test_nothing_is_claimed_that_cannot_be_sent_at_once():
    service = Service(latency_s=0.1)
    service.provider.limits = Limits(requests_per_minute=60)

    async def main(s):
        admitted = []
        s.on(events.Admitted, admitted.append)
        futures = ask(s, 30)
        await asyncio.sleep(9.9)
        # What waits for its turn holds no money.
        assert s.stats().running <= 1
        assert s.stats().reserved_nusd <= 100
        assert s.stats().limited[0].why == "at its limit of 60 requests a minute"
        assert futures[-1].state is RequestState.QUEUED
        await asyncio.gather(*futures)
        return len(admitted)

    assert world(service, main) == 30
    gaps = [b - a for a, b in zip(service.asked_s, service.asked_s[1:], strict=False)]
    assert all(1.0 <= gap < 1.05 for gap in gaps)


def test_the_urgent_goes_first_through_a_gate_and_the_order_within_stays():
    order = []

    async def call(request):
        order.append(request.body["n"])
        return {}

    provider = FunctionProvider("f", call, quote=Quote(100, 50, 10))
    provider.limits = Limits(requests_per_minute=60)

    async def main():
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            batch = [s.submit(Request({"n": n}, priority="batch")) for n in range(8)]
            await asyncio.sleep(2.5)
            urgent = [s.submit(Request({"n": n}, priority="interactive")) for n in (100, 101)]
            await asyncio.gather(*batch, *urgent)

    run(main())
    assert order == [0, 1, 2, 100, 101, 3, 4, 5, 6, 7]


def test_a_large_request_that_waits_for_tokens_is_not_starved_by_small_ones():
    order = []

    async def call(request):
        order.append(request.body["n"])
        return {}

    def quote(request):
        return Quote(100, 50, 10, tokens=Tokens(request.body["tokens"], 0))

    provider = FunctionProvider("f", call, quote=quote)
    provider.limits = Limits(tokens_per_minute=60_000)  # 900 at once, then a thousand a second

    async def main():
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            used_up = s.submit(Request({"n": "first", "tokens": 900}))
            await used_up
            large = s.submit(Request({"n": "large", "tokens": 800}, priority="interactive"))
            small = [s.submit(Request({"n": n, "tokens": 50}, priority="batch")) for n in range(40)]
            await asyncio.gather(large, *small)

    run(main())
    assert order[:2] == ["first", "large"]


def test_one_provider_can_be_left_alone_while_others_go_on():
    sent = []

    async def call(request):
        sent.append(request.provider)
        return {}

    providers = [FunctionProvider(name, call, quote=Quote(100, 50, 10)) for name in ("a", "b")]

    async def main():
        async with Scheduler(providers=providers, clock=VirtualClock()) as s:
            s.stop_admitting("b")
            futures = [
                s.submit(Request({"n": n}, provider=name)) for n in range(5) for name in "ab"
            ]
            await asyncio.gather(*futures[::2])
            await asyncio.sleep(60)
            assert not any(future.done() for future in futures[1::2])

    run(main())
    assert sent == ["a"] * 5


def test_a_dead_provider_is_tried_by_one_at_a_time_and_no_attempt_is_lost():
    is_dead = True
    service = Service(lambda n: TransportFailed("refused", False) if is_dead else None, 0.01)

    async def main(s):
        nonlocal is_dead
        futures = ask(s, 50)
        await asyncio.sleep(100)
        asked = len(service.asked_s)
        assert futures[-1].parked.reason is ParkReason.PROVIDER_DOWN
        is_dead = False
        responses = await asyncio.gather(*futures)
        assert max(response.attempts for response in responses) <= 3
        return asked

    assert world(service, main) < 40


# Retries


def test_strategies_of_tenacity_say_how_often_and_how_long_by_kind_of_error():
    failures = {1: TransportFailed("reset", False), 2: TransportFailed("reset", False)}
    service = Service(lambda n: failures.get(n), latency_s=0)
    retry = Retry(
        tenacity.stop_after_attempt(1),
        on={TransportFailed: Retry(tenacity.stop_after_attempt(3), tenacity.wait_fixed(9))},
    )

    async def main(s):
        response = await s.run(Request({"n": 1}, budget="team"))
        return response.attempts

    assert world(service, main, retry=retry) == 3
    assert [round(at_s - service.asked_s[0]) for at_s in service.asked_s] == [0, 9, 18]


def test_a_providers_own_retry_comes_before_the_schedulers():
    service = Service(lambda n: CallTimeout("slow"), latency_s=0)
    service.provider.retry = Retry(tenacity.stop_after_attempt(2), tenacity.wait_none())

    async def main(s):
        with pytest.raises(CallTimeout) as caught:
            await s.run(Request({"n": 1}, budget="team"))
        return caught.value

    error = world(service, main, max_attempts=7)
    assert (error.attempts, error.cost_nusd) == (2, 200)


def test_the_providers_wish_is_waited_for_whatever_the_strategy():
    error = TransportFailed("reset", False)
    error.retry_after_ms = 5000
    assert Retry(wait=tenacity.wait_none()).delay_ms(1, error) == 5000
    assert Retry(stop=tenacity.stop_after_delay(60)).delay_ms(9, error, 61_000) is None


# Fallback and prevention

CHEAP = {"dear": "10/10", "mid": "1/1", "cheap": "0.1/0.1"}


def chat(model="dear", **options):
    return Request.chat(model, "hello", max_tokens=1000, **options)


def fallback_world(main, limit, **options):
    async def inside():
        provider = Simulated(prices=CHEAP, latency=1)
        async with Scheduler(
            providers=provider, prices=CHEAP, clock=VirtualClock(), budgets=Budget("team", limit),
            **options,
        ) as s:  # fmt: skip
            return await main(s)

    return run(inside())


def test_what_does_not_fit_goes_to_the_first_cheaper_model_that_does_and_says_so():
    async def main(s):
        request = chat(fallback=["mid", "cheap"], key="a")
        response = await s.run(request, on_exceeded="fallback")
        again = await s.run(request, on_exceeded="fallback")  # the same key: the same answer
        assert again.body == response.body
        assert s.stats().succeeded == 1
        return response.model, response.instead_of

    model, instead_of = fallback_world(main, "$0.0005")
    assert model == "cheap"
    assert instead_of["model"] == "dear"
    assert instead_of["why"].startswith("larger_than_limit: budget 'team' lacked $0.0")


def test_what_fits_goes_to_its_own_model():
    async def main(s):
        response = await s.run(chat())
        return response.model, response.instead_of

    assert fallback_world(main, "$5", on_exceeded="fallback", fallback=["cheap"]) == ("dear", None)


def test_what_fits_nowhere_waits_for_its_own_model():
    async def main(s):
        future = s.submit(chat(), on_exceeded="fallback")
        await asyncio.sleep(1)
        assert future.parked.reason is ParkReason.LARGER_THAN_LIMIT
        await s.set_limit("team", "$1")
        response = await future
        return response.model, response.instead_of

    assert fallback_world(main, "$0.00001", fallback=["mid", "cheap"]) == ("dear", None)


def test_nobody_falls_back_who_did_not_say_so():
    async def main(s):
        future = s.submit(chat(fallback=["cheap"]))
        await asyncio.sleep(60)
        return future.parked.reason

    assert fallback_world(main, "$0.0005", fallback=["cheap"]) is ParkReason.LARGER_THAN_LIMIT


def test_a_fallback_without_a_price_is_refused_at_once():
    async def main(s):
        with pytest.raises(PriceUnknown, match="unheard-of"):
            s.submit(chat(fallback=["unheard-of"]), on_exceeded="fallback")

    fallback_world(main, "$1")


def test_long_prompts_and_dear_requests_are_refused_before_they_are_queued():
    async def main(s):
        with pytest.raises(PromptTooLong, match="above the most allowed of 500"):
            s.submit(Request.chat("cheap", "word " * 1000, max_tokens=5))
        with pytest.raises(CostTooHigh, match="max_cost"):
            s.submit(chat())
        response = await s.run(chat("cheap"))
        assert (await s.run(chat(max_cost="1"))).model == "dear"  # its own word counts
        return response.model

    assert fallback_world(main, "$1", max_prompt_tokens=500, max_cost="$0.001") == "cheap"


def test_a_wrong_word_for_what_is_exceeded_is_refused():
    with pytest.raises(ValueError, match="one of 'wait', 'raise' and 'fallback'"):
        Scheduler(on_exceeded="panic")


def test_raise_still_raises():
    async def main(s):
        with pytest.raises(BudgetExceeded):
            await s.run(chat(), on_exceeded="raise")

    fallback_world(main, "$0.0001", fallback=["cheap"])


# Refused input


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_wrong_request_fails_at_once_and_once_with_the_providers_words(status):
    service = Service(lambda n: ProviderRefused(status, "no such field", "bad_field"), latency_s=0)

    async def main(s):
        with pytest.raises(ProviderRefused, match=f"HTTP {status} bad_field: no such field"):
            await s.run(Request({"n": 1}, budget="team"))

    world(service, main)
    assert len(service.asked_s) == 1


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_what_a_provider_has_credit_for_goes_while_what_it_has_none_for_waits(store, tmp_path):
    """Against a provider that bills, and refuses in the words of OpenRouter."""
    provider = Simulated(credit="$0.02", output_tokens=20)

    async def main():
        url = "memory://" if store == "memory" else f"sqlite:///{tmp_path}/s.db"
        async with Scheduler(url, providers=provider) as s:
            large = s.submit(Request.chat("sim-large", "all of it", max_tokens=16_384))
            small = [s.submit(Request.chat("sim-small", f"{n}", max_tokens=30)) for n in range(186)]
            done = await asyncio.wait_for(asyncio.gather(*small), 20)
            lack = large.parked
            assert lack.reason is ParkReason.PROVIDER_CREDIT
            assert "can only afford" in lack.words
            assert 0 < lack.limit <= 21_000_000  # inputs are estimated upwards
            request = Request.chat("sim-large", "again", max_tokens=16_384)
            with pytest.raises(ProviderUnavailable, match=r"up to about \$0\.0\d+ go on"):
                await s.run(request, on_exceeded="raise")
            provider.credit_nusd = 10**10
            assert s.probe(provider.name)
            assert (await asyncio.wait_for(large, 20)).text
            return len(done)

    assert asyncio.run(main()) == 186


def test_a_request_that_is_larger_than_a_whole_limit_holds_back_no_other():
    words = "Request too large for model x on tokens per minute (TPM): Limit 6000, Requested 8000"
    body = json.dumps({"error": {"message": words, "code": "rate_limit_exceeded"}}).encode()
    service = Service(lambda n: read_error(429, {}, body) if n == 1 else None)

    async def main(s):
        first, *others = ask(s, 20)
        await asyncio.gather(*others)
        with pytest.raises(RateLimited, match="Request too large"):
            await first
        return asyncio.get_running_loop().time()

    assert world(service, main) < 3


def test_one_request_that_is_never_answered_is_not_the_only_one_to_try():
    async def call(request):
        await asyncio.sleep(1)
        if request.body["n"] == 0:
            raise CallTimeout("no answer")
        return {}

    async def main():
        provider = FunctionProvider("f", call, quote="$0.01")
        async with Scheduler(
            providers=provider, clock=VirtualClock(), max_attempts=50, concurrency=1,
            retry_wait_s=lambda n: 0,
        ) as s:  # fmt: skip
            bad = s.submit(Request({"n": 0}, priority="interactive"))
            await asyncio.sleep(4.5)
            good = [s.submit(Request({"n": n})) for n in range(1, 40)]
            await asyncio.gather(*good)
            bad.cancel()
            return asyncio.get_running_loop().time()

    assert run(main()) < 150
