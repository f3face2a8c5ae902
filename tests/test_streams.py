"""Streams: events from bytes, a whole from events, and what a reader who leaves, or is left, pays."""

import asyncio
import gc
import itertools
import json
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import (
    Budget,
    OpenAI,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    Request,
    RequestState,
    Scheduler,
    Simulated,
    StreamBroken,
    StreamEvent,
)
from scheduler.core.stream import ROOM
from scheduler.providers.sse import EventParser
from scheduler.providers.streaming import Assembly, read_stream, read_whole, streamed_body
from scheduler.request import CHAT, MESSAGES, RESPONSES
from scheduler.testing import VirtualClock, run
from tests.warm import running_server

PRICES = {"sim-small": "0.15/0.60"}


# Bytes to events

TEXT = (
    "\ufeff: hello\r\nevent: ping\rdata: {\"a\": 1}\r\r\ndata: zwölf\ndata:two\nid: 7\nretry: 5\n\n"
    "data\n\n: OPENROUTER PROCESSING\n\n\ndata: last\r\n\r\ndata: never ended"
).encode()  # fmt: skip
EVENTS = [
    StreamEvent('{"a": 1}', "ping"), StreamEvent("zwölf\ntwo"), StreamEvent(""), StreamEvent("last"),
]  # fmt: skip


def parse(pieces):
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_events_are_read_by_the_standard():
    assert parse([TEXT]) == EVENTS


@settings(max_examples=300)
@given(st.lists(st.integers(0, len(TEXT)), max_size=40))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts):
    places = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(places)]

    assert parse(pieces) == EVENTS


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_no_bytes_can_break_it(pieces):
    assert parse(pieces) == parse([b"".join(pieces)])


def test_an_event_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr("scheduler.providers.sse.MAX_EVENT_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        parse([b"data: x\n"] + [b"data: " + b"y" * 99 + b"\n"] * 20)


# Events to a whole


def put_together(events, request=None):
    assembly = Assembly(request or Request({"model": "m"}))
    shown = [assembly.take(each) for each in events]
    return assembly, [each for each in shown if each is not None]


def chunk(choices, **more):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    return StreamEvent(json.dumps({**head, "choices": choices, **more}))


def delta(place=0, end=None, **fields):
    return {"index": place, "delta": fields, "finish_reason": end}


USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def test_a_chat_with_tools_comes_out_as_without_a_stream():
    call = {"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": ""}}  # fmt: skip
    pieces = ['{"ci', 'ty": "Ath', 'ens"}']
    events = [
        chunk([delta(role="assistant", content=None, tool_calls=[call])], usage=None),
        *(chunk([delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])], usage=None)
          for piece in pieces),
        chunk([delta(end="tool_calls")], usage=None),
        chunk([], usage=USAGE),
        StreamEvent("[DONE]"),
    ]  # fmt: skip
    assembly, shown = put_together(events)

    assert assembly.is_complete
    whole = assembly.whole()
    assert whole["object"] == "chat.completion"
    assert whole["usage"] == USAGE
    assert whole["choices"] == [{
        "index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": None, "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Athens"}'}}]},
    }]  # fmt: skip
    assert len(shown) == 5
    assert not any("usage" in each.json() for each in shown)


def test_several_choices_refusals_and_reasoning_are_told_apart():
    events = [
        chunk([delta(1, content="b1"), delta(0, content="a1", reasoning_content="hm")]),
        chunk([delta(0, content="a2", reasoning_content="!"), delta(1, refusal="no")]),
        chunk([delta(0, "stop"), delta(1, "stop")]),
        StreamEvent("[DONE]"),
    ]
    whole = put_together(events)[0].whole()

    first, second = (each["message"] for each in whole["choices"])
    assert (first["content"], first["reasoning_content"]) == ("a1a2", "hm!")
    assert (second["content"], second["refusal"]) == ("b1", "no")


def test_usage_with_every_chunk_is_not_the_last_word():
    first = chunk([delta(0, content="a")], usage={**USAGE, "completion_tokens": 1})
    ended = chunk([delta(0, "stop")], usage={**USAGE, "completion_tokens": 1})
    assembly, _ = put_together([first, ended])
    assert not assembly.is_complete  # of two answers the second may not have begun

    assembly, _ = put_together([first, ended, chunk([], usage=USAGE)])
    assert assembly.is_complete


