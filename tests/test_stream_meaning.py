"""What a stream amounts to for money: whole, broken, refused; and by which usage it is posted."""

import asyncio
import json

import httpx
import pytest

from scheduler import (
    Budget,
    OpenAI,
    Provider,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    Request,
    Scheduler,
    StreamBroken,
)
from scheduler.errors import BadAnswer, CallFailed, TransportFailed
from scheduler.providers.streaming import Transcript, read_stream
from scheduler.request import COMPLETIONS, GENERATE, MESSAGES, RESPONSES
from scheduler.testing import VirtualClock, run

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
CHAT = Request({"model": "m"})
TEXT = Request({"model": "m"}, url=COMPLETIONS)
MESSAGE = Request({"model": "m"}, url=MESSAGES)
RESPONSE = Request({"model": "m"}, url=RESPONSES)
GOOGLE = Request({"model": "m"}, url=GENERATE)


def sse(*events):
    """Bytes of events: dictionaries, texts as they are, or pairs of name and data."""
    parts = []
    for event in events:
        name, data = event if isinstance(event, tuple) else ("", event)
        data = data if isinstance(data, str) else json.dumps(data)
        parts.append((f"event: {name}\n" if name else "") + f"data: {data}\n\n")
    return "".join(parts).encode()


def chunk(text=None, end=None, place=0, **more):
    choice = {"index": place, "delta": {"content": text} if text else {}, "finish_reason": end}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


def last(usage=USAGE):
    return {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage}


async def read(content, request=CHAT, *, breaks=False, as_body=False):
    async def post(take):
        if as_body:
            return 200, {"content-type": "text/plain"}, content
        await take(content)
        if breaks:
            raise TransportFailed("reset")
        return 200, {}, b""

    async def emit(event):
        seen.append(event)

    seen = []
    return await read_stream(request, post, emit)


def outcome(content, request=CHAT, **options):
    async def main():
        try:
            return await read(content, request, **options)
        except CallFailed as error:
            return error

    return asyncio.run(main())


ONE, THREE, END, DONE = chunk("one "), chunk("three"), chunk(end="stop"), "[DONE]"


# Broken


@pytest.mark.parametrize(
    "odd",
    [
        '{"choices": [{"delta": {"content": "two',
        "upstream connect error or disconnect",
        "<html>502</html>",
        "[1, 2]",
        "7",
        {"object": "error", "message": "boom", "type": "InternalServerError", "code": 500},
        {"object": "Error", "message": "boom"},
        {"error": "boom"},
        {"error": {"message": "boom", "code": 502}},
        [{"error": {"code": 503, "message": "boom", "status": "UNAVAILABLE"}}],
        {"detail": "boom"},
        {"message": "boom"},
        {"errors": [{"code": 1, "message": "boom"}]},
        {"type": "error", "message": "boom", "code": "x"},
        ("error", "boom"),
        ("error", {"message": "boom"}),
        {**chunk(end="error"), "error": {"code": 502, "message": "boom"}},
        chunk(end="error"),
        chunk(end="abort"),
    ],
    ids=str,
)
def test_a_stream_with_an_error_in_it_is_broken_whatever_follows(odd):
    error = outcome(sse(ONE, odd, THREE, END, last(), DONE))

    assert type(error) is StreamBroken
    assert error.events == 5
    # Its bill was told with its end all the same.
    assert (error.is_billed, error.used.usage.total_tokens) == (True, 14)
    assert outcome(sse(ONE, odd, THREE, END, DONE)).is_billed is None


@pytest.mark.parametrize(
    ("request_", "events"),
    [
        (CHAT, [ONE, THREE, DONE]),
        (CHAT, [ONE, THREE, last()]),
        (CHAT, [ONE, THREE, last(), DONE]),
        (CHAT, [ONE, chunk("x", "stop"), chunk("y", place=1), DONE]),
        (TEXT, [{"object": "text_completion", "choices": [{"index": 0, "text": "x"}]}, DONE]),
        (CHAT, [DONE]),
        (MESSAGE, [{"type": "message_start", "message": {"id": "a"}}, {"type": "message_stop"}]),
        (RESPONSE, [{"type": "response.created", "response": {"id": "r"}}, DONE]),
        (GOOGLE, [{"candidates": [{"content": {"parts": [{"text": "x"}]}}],
                   "usageMetadata": {"promptTokenCount": 3}}]),
    ],
)  # fmt: skip
def test_whatever_lacks_its_end_is_no_success(request_, events):
    error = outcome(sse(*events), request_)

    assert type(error) is StreamBroken
    assert "ended before its end" in str(error)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_bytes_cut_anywhere_are_never_a_whole_answer(cut):
    whole = sse(ONE, THREE, END)

    assert isinstance(outcome(whole[:-cut]), CallFailed) or cut <= 2  # the last line's end
    assert isinstance(outcome(whole[:-cut], breaks=True), CallFailed)


