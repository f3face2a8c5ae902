import asyncio
import contextlib
import json
import subprocess
import sys

import anyio
import httpx
import pytest

from scheduler.errors import ConfigError
from scheduler.providers.simulated.http import MAX_BODY_BYTES, MAX_HEADER_BYTES
from scheduler.providers.simulated.provider import Simulated, Spread
from scheduler.providers.simulated.server import (
    main,
    parse_prices,
    parse_shares,
    running_server,
    serve,
)

pytestmark = pytest.mark.anyio

CHAT = {
    "model": "sim-small",
    "messages": [{"role": "user", "content": "Say hello"}],
    "max_tokens": 20,
}


@contextlib.asynccontextmanager
async def serving(provider, **options):
    """A server in this loop, and a client for it."""
    ready, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
    task = asyncio.create_task(serve(provider, on_ready=ready.set_result, stop=stop, **options))
    url = await ready
    try:
        async with httpx.AsyncClient(
            base_url=url.removesuffix("/v1"), trust_env=False, timeout=60
        ) as client:
            yield client
    finally:
        stop.set()
        await task


async def exchange(client, *parts, end=True):
    """Send bytes as they are; everything that comes back until the server hangs up."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0)
    with anyio.fail_after(60):
        answer = await reader.read() if end else await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


def head(*lines, body=b""):
    return "\r\n".join((*lines, "", "")).encode() + body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", CHAT),
        ("responses", {"model": "sim-large", "input": "hi", "max_output_tokens": 9}),
        ("embeddings", {"model": "sim-embedding", "input": ["a", "b"]}),
        ("completions", {"model": "any", "prompt": "a", "max_tokens": 9}),
        ("moderations", {"input": "a"}),
    ],
)
async def test_it_answers_as_the_provider_in_this_process_does(path, body):
    with_http, without = Simulated(seed=3), Simulated(seed=3)
    expected = without.reply(f"/v1/{path}", body).body

    async with serving(with_http) as client:
        answer = await client.post(f"/v1/{path}", json=body)

    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "req-sim00000001"
    times = dict.fromkeys(("created", "created_at"))
    assert {**answer.json(), **times} == {**expected, **times}


async def test_the_bill_tells_calls_models_and_callers_but_no_key():
    provider = Simulated(output_tokens=10)
    key = "sk-very-secret-indeed"

    async with serving(provider, api_key=key) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        told = {"authorization": f"Bearer {key}"}
        await client.post("/v1/chat/completions", json=CHAT, headers=told)
        bill = await client.get("/billed")

    # Ten tokens in, ten out; the refused call is not there.
    assert bill.json()["billed_nusd"] == 10 * 150 + 10 * 600 == provider.billed_nusd
    assert bill.json()["billed_usd"] == "0.0000075"
    assert bill.json()["calls"] == bill.json()["received"] == 1
    assert list(bill.json()["by_key"].values()) == [7500]
    assert key not in bill.text


async def test_a_deployment_is_asked_and_keyed_as_at_azure():
    path = "/openai/deployments/sim-small/chat/completions?api-version=2024-10-21"
    provider = Simulated()
    async with serving(provider, api_key="right") as client:
        refused = await client.post(path, json=CHAT, headers={"api-key": "wrong"})
        answer = await client.post(path, json=CHAT, headers={"api-key": "right"})

        assert (refused.status_code, answer.status_code) == (401, 200)
        assert list(provider.bill.by_model) == ["sim-small"]


async def test_records_show_every_billed_body():
    async with serving(Simulated(record=True)) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        bill = (await client.get("/billed?records=1")).json()

    assert [record["body"] for record in bill["records"]] == [CHAT]


async def test_models_are_listed():
    async with serving(Simulated(prices={"tiny": "1/1"})) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        one = (await client.get("/v1/models/tiny")).json()

    assert one in listed


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"fail": {"429": 1}}, 429, "rate_limit_exceeded"),
        ({"fail": {"no_credit": 1}}, 429, "insufficient_quota"),
        ({"fail": {"503": 1}}, 503, "overloaded"),
        ({"fail": {"500": 1}}, 500, "server_error"),
        ({"fail": {"401": 1}}, 401, "invalid_api_key"),
    ],
)
async def test_errors_have_the_shape_of_openai(options, status, code):
    async with serving(Simulated(**options)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


async def test_limits_are_in_the_headers():
    async with serving(Simulated(rpm=1)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
        refused = await client.post("/v1/chat/completions", json=CHAT)

    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert refused.status_code == 429
    assert 59 <= int(refused.headers["retry-after"]) <= 60


async def test_a_wrong_key_is_refused_and_a_right_one_is_not():
    async with serving(Simulated(), api_key="right") as client:
        statuses = [
            (await client.get("/v1/models", headers=headers)).status_code
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "Bearer right"},
            )
        ]

    assert statuses == [401, 401, 200]


@pytest.mark.parametrize(
    ("fault", "error", "within_s"),
    [("reset", httpx.ReadError, 60), ("timeout", httpx.ReadTimeout, 1)],
)
async def test_some_faults_give_no_answer_at_all(fault, error, within_s):
    async with serving(Simulated(fail=lambda *_: fault, latency="1ms")) as client:
        with pytest.raises(error):
            await client.post(
                "/v1/chat/completions", json=CHAT, timeout=httpx.Timeout(60, read=within_s)
            )


@pytest.mark.parametrize(
    ("fault", "kind", "start"),
    [("html", "text/html", b"<!DOCTYPE"), ("truncated", "application/json", b'{"id":')],
)
async def test_some_answers_are_spoilt(fault, kind, start):
    async with serving(Simulated(fail={fault: 1})) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)

    assert answer.headers["content-type"] == kind
    assert answer.content.startswith(start)
    with pytest.raises(ValueError, match=r".+"):
        json.loads(answer.content)


async def test_a_client_that_hangs_up_is_billed_all_the_same():
    provider = Simulated(latency="1h")

    async with serving(provider) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                "/v1/chat/completions", json=CHAT, timeout=httpx.Timeout(60, read=0.3)
            )

    assert provider.calls == 1


@pytest.mark.parametrize("with_usage", [True, False])
async def test_a_chat_can_be_streamed(with_usage):
    provider = Simulated(output_tokens=30)
    body = {**CHAT, "max_tokens": 30, "n": 2, "stream": True,
            "stream_options": {"include_usage": with_usage}}  # fmt: skip

    async with serving(provider) as client:
        answer = await client.post("/v1/chat/completions", json=body)

    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert [len(text.split()) for text in texts] == [30, 30]
    assert [usage["completion_tokens"] for usage in usages] == ([60] if with_usage else [])
    assert provider.billed_tokens == 70


async def test_streams_elsewhere_are_refused():
    async with serving(Simulated()) as client:
        answer = await client.post(
            "/v1/embeddings", json={"model": "m", "input": "a", "stream": True}
        )

    assert answer.status_code == 400


# HTTP as it should not be


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], 400),
        ([head("GET http://elsewhere/ HTTP/1.1")], 400),
        ([head("GET / HTTP/1.1", "no colon here")], 400),
        ([head("GET / HTTP/1.1", "folded : value")], 400),
        ([head("POST /v1/responses HTTP/1.1", "content-length: 1", "content-length: 2")], 400),
        ([head("POST /v1/responses HTTP/1.1", "content-length: -1")], 400),
        ([head("POST /v1/responses HTTP/1.1", "content-length: 0x10")], 400),
        ([head("POST /v1/responses HTTP/1.1", f"content-length: {MAX_BODY_BYTES + 1}")], 413),
        ([head("POST /v1/responses HTTP/1.1", f"content-length: {'9' * 5000}")], 413),
        ([head("POST /v1/responses HTTP/1.1", "transfer-encoding: chunked")], 411),
        ([b"GET / HTTP/1.1\r\nx: ", b"a" * (MAX_HEADER_BYTES + 1)], 431),
        ([head("GET / HTTP/1.1", "connection: close")], 404),
        ([head("GET / HTTP/1.0")], 404),
        ([head("PUT /v1/responses HTTP/1.1", "connection: close")], 405),
        ([head("POST /v1/files HTTP/1.1", "connection: close")], 404),
        (
            [head("POST /v1/responses HTTP/1.1", "connection: close", "content-length: 3",
                  body=b"{x}")],
            400,
        ),
        (
            [head("POST /v1/responses HTTP/1.1", "connection: close", "content-length: 2",
                  body=b"[]")],
            400,
        ),
    ],
)  # fmt: skip
async def test_what_is_not_served_is_refused_and_the_connection_closed(sent, status):
    async with serving(Simulated()) as client:
        answer = await exchange(client, *sent)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


async def test_requests_may_come_in_pieces_and_several_at_once():
    body = json.dumps(CHAT).encode()
    request = head("POST /v1/chat/completions HTTP/1.1", f"content-length: {len(body)}", body=body)
    last = head("GET /billed HTTP/1.1", "connection: close")
    stream = request + request + last

    async with serving(Simulated(latency="1ms")) as client:
        whole = await exchange(client, stream)
        pieces = await exchange(client, *(stream[i : i + 7] for i in range(0, len(stream), 7)))

    assert whole.count(b"HTTP/1.1 200 OK") == pieces.count(b"HTTP/1.1 200 OK") == 3
    assert json.loads(whole.rpartition(b"\r\n\r\n")[2])["calls"] == 2
    assert json.loads(pieces.rpartition(b"\r\n\r\n")[2])["calls"] == 4


async def test_a_client_that_asks_first_is_told_to_go_on():
    async with serving(Simulated()) as client:
        answer = await exchange(
            client,
            head("POST /v1/responses HTTP/1.1", "expect: 100-continue", "content-length: 2"),
            end=False,
        )

    assert answer == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_it_does_not_listen_where_others_can_reach_it_unless_told_to():
    with pytest.raises(ConfigError, match="reachable"):
        await serve(Simulated(), host="0.0.0.0")

    async with serving(Simulated(), host="0.0.0.0", allow_remote=True) as client:
        assert (await client.get("/billed")).status_code == 200


async def test_a_port_in_use_is_named():
    async with serving(Simulated()) as client:
        with pytest.raises(ConfigError, match=str(client.base_url.port)):
            await serve(Simulated(), port=client.base_url.port)


async def test_hanging_up_on_the_server_ends_it_though_calls_are_under_way():
    async with serving(Simulated(latency="1h")) as client:
        task = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await asyncio.sleep(0.05)

    with pytest.raises(httpx.TransportError):
        await task


# A process of its own


def test_it_runs_as_a_program_and_ends_when_asked():
    with running_server("--output-tokens", "7", "--output-sigma", "0") as url:
        answer = httpx.post(f"{url}/chat/completions", json=CHAT, trust_env=False)

    assert answer.json()["usage"]["completion_tokens"] == 7
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models", trust_env=False)


def test_it_ends_with_success_on_a_signal():
    words = [sys.executable, "-m", "scheduler.providers.simulated.server"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["url"].startswith("http://127.0.0.1:")
        process.terminate()

        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--fail", "nonsense=0.1"],
        ["--fail", "429"],
        ["--price", "1/2"],
        ["--latency", "soon"],
        ["--host", "0.0.0.0"],
    ],
)
def test_wrong_options_end_with_a_line_and_a_code(words, capsys):
    assert main(words) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_are_pairs():
    assert parse_shares(["429=0.5", "html=0.1"]) == {"429": 0.5, "html": 0.1}
    assert parse_prices(["a=b=1/2"]) == {"a=b": "1/2"}


def test_the_openai_sdk_is_content_with_it():
    openai = pytest.importorskip("openai")
    provider_options = ("--api-key", "sk-test", "--output-sigma", "0", "--output-tokens", "12")
    with (
        running_server(*provider_options) as url,
        openai.OpenAI(api_key="sk-test", base_url=url, max_retries=0) as client,
    ):
        chat = client.chat.completions.create(**CHAT)
        response = client.responses.create(model="sim-small", input="hi")
        embedding = client.embeddings.create(model="sim-embedding", input=["a", "b"])
        stream = client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        moderation = client.moderations.create(input="a")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()

    assert chat.usage.completion_tokens == 12 == len(chat.choices[0].message.content.split())
    assert response.usage.output_tokens == 12 == len(response.output_text.split())
    assert len(embedding.data[1].embedding) == 8
    assert chunks[-1].usage.completion_tokens == 12
    assert moderation.results[0].flagged is False


def test_a_spread_without_width_is_its_mean():
    assert Spread(3.0).at(0.01) == Spread(3.0).at(0.99) == 3.0
