"""What would a provider answer? Bodies in OpenAI's and Anthropic's shapes, and the tokens in them.

Pure: the same question gets the same answer. Tokens are counted by a rule of our own that
is easy to check by hand: four characters of input are a token, a message costs four more,
a word of output is a token. The counts in an answer are exactly what is billed for it.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    GENERATE,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
    Usage,
)

CHARS_PER_TOKEN = 4
MESSAGE_TOKENS = 4
IMAGE_TOKENS = {"low": 85}
LARGE_IMAGE_TOKENS = 765
MAX_CHOICES = 128
MAX_OUTPUT_TOKENS = 4096  # for a request that sets no cap
DIMENSIONS = 8
MAX_DIMENSIONS = 3072

_CAPS = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    RESPONSES: ("max_output_tokens",),
    COMPLETIONS: ("max_tokens",),
    MESSAGES: ("max_tokens",),
}
_INPUTS = {
    CHAT: "messages",
    MESSAGES: "messages",
    RESPONSES: "input",
    COMPLETIONS: "prompt",
}  # all others: "input"
_TEXT = (
    "a request leaves only when money was put aside for it and what does not fit today waits "
    "for the next window or for a raise so nothing fails because a budget is spent and every "
    "answer costs what the ledger says it cost no more and no less while the queue keeps its "
    "order and the one who waits longest goes first among equals"
)
_WORDS = _TEXT.split()
_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


class Invalid(ValueError):
    """The body is not one the endpoint takes: what is wrong, and with which field."""

    def __init__(self, problem: str, param: str | None = None) -> None:
        super().__init__(problem, param)
        self.problem, self.param = problem, param


@dataclass(frozen=True, slots=True)
class Question:
    """What matters of a request for answering and billing it.

    Attributes:
        cap: The most output tokens of one choice; None: the request sets none.
        choices: How many answers are wanted.
        generated: How many answers are made, and billed: more than `choices` with ``best_of``.
        fingerprint: Same question, same number.
    """

    url: str
    model: str
    input_tokens: int
    inputs: int
    cap: int | None
    choices: int
    generated: int
    fingerprint: int

    @property
    def has_output(self) -> bool:
        """Whether the endpoint generates text."""
        return self.url in _CAPS or self.url == GENERATE


def read_question(url: str, body: Mapping[str, Any]) -> Question:
    """Understand a request, as strictly as a provider would.

    Raises:
        Invalid: No model, no input, or a cap or count that is not a positive integer.
    """
    if url not in ENDPOINTS:
        raise Invalid(f"Unknown request URL: POST {url}")
    model = body.get("model")
    if url == MODERATIONS:
        model = model or "sim-moderation"
    if not isinstance(model, str) or not model:
        raise Invalid("you must provide a model parameter", "model")
    name = _INPUTS.get(url, "input")
    given = body.get(name)
    if not given or not isinstance(given, (list,) if name == "messages" else (str, list)):
        raise Invalid(f"Missing or empty required parameter: '{name}'.", name)
    caps = [positive(body, field) for field in _CAPS.get(url, ()) if body.get(field) is not None]
    choices = positive(body, "n", 1, MAX_CHOICES) if url in (CHAT, COMPLETIONS) else 1
    best_of = positive(body, "best_of", 1, MAX_CHOICES) if url == COMPLETIONS else 1
    if url == MESSAGES and not caps:
        raise Invalid("max_tokens: Field required", "max_tokens")
    inputs = _count_inputs(given) if name != "messages" else 1
    generated = max(choices, best_of)
    if url == COMPLETIONS:
        choices, generated = choices * inputs, generated * inputs
    return Question(
        url, model, _input_tokens(url, body, given), inputs, min(caps, default=None), choices,
        generated, fingerprint(body),
    )  # fmt: skip


def positive(body: Mapping[str, Any], field: str, default: int = 1, most: int = 1 << 40) -> int:
    """An integer of the body that is at least 1.

    Raises:
        Invalid: It is something else.
    """
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= most:
        raise Invalid(f"Invalid '{field}': {value!r} is not an integer from 1 to {most}.", field)
    return value


def _count_inputs(given: str | list[Any]) -> int:
    """How many texts; a list of token numbers is one text."""
    return 1 if isinstance(given, str) or isinstance(given[0], int) else len(given)


def fingerprint(body: Mapping[str, Any]) -> int:
    """A number that depends on nothing but the body, and not on how it is to be told."""
    body = {name: value for name, value in body.items() if name != "stream_options"}
    try:
        return zlib.crc32(to_json(body))
    except ValueError:  # not plain JSON; it has to do for a number
        return zlib.crc32(repr(body).encode("utf-8", "replace"))


def share_of(question: Question, seed: int, place: int) -> float:
    """A number between 0 and 1 that looks random and depends on nothing else."""
    return (zlib.crc32(b"%d/%d/%d" % (question.fingerprint, seed, place)) + 0.5) / 2**32


# Counting


def _input_tokens(url: str, body: Mapping[str, Any], given: str | list[Any]) -> int:
    tokens = count_tokens(given)
    if url == CHAT:
        tokens += 3  # what primes the reply
    for extra in ("system", "instructions", "tools", "functions", "response_format", "text"):
        if body.get(extra):
            tokens += json_tokens(body[extra])
    return tokens


def count_tokens(value: Any) -> int:
    """Tokens of a text, of a list of tokens, of a message, of a part, or of a list of these."""
    if isinstance(value, str):
        return -(-len(value) // CHARS_PER_TOKEN)
    if isinstance(value, list):
        return sum(1 if isinstance(item, int) else count_tokens(item) for item in value)
    if not isinstance(value, dict):
        return json_tokens(value)
    if "content" in value or "role" in value:
        rest = {k: v for k, v in value.items() if k not in ("content", "role") and v}
        content = value.get("content")
        return MESSAGE_TOKENS + count_tokens(content or "") + (json_tokens(rest) if rest else 0)
    if isinstance(value.get("text"), str):
        return count_tokens(value["text"])
    if "image_url" in value:
        holder = value["image_url"] if isinstance(value["image_url"], dict) else value
        return IMAGE_TOKENS.get(str(holder.get("detail")), LARGE_IMAGE_TOKENS)
    return json_tokens(value)


def json_tokens(value: Any) -> int:
    """Tokens of a value as JSON."""
    text = json.dumps(value, separators=(",", ":"), default=str)
    return -(-len(text) // CHARS_PER_TOKEN)


# Answering


def make_answer(
    question: Question, lengths: list[int], number: int, created_s: int, reasoning_tokens: int = 0
) -> tuple[dict[str, Any], Usage]:
    """The body of an answer, and the usage in it.

    Args:
        question: What `read_question` understood.
        lengths: Output tokens of every generated answer, those not returned included.
        number: Counts calls; makes ids unique.
        created_s: When, in Unix seconds.
        reasoning_tokens: How many tokens of each answer are thought and not shown.
    """
    output_tokens = sum(lengths)
    usage = Usage(
        question.input_tokens, output_tokens, reasoning_tokens=reasoning_tokens * len(lengths)
    )
    texts = [
        words_of(max(0, length - reasoning_tokens), question.fingerprint + place)
        for place, length in enumerate(lengths[: question.choices])
    ]
    ends = ["length" if length == question.cap else "stop" for length in lengths]
    if question.url == RESPONSES:
        return _response(question, texts[0], ends[0], usage, number, created_s), usage
    if question.url == MESSAGES:
        return _anthropic_message(question, texts[0], ends[0], usage, number), usage
    if question.url == EMBEDDINGS:
        raise AssertionError("embeddings have no lengths; call make_embeddings")
    is_chat = question.url == CHAT
    choices = [
        {
            "index": place,
            **(
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if is_chat
                else {"text": text}
            ),
            "logprobs": None,
            "finish_reason": end,
        }
        for place, (text, end) in enumerate(zip(texts, ends, strict=False))
    ]
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-sim{number:08d}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created_s,
        "model": question.model,
        "choices": choices,
        "usage": usage_body(question.url, usage),
    }
    return body, usage


def words_of(words: int, start: int) -> str:
    """A text of so many words, which depends on `start` only."""
    return _words(words, start % len(_WORDS))


@lru_cache(maxsize=4096)
def _words(words: int, start: int) -> str:
    repeats = (start + words) // len(_WORDS) + 1
    return " ".join((_WORDS * repeats)[start : start + words])


def usage_field(url: str) -> str:
    """Where an answer has its usage."""
    return "usageMetadata" if url == GENERATE else "usage"


def usage_body(url: str, usage: Usage) -> dict[str, Any]:
    """Usage as the endpoint writes it."""
    if url == GENERATE:
        thoughts = usage.reasoning_tokens
        return {
            "promptTokenCount": usage.input_tokens,
            "candidatesTokenCount": usage.output_tokens - thoughts,
            **({"thoughtsTokenCount": thoughts} if thoughts else {}),
            "totalTokenCount": usage.total_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input_tokens}],
        }
    if url == EMBEDDINGS:
        return {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    into, out = ("input", "output") if url == RESPONSES else ("prompt", "completion")
    return {
        f"{into}_tokens": usage.input_tokens,
        f"{out}_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        f"{into}_tokens_details": {"cached_tokens": 0},
        f"{out}_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _anthropic_message(
    question: Question, text: str, end: str, usage: Usage, number: int
) -> dict[str, Any]:
    return {
        "id": f"msg_sim{number:08d}",
        "type": "message",
        "role": "assistant",
        "model": question.model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "max_tokens" if end == "length" else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": usage.output_tokens,
        },
    }


def _response(
    question: Question, text: str, end: str, usage: Usage, number: int, created_s: int
) -> dict[str, Any]:
    is_cut = end == "length"
    message = {
        "type": "message",
        "id": f"msg-sim{number:08d}",
        "status": "incomplete" if is_cut else "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }
    return {
        "id": f"resp-sim{number:08d}",
        "object": "response",
        "created_at": created_s,
        "status": "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": None,
        "metadata": {},
        "model": question.model,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage_body(RESPONSES, usage),
    }


def make_embeddings(
    question: Question, body: Mapping[str, Any], number: int
) -> tuple[dict[str, Any], Usage]:
    """One small vector per input text; base64 if the request wants it so.

    Raises:
        Invalid: More dimensions than there are.
    """
    dimensions = DIMENSIONS
    if body.get("dimensions") is not None:
        dimensions = positive(body, "dimensions", most=MAX_DIMENSIONS)
    usage = Usage(question.input_tokens)
    is_packed = body.get("encoding_format") == "base64"
    data = []
    for place in range(question.inputs):
        vector = vector_of(question.fingerprint + place, dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode("ascii")
        data.append(
            {"object": "embedding", "index": place, "embedding": packed if is_packed else vector}
        )
    answer = {
        "id": f"embd-sim{number:08d}",  # Mistral's clients insist on it
        "object": "list",
        "data": data,
        "model": question.model,
        "usage": usage_body(EMBEDDINGS, usage),
    }
    return answer, usage


def vector_of(start: int, dimensions: int) -> list[float]:
    """Numbers between -1 and 1 that depend on `start` only."""
    return [
        zlib.crc32(struct.pack("<II", start & 0xFFFFFFFF, place)) / 0x7FFFFFFF - 1.0
        for place in range(dimensions)
    ]


def make_moderation(question: Question, number: int) -> dict[str, Any]:
    """Nothing is ever flagged here, and nothing is billed."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
    }
    results = [dict(result) for _ in range(question.inputs)]
    return {"id": f"modr-sim{number:08d}", "model": question.model, "results": results}
