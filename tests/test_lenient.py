"""Numbers of a body are read as servers read them that take more than integers, upwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.prices.book import (
    PriceBook,
    bound_output_tokens,
    prompt_only,
    stated_output_tokens,
)
from scheduler.prices.counting import USUAL_TOOL_CALLS
from scheduler.prices.tokens import count_input
from scheduler.request import CHAT, COMPLETIONS, GENERATE, MESSAGES, RESPONSES, Request

TARIFF = PriceBook({"m": "1/2"}).tariff()
MESSAGE = [{"role": "user", "content": "hi"}]


def asking(url=CHAT, **body):
    return Request({"model": "m", "messages": MESSAGE, **body}, url=url)


FIVE = [5, 5.0, "5", "5.0", " 5 ", 4.2, "4.2"]
UNREADABLE = ["many", True, [5], {"n": 5}, float("inf"), float("nan"), "9" * 5000, "1e999"]


@pytest.mark.parametrize("five", FIVE, ids=repr)
@pytest.mark.parametrize("name", ["n", "best_of", "num_completions"])
def test_answers_are_counted_however_the_number_is_written(name, five):
    request = asking(**{name: five}, max_tokens=10)

    assert bound_output_tokens(request, None) == (50, True)


@pytest.mark.parametrize("five", FIVE, ids=repr)
@pytest.mark.parametrize(
    ("url", "name"),
    [
        (CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (COMPLETIONS, "max_tokens"),
        (RESPONSES, "max_output_tokens"), (MESSAGES, "max_tokens"),
    ],
)  # fmt: skip
def test_a_cap_is_one_however_the_number_is_written(url, name, five):
    request = asking(url, **{name: five})

    assert bound_output_tokens(request, None) == (5, True)
    assert stated_output_tokens(request) == 5


@pytest.mark.parametrize("five", FIVE, ids=repr)
def test_googles_numbers_are_read_alike(five):
    config = {"maxOutputTokens": five, "candidateCount": five}
    request = Request({"model": "m", "contents": [], "generationConfig": config}, url=GENERATE)

    assert bound_output_tokens(request, None) == (25, True)


@pytest.mark.parametrize("odd", UNREADABLE, ids=lambda odd: repr(odd)[:20])
def test_a_number_of_answers_that_cannot_be_read_is_no_bound(odd):
    quote = TARIFF.quote(asking(n=odd, max_tokens=10))

    assert not quote.is_bound
    assert quote.why_unbound


@pytest.mark.parametrize("odd", UNREADABLE, ids=lambda odd: repr(odd)[:20])
def test_a_cap_that_cannot_be_read_is_none(odd):
    request = asking(max_tokens=odd)

    assert not TARIFF.quote(request).is_bound
    assert bound_output_tokens(request, 7_000) == (7_000, True)


@pytest.mark.parametrize("odd", [*UNREADABLE, -1, 0, "-1", -0.5], ids=lambda odd: repr(odd)[:20])
@pytest.mark.parametrize("names", [("max_tokens", "max_completion_tokens"),
                                   ("max_completion_tokens", "max_tokens")])  # fmt: skip
def test_a_cap_that_may_mean_none_takes_the_place_of_the_other(names, odd):
    request = asking(**dict(zip(names, (5, odd), strict=True)))

    assert not TARIFF.quote(request).is_bound
    assert bound_output_tokens(request, 7_000) == (7_000, True)
    assert stated_output_tokens(request) == 0


@pytest.mark.parametrize("odd", [*UNREADABLE, -1, "-1"], ids=lambda odd: repr(odd)[:20])
def test_thoughts_whose_number_cannot_be_read_have_no_bound(odd):
    for body in ({"thinking_budget": odd}, {"thinking": {"budget_tokens": odd}}):
        request = asking(max_tokens=5, **body)

        assert not TARIFF.quote(request).is_bound
        assert bound_output_tokens(request, 7_000) == (7_000, True)


def test_a_quote_says_what_could_not_be_read():
    assert "how many answers" in TARIFF.quote(asking(n="many", max_tokens=5)).why_unbound
    assert "caps the output" in TARIFF.quote(asking(max_tokens="many")).why_unbound


@pytest.mark.parametrize("five", FIVE, ids=repr)
def test_calls_of_a_hosted_tool_are_read_alike(five):
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": five}]

    assert count_input(MESSAGES, asking(MESSAGES, tools=tools).body).asked.web_searches == 5


def test_calls_of_a_hosted_tool_that_cannot_be_read_are_the_usual_number():
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": "few"}]

    found = count_input(MESSAGES, asking(MESSAGES, tools=tools).body)
    assert found.asked.web_searches == USUAL_TOOL_CALLS


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"max_tokens": 10, "thinking_budget": "30"}, 40),
        ({"max_tokens": 10, "thinking": {"type": "enabled", "budget_tokens": 30.0}}, 40),
        ({"max_tokens": 100, "thinking": {"type": "enabled", "budget_tokens": 30}}, 100),
        ({"max_tokens": 10, "thinking": "none"}, 10),
    ],
)
def test_thoughts_that_the_cap_may_not_count_come_on_top(body, most):
    request = asking(**body)

    assert bound_output_tokens(request, None) == (most, True)
    assert bound_output_tokens(prompt_only(request), None) == (1, True)


@given(st.integers(1, 10**6), st.sampled_from([int, float, str, lambda n: str(float(n))]))
def test_no_way_of_writing_a_number_makes_it_smaller(number, written):
    cap, answers = asking(max_tokens=written(number)), asking(n=written(number), max_tokens=1)

    assert bound_output_tokens(cap, None).tokens >= number
    assert bound_output_tokens(answers, None).tokens >= number
