"""What fails before anything goes out costs nothing, and says nothing of the provider."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from scheduler import Budget, Scheduler
from scheduler.testing import run
from tests.test_parts import ANSWER, BODY, COST, URL, client_of, counts, scheduler
from tests.warm import running_server

TIMES = 7  # more than it takes for a provider to be taken for down


def raising(error):
    def handler(request):
        raise error

    return handler


async def fails(s, client, kind, **more):
    with pytest.raises(kind):
        await client.post(URL, json=BODY, **more)


@pytest.mark.parametrize(
    "error",
    [
        httpx.PoolTimeout("no connection is free"),
        httpx.LocalProtocolError("Illegal header value b'Bearer sk\\n'"),
        httpx.UnsupportedProtocol("no http"),
        httpx.InvalidURL("nowhere"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_of_one_client_others_do_not_hear(error):
    async def main():
        async with scheduler() as s, client_of(s) as other, client_of(s, raising(error)) as client:
            await other.post(URL, json=BODY)
            for _ in range(TIMES):
                await fails(s, client, type(error))
            assert (await asyncio.wait_for(other.post(URL, json=BODY), 0.1)).json() == ANSWER
            assert counts(s) == (2 * COST, 0, 0)

    run(main())


def test_nor_of_one_that_is_closed():
    async def main():
        async with scheduler() as s, client_of(s) as other:
            client = client_of(s)
            await client.post(URL, json=BODY)
            await client.aclose()
            for _ in range(TIMES):
                await fails(s, client, RuntimeError)
            assert (await asyncio.wait_for(other.post(URL, json=BODY), 0.1)).json() == ANSWER
            assert counts(s) == (2 * COST, 0, 0)

    run(main())


def test_it_opens_no_provider_that_has_no_credit():
    """Who tries for all others has to have tried."""
    sent = []

    def handler(request):
        sent.append(request)
        return httpx.Response(402, json={"error": {"message": "top it up"}})

    async def main():
        async with scheduler() as s, client_of(s, handler) as client:
            calls = [asyncio.create_task(client.post(URL, json=BODY))]
            await asyncio.sleep(1)
            calls.pop().cancel()
            await asyncio.sleep(60)
            await fails(s, client_of(s, raising(httpx.PoolTimeout("none"))), httpx.PoolTimeout)

            calls = [asyncio.create_task(client.post(URL, json=BODY)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert len(sent) == 2
            assert s.stats().parked == {"provider_credit": 3}
            for call in calls:
                call.cancel()

    run(main())


async def test_a_token_that_cannot_be_had_any_more_costs_nothing():
    openai = pytest.importorskip("openai")
    made = []

    async def token():
        made.append("key")
        if len(made) % 2 == 0:
            raise PermissionError("log in again")
        return "key"

    def sync_token():
        return asyncio.run(token())

    with running_server() as url:
        async with Scheduler(budgets=Budget("team", "$0"), prices={"sim-small": "1/4"}) as s:
            asked = {"model": "sim-small", "messages": BODY["messages"], "max_tokens": 5}
            client = s.wrap(openai.AsyncOpenAI(api_key=token, base_url=url))
            sync = s.wrap(openai.OpenAI(api_key=sync_token, base_url=url))
            for ask in (
                lambda: client.chat.completions.create(**asked),
                lambda: asyncio.to_thread(sync.chat.completions.create, **asked),
            ):
                await s.set_limit("team", "$0")
                call = asyncio.ensure_future(ask())
                while not s.stats().parked:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)  # its key is too old then
                await s.set_limit("team", "$1")
                with pytest.raises(PermissionError, match="log in again"):
                    await call
            assert counts(s) == (0, 0, 0)
            assert s.stats().failed == 2
            await client.close()
            sync.close()
