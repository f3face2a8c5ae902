"""Which HTTP requests are calls to a model, what their headers say, and how they are refused."""

from __future__ import annotations

import json

import pytest

from scheduler import errors
from scheduler.adapters.dialects import (
    Dialect,
    http_status,
    is_endpoint,
    read_call,
    read_marks,
    refusal,
)

CALLS = [
    ("/v1/chat/completions", "messages", "/v1/chat/completions", "openai"),
    ("/openai/v1/chat/completions", "messages", "/v1/chat/completions", "openai"),
    ("/openai/deployments/d/chat/completions", "messages", "/v1/chat/completions", "openai"),
    ("/v1/responses", "input", "/v1/responses", "openai"),
    ("/v1/embeddings", "input", "/v1/embeddings", "openai"),
    ("/v1/completions", "prompt", "/v1/completions", "openai"),
    ("/v1/moderations", "input", "/v1/moderations", "openai"),
    ("/v1/messages", "messages", "/v1/messages", "anthropic"),
]


@pytest.mark.parametrize(("path", "member", "url", "dialect"), CALLS)
def test_a_call_is_known_by_the_end_of_its_path_and_what_its_body_must_have(
    path, member, url, dialect
):
    body = {"model": "m", member: []}
    for place in (path, f"{path}/"):
        call = read_call(place, json.dumps(body).encode())

        assert is_endpoint(place)
        assert (call.url, call.body, call.dialect.value) == (url, body, dialect)
        assert call.asks
        assert Dialect.of(place).value == dialect
        assert not read_call(place, b'{"model": "m"}').asks


@pytest.mark.parametrize("path", [
    "/v1/files", "/v1/responses/r/cancel", "/v1/messages/count_tokens", "/v1/messages/batches",
    "/v1/models/gemini:countTokens", "/v1/audio/transcriptions", "/v1/images/generations", "/",
])  # fmt: skip
def test_all_else_is_no_endpoint(path):
    assert not is_endpoint(path)


@pytest.mark.parametrize("content", [b"not json", b"[]", b"", b"\x1f\x8b", b"[" * 9999])
def test_what_is_no_json_object_cannot_be_read(content):
    assert read_call("/v1/chat/completions", content) is None


def test_half_a_surrogate_pair_can():
    content = b'{"model": "m", "messages": ["\\ud800"]}'

    assert read_call("/v1/chat/completions", content).body["messages"] == ["\ud800"]


def test_azures_deployment_follows_the_model():
    path = "/openai/deployments/dear/chat/completions"
    call = read_call(path, b'{"model": "dear", "messages": []}')

    assert call.path(path, call.body) == path
    assert call.path(path, {"model": "a b"}) == "/openai/deployments/a%20b/chat/completions"


def test_googles_calls_have_their_model_in_the_path():
    path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
    call = read_call(path, b'{"contents": []}')

    assert (call.url, call.dialect) == ("/v1beta/generateContent", Dialect.GOOGLE)
    assert call.body == {"contents": [], "model": "gemini-2.5-flash", "stream": True}
    assert json.loads(call.encode(call.body)) == {"contents": []}
    assert call.path(path, call.body) == path
    other = call.body | {"model": "gemini-2.5-pro"}
    assert call.path(path, other) == "/v1beta/models/gemini-2.5-pro:streamGenerateContent"


def test_a_surrogate_half_is_encoded_all_the_same():
    call = read_call("/v1/chat/completions", b'{"model": "m", "messages": []}')

    assert json.loads(call.encode({"model": "\ud800"})) == {"model": "\ud800"}


HEADERS = [
    ({}, {}),
    ({"Accept": "x"}, {}),
    ({"X-Scheduler-Budget": "a"}, {"budget": "a"}),
    ({"x-scheduler-budget": " a, b "}, {"budget": ["a", "b"]}),
    ({"x-scheduler-priority": "batch"}, {"priority": "batch"}),
    ({"x-scheduler-priority": "7"}, {"priority": 7}),
    ({"x-scheduler-job": "j", "x-scheduler-deadline": "2m"}, {"job": "j", "deadline": "2m"}),
    ({"X-Scheduler-Max-Cost": "$0.10"}, {"max_cost": "$0.10"}),
]


@pytest.mark.parametrize(("headers", "marks"), HEADERS)
def test_headers_say_what_tags_say(headers, marks):
    assert read_marks(headers) == marks


def test_a_header_that_says_nothing_known_is_told():
    with pytest.raises(errors.ConfigError, match="'X-Scheduler-Bugdet' is not one of"):
        read_marks({"X-Scheduler-Bugdet": "a"})


NOW_MS = 1_000_000
LATER = errors.BudgetExceeded("b", 10, 9, 1, 5, NOW_MS + 1_500)
STATUSES = [
    (LATER, 429, "budget_exceeded", 2),
    (errors.BudgetExceeded("b", 10, 9, 1, 50), 402, "budget_exceeded", None),
    (errors.BudgetExceeded("b", 10, 9, 1, 50, NOW_MS - 5), 429, "budget_exceeded", 1),
    (errors.CostTooHigh(5, 4), 402, "cost_too_high", None),
    (errors.PriceUnknown("m"), 402, "price_unknown", None),
    (errors.PromptTooLong(5, 4), 402, "prompt_too_long", None),
    (errors.DeadlineExceeded(5), 429, "deadline_exceeded", None),
    (errors.QueueFull(5, 5), 429, "queue_full", None),
    (errors.ProviderUnavailable("p", "provider_down", "", NOW_MS + 1), 429, "provider_down", 1),
    (errors.ProviderUnavailable("p", "provider_credit"), 429, "provider_credit", None),
    (errors.KeyConflict("k"), 409, "key_conflict", None),
    (errors.BudgetUnknown("b", ()), 400, "budget_unknown", None),
    (errors.ConfigError("key", "is wrong"), 400, "config_error", None),
    (errors.SchedulerClosed(), 503, "scheduler_closed", None),
    (errors.StoreError("full"), 503, "store_error", None),
]


@pytest.mark.parametrize(("error", "status", "code", "after_s"), STATUSES)
def test_402_is_not_as_it_is_and_429_is_later(error, status, code, after_s):
    assert http_status(error, NOW_MS) == (status, code, after_s)


@pytest.mark.parametrize("error", [each[0] for each in STATUSES], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("dialect", Dialect)
def test_every_refusal_has_every_providers_form(dialect, error):
    made = refusal(error, dialect, NOW_MS)
    body = json.loads(made.content)

    assert made.headers["x-should-retry"] == "false"
    assert body["error"]["message"] == str(error)
    assert body["scheduler"]["code"] == http_status(error, NOW_MS)[1]
    if dialect is Dialect.ANTHROPIC:
        assert body["type"] == "error"
    if dialect is Dialect.GOOGLE:
        assert body["error"]["code"] == made.status


def test_a_refusal_tells_the_numbers():
    made = refusal(LATER, Dialect.OPENAI, NOW_MS)

    assert made.headers["retry-after"] == "2"
    assert json.loads(made.content)["scheduler"] == {
        "code": "budget_exceeded", "budget": "b", "unit": "usd", "limit_usd": "0.00000001",
        "posted_usd": "0.000000009", "reserved_usd": "0.000000001", "needed_usd": "0.000000005",
        "resets_at": "1970-01-01T00:16:41.500000+00:00",
    }  # fmt: skip
