import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import (
    BadAnswer,
    CallTimeout,
    ConfigError,
    CredentialsRefused,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    TransportFailed,
)
from scheduler.providers.simulated.limits import go_duration
from scheduler.providers.simulated.provider import SIMULATED_PRICES, Fault, Simulated, Spread
from scheduler.request import COMPLETIONS, MODERATIONS, Request
from scheduler.testing import run

CHAT = Request.chat("sim-small", "Say hello", max_tokens=50)
LOTS = Request.chat("sim-small", "Tell me everything")


def ask(provider, *requests):
    async def go():
        return [await provider.send(request) for request in requests]

    return run(go())


@pytest.mark.parametrize(
    ("request_", "shape", "tokens"),
    [
        # "Say hello" is nine characters: 3 tokens, 4 for the message, 3 to prime the reply
        (CHAT, "chat.completion", (10, 50)),
        (Request.chat("sim-small", "Say hello", max_tokens=50, n=3), "chat.completion", (10, 150)),
        (Request.responses("sim-small", "Say hello", max_output_tokens=50), "response", (3, 50)),
        (
            Request(
                {"model": "sim-small", "prompt": ["a", "b"], "max_tokens": 50}, url=COMPLETIONS
            ),
            "text_completion",
            (2, 100),
        ),
        (Request.embedding("sim-embedding", ["Say hello", "b"]), "list", (4, 0)),
        (Request.embedding("sim-embedding", [1, 2, 3]), "list", (3, 0)),
    ],
)
def test_every_endpoint_answers_in_its_shape_with_exact_usage(request_, shape, tokens):
    provider = Simulated(output_tokens=1000)  # longer than every cap

    (answer,) = ask(provider, request_)

    usage = answer.usage
    assert answer.body["object"] == shape
    assert (usage.input_tokens, usage.output_tokens) == tokens
    assert answer.body["usage"]["total_tokens"] == sum(tokens) == provider.billed_tokens
    assert answer.request_id == "req-sim00000001"


def test_the_text_has_as_many_words_as_tokens_and_says_that_it_was_cut():
    (answer,) = ask(Simulated(output_tokens=1000), CHAT)

    choice = answer.body["choices"][0]
    assert len(choice["message"]["content"].split()) == 50
    assert choice["finish_reason"] == "length"


def test_moderations_are_free_and_report_no_usage():
    provider = Simulated()

    (answer,) = ask(provider, Request({"input": ["a", "b"]}, url=MODERATIONS))

    assert len(answer.body["results"]) == 2
    assert answer.usage is None
    assert provider.billed_nusd == 0


def test_reasoning_is_part_of_the_output_and_not_shown():
    request = Request.chat("sim-reasoning", "Think", max_tokens=50)

    (answer,) = ask(Simulated(output_tokens=50), request)

    assert answer.usage.output_tokens == 50
    assert answer.usage.reasoning_tokens == 25
    assert len(answer.body["choices"][0]["message"]["content"].split()) == 25


@pytest.mark.parametrize(
    ("model", "nusd"),
    [
        ("sim-small", 10 * 150 + 20 * 600),
        ("sim-large", 10 * 2500 + 20 * 10_000),
        ("anything", 10 * 1000 + 20 * 4000),
        ("tiny", 1),  # a fraction is rounded up, once
    ],
)
def test_the_bill_follows_the_prices(model, nusd):
    provider = Simulated(output_tokens=20, prices={"tiny": "0.00001/0.00001"})

    ask(provider, Request.chat(model, "Say hello"))

    assert provider.billed_nusd == nusd
    assert provider.bill.by_model == {model: nusd}
    assert provider.calls == 1


@pytest.mark.parametrize("price", ["", "1", "a/b", "-1/2", "1/2/3/4", "nan/1", "inf/1"])
def test_a_price_in_another_form_is_refused(price):
    with pytest.raises(ConfigError, match="IN/OUT"):
        Simulated(prices={"m": price})


def test_the_published_prices_are_whole_nano_dollars_a_token():
    for price in SIMULATED_PRICES.values():
        assert all(float(part) * 1000 == int(float(part) * 1000) for part in price.split("/"))


def test_the_same_question_has_the_same_answer_whenever_it_is_asked():
    questions = [Request.chat("sim-small", f"Question {n}") for n in range(20)]

    forwards = ask(Simulated(seed=5), *questions)
    backwards = ask(Simulated(seed=5), *questions[::-1])[::-1]
    elsewhere = ask(Simulated(seed=6), *questions)

    lengths = [[answer.usage.output_tokens for answer in answers] for answers in
               (forwards, backwards, elsewhere)]  # fmt: skip
    assert lengths[0] == lengths[1] != lengths[2]
    assert len(set(lengths[0])) > 10


