"""The vendors' own clients through a gateway: what they ask is what they get."""

import asyncio
import shutil
import subprocess

import pytest

from tests.server.conftest import ASKED, CEILING_USD, MODEL, PRICE

pytestmark = pytest.mark.filterwarnings("default")  # what they warn of is theirs


@pytest.fixture(scope="module")
def gateway(provider, tmp_path_factory):
    from tests.server.conftest import Gateway

    to = (
        "--base-url",
        provider.url,
        "--price",
        PRICE,
        "--price",
        "sim-embedding=0.02/0",
        "--budget",
        "$100",
    )
    made = Gateway(tmp_path_factory.mktemp("sdks"), to).start()
    yield made
    made.kill()


@pytest.fixture
def openai(gateway):
    module = pytest.importorskip("openai")
    with module.OpenAI(base_url=gateway.url, api_key=gateway.token, max_retries=0) as client:
        yield client


def test_openais_chat_says_what_it_cost(openai):
    raw = openai.chat.completions.with_raw_response.create(**ASKED)

    assert len(raw.parse().choices[0].message.content.split()) == 10
    assert float(raw.headers["x-scheduler-cost-usd"]) == 0.01
    assert float(raw.headers["x-scheduler-estimate-usd"]) == CEILING_USD
    assert float(raw.headers["x-scheduler-budget-remaining-usd"]) < 100
    assert int(raw.headers["x-scheduler-request-id"]) > 0
    assert int(raw.headers["x-scheduler-queue-ms"]) >= 0


def test_openais_other_endpoints(openai):
    answer = openai.responses.create(model=MODEL, input="hi", max_output_tokens=50)
    vectors = openai.embeddings.create(model="sim-embedding", input=["a", "b"])

    assert len(answer.output_text.split()) == 10
    assert len(vectors.data) == 2
    assert MODEL in [each.id for each in openai.models.list()]


def test_a_stream_shows_the_usage_only_to_who_asked_for_it(openai, gateway):
    before = gateway.settled()["posted_usd"]
    plain = list(openai.chat.completions.create(**ASKED, stream=True))
    asked = list(openai.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip

    assert all(chunk.choices for chunk in plain)
    assert [chunk.usage for chunk in plain if chunk.usage] == []
    assert asked[-1].usage.completion_tokens == 10
    assert not asked[-1].choices
    assert float(gateway.settled()["posted_usd"]) - float(before) == pytest.approx(0.02)


def test_openais_stream_helpers(openai):
    with openai.chat.completions.stream(**ASKED) as stream:
        chunks = [event for event in stream if event.type == "chunk"]
        final = stream.get_final_completion()
    with openai.responses.stream(model=MODEL, input="hi", max_output_tokens=50) as events:
        response = events.get_final_response()

    assert len(chunks) > 5
    assert len(final.choices[0].message.content.split()) == 10
    assert response.usage.output_tokens == 10


async def test_openais_async_client(gateway):
    module = pytest.importorskip("openai")
    async with module.AsyncOpenAI(
        base_url=gateway.url, api_key=gateway.token, max_retries=0
    ) as client:
        both = await asyncio.gather(*(client.chat.completions.create(**ASKED) for _ in range(2)))
        stream = await client.chat.completions.create(**ASKED, stream=True)
        pieces = [each async for each in stream]

    assert [len(each.choices[0].message.content.split()) for each in both] == [10, 10]
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_anthropics(gateway):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=gateway.root, api_key=gateway.token, max_retries=0) as client:
        message = client.messages.create(**ASKED)
        with client.messages.stream(**ASKED) as stream:
            streamed = stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            client.messages.create(**{**ASKED, "max_tokens": 0})
        with pytest.raises(anthropic.NotFoundError):  # passed on: this provider has no such thing
            client.messages.count_tokens(model=MODEL, messages=ASKED["messages"])

    assert message.usage.output_tokens == streamed.usage.output_tokens == 10


def test_googles(gateway):
    genai = pytest.importorskip("google.genai")
    asked = {"model": MODEL, "contents": "hi", "config": {"max_output_tokens": 50}}
    with genai.Client(api_key=gateway.token, http_options={"base_url": gateway.root}) as client:
        answer = client.models.generate_content(**asked)
        chunks = list(client.models.generate_content_stream(**asked))
        vectors = client.models.embed_content(model="sim-embedding", contents=["a", "b"])
        models = [each.name for each in client.models.list()]

    assert len(answer.text.split()) == 10
    assert len("".join(each.text for each in chunks).split()) == 10
    assert len(vectors.embeddings) == 2
    assert f"models/{MODEL}" in models


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(gateway):
    url = f"{gateway.root}/v1beta/models/{MODEL}:generateContent?key={gateway.token}"
    body = '{"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 9}}'
    done = subprocess.run(
        ["curl", "-sS", "-i", url, "-d", body], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("HTTP/1.1 200")
    assert "x-scheduler-cost-usd: 0.009" in done.stdout


def test_an_error_of_the_provider_is_its_own(openai):
    module = pytest.importorskip("openai")
    with pytest.raises(module.BadRequestError, match="max_tokens"):
        openai.chat.completions.create(**{**ASKED, "max_tokens": 0})
    with pytest.raises(module.BadRequestError, match="max_tokens"):
        openai.chat.completions.create(**{**ASKED, "max_tokens": 0}, stream=True)


def test_a_model_without_a_price_is_refused_with_the_command_that_helps(openai):
    module = pytest.importorskip("openai")
    with pytest.raises(module.APIStatusError, match="scheduler prices set") as caught:
        openai.chat.completions.create(**{**ASKED, "model": "nobody-knows"})

    assert caught.value.status_code == 402
