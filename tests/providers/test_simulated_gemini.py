"""The simulated provider in Google's and Anthropic's words, in this process and over HTTP."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import CredentialsRefused, ProviderRefused, RateLimited, StreamBroken
from scheduler.prices.tokens import bound_input_tokens
from scheduler.providers.simulated.provider import Simulated
from scheduler.request import EMBED_CONTENT, GENERATE, MESSAGES, Request, Response
from scheduler.testing import run
from tests.providers.test_simulated_server import CHAT, serving

pytestmark = pytest.mark.anyio

HELLO = {"contents": [{"role": "user", "parts": [{"text": "Say hello"}]}]}
CAPPED = {**HELLO, "generationConfig": {"maxOutputTokens": 20}}
MODEL = "/models/sim-small"


def generate(**fields):
    return Request({"model": "sim-small", **HELLO, **fields}, url=GENERATE)


def ask(provider, request):
    async def go():
        return await provider.send(request)

    return run(go())


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 4 + 3),  # "Say hello" is nine characters: 3 tokens, and 4 for the content
        ({"contents": "Say hello"}, 3),
        ({"contents": {"parts": [{"text": "Say"}, {"text": "hello"}]}}, 4 + 1 + 2),
        ({"systemInstruction": {"parts": [{"text": "abcd"}]}}, 7 + 4 + 1),
        ({"system_instruction": "abcdefgh"}, 7 + 2),
        ({"tools": [{"a": 1}]}, 7 + 3),
        ({"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, 7 + 5),
        ({"contents": [{"parts": [{"inline_data": {"mime_type": "image/png"}}]}]}, 4 + 765),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_the_prompt_is_counted_by_the_simple_rule(fields, tokens, is_stream):
    provider = Simulated(output_tokens=50)
    request = generate(**fields)
    if is_stream:
        request.body["stream"] = True

    answer = ask(provider, request)

    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (tokens, 50)
    assert answer.body["usageMetadata"]["totalTokenCount"] == tokens + 50 == provider.billed_tokens
    assert len(Response(answer.body).text.split()) == 50


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({"maxOutputTokens": 20}, ["MAX_TOKENS"]),
        ({"max_output_tokens": 20, "candidate_count": 2}, ["MAX_TOKENS"] * 2),
        ({"candidateCount": 3}, ["STOP"] * 3),
    ],
)
def test_a_stream_amounts_to_the_same_answer(config, ends):
    request = generate(generationConfig=config)
    whole = ask(Simulated(output_tokens=30), request)
    streamed = ask(Simulated(output_tokens=30), Request({**request.body, "stream": True}, url=GENERATE))  # fmt: skip

    # Another body is another question, so the words differ.
    assert [each["finishReason"] for each in whole.body["candidates"]] == ends
    assert [each["finishReason"] for each in streamed.body["candidates"]] == ends
    assert streamed.body["usageMetadata"] == whole.body["usageMetadata"]
    assert streamed.body.keys() == whole.body.keys()


def test_thoughts_are_part_of_the_output_and_not_shown():
    answer = ask(Simulated(output_tokens=50), Request({"model": "sim-reasoning", **HELLO}, url=GENERATE))  # fmt: skip

    assert answer.body["usageMetadata"]["thoughtsTokenCount"] == 25
    assert answer.body["usageMetadata"]["candidatesTokenCount"] == 25
    assert (answer.usage.output_tokens, answer.usage.reasoning_tokens) == (50, 25)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", RateLimited), ("no_credit", RateLimited), ("401", CredentialsRefused),
        ("400", ProviderRefused), ("stream_cut", StreamBroken), ("stream_error", StreamBroken),
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", [GENERATE, MESSAGES])
def test_faults_are_what_they_are_in_every_dialect(url, fault, error):
    body = {"model": "m", **HELLO, "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    provider = Simulated(fail={fault: 1.0})

    with pytest.raises(error) as caught:
        ask(provider, Request({**body, "stream": True}, url=url))

    assert (getattr(caught.value, "credit", None) is not None) is (fault == "no_credit")


@pytest.mark.parametrize("url", [GENERATE, MESSAGES])
def test_usage_may_be_huge_or_missing_here_too(url):
    body = {"model": "m", **HELLO, "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}

    huge = ask(Simulated(fail={"huge_usage": 1.0}), Request(body, url=url))
    missing = ask(Simulated(fail={"no_usage": 1.0}), Request(body, url=url))

    assert huge.usage.output_tokens >= 500
    assert missing.usage is None


@pytest.mark.parametrize(
    "fields",
    [
        {"contents": None}, {"contents": []}, {"contents": 7}, {"model": ""},
        {"generationConfig": "x"}, {"generationConfig": {"maxOutputTokens": 0}},
        {"generationConfig": {"candidateCount": 9}},
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_and_costs_nothing(fields):
    provider = Simulated()

    with pytest.raises(ProviderRefused) as caught:
        ask(provider, generate(**fields))

    assert caught.value.status == 400
    assert provider.billed_nusd == 0


TEXTS = st.text(max_size=40)
PARTS = st.fixed_dictionaries({"text": TEXTS}) | st.fixed_dictionaries(
    {"functionCall": st.dictionaries(TEXTS, TEXTS, max_size=2)}
)


@given(
    st.lists(st.lists(PARTS, max_size=3).map(lambda parts: {"role": "user", "parts": parts}), min_size=1),
    st.none() | TEXTS.map(lambda text: {"parts": [{"text": text}]}),
    st.none() | TEXTS.map(lambda text: [{"functionDeclarations": [{"name": text}]}]),
)  # fmt: skip
def test_no_prompt_is_counted_higher_than_its_bound(contents, system, tools):
    body = {"model": "m", "contents": contents, "systemInstruction": system, "tools": tools}

    reply = Simulated().reply(GENERATE, body)

    assert reply.usage.input_tokens <= bound_input_tokens(GENERATE, body).tokens


# Over HTTP


@pytest.mark.parametrize("version", ["/v1", "/v1beta"])
async def test_google_is_served_below_both_of_its_versions(version):
    provider = Simulated(output_tokens=30, record=True)
    async with serving(provider) as client:
        answer = await client.post(
            f"{version}{MODEL}:generateContent", json={**CAPPED, "stream": True}
        )
        stream = await client.post(
            f"{version}{MODEL}:streamGenerateContent?alt=sse", json={**CAPPED, "stream": False}
        )
        models = (await client.get(f"{version}/models")).json()["models"]
        one = (await client.get(f"{version}/models/sim-small")).json()

    body, (whole, streamed) = answer.json(), provider.bill.records
    assert body["usageMetadata"]["candidatesTokenCount"] == 20
    assert (body["modelVersion"], body["responseId"]) == ("sim-small", "sim00000001")
    assert body["candidates"][0]["content"]["role"] == "model"
    assert stream.headers["content-type"] == "text/event-stream"
    events = stream.text.split("\r\n\r\n")
    assert events.pop() == ""
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [each["candidates"][0].get("finishReason") for each in chunks[-2:]] == [None, "MAX_TOKENS"]  # fmt: skip
    assert "candidatesTokenCount" not in chunks[0]["usageMetadata"]
    assert chunks[-1]["usageMetadata"] == body["usageMetadata"]
    assert (whole.url, whole.body) == (GENERATE, {**CAPPED, "model": "sim-small"})
    assert streamed.body == {**CAPPED, "model": "sim-small", "stream": True}
    assert provider.bill.by_model == {"sim-small": 2 * (7 * 150 + 20 * 600)}
    assert one in models
    assert one["name"] == "models/sim-small"


async def test_embeddings_come_one_by_one_or_many_at_once_and_say_no_usage():
    one = {"content": {"parts": [{"text": "abcd"}]}, "outputDimensionality": 3}
    provider = Simulated()
    async with serving(provider) as client:
        single = await client.post("/v1beta/models/sim-embedding:embedContent", json=one)
        many = await client.post(
            "/v1beta/models/sim-embedding:batchEmbedContents", json={"requests": [one, one]}
        )
        empty = await client.post(
            "/v1beta/models/sim-embedding:batchEmbedContents", json={"requests": []}
        )

    assert [len(single.json()["embedding"]["values"])] == [3]
    assert [len(each["values"]) for each in many.json()["embeddings"]] == [3, 3]
    assert not any("usage" in name for name in (*single.json(), *many.json()))
    assert provider.billed_tokens == 5 + 10
    assert empty.status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "status", "name"),
    [
        (f"/v1beta{MODEL}:generateContent", {}, 400, "INVALID_ARGUMENT"),
        (f"/v1{MODEL}:embedContent", {}, 400, "INVALID_ARGUMENT"),
        (f"/v1beta{MODEL}:streamGenerateContent", CAPPED, 400, "INVALID_ARGUMENT"),  # no alt=sse
        (f"/v1beta{MODEL}:countTokens", CAPPED, 404, "NOT_FOUND"),
        ("/v1beta/generateContent", CAPPED, 404, "NOT_FOUND"),
    ],
)
async def test_google_is_told_in_its_own_form(path, body, status, name):
    async with serving(Simulated()) as client:
        answer = await client.post(path, json=body)

    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message", "status"}
    assert (answer.json()["error"]["code"], answer.json()["error"]["status"]) == (status, name)


@pytest.mark.parametrize(
    ("fault", "status", "google", "anthropic"),
    [
        ("429", 429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
        ("401", 401, "UNAUTHENTICATED", "authentication_error"),
        ("400", 400, "INVALID_ARGUMENT", "invalid_request_error"),
        ("500", 500, "INTERNAL", "api_error"),
        ("503", 503, "UNAVAILABLE", "overloaded_error"),
    ],
)
async def test_errors_have_the_form_of_the_api_that_was_called(fault, status, google, anthropic):
    async with serving(Simulated(fail={fault: 1.0})) as client:
        of_google = await client.post(f"/v1beta{MODEL}:generateContent", json=CAPPED)
        of_anthropic = await client.post("/v1/messages", json=CHAT)

    assert of_google.status_code == of_anthropic.status_code == status
    assert of_google.json()["error"]["status"] == google
    assert of_anthropic.json()["type"] == "error"
    assert of_anthropic.json()["error"]["type"] == anthropic
    assert of_anthropic.json()["request_id"] == of_anthropic.headers["request-id"]


async def test_a_wrong_key_is_told_in_the_form_of_the_api_that_was_called():
    async with serving(Simulated(), api_key="right") as client:
        of_google = await client.post(f"/v1beta{MODEL}:generateContent", json=CAPPED)
        of_anthropic = await client.post("/v1/messages", json=CHAT)
        of_openai = await client.post("/v1/chat/completions", json=CHAT)

    assert of_google.json()["error"]["status"] == "UNAUTHENTICATED"
    assert of_anthropic.json()["error"]["type"] == "authentication_error"
    assert of_openai.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["x-goog-api-key", "X-Goog-Api-Key", "X-API-KEY"])
async def test_keys_come_in_each_vendors_header_in_any_case(name):
    async with serving(Simulated(), api_key="right") as client:
        statuses = [
            (await client.post(f"/v1{MODEL}:generateContent", json=CAPPED, headers={name: key}))
            .status_code
            for key in ("right", "wrong")
        ]  # fmt: skip

    assert statuses == [200, 401]


async def test_all_of_it_is_there_below_groqs_path_too():
    async with serving(Simulated(record=True), api_key="right") as client:
        told = {"authorization": "Bearer right"}
        chat = await client.post("/openai/v1/chat/completions", json=CHAT, headers=told)
        models = await client.get("/openai/v1/models", headers=told)
        without = await client.get("/openai/v1/models")
        bill = (await client.get("/billed?records=1")).json()

    assert (chat.status_code, models.status_code, without.status_code) == (200, 200, 401)
    assert [record["url"] for record in bill["records"]] == ["/v1/chat/completions"]


@pytest.mark.parametrize("bill_cancelled", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_records_show_headers_that_should_have_been_taken_off(bill_cancelled, stream):
    provider = Simulated(record=True, bill_cancelled=bill_cancelled)
    body = {**CHAT, "stream": stream}
    async with serving(provider) as client:
        await client.post("/v1/chat/completions", json=body, headers={"X-Scheduler-User": "ann"})
        await client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer k"})
        bill = (await client.get("/billed?records=1")).json()

    assert [record["headers"] for record in bill["records"]] == [{"x-scheduler-user": "ann"}, {}]


def test_what_is_sent_in_this_process_has_no_headers():
    provider = Simulated(record=True)

    ask(provider, Request({"model": "m", "content": {"parts": [{"text": "a"}]}}, url=EMBED_CONTENT))

    assert provider.bill.records[0].headers == {}
