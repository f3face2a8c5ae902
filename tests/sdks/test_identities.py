"""Clients whose HTTP client is not a counted one are counted all the same: by what they send."""

from __future__ import annotations

import asyncio

import pytest

import scheduler
from scheduler import ConfigError
from tests.sdks.conftest import counted
from tests.sdks.kits import IS_NEWEST
from tests.sdks.test_same import Server, quick

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not IS_NEWEST, reason="the previous version knows no such identity"),
]
ways = pytest.mark.parametrize("sync", [False, True])
methods = pytest.mark.parametrize("method", ["copy", "with_options"])


class Tokens(Server):
    """Gives tokens, too, to whoever has a certificate."""

    def __init__(self, *statuses):
        super().__init__("openai", *statuses)

    def __call__(self, request):
        if request.url.path == "/oauth/token":
            return self.httpx.Response(200, json={"access_token": "of-x509", "expires_in": 3600})
        return super().__call__(request)


def identity():
    from openai.auth import x509_workload_identity

    return x509_workload_identity(identity_provider_id="idp", service_account_id="svc")


def identified(server, sync, **options):
    import openai

    kind = openai.OpenAI if sync else openai.AsyncOpenAI
    inner = (server.httpx.Client if sync else server.httpx.AsyncClient)(
        transport=server.httpx.MockTransport(server), trust_env=False
    )
    said = {"base_url": "https://h/v1"} | options
    return inner, kind(http_client=inner, **said)


async def ask(server, client, sync):
    if sync:
        return await asyncio.to_thread(server.ask, client)
    return await server.ask(client)


@ways
async def test_a_client_with_a_certificate_is_counted_and_keeps_its_http_client(sync):
    server = Tokens(500, 200)
    inner, client = identified(server, sync, workload_identity=identity())
    async with quick() as s:
        made = s.wrap(client)
        assert made._client is inner
        await ask(server, made, sync)

        assert (server.tokens, s.stats().succeeded) == (["of-x509"] * 2, 1)
        assert counted(s) > 0
        await ask(server, client, sync)
        assert s.stats().succeeded == 1  # the original is as it was


@ways
@methods
@pytest.mark.parametrize("begins", ["with a key", "with an identity"])
async def test_a_copy_that_is_allowed_otherwise_is_counted_once(sync, method, begins):
    server, by_key, by_identity = Tokens(), {"api_key": "k"}, {"workload_identity": identity()}
    first, then = (by_key, by_identity) if begins == "with a key" else (by_identity, by_key)
    inner, client = identified(server, sync, **first)
    async with quick() as s:
        made = getattr(s.wrap(client), method)(**then)
        assert made._client is inner
        await ask(server, made, sync)
        assert s.stats().succeeded == 1

        back = getattr(made, method)(**first)
        await ask(server, back, sync)
        assert s.stats().succeeded == len(server.seen) == 2
        expected = ["of-x509" if each is by_identity else "k" for each in (then, first)]
        assert server.tokens == expected


@ways
async def test_a_copy_with_an_http_client_of_its_own_is_counted(sync):
    server = Tokens()
    _, client = identified(server, sync, workload_identity=identity())
    other, _ = identified(server, sync, api_key="k")
    async with quick() as s:
        made = s.wrap(client).copy(http_client=other)
        await ask(server, made, sync)
        await ask(server, s.wrap(client).copy(http_client=other, api_key="k"), sync)

        assert s.stats().succeeded == len(server.seen) == 2


@ways
@methods
@pytest.mark.parametrize("package", ["openai", "anthropic"])
async def test_a_copy_keeps_the_http_client_that_it_is_given(sync, method, package):
    first, other = Server(package), Server(package, 500, 200)
    inner = other.inner(sync)
    async with quick() as s:
        client = s.wrap(first.client(sync=sync))
        made = getattr(client, method)(http_client=inner)
        assert made._client is inner
        await ask(other, made, sync)

        assert (len(first.seen), len(other.seen), s.stats().succeeded) == (0, 2, 1)
        other.statuses[:] = [500, 200]
        again = made.copy(timeout=3)
        assert again._client is inner
        await ask(other, again, sync)
        assert (len(other.seen), s.stats().succeeded) == (4, 2)
        await ask(other, first.client(sync=sync).copy(http_client=inner), sync)
        assert s.stats().succeeded == 2  # what others send by it is not counted


@ways
async def test_a_copy_keeps_it_with_middleware_too(sync):
    first, other = Server("anthropic"), Server("anthropic", 500, 200)
    inner, seen = other.inner(sync), []

    def middleware(request, call_next):
        seen.append(request.retries_taken)
        return call_next(request)

    async def middleware_async(request, call_next):
        return await middleware(request, call_next)

    way = middleware if sync else middleware_async
    async with quick() as s:
        client = s.wrap(first.client(sync=sync, middleware=[way]))
        made = client.with_options(http_client=inner)
        made._calculate_retry_timeout = lambda *args, **more: 0
        await ask(other, made, sync)
        assert (seen, len(other.seen), s.stats().succeeded) == ([0, 1], 2, 1)


async def test_a_stream_of_such_a_copy_is_settled_by_what_it_tells():
    other = Server("openai")
    async with quick() as s:
        made = s.wrap(Server("openai").client()).copy(http_client=other.inner())
        chunks = [chunk async for chunk in await other.ask(made, stream=True)]
        await s.join()

        assert len(chunks) == 1  # nobody asked for the usage
        assert s.stats().posted_nusd == counted(s) > 0


@ways
async def test_one_that_is_wrapped_is_not_wrapped_again_until_its_scheduler_is_closed(sync):
    server = Tokens()
    _, client = identified(server, sync, workload_identity=identity())
    async with quick() as first:
        made = first.wrap(client)
        for each in (made, made.copy(), made.copy(api_key="k")):
            with pytest.raises(ConfigError, match="is wrapped already"):
                first.wrap(each)
    async with quick() as second:
        await ask(server, second.wrap(made), sync)

        assert second.stats().succeeded == len(server.seen) == 1


@ways
async def test_one_that_is_wrapped_in_an_instrumented_process_is_counted_once(sync):
    server = Tokens(500, 500, 200)
    _, client = identified(server, sync, workload_identity=identity())
    async with quick() as s:
        with scheduler.instrument(s):
            await ask(server, s.wrap(client), sync)

        assert (len(server.seen), s.stats().succeeded) == (3, 1)