def test_logprobs_are_collected_and_empty_repetitions_take_nothing_away():
    call = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{"}}
    again = {"index": 0, "id": "", "function": {"name": "", "arguments": "}"}}
    probs = [{"index": 0, "delta": {"tool_calls": [each]}, "logprobs": told}
             for each, told in ((call, None), (again, {"content": [{"token": "a"}]}),
                                ({"index": 0}, {"content": []}))]  # fmt: skip
    assembly, _ = put_together([chunk([each]) for each in probs])

    (choice,) = assembly.whole()["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}]}
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}]  # fmt: skip


def test_who_asked_for_the_usage_sees_it():
    request = Request({"model": "m", "stream_options": {"include_usage": True}})
    _, shown = put_together(
        [chunk([delta(content="x")], usage=None), chunk([], usage=USAGE)], request
    )

    assert shown[-1].json()["usage"] == USAGE
    assert streamed_body(request)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("url", "given_options", "sent"),
    [
        (CHAT, None, {"include_usage": True}),
        (
            CHAT,
            {"include_obfuscation": False},
            {"include_obfuscation": False, "include_usage": True},
        ),
        (RESPONSES, None, None),
        (MESSAGES, None, None),
    ],
)
def test_the_usage_is_asked_for_where_it_has_to_be(url, given_options, sent):
    body = {"model": "m"} | ({} if given_options is None else {"stream_options": given_options})

    assert streamed_body(Request(body, url=url)).get("stream_options") == sent


def test_a_response_is_the_one_in_its_last_event():
    whole = {"id": "resp_1", "object": "response", "usage": {"input_tokens": 3, "output_tokens": 4}}
    events = [
        StreamEvent('{"type":"response.created","response":{"id":"resp_1"}}', "response.created"),
        StreamEvent(
            '{"type":"response.output_text.delta","delta":"hi"}', "response.output_text.delta"
        ),
        StreamEvent(
            json.dumps({"type": "response.completed", "response": whole}), "response.completed"
        ),
    ]
    assembly, shown = put_together(events, Request({}, url=RESPONSES))

    assert (assembly.is_complete, assembly.whole(), shown) == (True, whole, events)


def anthropic(*parts):
    return [StreamEvent(json.dumps(each), each["type"]) for each in parts]


MESSAGE = {"type": "message_start", "message": {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
    "content": [], "stop_reason": None, "usage": {"input_tokens": 25, "output_tokens": 1}}}  # fmt: skip


def test_anthropics_blocks_become_a_message():
    events = anthropic(
        MESSAGE,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": "content_block_delta", "index": 0,
         "delta": {"type": "signature_delta", "signature": "Eq"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2,
         "content_block": {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}},
        {"type": "content_block_delta", "index": 2,
         "delta": {"type": "input_json_delta", "partial_json": '{"city": "Ath'}},
        {"type": "content_block_delta", "index": 2,
         "delta": {"type": "input_json_delta", "partial_json": 'ens"}'}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 89}},
        {"type": "message_stop"},
    )  # fmt: skip
    assembly, shown = put_together(events, Request({}, url=MESSAGES))

    assert assembly.is_complete
    whole = assembly.whole()
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": "Eq"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Athens"}},
    ]
    assert whole["usage"] == {"input_tokens": 25, "output_tokens": 89}
    assert whole["stop_reason"] == "tool_use"
    assert len(shown) == len(events)


def test_an_error_in_the_middle_is_told_and_completes_nothing():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assembly, _ = put_together(anthropic(MESSAGE, error), Request({}, url=MESSAGES))
    assert (assembly.error, assembly.is_complete) == ("overloaded_error: Overloaded", False)

    openai = StreamEvent('{"error": {"message": "boom", "type": "server_error"}}')
    assembly, _ = put_together([chunk([delta(content="x")]), openai])
    assert (assembly.error, assembly.is_complete) == ("server_error: boom", False)


@pytest.mark.parametrize(
    "data",
    [
        '{"choices": [{"index": [], "delta": {"content": "x"}}]}',
        "nonsense",
        "[1]",
        "7",
        '{"choices": [7, {"delta": 5}]}',
        "{}",
    ],
)
def test_odd_events_are_handed_on_and_harm_nothing(data):
    assembly, shown = put_together([StreamEvent(data)])

    assert not assembly.is_complete
    assert shown == [StreamEvent(data)]