def test_lengths_have_the_mean_they_are_given():
    provider = Simulated(output_tokens=Spread(100, 0.5))

    answers = ask(provider, *(Request.chat("sim-small", str(n)) for n in range(1000)))

    mean = sum(answer.usage.output_tokens for answer in answers) / 1000
    assert 95 < mean < 105


@given(
    cap=st.integers(1, 300),
    n=st.integers(1, 4),
    text=st.text(max_size=200),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_no_answer_is_longer_than_its_cap_and_no_question_than_its_bytes(cap, n, text, seed):
    request = Request.chat("sim-small", text or "x", max_tokens=cap, n=n)

    (answer,) = ask(Simulated(seed=seed), request)

    assert n <= answer.usage.output_tokens <= cap * n
    assert answer.usage.input_tokens <= len(json.dumps(request.body["messages"]).encode())
    assert len(answer.body["choices"]) == n


def test_an_answer_that_takes_no_time_is_given_without_letting_go_of_the_loop():
    coroutine = Simulated().send(CHAT)

    with pytest.raises(StopIteration) as finished:
        coroutine.send(None)

    assert finished.value.value.status_code == 200


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"latency": "250ms"}, 0.25),
        ({"latency": "250ms", "tokens_per_s": 25}, 2.25),
        ({"latency": 2}, 2.0),
    ],
)
def test_latency_is_the_first_token_and_then_the_speed(options, seconds):
    async def go():
        before = asyncio.get_running_loop().time()
        await Simulated(output_tokens=50, **options).send(CHAT)
        return asyncio.get_running_loop().time() - before

    assert run(go()) == pytest.approx(seconds)


def test_latencies_spread_around_their_mean():
    provider = Simulated(latency=Spread(2.0, 0.5))

    waits_s = [provider.reply(CHAT.url, CHAT.body).wait_s for _ in range(1000)]

    assert 1.9 < sum(waits_s) / 1000 < 2.1
    assert min(waits_s) < 1.0 < 4.0 < max(waits_s)


FAULTS = [
    # fault, error, is_billed by what the caller sees, is_retryable, whether the provider billed
    ("429", RateLimited, False, True, {False}),
    ("no_credit", RateLimited, False, False, {False}),
    ("401", CredentialsRefused, False, False, {False}),
    ("400", ProviderRefused, False, False, {False}),
    ("500", ProviderOverloaded, None, True, {False, True}),
    ("503", ProviderOverloaded, False, True, {False}),
    ("timeout", CallTimeout, None, True, {True}),
    ("reset", TransportFailed, None, True, {False, True}),
    ("html", BadAnswer, None, False, {False}),
    ("truncated", BadAnswer, None, False, {True}),
]


@pytest.mark.parametrize(("fault", "error", "is_billed", "is_retryable", "bills"), FAULTS)
def test_every_fault_raises_what_a_real_provider_would(
    fault, error, is_billed, is_retryable, bills
):
    provider = Simulated(fail={fault: 1.0}, latency="10ms")
    seen = set()
    for _ in range(20):
        before = provider.calls
        with pytest.raises(error) as caught:
            ask(provider, CHAT)
        assert type(caught.value) is error
        assert caught.value.is_billed is is_billed
        assert caught.value.is_retryable is is_retryable
        seen.add(provider.calls > before)

    # What is told to cost nothing must not be on the bill.
    assert seen == bills
    assert is_billed is None or seen == {False}


def test_every_fault_is_tried_above_or_below():
    tried = {fault for fault, *_ in FAULTS}

    assert tried | {"no_usage", "huge_usage", "slow", "stream_cut", "stream_error"} == set(Fault)


def test_an_answer_without_usage_is_billed_all_the_same():
    provider = Simulated(fail={"no_usage": 1.0})

    (answer,) = ask(provider, CHAT)

    assert answer.usage is None
    assert "usage" not in answer.body
    assert provider.billed_nusd > 0


def test_huge_usage_is_billed_as_it_is_told():
    provider = Simulated(fail={"huge_usage": 1.0}, output_tokens=50)

    (answer,) = ask(provider, CHAT)

    assert answer.usage.output_tokens == 5000 == answer.body["usage"]["completion_tokens"]
    assert provider.billed_nusd == 1000 * 150 + 5000 * 600


