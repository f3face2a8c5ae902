"""Credentials and signatures are made when a call is sent, however long it waited."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from scheduler import BlockingScheduler
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import IS_NEWEST
from tests.sdks.test_same import ASK, Server, quick

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]


async def parked_then(s, call, change):
    """Have a call parked for a while, change something, and let it go."""
    task = asyncio.ensure_future(call)
    await until(lambda: s.stats().parked)
    await asyncio.sleep(0.05)
    change()
    await s.set_limit("team", "$1")
    return await task


class Keys:
    now = "old"

    async def __call__(self):
        return self.now

    def renew(self):
        self.now = "new"


async def test_a_key_from_a_function_is_asked_for_when_the_call_is_sent():
    server, keys = Server("openai"), Keys()
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(server.client(api_key=keys))
        await parked_then(s, server.ask(client), keys.renew)

        assert server.tokens == ["new"]
        keys.now = "newest"
        async for _ in await server.ask(client, stream=True):
            pass
        assert server.tokens[-1] == "newest"
        assert s.stats().posted_nusd == counted(s)


async def test_an_azure_token_is_asked_for_when_the_call_is_sent():
    import openai

    server, keys = Server("openai"), Keys()
    client = openai.AsyncAzureOpenAI(
        azure_ad_token_provider=keys, azure_endpoint="http://h", api_version="2024-10-21",
        http_client=server.inner(),
    )  # fmt: skip
    async with make_scheduler("$0.00000001") as s:
        await parked_then(s, server.ask(s.wrap(client)), keys.renew)

        assert server.tokens == ["new"]
        assert "/deployments/sim-small/chat" in str(server.seen[0].url)


async def test_each_retry_takes_a_key_of_its_own(never_waits):
    server, taken = Server("openai", 500, 500, 200), iter("abcdef")

    async def key():
        return next(taken)

    async with quick() as s:
        await server.ask(s.wrap(server.client(api_key=key)))

    assert server.tokens == ["a", "b", "c"]


def test_a_sync_client_takes_a_key_for_each_retry(never_waits):
    server, taken = Server("openai", 500, 200), iter("abcdef")
    with BlockingScheduler(quick()) as s:
        server.ask(s.wrap(server.client(sync=True, api_key=lambda: next(taken))))

    assert server.tokens == ["a", "b"]


@pytest.mark.skipif(not IS_NEWEST, reason="the previous version has another form of them")
@pytest.mark.parametrize("most", [0, 2])
async def test_a_refused_token_is_renewed_by_anthropic_once(most):
    from anthropic.lib.credentials import AccessToken

    server, made = Server("anthropic", 401, 200), []

    def credentials(**_):
        made.append(f"token {len(made)}")
        return AccessToken(token=made[-1], expires_at=None)

    async with quick() as s:
        client = server.client(api_key=None, credentials=credentials, max_retries=most)
        if not most:
            with pytest.raises(Exception, match="401"):
                await server.ask(s.wrap(client))
            return
        await server.ask(s.wrap(client))

        assert server.tokens == ["token 0", "token 1"]
        assert (s.stats().succeeded, s.stats().failed) == (1, 0)


async def test_an_auth_flow_of_the_http_client_runs_each_time(never_waits):
    server, taken = Server("openai", 500, 200), iter("abc")

    class Flow(server.httpx.Auth):
        def auth_flow(self, request):
            request.headers["authorization"] = f"Bearer {next(taken)}"
            yield request

    inner = server.inner()
    inner.auth = Flow()
    async with quick() as s:
        await s.wrap(inner).post("http://h/v1/chat/completions", json=ASK)

    assert server.tokens == ["a", "b"]


# Signatures


def is_whole(request):
    """Whether a body is the one that was signed."""
    return request.headers["x-amz-content-sha256"] == hashlib.sha256(request.content).hexdigest()


def signing(server):
    """A client of OpenAI's that signs its bodies, as one for Bedrock does."""
    import openai

    class Signing(openai.AsyncOpenAI):
        signed = 0

        async def _prepare_request(self, request):
            self.signed += 1
            digest = hashlib.sha256(request.content).hexdigest()
            names = ";".join(sorted(name.lower() for name in request.headers))
            request.headers["x-amz-content-sha256"] = digest
            request.headers["authorization"] = (
                f"AWS4-HMAC-SHA256 Credential=k, SignedHeaders={names}, Signature={self.signed}"
            )

    return Signing(api_key="k", base_url="http://h/v1", http_client=server.inner())


async def test_a_signed_stream_is_signed_again_with_what_is_added_to_it():
    server = Server("openai")
    async with make_scheduler() as s:
        client = s.wrap(signing(server))
        headers = {"X-Scheduler-Job": "mine"}
        async for _ in await server.ask(client, stream=True, extra_headers=headers):
            pass
        await server.ask(client, extra_headers=headers)

        assert [is_whole(each) for each in server.seen] == [True, True]
        assert json.loads(server.seen[0].content)["stream_options"]["include_usage"]
        for each in server.seen:
            assert "x-scheduler-job" not in each.headers
            assert "x-scheduler-job" not in each.headers["authorization"]
        assert [row.attempts for row in await s.store.spend("job")] == [2]


@pytest.mark.parametrize("name", ["x-amz-content-sha256", "content-digest", "content-md5"])
async def test_what_nobody_here_can_sign_is_left_as_it_is(name):
    server = Server("openai")
    async with make_scheduler() as s:
        client = s.wrap(server.inner())
        body = json.dumps(ASK | {"stream": True}).encode()
        answer = await client.post(
            "http://h/v1/chat/completions", content=body, headers={name: "of the body"}
        )

        assert answer.status_code == 200
        assert server.seen[0].content == body
        assert counted(s) > 0


# Closing


async def test_what_google_closes_is_closed():
    from google import genai

    for own in (False, True):
        server = Server("openai", family="httpx")
        more = {"httpx_async_client": server.inner()} if own else {}
        async with make_scheduler() as s:
            client = genai.Client(api_key="k", http_options={"base_url": "http://h", **more})
            inner = client._api_client._async_httpx_client
            made = s.wrap(client)
            async with made.aio:
                assert isinstance(made._api_client._async_httpx_client, type(inner))
            assert inner.is_closed is not own
            client.close()
            assert client._api_client._httpx_client.is_closed


async def test_what_mistral_closes_is_closed():
    from mistralai.client import Mistral

    for own in (None, Server("openai", family="httpx").inner()):
        client = Mistral(api_key="k", server_url="http://h", async_client=own)
        inner = client.sdk_configuration.async_client
        async with make_scheduler() as s, s.wrap(client):
            pass
        assert inner.is_closed is (own is None)
