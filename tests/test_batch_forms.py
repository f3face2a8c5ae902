"""What a record becomes: which endpoint, which id, what is sent of it, and what is refused by name."""

from __future__ import annotations

import io
import json

import pytest

from scheduler.batch.input import BadLine, BatchLine, LineOptions, read_lines
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
    Request,
)

TURNS = [{"role": "user", "content": "hi"}]


def read(text: str | bytes, **options):
    data = text.encode() if isinstance(text, str) else text
    return list(read_lines(io.BytesIO(data), "in.jsonl", LineOptions(**options)))


def line(fields, **options) -> BatchLine:
    (found,) = read(json.dumps(fields), **options)
    assert isinstance(found, BatchLine), found
    return found


def good(fields, **options) -> Request:
    return line(fields, **options).request


def bad(fields, **options) -> BadLine:
    (found,) = read(json.dumps(fields) if isinstance(fields, dict) else fields, **options)
    assert isinstance(found, BadLine), found
    return found


# Endpoints


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("/chat/completions", CHAT),
        ("v1/chat/completions", CHAT),
        ("chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v4/chat/completions", CHAT),
        ("/api/paas/v4/chat/completions", CHAT),
        ("/V1/Chat/Completions", CHAT),
        (" /v1/chat/completions ", CHAT),
        ("https://api.openai.com/v1/chat/completions", CHAT),
        ("https://me.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=1", CHAT),
        ("/openai/deployments/emb/embeddings?api-version=2024-10-21", EMBEDDINGS),
        ("/openai/v1/responses", RESPONSES),
        ("responses", RESPONSES),
        ("/embeddings", EMBEDDINGS),
        ("/v1/completions", COMPLETIONS),
        ("/completions", COMPLETIONS),
        ("/moderations", MODERATIONS),
        ("https://api.anthropic.com/v1/messages", MESSAGES),
        ("/v1beta/openai/embeddings", EMBEDDINGS),
    ],
)
def test_whatever_plainly_names_an_endpoint_is_that_endpoint(url, endpoint):
    body = {"model": "m", "messages": TURNS, "input": "x", "prompt": "x"}

    request = good({"url": url, "body": body})

    assert (request.url, request.body) == (endpoint, body)


@pytest.mark.parametrize(
    "url",
    [
        "/v1/threads/t/messages", "/v1/messages/batches", "/v1/messages/count_tokens",
        "/v1/images/generations", "/v1/audio/speech", "/", "", "chat", "/v1", 5, ["/v1/x"], {},
        "/v1beta/models/gemini-2.5-flash:generateContent", "http://[", "/v1/files/moderations",
    ],
)  # fmt: skip
def test_other_urls_are_no_endpoints(url):
    assert "is not one of /v1/chat/completions" in bad({"url": url, "body": {}}).error.problem


@pytest.mark.parametrize("method", ["POST", "post", "Post", " POST ", None])
def test_a_method_may_be_spelt_in_any_way(method):
    assert good({"method": method, "body": {"model": "m", "messages": TURNS}}).url == CHAT


@pytest.mark.parametrize("method", ["GET", "", 5, ["POST"]])
def test_other_methods_are_refused(method):
    found = bad({"method": method, "body": {"model": "m", "messages": TURNS}})
    assert "is not 'POST'" in found.error.problem


def test_a_deployment_of_azures_is_the_model():
    url = "/openai/deployments/my%20gpt/chat/completions"

    assert good({"url": url, "body": {"messages": TURNS}}).model == "my gpt"
    assert good({"url": url, "body": {"messages": TURNS, "model": "m"}}).model == "m"


# Anthropic's


