"""Who looks at each attempt of a call sees it; and what was wrapped looks like what was not."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest

import scheduler
from scheduler import BlockingScheduler
from scheduler.adapters import http
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import GOOGLE, IS_NEWEST
from tests.sdks.test_fresh import Keys, parked_then
from tests.sdks.test_same import ASK, STREAM, Server, quick, stainless

pytestmark = [
    pytest.mark.anyio,
    *map(pytest.mark.filterwarnings, ("default", "ignore::scheduler.UncountedCalls")),
]
has_middleware = pytest.mark.skipif(not IS_NEWEST, reason="the previous version has none")
ways = pytest.mark.parametrize("way", ["wrap", "instrument"])


class Adopted:
    """A client in one of both ways, within the block."""

    def __init__(self, s, way):
        self.s, self.way, self.undo = s, way, None

    def __enter__(self):
        if self.way == "instrument":
            self.undo = scheduler.instrument(self.s)
            return lambda client: client
        return self.s.wrap

    def __exit__(self, *exc):
        if self.undo is not None:
            self.undo()


def without_waiting(client):
    client._calculate_retry_timeout = lambda *args, **more: 0
    return client


# Middleware


@has_middleware
@ways
@pytest.mark.parametrize("status", [500, 429])
async def test_middleware_sees_each_attempt_and_may_change_the_next(way, status):
    server, seen = Server("anthropic", status, status, 200), []

    async def middleware(request, call_next):
        seen.append(request.retries_taken)
        body = {**request.options.json_data, "max_tokens": 3 + len(seen)}
        request.options.json_data = body
        return await call_next(request)

    async with quick() as s:
        with Adopted(s, way) as adopt:
            client = adopt(without_waiting(server.client(middleware=[middleware])))
            raw = await client.messages.with_raw_response.create(**ASK)

        assert seen == [0, 1, 2]
        assert raw.retries_taken == 2
        assert [json.loads(each.content)["max_tokens"] for each in server.seen] == [4, 5, 6]
        counts = [each.headers["x-stainless-retry-count"] for each in server.seen]
        assert counts == ["0", "1", "2"]
        assert s.stats().succeeded == 1


@has_middleware
def test_what_middleware_asks_instead_is_what_goes_out_however_long_it_waited(monkeypatch):
    monkeypatch.setattr(http, "LONGEST_FRESH_S", -1)  # so that all is made anew
    server = Server("anthropic", 500, 200)

    def middleware(request, call_next):
        answer = call_next(request)
        if answer.http_response.is_success:
            return answer
        request.options.json_data = {**request.options.json_data, "max_tokens": 9}
        return call_next(request)

    with BlockingScheduler(quick()) as s:
        client = s.wrap(server.client(sync=True, middleware=[middleware], max_retries=0))
        client.messages.create(**ASK)

        assert [json.loads(each.content)["max_tokens"] for each in server.seen] == [5, 9]


@has_middleware
async def test_middleware_is_told_of_a_refusal_once():
    import anthropic

    server, seen = Server("anthropic"), []

    async def middleware(request, call_next):
        seen.append(request.retries_taken)
        return await call_next(request)

    async with make_scheduler(0, on_exceeded="raise") as s:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await server.ask(s.wrap(server.client(middleware=[middleware])))

        assert (caught.value.status_code, seen, server.seen) == (402, [0], [])


# Tracers


@ways
async def test_a_tracer_counts_what_is_sent_again(way):
    tracing = pytest.importorskip("anthropic._tracing")
    server, calls = Server("anthropic", 500, 500, 200), []

    class Call:
        propagation, sent = False, 0

        def sending(self, request, options):
            self.sent += 1

    assert hasattr(tracing.ApiCall, "sending")
    client = server.client()
    usual = type(client)._attempt_request

    async def attempt(self, options, **more):
        calls.append(Call())
        return await usual(self, options, **more | {"call": calls[-1]})

    class Traced(type(client)):
        async def _request(self, cast_to, options, **more):
            made = Call()
            calls.append(made)
            answer, prepared = await self._attempt_request(options, stream=False, call=made)
            return await self._process_response(
                cast_to=cast_to, options=prepared, response=answer, stream=False, stream_cls=None
            )

    async with quick() as s:
        with Adopted(s, way) as adopt:
            await server.ask(adopt(server.client(Traced)))

    assert [each.sent for each in calls] == [3]


# What it looks like


@stainless
async def test_the_own_methods_of_one_client_are_those_of_another(package):
    server = Server(package)
    async with make_scheduler() as s:
        made = s.wrap(server.client())
        names = ("request", "_prepare_options", "_process_response", "copy", "with_options")
        for other in (made.copy(), made.with_options(timeout=3), s.wrap(server.client())):
            assert all(getattr(made, each) == getattr(other, each) for each in names)
            assert all(hash(getattr(made, each)) == hash(getattr(other, each)) for each in names)
        assert made.request != made.copy
        assert made.request != server.client().request


# Answers


@stainless
@ways
@pytest.mark.parametrize("asked", [{}, {"extra_body": {"stream_options": {"include_usage": True}}}])
async def test_a_stream_that_was_read_before_anybody_saw_it_is_as_closed_as_it_came(
    package, way, asked
):
    if package == "anthropic":
        pytest.skip("its streams have another form")
    server = Server(package)
    async with quick() as s:
        with Adopted(s, way) as adopt:
            client = adopt(server.client())
            stream = await server.ask(client, stream=True, **asked)
            assert stream.response.is_closed
            chunks = [chunk async for chunk in stream]

        assert len(chunks) == (2 if asked or "usage" not in STREAM else 1)
        assert s.stats().posted_nusd == counted(s) > 0


@ways
@pytest.mark.parametrize("sync", [False, True])
async def test_a_stream_that_is_lost_before_its_beginning_is_lost_where_it_is_read(way, sync):
    import openai

    server, error = Server("openai"), None
    family = server.httpx
    error = family.RemoteProtocolError("lost")
    kinds = openai.APIConnectionError, family.RemoteProtocolError  # by the version

    class Stream(family.SyncByteStream, family.AsyncByteStream):
        def __iter__(self):
            yield b": hello\n\n"
            raise error

        async def __aiter__(self):
            for each in iter(self):
                yield each

    def answer(request):
        server.seen.append(request)
        headers = {"content-type": "text/event-stream"}
        return family.Response(200, headers=headers, stream=Stream())

    def read(client):
        stream = client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(kinds) as caught:
            list(stream)
        return stream, caught

    client = server.client(sync=sync, max_retries=2)
    client._client._transport = family.MockTransport(answer)
    async with quick() as s:
        with Adopted(s, way) as adopt:
            client = adopt(client)
            if sync:
                stream, caught = await asyncio.to_thread(read, client)
            else:
                stream = await client.chat.completions.create(**ASK, stream=True)
                with pytest.raises(kinds) as caught:
                    [chunk async for chunk in stream]

        assert (len(server.seen), stream.response.is_closed) == (1, True)
        assert error in (caught.value, caught.value.__cause__)
        assert s.stats().failed == 1
        assert counted(s) > 0


@pytest.mark.skipif(not IS_NEWEST, reason="the previous version knows no such identity")
@pytest.mark.parametrize("sync", [False, True])
async def test_what_an_identity_sends_by_a_client_of_its_own_is_counted(sync):
    server = Server("openai", 500, 200)

    class Identity:
        """As one with a certificate: it sends by itself."""

        def __init__(self):
            self.inner = server.inner(sync)

        def send_api_request(self, request, **options):
            return self.inner.send(request, **options)

    client = server.client(sync=sync)

    def send_request(request, *, stream, **options):
        return client._workload_identity_auth.send_api_request(request, stream=stream)

    async def send_request_async(request, **options):
        return await send_request(request, **options)

    async with quick() as s:
        own = type(client)

        class Identified(own):
            _send_request = (
                (lambda self, request, **more: send_request(request, **more))
                if sync
                else (lambda self, request, **more: send_request_async(request, **more))
            )

        client.__class__ = Identified
        made = s.wrap(client)
        assert type(made) is Identified
        made._workload_identity_auth = client._workload_identity_auth = Identity()
        part = made.chat.completions.with_raw_response
        if sync:
            raw = await asyncio.to_thread(part.create, **ASK)
        else:
            raw = await part.create(**ASK)

        assert (raw.retries_taken, len(server.seen), s.stats().succeeded) == (1, 2, 1)
        assert counted(s) > 0


class Lost:
    """Some of a body, then nothing more."""

    def __init__(self, family, answers):
        self.family, self.answers = family, answers

    def __iter__(self):
        yield b'{"id": '
        raise self.family.ReadError("lost")

    async def __aiter__(self):
        for each in iter(self):
            yield each


@stainless
@ways
@pytest.mark.parametrize("sync", [False, True])
async def test_a_body_that_is_lost_half_way_is_lost_where_it_is_read(package, way, sync):
    server = Server(package)
    family = server.httpx

    class Stream(Lost, family.SyncByteStream, family.AsyncByteStream):
        pass

    def answer(request):
        headers = {"content-type": "application/json"}
        return family.Response(200, headers=headers, stream=Stream(family, None))

    def read(client):
        part = client.chat.completions if hasattr(client, "chat") else client.messages
        with part.with_streaming_response.create(**ASK) as response:
            pieces = response.iter_bytes()
            assert next(pieces) == b'{"id": '
            with pytest.raises(family.ReadError, match="lost"):
                next(pieces)

    client = server.client(sync=sync, max_retries=0)
    client._client._transport = family.MockTransport(answer)
    async with quick() as s:
        with Adopted(s, way) as adopt:
            client = adopt(client)
            if sync:
                await asyncio.to_thread(read, client)
            else:
                part = client.chat.completions if hasattr(client, "chat") else client.messages
                async with part.with_streaming_response.create(**ASK) as response:
                    pieces = response.iter_bytes()
                    assert await anext(pieces) == b'{"id": '
                    with pytest.raises(family.ReadError, match="lost"):
                        await anext(pieces)
        assert counted(s) > 0


@pytest.mark.parametrize("content", [b"", None])
async def test_a_request_without_a_body_asks_nothing_and_goes_out(content):
    server = Server("openai")
    answers = {"json": {"error": {"message": "you must provide a body"}}}
    client = server.inner()
    client._transport = server.httpx.MockTransport(
        lambda request: server.httpx.Response(400, **answers)
    )
    async with make_scheduler() as s:
        answer = await s.wrap(client).post("http://h/v1/chat/completions", content=content)

        assert (answer.status_code, "x-should-retry" in answer.headers) == (400, False)
        assert "provide a body" in answer.text
        assert (s.stats().failed, counted(s)) == (0, 0)


async def test_an_answer_that_came_well_says_nothing_of_retries():
    server = Server("openai")
    late = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\ndata: {"error": {"message": "x"}}\n\n'
    client = server.inner()
    headers = {"content-type": "text/event-stream"}
    client._transport = server.httpx.MockTransport(
        lambda request: server.httpx.Response(200, content=late, headers=headers)
    )
    async with quick() as s:
        answer = await s.wrap(client).post(
            "http://h/v1/chat/completions", json=ASK | {"stream": True}
        )

        assert answer.content == late
        assert not [each for each in answer.headers if each.startswith("x-")]


# Google's client


async def test_google_keeps_the_session_that_it_was_given(service):
    import aiohttp

    sent = []

    async def note(session, context, params):
        sent.append(params.url.path)

    traces = aiohttp.TraceConfig()
    traces.on_request_start.append(note)
    async with aiohttp.ClientSession(trace_configs=[traces]) as session, make_scheduler() as s:
        from google import genai

        options = {"base_url": service.url, "aiohttp_client": session}
        client = s.wrap(genai.Client(api_key="k", http_options=options))
        answer = await GOOGLE.ask(client, "Hi")
        chunks = [chunk async for chunk in await GOOGLE.stream(client, "In pieces")]

        api = client._api_client
        assert api._use_aiohttp()
        assert await api._get_aiohttp_session() is await api._get_aiohttp_session()
        assert len(sent) == 2
        assert len(GOOGLE.text(answer).split()) == 12
        assert len("".join(map(GOOGLE.chunk_text, chunks)).split()) == 12
        await until(lambda: not s.stats().running)
        assert counted(s) == service.since("billed_nusd") > 0
        async with session.get(service.url + "/billed") as own:
            assert own.status == 200  # the session is its owner's


async def test_google_goes_out_by_aiohttp_with_the_token_of_now():
    import aiohttp
    from google import genai
    from multidict import CIMultiDict

    seen, keys = [], Keys()

    class Session:
        closed, headers, raise_for_status = False, {}, False
        auto_decompress, json_serialize = True, staticmethod(json.dumps)

        def _build_url(self, url):
            from yarl import URL

            return URL(url)

        def _prepare_headers(self, headers):
            return CIMultiDict(headers or {})

        async def request(self, method, url, headers, **options):
            seen.append(CIMultiDict(headers)["Authorization"])
            raise aiohttp.ServerDisconnectedError("gone")

    client = genai.Client(
        vertexai=True, project="p", location="l", credentials=object(),
        http_options={"base_url": "http://h", "aiohttp_client": aiohttp.ClientSession()},
    )  # fmt: skip
    await client._api_client._http_options.aiohttp_client.close()
    client._api_client._http_options.aiohttp_client = Session()

    async def token():
        return keys.now

    client._api_client._async_access_token = token
    client._api_client._credentials = type("C", (), {"quota_project_id": None})()
    async with make_scheduler("$0.00000001", max_attempts=1) as s:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await parked_then(s, GOOGLE.ask(s.wrap(client), "Hi"), keys.renew)

    assert seen == ["Bearer new"]


async def test_nothing_keeps_googles_client_alive_but_who_uses_it():
    from google import genai

    async with make_scheduler() as s:
        client = s.wrap(genai.Client(api_key="k", http_options={"base_url": "http://h"}))
        inner, held = client._api_client._async_httpx_client, weakref.ref(client._api_client)
        gc.collect()
        gone = weakref.ref(client)
        del client
        gc.collect()
        await until(lambda: gc.collect() >= 0 and held() is None)

    assert gone() is None
    assert inner is not None


@ways
async def test_what_came_of_a_connection_that_breaks_is_read_before_it_is_gone(way):
    """As of aiohttp's: whoever reads after that gets the error alone."""
    server = Server("openai")
    family, loop = server.httpx, asyncio.get_running_loop()

    class Breaking(family.AsyncByteStream):
        is_gone = False

        async def __aiter__(self):
            if not self.is_gone:
                yield STREAM.encode()
            raise family.ReadError("the other side hung up")

    def answer(request):
        stream = Breaking()
        loop.call_soon(setattr, stream, "is_gone", True)
        headers = {"content-type": "text/event-stream"}
        return family.Response(200, headers=headers, stream=stream)

    client = server.client(max_retries=0)
    client._client._transport = family.MockTransport(answer)
    with BlockingScheduler(quick()) as s, Adopted(s, way) as adopt:
        stream = await server.ask(adopt(client), stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["yes"]
        await stream.close()
        await asyncio.to_thread(s.join)
        assert s.stats().succeeded == 1
