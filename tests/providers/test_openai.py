import asyncio
import contextlib
import gzip
import json
import pickle
import socket
import struct
import sys
import time
import traceback
from email.utils import formatdate

import anyio
import httpx
import pytest

from scheduler.errors import (
    BadAnswer,
    CallFailed,
    CallTimeout,
    ConfigError,
    CredentialsRefused,
    ProviderError,
    ProviderOverloaded,
    ProviderRefused,
    RateLimited,
    TransportFailed,
)
from scheduler.providers import engines
from scheduler.providers.answers import read_answer
from scheduler.providers.openai import OpenAI, is_loopback
from scheduler.providers.simulated.provider import Simulated
from scheduler.providers.simulated.server import serve
from scheduler.request import Request

pytestmark = pytest.mark.anyio

KEY = "sk-proj-Zm9vYmFyYmF6-secret"
CHAT = Request.chat("gpt-4o-mini", "Say hello", max_tokens=20)
GOOD = {
    "id": "chatcmpl-1",
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("KEY", "API_KEY", "BASE_URL", "ORG_ID", "PROJECT_ID"):
        monkeypatch.delenv(f"OPENAI_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def mocked(handler, **options):
    """A provider whose server is a function; and the client to close."""
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return OpenAI(client=client, **{"api_key": KEY, **options}), client


async def ask(handler, request=CHAT, **options):
    provider, client = mocked(handler, **options)
    async with client:
        return await provider.send(request)


# What is sent


async def test_the_body_goes_out_as_it_is_with_the_usual_headers():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json=GOOD, headers={"x-request-id": "req-7"})

    body = {**CHAT.body, "metadata": {"ключ": "ü\u2028"}}
    answer = await ask(
        handler, Request(body), organization="org-1", project="proj-1", headers={"X-Mine": "yes"}
    )

    (request,) = seen
    assert json.loads(request.content) == body
    assert request.method == "POST"
    assert str(request.url) == "https://api.openai.com/v1/chat/completions"
    sent = {
        "authorization": f"Bearer {KEY}",
        "openai-organization": "org-1",
        "openai-project": "proj-1",
        "content-type": "application/json",
        "x-mine": "yes",
    }
    assert sent.items() <= dict(request.headers).items()
    assert answer.body == GOOD
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 1)
    assert answer.request_id == "req-7"


async def test_the_environment_fills_in_what_is_not_given(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.example/openai/v1/")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-2")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-2")
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json=GOOD)

    await ask(handler, api_key=None)

    assert str(seen[0].url) == "https://gateway.example/openai/v1/chat/completions"
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert seen[0].headers["openai-organization"] == "org-2"
    assert seen[0].headers["openai-project"] == "proj-2"


@pytest.mark.parametrize(
    ("base_url", "path", "url"),
    [
        ("https://h/v1", "/v1/responses", "https://h/v1/responses"),
        ("https://h/v1/", "/v1/responses", "https://h/v1/responses"),
        ("https://h/v1beta/openai", "/v1/embeddings", "https://h/v1beta/openai/embeddings"),
        ("https://h", "/v1/responses", "https://h/v1/responses"),
        ("https://h:8443/", "/v1/responses", "https://h:8443/v1/responses"),
        ("http://[::1]:8000/v1", "/v1/completions", "http://[::1]:8000/v1/completions"),
        ("https://h/v1", "/rerank?api-version=1", "https://h/v1/rerank?api-version=1"),
        ("https://h/v1", "/v10/responses", "https://h/v1/v10/responses"),
    ],
)
async def test_an_endpoint_is_put_below_the_base_url(base_url, path, url):
    seen = []

    def handler(request):
        seen.append(str(request.url))
        return httpx.Response(200, json=GOOD)

    await ask(handler, Request(CHAT.body, url=path), base_url=base_url)

    assert seen == [url]


@pytest.mark.parametrize(
    "path",
    ["https://evil.example/v1", "//evil.example/v1", "@evil.example", ".evil.example/v1", "",
     "v1/responses", "/v1/../admin", "/v1/a\r\nhost: evil", "/v1/a b", "/v1\\@evil", "/v1/x#y"],
)  # fmt: skip
async def test_a_request_cannot_send_the_key_elsewhere(path):
    def handler(request):
        raise AssertionError(f"sent to {request.url}")

    with pytest.raises(ProviderRefused, match="nothing was sent") as caught:
        await ask(handler, Request(CHAT.body, url=path), base_url="https://h")

    assert caught.value.is_billed is False


