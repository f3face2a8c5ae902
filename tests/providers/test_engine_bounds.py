"""What no server can do to us, over real sockets and with both engines: drip for ever, odd heads."""

import asyncio
import contextlib
import json

import anyio
import httpx
import pytest

from scheduler.errors import (
    CallTimeout,
    ConfigError,
    ProviderOverloaded,
    RateLimited,
    StreamBroken,
    TransportFailed,
)
from scheduler.providers.openai import OpenAI
from scheduler.providers.patience import Patience
from scheduler.request import Request
from scheduler.testing import run
from tests.providers.test_openai import listening

pytestmark = pytest.mark.anyio
engines = pytest.mark.parametrize("engine", ["quick", "httpx"])

CHAT = Request.chat("gpt-4o-mini", "Say hello", max_tokens=20)
STREAMED = Request({**CHAT.body, "stream": True})
GOOD = {
    "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1},
}
BODY = json.dumps(GOOD).encode()
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
END = (b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], '
       b'"usage": {"prompt_tokens": 9, "completion_tokens": 5}}\n\ndata: [DONE]\n\n')  # fmt: skip
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def asked(engine, handler, **options):
    """A provider whose server is a function of the writer."""

    async def answer(reader, writer):
        try:
            await handler(writer)
        finally:
            writer.close()

    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(listening(answer))
        if engine == "httpx":
            options["client"] = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        provider = OpenAI(base_url=url, **options)
        try:
            yield provider
        finally:
            await provider.aclose()


def drips(first, drop, pause_s=0.01):
    async def handler(writer):
        writer.write(first)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return handler


# Time


