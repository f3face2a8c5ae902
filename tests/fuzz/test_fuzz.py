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
from scheduler.request import ENDPOINTS, GEMINI, Response, Usage
from scheduler.stores.sql import codec
from tests.fuzz import inputs, parsers
from tests.fuzz.targets import HUGE, STORED, TARGETS

EXAMPLES = 250
quickly = settings(
    max_examples=EXAMPLES,
    deadline=2000,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def accepted_share(parse: Callable[[Any], bool], given_by: st.SearchStrategy[Any]) -> float:
    """Run a parser on many inputs; how many of them it took."""
    seen: Counter[bool] = Counter()

    @quickly
    @given(given_by)
    def run(value: Any) -> None:
        seen[parse(value)] += 1

    run()
    return seen[True] / seen.total()


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"quote"}))  # it takes nearly everything
def test_what_is_near_a_valid_input_is_taken_or_refused(name: str) -> None:
    assert 0.05 < accepted_share(*TARGETS[name]) < 0.95


def test_any_body_has_a_quote_or_an_error() -> None:
    accepted_share(*TARGETS["quote"])


@pytest.mark.parametrize("parse", [parsers.money, parsers.duration])
def test_absurd_numbers_are_refused(parse: Callable[[Any], bool]) -> None:
    for value in (10**5000, -1, float("nan"), float("inf"), HUGE, "1e400", HUGE + "s"):
        assert not parse(value)


@pytest.mark.parametrize("depth", [150, 190, 450, 900, 980, 100_000])
def test_a_deeply_nested_answer_is_no_surprise(depth: int) -> None:
    for wrap in (b'{"error":%s}', b'{"choices":%s}', b'{"a":"\\ud800","error":%s}'):
        for status in (200, 400, 503):
            parsers.answer(status, {}, wrap % (b"[" * depth + b"]" * depth))


@pytest.mark.parametrize("depth", [450, 900, 980, 100_000])
@pytest.mark.parametrize("field", ["messages", "input", "prompt", "tools", "extra", "contents"])
def test_a_deeply_nested_body_is_no_surprise(field: str, depth: int) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    for url in (*ENDPOINTS, *GEMINI):
        parsers.quote({"model": "m", field: nested}, url)


@pytest.mark.parametrize("model", ["m", "free", "gpt-4o"])
def test_an_absurd_output_cap_can_be_told(model: str) -> None:
    parsers.quote({"model": model, "max_tokens": 10**4200, "n": 10**4200})


def test_numbers_that_json_does_not_have_are_refused_in_a_batch() -> None:
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 10**6):
        assert not parsers.batch(b'{"model":"m","messages":[],"temperature":%s}' % number)


# Stored text


@pytest.mark.parametrize("name", STORED)
def test_a_damaged_row_is_a_store_error(name: str) -> None:
    decode, text = STORED[name]

    def parse(damaged: str) -> bool:
        return parsers.stored(decode, damaged)

    assert parse(text)
    for field in json.loads(text):
        for value in (None, [], {}, 5, "x", [{}], {"a": 1}):
            parse(json.dumps({**json.loads(text), field: value}))
        parse(json.dumps({key: v for key, v in json.loads(text).items() if key != field}))
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
    "body",
    [10**5000, {"a": Unprintable()}, {(1, 2): Unprintable()}],
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
