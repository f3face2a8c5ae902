"""Google's dialect in the pure rules: what calls may cost, what answers say, streams put together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import Budget, Scheduler, Simulated
from scheduler.answer import Answer
from scheduler.errors import RateLimited
from scheduler.prices.book import (
    MAX_OUTPUT,
    PriceBook,
    bound_output_tokens,
    prompt_only,
    stated_output_tokens,
    with_output_cap,
)
from scheduler.prices.tokens import (
    MEDIA_BYTES_PER_TOKEN,
    OTHER_IMAGE,
    PER_CONVERSATION,
    PER_MESSAGE,
    PER_REQUEST,
    PER_TOOL,
    PER_TOOLS,
    bound_input_tokens,
)
from scheduler.prices.usage import extract_usage
from scheduler.providers.answers import read_answer
from scheduler.providers.streaming import Assembly, read_stream
from scheduler.request import (
    EMBED_CONTENT,
    ENDPOINTS,
    GEMINI,
    GENERATE,
    Request,
    Response,
    StreamEvent,
    Usage,
)
from scheduler.testing import VirtualClock, run


def generate(contents="hi", model="gemini-2.5-flash", **fields):
    return Request({"model": model, "contents": contents, **fields}, url=GENERATE)


def test_batch_files_cannot_name_what_no_provider_sends():
    assert not set(GEMINI) & set(ENDPOINTS)


# What answers say


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (
            {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11},
            Usage(9, 2),
        ),
        ({"promptTokenCount": 9}, Usage(9, 0)),  # zeros are left out
        ({"promptTokenCount": 9, "candidatesTokenCount": None}, Usage(9, 0)),
        (
            {
                "promptTokenCount": 100, "cachedContentTokenCount": 64, "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30, "toolUsePromptTokenCount": 7, "totalTokenCount": 157,
            },
            Usage(107, 50, 64, reasoning_tokens=30),
        ),
        (
            {
                "promptTokenCount": 100, "candidatesTokenCount": 20,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 30},
                ],
                "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 15}],
            },
            Usage(100, 20, input_audio_tokens=30, output_audio_tokens=15),
        ),
        # What only the total counts is output.
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 50},
            Usage(10, 40),
        ),
        ({"promptTokenCount": 10, "totalTokenCount": 5}, Usage(10, 0)),
        ({"promptTokenCount": 10, "totalTokenCount": 10**15}, Usage(10, 0)),
        ({"promptTokenCount": 5, "cachedContentTokenCount": 9}, Usage(5, 0, 5)),
        ({"promptTokenCount": 5, "promptTokensDetails": "x"}, Usage(5, 0)),
        ({"promptTokenCount": 5, "promptTokensDetails": [7, {"modality": "AUDIO"}]}, Usage(5, 0)),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": "9"}, None),
        ({"promptTokenCount": True}, None),
        ({"promptTokenCount": 9, "candidatesTokenCount": "2"}, None),
        ({"promptTokenCount": 9, "thoughtsTokenCount": -2}, None),
        ({"candidatesTokenCount": 2, "totalTokenCount": 11}, None),
        ({}, None),
        ("x", None),
    ],
)  # fmt: skip
def test_usage_is_read_and_nonsense_counts_as_not_said(told, usage):
    assert extract_usage({"usageMetadata": told}) == usage


def test_an_embedding_says_nothing_of_its_tokens():
    assert extract_usage({"embedding": {"values": [0.1]}}) is None


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ([{"content": {"parts": [{"text": "a"}, {"text": "b"}]}}, {"content": {}}], "ab"),
        ([{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "a"}]}}], "a"),
        ([{"content": {"parts": [{"functionCall": {"name": "f"}}]}}], ""),
        ([{"finishReason": "SAFETY"}], ""),
        ([], ""),
        ([7], ""),
    ],
)
def test_the_text_is_the_first_candidates_without_its_thoughts(candidates, text):
    assert Response({"candidates": candidates}).text == text


@pytest.mark.parametrize(
    "body",
    [
        {"candidates": [{"content": {"parts": [{"text": "a"}]}}]},
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}},
        {"embeddings": [{"values": [0.5]}]},
    ],
)
def test_a_body_of_googles_is_an_answer(body):
    assert read_answer(200, {}, json.dumps(body).encode()).body == body


# Bounds


def bound(request):
    found = bound_input_tokens(request.url, request.body)
    return found.tokens, found.is_bound


ONE_TURN = PER_CONVERSATION + PER_MESSAGE
ROLE = len('{"role": "user"}')


@pytest.mark.parametrize(
    ("contents", "tokens"),
    [
        ("hello", 5),
        ({"parts": [{"text": "hello"}]}, len("{}") + 5),
        ([{"role": "user", "parts": [{"text": "hello"}]}], ROLE + 5),
        ({"role": "user", "parts": {"text": "hello"}}, ROLE + 5),
        ({"text": "hello"}, 5),
        (["hello"], 5),
        ([{"role": "user", "parts": [{"text": "a"}, {"text": "\ufdfa"}]}], ROLE + 1 + 33),  # NFKC
    ],
)
def test_a_turn_counts_its_bytes_however_it_is_written(contents, tokens):
    assert bound(generate(contents, model="learnlm")) == (ONE_TURN + tokens, True)


def parts(*listed):
    return generate([{"role": "user", "parts": list(listed)}])


def blob(kind, size, name="inlineData", mime="mimeType"):
    return {name: {mime: kind, "data": "x" * size}}


CALLED = {"name": "f", "args": {"a": "b"}}
PICTURED = {"name": "f", "parts": [blob("image/png", 9)]}


@pytest.mark.parametrize(
    ("part", "tokens", "is_bound"),
    [
        ({"functionCall": CALLED}, len(json.dumps(CALLED)), True),
        ({"function_response": CALLED}, len(json.dumps(CALLED)), True),
        ({"text": "", "thoughtSignature": "abc"}, 3, True),
        ({"text": "abc", "thought": True}, 3, True),
        (blob("image/png", 99_999), OTHER_IMAGE, False),
        (blob("image/png", 9, "inline_data", "mime_type"), OTHER_IMAGE, False),
        (blob("audio/mp3", 800_000), 800_000 // MEDIA_BYTES_PER_TOKEN, False),
        (blob("application/pdf", 10), OTHER_IMAGE, False),
        (blob("text/csv", 50_000), 50_000, False),
        ({"fileData": {"fileUri": "https://x", "mimeType": "video/mp4"}}, OTHER_IMAGE, False),
        ({"functionResponse": PICTURED}, len(json.dumps(PICTURED)), False),
        ({"somethingNew": "abc"}, 3, False),
    ],
)  # fmt: skip
def test_parts_count_by_their_kind(part, tokens, is_bound):
    assert bound(parts(part)) == (ONE_TURN + ROLE + tokens, is_bound)


@pytest.mark.parametrize(
    ("extra", "is_bound"),
    [
        ({"systemInstruction": {"parts": [{"text": "be brief"}]}}, True),
        ({"system_instruction": "be brief"}, True),
        ({"tools": [{"functionDeclarations": [{"name": "f"}]}]}, True),
        ({"tools": {"function_declarations": {"name": "f"}}}, True),
        ({"tools": [{"googleSearch": {}}]}, False),
        ({"tools": [{"functionDeclarations": []}, {"codeExecution": {}}]}, False),
        ({"tools": [{"url_context": {}}]}, False),
        ({"tools": ["x"]}, True),
        ({"cachedContent": "cachedContents/x"}, False),
        ({"cached_content": "cachedContents/x"}, False),
        ({"continuationToken": "x"}, False),
        ({"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, True),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, True),
    ],
)
def test_what_the_provider_adds_is_no_bound(extra, is_bound):
    assert bound(generate(**extra))[0] > bound(generate())[0]
    assert bound(generate(**extra))[1] is is_bound


@pytest.mark.parametrize(
    ("extra", "is_bound"),
    [
        ({"safetySettings": [{"category": "x"}]}, True),
        ({"stream": True}, True),
        ({"cachedContent": None}, True),
        ({"serviceTier": "flex"}, True),
        ({"service_tier": "priority"}, False),  # dearer, by how much is not known
    ],
)
def test_what_is_no_part_of_the_prompt_adds_nothing(extra, is_bound):
    assert bound(generate(**extra)) == (bound(generate())[0], is_bound)


def test_tools_bring_a_margin_once_and_one_each():
    declared = {"functionDeclarations": [{"name": "f"}, {"name": "g"}]}

    assert bound(generate(tools=[declared]))[0] - bound(generate())[0] == (
        PER_TOOLS + 2 * PER_TOOL + len(json.dumps(declared))
    )


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": {"parts": [{"text": "abc"}]}, "taskType": "RETRIEVAL_QUERY"}, 5),
        ({"requests": [{"model": "models/m", "content": {"parts": [{"text": "abc"}]}}]}, 5),
        ({"requests": [{"content": "ab"}, {"content": "c"}]}, 3 + PER_MESSAGE),
        ({"content": "abc", "title": "ab", "output_dimensionality": 4}, 5),
    ],
)
def test_embeddings_count_their_contents_and_have_no_output(body, tokens):
    request = Request({"model": "gemini-embedding-001", **body}, url=EMBED_CONTENT)

    assert bound(request) == (PER_REQUEST + PER_MESSAGE + tokens, True)
    assert bound_output_tokens(request, 2048) == (0, True)


@given(st.text())
def test_no_text_anywhere_in_a_body_goes_uncounted(text):
    size = len(text.encode("utf-8", "surrogatepass"))
    part = {"text": text}
    turn = {"role": "user", "parts": [part]}
    declared = {"functionDeclarations": [{"name": text}]}
    bodies = [
        {"contents": text}, {"contents": [text]}, {"contents": part}, {"contents": turn},
        {"contents": [turn]}, {"contents": [], "systemInstruction": turn},
        {"contents": [], "system_instruction": part}, {"contents": [], "tools": [declared]},
        {"contents": [{"parts": [{"functionCall": {"args": {"a": text}}}]}]},
        {"contents": [{"parts": [{"functionResponse": part}]}]},
        {"contents": [], "generationConfig": {"responseSchema": part}},
        {"contents": [], "toolConfig": part}, {"contents": [], "anything": text},
        {"content": turn}, {"content": part, "title": text}, {"requests": [{"content": turn}]},
        {"requests": [text]},
    ]  # fmt: skip
    for body in bodies:
        for url in GEMINI:
            assert bound_input_tokens(url, {"model": "m", **body}).tokens >= size, body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["parts", "text", "inlineData"]), inner
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_nothing_breaks_quoting_or_reading(body):
    book = PriceBook({"m": "1/2"})
    for name in ("contents", "content", "requests", "tools", "generationConfig"):
        for url in GEMINI:
            request = Request({"model": "m", name: body}, url=url)
            book.tariff().quote(request)
            book.tariff().quote(with_output_cap(prompt_only(request), 5))
    extract_usage({"usageMetadata": body})
    assert isinstance(Response({"candidates": body}).text, str)


# Caps


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, 65_536),
        ({"generationConfig": {}}, 65_536),
        ({"generationConfig": {"maxOutputTokens": 50}}, 50),
        ({"generation_config": {"max_output_tokens": 50}}, 50),
        ({"generationConfig": {"maxOutputTokens": 50, "candidateCount": 3}}, 150),
        ({"generationConfig": {"maxOutputTokens": 50, "candidate_count": 3}}, 150),
        ({"generationConfig": {"maxOutputTokens": 1_000_000}}, 65_536),
        ({"generationConfig": {"maxOutputTokens": "50"}}, 50),
        ({"generationConfig": {"max_tokens": 50, "n": 3}}, 65_536),  # not its names
        ({"maxOutputTokens": 50, "max_tokens": 50}, 65_536),  # not their place
        ({"generationConfig": "nonsense"}, 65_536),
    ],
)
def test_the_cap_is_in_the_generation_config_and_thoughts_count_against_it(fields, output):
    assert bound_output_tokens(generate(**fields), 1_048_576) == (output, True)


@pytest.mark.parametrize(
    ("model", "most"),
    [("gemini-2.5-pro", 65_536), ("gemini-3.5-flash", 65_536), ("gemini-4-argon", 65_536),
     ("gemini-2.0-flash", 8_192), ("google/gemini-2.5-flash-lite", 65_536), ("gemma-3", None)],
)  # fmt: skip
def test_the_most_that_a_model_writes_is_known(model, most):
    assert bound_output_tokens(generate(model=model), None).tokens == (most or 16_384)
    assert most is None or most in MAX_OUTPUT.values()


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({}, {"maxOutputTokens": 77}),
        ({"generationConfig": {"temperature": 1}}, {"temperature": 1, "maxOutputTokens": 77}),
        ({"generation_config": {"temperature": 1}}, {"temperature": 1, "maxOutputTokens": 77}),
        ({"generationConfig": {"maxOutputTokens": 5}}, None),
        ({"generationConfig": {"max_output_tokens": 5}}, None),
        ({"generation_config": {"max_output_tokens": 5}}, None),
    ],
)
def test_a_cap_is_written_where_there_is_none(fields, config):
    request = generate(**fields)
    capped = with_output_cap(request, 77)

    if config is None:
        assert capped is request
    else:
        assert capped.body == {**generate().body, "generationConfig": config}
        assert stated_output_tokens(capped) == 77
        assert request.body == generate(**fields).body


def test_a_prompt_alone_has_an_output_of_one_token():
    config = {"maxOutputTokens": 500, "candidateCount": 4, "temperature": 1}

    alone = prompt_only(generate(generationConfig=config))

    assert stated_output_tokens(alone) == 1
    assert alone.body["generationConfig"]["temperature"] == 1
    assert stated_output_tokens(prompt_only(generate())) == 1


def test_the_tier_that_answered_is_billed():
    book = PriceBook(now_ms=lambda: 1_795_000_000_000)
    tariff, usage = book.tariff("google"), Usage(1000, 1000)
    request = generate(model="gemini-3.8-flash-tts", serviceTier="flex")
    standard = Answer({"usageMetadata": {"serviceTier": "standard"}}, usage=usage)

    flex = Answer({"usageMetadata": {"serviceTier": "SERVICE_TIER_FLEX"}}, usage=usage)
    assert tariff.cost_nusd(request, flex) < tariff.cost_nusd(request, standard)
    assert tariff.cost_nusd(request, Answer({}, usage=usage)) == tariff.cost_nusd(request, standard)


# Streams


def chunk(*candidates, **more):
    return StreamEvent(json.dumps({"candidates": list(candidates), **more}))


def said(*listed, end=None, **more):
    ended = {} if end is None else {"finishReason": end}
    return {"content": {"role": "model", "parts": list(listed)}, **ended, **more}


SO_FAR = {"promptTokenCount": 9, "totalTokenCount": 9}
USAGE = {"promptTokenCount": 9, "candidatesTokenCount": 5, "totalTokenCount": 14}


def put_together(events):
    assembly = Assembly(generate(stream=True))
    shown = [assembly.take(event) for event in events]
    assert shown == list(events)  # all of it is the reader's business
    return assembly


def test_chunks_become_the_answer_without_a_stream():
    assembly = put_together([
        chunk(said({"text": "Hm", "thought": True}), usageMetadata=SO_FAR, responseId="r"),
        chunk(said({"text": "!", "thought": True}), usageMetadata=SO_FAR, responseId="r"),
        chunk(said({"text": "Hel"}), usageMetadata=SO_FAR, responseId="r"),
        chunk(said({"text": "lo"}), usageMetadata=SO_FAR),
        chunk(said({"text": "", "thoughtSignature": "Eq"}), usageMetadata=SO_FAR),
        chunk(said({"functionCall": {"name": "f"}}, end="STOP", index=0),
              usageMetadata=USAGE, modelVersion="m"),
    ])  # fmt: skip

    assert assembly.is_complete
    assert assembly.whole() == {
        "candidates": [{
            "content": {"role": "model", "parts": [
                {"text": "Hm!", "thought": True}, {"text": "Hello"},
                {"text": "", "thoughtSignature": "Eq"}, {"functionCall": {"name": "f"}}]},
            "finishReason": "STOP", "index": 0,
        }],
        "usageMetadata": USAGE, "responseId": "r", "modelVersion": "m",
    }  # fmt: skip
    assert Response(assembly.whole()).text == "Hello"


def test_candidates_are_told_apart_and_what_is_said_of_them_kept():
    quoted = {"citationSources": [{"uri": "a"}]}
    assembly = put_together([
        chunk(said({"text": "a1"}, index=0, citationMetadata=quoted), said({"text": "b1"}, index=1),
              usageMetadata=SO_FAR),
        chunk(said({"text": "b2"}, index=1, end="MAX_TOKENS"), usageMetadata=SO_FAR),
        chunk(said({"text": "a2"}, index=0, end="STOP", citationMetadata=quoted),
              usageMetadata=USAGE),
    ])  # fmt: skip

    first, second = assembly.whole()["candidates"]
    assert first["content"]["parts"] == [{"text": "a1a2"}]
    assert second["content"]["parts"] == [{"text": "b1b2"}]
    assert first["citationMetadata"] == {"citationSources": [{"uri": "a"}, {"uri": "a"}]}
    assert assembly.is_complete


@pytest.mark.parametrize(
    ("events", "is_complete"),
    [
        ([chunk(said({"text": "x"}), usageMetadata=USAGE)], False),
        ([chunk(said({"text": "x"}, end="STOP"))], False),
        # What was told before the end is not all of it.
        ([chunk(said({"text": "x"}), usageMetadata=SO_FAR), chunk(said(end="STOP"))], False),
        ([chunk(said({"text": "x"}, end="STOP"), usageMetadata=USAGE)], True),
        ([chunk(said({"text": "x"}, end="STOP")), chunk(usageMetadata=USAGE)], True),
        ([chunk({"finishReason": "SAFETY"}, usageMetadata=USAGE)], True),
        (
            [chunk(said(end="STOP"), usageMetadata=USAGE), chunk({"groundingMetadata": {"a": 1}})],
            True,
        ),
        ([chunk(said(end="STOP"), said({"text": "x"}, index=1), usageMetadata=USAGE)], False),
        ([StreamEvent('{"promptFeedback": {"blockReason": "SAFETY"}}')], True),
        ([StreamEvent('{"promptFeedback": {}, "usageMetadata": {"promptTokenCount": 1}}')], False),
        ([StreamEvent('{"candidates": [7, {"content": 5}], "usageMetadata": 3}')], False),
        ([StreamEvent('{"candidates": {"content": {"parts": 3}}}')], False),
        ([StreamEvent('{"candidates": [{"index": [], "content": {"parts": [1, 2]}}]}')], False),
    ],
)
def test_a_stream_is_complete_with_its_end_and_its_usage(events, is_complete):
    assert put_together(events).is_complete is is_complete


@pytest.mark.anyio
@pytest.mark.parametrize("code", [(429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE"), (500, "INTERNAL")])  # fmt: skip
async def test_an_error_as_the_first_event_is_like_an_error_status(code):
    error = {"error": {"code": code[0], "status": code[1], "message": "no"}}

    async def post(take):
        await take(f"data: {json.dumps(error)}\r\n\r\n".encode())
        return 200, {}, b""

    async def emit(event):
        raise AssertionError("nobody's business")

    with pytest.raises(Exception, match="no") as caught:
        await read_stream(generate(), post, emit)

    assert caught.value.status == code[0]
    assert caught.value.is_billed is (False if code[0] == 429 else None)
    assert isinstance(caught.value, RateLimited) is (code[0] == 429)


# In the scheduler


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_ledger_has_what_the_provider_billed(is_stream):
    async def main():
        provider = Simulated(output_tokens=40)
        config = {"maxOutputTokens": 60, "candidateCount": 2}
        request = generate("Tell me", model="sim-reasoning", generationConfig=config)
        budget = Budget("team", "$1")
        prices = {"sim-reasoning": "1.10/4.40"}
        async with Scheduler(
            providers=provider, budgets=budget, clock=VirtualClock(), prices=prices
        ) as s:
            if is_stream:
                async with s.stream(request) as events:
                    seen = [event.json() async for event in events]
                    response = await events.response()
                assert all(each["candidates"] for each in seen)
            else:
                response = await s.run(request)
            (kept,) = s.stats().budgets
        assert response.usage == Usage(2, 80, reasoning_tokens=40)
        assert len(response.text.split()) == 20
        assert kept.caps[0].posted == response.cost_nusd == provider.billed_nusd > 0
        assert not response.is_estimated

    run(main())


def test_an_embedding_is_charged_at_its_ceiling():
    async def main():
        provider = Simulated()
        body = {
            "model": "sim-embedding",
            "requests": [{"content": {"parts": [{"text": "a" * 40}]}}],
        }
        async with Scheduler(
            providers=provider, clock=VirtualClock(), prices={"sim-embedding": "0.02/0"}
        ) as s:
            response = await s.run(Request(body, url=EMBED_CONTENT))
        assert response.is_estimated
        assert response.cost_nusd >= provider.billed_nusd > 0

    run(main())
