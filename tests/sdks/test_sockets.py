"""Engines of a library's own (DSPy's is one) send by sockets: not reached, but not in silence."""

from __future__ import annotations

import asyncio
import json
import socket

import anyio
import httpx
import pyreqwest.client
import pytest

import scheduler
from scheduler import UncountedCalls
from tests.sdks.conftest import counted, make_scheduler
from tests.sdks.kits import MODEL, said

HOST = "api.openai.com"
BODY = json.dumps({"model": MODEL, "messages": said("Hi"), "max_tokens": 5}).encode()
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    f"content-length: {len(BODY)}\r\nconnection: close\r\n\r\n"
)
ASKED = HEAD.encode() + BODY


async def by_streams(port):
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(ASKED)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def by_anyio(port):
    async with await anyio.connect_tcp(HOST, port) as stream:
        await stream.send(ASKED)
        return await stream.receive()


async def by_a_socket(port):
    def ask():
        with socket.create_connection((HOST, port)) as connection:
            connection.sendall(ASKED)
            return connection.recv(65536)

    return await asyncio.to_thread(ask)


WAYS = [by_streams, by_anyio, by_a_socket]


@pytest.fixture
def resolved(service, monkeypatch):
    """The port of the service, which has a known name."""

    def getaddrinfo(host, port, *args, **options):
        host = host.decode() if isinstance(host, bytes) else host  # as anyio has it
        assert host in (HOST, "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return httpx.URL(service.url).port


@pytest.mark.parametrize("ask", WAYS)
async def test_what_goes_out_by_sockets_is_told_with_its_host(ask, service, resolved):
    async with make_scheduler() as s:
        with pytest.warns(UncountedCalls) as told, scheduler.instrument(s):  # noqa: PT031
            for _ in range(2):
                assert b" 200 OK" in await ask(resolved)
        assert counted(s) == 0 < service.since("billed_nusd")

    first, last = (str(each.message) for each in told)
    assert f"connects to {HOST}: what it sends is uncounted" in first
    assert "has seen no call to a model" in last


@pytest.mark.parametrize("ask", WAYS)
async def test_within_a_function_its_whole_quote_counts(ask, service, resolved):
    async with make_scheduler() as s:
        with scheduler.instrument(s):

            @s.budgeted(quote="$0.01")
            async def agent():
                async with httpx.AsyncClient() as client:
                    url = f"{service.url}/v1/chat/completions"
                    (await client.post(url, json=json.loads(BODY))).raise_for_status()
                return await ask(resolved)

            assert b" 200 OK" in await agent()
        assert counted(s) == 10_000_000 > service.since("billed_nusd")


async def test_what_is_sent_by_an_engine_in_another_language_is_told_at_the_end(service):
    client = pyreqwest.client.ClientBuilder().build()
    async with make_scheduler() as s:
        with pytest.warns(UncountedCalls, match="has seen no call"), scheduler.instrument(s):  # noqa: PT031
            post = client.post(f"{service.url}/v1/chat/completions")
            await post.body_json(json.loads(BODY)).build().send()
        assert counted(s) == 0 < service.since("billed_nusd")
    await client.close()