@pytest.mark.parametrize(
    "extra",
    [
        {"system": "Be brief"},
        {"system": [{"type": "text", "text": "Be brief"}]},
        {"stop_sequences": ["x"]},
        {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive"}},
        {"tool_choice": {"type": "any"}},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://x"}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]},
    ],
)  # fmt: skip
def test_bodies_in_anthropics_form_go_to_its_endpoint_whole(extra):
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": TURNS, **extra}

    for fields in (body, {"body": body}, {"custom_id": "a", "params": body}):
        request = good(fields)
        assert (request.url, request.body) == (MESSAGES, body)


@pytest.mark.parametrize(
    "extra",
    [
        {"thinking": {"type": "enabled"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": "auto"},
        {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://x"}}]}]},
        {"system": None},
        {"tools": "x"},
        {"messages": [1, "x", {"content": [1]}]},
    ],
)  # fmt: skip
def test_bodies_in_openais_form_stay_chats(extra):
    assert good({"model": "glm-4.6", "messages": TURNS, **extra}).url == CHAT


def test_a_line_of_anthropics_batches_is_read():
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": TURNS}

    request = good({"custom_id": "a", "params": params})

    assert (request.key, request.url, request.body) == ("a", MESSAGES, params)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"key": "k", "request": {"contents": []}}, "Google's batches"),
        ({"request": {"contents": [{"role": "user", "parts": [{"text": "x"}]}]}}, "Google's"),
        ({"contents": [], "generationConfig": {}}, "Google's batches"),
        ({"instances": [{"content": "x"}]}, "Vertex AI's predictions"),
        ({"recordId": "r", "modelInput": {"messages": TURNS}}, "Amazon Bedrock"),
        ({"custom_id": "a", "request": {"messages": TURNS}}, "call it 'body'"),
        ({"id": "batch_req_1", "custom_id": "a", "response": {}, "error": None}, "line of results"),
        ({"custom_id": "a", "result": {"type": "succeeded"}}, "Anthropic's results"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "ShareGPT"),
        ({"data": [{"prompt": "x"}]}, "jq -c '.[\"data\"][]'"),
        ({"question": "x", "answer": "y"}, "(it has 'question', 'answer')"),
    ],
)
def test_what_is_for_others_is_named(fields, named):
    assert named in bad(fields, model="m").error.problem


# Rows of data sets


def test_of_a_row_only_parameters_are_sent_and_the_id_names_it():
    row = {"prompt": "Hi", "id": 7, "category": "x", "label": None, "max_tokens": 5, "source": "s"}

    found = line(row, model="m")

    assert found.request.body == {"messages": turns_of("Hi"), "max_tokens": 5, "model": "m"}
    assert (found.request.key, found.named_by) == ("7", "id")
    assert found.dropped == ("category", "label", "source")


def turns_of(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("row", "body", "dropped"),
    [
        ({"messages": TURNS, "source": "x", "seed": 1}, {"messages": TURNS, "seed": 1}, ("source",)),
        ({"messages": TURNS, "url": "https://a.b/c", "text": "x"}, {"messages": TURNS}, ("text",)),
        ({"messages": TURNS, "metadata": "x"}, {"messages": TURNS}, ("metadata",)),
        ({"messages": TURNS, "metadata": {"a": "b"}},
         {"messages": TURNS, "metadata": {"a": "b"}}, ()),
        ({"input": ["a"], "label": 1, "dimensions": 5}, {"input": ["a"], "dimensions": 5},
         ("label",)),
        ({"prompt": "x", "system": "s", "split": "test"},
         {"messages": [{"role": "system", "content": "s"}, *turns_of("x")]}, ("split",)),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": []},
         {"messages": turns_of("x")}, ("completion",)),
    ],
)  # fmt: skip
def test_columns_are_told_apart_from_parameters(row, body, dropped):
    model = "bge-m3" if "input" in row else "m"

    found = line(row, model=model)

    assert (found.request.body, found.dropped) == ({**body, "model": model}, dropped)


