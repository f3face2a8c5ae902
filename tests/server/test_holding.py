"""What does not fit is held while its client hears something, or refused before the first byte."""

import asyncio
import json
import socket

import pytest

from tests.server.conftest import ASKED, MODEL, raw, wait_for

pytestmark = pytest.mark.filterwarnings("default")

PATIENT = {"x_scheduler_wait": "forever"}


@pytest.fixture
def spent(start, provider):
    """A gateway whose budget has room for nothing more."""
    made = start(provider, budget="$0.05")
    made.cli("budget", "set", "default", "$0.05/day")
    return made


def parked(gateway, count=1):
    return wait_for(lambda: gateway.states().get("parked") == count, f"{count} parked")


async def raised_meanwhile(gateway, asking, count=1):
    """What a call gives that is parked until somebody raises the budget."""
    task = asyncio.create_task(asking)
    await asyncio.to_thread(parked, gateway, count)
    await asyncio.sleep(1.6)  # longer than its client would wait for a word
    assert not task.done()
    await asyncio.to_thread(gateway.cli, "budget", "set", "default", "$10")
    return await task


async def test_openais_client_waits_for_longer_than_its_timeout(spent):
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(
        base_url=spent.url, api_key=spent.token, max_retries=0, timeout=1.0,
        default_headers={"X-Scheduler-Wait": "forever"},
    ) as client:  # fmt: skip
        answer = await raised_meanwhile(spent, client.chat.completions.create(**ASKED))

    assert len(answer.choices[0].message.content.split()) == 10
    assert float((await asyncio.to_thread(spent.settled))["posted_usd"]) == 0.01


async def test_and_so_does_a_stream_of_it(spent):
    openai = pytest.importorskip("openai")

    async def asking(client):
        stream = await client.chat.completions.create(**ASKED, stream=True)
        return [each async for each in stream]

    async with openai.AsyncOpenAI(
        base_url=spent.url, api_key=spent.token, max_retries=0, timeout=1.0,
        default_headers={"X-Scheduler-Wait": "forever"},
    ) as client:  # fmt: skip
        pieces = await raised_meanwhile(spent, asking(client))

    assert pieces[-1].choices[0].finish_reason == "stop"
    assert len(pieces) > 5


async def test_anthropics_and_googles_clients_wait_too(spent):
    anthropic = pytest.importorskip("anthropic")
    genai = pytest.importorskip("google.genai")
    options = {
        "base_url": spent.root,
        "timeout": 20_000,
        "headers": {"X-Scheduler-Wait": "forever"},
    }

    async def asking():
        async with (
            anthropic.AsyncAnthropic(
                base_url=spent.root, api_key=spent.token, max_retries=0, timeout=1.0,
                default_headers={"X-Scheduler-Wait": "forever"},
            ) as client,
            genai.Client(api_key=spent.token, http_options=options).aio as google,
            client.messages.stream(**ASKED) as stream,
        ):  # fmt: skip
            asked = {"model": MODEL, "contents": "hi", "config": {"max_output_tokens": 100}}
            other = google.models.generate_content(**asked)
            return await asyncio.gather(stream.get_final_message(), other)

    async def all_three():
        async with anthropic.AsyncAnthropic(
            base_url=spent.root, api_key=spent.token, max_retries=0, timeout=1.0,
            default_headers={"X-Scheduler-Wait": "forever"},
        ) as client:  # fmt: skip
            return await asyncio.gather(client.messages.create(**ASKED), asking())

    message, (streamed, answer) = await raised_meanwhile(spent, all_three(), count=2)

    assert message.usage.output_tokens == streamed.usage.output_tokens == 10
    assert len(answer.text.split()) == 10