# Whole


@pytest.mark.parametrize(
    ("request_", "events", "tokens"),
    [
        (CHAT, [ONE, THREE, END, last(), DONE], 14),
        (CHAT, [ONE, THREE, END, last()], 14),  # no mark of the end
        (CHAT, [ONE, THREE, {**END, "usage": USAGE}, DONE], 14),  # Mistral's
        (CHAT, [ONE, {**chunk("three", "stop"), "usage": USAGE}], 14),
        (CHAT, [{"choices": [], "prompt_filter_results": []}, ONE, END, last(), DONE], 14),  # Azure
        (CHAT, [("ping", "x"), "", "null", {}, ONE, END, last(), DONE], 14),
        (CHAT, [ONE, chunk("b", place=1), END, chunk(end="length", place=1), last(), DONE], 14),
        (CHAT, [ONE, last(), END, DONE], 14),  # usage before the reason
        (CHAT, [ONE, THREE, END, DONE], None),
        (CHAT, [ONE, THREE, END], None),
        (CHAT, [{**ONE, "usage": USAGE}, THREE, END, DONE], None),  # what was told then is not all
        (MESSAGE, [{"type": "message_start", "message": {"usage": {"input_tokens": 9}}},
                   {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
                   {"type": "message_stop"}], None),
        (GOOGLE, [{"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}]}],
         None),
    ],
)  # fmt: skip
def test_a_whole_answer_is_posted_by_what_was_told_with_its_end(request_, events, tokens):
    answer = outcome(sse(*events), request_)

    assert not isinstance(answer, CallFailed), answer
    told = answer.usage.total_tokens if answer.usage and answer.has_all_usage else None
    assert told == tokens


@pytest.mark.parametrize(
    ("request_", "events"),
    [
        (CHAT, [ONE, {**END, "usage": USAGE}, last(ZERO), DONE]),
        (CHAT, [ONE, END, last(), last(ZERO), DONE]),
        (CHAT, [ONE, END, last({"prompt_tokens": 9, "completion_tokens": 1}),
                last({"prompt_tokens": 1, "completion_tokens": 5}), DONE]),
        (CHAT, [{**ONE, "usage": USAGE}, END, last({"prompt_tokens": 9, "completion_tokens": None})]),
        (MESSAGE, [{"type": "message_start", "message": {"usage": {"input_tokens": 9}}},
                   {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                    "usage": {"input_tokens": 0, "output_tokens": 5}},
                   {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 0}},
                   {"type": "message_stop"}]),
        (GOOGLE, [{"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
                   "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 5}},
                  {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 0}}]),
        (RESPONSE, [{"type": "response.in_progress",
                     "response": {"usage": {"input_tokens": 9, "output_tokens": 1}}},
                    {"type": "response.completed",
                     "response": {"usage": {"input_tokens": 0, "output_tokens": 5}}}]),
    ],
)  # fmt: skip
def test_usage_is_never_below_what_was_told_before(request_, events):
    usage = outcome(sse(*events), request_).usage

    assert (usage.input_tokens, usage.output_tokens) == (9, 5)


def test_no_output_at_all_beside_a_text_counts_as_not_said():
    assert outcome(sse(ONE, END, last(ZERO), DONE)).usage is None
    assert outcome(sse(ONE, END, last({"prompt_tokens": 9, "completion_tokens": 0}))).usage is None
    nothing = outcome(sse(END, last({"prompt_tokens": 9, "completion_tokens": 0}), DONE))
    assert nothing.usage.total_tokens == 9


def test_a_cost_told_twice_is_the_larger_one():
    told = last({**USAGE, "cost": 0.02})

    assert outcome(sse(ONE, END, told, last({**ZERO, "cost": 0}), DONE)).cost_nusd == 20_000_000


# Other forms


def test_events_under_another_content_type_are_read_all_the_same():
    answer = outcome(sse(ONE, THREE, END, last(), DONE), as_body=True)

    assert answer.body["choices"][0]["message"]["content"] == "one three"
    assert answer.usage.total_tokens == 14


@pytest.mark.parametrize(
    ("body", "kind"),
    [({"error": {"code": 429, "message": "x"}}, RateLimited), ("<html>", BadAnswer)],
)
def test_a_body_without_events_is_judged_as_a_body(body, kind):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    assert type(outcome(content)) is kind
    whole = {"choices": [{"message": {"content": "x"}}], "usage": USAGE}
    assert outcome(json.dumps(whole).encode()).usage.total_tokens == 14


@pytest.mark.parametrize(
    ("event", "kind", "is_billed", "is_retryable"),
    [
        ({"error": {"code": 429, "message": "slow"}}, RateLimited, False, True),
        ({"error": {"code": "400", "message": "bad"}}, ProviderRefused, False, False),
        ({"error": {"code": 403, "message": "flagged"}}, ProviderRefused, False, False),
        ({"error": {"code": 502, "message": "down"}}, ProviderOverloaded, None, True),
        ({"object": "error", "message": "boom", "code": 500}, ProviderOverloaded, None, True),
        (
            {"error": {"code": 502, "message": "down"}, "usage": USAGE},
            ProviderOverloaded,
            True,
            True,
        ),
        ("error", ProviderOverloaded, None, True),
    ],
)
def test_an_error_as_the_first_event_is_one_by_its_code(event, kind, is_billed, is_retryable):
    events = [("error", "boom")] if event == "error" else [event]
    for rest in ([], [DONE]):
        error = outcome(sse(*events, *rest))
        assert type(error) is kind
        assert (error.is_billed, error.is_retryable) == (is_billed, is_retryable)


@pytest.mark.parametrize("status", ["failed", "incomplete"])
def test_a_failed_response_is_no_answer_and_an_incomplete_one_is(status):
    usage = {"input_tokens": 9, "output_tokens": 5}
    response = {"id": "r", "output": [], "status": status, "usage": usage,
                "error": {"code": "server_error", "message": "boom"} if status == "failed" else None}  # fmt: skip
    created = {"type": "response.created", "response": {"id": "r", "usage": None}}
    answer = outcome(sse(created, {"type": f"response.{status}", "response": response}), RESPONSE)

    if status == "incomplete":
        assert answer.usage.total_tokens == 14
        return
    assert type(answer) is StreamBroken
    assert (answer.is_billed, answer.used.usage.total_tokens) == (True, 14)


def test_a_response_that_failed_at_once_is_an_error_by_its_code():
    failed = {"type": "response.failed", "response": {"id": "r", "status": "failed"}}
    assert type(outcome(sse(failed), RESPONSE)) is ProviderOverloaded
    assert type(outcome(sse(ONE, failed, END, DONE))) is StreamBroken

    failed["response"]["error"] = {"code": "rate_limit_exceeded", "message": "slow"}
    assert type(outcome(sse(failed), RESPONSE)) is RateLimited


# In the ledger


class Canned(Provider):
    """Streams these bytes, then breaks off or ends."""

    name = "canned"

    def __init__(self, content, breaks):
        self.content, self.breaks, self.calls = content, breaks, 0

    async def send(self, request):
        raise AssertionError("not streamed")

    async def stream(self, request, emit):
        self.calls += 1
        return await read(self.content, request, breaks=self.breaks)


START = {
    "type": "message_start",
    "message": {"id": "a", "usage": {"input_tokens": 25, "output_tokens": 1}},
}


def settled(content, breaks, prompt="hello", max_tokens=10):
    """Posted and suspended nano-dollars, and the error, of one streamed message."""

    async def main():
        async with Scheduler(
            providers=Canned(content, breaks),
            budgets=Budget("t", "$1"),
            clock=VirtualClock(),
            prices={"m": "1/10"},
        ) as s:
            request = Request.messages("m", prompt, max_tokens=max_tokens)
            try:
                await s.stream(request).response()
                error = None
            except CallFailed as exc:
                error = exc
            (budget,) = s.stats().budgets
            return budget.caps[0].posted, budget.caps[0].suspense, error

    return run(main())


def test_a_broken_message_counts_all_that_it_reserved_never_less_than_it_told():
    # 10 tokens of output may have been written by now: 10 * 10,000 nano-dollars beside the input.
    posted, suspense, error = settled(sse(("message_start", START)), breaks=True)
    assert (posted, suspense >= 100_000 + 25_000) == (0, True)
    assert error.used.usage.input_tokens == 25

    # What was told is above what was reserved: it is posted, with room for the output on top.
    many = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 9_000, "output_tokens": 1}},
    }
    posted, suspense, error = settled(sse(("message_start", many)), breaks=True)
    assert posted >= 9_000_000 + 100_000
    assert (suspense, error.cost_nusd) == (0, posted)