@pytest.mark.parametrize(
    "base_url",
    ["", "api.openai.com/v1", "ftp://h/v1", "https://", "https://h:port/v1", "http://[::1/v1",
     "https://user:pw@h/v1", "https://h/v1?api_key=pw", "https://h/v1#x"],
)  # fmt: skip
def test_a_base_url_that_cannot_be_used_is_refused_at_once(base_url):
    if base_url == "":
        assert OpenAI(base_url=base_url).base_url == "https://api.openai.com/v1"
        return
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAI(base_url=base_url)
    assert "pw" not in str(caught.value).split()


@pytest.mark.parametrize(
    ("base_url", "source"),
    [
        (None, "openai"),
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://api.openai.com.evil.example/v1", "https://api.openai.com.evil.example/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
    ],
)
def test_prices_are_looked_up_by_provider_or_by_base_url(base_url, source):
    assert OpenAI(base_url=base_url).price_source == source


async def test_a_body_that_asks_for_a_stream_is_read_to_its_end_as_a_whole():
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "hi"},
             "finish_reason": "stop"}]}  # fmt: skip
    last = {"id": "c", "model": "m", "choices": [], "usage": GOOD["usage"]}
    events = [f"data: {json.dumps(each)}\n\n" for each in (chunk, last)]

    def handler(request):
        assert json.loads(request.content)["stream_options"] == {"include_usage": True}
        return httpx.Response(200, text="".join(events) + "data: [DONE]\n\n",
                              headers={"content-type": "text/event-stream"})  # fmt: skip

    answer = await ask(handler, Request({**CHAT.body, "stream": True}))

    assert answer.body["choices"][0]["message"]["content"] == "hi"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 1)


async def test_a_body_that_is_no_json_is_refused_and_half_a_surrogate_pair_is_not():
    seen = []

    def handler(request):
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=GOOD)

    body = {**CHAT.body, "user": "\ud83d"}
    await ask(handler, Request(body))
    with pytest.raises(ProviderRefused, match="nothing was sent"):
        await ask(handler, Request({**CHAT.body, "user": object()}))

    assert seen == [body]


# Keys


def test_a_key_is_needed_unless_the_server_is_on_this_machine():
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAI().require_key()

    OpenAI(api_key=KEY).require_key()
    OpenAI(base_url="http://localhost:8000/v1").require_key()
    OpenAI(base_url="http://127.0.0.1:8000").require_key()
    OpenAI(base_url="https://gateway.example/v1", headers={"Api-Key": KEY}).require_key()
    OpenAI(client=httpx.AsyncClient(headers={"Authorization": "Bearer x"})).require_key()
    OpenAI(client=httpx.AsyncClient(auth=("user", "password"))).require_key()


async def test_without_a_key_nothing_is_sent_and_nothing_charged():
    def handler(request):
        raise AssertionError("sent")

    with pytest.raises(CredentialsRefused, match="OPENAI_API_KEY is not set") as caught:
        await ask(handler, api_key=None)

    assert caught.value.is_billed is False


@pytest.mark.parametrize("key", ["sk-ключ", "sk-a\nb", "sk-a b"])
def test_a_key_with_strange_characters_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError) as caught:
        OpenAI(api_key=key)

    assert key not in str(caught.value)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": KEY}})),
        (500, f"<html>you sent Authorization: Bearer {KEY}</html>"),
        (302, ""),
        (200, f"<html>{'x' * 180}{KEY}</html>"),
        (200, json.dumps({"error": {"message": f"no: {KEY}"}})),
        (200, json.dumps([KEY])),
    ],
)
@pytest.mark.parametrize("as_header", [False, True])
async def test_a_key_the_other_side_repeats_is_not_in_the_error(status, body, as_header):
    def handler(request):
        return httpx.Response(status, text=body, headers={"location": f"https://h/?key={KEY}"})

    options = {"api_key": None, "headers": {"api-key": KEY}} if as_header else {}
    with pytest.raises(CallFailed) as caught:
        await ask(handler, **options)

    error = caught.value
    shown = [str(error), repr(error), repr(error.body), str(error.code), repr(vars(error))]
    shown += ["".join(traceback.format_exception(error))]
    assert not any(KEY in text or KEY[:20] in text for text in shown)


def test_no_repr_shows_a_key():
    provider = OpenAI(api_key=KEY, headers={"X-Api-Key": KEY})

    assert KEY not in repr(provider)
    assert KEY not in repr(vars(provider))
    assert "<set>" in repr(provider)


# What comes back