def test_under_body_everything_is_sent():
    body = {"model": "m", "messages": TURNS, "source": "x", "id": 3, "label": None}

    found = line({"custom_id": "a", "body": body})

    assert (found.request.body, found.dropped) == (body, ())


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Translate", "input": "good day", "output": "bonjour"},
        {"instruction": "Write a poem", "input": "", "output": "…"},
        {"instruction": "Write a poem", "output": "…"},
        {"instruction": "Answer", "context": "c", "response": "r"},
        {"input": "good day", "ideal": "bonjour"},
        {"input": TURNS, "ideal": "bonjour"},
        {"input": "good day", "output": "bonjour"},
        {"input": "good day", "expected": "bonjour"},
        {"input": "good day", "label": 1},
        {"instruction": "Translate", "prompt": "good day"},
        {"system_prompt": "Translate", "prompt": "good day"},
        {"system_prompt": "Translate", "messages": TURNS},
        {"prompt": "Translate", "input": "good day"},
    ],
)
def test_a_row_whose_question_is_not_plain_is_no_request(row):
    problem = bad({**row, "model": "gpt-4o"}).error.problem

    assert "which of it is the question is not plain" in problem
    assert "'prompt'" in problem


@pytest.mark.parametrize(
    ("row", "url"),
    [
        ({"input": "x", "instructions": "Translate"}, RESPONSES),
        ({"messages": [{"role": "system", "content": "s"}], "system_prompt": "s"}, CHAT),
        ({"prompt": "x", "instruction": ""}, CHAT),
        ({"prompt": "x", "answer": "y"}, CHAT),
        ({"input": "x", "url": "/v1/embeddings", "label": 1}, EMBEDDINGS),
    ],
)
def test_a_row_whose_question_is_plain_is_one(row, url):
    assert good({**row, "model": "gpt-4o"}).url == url


# Ids


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"custom_id": 0}, "0"),
        ({"custom_id": -3}, "-3"),
        ({"custom_id": 1.5}, "1.5"),
        ({"custom_id": 10**20}, "1" + "0" * 20),
        ({"custom_id": None}, "line-1"),
        ({"custom_id": None, "id": "x"}, "x"),
        ({"custom_id": "a", "id": "x"}, "a"),
        ({"id": "x"}, "x"),
        ({"id": 7}, "7"),
        ({"id": ""}, "line-1"),
        ({"id": True}, "line-1"),
        ({"id": {"$oid": "x"}}, "line-1"),
    ],
)
def test_an_id_may_be_a_number_or_the_column_id(fields, key):
    assert good({**fields, "prompt": "x", "model": "m"}).key == key


def test_an_id_column_can_be_named():
    rows = '{"prompt":"x","row":4,"id":9}\n{"prompt":"x"}\n'

    first, second = read(rows, model="m", id_column="row")

    assert (first.request.key, first.named_by, first.dropped) == ("4", "row", ("id",))
    assert "has no 'row'" in second.error.problem


@pytest.mark.parametrize(
    "name", ["customId", "custom-id", "customID", "CustomId", "CUSTOM_ID", "custom id"]
)
def test_an_id_that_is_misspelt_is_named_and_kept(name):
    found = bad({name: "a", "prompt": "x", "model": "m"})

    assert f"has {name!r} and no 'custom_id'" in found.error.problem
    assert found.key == "a"
    assert good({name: "a", "prompt": "x", "model": "m"}, id_column=name).key == "a"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"custom_id": "a", "prompt": "x", "temperature": NaN}', "a"),
        ('{"custom_id": "a", "prompt": "x", "temperature": 1e999}', "a"),
        ('{"prompt": "x", "seed": -Infinity, "custom_id": 5}', "5"),
        ('{"custom_id": "a", "body": {', "a"),
        ('{"custom_id": "a\\u00e9", "body": {oops}}', "aé"),
        ('{"custom_id": 12, oops', "12"),
        ('{"id": 3, "prompt": oops', "3"),
        ('{"prompt": oops, "tools": [{"id": 3}]', "line-1"),
        (b'{"custom_id": "a", "prompt": "\xff"}', "a"),
        ('{"custom_id": "a", "x": %s' % ("[" * 100_000), "a"),
        ('{"custom_id": "a", "n": %s}' % ("9" * 5_000), "a"),
        ('{"custom_id": "\\ud800", "prompt": 5}', "line-1"),
        ('{"custom_id": true, "prompt": "x"}', "line-1"),
        ('{"custom_id": ["a"], "prompt": "x"}', "line-1"),
    ],
)  # fmt: skip
def test_a_bad_line_is_called_by_its_id_however_bad_it_is(text, key):
    assert bad(text, model="m").key == key