async def _read_all(text, emit=None):
    async def post(take):
        await take(text.encode())
        return 200, {"x-request-id": "req-1"}, b""

    seen = []

    async def note(event):
        seen.append(event)

    return await read_stream(Request({"model": "m"}), post, emit or note), seen


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "kind", "is_billed", "is_retryable"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, ProviderOverloaded, None, True),
        ({"type": "rate_limit_error", "message": "slow down"}, RateLimited, False, True),
        ({"type": "api_error", "message": "boom"}, ProviderOverloaded, None, True),
    ],
)
async def test_an_error_as_the_first_event_is_like_an_error_status(
    error, kind, is_billed, is_retryable
):
    with pytest.raises(kind) as caught:
        await _read_all(f"event: error\ndata: {json.dumps({'type': 'error', 'error': error})}\n\n")

    assert (caught.value.is_billed, caught.value.is_retryable) == (is_billed, is_retryable)


@pytest.mark.anyio
async def test_what_broke_off_keeps_the_providers_id_for_it():
    with pytest.raises(StreamBroken, match="ended before its end") as caught:
        await _read_all(f"data: {chunk([delta(content='x')]).data}\n\n")

    assert (caught.value.request_id, caught.value.events) == ("req-1", 1)


@pytest.mark.anyio
async def test_the_first_event_of_a_stream_has_a_time_and_a_whole_answer_has_none():
    text = (
        'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
        "data: [DONE]\n\n"
    )
    before_s = time.monotonic()
    answer, seen = await _read_all(": still here\n\n" + text)
    assert seen
    assert before_s <= answer.first_s <= time.monotonic()

    whole = read_whole(Request({"model": "m"}), 200, {}, text.encode())
    assert whole.first_s is None


# In the scheduler


def world(main, limit="$1", **options):
    async def inside():
        provider = Simulated(latency=10, output_tokens=40, **options)
        budget = Budget("team", limit)
        async with Scheduler(providers=provider, budgets=budget, clock=VirtualClock()) as s:
            return await main(s, provider)

    return run(inside())


def ask(**options):
    return Request.chat("sim-small", "Tell me", max_tokens=60, **options)


def money(s):
    (budget,) = s.stats().budgets
    return budget.caps[0].posted, budget.caps[0].suspense


def words(events):
    return "".join(e.json()["choices"][0]["delta"].get("content", "") for e in events)


def test_events_come_as_they_are_made_and_the_whole_is_settled_by_its_usage():
    async def main(s, provider):
        began_s, times, seen = asyncio.get_running_loop().time(), [], []
        async with s.stream(ask()) as events:
            assert events.state in (RequestState.QUEUED, RequestState.RUNNING)
            async for event in events:
                times.append(asyncio.get_running_loop().time() - began_s)
                seen.append(event)
            response = await events.response()
        assert times[0] < 2 < 8 < times[-1]
        assert words(seen) == response.text
        assert response.cost_nusd == provider.billed_nusd > 0
        assert not response.is_estimated
        assert not any("usage" in event.json() for event in seen)
        return money(s) == (provider.billed_nusd, 0)

    assert world(main)


def test_run_streams_too():
    async def main(s, provider):
        events = await s.run(ask(), stream=True)
        return words([event async for event in events]) == (await events.response()).text

    assert world(main)


def test_whoever_wants_only_the_whole_need_not_read():
    async def main(s, provider):
        stream = s.stream(ask())
        return (await stream.response()).usage.output_tokens

    assert world(main) == 40


def test_a_stream_waits_for_money_like_any_request():
    async def main(s, provider):
        stream = s.stream(ask())
        await asyncio.sleep(5)
        assert stream.parked is not None
        await s.set_limit("team", "$1")
        return len([event async for event in stream])

    assert world(main, limit="$0.000001") > 10


def test_leaving_early_keeps_counting_what_it_reserved():
    async def main(s, provider):
        async with s.stream(ask()) as events:
            async for _ in events:
                break
        await asyncio.sleep(1)
        posted, suspense = money(s)
        assert (posted, s.stats().running) == (0, 0)
        assert suspense >= provider.billed_nusd > 0
        (unknown,) = await s.suspended()
        return unknown.why

    assert world(main) == "cancelled after it was sent"


