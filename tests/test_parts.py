"""What a budgeted function asks is what it costs: exactly, once, and never below the bill."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from scheduler import (
    BlockingScheduler,
    Budget,
    HeldByCallers,
    ProviderRefused,
    Request,
    RequestRejected,
    Scheduler,
    Simulated,
)
from scheduler.testing import VirtualClock, run

PRICES = {"m": "1/4"}
URL = "http://h/v1/chat/completions"
BODY = {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "Hi"}]}
ANSWER = {
    "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5},
}
COST = 30_000  # of ANSWER, in nano-dollars
QUOTE = 10_000_000
CEILING = 4_150_000
EVENTS = (
    'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
    'data: {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}\n\n'
    "data: [DONE]\n\n"
)


def scheduler(limit="$1", **options):
    options = {
        "budgets": Budget("team", limit),
        "providers": Simulated(),
        "prices": PRICES,
    } | options
    return Scheduler(clock=VirtualClock(), max_attempts=1, **options)


class Slowly(httpx.AsyncByteStream):
    async def __aiter__(self):
        for event in EVENTS.splitlines(keepends=True):
            await asyncio.sleep(1)
            yield event.encode()


def answer(request):
    if b'"stream"' in request.content:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Slowly())
    if request.url.path.endswith("/slow"):
        raise httpx.ReadTimeout("slow")
    return httpx.Response(200, json=ANSWER)


def failing(status):
    def handler(request):
        return httpx.Response(status, json={"error": {"message": "no", "code": "no"}})

    return handler


def lost(request):
    raise httpx.ReadTimeout("lost")


def refused_connection(request):
    raise httpx.ConnectError("nobody there")


def client_of(s, handler=answer):
    return s.wrap(httpx.AsyncClient(transport=httpx.MockTransport(handler)))


def counts(s):
    stats = s.stats()
    return stats.posted_nusd, stats.suspense_nusd, stats.reserved_nusd


def world(work, **options):
    """Run a function with an open scheduler and a wrapped client."""

    async def main():
        async with scheduler(**options) as s, client_of(s) as client:
            return await work(s, client)

    return run(main())


async def plain(**kwargs):
    return ANSWER


def test_what_came_by_is_posted_once():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            for _ in range(3):
                await client.post(URL, json=BODY)
            await s.call(plain, model="m", messages=BODY["messages"])
            return "done"

        assert await agent() == "done"
        assert counts(s) == (4 * COST, 0, 0)
        assert s.stats().succeeded == 1
        await agent()
        assert counts(s) == (8 * COST, 0, 0)

    world(work)


def test_calls_at_once_and_in_tasks_and_threads_are_parts_too():
    async def main():
        async with (
            Scheduler(budgets="$1", providers=Simulated(), prices=PRICES) as s,
            client_of(s) as client,
        ):
            sync = s.wrap(httpx.Client(transport=httpx.MockTransport(answer)))

            @s.budgeted(quote="$0.01")
            async def agent():
                await asyncio.gather(*(client.post(URL, json=BODY) for _ in range(4)))
                await asyncio.create_task(client.post(URL, json=BODY))
                await asyncio.to_thread(sync.post, URL, json=BODY)

            await agent()
            assert counts(s) == (6 * COST, 0, 0)

    asyncio.run(main())


def test_more_than_was_quoted_is_an_overrun():
    async def work(s, client):
        @s.budgeted(quote="$0.00001")
        async def agent():
            await client.post(URL, json=BODY)

        await agent()
        assert counts(s) == (COST, 0, 0)
        assert s.stats().overruns == 1

    world(work)


@pytest.mark.parametrize(
    ("cost", "posted"),
    [("$0.005", 5_000_000), (lambda result: 0.004, 4_000_000), ("$0.00001", COST),
     (lambda result: None, COST), (lambda result: result["nothing"], QUOTE)],
)  # fmt: skip
def test_who_pays_elsewhere_says_so_and_it_is_never_below_what_came_by(cost, posted):
    async def work(s, client):
        @s.budgeted(quote="$0.01", cost=cost)
        async def agent():
            return (await client.post(URL, json=BODY)).json()

        await agent()
        assert counts(s) == (posted, 0, 0)

    world(work)


def test_without_any_part_the_quote_counts():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.get("http://h/v1/models")

        await agent()
        assert counts(s) == (QUOTE, 0, 0)

    world(work)


@pytest.mark.parametrize(
    ("handler", "nusd"),
    [(failing(400), COST), (failing(429), COST), (refused_connection, COST),
     (lost, COST + CEILING), (failing(500), COST + CEILING)],
)  # fmt: skip
@pytest.mark.parametrize("raises", [True, False])
def test_a_part_of_which_nobody_knows_counts_its_own_ceiling(handler, nusd, raises):
    async def work(s, client):
        other = client_of(s, handler)

        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            try:
                (await other.post(URL, json=BODY)).raise_for_status()
            except httpx.HTTPError:
                if raises:
                    raise

        if raises:
            with pytest.raises(httpx.HTTPError):
                await agent()
        else:
            await agent()
        assert counts(s) == (nusd, 0, 0)

    world(work)


def test_an_error_after_parts_that_are_known_posts_these():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            raise ValueError("what it said is no JSON")

        with pytest.raises(ValueError, match="no JSON") as caught:
            await agent()
        assert counts(s) == (COST, 0, 0)
        assert "$0.00003 counted as spent" in caught.value.__notes__[0]

    world(work)


def test_an_error_that_says_that_nothing_was_billed_does_not_hide_what_was():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            raise ProviderRefused(400, "no")

        with pytest.raises(ProviderRefused):
            await agent()
        assert counts(s) == (COST, 0, 0)

    world(work)


@pytest.mark.parametrize(
    "path", ["/v1/images/generations", "/v1/chat/completions?odd", "/v1/audio/speech"]
)
def test_what_nobody_can_price_makes_the_quote_count(path):
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            await client.post(f"http://h{path}", json={"model": "unheard-of", "messages": []})

        await agent()
        assert counts(s) == (QUOTE, 0, 0)

    world(work)


def test_what_nobody_can_price_and_parts_beyond_the_quote_count_these():
    async def work(s, client):
        @s.budgeted(quote="$0.00001")
        async def agent():
            await client.post(URL, json=BODY)
            await client.post("http://h/v1/images/generations", json={"prompt": "a cat"})

        await agent()
        assert counts(s) == (COST, 0, 0)

    world(work)


# Streams


def test_a_stream_read_within_counts_what_it_told():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            async with client.stream("POST", URL, json=BODY | {"stream": True}) as response:
                return [line async for line in response.aiter_lines() if line]

        lines = await agent()
        assert lines[-1] == "data: [DONE]"
        assert not any("usage" in line for line in lines)  # which nobody asked for
        assert counts(s) == (COST, 0, 0)

    world(work)


def test_a_stream_that_is_handed_out_is_waited_for_and_its_reader_is_not():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            request = client.build_request("POST", URL, json=BODY | {"stream": True})
            return await client.send(request, stream=True)

        response = await agent()
        assert counts(s) == (0, 0, QUOTE)
        await response.aread()
        await s.join()
        assert counts(s) == (2 * COST, 0, 0)

        response = await agent()
        await response.aclose()  # left half-way
        await s.join()
        assert counts(s) == (3 * COST + CEILING, 0, 0)

    world(work)


# Tasks that live longer


def test_calls_that_outlive_the_function_are_waited_for_and_later_ones_are_their_own():
    async def work(s, client):
        begun, tasks = asyncio.Event(), []

        async def later():
            begun.set()
            async with client.stream("POST", URL, json=BODY | {"stream": True}) as response:
                await response.aread()
            await client.post(URL, json=BODY)  # the function has long returned

        @s.budgeted(quote="$0.01")
        async def agent():
            tasks.append(asyncio.create_task(later()))
            await asyncio.sleep(3)  # it is under way
            return "done"

        assert await agent() == "done"
        assert counts(s) == (0, 0, QUOTE)
        await tasks[0]
        await s.join()
        assert counts(s) == (2 * COST, 0, 0)
        assert s.stats().succeeded == 2  # the function, and the later call

    world(work)


def test_of_a_function_that_fails_what_it_left_behind_counts_its_ceiling():
    async def work(s, client):
        tasks = []

        async def slow():
            async with client.stream("POST", URL, json=BODY | {"stream": True}) as response:
                await response.aread()

        @s.budgeted(quote="$0.01")
        async def agent():
            tasks.append(asyncio.create_task(slow()))
            await asyncio.sleep(1.5)
            raise ValueError("at once")

        with pytest.raises(ValueError, match="at once"):
            await agent()
        await tasks[0]
        await s.join()
        assert counts(s) == (CEILING, 0, 0)

    world(work)


# Within each other


def test_budgeted_in_budgeted_is_posted_once():
    async def work(s, client):
        @s.budgeted(quote="$0.002")
        async def inner():
            await client.post(URL, json=BODY)

        @s.budgeted(quote="$0.003", cost="$0.001")
        async def told():
            await client.post(URL, json=BODY)

        @s.budgeted(quote="$0.01")
        async def outer():
            await inner()
            await told()
            await client.post(URL, json=BODY)

        await outer()
        assert counts(s) == (2 * COST + 1_000_000, 0, 0)
        assert s.stats().succeeded == 1

    world(work)


def test_what_another_scheduler_admits_within_is_counted_there_and_ours_here():
    async def work(s, client):
        async with scheduler() as other:
            theirs = client_of(other)

            @other.budgeted(quote="$0.01")
            async def inner():
                await theirs.post(URL, json=BODY)
                await client.post(URL, json=BODY)

            @s.budgeted(quote="$0.01")
            async def outer():
                await inner()

            await outer()
            assert (counts(s), counts(other)) == ((COST, 0, 0), (COST, 0, 0))

    world(work)


def test_a_call_over_a_wrapped_client_is_one_part():
    async def work(s, client):
        async def complete(**kwargs):
            return (await client.post(URL, json=BODY)).json()

        @s.budgeted(quote="$0.01")
        async def agent():
            await s.call(complete, model="m", messages=BODY["messages"])

        await agent()
        assert counts(s) == (COST, 0, 0)
        await s.call(complete, model="m", messages=BODY["messages"])
        assert counts(s) == (2 * COST, 0, 0)

    world(work)


def test_a_called_function_that_makes_several_calls_counts_them_all():
    async def work(s, client):
        async def twice(**kwargs):
            await client.post(URL, json=BODY)
            return (await client.post(URL, json=BODY)).json()

        await s.call(twice, model="m", messages=BODY["messages"])
        assert counts(s) == (2 * COST, 0, 0)

    world(work)


def test_a_part_that_is_refused_for_its_rate_is_asked_again():
    tries = []

    async def busy(**kwargs):
        tries.append(1)
        if len(tries) < 3:
            error = ValueError("busy")
            error.status_code = 429
            raise error
        return ANSWER

    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            return await s.call(busy, model="m", messages=BODY["messages"])

        assert await agent() == ANSWER
        assert counts(s) == (COST, 0, 0)

    world(work)
    assert len(tries) == 3


def test_a_function_that_is_tried_again_posts_each_try():
    async def work(s, client):
        tries = []

        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            tries.append(1)
            if len(tries) == 1:
                error = ProviderRefused(400, "again")
                error.is_retryable = True
                raise error
            return "done"

        assert await agent() == "done"
        assert counts(s) == (2 * COST, 0, 0)

    async def main():
        async with Scheduler(
            budgets="$1", providers=Simulated(), prices=PRICES, clock=VirtualClock(),
            max_attempts=2, retry_wait_s=lambda attempt: 0,
        ) as s, client_of(s) as client:  # fmt: skip
            await work(s, client)

    run(main())


# Refusals


class Wrapped(Exception):
    pass


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("way", ["budgeted", "call"])
def test_an_agent_that_fails_for_a_refusal_within_counts_only_what_it_spent(is_wrapped, way):
    async def work(s, client):
        async def ask(**kwargs):
            try:
                await s.run(Request(BODY))
            except RequestRejected as error:
                if is_wrapped:
                    raise Wrapped("the agent failed") from error
                raise

        async def begin():
            if way == "budgeted":
                await s.budgeted(quote="$0.01")(ask)()
            else:
                await s.call(ask, model="m", messages=BODY["messages"], max_tokens=1000)

        with pytest.raises(Wrapped if is_wrapped else RequestRejected) as caught:
            await begin()
        assert isinstance(caught.value.__cause__ or caught.value, HeldByCallers)
        assert counts(s) == (0, 0, 0)

    world(work, limit="$0.012" if way == "budgeted" else "$0.006")


def test_an_agent_that_spent_something_before_a_refusal_counts_that():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            await client.post(URL, json=BODY)
            await s.run(Request(BODY, max_cost="$0.000001"))

        with pytest.raises(RequestRejected):
            await agent()
        assert counts(s) == (COST, 0, 0)

    world(work)


def test_a_refusal_that_was_merely_being_handled_says_nothing():
    async def work(s, client):
        @s.budgeted(quote="$0.01")
        async def agent():
            try:
                await s.run(Request(BODY, max_cost="$0.000001"))
            except RequestRejected:  # another is asked instead, elsewhere, and paid
                raise ValueError("no JSON")  # noqa: B904 - as careless as people are

        with pytest.raises(ValueError, match="no JSON"):
            await agent()
        assert counts(s) == (0, QUOTE, 0)

    world(work)


# Functions that block


def test_functions_that_block_are_quoted_and_billed_where_they_are():
    with BlockingScheduler(
        Scheduler(budgets=Budget("team", "$0.001"), providers=Simulated(), prices=PRICES)
    ) as s:
        client = s.wrap(httpx.Client(transport=httpx.MockTransport(answer)))

        @s.budgeted(quote="$0.01", cost=lambda found: found["usd"], job="by decorator")
        def told(text):
            """Say it."""
            return {"text": text, "thread": threading.get_ident(), "usd": 0.002}

        @s.budgeted(quote="$0.01")
        def agent():
            client.post(URL, json=BODY)
            return s.call(lambda **_: ANSWER, model="m", messages=BODY["messages"])

        @s.budgeted(quote="$0.01")
        async def from_another_loop():
            return await asyncio.to_thread(client.post, URL, json=BODY)

        @s.budgeted(quote="$0.01")
        def breaks():
            raise ZeroDivisionError

        threading.Timer(0.05, s.set_limit, ("team", "$1")).start()
        assert told("Hi") == {"text": "Hi", "thread": threading.get_ident(), "usd": 0.002}
        assert told.__doc__ == "Say it."
        assert s.stats().posted_nusd == 2_000_000
        assert agent() == ANSWER
        assert s.stats().posted_nusd == 2_000_000 + 2 * COST
        assert asyncio.run(from_another_loop()).json() == ANSWER
        assert s.stats().posted_nusd == 2_000_000 + 3 * COST
        with pytest.raises(ZeroDivisionError):
            breaks()
        assert s.stats().suspense_nusd == QUOTE


async def spends_too_much(s, client):
    """A function that has cost more than its quote, and goes on."""

    @s.budgeted(quote="$0.00001")
    async def agent():
        for _ in range(3):
            await client.post(URL, json=BODY)
        await asyncio.sleep(100)

    return agent


def test_what_was_billed_before_a_function_was_cancelled_counts_above_its_quote():
    async def work(s, client):
        agent = await spends_too_much(s, client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent(), 60)
        await asyncio.sleep(1)
        assert counts(s) == (3 * COST, 0, 0)

    world(work)


def test_so_does_that_of_a_function_within():
    async def work(s, client):
        agent = await spends_too_much(s, client)

        @s.budgeted(quote="$0.01")
        async def outer():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent(), 60)

        await outer()
        assert counts(s) == (3 * COST, 0, 0)

    world(work)


def test_what_a_function_left_when_it_failed_is_not_tried_again_when_its_bill_is_settled():
    tries = []

    async def lost_once(**kwargs):
        tries.append(1)
        await asyncio.sleep(1)
        raise TimeoutError("lost")

    async def main():
        providers = Simulated()
        async with Scheduler(
            budgets=Budget("team", "$1"), providers=providers, prices=PRICES, clock=VirtualClock()
        ) as s:

            @s.budgeted(quote="$0.01")
            async def agent():
                left = asyncio.create_task(s.call(lost_once, **BODY))
                await asyncio.sleep(0.5)
                left.add_done_callback(lambda task: task.exception())
                raise ValueError("no")

            with pytest.raises(ValueError, match="no"):
                await agent()
            await asyncio.sleep(300)
            assert counts(s) == (len(tries) * CEILING, 0, 0)

    run(main())
    assert tries
