"""Clients that are allowed by an X.509 identity are counted, and keep the HTTP client they have."""

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
