"""Whose call something is: a part of a function, covered by a call around it, or one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from contextvars import copy_context

import httpx
import pytest

from scheduler import BlockingScheduler, FunctionProvider, Request, SchedulerClosed
from scheduler.adapters.places import Thread
from scheduler.core.calls import UnderWay
from scheduler.core.nested.parts import Tab, noted_here
from tests.test_parts import (
    ANSWER,
    BODY,
    COST,
    QUOTE,
    URL,
    answer,
    client_of,
    counts,
    scheduler,
    world,
)


def test_a_call_is_covered_only_while_that_which_covers_it_lasts():
    store = object()
    assert noted_here(store) == (None, False)

    def within():
        with UnderWay(store, 1):
            assert noted_here(store) == (None, True)  # a provider's own
            assert noted_here(object()) == (None, False)
            with Tab(store).kept() as tab:
                assert noted_here(store) == (tab, False)
                left = copy_context()
                with Tab(store, counts=False).kept():
                    assert noted_here(store) == (None, True)
                    deeper = copy_context()
                    with UnderWay(store, 2):  # a request of its own, made within
                        assert noted_here(store) == (None, True)
                assert deeper.run(noted_here, store) == (tab, False)
            # The function has ended, and what it cost is told; its call is not quite over.
            assert left.run(noted_here, store) == (None, False)
            assert deeper.run(noted_here, store) == (None, False)
        assert left.run(noted_here, store) == (None, False)

    copy_context().run(within)


def test_a_thread_that_asks_while_its_function_is_billed_makes_a_call_of_its_own(monkeypatch):
    asked, tell = threading.Event(), Thread.tell

    def tells(self, *args):
        tell(self, *args)
        asked.set()

    with BlockingScheduler(scheduler()) as s:
        client = s.wrap(httpx.Client(transport=httpx.MockTransport(answer)))
        left = []

        def cost(result):
            """In the scheduler's loop, when the function has ended."""
            monkeypatch.setattr(Thread, "tell", tells)
            ask = threading.Thread(
                target=result.run, args=(client.post, URL), kwargs={"json": BODY}
            )
            ask.start()
            left.append(ask)
            assert asked.wait(5)
            return 0

        @s.budgeted(quote="$0.01", cost=cost)
        def agent():
            return copy_context()

        agent()
        left[0].join(5)
        assert counts(s) == (COST, 0, 0)
        assert s.stats().succeeded == 2


def test_what_a_request_within_a_function_sends_is_that_requests():
    async def work(s, client):
        async def send(request):
            return (await client.post(URL, json=BODY)).json()

        s.add_provider(FunctionProvider("ours", send, quote=0.01, cost=COST / 1e9))

        @s.budgeted(quote="$0.01", cost=0)
        async def agent():
            await s.run(Request.chat("m", "Hi", max_tokens=9, provider="ours"))
            await client.post(URL, json=BODY)

        await agent()
        assert counts(s) == (2 * COST, 0, 0)

    world(work)


async def all_of(stream):
    return [each async for each in stream]


def test_what_a_generator_asks_is_asked_for_its_function():
    async def work(s, client):
        async def pieces():
            try:
                for _ in range(2):
                    yield (await client.post(URL, json=BODY)).json()
                async with client.stream("POST", URL, json=BODY | {"stream": True}) as streamed:
                    async for line in streamed.aiter_lines():
                        yield line
            finally:
                await client.post(URL, json=BODY)

        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            return pieces()

        found = await all_of(await agent())
        assert found[0] == ANSWER
        assert counts(s) == (5 * COST, 0, 0)
        assert s.stats().succeeded == 1

        # Read in another task each time, and beside a call that is nobody's part.
        stream = await agent()
        assert await asyncio.create_task(anext(stream)) == ANSWER
        await client.post(URL, json=BODY)
        assert s.stats().succeeded == 2
        assert len(await all_of(stream)) == len(found) - 1
        assert counts(s) == (11 * COST, 0, 0)

    world(work)


def test_a_generator_that_is_left_or_fails_counts_its_function_once():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            async def pieces():
                yield (await client.post(URL, json=BODY)).json()
                await client.post(f"{URL.replace('chat', 'slow/chat')}", json=BODY)
                raise ZeroDivisionError

            return pieces()

        stream = await agent()
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(1)
        assert counts(s) == (0, QUOTE, 0)

        with pytest.raises(ZeroDivisionError):
            await all_of(await agent())
        assert sum(counts(s)) == 2 * QUOTE

    world(work)


