"""Wrapped HTTP clients at their edges: against a transport that does what a test says."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import threading

import httpx
import httpx2
import pytest

from scheduler import Budget, ConfigError, Request, Scheduler, SchedulerClosed, refusal_of
from scheduler.adapters import watch
from scheduler.adapters.places import Here, place_of_thread
from scheduler.adapters.tees import Replay, of_family

pytestmark = pytest.mark.anyio
URL = "http://h/v1/chat/completions"
BODY = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
ANSWER = {"choices": [{"message": {"content": "yes"}}], "usage": USAGE}  # 30,000 nano-dollars
KEY = "sk-marker-7f3a9c-Zm9vYmFy"


def make_scheduler(limit="$1", **options):
    return Scheduler(
        **{"budgets": Budget("team", limit), "prices": {"m": "1/4", "small": "1/4"},
           "retry_wait_s": lambda attempt: 0} | options
    )  # fmt: skip


def wrapped(s, answer, family=httpx2, sync=False, marks=None, **options):
    """A wrapped client whose requests are answered by a function; async ones may await."""
    kind = family.Client if sync else family.AsyncClient
    return s.wrap(kind(transport=family.MockTransport(answer), **options), **(marks or {}))


def events(*items, done=True):
    """A stream as a response has it."""
    lines = [f"data: {json.dumps(item)}\n\n" for item in items] + ["data: [DONE]\n\n"] * done
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, content="".join(lines).encode(), headers=headers)


def coming(*items, done=True):
    """Events that are not there before they are read."""
    whole = events(*items, done=done)
    stream = of_family(httpx2, Replay)([whole.content])
    return httpx2.Response(200, stream=stream, headers={"content-type": "text/event-stream"})


PART = {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}
END = {"choices": [], "usage": USAGE}


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


# What may have been billed keeps counting


async def test_closing_the_client_while_it_sends_voids_nothing():
    begun = asyncio.Event()

    async def answer(request):
        begun.set()
        await asyncio.sleep(0.05)
        raise RuntimeError("the client has been closed")

    async with make_scheduler() as s:
        client = wrapped(s, answer)
        call = asyncio.create_task(client.post(URL, json=BODY))
        await begun.wait()
        await client.aclose()
        with pytest.raises(RuntimeError):
            await call

        assert s.stats().suspense_nusd > 0


async def test_a_task_that_outlives_the_call_it_was_begun_in_is_counted_for_itself():
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: httpx2.Response(200, json=ANSWER))
        later = asyncio.Event()

        async def worker():
            await later.wait()
            await client.post(URL, json=BODY)

        @s.budgeted(quote="$0.01", cost="$0.001")
        async def begin():
            await client.post(URL, json=BODY)  # a part of this call
            return asyncio.create_task(worker())

        task = await begin()
        assert s.stats().posted_nusd == 1_000_000
        later.set()
        await task
        assert s.stats().posted_nusd == 1_000_000 + 30_000


async def test_a_call_of_another_scheduler_within_is_counted_there():
    async with make_scheduler() as one, make_scheduler() as other:
        seen = []

        def answer(request):
            seen.append(dict(request.headers))
            return httpx2.Response(200, json=ANSWER)

        mine, theirs = wrapped(one, answer), wrapped(other, answer)

        @one.budgeted(quote="$0.01", cost="$0.001")
        async def outer():
            headers = {"X-Scheduler-Job": "inner"}
            await theirs.post(URL, json=BODY, headers=headers)
            await mine.post(URL, json=BODY, headers=headers)

        await outer()
        assert (one.stats().succeeded, other.stats().succeeded) == (1, 1)
        assert other.stats().posted_nusd == 30_000
        assert not any("x-scheduler-job" in headers for headers in seen)


# Bodies and paths


UNREADABLE = [
    {"content": b"not json"},
    {"content": b'["a list"]'},
    {"json": BODY, "headers": {"content-encoding": "gzip"}},
]


@pytest.mark.parametrize("options", UNREADABLE)
async def test_a_call_that_nobody_can_read_is_refused_not_passed(options):
    sent = []
    async with make_scheduler() as s:
        client = wrapped(s, sent.append)
        answer = await client.post(URL, **options)

        assert answer.status_code == 400
        assert "nobody knows what it may cost; nothing was sent" in answer.text
        assert not sent


async def test_a_body_that_is_made_as_it_is_sent_is_refused():
    async def body():
        yield b"{}"

    async with make_scheduler() as s:
        answer = await wrapped(s, None).post(URL, content=body())

        assert isinstance(refusal_of(httpx2.HTTPStatusError("", request=None, response=answer)),
                          ConfigError)  # fmt: skip


async def test_half_a_surrogate_pair_is_counted():
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: httpx2.Response(200, json=ANSWER))
        content = json.dumps(BODY | {"messages": [{"role": "user", "content": "\ud800"}]})
        await client.post(f"{URL}/", content=content)

        assert s.stats().posted_nusd == 30_000


async def test_azures_deployment_is_the_model_that_is_paid_for():
    paths = []

    def answer(request):
        paths.append((request.url.path, json.loads(request.content)["model"]))
        return httpx2.Response(200, json=ANSWER)

    prices = {"dear": "100/400", "small": "1/4"}
    options = {"prices": prices, "on_exceeded": "fallback", "fallback": ["small"]}
    async with make_scheduler("$0.0005", **options) as s:
        url = "http://h/openai/deployments/dear/chat/completions?api-version=1"
        await wrapped(s, answer).post(url, json=BODY | {"model": "dear"})

        assert paths == [("/openai/deployments/small/chat/completions", "small")]
        assert s.stats().posted_nusd == 30_000


async def test_a_fallback_at_another_provider_is_refused():
    sent = []
    options = {"on_exceeded": "fallback", "fallback": ["openai:small"],
               "prices": {"m": "100/400", "small": "1/4"}}  # fmt: skip
    async with make_scheduler("$0.0005", **options) as s:
        answer = await wrapped(s, sent.append).post(URL, json=BODY)

        assert answer.status_code == 400
        assert "which this client cannot reach; nothing was sent" in answer.text
        assert s.stats().posted_nusd == s.stats().suspense_nusd == 0
        assert not sent


# Streams


async def test_a_stream_that_begins_with_an_error_is_tried_again():
    busy = {"error": {"type": "overloaded_error", "message": "busy"}}
    answers = [events(busy, done=False), events(busy, done=False)]
    answers.append(events(PART, END))
    first = answers[0]
    async with make_scheduler(max_attempts=3) as s:
        client = wrapped(s, lambda request: answers.pop(0))
        async with (
            asyncio.timeout(60),
            client.stream("POST", URL, json=BODY | {"stream": True}) as response,
        ):
            lines = [line async for line in response.aiter_lines() if line]

        assert first.is_closed
        assert [json.loads(line[6:]) for line in lines[:-1]] == [PART]
        assert s.stats().succeeded == 1
        assert s.stats().posted_nusd >= 30_000


async def test_a_stream_that_is_nothing_but_an_error_comes_through_as_it_is():
    error = {"error": {"type": "invalid", "message": "no"}}
    async with make_scheduler(max_attempts=1) as s:
        client = wrapped(s, lambda request: events(error, done=False))
        async with client.stream("POST", URL, json=BODY | {"stream": True}) as response:
            lines = [line async for line in response.aiter_lines() if line]

        assert [json.loads(line[6:]) for line in lines] == [error]


async def test_a_stream_that_nobody_reads_and_nobody_closed_gives_its_place_to_who_waits(
    monkeypatch,
):
    monkeypatch.setattr(watch, "FIRST_LOOK_S", 0.05)
    async with make_scheduler(concurrency=1) as s:
        client = wrapped(s, lambda request: coming(PART, END))

        async def begin_and_forget():
            request = client.build_request("POST", URL, json=BODY | {"stream": True})
            response = await client.send(request, stream=True)
            chunks = response.aiter_bytes()
            circle = [chunks, response]
            circle.append(circle)  # as SDKs hold them

        gc.disable()
        try:
            await begin_and_forget()
            assert s.stats().running == 1
            answer = client.post(URL, json=BODY | {"stream": True})
            assert (await asyncio.wait_for(answer, 60)).status_code == 200
        finally:
            gc.enable()


async def test_a_stream_that_somebody_reads_slowly_is_left_to_them(monkeypatch):
    monkeypatch.setattr(watch, "FIRST_LOOK_S", 0.01)
    async with make_scheduler(concurrency=1) as s:
        client = wrapped(s, lambda request: events(PART, END))
        async with client.stream("POST", URL, json=BODY | {"stream": True}) as response:
            waiting = asyncio.create_task(client.post(URL, json=BODY | {"stream": True}))
            await asyncio.wait_for(waiting, 60)  # which has its place meanwhile
            assert b"[DONE]" in await response.aread()

        assert s.stats().suspense_nusd == 0
        assert s.stats().posted_nusd == 60_000


async def test_a_sync_stream_may_be_closed_in_the_schedulers_own_loop():
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: coming(PART, done=False), sync=True)
        request = client.build_request("POST", URL, json=BODY | {"stream": True})
        response = await asyncio.to_thread(client.send, request, stream=True)
        response.close()
        await s.join()

        assert s.stats().running == 0
        assert s.stats().suspense_nusd > 0


async def test_what_mistral_tells_unasked_is_shown():
    last = {**PART, "usage": USAGE}
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: events(PART, last),
                         headers={"user-agent": "mistral-client-python/3"})  # fmt: skip
        answer = await client.post(URL, json=BODY | {"stream": True})

        assert json.loads(answer.text.split("\n\n")[1][6:]) == last
        assert s.stats().posted_nusd == 30_000


async def test_a_chunk_without_choices_that_is_not_the_usage_is_shown():
    first = {"choices": [], "prompt_filter_results": [], "usage": None}  # as Azure has it
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: events(first, PART, END))
        answer = await client.post(URL, json=BODY | {"stream": True})

        assert "prompt_filter_results" in answer.text
        assert '"usage"' not in answer.text


async def test_a_whole_answer_to_who_wanted_to_stream_can_be_read_in_every_way():
    async with make_scheduler() as s:
        client = wrapped(s, lambda request: httpx2.Response(200, json=ANSWER))
        for way in ("aread", "aiter_raw", "aiter_bytes", "aiter_lines"):
            async with client.stream("POST", URL, json=BODY) as response:
                found = getattr(response, way)()
                content = await found if way == "aread" else [each async for each in found]
            assert content
            assert response.elapsed.total_seconds() >= 0


async def test_what_breaks_off_before_its_first_event_is_raised_not_shown():
    answers = [
        events({"error": {"type": "overloaded_error", "message": "busy"}}, done=False),
        httpx2.RemoteProtocolError("dropped"),
        httpx2.RemoteProtocolError("dropped"),
    ]

    def answer(request):
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    async with make_scheduler(max_attempts=3) as s:
        client = wrapped(s, answer)
        request = client.build_request("POST", URL, json=BODY | {"stream": True})
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.send(request, stream=True)

        assert s.stats().failed == 1


async def test_a_refusal_after_a_stream_that_was_an_error_is_a_refusal():
    busy = {"error": {"type": "overloaded_error", "message": "busy"}}
    slow = {"retry_wait_s": lambda attempt: 60, "max_attempts": 3}
    async with make_scheduler(**slow) as s:
        client = wrapped(s, lambda request: events(busy, done=False), marks={"max_wait": 0.2})
        request = client.build_request("POST", URL, json=BODY | {"stream": True})
        response = await client.send(request, stream=True)

        assert response.status_code == 429
        assert b"not sent in time" in await response.aread()


async def test_what_is_no_exception_reaches_the_client_and_its_place_is_freed():
    class Stop(BaseException):
        pass

    async def hook(response):
        raise Stop

    async with make_scheduler(concurrency=1) as s:
        client = wrapped(s, lambda request: httpx2.Response(200, json=ANSWER),
                         event_hooks={"response": [hook]})  # fmt: skip
        for _ in range(2):
            with pytest.raises(Stop):
                await client.post(URL, json=BODY)

        assert s.stats().running == 0 < s.stats().suspense_nusd


# Clients


@pytest.mark.parametrize("family", [httpx, httpx2])
async def test_a_copy_of_a_wrapped_client_is_wrapped(family):
    async with make_scheduler() as s:
        client = copy.copy(wrapped(s, lambda request: family.Response(200, json=ANSWER), family))
        await client.post(URL, json=BODY)

        assert s.stats().succeeded == 1
        with pytest.raises(ConfigError, match="wrapped already"):
            s.wrap(client)


@pytest.mark.parametrize(("status", "received"), [(401, 1), (429, 2)])
async def test_a_hook_that_raises_for_status_changes_no_meaning(status, received):
    seen = []

    def answer(request):
        seen.append(1)
        return httpx2.Response(200 if len(seen) > 1 else status, json=ANSWER)

    async def hook(response):
        response.raise_for_status()

    async with make_scheduler() as s:
        client = wrapped(s, answer, event_hooks={"response": [hook]})
        if status == 401:
            with pytest.raises(httpx2.HTTPStatusError):
                await client.post(URL, json=BODY)
        else:
            await client.post(URL, json=BODY)

        assert len(seen) == received
        assert s.stats().suspense_nusd == 0


# Ends


async def test_what_goes_wrong_before_the_queue_reaches_its_caller_wherever_it_is():
    def count(request):
        raise OSError("cannot load the tokenizer")

    from scheduler import PriceBook

    prices = PriceBook({"m": "1/4"}, count_tokens=count)
    async with make_scheduler(prices=prices) as s:
        with pytest.raises(OSError, match="tokenizer"):
            await wrapped(s, None).post(URL, json=BODY)
        with pytest.raises(OSError, match="tokenizer"):
            await asyncio.to_thread(wrapped(s, None, sync=True).post, URL, json=BODY)


def test_a_loop_that_ends_without_closing_leaves_no_thread_waiting():
    answers = []

    async def main():
        s = await make_scheduler(0).__aenter__()
        client = wrapped(s, None, sync=True)
        thread = threading.Thread(target=lambda: answers.append(client.post(URL, json=BODY)))
        thread.start()
        await until(lambda: s.stats().parked)
        return thread

    asyncio.run(main()).join(10)

    assert isinstance(answers[0].extensions["scheduler.error"], SchedulerClosed)


def test_it_may_be_closed_from_another_loop():
    from scheduler import BlockingScheduler

    blocking = BlockingScheduler(make_scheduler())
    asyncio.run(blocking.scheduler.aclose())

    assert blocking.scheduler.is_closed
    blocking.close()


def test_a_paid_answer_that_comes_after_the_close_is_given_all_the_same():
    from scheduler import BlockingScheduler

    begun, go_on, answers = threading.Event(), threading.Event(), []

    def answer(request):
        begun.set()
        go_on.wait(10)
        return httpx2.Response(200, json=ANSWER)

    blocking = BlockingScheduler(make_scheduler())
    client = wrapped(blocking, answer, sync=True)
    thread = threading.Thread(target=lambda: answers.append(client.post(URL, json=BODY)))
    thread.start()
    begun.wait(10)
    blocking.close()
    go_on.set()
    thread.join(10)

    assert answers[0].json() == ANSWER


async def test_a_call_that_was_under_way_at_the_close_is_not_said_to_be_unsent():
    async def answer(request):
        await asyncio.sleep(10)

    s = await make_scheduler().__aenter__()
    call = asyncio.create_task(wrapped(s, answer).post(URL, json=BODY))
    await until(lambda: s.stats().running)
    await asyncio.sleep(0.01)
    await s.aclose()

    assert "it may be billed, and what it reserved keeps counting" in (await call).text


async def test_an_added_providers_unknown_outcomes_do_not_stop_the_resolver():
    from tests.conftest import Bench

    bench = Bench()
    bench.on_unknown = "release after 1s"

    def answer(request):
        raise httpx2.ReadTimeout("slow")

    async with make_scheduler(providers=bench, max_attempts=1) as s:
        with pytest.raises(httpx2.ReadTimeout):
            await wrapped(s, answer).post(URL, json=BODY)
        with pytest.raises(Exception, match="odd"):
            await s.run(Request.chat("m", "hi", fail=RuntimeError("odd")))
        async with asyncio.timeout(60):
            while any(each.provider == "bench" for each in await s.suspended()):
                await asyncio.sleep(0.05)

        assert [each.provider for each in await s.suspended()] == ["h"]


async def test_what_somebody_charges_is_counted_as_spent():
    def answer(request):
        raise httpx2.ReadTimeout("slow")

    async with make_scheduler(max_attempts=1) as s:
        with pytest.raises(httpx2.ReadTimeout):
            await wrapped(s, answer).post(URL, json=BODY)
        (unknown,) = await s.suspended()
        await s.resolve(unknown, charge="$0.02")

        assert (s.stats().posted_nusd, s.stats().suspense_nusd) == (20_000_000, 0)


# Secrets


async def test_no_secret_is_in_what_is_kept_of_a_call(tmp_path):
    def answer(request):
        raise httpx2.ConnectError(f"cannot reach {request.url} with {request.headers}")

    async with make_scheduler(store=tmp_path / "s.db", max_attempts=1) as s:
        client = wrapped(s, answer)
        url = f"http://user:{KEY}@h/v1/chat/completions?key={KEY}"
        headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
        with pytest.raises(httpx2.ConnectError):
            await client.post(url, json=BODY, headers=headers)
        assert s.providers == ("openai", "h")

        @s.budgeted(quote="$0.01")
        async def call(api_key):
            raise RuntimeError(f"refused {api_key}")

        with pytest.raises(RuntimeError):
            await call(api_key=KEY)
        written = b"".join(each.read_bytes() for each in tmp_path.iterdir())

        assert b"cannot reach" in written or b"could not connect" in written
        assert b"marker" not in written


# Places


async def test_a_thread_that_is_the_schedulers_own_is_refused():
    with pytest.raises(ConfigError, match="could never answer"):
        place_of_thread(asyncio.get_running_loop())


async def test_what_another_thread_tells_happens_in_the_schedulers_loop():
    place, told = Here(), []

    def tell():
        told.append(threading.get_ident())

    await asyncio.to_thread(place.tell, tell)
    await until(lambda: told)
    place.tell(tell)

    assert told == [threading.get_ident()] * 2


async def test_a_fork_of_the_schedulers_process_is_told_to_open_its_own(monkeypatch):
    async with make_scheduler() as s:
        client = wrapped(s, None, sync=True)
        with monkeypatch.context() as patched:
            patched.setattr("os.getpid", lambda: -1)
            answer = client.post(URL, json=BODY)

        assert answer.status_code == 503
        assert "before this process was forked" in answer.text
