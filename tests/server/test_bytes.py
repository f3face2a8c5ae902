"""What goes on to a provider, and what comes back: the very bytes, and no secret of the other side."""

import asyncio
import contextlib
import json
import time

import pytest

from scheduler import Scheduler
from scheduler.providers.openai import OpenAI
from scheduler.server.life import Settings, open_gateway

ANSWER = (
    b'{"id":"x", "object":"chat.completion","model":"m",  "choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"\\u0068\xc3\xa9"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}, "more": [1.50, 1e3]}'
)
ASKED = (
    b'{ "model" : "m","messages":[{"role":"user","content":"h\\u00e9\xc3\xa9"}],  "max_tokens":5,'
    b'"unknown_field": {"a": 1.50}}'
)
CHUNKS = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n',
    b': comment\n\ndata: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
)


class Recorder:
    """A provider that keeps what it is sent, and says what it is told to."""

    def __init__(self):
        self.asked, self.says = [], (b"application/json", [ANSWER])
        self.status, self.more = b"200 OK", b""
        self.breaks, self.tasks = False, []

    async def answer(self, reader, writer):
        self.tasks.append((asyncio.current_task(), reader))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {}
                for line in lines[1:]:
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append((lines[0], headers, body))
                kind, pieces = self.says
                writer.write(
                    b"HTTP/1.1 " + self.status + b"\r\ncontent-type: " + kind + b"\r\n" + self.more
                )
                writer.write(b"transfer-encoding: chunked\r\n\r\n")
                for piece in pieces:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if self.breaks:
                    break
                writer.write(b"0\r\n\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def gateway_to(
    recorder, key="provider-key-123", *, store=None, budgets="$10", poll="200ms", **settings
):  # fmt: skip
    server = await asyncio.start_server(recorder.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    provider = OpenAI(
        base_url=url, api_key=key, headers={"x-own": "configured"}, organization="org-own"
    )
    async with (
        Scheduler(
            store,
            budgets=budgets,
            providers=provider,
            prices={"m": "1/1"},
            max_attempts=1,
            poll_interval=poll,
        ) as s,
        open_gateway(s, [provider], Settings(own={}, **settings)) as opened,
    ):
        yield opened, s
    server.close()
    for task, reader in recorder.tasks:
        reader.feed_eof()
        await task


async def ask(opened, body, *lines, path="/v1/chat/completions"):
    port = int(opened.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [f"POST {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {opened.secret}",
            "connection: close", f"content-length: {len(body)}", *lines]  # fmt: skip
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body)
    came = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    start, _, rest = came.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in start:
        rest = unchunked(rest)
    return start.decode("latin-1"), rest


def unchunked(data):
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return whole


async def test_a_body_and_its_answer_are_passed_on_byte_for_byte():
    recorder = Recorder()
    async with gateway_to(recorder) as (opened, _):
        _, said = await ask(opened, ASKED)

    assert recorder.asked[0][2] == ASKED
    assert said == ANSWER


async def test_headers_go_on_but_for_keys_hops_and_our_own():
    recorder = Recorder()
    recorder.more = b"x-request-id: r1\r\nset-cookie: a=b\r\nx-scheduler-cost-usd: 99\r\nx-ratelimit-left: 7\r\n"
    async with gateway_to(recorder) as (opened, _):
        start, _ = await ask(
            opened, ASKED, "x-title: app", "user-agent: theirs", "openai-beta: x=1", "cookie: c=1",
            "x-scheduler-job: j", "x-own: forged", "openai-organization: forged", "x-hop: 1",
            "connection: x-hop", "accept-encoding: br", "x-forwarded-for: 1.2.3.4",
            *(f"{name}: {opened.secret}" for name in ("x-api-key", "x-goog-api-key", "api-key")),
        )  # fmt: skip

    line, headers, _ = recorder.asked[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers["authorization"] == "Bearer provider-key-123"
    assert headers["x-title"] == "app"
    assert headers["user-agent"] == "theirs"
    assert headers["openai-beta"] == "x=1"
    assert headers["x-own"] == "configured"
    assert headers["openai-organization"] == "org-own"
    assert not {"cookie", "x-scheduler-job", "x-hop", "x-forwarded-for"} & headers.keys()
    assert opened.secret not in str(recorder.asked)
    assert "x-request-id: r1" in start
    assert "x-ratelimit-left: 7" in start
    assert "set-cookie" not in start
    assert "x-scheduler-cost-usd: 0.000002" in start
    assert "99" not in start.partition("x-scheduler-cost-usd")[2].partition("\r\n")[0]


async def test_only_the_usage_that_was_asked_for_here_is_taken_out_of_a_stream():
    recorder = Recorder()
    recorder.says = (b"text/event-stream", CHUNKS)
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 5, "stream": True}).encode()
    async with gateway_to(recorder) as (opened, s):
        start, said = await ask(opened, body)
    posted = s.stats().posted_nusd

    assert json.loads(recorder.asked[0][2])["stream_options"] == {"include_usage": True}
    assert said == CHUNKS[0].replace(b',"usage":null', b"") + CHUNKS[1] + CHUNKS[3]
    assert "x-scheduler-estimate-usd" in start
    assert posted == 2_000


async def test_who_asks_for_the_usage_gets_the_very_bytes():
    recorder = Recorder()
    recorder.says = (b"text/event-stream", CHUNKS)
    asked = {
        "model": "m",
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(asked).encode()
    async with gateway_to(recorder) as (opened, _):
        _, said = await ask(opened, body)

    assert recorder.asked[0][2] == body
    assert said == b"".join(CHUNKS)


async def test_a_stream_that_breaks_ends_in_an_error_and_keeps_counting():
    recorder = Recorder()
    recorder.says, recorder.breaks = (b"text/event-stream", CHUNKS[:1]), True
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 5, "stream": True}).encode()
    async with gateway_to(recorder) as (opened, s):
        _, said = await ask(opened, body)
        stats = s.stats()

    events = said.split(b"\n\n")
    assert b'"content":"a"' in events[0]
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "stream_broken"
    assert stats.suspense_nusd > 0
    assert len(recorder.asked) == 1


