"""Bare HTTP clients, clients out of reach, other loops and threads."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import threading

import pytest

import scheduler
from scheduler import BlockingScheduler, Budget, ConfigError, OpenAI, Request
from scheduler.adapters.http import family_of
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import IS_NEWEST, OPENAI, ask_sync, stream_sync

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]
families = pytest.mark.parametrize("family", ["httpx", "httpx2"])
BODY = {"model": "sim-small", "max_tokens": 30, "messages": [{"role": "user", "content": "Hi"}]}


@families
async def test_a_bare_client_waits_and_tells_what_it_cost(family, service):
    async with make_scheduler("$0.00000001") as s, s.http_client(family) as client:
        call = asyncio.create_task(client.post(f"{service.url}/v1/chat/completions", json=BODY))
        await until(lambda: s.stats().parked)
        await s.set_limit("team", "$1")
        answer = await call

        assert family_of(client).__name__ == family
        assert answer.headers["x-scheduler-attempts"] == "1"
        assert float(answer.headers["x-scheduler-cost-usd"]) * 1e9 == pytest.approx(counted(s))
        assert (await client.get(f"{service.url}/v1/models")).json()["data"]
        assert counted(s) == service.since("billed_nusd")


@families
def test_a_bare_sync_client_waits_in_its_thread(family, service):
    with BlockingScheduler(make_scheduler()) as s, s.http_client(family) as client:
        answer = client.post(f"{service.url}/v1/chat/completions", json=BODY)
        with client.stream(
            "POST", f"{service.url}/v1/chat/completions", json=BODY | {"stream": True}
        ) as streamed:
            lines = [line for line in streamed.iter_lines() if line]

        assert answer.json()["usage"]["completion_tokens"] == 12
        assert lines[-1] == "data: [DONE]"
        assert not any('"usage"' in line for line in lines)  # which nobody asked for
        assert s.stats().posted_nusd == service.since("billed_nusd")


async def test_usage_that_was_asked_for_is_shown(service):
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    async with make_scheduler() as s, s.http_client() as client:
        answer = await client.post(f"{service.url}/v1/chat/completions", json=body)
        lines = [line for line in answer.text.split("\n\n") if line]

        assert json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 12


@families
async def test_the_clients_own_settings_stay(family):
    module = importlib.import_module(family)
    seen = []

    def answer(request):
        seen.append((request.headers["x-own"], str(request.url)))
        if request.url.path == "/old/chat/completions":
            return module.Response(307, headers={"location": "/v1/chat/completions"})
        content = gzip.compress(json.dumps({"choices": [{}], "usage": {
            "prompt_tokens": 1, "completion_tokens": 1}}).encode())  # fmt: skip
        return module.Response(
            200, content=content, headers={"content-encoding": "gzip", "content-type": "text/json"}
        )

    own = module.AsyncClient(
        transport=module.MockTransport(answer), headers={"X-Own": "yes"}, base_url="http://h/old",
        follow_redirects=True, timeout=3,
    )  # fmt: skip
    async with make_scheduler() as s:
        client = s.wrap(own)
        response = await client.post("/chat/completions", json=BODY)

        assert response.json()["usage"]
        assert isinstance(client, module.AsyncClient)
        assert client.timeout == own.timeout
        assert len(response.history) == 1
        assert seen == [("yes", f"http://h/{path}/chat/completions") for path in ("old", "v1")]
        assert s.stats().succeeded == 1  # a redirect is part of its attempt
        await client.aclose()
        assert own.is_closed


@families
async def test_a_stream_in_gzip_is_followed(family):
    module = importlib.import_module(family)
    events = [{"choices": [{"index": 0, "delta": {"content": "grüezi"}, "finish_reason": "stop"}]},
              {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}]  # fmt: skip
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)

    class Slowly(module.AsyncByteStream):
        async def __aiter__(self):
            packed = gzip.compress((text + "data: [DONE]\n\n").encode())
            for start in range(0, len(packed), 7):  # cut anywhere, within letters, too
                yield packed[start : start + 7]

    def answer(request):
        assert json.loads(request.content)["stream_options"] == {"include_usage": True}
        headers = {"content-encoding": "gzip", "content-type": "text/event-stream"}
        return module.Response(200, headers=headers, stream=Slowly())

    own = module.AsyncClient(transport=module.MockTransport(answer))
    async with make_scheduler() as s, s.wrap(own) as client:
        url, body = "http://h/v1/chat/completions", BODY | {"stream": True}
        async with client.stream("POST", url, json=body) as response:
            lines = [line async for line in response.aiter_lines() if line]

        assert "grüezi" in lines[0]
        assert lines[1:] == ["data: [DONE]"]
        assert s.stats().posted_nusd == counted(s) == 150 + 2 * 600


@families
async def test_what_breaks_before_it_is_sent_costs_nothing_and_is_the_clients_own_error(family):
    module = importlib.import_module(family)
    quick = {"max_attempts": 2, "retry_wait_s": lambda attempt: 0}
    async with make_scheduler(**quick) as s, s.http_client(family) as client:
        with pytest.raises(module.ConnectError):
            await client.post("http://127.0.0.1:9/v1/chat/completions", json=BODY)

        assert s.stats().failed == 1
        assert counted(s) == 0


@families
async def test_a_closed_client_sends_nothing_and_costs_nothing(family, service):
    async with make_scheduler(max_attempts=1) as s:
        client = s.http_client(family)
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.post(f"{service.url}/v1/chat/completions", json=BODY)

        assert counted(s) == 0


@families
async def test_what_is_lost_after_it_was_sent_keeps_counting(family, slow_service):
    module = importlib.import_module(family)
    within = module.Timeout(60, read=1)
    async with make_scheduler(max_attempts=1) as s, s.http_client(family, timeout=within) as client:
        with pytest.raises(module.ReadTimeout):
            await client.post(f"{slow_service.url}/v1/chat/completions", json=BODY)

        assert s.stats().suspense_nusd >= slow_service.since("billed_nusd") > 0


def test_a_family_that_is_not_there_or_not_known_is_told(monkeypatch):
    with pytest.raises(ConfigError, match="is not one of"):
        make_scheduler().http_client("aiohttp")
    with pytest.raises(ConfigError, match="can be wrapped"):
        make_scheduler().wrap(object())


# A client that lives in another event loop than the scheduler's


def test_an_async_client_of_another_loop_waits_there(service):
    async def elsewhere(s):
        client = s.wrap(OPENAI.client(service.url, False))
        call = asyncio.create_task(OPENAI.ask(client, "From afar"))
        await until(lambda: s.stats().parked)
        await asyncio.to_thread(s.set_limit, "team", "$1")
        answer = await call
        chunks = [chunk async for chunk in await OPENAI.stream(client, "In pieces")]
        await asyncio.to_thread(s.pause, "team")
        cancelled = asyncio.create_task(OPENAI.ask(client, "Never mind"))
        await until(lambda: s.stats().parked == {"paused": 1})
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await until(lambda: s.stats().cancelled == 1)
        await client.close()
        return answer, chunks

    with BlockingScheduler(make_scheduler("$0.00000001")) as s:
        answer, chunks = asyncio.run(elsewhere(s))

        assert len(OPENAI.text(answer).split()) == 12
        assert len("".join(map(OPENAI.chunk_text, chunks)).split()) == 12
        assert s.stats().posted_nusd + s.stats().suspense_nusd >= service.since("billed_nusd") > 0
        assert s.stats().running == 0


def test_a_sync_client_is_used_by_many_threads(service):
    with BlockingScheduler(make_scheduler(concurrency=3)) as s:
        client, found = s.wrap(OPENAI.client(service.url, True)), []

        def work(n):
            with s.tag(job=f"job {n % 2}"):
                found.append(OPENAI.text(ask_sync(OPENAI, client, f"Question {n}")))
                found.append("".join(map(OPENAI.chunk_text, stream_sync(OPENAI, client, f"{n}"))))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

        assert [len(text.split()) for text in found] == [12] * 24
        assert s.stats().posted_nusd == service.since("billed_nusd")
        rows = s._do(s.scheduler.store.spend, "job")
        assert {row.name: row.attempts for row in rows} == {"job 0": 12, "job 1": 12}
        client.close()


# Clients out of reach


async def test_all_clients_wait_until_it_is_undone(service, connect):
    existing = connect(OPENAI, service.url, False)
    async with make_scheduler() as s:
        with scheduler.instrument(s, job="unreached"):
            made = connect(OPENAI, service.url, False)
            for client in (existing, made):
                assert len(OPENAI.text(await OPENAI.ask(client, "Hi")).split()) == 12
            assert [chunk async for chunk in await OPENAI.stream(made, "In pieces")]
            await asyncio.to_thread(ask_sync, OPENAI, connect(OPENAI, service.url, True), "Hi")
            with pytest.raises(ConfigError, match="was done already"):
                scheduler.instrument(s)
        assert s.stats().succeeded == 4
        assert [row.name for row in await s.store.spend("job")] == ["unreached"]
        assert counted(s) == service.since("billed_nusd")

        await OPENAI.ask(made, "Uncounted again")
        assert s.stats().succeeded == 4


async def test_what_the_scheduler_sends_itself_is_not_counted_twice(service, connect):
    import httpx

    async with httpx.AsyncClient() as own:
        provider = OpenAI(base_url=f"{service.url}/v1", client=own)
        async with make_scheduler(providers=provider) as s:
            with scheduler.instrument(s):
                await s.run(Request.chat("sim-small", "Mine", max_tokens=30))
                wrapped = s.wrap(connect(OPENAI, service.url, False))
                await OPENAI.ask(wrapped, "Wrapped besides")
                await s.call(wrapped.chat.completions.create, **BODY)

            assert s.stats().succeeded == service.since("calls") == 3
            assert counted(s) == service.since("billed_nusd")


async def test_only_what_is_unmistakably_a_call_is_taken_for_one(service):
    async with make_scheduler("$0.00000001") as s, s.http_client("httpx") as _:
        import httpx

        with scheduler.instrument(s):
            async with httpx.AsyncClient() as client:
                for url, body in (
                    ("/v1/responses", {"input": "a survey's"}),
                    ("/messages", {"messages": []}),
                ):
                    answer = await client.post(f"{service.url}{url}", json=body)
                    assert "nothing was sent" not in answer.text

        assert s.stats().failed == s.stats().queued == 0


@pytest.mark.skipif(not IS_NEWEST, reason="once is enough")
def test_importing_patches_nothing():
    import httpx
    import httpx2

    for module in (httpx, httpx2):
        for kind in (module.Client, module.AsyncClient):
            assert kind.send.__module__.startswith(module.__name__)


async def test_an_sdk_that_would_try_again_is_told_not_to(failing):
    import openai

    async with make_scheduler(max_attempts=2, retry_wait_s=lambda attempt: 0) as s:
        inner = s.http_client("httpx2" if IS_NEWEST else "httpx")
        async with openai.AsyncOpenAI(
            api_key="k", base_url=f"{failing.url}/v1", http_client=inner, max_retries=2
        ) as client:
            with pytest.raises(openai.InternalServerError):
                await OPENAI.ask(client, "Hi")

        assert failing.since("received") == 2
        assert s.stats().failed == 1


async def test_two_schedulers_keep_their_calls_apart(service, connect):
    async with make_scheduler() as one, make_scheduler() as other:
        for s, asked in ((one, 1), (other, 2)):
            client = s.wrap(connect(OPENAI, service.url, False))
            for n in range(asked):
                await OPENAI.ask(client, f"Question {n}")

        assert [s.stats().succeeded for s in (one, other)] == [1, 2]


async def test_a_provider_that_is_configured_is_recognised(service, connect):
    local = OpenAI("local", base_url=f"{service.url}/v1")
    async with make_scheduler(providers=[local]) as s:
        await OPENAI.ask(s.wrap(connect(OPENAI, service.url, False)), "Hi")

        assert s.providers == ("local",)
        await s.run(Request.chat("sim-small", "Hi", max_tokens=3))
        assert s.stats().succeeded == 2


async def test_a_provider_that_is_not_is_added_under_its_host(service, connect):
    async with make_scheduler() as s:
        await OPENAI.ask(s.wrap(connect(OPENAI, service.url, False)), "Hi")
        host = service.url.removeprefix("http://")

        assert s.providers == ("openai", host)
        with pytest.raises(scheduler.ProviderRefused, match="only that client has its key"):
            await s.run(Request.chat("sim-small", "Hi", max_tokens=3, provider=host))


async def test_no_key_reaches_the_file_or_an_error(guarded, tmp_path):
    async with make_scheduler(store=tmp_path / "s.db") as s, s.http_client() as client:
        key = "sk-marker-7f3a9c-Zm9vYmFy"
        answer = await client.post(
            f"{guarded}/v1/chat/completions", json=BODY, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 401
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())

        assert b"marker" not in written
        assert b"401" in written or s.stats().failed == 1


async def test_a_default_budget_is_enough(service, connect):
    async with make_scheduler(budgets="$1/day") as s:
        await OPENAI.ask(s.wrap(connect(OPENAI, service.url, False)), "Hi")

        assert s.stats().budgets[0].budget == Budget("default", "$1/day")
