"""Who writes down the body of a call by themselves has it tried again as any other."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.sdks.conftest import counted
from tests.sdks.test_attempts import Adopted, ways
from tests.sdks.test_same import ASK, Server, quick, stainless

pytestmark = [
    pytest.mark.anyio,
    *map(pytest.mark.filterwarnings, ("default", "ignore::scheduler.UncountedCalls")),
]


def signing(server, sync):
    """A client that signs each request, by a number that is never the same."""
    kind, signed = type(server.client(sync=sync)), iter(range(9))

    class Signing(kind):
        if sync:

            def _prepare_request(self, request):
                request.headers["signature"] = str(next(signed))
        else:

            async def _prepare_request(self, request):
                request.headers["signature"] = str(next(signed))

    return server.client(kind=Signing, sync=sync)


async def post(server, client, sync, said):
    path = "/messages" if server.package == "anthropic" else "/chat/completions"
    told = {"content": json.dumps(said).encode(), "cast_to": server.httpx.Response}
    told["options"] = {"headers": {"content-type": "application/json"}}
    if sync:
        return await asyncio.to_thread(client.post, path, **told)
    return await client.post(path, **told)


@stainless
@ways
@pytest.mark.parametrize("sync", [False, True])
async def test_each_try_of_a_raw_body_is_made_and_signed_anew(package, way, sync):
    server = Server(package, 500, 500, 200)
    async with quick() as s:
        with Adopted(s, way) as adopt:
            answer = await post(server, adopt(signing(server, sync)), sync, ASK)

        assert answer.status_code == 200
        assert len({each.headers["signature"] for each in server.seen}) == 3
        assert [json.loads(each.content) for each in server.seen] == [ASK] * 3
        assert (s.stats().succeeded, s.stats().failed) == (1, 0)
        assert counted(s) > 0


@ways
async def test_a_raw_body_that_streams_is_asked_for_its_usage_in_each_try(way):
    server = Server("openai", 500, 200)
    async with quick() as s:
        with Adopted(s, way) as adopt:
            await post(server, adopt(server.client()), False, ASK | {"stream": True})

        told = [json.loads(each.content).get("stream_options") for each in server.seen]
        assert told == [{"include_usage": True}] * 2
        assert s.stats().succeeded == 1