def test_a_function_may_be_an_async_generator_itself():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent(times):
            """Ask so often."""
            for _ in range(times):
                yield (await client.post(URL, json=BODY)).json()

        assert await all_of(agent(2)) == [ANSWER, ANSWER]
        assert counts(s) == (2 * COST, 0, 0)
        assert agent.__doc__ == "Ask so often."

        @s.budgeted(quote="$0.02")
        async def around():
            return await all_of(agent(3))

        assert len(await around()) == 3
        assert counts(s) == (5 * COST, 0, 0)

        async with contextlib.aclosing(agent(3)) as stream:
            await anext(stream)
        await asyncio.sleep(1)
        assert counts(s) == (5 * COST, QUOTE, 0)

        await s.set_limit("team", "$0")
        waiting = asyncio.create_task(anext(agent(1)))
        await asyncio.sleep(1)
        assert sum(s.stats().parked.values()) == 1
        await s.set_limit("team", "$1")
        assert await waiting == ANSWER

    world(work)


def test_so_it_may_in_the_loop_of_somebody_else():
    with BlockingScheduler(scheduler("$0")) as s:

        @s.budgeted(quote="$0.01")
        async def agent():
            async with client_of(s) as client:
                yield (await client.post(URL, json=BODY)).json()

        async def main():
            turns, waiting = 0, asyncio.create_task(all_of(agent()))
            while turns < 5:  # the loop goes on meanwhile
                await asyncio.sleep(0.02)
                turns += 1
            await asyncio.to_thread(s.set_limit, "team", "$1")
            return await waiting

        assert asyncio.run(main()) == [ANSWER]
        assert counts(s) == (COST, 0, 0)


def test_what_a_generator_asks_in_a_thread_is_asked_for_its_function():
    with BlockingScheduler(scheduler()) as s:
        client = s.wrap(httpx.Client(transport=httpx.MockTransport(answer)))

        @s.budgeted(quote="$0.01")
        def agent():
            client.post(URL, json=BODY)
            for _ in range(2):
                yield client.post(URL, json=BODY).json()
            client.post(URL, json=BODY)

        assert list(agent()) == [ANSWER, ANSWER]
        assert counts(s) == (4 * COST, 0, 0)
        client.post(URL, json=BODY)
        assert s.stats().succeeded == 2

        from_elsewhere = s.budgeted(quote="$0.01")(lambda: agent())
        assert list(from_elsewhere()) == [ANSWER, ANSWER]
        assert counts(s) == (9 * COST, 0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("way", ["wrapped", "call", "run", "budgeted"])
def test_a_fork_made_within_a_function_sends_nothing(way):
    reading, writing = os.pipe()

    def tells(request):
        os.write(writing, b"sent ")
        return answer(request)

    with BlockingScheduler(scheduler()) as s:
        client = s.wrap(httpx.Client(transport=httpx.MockTransport(tells)))

        def function(**said):
            os.write(writing, b"called ")
            return ANSWER

        ways = {
            "wrapped": lambda: client.post(URL, json=BODY).raise_for_status(),
            "call": lambda: s.call(function, model="m", messages=BODY["messages"]),
            "run": lambda: s.run(Request.chat("sim-small", "Hi")),
            "budgeted": lambda: s.budgeted(quote="$0.01")(function)(),
        }

        @s.budgeted(quote="$0.01")
        def agent():
            client.post(URL, json=BODY)
            child = os.fork()
            if child == 0:
                try:
                    ways[way]()
                except (SchedulerClosed, httpx.HTTPStatusError) as error:
                    os.write(writing, type(error).__name__.encode())
                except BaseException as error:
                    os.write(writing, repr(error).encode())
                finally:
                    os._exit(0)
            wait_for(child)

        agent()
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode()
        refused = "HTTPStatusError" if way == "wrapped" else "SchedulerClosed"
        assert said == f"sent {refused}"
        assert counts(s) == (COST, 0, 0)


def wait_for(child):
    until = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < until
        time.sleep(0.01)
