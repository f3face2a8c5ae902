"""The vendors' own clients against the simulated server: their models accept what it says."""

import asyncio

import pytest

from tests.warm import running_server

pytestmark = pytest.mark.filterwarnings("default")  # what they warn of is theirs

OPTIONS = ("--api-key", "sk-test", "--output-sigma", "0", "--output-tokens", "12")
SAID = {"messages": [{"role": "user", "content": "Say hello"}], "model": "sim-small"}


@pytest.fixture(scope="module")
def url():
    with running_server(*OPTIONS) as found:
        yield found.removesuffix("/v1")


def test_googles(url):
    genai = pytest.importorskip("google.genai")
    asked = {"model": "sim-small", "contents": "Say hello"}
    with genai.Client(api_key="sk-test", http_options={"base_url": url}) as client:
        answer = client.models.generate_content(**asked)
        chunks = list(client.models.generate_content_stream(**asked))
        embedded = client.models.embed_content(model="sim-embedding", contents=["a", "b"])
        models = [model.name for model in client.models.list()]
        with pytest.raises(genai.errors.ClientError, match="INVALID_ARGUMENT"):
            client.models.generate_content(**asked, config={"max_output_tokens": 0})
    with (
        genai.Client(api_key="wrong", http_options={"base_url": url}) as client,
        pytest.raises(genai.errors.ClientError, match="UNAUTHENTICATED"),
    ):
        client.models.generate_content(**asked)

    async def with_async():
        async with genai.Client(api_key="sk-test", http_options={"base_url": url}).aio as client:
            whole = await client.models.generate_content(**asked)
            pieces = [each async for each in await client.models.generate_content_stream(**asked)]
        return [whole.text, "".join(each.text for each in pieces)]

    assert answer.usage_metadata.candidates_token_count == 12 == len(answer.text.split())
    assert answer.candidates[0].finish_reason.value == "STOP"
    assert chunks[-1].usage_metadata.total_token_count == 7 + 12
    assert [len(each.values) for each in embedded.embeddings] == [8, 8]
    assert "models/sim-small" in models
    assert [len(text.split()) for text in asyncio.run(with_async())] == [12, 12]


def test_anthropics(url):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(api_key="sk-test", base_url=url, max_retries=0) as client:
        message = client.messages.create(**SAID, max_tokens=50)
        with client.messages.stream(**SAID, max_tokens=50) as stream:
            streamed = stream.get_final_message()
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**SAID, max_tokens=0)

    for each in (message, streamed):
        assert each.usage.output_tokens == 12 == len(each.content[0].text.split())
        assert each.stop_reason == "end_turn"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert caught.value.request_id == caught.value.body["request_id"]


def test_mistrals(url):
    client_of = pytest.importorskip("mistralai.client")
    with client_of.Mistral(api_key="sk-test", server_url=url) as client:
        answer = client.chat.complete(**SAID)
        chunks = [event.data for event in client.chat.stream(**SAID)]
        embedded = client.embeddings.create(model="sim-embedding", inputs=["a"])

    assert answer.usage.completion_tokens == 12
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(embedded.data[0].embedding) == 8


def test_groqs(url):
    groq = pytest.importorskip("groq")
    with groq.Groq(api_key="sk-test", base_url=url, max_retries=0) as client:
        answer = client.chat.completions.create(**SAID)
        chunks = list(client.chat.completions.create(**SAID, stream=True))

    assert answer.usage.completion_tokens == 12
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openais_responses(url):
    openai = pytest.importorskip("openai")
    with (
        openai.OpenAI(api_key="sk-test", base_url=f"{url}/v1", max_retries=0) as client,
        client.responses.stream(model="sim-small", input="Say hello") as stream,
    ):
        streamed = stream.get_final_response()

    assert streamed.usage.output_tokens == 12 == len(streamed.output_text.split())
