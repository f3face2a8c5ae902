"""A simulated answer as server-sent events: some words each, the end, usage if asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scheduler.request import CHAT, COMPLETIONS, MESSAGES, RESPONSES

PIECES = 12
STREAMED = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
ERROR = (
    b'data: {"error":{"message":"The server had an error (simulated).","type":"server_error"}}\n\n'
)


def make_events(url: str, body: Mapping[str, Any], with_usage: bool) -> list[bytes]:
    """The events of an answer, as bytes to send."""
    if url == RESPONSES:
        return list(_response_events(body))
    if url == MESSAGES:
        return list(_message_events(body))
    is_chat = url == CHAT
    head = {key: body[key] for key in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk" if is_chat else "text_completion"

    def event(choices: list[dict[str, Any]], usage: Any = None) -> bytes:
        return _event({**head, "choices": choices, **({"usage": usage} if with_usage else {})})

    events = []
    for choice in body["choices"]:
        place = choice["index"]
        text = choice["message"]["content"] if is_chat else choice["text"]
        for number, words in enumerate(_pieces(text)):
            first = {"role": "assistant"} if number == 0 else {}
            part = {"delta": {**first, "content": words}} if is_chat else {"text": words}
            events.append(event([{"index": place, **part, "finish_reason": None}]))
        rest: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        events.append(event([{"index": place, **rest, "finish_reason": choice["finish_reason"]}]))
    if with_usage and "usage" in body:
        events.append(event([], body["usage"]))
    return [*events, b"data: [DONE]\n\n"]


def _response_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    yield _event({"type": "response.created", "response": begun}, "response.created")
    for part in body["output"]:
        for words in _pieces(part["content"][0]["text"]):
            delta = {"type": "response.output_text.delta", "item_id": part["id"], "delta": words}
            yield _event(delta, "response.output_text.delta")
    kind = "response.completed" if body["status"] == "completed" else "response.incomplete"
    yield _event({"type": kind, "response": dict(body)}, kind)


def _message_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    begun = {
        **body,
        "content": [],
        "stop_reason": None,
        "usage": {**body["usage"], "output_tokens": 1},
    }
    parts: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "text_delta", "text": words}}
            for words in _pieces(body["content"][0]["text"])
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": body["stop_reason"]},
         "usage": {"output_tokens": body["usage"]["output_tokens"]}},
        {"type": "message_stop"},
    ]  # fmt: skip
    for part in parts:
        yield _event(part, part["type"])


def _pieces(text: str) -> Iterator[str]:
    words = text.split(" ")
    size = -(-len(words) // PIECES)
    for start in range(0, len(words), size):
        piece = " ".join(words[start : start + size])
        yield piece if start == 0 else f" {piece}"


def _event(data: dict[str, Any], name: str = "") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
