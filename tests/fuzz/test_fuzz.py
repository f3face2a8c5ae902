"""Whatever comes from outside is taken or refused with an error of ours; nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.errors import CallFailed, StoreError
from scheduler.providers.answers import read_answer
from scheduler.request import ENDPOINTS, Request, Response, Usage
from scheduler.stores import codec
from tests.fuzz import inputs, parsers

EXAMPLES = 250
HUGE = "9" * 10**6
quickly = settings(
    max_examples=EXAMPLES,
    deadline=2000,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

RETRY_AFTER = st.sampled_from([
    "1", "0", "-5", "1e400", "nan", "inf", "²", HUGE[:5000], "Wed, 21 Oct 2015 07:28:00 GMT",
    "Thu", "0 Jan 0000 00:00:00 +9999", "99 Foo 99999 99:99:99 GMT", "", "\0", "Mon, 1 Jan 1 0:0 Z",
]) | st.text(max_size=30)  # fmt: skip
HEADERS = st.fixed_dictionaries({}, optional={
    "retry-after": RETRY_AFTER, "retry-after-ms": RETRY_AFTER, "date": RETRY_AFTER,
    "x-ratelimit-reset-tokens": inputs.near_text(inputs.SPANS),
    "x-ratelimit-remaining-tokens": st.just("0"), "location": st.text(),
    "x-should-retry": st.sampled_from(["true", "false", "maybe"]),
})  # fmt: skip
STATUSES = st.sampled_from([200, 201, 204, 301, 400, 401, 402, 404, 408, 429, 500, 503, 529, 999])


def accepted_share(parse: Callable[[Any], bool], given_by: st.SearchStrategy[Any]) -> float:
    """Run a parser on many inputs; how many of them it took."""
    seen: Counter[bool] = Counter()

    @quickly
    @given(given_by)
    def run(value: Any) -> None:
        seen[parse(value)] += 1

    run()
    return seen[True] / seen.total()


@pytest.mark.parametrize(
    ("parse", "given_by"),
    [
        pytest.param(parsers.batch, inputs.near(inputs.LINES), id="batch line"),
        pytest.param(parsers.budget, inputs.near_text(inputs.BUDGETS), id="budget"),
        pytest.param(parsers.money, inputs.near_text(inputs.AMOUNTS), id="money"),
        pytest.param(parsers.duration, inputs.near_text(inputs.SPANS), id="duration"),
        pytest.param(parsers.price, inputs.near_text(inputs.PRICES), id="price"),
        pytest.param(parsers.base_url, inputs.near_text(inputs.URLS), id="base URL"),
    ],
)
def test_text_near_a_valid_one_is_taken_or_refused(
    parse: Callable[[Any], bool], given_by: st.SearchStrategy[Any]
) -> None:
    assert 0.1 < accepted_share(parse, given_by) < 0.95


@pytest.mark.parametrize("parse", [parsers.money, parsers.duration])
def test_absurd_numbers_are_refused(parse: Callable[[Any], bool]) -> None:
    for value in (10**5000, -1, float("nan"), float("inf"), HUGE, "1e400", HUGE + "s"):
        assert not parse(value)


def test_any_answer_is_an_answer_or_a_failed_call() -> None:
    def parse(given: tuple[int, dict[str, str], bytes]) -> bool:
        return parsers.answer(*given)

    bodies = inputs.near(inputs.ANSWERS) | inputs.changed_json(inputs.ANSWERS[:4]).map(
        lambda body: json.dumps(body).encode()
    )
    statuses = st.just(200) | STATUSES
    assert 0.1 < accepted_share(parse, st.tuples(statuses, HEADERS, bodies)) < 0.9


@quickly
@given(st.sampled_from(ENDPOINTS), inputs.changed_json(inputs.LINES[1:]))
def test_any_body_has_a_quote_or_an_error(url: str, body: dict[str, Any]) -> None:
    parsers.quote({"model": "m", **body}, url)


@pytest.mark.parametrize("depth", [150, 190, 450, 900, 980, 100_000])
def test_a_deeply_nested_answer_is_no_surprise(depth: int) -> None:
    for wrap in (b'{"error":%s}', b'{"choices":%s}', b'{"a":"\\ud800","error":%s}'):
        for status in (200, 400, 503):
            parsers.answer(status, {}, wrap % (b"[" * depth + b"]" * depth))


@pytest.mark.parametrize("depth", [450, 900, 980, 100_000])
@pytest.mark.parametrize("field", ["messages", "input", "prompt", "tools", "extra"])
def test_a_deeply_nested_body_is_no_surprise(field: str, depth: int) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    for url in ENDPOINTS:
        parsers.quote({"model": "m", field: nested}, url)


@pytest.mark.parametrize("model", ["m", "free", "gpt-4o"])
def test_an_absurd_output_cap_can_be_told(model: str) -> None:
    parsers.quote({"model": model, "max_tokens": 10**4200, "n": 10**4200})


def test_numbers_that_json_does_not_have_are_refused_in_a_batch() -> None:
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 10**6):
        assert not parsers.batch(b'{"model":"m","messages":[],"temperature":%s}' % number)


# Stored text

STORED = [
    (codec.decode_request, codec.encode_request(Request({"model": "m"}, key="k", tags={"a": "b"}))),
    (codec.decode_response, codec.encode_response(Response({"a": 1}, usage=Usage(1, 2)))),
    (lambda text: codec.decode_budget("b", text),
     '{"spec":"$5/day","models":["m*"],"tags":{"a":"b"},"parent":null}'),
]  # fmt: skip


@pytest.mark.parametrize(("decode", "text"), STORED)
def test_a_damaged_row_is_a_store_error(decode: Callable[[str], Any], text: str) -> None:
    def parse(damaged: str) -> bool:
        return parsers.stored(decode, damaged)

    assert parse(text)
    accepted_share(parse, inputs.near_text([text]))
    for name in json.loads(text):
        for value in (None, [], {}, 5, "x", [{}], {"a": 1}):
            parse(json.dumps({**json.loads(text), name: value}))
        parse(json.dumps({key: v for key, v in json.loads(text).items() if key != name}))
    assert not parse(json.dumps({**json.loads(text), "unknown": 1})) or "spec" in text
    assert not parse("[]")


@quickly
@given(st.dictionaries(st.text(max_size=5), inputs.values), inputs.values)
def test_what_was_stored_comes_back(body: dict[str, Any], metadata: Any) -> None:
    response = Response(body, usage=Usage(1, 2), metadata=metadata)
    text = codec.encode_response(response)
    assert codec.encode_response(codec.decode_response(text)) == text


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "body", [10**5000, {"a": Unprintable()}, {(1, 2): Unprintable()}],
    ids=["huge", "unprintable", "odd key"],
)
def test_an_answer_that_has_no_text_is_stored_all_the_same(body: Any) -> None:
    assert codec.decode_response(codec.encode_response(Response(body))).status_code == 200


def test_an_error_keeps_no_more_of_a_huge_body_than_people_read() -> None:
    content = json.dumps({"error": {"message": "m" * 10**6, "code": "c" * 10**6}}).encode()
    for status in (200, 400, 503):
        with pytest.raises(CallFailed) as caught:
            read_answer(status, {}, content)
        assert len(repr(caught.value.args)) < 20_000


def test_a_damaged_row_says_what_it_was() -> None:
    with pytest.raises(StoreError, match="request"):
        codec.decode_request('{"nothing": 1}')