def test_what_was_told_before_the_end_is_the_least_that_is_posted():
    begun = {**START, "message": {"usage": {"input_tokens": 9_000, "output_tokens": 1}}}
    ends = [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ]

    assert settled(sse(begun, *ends), breaks=False)[:2] == (9_000_000 + 10_000, 0)
    posted, suspense, _ = settled(sse(START, *ends), breaks=False)
    assert (posted >= 100_000 + 25_000, suspense) == (True, 0)  # its ceiling


def test_a_message_that_an_error_ended_is_posted_only_by_a_bill_told_with_it():
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    posted, suspense, _ = settled(sse(START, ("error", overloaded)), breaks=False)
    assert (posted, suspense > 0) == (0, True)

    ended = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 4},
    }
    posted, suspense, error = settled(sse(START, ended, ("error", overloaded)), breaks=False)
    assert (posted, suspense) == (25_000 + 40_000, 0)
    assert type(error) is StreamBroken


# Usage is asked for where it is welcome


def streaming(handler, **options):
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return OpenAI(client=client, api_key="sk-12345678", **options)


EVENT_STREAM = {"content-type": "text/event-stream"}
REFUSALS = [
    (422, {"object": "error", "message": {"detail": [{
        "type": "extra_forbidden", "loc": ["body", "stream_options", "include_usage"],
        "msg": "Extra inputs are not permitted"}]}}),
    (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
    (400, {"detail": "stream_options: unexpected field"}),
]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "body"), REFUSALS)
async def test_a_service_that_refuses_the_field_is_asked_without_it_from_then_on(status, body):
    sent = []

    def handler(request):
        sent.append(json.loads(request.content))
        if "stream_options" in sent[-1]:
            return httpx.Response(status, json=body)
        return httpx.Response(200, headers=EVENT_STREAM, content=sse(ONE, {**END, "usage": USAGE}))

    provider = streaming(handler, base_url="https://strict.example/v1")
    for _ in range(2):
        answer = await provider.send(Request({"model": "m", "stream": True}))
        assert answer.usage.total_tokens == 14
    asked = ["stream_options" in each for each in sent]
    assert asked == [True, False, False]


