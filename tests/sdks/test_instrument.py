"""What `instrument` reaches besides httpx, what it cannot reach, and that either is said."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import subprocess
import sys
import threading
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import aiohttp
import pytest
import requests

import scheduler
from scheduler import BudgetExceeded, DeadlineExceeded, UncountedCalls, refusal_of
from scheduler.adapters.sightings import is_of_a_model
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import GOOGLE, MODEL, said

pytestmark = [
    pytest.mark.anyio,
    *map(pytest.mark.filterwarnings, ("ignore::DeprecationWarning", "ignore::UserWarning")),
]
BODY = {"model": MODEL, "max_tokens": 30, "messages": said("Hi")}
STREAMED = BODY | {"stream": True}
PATH = "/v1/chat/completions"


# Ways to send


async def by_aiohttp(url, body, **options):
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, **options) as answer,
    ):
        return answer.status, await answer.json(), dict(answer.headers)


async def by_aiohttp_text(url, body, **options):
    headers = options.pop("headers", {}) | {"Content-Type": "application/json"}
    base, slash, path = url.partition("/v1")
    async with aiohttp.ClientSession(base, headers=headers) as session:
        answer = await session.request("POST", slash + path, data=json.dumps(body), **options)
        return answer.status, json.loads(await answer.text()), dict(answer.headers)


def ask_by_requests(url, body, options):
    answer = requests.post(url, json=body, **options)
    return answer.status_code, answer.json(), dict(answer.headers)


def ask_by_session(url, body, options):
    with requests.Session() as session:
        session.headers.update(options.pop("headers", {}))
        answer = session.post(url, data=json.dumps(body), **options)
        return answer.status_code, answer.json(), dict(answer.headers)


async def by_requests(url, body, **options):
    return await asyncio.to_thread(ask_by_requests, url, body, options)


async def by_requests_session(url, body, **options):
    return await asyncio.to_thread(ask_by_session, url, body, options)


ways = pytest.mark.parametrize(
    "ask", [by_aiohttp, by_aiohttp_text, by_requests, by_requests_session]
)


@ways
async def test_a_call_waits_is_counted_once_and_tells_what_it_cost(ask, service):
    async with make_scheduler("$0.00000001") as s:
        with scheduler.instrument(s, job="unreached"):
            call = asyncio.create_task(ask(service.url + PATH, BODY))
            await until(lambda: s.stats().parked)
            assert service.since("received") == 0
            await s.set_limit("team", "$1")
            status, answer, headers = await call

        assert status == 200
        assert answer["usage"]["completion_tokens"] == 12
        assert headers["x-scheduler-attempts"] == "1"
        assert float(headers["x-scheduler-cost-usd"]) * 1e9 == pytest.approx(counted(s))
        assert (s.stats().succeeded, s.stats().running) == (1, 0)
        assert counted(s) == service.since("billed_nusd") > 0
        assert [row.name for row in await s.store.spend("job")] == ["unreached"]


@ways
async def test_headers_are_taken_off_and_say_what_they_say(ask, service):
    async with make_scheduler() as s:
        with scheduler.instrument(s):
            await ask(service.url + PATH, BODY, headers={"X-Scheduler-Job": "by header"})
            status, answer, _ = await ask(
                service.url + PATH, BODY, headers={"X-Scheduler-Jop": "wrong"}
            )

        assert (status, "is not one of" in answer["error"]["message"]) == (400, True)
        assert [row.name for row in await s.store.spend("job")] == ["by header"]


@ways
async def test_a_cap_reaches_the_server(ask, service):
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    async with make_scheduler(cap_output=5) as s:
        with scheduler.instrument(s):
            _, answer, _ = await ask(service.url + PATH, body)

        assert answer["usage"]["completion_tokens"] == 5
        assert counted(s) == service.since("billed_nusd")


@ways
async def test_a_refusal_is_an_answer_in_the_providers_form(ask, service):
    async with make_scheduler(0, on_exceeded="raise") as s:
        with scheduler.instrument(s):
            status, answer, _ = await ask(service.url + PATH, BODY)

    assert (status, answer["error"]["code"]) == (402, "budget_exceeded")
    assert service.since("received") == 0


@ways
async def test_a_refused_provider_is_tried_again_and_its_answer_is_given(ask, failing):
    async with make_scheduler(max_attempts=2, retry_wait_s=lambda attempt: 0) as s:
        with scheduler.instrument(s):
            status, answer, headers = await ask(failing.url + PATH, BODY)

        assert (status, headers["x-should-retry"]) == (500, "false")
        assert answer["error"]
        assert failing.since("received") == 2
        assert counted(s) >= failing.since("billed_nusd")


@ways
async def test_what_was_never_sent_costs_nothing_and_is_the_clients_own_error(ask):
    own = aiohttp.ClientConnectorError if "aiohttp" in ask.__name__ else requests.ConnectionError
    async with make_scheduler(max_attempts=1) as s:
        with scheduler.instrument(s), pytest.raises(own):
            await ask(f"http://127.0.0.1:9{PATH}", BODY)

        assert (s.stats().failed, counted(s)) == (1, 0)


@ways
async def test_what_is_lost_after_it_was_sent_keeps_counting(ask, slow_service):
    is_aio = "aiohttp" in ask.__name__
    own = TimeoutError if is_aio else requests.ReadTimeout
    timeout = aiohttp.ClientTimeout(total=0.3) if is_aio else 0.3
    async with make_scheduler(max_attempts=1) as s:
        with scheduler.instrument(s), pytest.raises(own):
            await ask(slow_service.url + PATH, BODY, timeout=timeout)

        assert s.stats().suspense_nusd >= slow_service.since("billed_nusd") > 0


@ways
async def test_what_is_no_call_goes_out_untouched(ask, service):
    async with make_scheduler(0) as s:
        with scheduler.instrument(s):
            status, _, headers = await ask(f"{service.url}/v1/responses", {"input": "a survey's"})

    assert status >= 400
    assert "x-scheduler-attempts" not in headers


# Streams


async def lines_of(content):
    return [line async for line in content if line.strip()]


async def chunks_of(content):
    whole = b"".join([chunk async for chunk in content.iter_chunked(7)])
    return [line for line in whole.split(b"\n") if line.strip()]


async def any_of(content):
    whole = b"".join([chunk async for chunk in content.iter_any()])
    return [line for line in whole.split(b"\n") if line.strip()]


async def parts_of(content):
    whole = b"".join([chunk async for chunk, _ in content.iter_chunks()])
    return [line for line in whole.split(b"\n") if line.strip()]


async def all_of(content):
    return [line for line in (await content.read()).split(b"\n") if line.strip()]


@pytest.mark.parametrize("read", [lines_of, chunks_of, any_of, parts_of, all_of])
async def test_a_stream_of_aiohttps_is_followed_however_it_is_read(read, service):
    async with make_scheduler() as s, aiohttp.ClientSession() as session:
        with scheduler.instrument(s):
            async with session.post(service.url + PATH, json=STREAMED) as answer:
                assert answer.content_type == "text/event-stream"
                lines = await read(answer.content)

        assert lines[-1].strip() == b"data: [DONE]"
        assert not any(b'"usage":{' in line for line in lines)  # which nobody asked for
        assert (s.stats().succeeded, s.stats().running) == (1, 0)
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd") > 0


@pytest.mark.parametrize("way", ["lines", "content", "raw", "whole"])
def test_a_stream_of_requests_is_followed_however_it_is_read(way, service):
    with scheduler.BlockingScheduler(make_scheduler()) as s, scheduler.instrument(s):
        with requests.post(service.url + PATH, json=STREAMED, stream=way != "whole") as answer:
            if way == "lines":
                lines = [line for line in answer.iter_lines() if line]
            elif way == "content":
                lines = b"".join(answer.iter_content(5)).split(b"\n\n")
            elif way == "raw":
                lines = [line for line in answer.raw if line.strip()]
            else:
                lines = answer.content.split(b"\n\n")

        lines = [line.strip() for line in lines if line.strip()]
        assert lines[-1] == b"data: [DONE]"
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd") > 0


async def test_a_stream_that_is_left_keeps_counting(service):
    async with make_scheduler() as s, aiohttp.ClientSession() as session:
        with scheduler.instrument(s):
            async with session.post(service.url + PATH, json=STREAMED) as answer:
                await answer.content.readany()
            await s.join()
            left = await session.post(service.url + PATH, json=STREAMED)
            left.close()
            await s.join()
            dropped = await session.post(service.url + PATH, json=STREAMED)
            del dropped
            await s.join()

        assert s.stats().running == 0
        assert counted(s) >= service.since("billed_nusd") > 0


def counted_of(s):
    return s.stats().posted_nusd + s.stats().suspense_nusd


def test_a_stream_of_requests_that_is_left_keeps_counting(service):
    with scheduler.BlockingScheduler(make_scheduler()) as s, scheduler.instrument(s):
        with requests.post(service.url + PATH, json=STREAMED, stream=True) as answer:
            next(answer.iter_lines())
        assert counted_of(s) >= service.since("billed_nusd") > 0


class Gzip(BaseHTTPRequestHandler):
    """Answers in gzip, a stream in pieces; the first time by a redirect."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.startswith("/old"):
            self.send_response(307)
            self.send_header("location", PATH)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        text = json.dumps({"choices": [{"message": {"content": "grüezi"}}], "usage": usage})
        kind = "application/json"
        if body.get("stream"):
            assert body["stream_options"] == {"include_usage": True}
            delta = {"index": 0, "delta": {"content": "grüezi"}, "finish_reason": "stop"}
            events = [{"choices": [delta]}, {"choices": [], "usage": usage}]
            text = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
            kind = "text/event-stream"
        packed = gzip.compress(text.encode())
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def gzipped():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gzip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("decodes", [None, False])
@pytest.mark.parametrize("body", [BODY, STREAMED])
async def test_answers_in_gzip_and_redirects_come_as_they_should(decodes, body, gzipped):
    options = {} if decodes is None else {"auto_decompress": decodes}
    async with make_scheduler() as s, aiohttp.ClientSession(**options) as session:
        with scheduler.instrument(s):
            async with session.post(f"{gzipped}/old{PATH}", json=body) as answer:
                text = await answer.text()
                assert len(answer.history) == 1
                assert str(answer.url) == gzipped + PATH
            told = await asyncio.to_thread(lambda: requests.post(f"{gzipped}/old{PATH}", json=body))

        assert "gr\\u00fcezi" in text
        assert told.text == text
        assert len(told.history) == 1
        assert s.stats().succeeded == 2
        assert counted(s) == 2 * (150 + 2 * 600)


