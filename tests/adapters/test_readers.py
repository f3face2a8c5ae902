"""Streams whose readers are busy lend their places, and take them again at the next read."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from scheduler import Budget, FunctionProvider, Request, Scheduler, StreamEvent
from tests.adapters.test_http import BODY, END, PART, URL, events, make_scheduler, wrapped

pytestmark = pytest.mark.anyio
STREAMED = BODY | {"stream": True}


class Slow(httpx2.AsyncByteStream):
    """Some bytes, with a pause before each; counts how many are being waited for."""

    def __init__(self, counts, pause_s=0.01):
        self.counts, self.pause_s = counts, pause_s

    async def __aiter__(self):
        for chunk in events(*[PART] * 10, END).content.splitlines(keepends=True):
            self.counts["now"] += 1
            self.counts["most"] = max(self.counts["most"], self.counts["now"])
            await asyncio.sleep(self.pause_s)
            self.counts["now"] -= 1
            yield chunk


async def test_readers_that_call_between_two_reads_all_get_on():
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: events(PART, END))

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                async for _ in response.aiter_bytes():
                    assert (await client.post(URL, json=BODY)).status_code == 200

        async with asyncio.timeout(20):
            await asyncio.gather(*(read() for _ in range(17)))
        assert s.stats().suspense_nusd == 0


async def test_so_do_readers_in_threads():
    async with make_scheduler(concurrency=4) as s:
        client = wrapped(s, lambda request: events(PART, END), sync=True)

        def read():
            with client.stream("POST", URL, json=STREAMED) as response:
                for _ in response.iter_bytes():
                    assert client.post(URL, json=BODY).status_code == 200

        async with asyncio.timeout(20):
            await asyncio.gather(*(asyncio.to_thread(read) for _ in range(5)))
        assert s.stats().suspense_nusd == 0


async def test_as_many_streams_are_open_as_there_are_places():
    async with make_scheduler(concurrency=100) as s:
        client, open_, all_open = wrapped(s, lambda request: events(PART, END)), [], asyncio.Event()

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                open_.append(response)
                if len(open_) == 100:
                    all_open.set()
                await all_open.wait()
                assert b"[DONE]" in await response.aread()

        async with asyncio.timeout(20):
            await asyncio.gather(*(read() for _ in range(100)))


@pytest.mark.parametrize("way", ["stream", "call"])
async def test_readers_of_the_schedulers_own_streams_lend_their_places(way):
    class Streaming(FunctionProvider):
        async def stream(self, request, emit):
            for _ in range(3):
                await emit(StreamEvent("x"))
            return await self.send(request)

    async def answer(request=None, **kwargs):
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    async def pieces(**kwargs):
        async def generate():
            for _ in range(3):
                yield {"choices": [{"delta": {"content": "x"}}]}
            yield {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

        return generate()

    provider = Streaming("f", answer, quote="$0.001", cost="$0.001")
    options = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    async with Scheduler(
        providers=provider, budgets=Budget("team", "$1"), prices={"m": "1/1"}, concurrency=2
    ) as s:

        async def read():
            if way == "stream":
                async with s.stream(Request({"x": 1})) as stream:
                    async for _ in stream:
                        await s.run(Request({"x": 1}))
            else:
                async for _ in await s.call(pieces, **options, stream=True):
                    await s.call(answer, **options)

        async with asyncio.timeout(20):
            await asyncio.gather(*(read() for _ in range(3)))


async def test_streams_that_are_read_without_a_break_keep_their_places():
    counts = {"now": 0, "most": 0}
    async with make_scheduler(concurrency=3) as s:
        headers = {"content-type": "text/event-stream"}
        client = wrapped(
            s, lambda request: httpx2.Response(200, headers=headers, stream=Slow(counts))
        )

        async def read():
            async with client.stream("POST", URL, json=STREAMED) as response:
                async for _ in response.aiter_bytes():
                    pass

        async with asyncio.timeout(20):
            await asyncio.gather(*(read() for _ in range(12)))
        assert counts["most"] == 3


async def test_a_place_is_lent_for_as_long_as_the_reader_is_busy():
    async with make_scheduler(concurrency=1) as s:
        counts = {"now": 0, "most": 0}
        headers = {"content-type": "text/event-stream"}
        client = wrapped(
            s, lambda request: httpx2.Response(200, headers=headers, stream=Slow(counts))
        )
        async with client.stream("POST", URL, json=STREAMED) as response:
            await asyncio.sleep(0.2)
            other = asyncio.create_task(client.post(URL, json=STREAMED))
            await other
            assert b"[DONE]" in await response.aread()
        await s.join()
        free = s._pump._flight.slots
        assert all(places == 1 for places in free.values()), free
        assert all(gate.resting == 0 for gate in s.store.gates)


class Held(httpx2.AsyncByteStream):
    """Three pieces; the second when it is let go."""

    def __init__(self):
        self.go = asyncio.Event()

    async def __aiter__(self):
        first, blank, rest = events(PART, PART, END).content.partition(b"\n\n")
        yield first + blank
        await self.go.wait()
        second, blank, rest = rest.partition(b"\n\n")
        yield second + blank
        yield rest


async def test_a_reader_that_gets_busy_while_others_wait_already_lends_its_place():
    async with make_scheduler(concurrency=1) as s:
        held, headers = Held(), {"content-type": "text/event-stream"}
        left = [httpx2.Response(200, headers=headers, stream=held), events(PART, END)]
        client = wrapped(s, lambda request: left.pop(0))
        async with client.stream("POST", URL, json=STREAMED) as response, asyncio.timeout(20):
            pieces = response.aiter_bytes()
            await anext(pieces)
            second = asyncio.create_task(anext(pieces))
            other = asyncio.create_task(client.post(URL, json=STREAMED))
            await asyncio.sleep(0.3)  # the reader waits for more: it is the provider that works
            assert not other.done()
            assert s._pump._resting._timer is None  # and nobody looks again and again
            held.go.set()
            await second

            assert b"[DONE]" in (await other).content  # though the reader has called nobody
