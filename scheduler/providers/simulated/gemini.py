"""Google's API as the simulated provider speaks it: its paths, its questions, its answers.

Tokens are counted as everywhere in it: four characters of input are a token, a content costs
four more, a word of output is a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from scheduler.providers.simulated.answers import (
    DIMENSIONS,
    LARGE_IMAGE_TOKENS,
    MAX_DIMENSIONS,
    MESSAGE_TOKENS,
    Invalid,
    Question,
    count_tokens,
    fingerprint,
    json_tokens,
    positive,
    usage_body,
    vector_of,
    words_of,
)
from scheduler.request import EMBED_CONTENT, GENERATE, Usage

MAX_CANDIDATES = 8

_PATH = re.compile(r"/v1(?:beta)?/models/([^/]+):(\w+)")
_VERBS = {
    "generateContent": GENERATE,
    "streamGenerateContent": GENERATE,
    "embedContent": EMBED_CONTENT,
    "batchEmbedContents": EMBED_CONTENT,
}


def read_path(path: str) -> tuple[str, dict[str, Any]] | None:
    """The URL that stands for one of Google's paths, and what the path says of the body.

    >>> read_path("/v1beta/models/gemini-2.5-flash:streamGenerateContent")
    ('/v1beta/generateContent', {'model': 'gemini-2.5-flash', 'stream': True})
    >>> read_path("/v1/models/gemini-2.5-flash") is None
    True
    """
    found = _PATH.fullmatch(path)
    if found is None or found[2] not in _VERBS:
        return None
    is_stream = found[2] == "streamGenerateContent"
    return _VERBS[found[2]], {"model": unquote(found[1]), **({"stream": True} if is_stream else {})}


def read_question(url: str, body: Mapping[str, Any]) -> Question:
    """Understand a request, as strictly as Google would.

    Raises:
        Invalid: No model, no content, or a cap or count that is not a positive integer.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Invalid("model is not specified", "model")
    if url == EMBED_CONTENT:
        contents = _contents_to_embed(body)
        tokens = sum(_content_tokens(content) for content in contents)
        return Question(url, model, tokens, len(contents), None, 1, 1, fingerprint(body))
    contents = _either(body, "contents")
    if not contents or not isinstance(contents, (str, list, dict)):
        raise Invalid("contents are not specified", "contents")
    config = _either(body, "generationConfig") or {}
    if not isinstance(config, dict):
        raise Invalid("generation_config is no message", "generation_config")
    tokens = _content_tokens(contents) + _content_tokens(_either(body, "systemInstruction") or [])
    for extra in (_either(body, "tools"), _either(config, "responseSchema")):
        tokens += json_tokens(extra) if extra else 0
    settings = {name: _either(config, name) for name in ("maxOutputTokens", "candidateCount")}
    cap = positive(settings, "maxOutputTokens") if settings["maxOutputTokens"] is not None else None
    choices = positive(settings, "candidateCount", most=MAX_CANDIDATES)
    return Question(url, model, tokens, 1, cap, choices, choices, fingerprint(body))


def _contents_to_embed(body: Mapping[str, Any]) -> list[Any]:
    """One, or one of each request of a batch."""
    requests = body.get("requests", [body])
    if not isinstance(requests, list) or not requests:
        raise Invalid("requests are not specified", "requests")
    contents = [each.get("content") if isinstance(each, dict) else None for each in requests]
    if not all(contents):
        raise Invalid("content is not specified", "content")
    return contents


def _either(holder: Mapping[str, Any], name: str) -> Any:
    """A field by its name in camel case or, as Google also takes it, in snake case."""
    snake = re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name)
    return holder.get(name, holder.get(snake))


def _content_tokens(content: Any) -> int:
    """Tokens of a text, of a content, of a part, or of a list of these."""
    if isinstance(content, list):
        return sum(_content_tokens(each) for each in content)
    if not isinstance(content, dict):
        return count_tokens(content)
    if "parts" in content:
        return MESSAGE_TOKENS + _content_tokens(content["parts"])
    if isinstance(content.get("text"), str):
        return count_tokens(content["text"])
    if _either(content, "inlineData") or _either(content, "fileData"):
        return LARGE_IMAGE_TOKENS
    return json_tokens(content)


def make_candidates(
    question: Question, lengths: list[int], number: int, reasoning_tokens: int = 0
) -> tuple[dict[str, Any], Usage]:
    """The body of an answer, and the usage in it; arguments as for `make_answer`."""
    usage = Usage(
        question.input_tokens, sum(lengths), reasoning_tokens=reasoning_tokens * len(lengths)
    )
    candidates = []
    for place, length in enumerate(lengths):
        text = words_of(length - reasoning_tokens, question.fingerprint + place)
        candidates.append({
            "content": {"parts": [{"text": text}], "role": "model"},
            "finishReason": "MAX_TOKENS" if length == question.cap else "STOP",
            "index": place,
        })  # fmt: skip
    body = {
        "candidates": candidates,
        "usageMetadata": usage_body(GENERATE, usage),
        "modelVersion": question.model,
        "responseId": f"sim{number:08d}",
    }
    return body, usage


def make_content_embeddings(
    question: Question, body: Mapping[str, Any]
) -> tuple[dict[str, Any], Usage]:
    """One small vector per content; what it used is not told, as by Google.

    Raises:
        Invalid: More dimensions than there are.
    """
    embeddings = []
    requests = body.get("requests", [body])
    for place, request in enumerate(requests):
        wanted = {"outputDimensionality": _either(request, "outputDimensionality")}
        dimensions = positive(wanted, "outputDimensionality", DIMENSIONS, MAX_DIMENSIONS)
        embeddings.append({"values": vector_of(question.fingerprint + place, dimensions)})
    usage = Usage(question.input_tokens)
    if "requests" in body:
        return {"embeddings": embeddings}, usage
    return {"embedding": embeddings[0]}, usage
