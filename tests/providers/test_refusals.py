"""What refusals say, in every provider's dialect: bodies and headers from their public pages."""

import json
from pathlib import Path

import pytest

from scheduler.errors import (
    CredentialsRefused,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
)
from scheduler.limits.meter import Dimension, Seen
from scheduler.providers.answers import read_error
from scheduler.providers.limit_headers import read_limits

FIXTURES = json.loads((Path(__file__).parent.parent / "fixtures" / "refusals.json").read_text())
KINDS = {
    "rate_limit": RateLimited,
    "overloaded": ProviderOverloaded,
    "credentials": CredentialsRefused,
    "refused": ProviderRefused,
}
REQUESTS, TOKENS = Dimension.REQUESTS, Dimension.TOKENS


@pytest.mark.parametrize("told", FIXTURES, ids=lambda told: told["name"])
def test_every_dialect_is_understood(told):
    error = read_error(told["status"], told["headers"], json.dumps(told["body"]).encode())

    assert (error.credit is not None) == (told["reads"] == "credit")
    assert error.is_billed is False
    if told["reads"] in ("credit", "final", "refused", "credentials"):
        assert not error.is_retryable
    if told["reads"] in KINDS:
        assert type(error) is KINDS[told["reads"]]
    if told["reads"] in ("rate_limit", "overloaded"):
        assert error.is_retryable
    if told["code"] is not None:
        assert error.code == told["code"]
    assert error.retry_after_ms == told["retry_after_ms"]


def test_every_source_is_named():
    assert all(told["source"] for told in FIXTURES)
    assert len({told["name"] for told in FIXTURES}) == len(FIXTURES) > 40


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        (
            {
                "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s", "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
            },
            (Seen(REQUESTS, 60, 59, 1000), Seen(TOKENS, 150_000, 149_984, 360_000)),
        ),
        (
            {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1",
             "x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"},
            (),
        ),
        (
            {
                "date": "Tue, 24 Nov 2026 10:00:00 GMT",
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2026-11-24T10:00:01Z",
                "anthropic-ratelimit-tokens-limit": "48000",
                "anthropic-ratelimit-tokens-remaining": "48000",
                "anthropic-ratelimit-tokens-reset": "2026-11-24T10:00:00Z",
                "anthropic-ratelimit-input-tokens-limit": "40000",
                "anthropic-ratelimit-input-tokens-remaining": "39000",
                "anthropic-ratelimit-input-tokens-reset": "2026-11-24T10:00:02Z",
                "anthropic-ratelimit-output-tokens-limit": "8000",
                "anthropic-ratelimit-output-tokens-remaining": "8000",
                "anthropic-ratelimit-output-tokens-reset": "2026-11-24T10:00:00Z",
            },
            (
                Seen(REQUESTS, 50, 49, 1000), Seen(Dimension.INPUT, 40_000, 39_000, 2000),
                Seen(Dimension.OUTPUT, 8_000, 8_000, 0),
            ),
        ),
        (
            {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "5", "x-ratelimit-reset": "12"},
            (Seen(REQUESTS, 20, 5, 12_000),),
        ),
        (
            {"x-ratelimit-limit-req-minute": "300", "x-ratelimit-remaining-req-minute": "299",
             "x-ratelimit-limit-tokens-minute": "50000",
             "x-ratelimit-remaining-tokens-minute": "49000"},
            (Seen(REQUESTS, 300, 299), Seen(TOKENS, 50_000, 49_000)),
        ),
        ({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "1"}, ()),
        ({"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "9"}, ()),
        ({"x-ratelimit-limit-requests": "9" * 40, "x-ratelimit-remaining-requests": "9"}, ()),
        ({"content-type": "application/json"}, ()),
    ],
)  # fmt: skip
def test_limits_are_read_in_every_dialect_and_nonsense_is_ignored(headers, seen):
    assert read_limits(headers) == seen


def test_an_instant_in_milliseconds_is_told_from_one_in_seconds_and_from_a_span():
    def full_in_ms(reset):
        told = {"x-ratelimit-limit": "9", "x-ratelimit-remaining": "1", "x-ratelimit-reset": reset}
        return read_limits(told)[0].full_in_ms

    assert full_in_ms("1000000000000") == full_in_ms("1000000000") == 0  # long ago
    assert full_in_ms("30") == 30_000
    assert full_in_ms("6m0s") == 360_000
