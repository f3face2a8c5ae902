"""What somebody else's exception means for money and for the next attempt."""

from __future__ import annotations

import httpx
import httpx2
import pytest

from scheduler import errors, refusal_of
from scheduler.adapters.exceptions import explain


def named(name, base=Exception, module="somebody", **members):
    """An exception of a class of that name, as SDKs have it."""
    return type(name, (base,), {"__module__": module, **members})


def chained(exc, cause):
    exc.__cause__ = cause
    return exc


def status_error(status, body=None, headers=None, name="APIStatusError"):
    response = httpx.Response(status, headers=headers, request=httpx.Request("POST", "http://h"))
    kind = named(name, status_code=status, response=response, body=body)
    return kind("refused")


REQUEST = httpx.Request("POST", "http://h")
CONNECT = httpx.ConnectError("no", request=REQUEST)
READ = httpx2.ReadTimeout("slow", request=httpx2.Request("POST", "http://h"))
# exception, what it becomes, whether it was billed, whether it is tried again
MEANINGS = [
    (ValueError("odd"), errors.CallFailed, None, False),
    (TimeoutError(), errors.CallTimeout, None, True),
    (named("Timeout", status_code=408)("slow"), errors.CallTimeout, None, True),
    (named("APITimeoutError")("slow"), errors.CallTimeout, None, True),
    (CONNECT, errors.TransportFailed, False, True),
    (READ, errors.CallTimeout, None, True),
    (chained(named("APIConnectionError")("x"), CONNECT), errors.TransportFailed, False, True),
    (chained(named("APITimeoutError")("x"), READ), errors.CallTimeout, None, True),
    (
        chained(named("InternalServerError", module="litellm.exceptions", status_code=500)("x"),
                chained(named("APIConnectionError")("y"), CONNECT)),
        errors.TransportFailed, False, True,
    ),
    (
        named("InternalServerError", module="litellm.exceptions", status_code=503)("x"),
        errors.ProviderOverloaded, None, True,
    ),
    (status_error(429), errors.RateLimited, False, True),
    (status_error(401), errors.CredentialsRefused, False, False),
    (status_error(404), errors.ProviderRefused, False, False),
    (status_error(500), errors.ProviderOverloaded, None, True),
    (status_error(200, name="APIResponseValidationError"), errors.CallFailed, None, False),
    (status_error(422, name="JSONSchemaValidationError"), errors.CallFailed, None, False),
    (
        chained(named("RateLimitError", module="litellm.exceptions", status_code=429)("x"),
                status_error(429)),
        errors.RateLimited, False, True,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("exc", "kind", "is_billed", "is_retryable"), MEANINGS)
def test_what_an_exception_means(exc, kind, is_billed, is_retryable):
    error = explain(exc)

    assert type(error) is kind
    assert (error.is_billed, error.is_retryable) == (is_billed, is_retryable)
    assert error.credit is None


def test_one_of_ours_is_taken_at_its_word():
    error = errors.CallTimeout("mine")

    assert explain(error) is error


@pytest.mark.parametrize("exc", [
    named("BudgetExceededError", module="litellm.exceptions")("Budget has been exceeded!"),
    ValueError("No deployments available - crossed budget: Exceeded budget for provider openai"),
    status_error(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    status_error(402, {"error": {"message": "Insufficient credits"}}),
])  # fmt: skip
def test_an_empty_purse_is_told_from_a_rate_limit(exc):
    error = explain(exc)

    assert error.credit
    assert error.is_billed is False


def test_the_routers_cooldown_says_when_to_come_back():
    exc = named("RouterRateLimitError", ValueError, cooldown_time=2.5, status_code=429)(
        "No deployments available for selected model, Try again in 2.5 seconds."
    )
    error = explain(exc)

    assert type(error) is errors.RateLimited
    assert error.retry_after_ms == 2_500


def test_retry_after_is_read_from_the_response():
    assert explain(status_error(429, headers={"retry-after": "3"})).retry_after_ms == 3_000


def test_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first

    assert type(explain(first)) is errors.CallFailed


def test_only_our_own_refusals_are_found_in_an_sdks_error():
    why = errors.PriceUnknown("m")
    ours, theirs = status_error(402), status_error(402)
    ours.response.extensions["scheduler.error"] = why

    assert refusal_of(ours) is why
    assert refusal_of(theirs) is refusal_of(ValueError()) is None