@pytest.mark.parametrize(
    ("headers", "asked_for"),
    [
        ({"content-length": "9"}, None),  # as a whole: byte by byte a large one takes seconds
        ({"content-length": "9", "content-type": "text/event-stream"}, 1),
        ({}, 1),  # it may be a live one, which ends with its connection
    ],
)
def test_only_what_may_be_live_is_read_byte_by_byte(headers, asked_for):
    from scheduler.adapters.sessions import _pieces

    came, asked = requests.Response(), []
    came.headers.update(headers)
    came.raw = SimpleNamespace(chunked=False, read1=None)
    came.iter_content = lambda size: asked.append(size) or ()

    assert list(_pieces(came)) == []
    assert asked == [asked_for]


# Errors of the clients' own


async def test_raise_for_status_says_why_and_refusal_of_knows_it(service):
    async with make_scheduler(0, on_exceeded="raise") as s:
        with scheduler.instrument(s):
            for options in ({"raise_for_status": True}, {}):
                async with aiohttp.ClientSession(**options) as session:
                    with pytest.raises(aiohttp.ClientResponseError, match="budget exceeded") as got:
                        async with session.post(service.url + PATH, json=BODY) as answer:
                            answer.raise_for_status()
                    assert got.value.status == 402
                    assert isinstance(refusal_of(got.value), BudgetExceeded)
            with pytest.raises(requests.HTTPError, match="budget exceeded") as told:
                await asyncio.to_thread(
                    lambda: requests.post(service.url + PATH, json=BODY).raise_for_status()
                )
            assert isinstance(refusal_of(told.value), BudgetExceeded)


