"""In whose context code runs: a call in its submitter's, a subscriber in nobody's."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from scheduler import (
    BlockingScheduler,
    Budget,
    FunctionProvider,
    ProviderOverloaded,
    Request,
    Scheduler,
    StreamEvent,
)
from scheduler.events import Event
from scheduler.guards.contexts import set_within
from scheduler.testing import VirtualClock, run

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
WAYS = ["run", "submit", "map", "stream", "call", "parked", "tried again", "nested"]


class Telling(FunctionProvider):
    """Answers with the tenant that it sees."""

    def __init__(self):
        super().__init__("f", self.tell, quote="$0.01")
        self.failures = 0

    async def tell(self, request):
        if request.body.get("fails") and not self.failures:
            self.failures += 1
            error = ProviderOverloaded(503, "busy")
            error.is_billed = False
            TENANT.set("the attempt before")
            raise error
        if "then" in request.body:
            return await request.body["then"]()
        return TENANT.get()

    async def stream(self, request, emit):
        await emit(StreamEvent(TENANT.get()))
        return await self.send(request)


async def seen(s, way):
    """Which tenant a call sees that is made in such a way."""
    request = Request({"x": 1})
    if way == "submit":
        return (await s.submit(request)).body
    if way == "map":
        (response,) = [each async for each in s.map([request])]
        return response.body
    if way == "stream":
        async with s.stream(request) as stream:
            (event,) = [each async for each in stream]
            assert event.data == (await stream.response()).body
            return event.data
    if way == "call":

        async def told(model, messages):
            return {"tenant": TENANT.get(), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

        result = await s.call(told, model="m", messages=[{"role": "user", "content": "hi"}])
        return result["tenant"]
    if way == "parked":
        await s.pause("team")
        future = s.submit(request)
        await asyncio.sleep(5)
        TENANT.set("later")
        await s.resume("team")
        return (await future).body
    if way == "tried again":
        return (await s.run(Request({"fails": True}))).body
    if way == "nested":

        async def then():
            return (await s.run(request)).body

        return (await s.run(Request({"then": then}))).body
    return (await s.run(request)).body


@pytest.mark.parametrize("way", WAYS)
def test_a_call_runs_in_the_context_of_who_submitted_it(way):
    async def tenant(s, name):
        TENANT.set(name)
        return await seen(s, way)

    async def main():
        TENANT.set("who opened it")
        s = Scheduler(
            budgets=Budget("team", "$9"), providers=Telling(), clock=VirtualClock(),
            concurrency=1, prices={"m": "1/1"},
        )  # fmt: skip
        async with s:
            names = ["B", "C"]
            told = await asyncio.gather(*(asyncio.create_task(tenant(s, n)) for n in names))
            assert told == names
            assert TENANT.get() == "who opened it"

    run(main())


def test_a_call_from_a_thread_runs_in_that_threads_context():
    TENANT.set("who opened it")
    with BlockingScheduler(Scheduler(providers=Telling())) as s:
        TENANT.set("B")
        try:
            assert s.run(Request({"x": 1})).body == "B"
            assert s.submit(Request({"x": 1})).result(10).body == "B"
        finally:
            TENANT.set("nobody")


def test_what_nobody_waits_for_and_subscribers_run_in_nobodys_context():
    heard = []

    def subscriber(event):
        heard.append(TENANT.get())
        TENANT.set("left by a subscriber")

    async def main():
        TENANT.set("who opened it")
        async with Scheduler(providers=Telling(), clock=VirtualClock()) as s:
            s.on(Event, subscriber)
            TENANT.set("B")
            await s.run(Request({"x": 1}))
            await s.enqueue([Request({"x": 1}, key="k")])
            await s.join()
            (finished,) = [each async for each in s.store.finished("")]
            assert finished.response.body == "nobody"

    run(main())
    assert set(heard) == {"nobody"}


def test_a_variable_is_set_for_a_block_and_no_longer():
    variable = ContextVar("variable", default=0)

    with set_within(variable, 1):
        assert variable.get() == 1

    assert variable.get() == 0


def test_a_block_may_be_ended_in_another_context():
    variable = ContextVar("variable", default=0)

    def pieces():
        with set_within(variable, 1):
            yield

    dropped = pieces()
    copy_context().run(next, dropped)
    dropped.close()  # as the garbage collector does, wherever it runs

    assert variable.get() == 0
