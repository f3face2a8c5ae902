"""The ledger is never below the bill, however oddly that is told."""

from __future__ import annotations

import json

import pytest

from scheduler import Budget, CallFailed, DeadlineExceeded, Scheduler
from scheduler.errors import ProviderRefused
from scheduler.prices.usage import extract_usage
from scheduler.providers.answers import read_error
from scheduler.providers.meaning import usage_told
from scheduler.request import Usage
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # Parts that are larger than their whole come on top of it.
        (
            {
                "prompt_tokens": 9, "completion_tokens": 5,
                "cache_read_input_tokens": 300, "cache_creation_input_tokens": 40,
            },
            Usage(349, 5, 300, 40),
        ),
        (
            {
                "prompt_tokens": 9, "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
            },
            Usage(21, 5, 8, 4),
        ),
        (
            {
                "input_tokens": 9, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 30},
                "output_tokens_details": {"reasoning_tokens": 50},
            },
            Usage(39, 55, 30, reasoning_tokens=50),
        ),
        (
            {
                "prompt_tokens": 9, "completion_tokens": 5,
                "prompt_tokens_details": {"audio_tokens": 12, "text_tokens": 9},
                "completion_tokens_details": {"audio_tokens": 80},
            },
            Usage(21, 85, input_audio_tokens=12, output_audio_tokens=80),
        ),
        # A gateway that fills in only one of two dialects.
        (
            {
                "prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 9, "output_tokens": 5,
            },
            Usage(9, 5),
        ),
        # Anthropic's sum may leave out what compaction took.
        (
            {
                "input_tokens": 23_000, "output_tokens": 1_000,
                "iterations": [
                    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
                    {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000,
                     "cache_read_input_tokens": 10},
                ],
            },
            Usage(203_010, 4_500, 10),
        ),
        (
            {
                "input_tokens": 30, "output_tokens": 7,
                "iterations": [{"type": "message", "input_tokens": 10, "output_tokens": 7}, None, 3],
            },
            Usage(30, 7),
        ),
        ({"input_tokens": 30, "output_tokens": 7, "iterations": "two"}, Usage(30, 7)),
    ],
)  # fmt: skip
def test_what_a_whole_leaves_out_is_counted(usage, expected):
    assert extract_usage({"usage": usage}) == expected


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 0, "completion_tokens": 9},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"input_tokens": 0, "output_tokens": 9},
        {"prompt_tokens": 0, "total_tokens": 0},
    ],
)
@pytest.mark.parametrize("body", [{"choices": [CHOICE]}, {"data": [{"embedding": [0.1]}]}])
def test_usage_of_nothing_read_is_usage_not_told(usage, body):
    assert usage_told({**body, "usage": usage}) is None


class Sends(Bench):
    """Fails every call like this."""

    def __init__(self, error) -> None:
        super().__init__()
        self.error, self.sent = error, 0

    async def send(self, request):
        self.sent += 1
        raise self.error()


def no_credit(*, is_billed: bool | None) -> ProviderRefused:
    error = ProviderRefused(402, "insufficient credits", "insufficient_credits")
    error.credit, error.is_billed = "insufficient credits", is_billed
    return error


@pytest.mark.parametrize("is_billed", [None, True])
def test_what_may_cost_something_is_not_paid_without_end_for_want_of_credit(is_billed):
    async def main():
        bench = Sends(lambda: no_credit(is_billed=is_billed))
        budget = Budget("team", "$1")
        async with Scheduler(budgets=budget, providers=bench, clock=VirtualClock()) as s:
            with pytest.raises(CallFailed):
                await s.run(ask(1))
            assert bench.sent == 3

    run(main())


def test_who_was_refused_for_want_of_credit_before_any_work_waits_for_a_top_up():
    async def main():
        bench = Sends(lambda: no_credit(is_billed=False))
        budget = Budget("team", "$1")
        async with Scheduler(budgets=budget, providers=bench, clock=VirtualClock()) as s:
            future = s.submit(ask(1, max_wait="3h"))
            with pytest.raises(DeadlineExceeded, match="not sent in time"):
                await future
            assert bench.sent > 5

    run(main())


USAGE = {"prompt_tokens": 9, "completion_tokens": 5}


@pytest.mark.parametrize(
    ("status", "is_billed"), [(400, True), (422, True), (429, True), (503, True), (500, None)]
)
def test_a_refusal_that_tells_its_usage_was_billed(status, is_billed):
    content = json.dumps({"error": {"message": "no"}, "usage": USAGE}).encode()
    error = read_error(status, {}, content)

    assert error.is_billed is is_billed
    assert error.used.usage == Usage(9, 5)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, "none"])
def test_a_refusal_that_tells_of_no_usage_was_not(usage):
    content = json.dumps({"error": {"message": "no"}, "usage": usage}).encode()

    assert read_error(429, {}, content).is_billed is False