def test_a_stream_that_is_dropped_holds_nothing_up():
    async def main(s, provider):
        async for _ in s.stream(ask()):
            break
        gc.collect()
        await asyncio.sleep(1)
        return s.stats().running

    assert world(main) == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [("stream_cut", "connection was reset"), ("stream_error", "ended the stream with an error")],
)
def test_a_stream_that_breaks_off_is_never_free_and_never_begun_anew(fault, said):
    async def main(s, provider):
        seen = []

        async def read():
            async for event in s.stream(ask()):
                seen.append(event)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(StreamBroken, match=said) as caught:
            await read()
        assert seen
        assert (caught.value.attempts, provider.bill.received) == (1, 1)
        posted, suspense = money(s)
        return posted == 0 and suspense >= provider.billed_nusd > 0

    assert world(main, fail={fault: 1.0})


def test_before_the_first_event_it_is_tried_again_like_any_other():
    failures = iter(["503", "429"])

    async def main(s, provider):
        stream = s.stream(ask())
        seen = [event async for event in stream]
        return len(seen) > 10, (await stream.response()).attempts

    assert world(main, fail=lambda *_: next(failures, None)) == (True, 2)


def test_a_slow_reader_holds_the_stream_back():
    async def main(s, provider):
        async with s.stream(ask(n=5)) as events:
            await asyncio.sleep(100)
            assert s.stats().running == 1  # more has come than there is room for
            assert len(events._pipe._events) == ROOM
            return len([event async for event in events])

    assert world(main) > 2 * ROOM


def test_a_refused_request_is_refused_from_the_iteration():
    async def main(s, provider):
        with pytest.raises(ProviderRefused):
            async for _ in s.stream(ask(), on_exceeded="wait"):
                pass

    world(main, fail={"400": 1.0})


def test_a_key_that_was_answered_gives_no_events_but_the_whole():
    async def main(s, provider):
        first = await s.stream(ask(key="a")).response()
        again = s.stream(ask(key="a"))
        assert [event async for event in again] == []
        return (await again.response()).body == first.body

    assert world(main)


# Over HTTP, with both engines


@pytest.fixture(scope="module")
def server():
    with running_server("--latency", "100ms", "--output-tokens", "200") as url:
        yield url


@pytest.fixture(params=["quick", "httpx"])
async def provider(request, server):
    client = httpx.AsyncClient() if request.param == "httpx" else None
    made = OpenAI(base_url=server, api_key="sk-test-12345678", client=client)
    yield made
    await made.aclose()
    if client is not None:
        await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("make", [Request.chat, Request.responses])
async def test_real_bytes_over_a_real_connection(provider, make):
    cap = "max_tokens" if make == Request.chat else "max_output_tokens"
    request = make("sim-small", "hello", **{cap: 90})
    async with (
        Scheduler(providers=provider, prices=PRICES, budgets=Budget("t", "$1")) as s,
        s.stream(request) as events,
    ):
        seen = [event async for event in events]
        response = await events.response()

    assert len(seen) > 5
    if make == Request.chat:
        assert words(seen) == response.text
    else:
        assert "".join(each.json().get("delta", "") for each in seen) == response.text
    assert response.usage.output_tokens == 90
    assert response.cost_nusd > 0
    assert not response.is_estimated


@pytest.mark.anyio
async def test_an_error_status_before_a_stream_is_read_like_any(provider):
    with pytest.raises(ProviderRefused, match="model"):
        await provider.stream(Request({"messages": [{"role": "user", "content": "x"}]}), None)


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["quick", "httpx"])
@pytest.mark.parametrize("fault", ["stream_cut", "stream_error"])
async def test_what_breaks_off_over_http_is_unknown(engine, fault):
    with running_server("--fail", f"{fault}=1", "--output-tokens", "200") as url:
        client = httpx.AsyncClient() if engine == "httpx" else None
        provider, seen = OpenAI(base_url=url, api_key="sk-test", client=client), []

        async def emit(event):
            seen.append(event)

        with pytest.raises(StreamBroken) as caught:
            await provider.stream(Request.chat("sim-small", "hi", max_tokens=90), emit)
        await provider.aclose()
        if client is not None:
            await client.aclose()

    assert seen
    assert (caught.value.is_billed, caught.value.is_retryable) == (None, False)
    assert caught.value.request_id is None or caught.value.request_id.startswith("req-sim")