async def test_google_goes_by_aiohttp_and_is_counted(service):
    async with make_scheduler() as s:
        with scheduler.instrument(s):
            client = GOOGLE.client(service.url, False)
            assert client._api_client._use_aiohttp()
            answer = await GOOGLE.ask(client, "Hi")
            chunks = [chunk async for chunk in await GOOGLE.stream(client, "In pieces")]
            with s.tag(max_wait=0.05):
                await s.pause("team")
                with pytest.raises(GOOGLE.error()) as caught:
                    await GOOGLE.ask(client, "Never")
            await client.aio.aclose()

        assert len(GOOGLE.text(answer).split()) == 12
        assert len("".join(map(GOOGLE.chunk_text, chunks)).split()) == 12
        assert isinstance(refusal_of(caught.value), DeadlineExceeded)
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd") > 0


# What cannot be reached is said


async def test_the_end_warns_if_no_call_was_seen(service):
    async with make_scheduler() as s:
        undo = scheduler.instrument(s)
        with pytest.warns(UncountedCalls, match="has seen no call to a model"):
            undo()
        undo()  # once is enough
        with pytest.raises(ZeroDivisionError), scheduler.instrument(s):
            raise ZeroDivisionError  # it says itself what is wrong


async def test_calls_by_other_means_are_told_once_for_each_host(service):
    def by_urllib():
        data = json.dumps(BODY).encode()
        for _ in range(2):
            urllib.request.urlopen(urllib.request.Request(service.url + PATH, data)).read()

    async with make_scheduler() as s:
        with (
            pytest.warns(UncountedCalls) as told,
            scheduler.instrument(s),
        ):
            await asyncio.to_thread(by_urllib)

    assert [("goes out uncounted" in str(each.message)) for each in told] == [True, False]
    assert "(/v1/chat/completions)" in str(told[0].message)


