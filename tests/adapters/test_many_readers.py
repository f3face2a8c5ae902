"""Many streams at once: none waits for a place that another, or its own reader, could give back."""

from __future__ import annotations

import asyncio
import threading

import httpx
import httpx2
import pytest

from tests.adapters.test_bytes import Pieces
from tests.adapters.test_http import BODY, END, PART, URL, events, make_scheduler, wrapped

pytestmark = pytest.mark.anyio
STREAMED = BODY | {"stream": True}
FAMILIES = pytest.mark.parametrize("family", [httpx, httpx2])
HEADERS = {"content-type": "text/event-stream"}


def pieces():
    return events(PART, PART, END).content.replace(b"\n\n", b"\n\n\0").split(b"\0")


class Gathers(Pieces):
    """A stream whose provider goes on when enough of them have begun."""

    def __init__(self, begun, most, all_begun):
        super().__init__(pieces())
        self.begun, self.most, self.all_begun = begun, most, all_begun

    async def __aiter__(self):
        first, *rest = self.pieces
        yield first
        self.begun.append(1)
        if len(self.begun) == self.most:
            self.all_begun.set()
        await self.all_begun.wait()
        for each in rest:
            yield each


@FAMILIES
async def test_streams_whose_readers_wait_for_the_provider_are_all_open(family):
    begun, all_begun = [], asyncio.Event()
    async with make_scheduler(concurrency=100) as s, asyncio.timeout(20):
        client = wrapped(
            s,
            lambda request: family.Response(
                200, headers=HEADERS, stream=Gathers(begun, 100, all_begun)
            ),
            family,
        )

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                assert b"[DONE]" in await response.aread()

        await asyncio.gather(*(read() for _ in range(100)))
        await s.join()
        assert s.stats().succeeded == 100
        assert s.stats().suspense_nusd == 0


async def test_a_provider_that_lets_few_in_is_asked_for_few_streams():
    """That streams have begun says that there may be more; a refusal says how many."""
    now, most, refused = [0], 12, []

    class Counted(Pieces):
        async def __aiter__(self):
            for each in self.pieces:
                await asyncio.sleep(0.01)
                yield each

        async def aclose(self):
            now[0] -= 1

    def answer(request):
        if now[0] >= most:
            refused.append(1)
            return httpx2.Response(429, json={"error": {"message": "too many at once"}})
        now[0] += 1
        return httpx2.Response(200, headers=HEADERS, stream=Counted(pieces()))

    async with make_scheduler(concurrency=100) as s, asyncio.timeout(60):
        client = wrapped(s, answer)

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                assert b"[DONE]" in await response.aread()

        await asyncio.gather(*(read() for _ in range(60)))
        assert len(refused) < 24
        await s.join()
        assert s.stats().suspense_nusd == 0


# A call within a loop over a stream, in every way that people write it