def test_a_line_too_long_is_called_by_its_id_if_that_comes_first():
    text = '{"custom_id": "a", "prompt": "%s"}' % ("x" * 10_000)

    found = bad(text, max_line_bytes=1000)

    assert found.key == "a"
    assert "10,032 bytes" in found.error.problem


# What has an "input"


@pytest.mark.parametrize(
    "model",
    [
        "bge-m3", "BAAI/bge-large-en-v1.5", "intfloat/e5-mistral-7b-instruct", "multilingual-e5-large",
        "thenlper/gte-base", "Alibaba-NLP/gte-Qwen2-7B-instruct", "voyage-3", "voyage-code-3",
        "nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5", "jina-embeddings-v3", "mxbai-embed-large",
        "all-minilm:l6-v2", "sentence-transformers/all-mpnet-base-v2", "Qwen3-Embedding-8B",
        "text-embedding-3-small", "text-embedding-ada-002", "openai:text-embedding-3-large",
        "amazon.titan-embed-text-v1", "embed-v4.0", "snowflake-arctic-embed2", "m3e-base",
    ],
)  # fmt: skip
def test_models_that_embed_are_known_by_their_names(model):
    assert good({"model": model, "input": "x"}).url == EMBEDDINGS
    assert good({"input": "x"}, model=model).url == EMBEDDINGS


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5", "o3", "claude-haiku-4-5", "sim-small",
                                   "openai:gpt-4o", "llama-3.3-70b-versatile"])  # fmt: skip
def test_models_that_write_are_known_by_the_catalogue(model):
    assert good({"model": model, "input": "x"}).url == RESPONSES


@pytest.mark.parametrize(
    ("extra", "url"),
    [
        ({"input": ["a", "b"]}, EMBEDDINGS),
        ({"input": [[1, 2]]}, EMBEDDINGS),
        ({"input": TURNS}, RESPONSES),
        ({"input": "x", "dimensions": 5}, EMBEDDINGS),
        ({"input": "x", "max_output_tokens": 5}, RESPONSES),
        ({"input": "x", "url": "/v1/embeddings"}, EMBEDDINGS),
        ({"input": "x", "url": "/responses"}, RESPONSES),
    ],
)
def test_what_is_asked_says_which_endpoint_is_meant(extra, url):
    assert good({"model": "my-model", **extra}).url == url


@pytest.mark.parametrize("model", ["my-model", "bge-reranker-v2", "jina-reader-x"])
def test_where_nothing_says_it_the_url_is_asked_for(model):
    problem = bad({"model": model, "input": "x"}).error.problem

    assert 'add "url": "/v1/embeddings" or "url": "/v1/responses"' in problem


def test_moderations_have_a_model_of_their_own():
    request = good({"url": MODERATIONS, "body": {"input": "x"}}, model="gpt-4o")

    assert (request.url, request.body, request.model) == (MODERATIONS, {"input": "x"}, "")
    assert good({"url": "/moderations", "input": "x", "model": None}).body == {"input": "x"}
    assert good({"model": "omni-moderation-latest", "input": "x"}).url == MODERATIONS
    given = good({"url": MODERATIONS, "body": {"input": "x"}}, model="text-moderation-007")
    assert given.model == "text-moderation-007"