async def test_an_address_that_a_library_of_its_own_looks_up_is_told():
    import socket

    async with make_scheduler() as s:
        with pytest.warns(UncountedCalls) as told, scheduler.instrument(s):  # noqa: PT031
            for host in ("api.openai.com", "api.openai.com", "example.org", None):
                with contextlib.suppress(OSError):
                    socket.getaddrinfo(host, 443)

    assert "connects to api.openai.com" in str(told[0].message)
    assert len(told) == 2


PLACES = [
    ("bedrock-runtime.eu-west-1.amazonaws.com", "/model/anthropic.claude/converse-stream", True),
    (
        "us-aiplatform.googleapis.com",
        "/v1/projects/p/publishers/anthropic/models/c:rawPredict",
        True,
    ),
    ("me.openai.azure.com", "/openai/deployments/d/chat/completions", True),
    ("localhost", "/v1/chat/completions", True),
    ("localhost", "/messages", False),
    ("api.openai.com", "/v1/files", False),
    ("example.org", "/model/x", False),
    ("s3.amazonaws.com", None, False),
    ("api.anthropic.com", None, True),
]


@pytest.mark.parametrize(("host", "path", "is_one"), PLACES)
def test_only_what_is_plainly_a_models_is_warned_of(host, path, is_one):
    assert is_of_a_model(host, path) is is_one


async def test_bedrock_by_boto3_is_told(service):
    import boto3
    import botocore.exceptions

    def converse():
        client = boto3.client(
            "bedrock-runtime", region_name="us-east-1", endpoint_url=service.url,
            aws_access_key_id="k", aws_secret_access_key="s",
        )  # fmt: skip
        with contextlib.suppress(
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError
        ):
            client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "Hi"}]}])

    async with make_scheduler() as s:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with scheduler.instrument(s):
                await asyncio.to_thread(converse)

    assert any("/model/m/converse" in str(each.message) for each in told)


PROGRAM = """
import asyncio, scheduler
async def main():
    async with scheduler.Scheduler(providers=scheduler.Simulated()) as s:
        scheduler.instrument(s)
asyncio.run(main())
"""


def test_the_end_of_the_program_warns_too():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)

    assert done.returncode == 0
    assert "UncountedCalls: instrument has seen no call" in done.stderr


async def test_whoever_patched_it_later_keeps_what_they_did(service):
    async with make_scheduler() as s:
        undo = scheduler.instrument(s)
        ours = aiohttp.ClientSession._request
        seen = []

        async def theirs(session, *args, **options):
            seen.append(args[0])
            return await ours(session, *args, **options)

        aiohttp.ClientSession._request = theirs
        try:
            await by_aiohttp(service.url + PATH, BODY)
            undo()
            await by_aiohttp(service.url + PATH, BODY)
            assert seen == ["POST", "POST"]
            assert s.stats().succeeded == 1
        finally:
            aiohttp.ClientSession._request = ours.__wrapped__


def test_undone_nothing_is_left():
    assert aiohttp.ClientSession._request.__module__ == "aiohttp.client"
    assert requests.Session.send.__module__ == "requests.sessions"
