"""A simulated answer as server-sent events: some words each, the end, usage if asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from scheduler.providers.simulated.faults import error_body
from scheduler.request import CHAT, COMPLETIONS, GENERATE, MESSAGES, RESPONSES

PIECES = 12
STREAMED = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, GENERATE)


def error_event(url: str) -> bytes:
    """What breaks a stream off in good order."""
    body = error_body(url, 500, "The server had an error (simulated).", "server_error")
    return _event(body, "error" if url == MESSAGES else "", _end_of(url))


def make_events(
    url: str, body: Mapping[str, Any], with_usage: bool, *, is_mistral: bool = False
) -> list[bytes]:
    """The events of an answer, as bytes to send.

    Args:
        url: The endpoint.
        body: The answer as a whole.
        with_usage: Whether it was asked for.
        is_mistral: It is told with the last words, unasked, as Mistral does.
    """
    if url == RESPONSES:
        return list(_response_events(body))
    if url == MESSAGES:
        return list(_message_events(body))
    if url == GENERATE:
        return list(_google_events(body))
    is_chat = url == CHAT
    head = {key: body[key] for key in ("id", "created", "model", "service_tier") if key in body}
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
        ended = [{"index": place, **rest, "finish_reason": choice["finish_reason"]}]
        if is_mistral:
            events.append(_event({**head, "choices": ended, "usage": body.get("usage")}))
        else:
            events.append(event(ended))
    if with_usage and not is_mistral and "usage" in body:
        events.append(event([], body["usage"]))
    return [*events, b"data: [DONE]\n\n"]


def _response_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    (item,) = body["output"]
    (part,) = item["content"]
    text, empty = part["text"], {**part, "text": ""}
    at_item = {"output_index": 0}
    at_part = {**at_item, "item_id": item["id"], "content_index": 0}
    at_text = {**at_part, "logprobs": []}
    kind = "completed" if body["status"] == "completed" else "incomplete"
    events: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": begun}),
        ("output_item.added",
         {**at_item, "item": {**item, "status": "in_progress", "content": []}}),
        ("content_part.added", {**at_part, "part": empty}),
        *(("output_text.delta", {**at_text, "delta": words}) for words in _pieces(text)),
        ("output_text.done", {**at_text, "text": text}),
        ("content_part.done", {**at_part, "part": part}),
        ("output_item.done", {**at_item, "item": item}),
        (kind, {"response": dict(body)}),
    ]  # fmt: skip
    for number, (name, fields) in enumerate(events):
        name = f"response.{name}"
        yield _event({"type": name, "sequence_number": number, **fields}, name)


def _message_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    usage = body.get("usage", {})
    begun = {**body, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    parts: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "text_delta", "text": words}}
            for words in _pieces(body["content"][0]["text"])
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta",
         "delta": {"stop_reason": body["stop_reason"], "stop_sequence": None},
         "usage": {name: usage[name] for name in ("output_tokens",) if name in usage}},
        {"type": "message_stop"},
    ]  # fmt: skip
    for part in parts:
        yield _event(part, part["type"])


def _google_events(body: Mapping[str, Any]) -> Iterator[bytes]:
    head = {name: body[name] for name in ("modelVersion", "responseId")}
    listed = body["candidates"]
    texts = [list(_pieces(each["content"]["parts"][0]["text"])) for each in listed]
    last = max(map(len, texts)) - 1
    for place, pieces in enumerate(zip_longest(*texts, fillvalue="")):
        chunk: dict[str, Any] = {
            "candidates": [
                {**(candidate if place == last else {"index": candidate["index"]}),
                 "content": {"parts": [{"text": piece}], "role": "model"}}
                for candidate, piece in zip(listed, pieces, strict=True)
            ]
        }  # fmt: skip
        usage = body.get("usageMetadata")
        if usage is not None:
            prompt = usage["promptTokenCount"]
            so_far = {"promptTokenCount": prompt, "totalTokenCount": prompt}
            chunk["usageMetadata"] = usage if place == last else so_far
        yield _event(chunk | head, end=_end_of(GENERATE))


def _end_of(url: str) -> str:
    return "\r\n\r\n" if url == GENERATE else "\n\n"


def _pieces(text: str) -> Iterator[str]:
    words = text.split(" ")
    size = -(-len(words) // PIECES)
    for start in range(0, len(words), size):
        piece = " ".join(words[start : start + size])
        yield piece if start == 0 else f" {piece}"


def _event(data: dict[str, Any], name: str = "", end: str = "\n\n") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data, separators=(',', ':'))}{end}".encode()