async def test_a_provider_that_cannot_be_reached_costs_nothing():
    recorder = Recorder()
    async with gateway_to(recorder) as (opened, s):
        provider = next(iter(s._intake.providers.values()))
        provider._address = type(provider._address)("http://127.0.0.1:1/v1")
        start, said = await ask(opened, ASKED)
        stats = s.stats()

    assert start.startswith("HTTP/1.1 502")
    assert "x-should-retry: false" in start
    assert json.loads(said)["error"]["code"] == "connection_failed"
    assert stats.posted_nusd == stats.reserved_nusd == 0


async def test_what_is_no_answer_comes_as_it_is_and_counts():
    recorder = Recorder()
    recorder.says = (b"text/html", [b"<html>hello"])
    async with gateway_to(recorder) as (opened, s):
        _, said = await ask(opened, ASKED)
        stats = s.stats()

    assert said == b"<html>hello"
    assert stats.suspense_nusd > 0


async def test_a_query_goes_on_without_the_key():
    recorder = Recorder()
    async with gateway_to(recorder) as (opened, _):
        await ask(
            opened,
            ASKED,
            path=f"/v1/chat/completions?beta=true&key={opened.secret}&a=b&%6bey={opened.secret}",
        )

    assert recorder.asked[0][0] == "POST /v1/chat/completions?beta=true&a=b HTTP/1.1"


@pytest.mark.parametrize(
    ("begun", "wanted"), [
        (b"", b""), (b"POST /v1/chat/completions HT", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %s\r\n"
         b"content-length: 100\r\n\r\n{", b"HTTP/1.1 408"),
    ],
)  # fmt: skip
async def test_who_stops_in_the_middle_is_not_waited_for(monkeypatch, begun, wanted):
    monkeypatch.setattr("scheduler.server.listen.HEAD_S", 0.2)
    monkeypatch.setattr("scheduler.server.listen.BODY_SILENCE_S", 0.2)
    monkeypatch.setattr("scheduler.server.listen.LOOK_S", 0.05)
    recorder = Recorder()
    async with gateway_to(recorder) as (opened, _):
        port = int(opened.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun.replace(b"%s", opened.secret.encode()))
        came = await asyncio.wait_for(reader.read(), 20)
        writer.close()

    assert came.startswith(wanted)
    assert recorder.asked == []


async def test_who_was_refused_may_not_go_on_for_ever(monkeypatch):
    monkeypatch.setattr("scheduler.server.listen.HEAD_S", 0.2)
    monkeypatch.setattr("scheduler.server.listen.BODY_SILENCE_S", 0.2)
    monkeypatch.setattr("scheduler.server.listen.LOOK_S", 0.05)
    async with gateway_to(Recorder()) as (opened, _):
        port = int(opened.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n{"
        )
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401")
        until_s = time.monotonic() + 10
        while not reader.at_eof() and reader.exception() is None:
            assert time.monotonic() < until_s, "it is still listened to"
            writer.write(b" ")
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(1000), 0.05)
        writer.close()


async def test_what_a_provider_says_of_asking_again_is_not_for_clients():
    recorder = Recorder()
    recorder.status, recorder.more = b"529 Overloaded", b"x-should-retry: true\r\n"
    recorder.says = (b"application/json", [b'{"error": {"message": "busy"}}'])
    async with gateway_to(recorder) as (opened, _):
        start, _ = await ask(opened, ASKED)

    assert start.startswith("HTTP/1.1 529")
    assert [each for each in start.split("\r\n") if "should-retry" in each] == [
        "x-should-retry: false"
    ]


async def test_what_comes_behind_a_call_does_not_end_it(monkeypatch):
    monkeypatch.setattr("scheduler.server.listen.HEAD_S", 0.2)
    monkeypatch.setattr("scheduler.server.listen.LOOK_S", 0.05)
    recorder = Recorder()
    recorder.says = (b"application/json", [ANSWER[at : at + 5] for at in range(0, len(ANSWER), 5)])
    async with gateway_to(recorder) as (opened, _):
        port = int(opened.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"authorization: Bearer {opened.secret}\r\ncontent-length: {len(ASKED)}\r\n\r\n"
        begun = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        writer.write(begun + head.encode() + ASKED + begun)
        came = await asyncio.wait_for(reader.read(), 20)  # until the second one is given up
        writer.close()

    assert ANSWER in came


async def test_who_takes_nothing_of_a_stream_does_not_keep_its_place(monkeypatch):
    monkeypatch.setattr("scheduler.server.listen.UNREAD_S", 0.3)
    monkeypatch.setattr("scheduler.server.listen.LOOK_S", 0.05)
    recorder = Recorder()
    long = CHUNKS[0].replace(b'"a"', b'"' + b"a" * 1_000_000 + b'"')
    recorder.says = (b"text/event-stream", [long] * 15 + list(CHUNKS[1:]))
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 5, "stream": True}).encode()
    async with gateway_to(recorder) as (opened, s):
        port = int(opened.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        head = f"authorization: Bearer {opened.secret}\r\ncontent-length: {len(body)}\r\n\r\n"
        begun = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        writer.write(begun + head.encode() + body)
        await reader.readuntil(b"\r\n")
        async with asyncio.timeout(60):
            while s.stats().running or not s.stats().posted_nusd:
                await asyncio.sleep(0.02)
        posted = s.stats().posted_nusd
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    assert posted == 2_000