@pytest.mark.parametrize(
    ("status", "body", "error", "code", "is_billed", "is_retryable"),
    [
        (400, {"error": {"message": "bad", "code": "x"}}, ProviderRefused, "x", False, False),
        (400, {"error": {"message": "bad", "type": "t"}}, ProviderRefused, "t", False, False),
        (401, {"error": {"message": "no"}}, CredentialsRefused, "unauthorized", False, False),
        (403, {"detail": "no"}, ProviderRefused, "forbidden", False, False),
        (404, "Not Found", ProviderRefused, "bad_request", False, False),
        (408, {}, ProviderRefused, "bad_request", False, True),
        (409, {}, ProviderRefused, "bad_request", False, True),
        (413, "", ProviderRefused, "bad_request", False, False),
        (422, {"detail": [{"loc": ["body"]}]}, ProviderRefused, "bad_request", False, False),
        (429, {"error": {"message": "slow"}}, RateLimited, "rate_limit_exceeded", False, True),
        (429, "<html>", RateLimited, "rate_limit_exceeded", False, True),
        (429, {"error": {"code": "insufficient_quota"}}, RateLimited, "insufficient_quota", False,
         False),
        (500, {"error": {"message": "oops"}}, ProviderOverloaded, "server_error", None, True),
        (502, "<html>Bad Gateway</html>", ProviderOverloaded, "server_error", None, True),
        (503, {"error": {"message": "busy"}}, ProviderOverloaded, "server_error", False, True),
        (503, "<html>", ProviderOverloaded, "server_error", None, True),
        (503, {"message": "upstream"}, ProviderOverloaded, "server_error", None, True),
        (504, {"error": {"message": "late"}}, ProviderOverloaded, "server_error", None, True),
        (529, {"error": {"type": "overloaded_error"}}, ProviderOverloaded, "overloaded_error",
         False, True),
        (302, "", ProviderRefused, "bad_request", False, False),
        (200, "<!DOCTYPE html><p>Sign in", BadAnswer, "bad_answer", None, False),
        (200, '{"choices": [{"mess', BadAnswer, "bad_answer", None, False),
        (200, "[]", BadAnswer, "bad_answer", None, False),
        (200, '"text"', BadAnswer, "bad_answer", None, False),
        (200, "", BadAnswer, "bad_answer", None, False),
        (204, "", BadAnswer, "bad_answer", None, False),
        (200, "[" * 100_000, BadAnswer, "bad_answer", None, False),
        (200, {"error": {"message": "upstream died"}}, BadAnswer, "bad_answer", None, False),
    ],
)  # fmt: skip
async def test_every_answer_says_whether_it_was_billed(
    status, body, error, code, is_billed, is_retryable
):
    def handler(request):
        if isinstance(body, str):
            return httpx.Response(status, text=body)
        return httpx.Response(status, json=body)

    with pytest.raises(error) as caught:
        await ask(handler)

    found = caught.value
    assert type(found) is error
    assert (found.code, found.is_billed, found.is_retryable) == (code, is_billed, is_retryable)
    if isinstance(found, ProviderError):
        assert found.status == status
    copy = pickle.loads(pickle.dumps(found))
    assert (str(copy), copy.is_billed) == (str(found), is_billed)


@pytest.mark.parametrize(
    "body",
    [
        {**GOOD, "error": None},
        {k: v for k, v in GOOD.items() if k != "usage"},
        {"object": "list", "data": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        {"output": [{"type": "message"}], "error": None, "status": "incomplete"},
        {},
    ],
)
def test_any_other_object_is_an_answer(body):
    assert read_answer(200, {}, json.dumps(body).encode()).body == body


def test_half_a_surrogate_pair_does_not_lose_an_answer_that_was_paid_for():
    assert read_answer(200, {}, b'{"choices": ["\\ud83d"]}').body == {"choices": ["\ud83d"]}


def test_an_excerpt_is_short_and_on_one_line():
    with pytest.raises(BadAnswer) as caught:
        read_answer(200, {}, b"<html>\n\x1b[31m" + b"spam \n" * 1000)

    assert len(caught.value.body) == 200
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7000),
        ({"retry-after": "0.25"}, 250),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, 86_400_000),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "15", "retry-after": "1"}, 15),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1000),
        (
            {"retry-after": "Tue, 01 Dec 2026 00:01:30 GMT",
             "date": "Tue, 01 Dec 2026 00:00:00 GMT"},
            90_000,
        ),
        ({"retry-after": "Tue, 01 Dec 2020 00:00:00 GMT"}, 0),
        ({"retry-after": "Tue, 99 Dec 2026 00:00:00 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360_000),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms",
             "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1.5s"},
            1500,
        ),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1.5s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, None),
    ],
)  # fmt: skip
def test_how_long_to_wait_is_read_in_every_form(headers, wait_ms):
    with pytest.raises(RateLimited) as caught:
        read_answer(429, headers, b"{}")

    assert caught.value.retry_after_ms == wait_ms