def test_a_slow_answer_comes_in_the_end():
    async def go():
        before = asyncio.get_running_loop().time()
        await Simulated(latency="300ms", fail={"slow": 1.0}).send(CHAT)
        return asyncio.get_running_loop().time() - before

    assert run(go()) == pytest.approx(3.0)


def test_faults_come_as_often_as_they_should():
    provider = Simulated(error_rate=0.3, fail={"html": 0.1}, seed=1)

    seen = Counter(provider.reply(CHAT.url, CHAT.body).fault for _ in range(2000))

    for fault in ("429", "500", "503", "html"):
        assert 150 < seen[Fault(fault)] < 250
    assert 1100 < seen[None] < 1300


def test_a_function_may_decide_what_fails():
    provider = Simulated(fail=lambda url, body, number: "reset" if number == 2 else None)

    ask(provider, CHAT)
    with pytest.raises(TransportFailed):
        ask(provider, CHAT)
    ask(provider, CHAT)


@pytest.mark.parametrize(
    "options",
    [
        {"fail": {"nonsense": 0.1}},
        {"fail": {"429": 1.5}},
        {"fail": {"429": -0.1}},
        {"fail": {"429": 0.6, "500": 0.6}},
        {"error_rate": 2.0},
        {"rpm": 0},
        {"tpm": -1},
        {"tokens_per_s": 0},
        {"latency": "soon"},
    ],
)
def test_wrong_settings_are_refused_when_they_are_given(options):
    with pytest.raises(ConfigError):
        Simulated(**options)


def test_requests_above_the_limit_are_told_when_to_come_back_and_may_then():
    provider = Simulated(rpm=2)

    async def go():
        answers = [await provider.send(CHAT) for _ in range(2)]
        with pytest.raises(RateLimited) as caught:
            await provider.send(CHAT)
        assert provider.calls == 2
        await asyncio.sleep(caught.value.retry_after_ms / 1000)
        await provider.send(CHAT)
        with pytest.raises(RateLimited):
            await provider.send(CHAT)
        return answers, caught.value

    answers, error = run(go())

    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-reset-requests"] == "30s"
    assert error.retry_after_ms == pytest.approx(30_000, abs=1)


def test_tokens_are_limited_too_and_a_request_larger_than_the_limit_waits_for_a_full_bucket():
    provider = Simulated(tpm=100, output_tokens=200)

    async def go():
        first = await provider.send(LOTS)
        with pytest.raises(RateLimited) as caught:
            await provider.send(LOTS)
        await asyncio.sleep(caught.value.retry_after_ms / 1000)
        await provider.send(LOTS)
        return first

    first = run(go())

    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    assert first.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0121, "13ms"), (1.5, "1.5s"), (60, "1m0s"), (86_400, "24h0m0s"), (-1, "0ms")],
)
def test_durations_are_written_as_go_does(seconds, text):
    assert go_duration(seconds) == text


@pytest.mark.parametrize("bill_cancelled", [True, False])
def test_a_call_that_is_given_up_is_billed_or_not_as_was_chosen(bill_cancelled):
    provider = Simulated(latency="1h", bill_cancelled=bill_cancelled)

    async def go():
        task = asyncio.create_task(provider.send(CHAT))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(go())

    assert provider.calls == int(bill_cancelled)


def test_records_name_every_billed_call():
    provider = Simulated(record=True)
    request = Request.chat("sim-small", "Say hello", key="q-1")

    ask(provider, request)

    (record,) = provider.bill.records
    assert (record.key, record.body, record.nusd) == ("q-1", request.body, provider.billed_nusd)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request({"messages": [{"role": "user", "content": "hi"}]}), 400),
        (Request({"model": "m"}), 400),
        (Request({"model": "m", "messages": "hi"}), 400),
        (Request({"model": 7, "messages": [{}]}), 400),
        (Request.chat("m", "hi", max_tokens=0), 400),
        (Request.chat("m", "hi", max_tokens="many"), 400),
        (Request.chat("m", "hi", n=1000), 400),
        (Request.embedding("m", "hi", dimensions=100_000), 400),
        (Request({"model": "m"}, url="/v1/elsewhere"), 404),
    ],
)
def test_a_wrong_request_is_refused_and_costs_nothing(request_, status):
    provider = Simulated()

    with pytest.raises(ProviderRefused) as caught:
        ask(provider, request_)

    assert caught.value.status == status
    assert caught.value.is_billed is False
    assert provider.billed_nusd == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
)
@settings(max_examples=100)
def test_no_content_breaks_the_counting(content):
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "tools": content}

    reply = Simulated().reply("/v1/chat/completions", body)

    assert reply.status == 200
    assert reply.usage.input_tokens >= 7
