"""What answers say they used, and bounds on what prompts can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.request import Request, Usage
from scheduler.tokens import OTHER_IMAGE, PER_MESSAGE, PER_REQUEST, TILED_IMAGE, bound_input_tokens
from scheduler.usage import extract_usage, reported_cost_nusd


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, Usage(9, 2)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(9, 0)),
        ({"input_tokens": 9, "output_tokens": 2}, Usage(9, 2)),
        (
            {
                "prompt_tokens": 100, "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5},
            },
            Usage(100, 50, 64, 0, 30, 10, 5),
        ),
        (
            {
                "input_tokens": 100, "output_tokens": 50,
                "input_tokens_details": {"cached_tokens": 64},
                "output_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(100, 50, 64, 0, 30),
        ),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, 0, 5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": "x"}}, Usage(5, 0)),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 1.5}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 10**15}, None),
        ({"prompt_tokens": 1, "completion_tokens": "2"}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)  # fmt: skip
def test_usage_is_read_in_both_dialects_and_nonsense_counts_as_not_said(usage, expected):
    assert extract_usage({"usage": usage}) == expected


@pytest.mark.parametrize("body", [None, [], "x", 5, {}, {"usage": "x"}])
def test_a_body_without_usage_says_nothing(body):
    assert extract_usage(body) is None
    assert reported_cost_nusd(body) is None


@pytest.mark.parametrize(
    ("cost", "nusd"),
    [(0.00014, 140_000), ("0.5", 500_000_000), (0, 0), (1e-12, 1), (-1, None), (True, None),
     (float("nan"), None), ("x", None), (10**12, None), (None, None)],
)  # fmt: skip
def test_a_reported_cost_is_read_in_dollars_and_rounded_up(cost, nusd):
    assert reported_cost_nusd({"usage": {"cost": cost}}) == nusd


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
)


@given(JSON)
def test_no_answer_breaks_reading_it(body):
    for value in (body, {"usage": body}):
        extract_usage(value)
        reported_cost_nusd(value)


@given(JSON)
def test_no_request_breaks_bounding_it(body):
    for url in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings"):
        for name in ("messages", "input", "tools"):
            assert bound_input_tokens(url, {"model": "m", name: body}).tokens >= PER_REQUEST


def bound(body, url="/v1/chat/completions"):
    found = bound_input_tokens(url, body)
    return found.tokens, found.is_bound


@pytest.mark.parametrize(
    ("text", "size"),
    [("hello", 5), ("héllo", 6), ("日本", 6), ("\U0001f600", 4), ("\ud800", 3), ("", 0)],
)
def test_a_text_has_no_more_tokens_than_bytes(text, size):
    body = Request.chat("gpt-4o", text).body

    assert bound(body) == (PER_REQUEST + PER_MESSAGE + len("user") + size, True)


def test_normalising_vocabularies_count_the_longer_form():
    ligature = "\ufdfa" * 10  # three bytes each, 33 in NFKC

    raw, _ = bound(Request.chat("gpt-4o", ligature).body)
    normalised, _ = bound(Request.chat("claude-sonnet-4-5", ligature).body)

    assert normalised - raw == 300


def part(kind, **fields):
    return {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": [{"type": kind, **fields}]}],
    }


@pytest.mark.parametrize(
    ("body", "tokens", "is_bound"),
    [
        (part("text", text="abc"), 3, True),
        (part("image_url", image_url={"url": "data:" + "x" * 9999}), TILED_IMAGE, True),
        (part("image_url", image_url={"url": "u", "detail": "low"}), 85, True),
        ({**part("image_url", image_url={"url": "u"}), "model": "gpt-5"}, OTHER_IMAGE, False),
        (part("input_audio", input_audio={"data": "x" * 100}), 100, False),
        (part("file", file={"file_data": "x" * 100}), 100, False),
    ],
)
def test_parts_count_by_their_kind(body, tokens, is_bound):
    found, said = bound(body)

    assert found >= PER_REQUEST + PER_MESSAGE + tokens
    assert found <= PER_REQUEST + PER_MESSAGE + tokens + 80
    assert said is is_bound


@pytest.mark.parametrize(
    ("extra", "is_bound"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"previous_response_id": "r"}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {"x": "y" * 50}}}, True),
    ],
)
def test_tools_and_schemas_count_and_what_the_provider_adds_is_no_bound(extra, is_bound):
    plain = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}

    assert bound({**plain, **extra})[0] > bound(plain)[0]
    assert bound({**plain, **extra})[1] is is_bound


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("abc", 3), ([1, 2, 3], 3), (["ab", "c"], 3 + 32), ([[1, 2], [3]], 3 + 32)],
)
def test_embedding_inputs_count_as_text_or_token_ids(value, tokens):
    assert bound({"model": "m", "input": value}, "/v1/embeddings") == (PER_REQUEST + tokens, True)
