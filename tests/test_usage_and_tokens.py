"""What answers say they used, and bounds on what prompts can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.prices.tokens import (
    LOW_DETAIL_IMAGE,
    OTHER_IMAGE,
    PER_CONVERSATION,
    PER_MESSAGE,
    PER_REQUEST,
    PER_TOOL,
    PER_TOOLS,
    TILED_IMAGE,
    bare_name,
    bound_input_tokens,
)
from scheduler.prices.usage import extract_usage, reported_cost_nusd
from scheduler.request import Request, Usage


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
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(14, 0, 9)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": "x"}}, Usage(5, 0)),
        # Anthropic's cached tokens come on top; a gateway's copies of them do not.
        (
            {
                "input_tokens": 10, "output_tokens": 2,
                "cache_read_input_tokens": 300, "cache_creation_input_tokens": 40,
            },
            Usage(350, 2, 300, 40),
        ),
        ({"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": None}, Usage(10, 2)),
        (
            {
                "prompt_tokens": 350, "completion_tokens": 2, "cache_creation_input_tokens": 40,
                "prompt_tokens_details": {"cached_tokens": 300},
            },
            Usage(350, 2, 300, 40),
        ),
        (
            {
                "input_tokens": 350, "output_tokens": 2, "cache_read_input_tokens": 300,
                "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 9},
            },
            Usage(350, 2, 300, 9),
        ),
        # Reasoning that only the total counts.
        (
            {
                "prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399,
                "completion_tokens_details": {"reasoning_tokens": 386},
            },
            Usage(12, 387, reasoning_tokens=386),
        ),
        ({"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 5}, Usage(12, 1)),
        ({"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 10**15}, Usage(12, 1)),
        ({"prompt_tokens": 12, "completion_tokens": None}, Usage(12, 0)),
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


@pytest.mark.parametrize(
    ("usage", "nusd"),
    [
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.006}}, 6_000_000),
        ({"cost": {}}, None),
        ({"cost_in_usd_ticks": 232_856_000}, 23_285_600),
        ({"cost_in_usd_ticks": 11}, 2),
        ({"cost_in_usd_ticks": -1}, None),
        ({"cost_in_usd_ticks": 1.5}, None),
        # With the caller's own key the upstream bill comes on top of the gateway's fee.
        (
            {"cost": 0.05, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}},
            1_050_000_000,
        ),
        (
            {"cost": 0.05, "is_byok": False, "cost_details": {"upstream_inference_cost": 1}},
            50_000_000,
        ),
        ({"cost": 0.05, "is_byok": True}, None),
        ({"cost": 10**5000}, None),
    ],
)
def test_gateways_report_a_cost_each_in_its_own_way(usage, nusd):
    assert reported_cost_nusd({"usage": usage}) == nusd


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


@given(st.text(), st.sampled_from(["gpt-4o", "claude-sonnet-4-5"]))
def test_no_text_anywhere_in_a_body_goes_uncounted(text, model):
    size = len(text.encode("utf-8", "surrogatepass"))
    part_, tool = {"type": "text", "text": text}, {"type": "function", "function": {"d": text}}
    chat = {"model": model, "messages": []}
    bodies = [
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": text}]}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": [part_]}]}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "tool", "tool_calls": [part_]}]}),
        ("/v1/chat/completions", {**chat, "tools": [tool]}),
        ("/v1/chat/completions", {**chat, "response_format": {"json_schema": {"x": text}}}),
        ("/v1/responses", {"model": model, "input": text}),
        ("/v1/responses", {"model": model, "input": "", "instructions": text}),
        ("/v1/responses", {"model": model, "input": [{"type": "message", "content": [part_]}]}),
        ("/v1/responses", {"model": model, "input": [{"call_id": "c", "output": text}]}),
        ("/v1/embeddings", {"model": model, "input": [text]}),
        ("/v1/completions", {"model": model, "prompt": text}),
        ("/v1/completions", {"model": model, "prompt": "", "suffix": text}),
        ("/v1/something-else", {"model": model, "messages": [], "input": text, "system": text}),
    ]
    for url, body in bodies:
        assert bound_input_tokens(url, body).tokens >= size + PER_REQUEST, url


def bound(body, url="/v1/chat/completions"):
    found = bound_input_tokens(url, body)
    return found.tokens, found.is_bound


@pytest.mark.parametrize(
    ("text", "size"),
    [("hello", 5), ("héllo", 6), ("日本", 6), ("\U0001f600", 4), ("\ud800", 3), ("", 0)],
)
def test_a_text_has_no_more_tokens_than_bytes(text, size):
    body = Request.chat("gpt-4o", text).body

    assert bound(body) == (PER_CONVERSATION + PER_MESSAGE + len("user") + size, True)


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
        (part("image_url", image_url={"url": "u"}, detail="low"), LOW_DETAIL_IMAGE, True),
        ({**part("input_image", image_url="u"), "model": "openai/gpt-4o"}, TILED_IMAGE, True),
        ({**part("image_url", image_url={"url": "u"}), "model": "gpt-4o-mini"}, 48_169, True),
        ({**part("image_url", image_url={"url": "u"}), "model": "gpt-4.1-nano"}, 3_779, True),
        ({**part("image_url", image_url={"url": "u"}), "model": "gpt-5"}, OTHER_IMAGE, False),
        (part("input_audio", input_audio={"data": "x" * 100}), 100, False),
        (part("file", file={"file_data": "x" * 100}), 100, False),
    ],
)
def test_parts_count_by_their_kind(body, tokens, is_bound):
    found, said = bound(body)

    assert found >= PER_CONVERSATION + PER_MESSAGE + tokens
    assert found <= PER_CONVERSATION + PER_MESSAGE + tokens + 80
    assert said is is_bound


@pytest.mark.parametrize(
    ("extra", "is_bound"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"functions": [{"name": "f"}]}, True),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"previous_response_id": "r"}, False),
        ({"web_search_options": {}}, False),
        ({"prediction": {"type": "content", "content": "x"}}, False),
        ({"plugins": [{"id": "web"}]}, False),
        ({"models": ["a", "b"]}, True),  # the quote is of the dearest of them
        ({"response_format": {"type": "json_schema", "json_schema": {"x": "y" * 50}}}, True),
    ],
)
def test_tools_and_schemas_count_and_what_the_provider_adds_is_no_bound(extra, is_bound):
    plain = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}

    assert bound({**plain, **extra})[0] > bound(plain)[0]
    assert bound({**plain, **extra})[1] is is_bound


def test_tools_bring_a_margin_once_and_one_each():
    plain, tool = {"model": "m", "messages": []}, {"type": "function"}
    sizes = [bound({**plain, "tools": [tool] * count})[0] for count in range(3)]

    assert sizes[1] - sizes[0] == PER_TOOLS + PER_TOOL + len('{"type": "function"}')
    assert sizes[2] - sizes[1] == PER_TOOL + len('{"type": "function"}')


@pytest.mark.parametrize("name", ["tools", "conversation", "audio", "stop", "plugins"])
def test_a_field_that_is_null_adds_nothing(name):
    plain = {"model": "m", "messages": []}

    assert bound({**plain, name: None}) == bound(plain)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "x"},
        {"role": "assistant", "audio": {"id": "kept by the provider"}},
        {"type": "computer_call_output", "output": {"type": "computer_screenshot"}},
        {"type": "function_call_output", "output": [{"type": "input_file", "file_id": "f"}]},
    ],
)
def test_an_item_that_only_points_to_something_is_no_bound(item):
    for url, name in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
        assert bound({"model": "gpt-4o", name: [item]}, url)[1] is False


@pytest.mark.parametrize(
    ("model", "is_bound"),
    [
        ("gpt-4o", True),
        ("gpt-4o-search-preview", False),
        ("sonar-pro", False),
        ("meta-llama/llama-3.3-70b:online", False),
        ("groq/compound-mini", False),
        (None, True),
        (5, True),
    ],
)
def test_a_model_that_searches_by_itself_is_no_bound(model, is_bound):
    assert bound({"model": model, "messages": []})[1] is is_bound


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "gpt-4o"),
        ("OpenAI/GPT-4o", "gpt-4o"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "gpt-4o-mini-2024-07-18"),
        ("openai/gpt-4o:extended", "gpt-4o:extended"),
        ("ft:", ""),
        ("", ""),
    ],
)
def test_a_bare_name_has_no_prefix_and_no_marks_of_a_fine_tune(model, name):
    assert bare_name(model) == name


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("abc", 3), ([1, 2, 3], 3), (["ab", "c"], 3 + 32), ([[1, 2], [3]], 3 + 32)],
)
def test_embedding_inputs_count_as_text_or_token_ids(value, tokens):
    assert bound({"model": "m", "input": value}, "/v1/embeddings") == (PER_REQUEST + tokens, True)