@pytest.mark.anyio
async def test_what_the_caller_asked_for_is_refused_to_the_caller():
    def handler(request):
        return httpx.Response(*REFUSALS[0][:1], json=REFUSALS[0][1])

    provider = streaming(handler, base_url="https://strict.example/v1")
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    with pytest.raises(ProviderRefused):
        await provider.send(Request(body))
    with pytest.raises(ProviderRefused, match="no such model"):
        await streaming(
            lambda _: httpx.Response(422, json={"error": {"message": "no such model"}})
        ).send(Request({"model": "m", "stream": True}))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("base_url", "asks"),
    [("https://api.mistral.ai/v1", False), ("https://api.openai.com/v1", True),
     ("https://api.groq.com/openai/v1", True), ("https://gateway.example/v1", True)],
)  # fmt: skip
async def test_known_services_are_asked_by_the_table(base_url, asks):
    sent = []

    def handler(request):
        sent.append(json.loads(request.content))
        return httpx.Response(200, headers=EVENT_STREAM, content=sse(ONE, {**END, "usage": USAGE}))

    await streaming(handler, base_url=base_url).send(Request({"model": "m", "stream": True}))
    assert ("stream_options" in sent[0]) is asks


def test_the_whole_table_has_a_date_and_a_place():
    from scheduler.providers.known import KNOWN, STREAM_OPTIONS

    assert STREAM_OPTIONS.keys() == KNOWN.keys()
    assert all(why[:2] == "20" and ", " in why for _, why in STREAM_OPTIONS.values())