def test_a_date_without_the_servers_clock_is_measured_by_ours():
    with pytest.raises(RateLimited) as caught:
        read_answer(429, {"retry-after": formatdate(time.time() + 60, usegmt=True)}, b"{}")

    assert 57_000 < caught.value.retry_after_ms <= 60_000


@pytest.mark.parametrize(
    ("status", "told", "is_retryable"),
    [(400, "true", True), (500, "false", False), (429, "false", False), (500, "maybe", True)],
)
def test_the_provider_may_say_whether_to_try_again(status, told, is_retryable):
    with pytest.raises(ProviderError) as caught:
        read_answer(status, {"x-should-retry": told}, b"{}")

    assert caught.value.is_retryable is is_retryable


@pytest.mark.parametrize(
    ("status", "error", "is_out"),
    [
        (402, {}, True),
        (429, {"code": "insufficient_quota"}, True),
        (429, {"type": "insufficient_quota"}, True),
        (429, {"code": "rate_limit_exceeded"}, False),
        (400, {"message": "Your credit balance is too low to access the API"}, True),
        (422, {"code": "budget_exceeded"}, True),
        (429, {"type": "credit_limit", "message": "Credit limit exceeded"}, True),
        (429, {"type": "credit_limit", "message": "60 requests per minute on your credit plan"},
         False),
        (500, {"code": "insufficient_quota"}, False),
    ],
)  # fmt: skip
def test_a_provider_without_credit_is_recognised(status, error, is_out):
    with pytest.raises(ProviderError) as caught:
        read_answer(status, {}, json.dumps({"error": error}).encode())

    assert (caught.value.credit is not None) is is_out
    assert not (is_out and caught.value.is_retryable)


@pytest.mark.parametrize(
    ("raised", "error", "is_billed"),
    [
        (httpx.ConnectError("refused"), TransportFailed, False),
        (httpx.ConnectTimeout("slow"), TransportFailed, False),
        (httpx.PoolTimeout("full"), TransportFailed, False),
        (httpx.ProxyError("407"), TransportFailed, False),
        (httpx.UnsupportedProtocol("ftp"), TransportFailed, False),
        (httpx.ReadError("reset"), TransportFailed, None),
        (httpx.WriteError("reset"), TransportFailed, None),
        (httpx.CloseError("reset"), TransportFailed, None),
        (httpx.RemoteProtocolError("garbage"), TransportFailed, None),
        (httpx.DecodingError("gzip"), TransportFailed, None),
        (httpx.ReadTimeout("slow"), CallTimeout, None),
        (httpx.WriteTimeout("slow"), CallTimeout, None),
    ],
)
async def test_what_breaks_before_sending_costs_nothing_and_after_it_nobody_knows(
    raised, error, is_billed
):
    def handler(request):
        raise raised

    with pytest.raises(error) as caught:
        await ask(handler)

    assert caught.value.is_billed is is_billed
    assert caught.value.is_retryable


async def test_anything_else_is_not_taken_for_a_failed_connection():
    def handler(request):
        raise ZeroDivisionError

    with pytest.raises(CallFailed, match=r"raised ZeroDivisionError \(test_openai.py:") as caught:
        await ask(handler)

    assert type(caught.value) is CallFailed
    assert caught.value.is_billed is None


# A client of the user's own


async def test_a_client_is_used_as_it_is_and_left_open():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json=GOOD)

    async with httpx.AsyncClient(
        transport=httpx.MockTransport(handler),
        base_url="https://gateway.example/v1",
        headers={"Authorization": "Bearer own", "X-Team": "blue"},
        timeout=33,
    ) as client:
        provider = OpenAI(client=client)
        await provider.send(CHAT)
        await provider.aclose()

        assert not client.is_closed

    (request,) = seen
    assert str(request.url) == "https://gateway.example/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer own"
    assert request.headers["x-team"] == "blue"
    assert request.extensions["timeout"]["read"] == 33


async def test_httpx_default_timeout_is_too_short_for_a_model():
    seen = []

    def handler(request):
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json=GOOD)

    await ask(handler, timeout="2m")

    assert seen[0]["read"] == 120


