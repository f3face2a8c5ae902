"""What a server says after it said that it was through: it changes nothing but the usage."""

from __future__ import annotations

import httpx
import pytest

from scheduler.testing import run
from tests.test_parts import BODY, COST, URL, counts, scheduler
from tests.test_stream_meaning import DONE, END, ONE, TEXT, USAGE, chunk, last, outcome, sse

MORE = {"prompt_tokens": 9, "completion_tokens": 50}
LATE = [
    chunk("more"),
    chunk("more", "length"),
    chunk("other", place=3),
    {**chunk("more"), "usage": None},
    {**ONE, "id": "another"},
    chunk("x", "error"),
    {"choices": [None]},
]


@pytest.mark.parametrize("late", LATE, ids=str)
def test_it_takes_nothing_back(late):
    answer = outcome(sse(ONE, END, last(), DONE, late, DONE))
    assert (answer.usage.total_tokens, answer.has_all_usage) == (14, True)
    (choice,) = answer.body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")

    untold = outcome(sse(ONE, END, DONE, late))
    assert not untold.has_all_usage
    both = outcome(sse(ONE, {**END, "usage": USAGE}, DONE, late))
    assert (both.usage.total_tokens, both.has_all_usage) == (14, True)


def test_more_usage_counts():
    for late in ({**chunk("more"), "usage": MORE}, {"choices": [], "usage": MORE}):
        answer = outcome(sse(ONE, END, last(), DONE, late))
        assert (answer.usage.output_tokens, answer.has_all_usage) == (50, True)
    less = {**chunk("more"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    assert outcome(sse(ONE, END, last(), DONE, less)).usage.output_tokens == 5
    told_late = outcome(sse(ONE, END, DONE, {"choices": [], "usage": MORE}))
    assert (told_late.usage.output_tokens, told_late.has_all_usage) == (50, True)


def test_texts_too():
    text = {
        "object": "text_completion",
        "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}],
    }
    answer = outcome(sse(text, last(), DONE, text), TEXT)
    assert (answer.body["choices"][0]["text"], answer.has_all_usage) == ("x", True)


@pytest.mark.parametrize("asks", [False, True])
def test_a_wrapped_clients_stream_costs_what_was_told(asks):
    """Every byte comes through all the same."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    shown, told, late = sse(ONE, END), sse(last(usage)), sse(DONE, chunk("more"), DONE)
    handler = lambda request: httpx.Response(  # noqa: E731
        200, headers={"content-type": "text/event-stream"}, content=shown + told + late
    )

    async def main():
        body = BODY | {"stream": True}
        if asks:
            body["stream_options"] = {"include_usage": True}
        async with scheduler() as s:
            client = s.wrap(httpx.AsyncClient(transport=httpx.MockTransport(handler)))
            async with client.stream("POST", URL, json=body) as response:
                found = await response.aread()
            assert found == shown + (told if asks else b"") + late
            assert counts(s) == (COST, 0, 0)

    run(main())