@engines
@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (STREAM, b": still here\n\n"),
        (STREAM, b"x"),
        (STREAM, b"\n"),
        (STREAM + EVENT, b": OPENROUTER PROCESSING\n\n"),
        (STREAM, b"event: ping\ndata: {}\n\n"),
        (STREAM, EVENT),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", b" "),
        (b"HTTP/1.1 500 Oops\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n", b"x-more: 1\r\n"),
        (b"", b"H"),
    ],
)
@pytest.mark.parametrize("request_", [CHAT, STREAMED], ids=["whole", "stream"])
async def test_the_timeout_bounds_the_whole_attempt_whatever_drips(engine, first, drop, request_):
    if first == b"":
        first, drop = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", b"{"
    async with asked(engine, drips(first, drop), timeout=0.25) as provider:
        with pytest.raises((CallTimeout, StreamBroken, TransportFailed)) as caught:
            with anyio.fail_after(20):
                await provider.send(request_)

    assert caught.value.is_billed is None


@engines
@pytest.mark.parametrize("drop", [b": still here\n\n", b"x", b"data: "])
async def test_silence_between_events_is_bounded_by_a_limit_of_its_own(engine, drop):
    handler = drips(STREAM + EVENT, drop)
    async with asked(engine, handler, timeout=30, silence_timeout=0.2) as provider:
        with pytest.raises(StreamBroken, match=r"no event for 0\.2 s \(silence_timeout\)"):
            with anyio.fail_after(20):
                await provider.send(STREAMED)


@engines
async def test_events_that_come_slowly_are_no_silence(engine):
    async def handler(writer):
        writer.write(STREAM)
        for _ in range(18):
            writer.write(EVENT)
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.write(END)
        await writer.drain()

    async with asked(engine, handler, silence_timeout=1.5) as provider:
        assert (await provider.send(STREAMED)).usage.total_tokens == 14


def test_a_reader_may_take_their_time():
    async def main():
        patience = Patience(10, 5)
        async with patience:
            await asyncio.sleep(4)
            patience.begin()
            for _ in range(10):
                patience.pause()
                await asyncio.sleep(100)  # the reader
                patience.resume(is_news=True)
                await asyncio.sleep(0.5)
        assert "within 10 s (timeout)" in str(await expired(Patience(10, None), [11]))
        # Until the head comes only the timeout counts, and comments are no news.
        assert "no event for 3 s" in str(await expired(Patience(10, 3), [4], [1] * 5))
        return True

    async def expired(patience, before, after=()):
        with contextlib.suppress(TimeoutError):
            async with patience:
                for pause_s in before:
                    await asyncio.sleep(pause_s)
                patience.begin()
                for pause_s in after:
                    await asyncio.sleep(pause_s)
                    patience.pause()
                    patience.resume(is_news=False)
        assert patience.has_ended
        return patience.error()

    assert run(main())


def test_no_silence_at_all_is_refused_and_none_is_no_limit():
    with pytest.raises(ConfigError, match="silence_timeout"):
        OpenAI(api_key="sk-12345678", silence_timeout=0)
    OpenAI(api_key="sk-12345678", silence_timeout=None)


# Heads


def answers(status, head, body=BODY, kind=b"application/json"):
    async def handler(writer):
        writer.write(
            b"HTTP/1.1 %s\r\ncontent-type: %s\r\n%sconnection: close\r\n\r\n%s"
            % (status, kind, head, body)
        )
        await writer.drain()

    return handler


ODD = [
    b"x-region: M\xc3\xbcnchen\r\n",
    b"x-region: M\xfcnchen\r\n",
    b"x-request-id: \xff\xfe\r\n",
    b"x-ratelimit-limit-requests: \xb2\r\nx-ratelimit-remaining-requests: 1\r\n",
    b"retry-after: \xb2\r\n",
    b"set-cookie: a\r\nset-cookie: \xe9\r\nset-cookie: b\r\n",
    b"x-empty:\r\nx-twice: a\r\nx-twice: b\r\n",
]


@engines
@pytest.mark.parametrize("head", ODD)
async def test_no_header_loses_an_answer_or_an_error(engine, head):
    body = b"%s%s" % (head, b"content-length: %d\r\n" % len(BODY))
    async with asked(engine, answers(b"200 OK", body)) as provider:
        assert (await provider.send(CHAT)).body == GOOD
    async with asked(
        engine, answers(b"200 OK", head, EVENT + END, b"text/event-stream")
    ) as provider:
        assert (await provider.send(STREAMED)).usage.total_tokens == 14
    for status, kind in ((b"429 Slow", RateLimited), (b"503 Busy", ProviderOverloaded)):
        error = b'{"error": {"message": "later"}}'
        async with asked(engine, answers(status, head + b"x-other: 1\r\n", error)) as provider:
            with pytest.raises(kind, match="later") as caught:
                await provider.send(CHAT)
        assert caught.value.is_billed is False


@engines
async def test_a_header_beside_an_odd_one_is_still_read(engine):
    head = b"x-region: M\xfcnchen\r\nretry-after: 7\r\nx-request-id: req-1\r\n"
    async with asked(engine, answers(b"429 Slow", head, b"{}")) as provider:
        with pytest.raises(RateLimited) as caught:
            await provider.send(CHAT)
    assert caught.value.retry_after_ms == 7000

    async with asked(engine, answers(b"200 OK", head)) as provider:
        assert (await provider.send(CHAT)).request_id == "req-1"


@engines
@pytest.mark.parametrize("kind", [b"text/plain", b"text/event-stream", b"", b"\xff"])
async def test_a_wrong_content_type_loses_nothing(engine, kind):
    async with asked(engine, answers(b"200 OK", b"", BODY, kind)) as provider:
        assert (await provider.send(CHAT)).body == GOOD
        assert (await provider.send(STREAMED)).body == GOOD
    async with asked(engine, answers(b"200 OK", b"", EVENT + END, kind)) as provider:
        assert (await provider.send(CHAT)).usage.total_tokens == 14
        assert (await provider.send(STREAMED)).usage.total_tokens == 14


@engines
async def test_a_broken_encoding_of_a_paid_answer_is_unknown(engine):
    head = b"content-encoding: gzip\r\n"
    for request in (CHAT, STREAMED):
        async with asked(engine, answers(b"200 OK", head)) as provider:
            with pytest.raises(TransportFailed) as caught:
                await provider.send(request)
        assert caught.value.is_billed is None