# Real sockets, both engines


@contextlib.asynccontextmanager
async def listening(handler):
    """A server that reads one request's head, then does as it likes."""

    writers, tasks = [], []

    async def accept(reader, writer):
        writers.append(writer)
        tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await handler(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        # asyncio forgets to close a connection that came just before its server is closed.
        await asyncio.sleep(0.01)
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def provider_at(url, engine, **options):
    async with contextlib.AsyncExitStack() as stack:
        if engine == "httpx":
            options["client"] = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        provider = OpenAI(base_url=url, **options)
        try:
            yield provider
        finally:
            await provider.aclose()


def cut_off(writer):
    """Reset the connection."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def sends(*parts, then="close"):
    async def handler(reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(0.02)
        if then == "reset":
            cut_off(writer)
        elif then == "close":
            writer.close()
        else:
            await reader.read()  # until the client has had enough
            writer.close()

    return handler


OK = b"HTTP/1.1 200 OK\r\n"
BODY = json.dumps(GOOD).encode()
engines_ = pytest.mark.parametrize("engine", ["quick", "httpx"])


@engines_
@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (sends(), TransportFailed),
        (sends(then="reset"), TransportFailed),
        (sends(OK + b"content-length: 100\r\n\r\n{"), TransportFailed),
        (sends(OK + b"content-length: 100\r\n\r\n{", then="reset"), TransportFailed),
        (sends(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"), TransportFailed),
        (sends(OK + b"transfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n"), TransportFailed),
        (sends(OK + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello"), TransportFailed),
        (sends(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), TransportFailed),
        (sends(OK + b"x-long: " + b"x" * 1_000_000), TransportFailed),
        (sends(OK + b"".join(b"x-%d: x\r\n" % n for n in range(20_000))), TransportFailed),
        (sends(then="nothing"), CallTimeout),
        (sends(OK + b"content-length: 100\r\n\r\n{", then="nothing"), CallTimeout),
        (sends(OK + b"content-length: 9\r\n\r\n<p>Hi</p>"), BadAnswer),
        (sends(OK + b"content-length: 5\r\n\r\n{\"a\":"), BadAnswer),
    ],
)  # fmt: skip
async def test_what_breaks_after_sending_may_have_been_billed(engine, handler, error):
    timeout_s = 0.3 if error is CallTimeout else 60
    async with (
        listening(handler) as url,
        provider_at(url, engine, timeout=timeout_s, max_body_bytes=1000) as provider,
    ):
        with pytest.raises(CallFailed) as caught:
            await provider.send(CHAT)

    assert type(caught.value) is error
    assert caught.value.is_billed is None


@engines_
async def test_a_server_that_is_not_there_costs_nothing(engine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with provider_at(url, engine) as provider:
        with pytest.raises(TransportFailed, match="could not connect") as caught:
            await provider.send(CHAT)

    assert caught.value.is_billed is False
    assert caught.value.is_retryable


@engines_
async def test_a_name_that_does_not_exist_costs_nothing(engine):
    async with provider_at("http://no-such-host.invalid/v1", engine, api_key=KEY) as provider:
        with pytest.raises(TransportFailed) as caught:
            await provider.send(CHAT)

    assert caught.value.is_billed is False


@engines_
async def test_a_server_that_does_not_take_connections_costs_nothing(engine, monkeypatch):
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # fill its backlog
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with provider_at(f"http://127.0.0.1:{full.getsockname()[1]}", engine) as provider:
            with pytest.raises(TransportFailed) as caught:
                await provider.send(CHAT)

    assert caught.value.is_billed is False


@engines_
@pytest.mark.parametrize(
    "head",
    [
        b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s"
        % (len(gzip.compress(BODY, mtime=0)), gzip.compress(BODY, mtime=0)),
        b"connection: close\r\n\r\n%s" % BODY,
    ],
    ids=["length", "chunked", "gzip", "until closed"],
)
async def test_a_body_is_read_however_it_is_framed(engine, head):
    async with listening(sends(OK + head)) as url, provider_at(url, engine) as provider:
        answer = await provider.send(CHAT)

    assert answer.body == GOOD


@engines_
@pytest.mark.parametrize("framing", ["length", "chunked", "gzip"])
async def test_an_answer_without_end_is_not_read_to_its_end(engine, framing):
    body = b"[" + b" " * 500_000
    packed = gzip.compress(body)
    head = {
        "length": b"content-length: %d\r\n\r\n%s" % (len(body), body),
        "chunked": b"transfer-encoding: chunked\r\n\r\n%x\r\n%s" % (len(body), body),
        "gzip": b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s" % (len(packed), packed),
    }[framing]
    async with (
        listening(sends(OK + head, then="nothing")) as url,
        provider_at(url, engine, max_body_bytes=100_000) as provider,
    ):
        with pytest.raises(BadAnswer, match="100,000 bytes") as caught, anyio.fail_after(60):
            await provider.send(CHAT)

    assert caught.value.is_billed is None


@engines_
async def test_redirects_are_not_followed(engine):
    seen = []

    async def elsewhere(reader, writer):
        seen.append(1)
        writer.close()

    async with listening(elsewhere) as target:
        head = f"HTTP/1.1 307 Temporary\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
        async with (
            listening(sends(head.encode())) as url,
            provider_at(url, engine) as provider,
        ):
            with pytest.raises(ProviderRefused, match="redirected"):
                await provider.send(CHAT)

    assert not seen


@engines_
async def test_cancelling_a_call_comes_through_as_it_is(engine):
    arrived = asyncio.Event()

    async def handler(reader, writer):
        arrived.set()
        await reader.read()  # until the client has had enough
        writer.close()

    async with listening(handler) as url, provider_at(url, engine, timeout=60) as provider:
        task = asyncio.create_task(provider.send(CHAT))
        await arrived.wait()
        task.cancel()
        await asyncio.wait([task], timeout=60)

    assert task.cancelled()


@engines_
async def test_connections_are_used_again(engine):
    provider = Simulated(record=True)
    ready, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
    server = asyncio.create_task(serve(provider, on_ready=ready.set_result, stop=stop))
    accepted = []
    url = await ready

    async with provider_at(url, engine) as sender:
        for _ in range(3):
            answer = await sender.send(CHAT)
            accepted.append(answer.request_id)
        many = await asyncio.gather(*(sender.send(CHAT) for _ in range(50)))
    stop.set()
    await server

    assert accepted == [f"req-sim0000000{n}" for n in (1, 2, 3)]
    assert len({answer.request_id for answer in many}) == 50
    assert provider.calls == 53
    assert provider.billed_nusd == sum(r.nusd for r in provider.bill.records)


@engines_
async def test_a_proxy_in_the_environment_is_used_but_not_for_this_machine(engine, monkeypatch):
    lines = []

    async def proxy(reader, writer):
        line = await reader.readline()
        lines.append(line)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    at = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, at)
    client = {"client": httpx.AsyncClient()} if engine == "httpx" else {}
    remote = OpenAI(base_url="http://far.invalid/v1", api_key=KEY, **client)
    local = OpenAI(base_url="http://localhost:1/v1")

    answer = await remote.send(CHAT)
    with pytest.raises(TransportFailed):
        await local.send(CHAT)
    await remote.aclose()
    await local.aclose()
    if client:
        await client["client"].aclose()
    server.close()

    assert answer.body == GOOD
    assert lines == [b"POST http://far.invalid/v1/chat/completions HTTP/1.1\r\n"]


async def test_pyreqwest_behind_httpx_is_not_believed_when_it_says_it_never_connected():
    from pyreqwest.compatibility.httpx import HttpxTransport

    async with (
        listening(sends()) as url,
        httpx.AsyncClient(transport=HttpxTransport()) as client,
    ):
        with pytest.raises(TransportFailed) as caught:
            await OpenAI(base_url=url, client=client).send(CHAT)

    assert "the connection broke off" in str(caught.value)
    assert caught.value.is_billed is None


async def test_without_pyreqwest_httpx_does_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyreqwest.client", None)
    body = OK + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    async with listening(sends(body)) as url:
        provider = OpenAI(base_url=url)
        answer = await provider.send(CHAT)
        await provider.aclose()

    assert answer.body == GOOD


async def test_a_provider_that_was_closed_may_be_used_again():
    body = OK + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    async with listening(sends(body)) as url:
        provider = OpenAI(base_url=url)
        for _ in range(2):
            assert (await provider.send(CHAT)).body == GOOD
            await provider.aclose()


def test_nothing_is_opened_before_the_first_call():
    provider = OpenAI(api_key=KEY)

    assert provider._engine is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.9.1", True), ("::1", True), ("a.localhost", True),
     ("0.0.0.0", False), ("localhost.evil", False), ("127.0.0.1.nip.io", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_only(host, expected):
    assert is_loopback(host) is expected
