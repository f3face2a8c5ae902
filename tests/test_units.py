"""Everything a provider bills beside plain text: counted, posted, reserved, or said to be unknown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import ROUND_CEILING

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.answer import Answer
from scheduler.prices.book import PriceBook
from scheduler.prices.rates import Listing, dearest_listed
from scheduler.prices.usage import extract_usage
from scheduler.providers.streaming import Assembly
from scheduler.request import GENERATE, MESSAGES, RESPONSES, Request, StreamEvent, Usage
from scheduler.stores.sql.codec import decode_response, encode_response

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOOK = PriceBook(now_ms=lambda: int(AT.timestamp() * 1000))
LISTED = [(each.id, model) for each in get_snapshot().providers for model in each.models]

THEIRS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
    "citation_tokens": "output_citation_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "cached_audio_tokens": "cache_audio_read_tokens",
    "input_image_tokens": "input_image_tokens",
    "cached_image_tokens": "cache_image_read_tokens",
    "output_image_tokens": "output_image_tokens",
    "input_video_tokens": "input_video_tokens",
    "cached_video_tokens": "cache_video_read_tokens",
    "output_video_tokens": "output_video_tokens",
    "web_searches": "web_searches",
    "file_searches": "storage_searches",
    "audio_seconds": "audio_seconds",
}


def oracle_nusd(model, usage: Usage) -> int:
    theirs = genai_prices.Usage(**{name: getattr(usage, ours) for ours, name in THEIRS.items()})
    price = model.get_prices(AT).calc_price(theirs)["total_price"]
    return int((price * 10**9).to_integral_value(ROUND_CEILING))


def bill_nusd(provider: str, model, usage: Usage) -> int:
    rates = Listing(provider, model, None).with_media().now(int(AT.timestamp() * 1000))
    return rates.cost_nusd(usage)


@st.composite
def usages(draw) -> Usage:
    """Usage whose kinds do not overlap, as providers report it."""
    count = st.integers(0, 5_000)
    text, cached, audio, heard, image, seen, film = (draw(count) for _ in range(7))
    said, spoken, drawn, thought = (draw(count) for _ in range(4))
    return Usage(
        text + cached + audio + heard + image + seen + film,
        said + spoken + drawn + thought,
        cached + heard + seen,
        reasoning_tokens=thought,
        input_audio_tokens=audio + heard,
        cached_audio_tokens=heard,
        input_image_tokens=image + seen,
        cached_image_tokens=seen,
        input_video_tokens=film,
        output_audio_tokens=spoken,
        output_image_tokens=drawn,
        web_searches=draw(st.integers(0, 9)),
        file_searches=draw(st.integers(0, 9)),
    )


@settings(max_examples=300)
@given(listed=st.sampled_from(LISTED), usage=usages())
def test_no_bill_is_below_the_catalogues_whatever_was_used(listed, usage):
    provider, model = listed

    assert bill_nusd(provider, model, usage) >= oracle_nusd(model, usage)


EXACT = [
    ("openai", "gpt-4o", Usage(1_000, 200, web_searches=3, file_searches=2)),
    ("openai", "gpt-5", Usage(1_000, 200, 300, web_searches=7)),
    ("openai", "o3-deep-research", Usage(90_000, 9_000, web_searches=21, file_searches=4)),
    ("anthropic", "claude-sonnet-4-5", Usage(10_000, 500, web_searches=5)),
    ("google", "gemini-2.5-flash", Usage(500, 100, input_audio_tokens=300)),
    ("google", "gemini-2.5-flash",
     Usage(900, 100, 400, input_audio_tokens=500, cached_audio_tokens=300)),
    ("google", "gemini-2.5-flash", Usage(900, 100, input_image_tokens=258)),
    ("google", "gemini-2.5-flash-image", Usage(50, 1_310, output_image_tokens=1_290)),
    ("google", "gemini-3-pro-image-preview", Usage(50, 2_000, output_image_tokens=1_120)),
    ("google", "gemini-3-pro-image-preview", Usage(50, 20, web_searches=2)),
    ("openai", "gpt-audio", Usage(400, 300, input_audio_tokens=300, output_audio_tokens=250)),
    ("openai", "gpt-realtime", Usage(
        900, 300, 500, input_audio_tokens=700, cached_audio_tokens=400, output_audio_tokens=250)),
    ("perplexity", "sonar-deep-research",
     Usage(33, 222_003, reasoning_tokens=193_947, citation_tokens=20_847, web_searches=21)),
    ("perplexity", "sonar-pro", Usage(33, 203)),  # a fee for each request
    ("mistral", "voxtral-small-24b-2507", Usage(400, 30, audio_seconds=61)),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "name", "usage"), EXACT)
def test_what_the_catalogue_prices_is_billed_to_the_nano_dollar(provider, name, usage):
    model = next(m for p, m in LISTED if p == provider and m.id == name)

    assert abs(bill_nusd(provider, model, usage) - oracle_nusd(model, usage)) <= 1


def grounded(*queries, model="gemini-2.5-flash"):
    return {
        "candidates": [{"groundingMetadata": {"webSearchQueries": list(queries)}}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5},
        "modelVersion": model,
    }


CHAT_USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
CITED = [{"message": {"annotations": [{"type": "url_citation"}]}}]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"usage": {"input_tokens": 10, "output_tokens": 5, "server_tool_use":
                {"web_search_requests": 3, "web_fetch_requests": 2}}},
            {"web_searches": 3},
        ),
        (
            {"usage": {"input_tokens": 10, "output_tokens": 5}, "output": [
                {"type": "web_search_call", "action": {"type": "search", "query": "a"}},
                {"type": "web_search_call", "action": {"type": "open_page"}},
                {"type": "web_search_call", "action": {"type": "find_in_page"}},
                {"type": "web_search_call", "status": "completed"},
                {"type": "file_search_call"}, {"type": "message"}, "nonsense", {"type": ["x"]},
                {"type": "code_interpreter_call", "container_id": "c1"},
                {"type": "code_interpreter_call", "container_id": "c1"},
                {"type": "code_interpreter_call", "container_id": "c2"},
                {"type": "image_generation_call", "result": "x"},
            ]},
            {"web_searches": 2, "file_searches": 1, "code_sessions": 2, "made_images": 1},
        ),
        ({"usage": CHAT_USAGE, "choices": CITED}, {"web_searches": 1}),
        ({"usage": CHAT_USAGE, "choices": [{"message": {"annotations": []}}]}, {}),
        ({"usage": {**CHAT_USAGE, "num_search_queries": 4}}, {"web_searches": 4}),
        ({"usage": {**CHAT_USAGE, "num_search_queries": -4}}, {}),
        ({"usage": {**CHAT_USAGE, "server_tool_use": "x"}, "output": "x", "choices": 7}, {}),
        ({"usage": {**CHAT_USAGE, "prompt_audio_seconds": 30.2}}, {"audio_seconds": 31}),
        (
            {"usage": {**CHAT_USAGE, "prompt_tokens_details": {
                "audio_tokens": 8, "cached_tokens": 6, "image_tokens": 2,
                "cached_tokens_details": {"audio_tokens": 5, "text_tokens": 1}}}},
            {"input_audio_tokens": 8, "cached_tokens": 6, "cached_audio_tokens": 5,
             "input_image_tokens": 2},
        ),
        (grounded("a", "b", "a", " "), {"web_searches": 2}),
        (grounded(), {}),
    ],
)  # fmt: skip
def test_what_a_provider_did_itself_is_read_from_its_answer(body, expected):
    assert extract_usage(body) == Usage(10, 5, **expected)


def test_googles_tokens_are_read_by_their_modality():
    told = {
        "promptTokenCount": 900, "candidatesTokenCount": 1_300, "cachedContentTokenCount": 200,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 100}, {"modality": "IMAGE", "tokenCount": 258},
            {"modality": "DOCUMENT", "tokenCount": 42}, {"modality": "AUDIO", "tokenCount": 300},
            {"modality": "VIDEO", "tokenCount": 200},
        ],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 150}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1_290}],
    }  # fmt: skip

    assert extract_usage({"usageMetadata": told}) == Usage(
        900, 1_300, 200, input_audio_tokens=300, cached_audio_tokens=150, input_image_tokens=300,
        input_video_tokens=200, output_image_tokens=1_290,
    )  # fmt: skip


def test_what_was_counted_survives_the_store():
    from scheduler.request import Response

    usage = Usage(1, 2, web_searches=3, output_image_tokens=4, made_images=5)

    assert decode_response(encode_response(Response({}, usage=usage))).usage == usage


def costs(request: Request, body, source=None) -> tuple[int, int, str]:
    """What is reserved, what is posted, and why the first is no bound."""
    tariff = BOOK.tariff(source)
    quote = tariff.quote(request)
    posted = tariff.cost_nusd(request, Answer(body, usage=extract_usage(body)))
    return quote.ceiling_nusd, posted, quote.why_unbound


CENT = 10**7
SEARCHED = {"usage": {"input_tokens": 0}, "output": [{"type": "web_search_call"}] * 3}


@pytest.mark.parametrize(
    ("request_", "body", "fee"),
    [
        # A chat model that searches for every call says so nowhere.
        (Request.chat("gpt-4o-search-preview", "x", max_tokens=9), {"usage": {"prompt_tokens": 0}},
         2.5),
        (Request.chat("gpt-4o-mini-search-preview-2025-03-11", "x", max_tokens=9),
         {"usage": {"prompt_tokens": 0}, "choices": CITED}, 2.5),
        (Request.chat("gpt-5-search-api", "x", max_completion_tokens=9),
         {"usage": {"prompt_tokens": 0}}, 1),
        (Request.responses("gpt-5", "x", tools=[{"type": "web_search"}], max_output_tokens=9),
         SEARCHED, 3),
        (Request.responses("gpt-4o", "x", tools=[{"type": "web_search_preview"}],
                           max_output_tokens=9), SEARCHED, 7.5),
        (Request.responses("gpt-5", "x", tools=[{"type": "file_search"}], max_output_tokens=9),
         {"usage": {"input_tokens": 0}, "output": [{"type": "file_search_call"}] * 4}, 1),
        (Request.responses("gpt-5", "x", tools=[{"type": "code_interpreter"}], max_output_tokens=9),
         {"usage": {"input_tokens": 0}, "output": [{"type": "code_interpreter_call"}]}, 3),
        (Request({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [],
                  "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
                 url=MESSAGES),
         {"usage": {"input_tokens": 0, "server_tool_use": {"web_search_requests": 5}}}, 5),
        # Google's older models are billed for a grounded prompt, newer ones for each query.
        (Request({"model": "gemini-2.5-flash", "contents": "x", "tools": [{"googleSearch": {}}]},
                 url=GENERATE),
         {**grounded("a", "b"), "usageMetadata": {"promptTokenCount": 0}}, 3.5),
        (Request({"model": "gemini-3-flash-preview", "contents": "x",
                  "tools": [{"google_search": {}}]}, url=GENERATE),
         {**grounded("a", "b", model="gemini-3-flash-preview"),
          "usageMetadata": {"promptTokenCount": 0}}, 2.8),
    ],
)  # fmt: skip
def test_fees_for_what_a_provider_does_itself_are_posted_and_reserved(request_, body, fee):
    reserved, posted, why = costs(request_, body)

    assert posted == fee * CENT
    assert reserved >= posted
    assert why


def test_the_number_of_searches_is_bounded_by_what_the_request_allows():
    def reserved(**more) -> int:
        tools = [{"type": "web_search"}]
        request = Request.responses("gpt-5", "x", tools=tools, max_output_tokens=9, **more)
        return BOOK.tariff("openai").quote(request).ceiling_nusd

    assert reserved(max_tool_calls=3) - reserved(max_tool_calls=1) == 2 * CENT
    assert reserved() - reserved(max_tool_calls=10) == 0


def test_a_kind_of_token_without_a_price_costs_the_dearest_that_is_known():
    heard, spoken = (
        dearest_listed("openai", f"{way}_audio_mtok") // 10**15 for way in ("input", "output")
    )
    audio = {"data": "UklGRg==", "format": "wav"}
    request = Request.chat(
        "gpt-4o-audio-preview", [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": audio}]}],
        modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}, max_tokens=500,
    )  # fmt: skip
    body = {"usage": {
        "prompt_tokens": 100, "completion_tokens": 400,
        "prompt_tokens_details": {"audio_tokens": 100},
        "completion_tokens_details": {"audio_tokens": 400},
    }}  # fmt: skip

    reserved, posted, why = costs(request, body, "openai")

    assert posted == 100 * heard + 400 * spoken > 20 * (100 * 2_500 + 400 * 10_000) / 5
    assert reserved >= posted
    assert "no price is known for audio it reads, audio it makes" in why


def test_a_model_that_neither_hears_nor_was_asked_to_is_not_made_dearer():
    quote = BOOK.tariff("openai").quote(Request.chat("gpt-4o-audio-preview", "hi", max_tokens=100))
    same = BOOK.tariff("openai").quote(Request.chat("gpt-4o", "hi", max_tokens=100))

    assert (quote.ceiling_nusd, quote.is_bound) == (same.ceiling_nusd, True)


def test_googles_list_tells_where_sound_costs_more_so_elsewhere_it_does_not():
    usage = Usage(1_000, 10, input_audio_tokens=900)
    request = Request({"model": "gemini-2.5-pro", "contents": "x"}, url=GENERATE)

    posted = BOOK.tariff("google").cost_nusd(request, Answer({}, usage=usage))
    assert posted == 1_000 * 1_250 + 10 * 10_000


def test_pictures_a_model_makes_are_reserved_and_posted_at_their_own_price():
    request = Request(
        {"model": "gemini-2.5-flash-image", "contents": "a cat",
         "generationConfig": {"maxOutputTokens": 2_000}}, url=GENERATE,
    )  # fmt: skip
    told = {
        "promptTokenCount": 2, "candidatesTokenCount": 1_290,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1_290}],
    }  # fmt: skip

    reserved, posted, _ = costs(request, {"usageMetadata": told}, "google")

    assert posted == 2 * 300 + 1_290 * 30_000
    assert reserved >= posted


def test_a_price_of_ones_own_says_nothing_of_searches_so_they_cost_the_dearest_known():
    book = PriceBook({"mine": "1/2"})
    request = Request.responses("mine", "x", tools=[{"type": "web_search"}], max_output_tokens=9)
    answer = Answer({}, usage=Usage(0, 0, web_searches=2))

    assert book.tariff().cost_nusd(request, answer) == 2 * 35 * 10**6
    assert "no price is known for web searches" in book.tariff().quote(request).why_unbound


def test_searches_of_a_translated_chat_are_counted_too():
    from scheduler.providers.anthropic_chat import to_chat

    message = {
        "model": "claude-sonnet-4-5", "content": [{"type": "text", "text": "x"}],
        "usage": {"input_tokens": 10, "output_tokens": 5,
                  "server_tool_use": {"web_search_requests": 3}},
    }  # fmt: skip

    assert extract_usage(to_chat(message)).web_searches == 3


def test_what_is_expected_has_the_fees_in_it():
    plain = Request.chat("gpt-4o", "hi", max_tokens=9)
    for request, fee in (
        (Request.chat("gpt-4o-search-preview", "hi", max_tokens=9), 2.5),
        (Request.responses("gpt-4o", "hi", tools=[{"type": "web_search"}]), 1),
    ):
        expected = BOOK.tariff("openai").quote(request).expected_nusd
        assert expected >= fee * CENT > BOOK.tariff("openai").quote(plain).expected_nusd


def streamed(url, *chunks):
    """The usage of a stream, as it is put together from its events."""
    assembly = Assembly(Request({"model": "m", "stream": True}, url=url))
    for chunk in chunks:
        assembly.take(StreamEvent(json.dumps(chunk), chunk.get("type", "")))
    return extract_usage(assembly.whole())


def test_a_stream_tells_the_same_as_an_answer_in_one_piece():
    response = {
        "object": "response", "usage": {"input_tokens": 10, "output_tokens": 5},
        "output": [{"type": "web_search_call", "action": {"type": "search"}}, {"type": "message"}],
    }  # fmt: skip
    assert streamed(
        RESPONSES,
        {"type": "response.created", "response": {"object": "response"}},
        {"type": "response.completed", "response": response},
    ) == Usage(10, 5, web_searches=1)
    assert streamed(
        MESSAGES,
        {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
         "usage": {"output_tokens": 5, "server_tool_use": {"web_search_requests": 2}}},
        {"type": "message_stop"},
    ) == Usage(10, 5, web_searches=2)  # fmt: skip
    last = grounded("a", "b")
    last["candidates"][0]["finishReason"] = "STOP"
    assert streamed(
        GENERATE, {"candidates": [{"content": {"parts": [{"text": "x"}]}}]}, last
    ) == Usage(10, 5, web_searches=2)