def test_usage_that_was_told_unasked_is_not_hidden_from_who_reads():
    transcript = Transcript(CHAT, asked_for_usage=False)

    assert len(transcript.feed(sse(ONE, END, last(), DONE))) == 3


TWO = Request({"model": "m", "n": 2})


@pytest.mark.parametrize("breaks", [True, False])
def test_of_several_answers_one_that_never_began_is_missing(breaks):
    content = sse(ONE, END)

    assert isinstance(outcome(content, TWO, breaks=breaks), StreamBroken)
    assert outcome(content, CHAT).body["choices"][0]["message"]["content"] == "one "
    both = outcome(sse(ONE, END, chunk("b", "stop", 1), last(), DONE), TWO)
    assert [each["index"] for each in both.body["choices"]] == [0, 1]
    assert both.has_all_usage


@pytest.mark.parametrize("rest", [[last()], [last(), DONE], [DONE]])
def test_a_service_that_gives_fewer_answers_than_asked_says_that_it_is_through(rest):
    answer = outcome(sse(ONE, END, *rest), TWO)

    assert len(answer.body["choices"]) == 1
    assert answer.has_all_usage is (last() in rest)


@pytest.mark.parametrize(
    "late", [{"error": {"message": "late"}}, ("error", "late"), "no JSON", {"object": "error"}]
)
def test_an_error_after_the_last_word_takes_nothing_back(late):
    answer = outcome(sse(ONE, END, last(), DONE, late))

    assert (answer.usage.output_tokens, answer.has_all_usage) == (5, True)
    assert isinstance(outcome(sse(ONE, late, END, last(), DONE)), StreamBroken)


def test_what_a_first_chunk_leaves_empty_is_taken_from_a_later_one():
    empty = {"id": "", "model": "", "object": "", "choices": [], "prompt_filter_results": []}
    body = outcome(sse(empty, chunk("one ", service_tier="priority"), END, last(), DONE)).body

    assert (body["id"], body["model"], body["object"]) == ("c", "m", "chat.completion")
    assert body["service_tier"] == "priority"
    assert body["prompt_filter_results"] == []


def test_a_message_that_begins_again_tells_no_less_than_before():
    def start(into):
        usage = {"input_tokens": into, "output_tokens": 1}
        return {"type": "message_start", "message": {"role": "assistant", "usage": usage}}

    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
             "usage": {"output_tokens": 5}}  # fmt: skip
    answer = outcome(sse(start(900), start(7), ended, {"type": "message_stop"}), MESSAGE)

    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (900, 5)


def test_searches_of_a_response_count_though_its_last_event_leaves_them_out():
    def item(place, **fields):
        return {"type": "response.output_item.done", "output_index": place, "item": fields}

    response = {"object": "response", "status": "completed", "output": [],
                "usage": {"input_tokens": 9, "output_tokens": 5}}  # fmt: skip
    text = {"type": "message", "content": [{"type": "output_text", "text": "found"}]}
    answer = outcome(
        sse(
            {"type": "response.created", "response": {**response, "status": "in_progress"}},
            item(1, **text),
            item(0, type="web_search_call", action={"type": "search"}),
            {"type": "response.completed", "response": response},
        ),
        RESPONSE,
    )

    assert [each["type"] for each in answer.body["output"]] == ["web_search_call", "message"]
    assert answer.usage.web_searches == 1


def test_searches_that_are_told_in_different_chunks_are_all_counted():
    def part(text, end=None, **grounding):
        candidate = {"index": 0, "content": {"parts": [{"text": text}]}, "finishReason": end}
        usage = {"promptTokenCount": 9, "candidatesTokenCount": 5}
        return {"candidates": [{**candidate, "groundingMetadata": grounding}],
                "usageMetadata": usage}  # fmt: skip

    answer = outcome(
        sse(
            part("a", webSearchQueries=["x", "y"]),
            part("b", webSearchQueries=["y", "z"]),
            part("c", "STOP", searchEntryPoint={}),
        ),
        GOOGLE,
    )
    assert answer.usage.web_searches == 3
