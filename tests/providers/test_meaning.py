"""What an answer with a success status means for money, and how long services ask to wait."""

import json

import httpx
import pytest
from tenacity import stop_after_attempt, wait_none

from scheduler import Budget, OpenAI, Request, Retry, Scheduler
from scheduler.errors import (
    BadAnswer,
    CallFailed,
    CredentialsRefused,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
)
from scheduler.providers.answers import read_answer, read_error
from scheduler.providers.waits import retry_after_ms, wait_of

KEY = "sk-proj-Zm9vYmFyYmF6-secret"
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
DATE = {"date": "Tue, 01 Dec 2026 00:00:00 GMT"}


def choice(end="stop", text="hi", **more):
    return {"index": 0, "message": {"content": text}, "finish_reason": end, **more}


def judged(body, status=200):
    """The error for a body, or the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return read_answer(status, {}, content)
    except CallFailed as error:
        return error


ERROR = {"code": 502, "message": "upstream died"}


@pytest.mark.parametrize(
    ("body", "kind", "is_billed", "is_retryable"),
    [
        ({"error": {"code": 429, "message": "slow"}}, RateLimited, False, True),
        ({"error": {"code": "429", "message": "slow"}}, RateLimited, False, True),
        ({"error": {"type": "rate_limit_error", "message": "x"}}, RateLimited, False, True),
        ({"error": ERROR}, ProviderOverloaded, None, True),
        ({"error": ERROR, "choices": []}, ProviderOverloaded, None, True),
        ([{"error": ERROR}], ProviderOverloaded, None, True),
        ({"error": ERROR, "usage": USAGE}, ProviderOverloaded, True, True),
        ({"error": {"code": 429, "message": "x"}, "usage": USAGE}, RateLimited, True, True),
        ({"error": ERROR, "usage": {"prompt_tokens": 0, "completion_tokens": 0}},
         ProviderOverloaded, None, True),
        ({"error": ERROR, "usage": {"cost": 0.001}}, ProviderOverloaded, True, True),
        ({"error": {"code": 503, "message": "x"}}, ProviderOverloaded, None, True),
        ({"error": {"code": 400, "message": "bad"}}, ProviderRefused, False, False),
        ({"error": {"code": 403, "message": "flagged"}}, ProviderRefused, False, False),
        ({"error": {"code": 401, "message": "no"}}, CredentialsRefused, False, False),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, ProviderRefused, False, False),
        ({"object": "error", "message": "boom", "code": 500}, ProviderOverloaded, None, True),
        ({"type": "error", "error": {"type": "overloaded_error"}}, ProviderOverloaded, None, True),
        ({"error": "the model is loading"}, BadAnswer, None, False),
        ({"message": "Internal Server Error"}, BadAnswer, None, False),
        ({"success": False, "errors": [{"code": 7, "message": "x"}]}, BadAnswer, None, False),
        ({"choices": [choice("error", error=ERROR)], "usage": USAGE}, ProviderOverloaded, True, True),
        ({"choices": [choice("error", error=ERROR)]}, ProviderOverloaded, None, True),
        ({"choices": [choice("error", "")]}, ProviderOverloaded, None, True),
        ({"choices": [choice("error", "", error={"code": 429, "message": "x"})]}, RateLimited,
         False, True),
        ({"choices": [choice(), choice("error", error=ERROR)]}, ProviderOverloaded, None, True),
        ({"choices": [choice(None, "par", error=ERROR)]}, ProviderOverloaded, None, True),
        ({"choices": [choice(None, "par")], "error": ERROR}, ProviderOverloaded, None, True),
        ({"choices": [choice("insufficient_system_resource")], "usage": USAGE},
         ProviderOverloaded, True, True),
        ({"choices": []}, BadAnswer, None, True),
        ({"choices": None, "usage": USAGE}, BadAnswer, True, True),
        ({"candidates": [], "usageMetadata": {"promptTokenCount": 3}}, BadAnswer, True, True),
        ({"modelVersion": "m", "usageMetadata": {}}, BadAnswer, None, True),
        ({"output": [], "status": "failed", "error": {"code": "server_error", "message": "x"},
          "usage": {"input_tokens": 9, "output_tokens": 5}}, ProviderOverloaded, True, True),
        ({"output": [], "status": "failed", "error": {"code": "rate_limit_exceeded"}},
         RateLimited, False, True),
        ({"output": [], "status": "failed", "error": {"code": "invalid_prompt"}},
         ProviderRefused, False, False),
        ({"output": [], "status": "cancelled"}, BadAnswer, None, False),
    ],
    ids=str,
)  # fmt: skip
def test_an_error_inside_an_answer_is_one_by_its_code(body, kind, is_billed, is_retryable):
    error = judged(body)

    assert type(error) is kind
    assert (error.is_billed, error.is_retryable) == (is_billed, is_retryable)
    assert (error.used is not None) == (is_billed is True)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [choice()], "usage": USAGE, "error": None},
        {"choices": [choice("content_filter", "")], "usage": USAGE},
        {"choices": [choice("length")]},
        {"choices": [choice()], "error": {"message": "a warning"}},  # the answer is whole
        {"choices": [choice(None)]},  # some servers never say
        {"output": [], "status": "incomplete", "error": None},
        {"output": [], "status": "queued"},
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}},
        {"content": [], "stop_reason": "refusal", "type": "message"},
        {"embedding": {"values": [1]}, "usageMetadata": {}, "modelVersion": "m"},
        {"data": [], "errors": []},
        {"message": {"content": "hi"}, "done": True},  # Ollama's own
    ],
    ids=str,
)
def test_what_is_a_services_last_word_is_an_answer(body):
    assert judged(body).body == body


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"choices": [choice()], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}, None),
        ({"choices": [choice(text="")], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}, 9),
        ({"choices": [{"message": {"content": None, "tool_calls": [{"type": "function"}]}}],
          "usage": {"prompt_tokens": 9, "completion_tokens": 0}}, None),
        ({"content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": 9}}, None),
        ({"candidates": [{"content": {"parts": [{"text": "x"}]}}],
          "usageMetadata": {"promptTokenCount": 9}}, None),
        ({"candidates": [{"content": {"parts": []}}], "usageMetadata": {"promptTokenCount": 9}}, 9),
        ({"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 9}}, 9),
    ],
)  # fmt: skip
def test_no_output_beside_some_counts_as_not_said(body, tokens):
    usage = judged(body).usage

    assert (usage and usage.total_tokens) == tokens


def test_a_prompt_that_azure_read_and_refused_is_not_free():
    body = {"error": {"code": "content_filter", "message": "The response was filtered", "innererror":
                      {"code": "ResponsibleAIPolicyViolation"}}}  # fmt: skip
    error = judged(body, 400)

    assert (type(error), error.is_billed, error.is_retryable) == (ProviderRefused, None, False)


@pytest.mark.parametrize(
    "body",
    ["<html><h1>403 Forbidden</h1>Your account is blocked: invalid key", "Forbidden", "", "{}"],
)
def test_a_firewalls_page_is_about_one_request(body):
    error = read_error(403, {}, body.encode())

    assert (type(error), error.code, error.is_billed) == (ProviderRefused, "forbidden", False)


# In the scheduler


def run_with(*answers, attempts=3):
    """What comes of one request for which a server answers so, one after the other."""

    async def main():
        left = list(answers)

        def handler(request):
            return httpx.Response(200, json=left.pop(0) if len(left) > 1 else left[0])

        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            provider = OpenAI(client=client, api_key=KEY)
            retry = Retry(stop_after_attempt(attempts), wait_none())
            async with Scheduler(
                providers=provider, budgets=Budget("t", "$1"), prices={"m": "1/10"}, retry=retry
            ) as s:
                try:
                    result = await s.run(Request.chat("m", "hello", max_tokens=10))
                except CallFailed as error:
                    result = error
                (budget,) = s.stats().budgets
                return result, budget.caps[0].posted, budget.caps[0].suspense

    import asyncio

    return asyncio.run(main())


COST = 9_000 + 50_000  # nano-dollars of `USAGE` at 1/10


def test_a_choice_that_ended_in_an_error_is_posted_and_tried_again():
    failed = {"choices": [choice("error", error=ERROR)], "usage": USAGE}
    response, posted, suspense = run_with(failed, {"choices": [choice()], "usage": USAGE})

    assert (response.text, response.attempts) == ("hi", 2)
    assert (posted, suspense, response.cost_nusd) == (2 * COST, 0, 2 * COST)


def test_a_refusal_that_costs_something_uses_up_attempts():
    error, posted, suspense = run_with({"error": {"code": 429, "message": "x"}, "usage": USAGE})

    assert (type(error), error.attempts) == (RateLimited, 3)
    assert (posted, suspense, error.cost_nusd) == (3 * COST, 0, 3 * COST)


def test_one_that_costs_nothing_is_voided_and_one_that_nobody_knows_counts():
    good = {"choices": [choice()], "usage": USAGE}
    response, posted, suspense = run_with({"error": {"code": 429, "message": "x"}}, good)
    assert (response.attempts, posted, suspense) == (1, COST, 0)

    response, posted, suspense = run_with({"error": ERROR}, good)
    assert (response.attempts, posted) == (2, COST)
    assert suspense > 0


def test_a_cost_above_the_ceiling_is_posted_all_the_same():
    usage = {**USAGE, "cost": 0.5}
    error, posted, suspense = run_with({"error": ERROR, "usage": usage}, attempts=1)

    assert (posted, suspense, error.cost_nusd) == (500_000_000, 0, 500_000_000)


def test_nonsense_told_of_a_failed_answer_counts_as_not_said():
    usage = {"prompt_tokens": -1, "completion_tokens": 10**30, "cost": "much"}
    error, posted, suspense = run_with({"error": ERROR, "usage": usage}, attempts=1)

    assert posted == 0
    assert suspense == error.cost_nusd > 0


# Keys


@pytest.mark.parametrize("header", ["x-request-id", "request-id", "x-generation-id"])
def test_a_key_in_an_id_is_hidden_and_a_body_is_left_as_it_is(header):
    body = {"choices": [choice(text=KEY)], "usage": USAGE}
    headers = {header: f"req {KEY}\nx"}
    answer = read_answer(200, headers, json.dumps(body).encode(), (KEY,))
    assert KEY not in str(answer.request_id)
    assert answer.body == body

    body = {"error": {**ERROR, "code": KEY}, "usage": USAGE, "id": KEY}
    with pytest.raises(BadAnswer) as caught:
        read_answer(200, headers, json.dumps(body).encode(), (KEY,))
    assert KEY not in f"{caught.value} {vars(caught.value)}"
    assert caught.value.request_id == "req [hidden] x"


# How long to wait


@pytest.mark.parametrize(
    ("text", "wait_ms"),
    [
        ("7", 7_000), ("0.25", 250), ("+5", 5_000), ("7s", 7_000), ("500ms", 500), ("500 ms", 500),
        ("3.5s", 3_500), ("2 minutes", 120_000), ("1m30s", 90_000), ("6m0s", 360_000),
        ("1h2m", 3_720_000), ("1h 2m", 3_720_000), ("1 minute and 30 seconds", 90_000),
        ("1 minute, 30 seconds", 90_000), ("3 secs", 3_000), ("2 hrs", 7_200_000), ("12ms", 12),
        ("1d", 86_400_000), ("250us", 1), ("-3", 0), ("inf", 86_400_000), ("1e300", 86_400_000),
        ("999999999999999999", 86_400_000), ("nan", None), ("soon", None), ("", None), ("5 x", None),
        ("Tue, 01 Dec 2026 00:01:30 GMT", 90_000), ("2026-12-01T00:01:30Z", 90_000),
        ("2026-12-01T02:01:30+02:00", 90_000), ("2026-12-01T00:01:30", 90_000),
        ("1796083290", 90_000), ("1796083290000", 90_000), ("1000000000", 0),
        ("Tue, 01 Dec 2020 00:00:00 GMT", 0), ("3, 3", 3_000), ("0", 0),
    ],
)  # fmt: skip
def test_every_spelling_of_a_wait_is_read(text, wait_ms):
    assert wait_of(text, DATE) == wait_ms
    if text:
        assert retry_after_ms({**DATE, "retry-after": text}, "", b"") == wait_ms


@pytest.mark.parametrize(
    ("message", "wait_ms"),
    [
        ("Please retry after 3 seconds.", 3_000), ("try again in 500 milliseconds", 500),
        ("Please try again in 7m12s. Visit", 432_000), ("retry in 2 minutes", 120_000),
        ("Please wait 5s", 5_000), ("Please wait for 5 sec before retrying", 5_000),
        ("Try again after 20 secs", 20_000), ("retry after 3", 3_000), ("try again in 1h2m", 3_720_000),
        ("Please retry your request after 12 s.", 12_000), ("resets in 3 hours", 10_800_000),
        ("Please try again in a minute", 60_000), ("available in 10 mins", 600_000),
        ("try again in about 1 minute and 30 seconds", 90_000), ("retry in 23.5s.", 23_500),
        ("Please try again at 2026-12-01T00:01:30Z", 90_000), ("try again in 120ms", 120),
        ("Limit 500 requests per minute; try again in 2 min", 120_000), ("try again later", None),
        ("500 requests per minute", None), ("", None), ("retry after 99999999999 hours", 86_400_000),
    ],
)  # fmt: skip
def test_waits_are_found_in_words(message, wait_ms):
    assert retry_after_ms(DATE, message, b"") == wait_ms


@pytest.mark.parametrize(
    ("content", "headers", "wait_ms"),
    [
        ('{"error": {"details": [{"retryDelay": "3.5s"}]}}', {}, 3_500),
        ('{"error": {"details": [{"retryDelay": "0.035s"}]}}', {}, 35),
        ('{"retry_after": 20}', {}, 20_000), ('{"retry_after_ms": 20}', {}, 20),
        ('{"retryAfter": "2m"}', {}, 120_000), ('{"retry_after_seconds": 1.5}', {}, 1_500),
        ("{}", {"retry-after-ms": "15", "retry-after": "1"}, 15),
        ("{}", {"x-ratelimit-reset-after": "2.5"}, 2_500), ("{}", {"ratelimit-reset": "3"}, 3_000),
        ("{}", {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2 seconds"},
         2_000),
    ],
)  # fmt: skip
def test_waits_are_found_in_bodies_and_other_headers(content, headers, wait_ms):
    assert retry_after_ms(headers, "", content.encode()) == wait_ms
