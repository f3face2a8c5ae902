"""Under `instrument`, clients of OpenAI, Anthropic and Groq try again as they would by themselves."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import scheduler
from scheduler import BlockingScheduler
from tests.sdks.conftest import counted, make_scheduler
from tests.sdks.test_fresh import Keys, is_whole, parked_then, signing
from tests.sdks.test_same import ASK, Server, quick, stainless

pytestmark = [
    pytest.mark.anyio,
    *map(pytest.mark.filterwarnings, ("default", "ignore::scheduler.UncountedCalls")),
]


def part_of(client):
    return client.chat.completions if hasattr(client, "chat") else client.messages


@stainless
@pytest.mark.parametrize("most", [2, 4])
async def test_retries_taken_tell_the_truth(package, most):
    server = Server(package, *[500] * most, 200)
    async with quick() as s:
        client = server.client()
        with scheduler.instrument(s):
            options = {"max_retries": most}
            raw = await part_of(client.with_options(**options)).with_raw_response.create(**ASK)

        assert raw.retries_taken == most
        counts = [each.headers["x-stainless-retry-count"] for each in server.seen]
        assert counts == [str(each) for each in range(most + 1)]
        assert s.stats().succeeded == 1


@stainless
@pytest.mark.parametrize("status", [500, 429, "broken"])
@pytest.mark.parametrize("most", [0, 1])
async def test_max_retries_bounds_what_is_sent(package, status, most):
    server = Server(package, status)
    if status == "broken":
        server.statuses = [server.httpx.ConnectError("no way")]
    async with quick() as s:
        with scheduler.instrument(s), pytest.raises(importlib.import_module(package).APIError):
            await server.ask(server.client(max_retries=most))

        assert len(server.seen) == most + 1
        assert s.stats().failed == 1


@stainless
def test_a_sync_client_tries_as_often_as_it_was_told(package):
    server = Server(package, 500, RuntimeError("oops"), 500, 500, 200)
    with BlockingScheduler(quick()) as s:
        client = server.client(sync=True, max_retries=4)
        with scheduler.instrument(s):
            raw = part_of(client).with_raw_response.create(**ASK)

        assert raw.retries_taken == 4
        assert s.stats().succeeded == 1


@stainless
@pytest.mark.parametrize("model", [{}, {"model": 5}])
async def test_what_is_not_counted_keeps_the_sdks_own_retries(package, model, monkeypatch):
    server = Server(package, 503, 503, 200)
    client = server.client()
    monkeypatch.setattr(client, "_calculate_retry_timeout", lambda *args, **more: 0)
    async with quick() as s:
        with scheduler.instrument(s):
            await client.models.list()
            server.statuses = [503, 503, 200]
            path = "/messages" if package == "anthropic" else "/chat/completions"
            body = {"messages": [], **model}
            await client.post(path, body=body, cast_to=server.httpx.Response)

        counts = [each.headers["x-stainless-retry-count"] for each in server.seen]
        assert counts == ["0", "1", "2"] * 2
        assert s.stats().succeeded == 0


async def test_a_stream_that_cannot_be_followed_is_not_taken_for_one_that_is_counted():
    import anthropic

    server = Server("anthropic", 500, 500, 200)
    client = anthropic.AsyncAnthropicBedrock(
        aws_region="us-east-1", aws_access_key="a", aws_secret_key="b", http_client=server.inner()
    )
    client._calculate_retry_timeout = lambda *args, **more: 0
    async with quick() as s:
        with scheduler.instrument(s):
            await client.messages.create(**ASK, stream=True)
            assert s.stats().succeeded == 0
            server.statuses = [500, 200]
            await client.messages.create(**ASK)

        assert len(server.seen) == 5
        assert s.stats().succeeded == 1


@pytest.mark.parametrize("kind", ["key", "azure"])
async def test_a_call_that_was_parked_goes_out_with_the_key_of_now(kind):
    import openai

    server, keys = Server("openai"), Keys()
    if kind == "key":
        client = server.client(api_key=keys)
    else:
        client = openai.AsyncAzureOpenAI(
            azure_ad_token_provider=keys, azure_endpoint="http://h", api_version="2024-10-21",
            http_client=server.inner(),
        )  # fmt: skip
    async with make_scheduler("$0.00000001") as s:
        with scheduler.instrument(s):
            await parked_then(s, server.ask(client), keys.renew)

        assert server.tokens == ["new"]
        assert s.stats().posted_nusd == counted(s)


async def test_a_class_that_is_written_later_prepares_its_calls_itself(never_waits):
    server, keys = Server("openai", 500, 200), Keys()
    async with quick() as s:
        with scheduler.instrument(s):

            class Later(type(server.client())):
                async def _prepare_options(self, options):
                    options = await super()._prepare_options(options)
                    options.headers = {"Authorization": f"Bearer {await keys()}"}
                    keys.renew()
                    return options

            await server.ask(server.client(Later))

        assert server.tokens == ["old", "new"]
        assert "_prepare_options" in vars(Later)
        assert not hasattr(Later._prepare_options, "__wrapped__")


async def test_a_signed_stream_is_signed_again_with_what_is_added_to_it():
    server = Server("openai")
    async with make_scheduler() as s:
        with scheduler.instrument(s):
            async for _ in await server.ask(signing(server), stream=True):
                pass

        assert is_whole(server.seen[0])
        assert json.loads(server.seen[0].content)["stream_options"]["include_usage"]
        assert s.stats().posted_nusd == counted(s) > 0


@stainless
async def test_a_wrapped_client_is_what_it_was_and_counted_once(package):
    server = Server(package, 500, 500, 500, 200)
    async with quick() as s:
        made = s.wrap(server.client(max_retries=3))
        with scheduler.instrument(s):
            raw = await part_of(made).with_raw_response.create(**ASK)

        assert raw.retries_taken == 3
        assert (len(server.seen), s.stats().succeeded) == (4, 1)


@stainless
async def test_undone_the_sdk_is_as_it_was(package, monkeypatch):
    module = importlib.import_module(f"{package}._base_client")
    kinds = [module.AsyncAPIClient, module.SyncAPIClient, type(Server(package).client())]
    before = [dict(vars(kind)) for kind in kinds]
    server = Server(package, 500, 500, 200)
    client = server.client()
    monkeypatch.setattr(client, "_calculate_retry_timeout", lambda *args, **more: 0)
    async with quick() as s:
        undo = scheduler.instrument(s)
        request = client.request
        server.statuses = [200]
        await server.ask(client)
        undo()
        assert [dict(vars(kind)) for kind in kinds] == before

        server.statuses = [500, 500, 200]
        client.request = request  # somebody who held on to it
        await server.ask(client)
        assert (len(server.seen), s.stats().succeeded) == (4, 1)


LATER = """
import sys
import scheduler

with scheduler.open(budgets=scheduler.Budget("b", "$1"), prices={"m": "1/1"}, retry_wait_s=lambda n: 0) as s:
    with scheduler.instrument(s):
        assert "groq" not in sys.modules
        import groq, httpx
        left = [500, 500, 500, 200]
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "y"}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        send = lambda request: httpx.Response(left.pop(0), json=answer)
        client = groq.Groq(api_key="k", base_url="http://h", max_retries=3,
            http_client=httpx.Client(transport=httpx.MockTransport(send)))
        raw = client.chat.completions.with_raw_response.create(
            model="m", max_tokens=2, messages=[{"role": "user", "content": "Hi"}])
        print(raw.retries_taken, s.stats().succeeded)
"""


def test_an_sdk_that_is_imported_later_is_reached():
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True)

    assert done.stdout == "3 1\n", done.stderr
