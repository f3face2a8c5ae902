"""What `wrap` gives back is the same object in all but its transport."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import ssl
from functools import partial
from types import SimpleNamespace

import pytest

from scheduler import Budget, ConfigError, Scheduler, Simulated
from scheduler.adapters.shadow import Budgeted
from scheduler.testing import VirtualClock, run
from tests.sdks.conftest import counted, make_scheduler
from tests.sdks.kits import FAMILY

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]
MESSAGES = [{"role": "user", "content": "Hi"}]
ASK = {"model": "sim-small", "messages": MESSAGES, "max_tokens": 5}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "sim-small",
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "yes"}}],
    "usage": USAGE,
}  # fmt: skip
MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "sim-small",
    "content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 5},
}  # fmt: skip
STREAM = "".join(
    f"data: {json.dumps(each)}\n\n"
    for each in (
        CHAT | {"object": "chat.completion.chunk", "usage": None,
                "choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]},
        CHAT | {"object": "chat.completion.chunk", "choices": []},
    )
) + "data: [DONE]\n\n"  # fmt: skip


class Server:
    """Answers by a list of statuses, the last of them for ever; keeps what came."""

    def __init__(self, package, *statuses, family=None):
        self.httpx = importlib.import_module(family or ("httpx" if package == "groq" else FAMILY))
        self.package, self.statuses, self.seen = package, list(statuses or [200]), []
        self.tokens = []  # as they came

    def __call__(self, request):
        self.seen.append(request)
        self.tokens.append(request.headers.get("authorization", "").removeprefix("Bearer "))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        if status != 200:
            soon, body = {"retry-after-ms": "1"}, {"error": {"message": "no", "type": "x"}}
            return self.httpx.Response(status, headers=soon, json=body)
        if request.method == "GET":
            return self.httpx.Response(200, json={"object": "list", "data": []})
        body = json.loads(request.content)
        if body.get("stream"):
            headers = {"content-type": "text/event-stream"}
            return self.httpx.Response(200, headers=headers, content=STREAM.encode())
        is_message = self.package == "anthropic"
        return self.httpx.Response(200, json=MESSAGE if is_message else CHAT)

    def inner(self, sync=False):
        kind = self.httpx.Client if sync else self.httpx.AsyncClient
        return kind(transport=self.httpx.MockTransport(self))

    def client(self, kind=None, sync=False, **options):
        module = importlib.import_module(self.package)
        names = {"openai": "OpenAI", "anthropic": "Anthropic", "groq": "Groq"}
        kind = kind or getattr(module, ("" if sync else "Async") + names[self.package])
        options = {"api_key": "k", "base_url": "http://h/v1"} | options
        return kind(http_client=self.inner(sync), **options)

    def ask(self, client, **more):
        if self.package == "anthropic":
            return client.messages.create(**ASK | more)
        return client.chat.completions.create(**ASK | more)


stainless = pytest.mark.parametrize("package", ["openai", "anthropic", "groq"])
quick = partial(make_scheduler, retry_wait_s=lambda attempt: 0)


# The object


@stainless
async def test_its_class_and_state_are_those_of_the_original(package):
    server = Server(package)
    client = server.client(_strict_response_validation=True, max_retries=4, timeout=7)
    client.note = {"of": "mine"}
    resource = client.messages if package == "anthropic" else client.chat.completions
    async with make_scheduler() as s:
        made = s.wrap(client)
        await server.ask(made)

        assert type(made) is type(client)
        assert repr(made).partition(" at ")[0] == repr(client).partition(" at ")[0]
        assert made._strict_response_validation
        assert (made.max_retries, made.timeout, made.note) == (4, 7, {"of": "mine"})
        assert made.note is client.note
        assert s.stats().succeeded == 1
        assert not isinstance(client._client, Budgeted)
        await server.ask(client)
        assert (client.messages if package == "anthropic" else client.chat.completions) is resource
        assert s.stats().succeeded == 1  # the original is as it was


@stainless
async def test_a_subclass_with_its_own_init_stays_one(package):
    server, module = Server(package), importlib.import_module(package)
    base = type(server.client())

    class Mine(base):
        def __init__(self, tenant, inner):
            super().__init__(api_key=f"key of {tenant}", base_url="http://h/v1", http_client=inner)
            self.tenant = tenant

        def greet(self):
            return server.ask(self)

    async with make_scheduler() as s:
        made = s.wrap(Mine("acme", server.inner()))
        await made.greet()

        assert isinstance(made, Mine)
        assert isinstance(made, base)
        assert made.tenant == "acme"
        assert s.stats().succeeded == 1
    assert module


@stainless
async def test_parts_that_were_used_before_belong_to_the_copy(package):
    server = Server(package)
    client = server.client()
    await server.ask(client)
    part = client.messages if package == "anthropic" else client.chat.completions
    part.with_raw_response.create  # noqa: B018
    part.marked = "yes"
    async with make_scheduler() as s:
        made = s.wrap(client)
        mine = made.messages if package == "anthropic" else made.chat.completions
        await mine.create(**ASK)
        await mine.with_raw_response.create(**ASK)
        async with mine.with_streaming_response.create(**ASK) as streamed:
            await streamed.parse()

        assert mine.marked == "yes"
        assert s.stats().succeeded == 3
        assert len(server.seen) == 4


@stainless
@pytest.mark.parametrize("where", ["part", "client", "whole part"])
async def test_what_was_patched_is_still_called_and_counted(package, where):
    server, traced = Server(package), []
    client = server.client()

    def trace(original):
        def create(*args, **options):
            traced.append(options.get("model", args))
            return original(*args, **options)

        return create

    if where == "part":
        part = client.messages if package == "anthropic" else client.chat.completions
        part.create = trace(part.create)
    elif where == "client":
        client.post = trace(client.post)
    elif package == "anthropic":
        client.messages = SimpleNamespace(create=trace(client.messages.create))
    else:
        create = trace(client.chat.completions.create)
        client.chat = SimpleNamespace(completions=SimpleNamespace(create=create))
    async with make_scheduler() as s:
        made = s.wrap(client)
        await server.ask(made)

        assert len(traced) == 1
        assert s.stats().succeeded == 1
        with pytest.raises(ConfigError, match="wrapped already"):
            s.wrap(made)


@stainless
async def test_copies_of_the_wrapped_one_are_wrapped_and_say_what_they_were_told(package):
    server = Server(package, 500)
    async with quick() as s:
        made = s.wrap(server.client())
        for client in (made.with_options(timeout=3), made.copy(max_retries=1).with_options()):
            with pytest.raises(Exception, match="500"):
                await server.ask(client)

        assert s.stats().failed == 2
        assert len(server.seen) == 3 + 2


@stainless
async def test_middleware_and_blocks_go_through_it(package):
    server = Server(package)
    async with make_scheduler() as s:
        async with s.wrap(server.client()) as made:
            await server.ask(made)
        assert made.is_closed()
        if package == "anthropic" and hasattr(made, "with_middleware"):

            async def passing(request, call_next):
                return await call_next(request)

            fresh = Server(package)
            await fresh.ask(s.wrap(fresh.client(middleware=[passing])))
            assert s.stats().succeeded == 2


async def test_an_azure_deployment_keeps_its_url_and_its_version():
    import openai

    server = Server("openai")
    client = openai.AsyncAzureOpenAI(
        api_key="k", azure_endpoint="http://h", azure_deployment="sim-small",
        api_version="2024-10-21", http_client=server.inner(),
    )  # fmt: skip
    async with make_scheduler() as s:
        made = s.wrap(client)
        await server.ask(made)
        await server.ask(made.with_options(timeout=3))
        await server.ask(client)

        urls = {str(each.url) for each in server.seen}
        assert len(urls) == 1
        assert "/openai/deployments/sim-small/chat/completions?api-version=2024-10-21" in urls.pop()
        assert s.stats().succeeded == 2


async def test_foundry_from_the_environment(monkeypatch):
    import anthropic

    monkeypatch.setenv("ANTHROPIC_FOUNDRY_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_FOUNDRY_RESOURCE", "mine")
    server = Server("anthropic")
    async with make_scheduler() as s:
        made = s.wrap(anthropic.AsyncAnthropicFoundry(http_client=server.inner()))
        await server.ask(made)

        assert server.seen[0].url.host == "mine.services.ai.azure.com"
        assert s.stats().succeeded == 1


async def test_vertex_is_counted_by_the_model_in_its_path():
    import anthropic

    server = Server("anthropic")
    client = anthropic.AsyncAnthropicVertex(
        region="us-east5", project_id="p", access_token="t", http_client=server.inner()
    )
    async with make_scheduler() as s:
        await server.ask(s.wrap(client))

        assert server.seen[0].url.path.endswith("/models/sim-small:rawPredict")
        assert s.stats().posted_nusd == counted(s) > 0


async def test_bedrock_is_counted_and_its_binary_streams_are_refused():
    import anthropic

    pytest.importorskip("botocore", reason="it signs for Bedrock")
    server = Server("anthropic")
    client = anthropic.AsyncAnthropicBedrock(
        aws_region="us-east-1", aws_access_key="a", aws_secret_key="b", http_client=server.inner()
    )
    async with make_scheduler() as s:
        made = s.wrap(client)
        await server.ask(made)
        with pytest.raises(anthropic.BadRequestError, match=r"s\.budgeted"):
            await server.ask(made, stream=True)

        assert len(server.seen) == 1
        assert server.seen[0].headers["authorization"].startswith("AWS4-HMAC-SHA256")
        assert s.stats().posted_nusd == counted(s) > 0


# How often


@stainless
async def test_what_is_not_counted_keeps_the_sdks_own_retries(package, monkeypatch):
    server = Server(package, 503, 503, 200)
    async with make_scheduler() as s:
        made = s.wrap(server.client())
        monkeypatch.setattr(made, "_calculate_retry_timeout", lambda *args, **more: 0)
        await made.models.list()
        server.statuses = [503, 503, 200]
        path = "/files/1/messages"  # like an endpoint, but asks nothing
        await made.post(path, body={"content": "no question"}, cast_to=server.httpx.Response)

        assert len(server.seen) == 6
        counts = [each.headers["x-stainless-retry-count"] for each in server.seen]
        assert counts == ["0", "1", "2"] * 2
        assert s.stats().succeeded == 0


@stainless
@pytest.mark.parametrize("status", [500, 429, "broken"])
@pytest.mark.parametrize("most", [0, 3])
async def test_max_retries_bounds_what_is_sent(package, status, most):
    server = Server(package, status)
    if status == "broken":
        most = min(most, 1)  # a provider that is down is left alone for longer each time
        server.statuses = [server.httpx.ConnectError("no way")]
    async with quick() as s:
        made = s.wrap(server.client(max_retries=most))
        error = importlib.import_module(package).APIError
        with pytest.raises(error):
            await server.ask(made)
        sent = len(server.seen)
        with pytest.raises(error):
            await server.ask(made.with_options(max_retries=1))

        assert sent == most + 1
        assert len(server.seen) - sent == 2
        assert s.stats().failed == 2


@stainless
async def test_a_rate_limit_that_never_ends_is_raised_where_waiting_is_not_wanted(package):
    server = Server(package, 429)
    async with quick(max_attempts=2) as s:
        made = s.wrap(server.client(), on_exceeded="raise")
        with pytest.raises(importlib.import_module(package).RateLimitError):
            await server.ask(made)

        assert len(server.seen) <= 3
        assert counted(s) == 0


@stainless
async def test_retries_taken_tell_the_truth(package):
    server = Server(package, 500, 503, 200)
    async with quick() as s:
        made = s.wrap(server.client())
        part = made.messages if package == "anthropic" else made.chat.completions
        raw = await part.with_raw_response.create(**ASK)

        assert raw.retries_taken == 2
        assert [each.headers["x-stainless-retry-count"] for each in server.seen] == ["0", "1", "2"]
        assert s.stats().succeeded == 1


@stainless
def test_a_sync_client_tries_as_often_as_it_was_told(package):
    from scheduler import BlockingScheduler

    server = Server(package, 500, 500, 500, 200)
    with BlockingScheduler(quick()) as s:
        made = s.wrap(server.client(sync=True, max_retries=3))
        part = made.messages if package == "anthropic" else made.chat.completions
        raw = part.with_raw_response.create(**ASK)

        assert raw.retries_taken == 3
        assert len(server.seen) == 4


@stainless
@pytest.mark.parametrize("raised", [RuntimeError("oops"), ssl.SSLError("bad"), OSError("gone")])
async def test_what_a_transport_raises_is_tried_again_as_the_sdk_does(package, raised):
    server = Server(package, raised, raised, 200)
    async with quick() as s:
        made = s.wrap(server.client())
        part = made.messages if package == "anthropic" else made.chat.completions
        raw = await part.with_raw_response.create(**ASK)

        assert (raw.retries_taken, len(server.seen)) == (2, 3)
        assert s.stats().succeeded == 1
        assert counted(s) > 0


@stainless
async def test_an_error_of_the_sdks_own_is_not_tried_again(package):
    own = type("Refused", (Exception,), {"__module__": f"{package}._exceptions"})("no")
    server = Server(package, own)
    async with quick() as s:
        with pytest.raises(Exception):  # noqa: B017, PT011 (some wrap it, some do not)
            await server.ask(s.wrap(server.client()))

        assert len(server.seen) == 1


@stainless
@pytest.mark.parametrize("sync", [False, True])
async def test_its_methods_have_the_signatures_that_they_had(package, sync):
    bare = Server(package).client(sync=sync)
    async with make_scheduler() as s:
        made = s.wrap(Server(package).client(sync=sync))
        for name in ("copy", "with_options", "request", "post", "_process_response"):
            was, found = getattr(bare, name), getattr(made, name)
            assert inspect.signature(found) == inspect.signature(was)
            assert (found.__name__, found.__doc__) == (was.__name__, was.__doc__)
            assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(was)
        again = made.with_options(timeout=3)
        assert inspect.signature(again.copy) == inspect.signature(bare.copy)


@stainless
async def test_a_success_that_says_nothing_is_handed_back_once_and_counts(package):
    server = Server(package)
    empty = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
    odd = [b"[]", b"<html>", json.dumps(empty).encode()]
    for content in odd:
        sent = []

        def answer(request, content=content, sent=sent):
            sent.append(request)
            headers = {"content-type": "application/json"}
            return server.httpx.Response(200, headers=headers, content=content)

        client = server.client(max_retries=3)
        client._client._transport = server.httpx.MockTransport(answer)
        async with quick() as s:
            made = s.wrap(client)
            part = made.messages if package == "anthropic" else made.chat.completions
            raw = await part.with_raw_response.create(**ASK)
            text = await raw.text() if inspect.iscoroutinefunction(raw.text) else raw.text

            assert (text() if callable(text) else text) == content.decode()
            assert len(sent) == 1
            assert counted(s) > 0


def test_max_retries_bounds_what_is_sent_while_the_provider_is_down():
    openai = pytest.importorskip("openai")
    httpx = importlib.import_module(FAMILY)
    seen = []

    def down(request):
        seen.append(request)
        return httpx.Response(503, json={"error": {"message": "no"}})

    async def main():
        async with Scheduler(
            budgets=Budget("team", "$1"), providers=Simulated(), prices={"m": "1/4"},
            clock=VirtualClock(),
        ) as s:  # fmt: skip
            client = openai.AsyncOpenAI(
                api_key="k", max_retries=5, base_url="http://h/v1",
                http_client=httpx.AsyncClient(transport=httpx.MockTransport(down)),
            )  # fmt: skip
            client._platform = "Linux"  # else it asks in a thread, which has no virtual time
            with pytest.raises(openai.InternalServerError):
                async with asyncio.timeout(9000):
                    await s.wrap(client).chat.completions.create(**ASK | {"model": "m"})
            assert s.stats().failed == 1

    run(main())
    assert len(seen) == 6
