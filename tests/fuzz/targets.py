"""Which parser is given what: near-valid input, and structure where there is some."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from scheduler.request import ENDPOINTS, GEMINI, Request, Response, Usage
from scheduler.stores.sql import codec
from tests.fuzz import inputs, parsers

HUGE = "9" * 10**6
RETRY_AFTER = st.sampled_from([
    "1", "0", "-5", "1e400", "nan", "inf", "²", HUGE[:5000], "Wed, 21 Oct 2015 07:28:00 GMT",
    "Thu", "0 Jan 0000 00:00:00 +9999", "99 Foo 99999 99:99:99 GMT", "", "\0", "Mon, 1 Jan 1 0:0 Z",
]) | st.text(max_size=30)  # fmt: skip
HEADERS = st.fixed_dictionaries({}, optional={
    "retry-after": RETRY_AFTER, "retry-after-ms": RETRY_AFTER, "date": RETRY_AFTER,
    "x-ratelimit-reset-tokens": inputs.near_text(inputs.SPANS),
    "x-ratelimit-remaining-tokens": st.just("0"), "location": st.text(),
    **{f"x-ratelimit-{what}-requests": st.sampled_from(["5", "-1", "0", "x", HUGE[:99], "1e9", "6m0s"])
       for what in ("limit", "remaining", "reset")},
    **{f"anthropic-ratelimit-tokens-{what}": st.sampled_from(["5", "2026-11-24T10:00:00Z", "9999-99", "\0"])
       for what in ("limit", "remaining", "reset")},
    "anthropic-ratelimit-requests-limit": st.just("5"),
    "x-should-retry": st.sampled_from(["true", "false", "maybe"]),
})  # fmt: skip
STATUSES = st.sampled_from([200, 201, 204, 301, 400, 401, 402, 404, 408, 429, 500, 503, 529, 999])

STORED: dict[str, tuple[Callable[[str], Any], str]] = {
    "stored-request": (
        codec.decode_request,
        codec.encode_request(Request({"model": "m"}, key="k", tags={"a": "b"})),
    ),
    "stored-answer": (
        codec.decode_response,
        codec.encode_response(Response({"a": 1}, usage=Usage(1, 2))),
    ),
    "stored-budget": (
        lambda text: codec.decode_budget("b", text),
        '{"spec":"$5/day","models":["m*"],"tags":{"a":"b"},"parent":null}',
    ),
}


class Target(NamedTuple):
    """A parser, which tells whether it took its input, and what it is given."""

    parse: Callable[[Any], bool]
    given: st.SearchStrategy[Any]


def _json(examples: list[bytes]) -> st.SearchStrategy[bytes]:
    return inputs.near(examples) | inputs.changed_json(examples).map(
        lambda body: json.dumps(body).encode()
    )


def _stored(name: str) -> Target:
    decode, text = STORED[name]
    given = _json([text.encode()]).map(lambda data: data.decode("utf-8", "replace"))
    return Target(lambda text: parsers.stored(decode, text), given)


TARGETS = {
    "answer": Target(
        lambda given: parsers.answer(*given),
        st.tuples(st.just(200) | STATUSES, HEADERS, _json(inputs.ANSWERS[:4]) | inputs.near(inputs.ANSWERS)),
    ),
    "base-url": Target(parsers.base_url, inputs.near_text(inputs.URLS)),
    "batch": Target(parsers.batch, _json(inputs.LINES + inputs.FILES)),
    "budget": Target(parsers.budget, inputs.near_text(inputs.BUDGETS)),
    "config": Target(parsers.config, inputs.near(inputs.CONFIGS)),
    "duration": Target(parsers.duration, inputs.near_text(inputs.SPANS)),
    "money": Target(parsers.money, inputs.near_text(inputs.AMOUNTS)),
    "price": Target(parsers.price, inputs.near_text(inputs.PRICES)),
    "quote": Target(
        lambda given: parsers.quote({"model": "m", **given[1]}, given[0]),
        st.tuples(st.sampled_from(ENDPOINTS), inputs.changed_json(inputs.LINES[1:]))
        | st.tuples(st.sampled_from(GEMINI), inputs.changed_json(inputs.CONTENTS)),
    ),
    "stream": Target(
        lambda given: parsers.stream(*given), st.tuples(inputs.near(inputs.STREAMS), st.integers(1, 9))
    ),
    **{name: _stored(name) for name in STORED},
}  # fmt: skip