def test_what_would_wait_for_longer_is_refused_before_the_first_byte(start, provider):
    made = start(provider, "--max-hold", "1m", budget="$0.15/day @UTC")
    assert made.ask().status == 200
    made.cli("budget", "set", "default", "$0.05/day")
    made.cli("budget", "set", "default", "$0.105/day")  # enough for one, when the day is over
    answer = made.ask()

    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert 0 < int(answer.headers["retry-after"]) <= 86_400
    error = answer.error
    assert error["type"] == error["code"] == "budget_exceeded"
    assert error["budget"] == "default"
    assert float(error["needed_usd"]) == 0.1
    assert float(error["remaining_usd"]) == pytest.approx(0.095)
    assert error["resets_at"].endswith("+00:00")
    assert int(error["request_id"]) > 0
    wait_for(lambda: not made.states()["parked"], "it to be given up")
    assert provider.billed()["calls"] == provider.billed()["received"]


def test_the_sdks_raise_it_as_their_own_error_and_do_not_try_again(start, provider):
    openai = pytest.importorskip("openai")
    anthropic = pytest.importorskip("anthropic")
    made = start(provider, budget="$0.05/day")
    received = provider.billed()["received"]
    with (
        openai.OpenAI(base_url=made.url, api_key=made.token) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(**ASKED)
    with (
        anthropic.Anthropic(base_url=made.root, api_key=made.token) as other,
        pytest.raises(anthropic.APIStatusError) as told,
    ):
        other.messages.create(**ASKED)

    # It is larger than the whole limit: no reset helps.
    assert caught.value.status_code == told.value.status_code == 402
    assert caught.value.body["budget"] == "default"
    assert caught.value.body["code"] == "budget_exceeded"
    assert told.value.body["error"]["type"] == "billing_error"
    assert provider.billed()["received"] == received
    wait_for(lambda: made.states()["cancelled"] == 2, "both to be given up")


def test_who_wants_no_waiting_is_refused_at_once(spent):
    answer = spent.ask(x_scheduler_wait="0")

    assert answer.status in (402, 429)
    assert answer.error["code"] == "budget_exceeded"


def test_who_waits_for_so_long_is_told_then(start, provider):
    made = start(provider, budget="$0.15")
    made.cli("budget", "set", "default", "$0.15/1s")
    for _ in range(2):
        assert made.ask(x_scheduler_wait="10s").status == 200  # the second fits again after a while


async def test_an_error_after_the_first_beat_is_told_when_its_client_asks_again(start, provider):
    openai = pytest.importorskip("openai")
    made = start(provider, budget="$0.15/day @UTC")
    assert made.ask().status == 200
    made.cli("budget", "set", "default", "$0.105/day @UTC")
    received = provider.billed()["received"]
    async with openai.AsyncOpenAI(
        base_url=made.url, api_key=made.token, timeout=1.5,
        default_headers={"X-Scheduler-Wait": "25h"},
    ) as client:  # fmt: skip
        task = asyncio.create_task(client.chat.completions.create(**ASKED))
        await asyncio.to_thread(parked, made)
        await asyncio.sleep(1.7)
        made.cli("budget", "pause", "default")  # no reset ends that, so it is not held any longer

        with pytest.raises(openai.APIStatusError) as caught:
            await task

    assert caught.value.status_code in (402, 429)
    assert caught.value.body["budget"] == "default"
    states = await asyncio.to_thread(made.states)
    assert states["total"] - states["succeeded"] == 1  # asked again, it was not even queued
    await asyncio.to_thread(wait_for, lambda: made.states()["cancelled"] == 1, "it to be given up")
    assert provider.billed()["received"] == received


async def test_in_a_stream_it_is_the_last_event(spent):
    openai = pytest.importorskip("openai")
    anthropic = pytest.importorskip("anthropic")
    headers = {"X-Scheduler-Wait": "forever"}

    async def openais():
        async with openai.AsyncOpenAI(
            base_url=spent.url, api_key=spent.token, timeout=1.5, default_headers=headers
        ) as client:
            stream = await client.chat.completions.create(**ASKED, stream=True)
            return [each async for each in stream]

    async def anthropics():
        async with (
            anthropic.AsyncAnthropic(
                base_url=spent.root, api_key=spent.token, timeout=1.5, default_headers=headers
            ) as client,
            client.messages.stream(**ASKED) as stream,
        ):
            return await stream.get_final_message()

    both = asyncio.gather(openais(), anthropics(), return_exceptions=True)
    await asyncio.to_thread(parked, spent, 2)
    await asyncio.sleep(1.7)
    spent.process.terminate()
    first, second = await both

    assert isinstance(first, openai.APIError)
    assert "stopping" in str(first)
    assert isinstance(second, anthropic.APIStatusError)
    assert "stopping" in str(second)


def test_before_json_comes_a_line_break_and_in_a_stream_a_comment(spent):
    for stream, beat in ((False, b"\n"), (True, b": parked\n\n")):
        body = json.dumps({**ASKED, "stream": stream}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
            f"{spent.token}\r\nx-stainless-read-timeout: 0.9\r\nx-scheduler-wait: forever\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        came = raw(spent.port, head.encode() + body, seconds=1.0)
        start, _, rest = came.partition(b"\r\n\r\n")

        assert start.startswith(b"HTTP/1.1 200")
        assert b"x-scheduler-estimate-usd: 0.10" in start
        chunk = b"%x\r\n%s\r\n" % (len(beat), beat)
        assert rest == chunk * (len(rest) // len(chunk))
        assert len(rest) > len(chunk)


def test_nothing_is_told_too_early(spent):
    body = json.dumps(ASKED).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
        f"{spent.token}\r\nx-stainless-read-timeout: 600\r\nx-scheduler-wait: forever\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", spent.port), timeout=0.7) as line:
        line.sendall(head.encode() + body)
        parked(spent)
        with pytest.raises(TimeoutError):
            line.recv(1)
    wait_for(lambda: spent.states().get("cancelled") == 1, "it to be given up")


def impatient(spent):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(
        base_url=spent.url, api_key=spent.token, max_retries=0, timeout=1.0,
        default_headers={"X-Scheduler-Wait": "forever"},
    )  # fmt: skip


def openais_helper(spent):
    with (
        impatient(spent) as client,
        client.chat.completions.stream(**ASKED) as stream,
    ):  # fmt: skip
        return stream.get_final_completion().choices[0].message.content


def openais_responses(spent):
    with (
        impatient(spent) as client,
        client.responses.stream(model=MODEL, input="hi", max_output_tokens=100) as stream,
    ):  # fmt: skip
        return stream.get_final_response().output_text


def groqs(spent):
    groq = pytest.importorskip("groq")
    with groq.Groq(
        base_url=spent.root, api_key=spent.token, max_retries=0, timeout=1.0,
        default_headers={"X-Scheduler-Wait": "forever"},
    ) as client:  # fmt: skip
        return client.chat.completions.create(**ASKED).choices[0].message.content


def googles(spent, stream=False):
    genai = pytest.importorskip("google.genai")
    options = {
        "base_url": spent.root, "timeout": 1_000, "headers": {"X-Scheduler-Wait": "forever"},
    }  # fmt: skip
    asked = {"model": MODEL, "contents": "hi", "config": {"max_output_tokens": 100}}
    with genai.Client(api_key=spent.token, http_options=options) as client:
        if not stream:
            return client.models.generate_content(**asked).text
        return "".join(each.text for each in client.models.generate_content_stream(**asked))


def googles_stream(spent):
    return googles(spent, stream=True)


@pytest.mark.parametrize("way", [openais_helper, openais_responses, groqs, googles, googles_stream])
async def test_every_other_client_waits_for_longer_than_a_second_too(spent, way):
    text = await raised_meanwhile(spent, asyncio.to_thread(way, spent))

    assert len(text.split()) == 10
    assert float(spent.settled()["posted_usd"]) == 0.01
