"""A scheduler that was made, but not opened, says so; and a blocking one can do what it can."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import openai
import pytest

import scheduler
from scheduler import BlockingScheduler, Budget, Request, Scheduler, SchedulerClosed, Simulated
from scheduler.testing import run

REQUEST = Request.chat("sim-small", "Hi", max_tokens=5)
URL = "http://h/v1/chat/completions"


def made():
    return Scheduler(budgets="$1", providers=Simulated())


async def plain(**kwargs):
    raise AssertionError("not called")


async def by_budgeted(s):
    await s.budgeted(quote="$0.01")(plain)()


async def by_call(s):
    await s.call(plain, model="sim-small", messages=[])


async def by_submit(s):
    s.submit(REQUEST)


async def by_run(s):
    await s.run(REQUEST)


async def by_stream(s):
    s.stream(REQUEST)


async def by_map(s):
    _ = [each async for each in s.map([REQUEST])]


async def by_set_limit(s):
    await s.set_limit("default", "$2")


async def by_join(s):
    with s.tag(job="nightly"):
        await s.join()


WAYS = [by_budgeted, by_call, by_submit, by_run, by_stream, by_map, by_set_limit, by_join]


@pytest.mark.parametrize("use", WAYS)
def test_whatever_is_asked_says_that_it_is_not_opened(use):
    with pytest.raises(
        SchedulerClosed, match=r"not opened yet; nothing was sent. Use it in `async"
    ):
        run(use(made()))


def nobody(request):
    raise AssertionError("not sent")


def test_what_was_wrapped_before_says_so_and_works_when_it_is_opened():
    async def main():
        s = made()
        client = s.wrap(openai.AsyncOpenAI(api_key="k", base_url="http://h/v1"))
        bare = s.wrap(httpx.AsyncClient(transport=httpx.MockTransport(nobody)))
        sync = s.wrap(httpx.Client(transport=httpx.MockTransport(nobody)))
        with pytest.raises(openai.APIStatusError, match="not opened yet") as caught:
            await client.chat.completions.create(**REQUEST.body)
        assert isinstance(scheduler.refusal_of(caught.value), SchedulerClosed)
        assert "scheduler.open(…)" in (await bare.post(URL, json=REQUEST.body)).text
        assert "not opened" in (await asyncio.to_thread(sync.post, URL, json=REQUEST.body)).text
        with scheduler.instrument(s):
            async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as other:
                assert (await other.post(URL, json=REQUEST.body)).status_code == 503
        async with s:
            assert (await s.run(REQUEST)).text
        await client.close()

    asyncio.run(main())


# What a scheduler in its own loop has, and code that blocks has no use for
OF_ITS_LOOP = {
    "aclose": "it is `close`",
    "loop": "adapters ask for it",
    "marks": "likewise",
    "now_ms": "likewise",
    "part": "likewise",
    "provider_at": "likewise",
    "is_waiting": "likewise",
    "keep_to": "the command line's: of those who write one file together",
    "shares": "likewise",
    "serves": "likewise: of those who send what others submit",
    "begun": "likewise",
    "learn_prices": "likewise",
    "led_to": "likewise",
    "turns": "the page's and the gateway's: how it is doing",
    "running": "likewise",
    "watch": "tracing's: called in its loop for each request",
    "accompany": "likewise: what begins and ends with it",
    "herald": "likewise: it tells webhooks",
    "redefine": "for one that is not opened: this one is, from its beginning",
}


def public(kind):
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


def test_a_blocking_scheduler_can_do_all_that_a_scheduler_can():
    missing = public(Scheduler) - public(BlockingScheduler)

    assert missing == set(OF_ITS_LOOP)


def test_its_methods_take_what_the_schedulers_take():
    for name in public(Scheduler) & public(BlockingScheduler):
        theirs, ours = (getattr(kind, name) for kind in (Scheduler, BlockingScheduler))
        if not callable(theirs):
            continue
        wanted = set(inspect.signature(theirs).parameters) - {"send", "stream"}
        taken = inspect.signature(ours).parameters
        passes_on = any(each.kind is each.VAR_KEYWORD for each in taken.values())
        assert passes_on or wanted <= set(taken), name


def test_each_of_them_does_it():
    with scheduler.open(budgets=Budget("team", "$1"), providers=Simulated()) as s:
        s.ensure(Budget("ann", "$1"), Budget("team", "$9"))
        (submitted,) = s.enqueue(
            [Request.chat("sim-small", "Hi", max_tokens=5, key="k", budget="team")]
        )
        assert submitted.id
        s.join()
        assert s.budgets_of(Request(REQUEST.body, budget="team")).budgets == ("team",)
        assert s.provider_for(REQUEST) == s.providers[0] == "simulated"
        assert s.digest(REQUEST) == s.digest(REQUEST)
        s.validate(Request(REQUEST.body, budget="team"))
        with pytest.raises(scheduler.PriceUnknown):
            s.validate(Request.chat("unheard-of", "Hi"))
        assert s.suspended(limit=5) == []
        assert not s.probe("simulated")
        s.add_provider(Simulated("another"))
        assert s.providers[-1] == "another"
        assert s.forecast().requests == 0
        s.check()
        s.stop_admitting("another")
        s.cancel_running()
        s.drain()
        assert not s.is_closed
    assert s.is_closed


def test_a_blocking_scheduler_is_instrumented():
    answer = {"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 1}}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    with scheduler.open(budgets="$1", providers=Simulated(), prices={"m": "1/1"}) as s:
        with scheduler.instrument(s), httpx.Client(transport=transport) as client:
            client.post(URL, json=REQUEST.body | {"model": "m"})
        assert s.stats().succeeded == 1