def answer_both(family):
    def answer(request):
        if b'"stream"' in request.content:
            return family.Response(200, headers=HEADERS, stream=Pieces(pieces()))
        return family.Response(
            200, json={"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        )

    return answer


@FAMILIES
@pytest.mark.parametrize("places", [1, 20])
async def test_loops_that_gather_calls_of_the_same_client(family, places):
    async with make_scheduler(concurrency=places) as s, asyncio.timeout(50):
        client = wrapped(s, answer_both(family), family)

        async def read(depth=1):
            async with client.stream("POST", URL, json=STREAMED) as response:
                async for _ in response.aiter_bytes():
                    calls = [client.post(URL, json=BODY) for _ in range(2)]
                    answers = await asyncio.gather(*calls, *([read(depth - 1)] if depth else []))
                    assert answers[0].status_code == 200

        await asyncio.gather(*(read() for _ in range(places + 1)))
        await s.join()
        assert s.stats().suspense_nusd == 0


@FAMILIES
async def test_threads_within_loops_and_loops_within_threads(family):
    async with make_scheduler(concurrency=2) as s, asyncio.timeout(50):
        client, blocking = wrapped(s, answer_both(family), family), None
        blocking = wrapped(s, answer_both(family), family, sync=True)

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                async for _ in response.aiter_bytes():
                    answer = await asyncio.to_thread(blocking.post, URL, json=BODY)
                    assert answer.status_code == 200

        def read_sync():
            with blocking.stream("POST", URL, json=STREAMED) as response:
                for _ in response.iter_bytes():
                    assert asyncio.run(ask()) == 200

        async def ask():
            async with family.AsyncClient(
                transport=family.MockTransport(answer_both(family))
            ) as bare:
                return (await s.wrap(bare).post(URL, json=BODY)).status_code

        await asyncio.gather(*(read() for _ in range(4)),
                             *(asyncio.to_thread(read_sync) for _ in range(3)))  # fmt: skip
        await s.join()
        assert s.stats().suspense_nusd == 0


async def test_a_reader_that_stops_for_long_holds_up_nobody_and_says_nothing_of_the_provider():
    async with make_scheduler(concurrency=1) as s, asyncio.timeout(50):
        client = wrapped(s, answer_both(httpx2))
        async with client.stream("POST", URL, json=STREAMED) as response:
            parts = response.aiter_bytes()
            await anext(parts)
            for _ in range(3):  # while it has stopped
                assert (await client.post(URL, json=BODY)).status_code == 200
            (gate,) = [each for each in s.store.gates if not each.is_front]
            latency_ms = gate._latency_ms
            await asyncio.sleep(0.3)
            async for _ in parts:
                pass
        await s.join()
        assert gate._latency_ms == latency_ms
        assert s.stats().suspense_nusd == 0


async def test_a_slow_reader_for_whom_nobody_waits_says_nothing_of_the_provider_either():
    async with make_scheduler() as s:
        client = wrapped(s, answer_both(httpx2))
        async with client.stream("POST", URL, json=STREAMED) as response:
            async for _ in response.aiter_bytes():
                await asyncio.sleep(0.05)
        await s.join()
        (gate,) = [each for each in s.store.gates if not each.is_front]
        assert gate._latency_ms == 0


@FAMILIES
async def test_a_stream_that_is_handed_to_others(family):
    """Begun in one task or thread, read in another."""
    async with make_scheduler(concurrency=1) as s, asyncio.timeout(50):
        client = wrapped(s, answer_both(family), family)
        blocking = wrapped(s, answer_both(family), family, sync=True)
        for _ in range(2):
            request = client.build_request("POST", URL, json=STREAMED)
            response = await asyncio.create_task(client.send(request, stream=True))
            asked = asyncio.create_task(client.post(URL, json=BODY))  # while nobody reads
            await asked
            assert b"[DONE]" in await asyncio.create_task(response.aread())

            request = blocking.build_request("POST", URL, json=STREAMED)
            response = await asyncio.to_thread(blocking.send, request, stream=True)
            assert (await client.post(URL, json=BODY)).status_code == 200
            found = []
            thread = threading.Thread(target=lambda r=response, f=found: f.append(r.read()))
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.005)
            assert b"[DONE]" in found[0]
        await s.join()
        assert s.stats().running == s.stats().suspense_nusd == 0


async def test_a_web_apps_slow_clients_hold_up_nobody():
    """A StreamingResponse waits for its client between two pieces."""
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    async with make_scheduler(concurrency=2) as s, asyncio.timeout(50):
        client, free = wrapped(s, answer_both(httpx2)), asyncio.Event()

        async def endpoint(request):
            async def body():
                async with client.stream("POST", URL, json=STREAMED) as response:
                    async for each in response.aiter_bytes():
                        yield each

            return StreamingResponse(body())

        app, sent = Starlette(routes=[Route("/", endpoint)]), []

        async def serve():
            async def receive():
                await free.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)
                if message.get("body"):
                    await free.wait()  # its client reads nothing for minutes

            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"",
                     "asgi": {"version": "3.0", "spec_version": "2.0"}}  # fmt: skip
            await app(scope, receive, send)

        slow = [asyncio.create_task(serve()) for _ in range(5)]
        while len([each for each in sent if each.get("body")]) < 5:
            await asyncio.sleep(0.005)
        assert (await client.post(URL, json=BODY)).status_code == 200
        free.set()
        await asyncio.gather(*slow)
