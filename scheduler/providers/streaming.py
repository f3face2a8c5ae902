"""Streamed answers: what to ask for, what its reader sees, and the whole that it amounts to.

The dialects: OpenAI's chat and text completions, its Responses API, Anthropic's Messages,
Google's generateContent.
An answer put together here looks like the one the same call gives without a stream.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from scheduler.errors import CallFailed, ProviderError, RateLimited, StreamBroken, cut
from scheduler.providers.answers import Secrets, hide, read_answer, read_error
from scheduler.providers.base import Answer, Emit
from scheduler.providers.engines import Reply, Take, call_id
from scheduler.providers.limit_headers import read_limits
from scheduler.request import CHAT, COMPLETIONS, Request, StreamEvent
from scheduler.sse import EventParser
from scheduler.usage import extract_usage, reported_cost_nusd

DONE = "[DONE]"
MAX_MESSAGE_CHARS = 500
_ASKS_FOR_USAGE = (CHAT, COMPLETIONS)
_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")
_STATUSES = {
    "rate_limit": 429, "overloaded": 529, "insufficient_quota": 429, "billing": 402,
    "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
}  # fmt: skip
_GOOGLES = frozenset({"candidates", "usageMetadata", "promptFeedback"})  # any: a chunk of Google's
_COLLECTED = ("citationMetadata", "logprobsResult")  # of a candidate; the rest replaces
_JOINED = ("content", "refusal", "reasoning_content", "reasoning", "text", "arguments")


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the caller asked for the chunk with the usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def streamed_body(request: Request) -> dict[str, Any]:
    """The body to send: streamed, and with the usage at the end where that has to be asked for."""
    body = request.body | {"stream": True}
    if request.url in _ASKS_FOR_USAGE and not wants_usage(body):
        options = body.get("stream_options")
        body["stream_options"] = {**(options if isinstance(options, dict) else {}),
                                  "include_usage": True}  # fmt: skip
    return body


Post = Callable[[Take], Awaitable[Reply]]


async def read_stream(request: Request, post: Post, emit: Emit, secrets: Secrets = ()) -> Answer:
    """Send, hand over events as they come, give back the whole answer.

    Args:
        request: What is asked.
        post: Sends it; hands the bytes of a stream over as they come.
        emit: Takes the events that are the reader's business.
        secrets: Keys that must not appear in an error.

    Raises:
        StreamBroken: It ended before its end.
        CallFailed: As without a stream, before the first event.
    """
    transcript = Transcript(request, secrets)

    async def take(chunk: bytes) -> None:
        for event in transcript.feed(chunk):
            await emit(event)

    try:
        status, headers, content = await post(take)
    except CallFailed as error:
        return transcript.after(error)
    return transcript.answer(status, headers, content)


class Transcript:
    """Takes the bytes of one stream as they come; in the end, what they amount to.

    Args:
        request: What was asked.
        secrets: Keys that must not appear in an error.
        asked_for_usage: Whether usage was asked for in the reader's stead, if they did not.

    Attributes:
        assembly: The answer so far.
    """

    def __init__(
        self, request: Request, secrets: Secrets = (), *, asked_for_usage: bool = True
    ) -> None:
        self.assembly = Assembly(request, asked_for_usage)
        self._parser, self._secrets = EventParser(), secrets

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take some bytes; gives the events that are the reader's business."""
        shown = []
        for event in self._parser.feed(chunk):
            seen = self.assembly.take(event)
            if self.is_refused:
                break  # nothing of an answer: judged at the end, like an error status
            if seen is not None:
                shown.append(seen)
        return shown

    @property
    def is_refused(self) -> bool:
        """Whether it consists of an error."""
        return self.assembly.error is not None and self.assembly.events == 1

    def after(self, error: CallFailed) -> Answer:
        """What it amounts to when it broke off like this: the answer, if that was complete.

        Raises:
            StreamBroken: It was not.
            CallFailed: The error, if nothing had come.
        """
        if not self.assembly.events:
            raise error
        if not self.assembly.is_complete:
            raise self._broken(error.message, error.request_id) from error
        return self.answer(200, {})

    def answer(self, status: int, headers: Mapping[str, str], content: bytes = b"") -> Answer:
        """What it amounts to, now that it has ended.

        Args:
            status: The HTTP status.
            headers: Found by names in lower case.
            content: The body, if it was no stream.

        Raises:
            StreamBroken: It ended before its end.
            CallFailed: It consists of an error.
        """
        assembly = self.assembly
        if not assembly.events and not self._parser.is_begun:
            return read_answer(status, headers, content, self._secrets)
        if assembly.error is not None:
            if assembly.events == 1:
                raise _refused_at_once(assembly, headers, self._secrets)
            said = hide(assembly.error, self._secrets)
            problem = f"the provider ended the stream with an error ({said})"
            raise self._broken(problem, call_id(headers))
        if not assembly.is_complete:
            raise self._broken("the stream ended before its end", call_id(headers))
        body = assembly.whole()
        return Answer(
            body, status, extract_usage(body), reported_cost_nusd(body),
            headers.get("x-request-id"), headers, read_limits(headers),
        )  # fmt: skip

    def _broken(self, problem: str, request_id: str | None) -> StreamBroken:
        broken = StreamBroken(problem, self.assembly.events)
        broken.request_id = request_id
        return broken


def _refused_at_once(
    assembly: Assembly, headers: Mapping[str, str], secrets: Secrets
) -> ProviderError:
    """The error that a stream consists of, as if it had come with a status of its own.

    Whether it was billed nobody says, but for a rate limit.
    """
    words = assembly.error or ""
    status = next((code for word, code in _STATUSES.items() if word in words), 500)
    error = read_error(status, headers, assembly.last.encode(), secrets)
    error.is_billed = False if isinstance(error, RateLimited) else None
    return error


async def nobody_reads(event: StreamEvent) -> None:
    """An `Emit` for streams that are wanted as a whole."""


class Assembly:
    """Takes the events of one answer; see the module.

    Attributes:
        body: The answer so far; None: nothing of it has come.
        is_complete: The last word has been said, and with it the usage.
        error: What the provider said went wrong in the middle of it; None: nothing.
        events: How many have come.
        last: The data of the last one.
        hides_usage: The reader did not ask for the usage, and is not shown it.
        is_done: OpenAI's mark of the end has come.
    """

    def __init__(self, request: Request, asked_for_usage: bool = True) -> None:
        self.body: dict[str, Any] | None = None
        self.is_complete, self.events = False, 0
        self.error: str | None = None
        self.last = ""
        self.hides_usage = (
            asked_for_usage and request.url in _ASKS_FOR_USAGE and not wants_usage(request.body)
        )
        self._choices: dict[int, dict[str, Any]] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self.is_done = False

    def take(self, event: StreamEvent) -> StreamEvent | None:
        """Add an event; returns it as its reader sees it, None if it is none of their business."""
        if event.data.strip() == DONE:
            self.is_done = True
            self.is_complete = self.body is not None
            return None
        self.events += 1
        self.last = event.data
        try:
            chunk = event.json()
        except (ValueError, RecursionError):
            return event
        if not isinstance(chunk, dict):
            return event
        kind = chunk.get("type")
        if chunk.get("error") and kind != "response.failed":
            self._failed(chunk["error"])
        elif kind in _RESPONSE_ENDS and isinstance(chunk.get("response"), dict):
            self.body, self.is_complete = chunk["response"], True
        elif kind == "error":
            self._failed(chunk)
        elif isinstance(kind, str):
            self._part(kind, chunk)
        elif isinstance(chunk.get("choices"), list):
            return self._chunk(chunk, event)
        elif _GOOGLES & chunk.keys():
            self._google(chunk)
        return event

    def whole(self) -> dict[str, Any]:
        """The answer as the same call without a stream gives it."""
        for choice in self._choices.values():
            for call in (choice.get("message") or {}).get("tool_calls") or ():
                call.pop("index", None)
        return self.body or {}

    def _failed(self, error: Any) -> None:
        found = error if isinstance(error, dict) else {"message": error}
        words = [found.get(name) for name in ("type", "code", "status", "message")]
        text = ": ".join(str(word) for word in words if word and word != "error")
        self.error = cut(text or json.dumps(error, default=str), MAX_MESSAGE_CHARS)

    # OpenAI's chunks

    def _chunk(self, chunk: dict[str, Any], event: StreamEvent) -> StreamEvent | None:
        if self.body is None:
            kind = str(chunk.get("object", "")).removesuffix(".chunk")
            self.body = {
                key: value for key, value in chunk.items() if key not in ("choices", "usage")
            }
            self.body |= {"object": kind, "choices": []}
        for part in chunk["choices"]:
            if isinstance(part, dict):
                self._choice(part)
        self.body["choices"] = [self._choices[place] for place in sorted(self._choices)]
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.body["usage"] = usage
            # Some send it with every chunk: only the one without choices is the last word.
            ended = (choice.get("finish_reason") for choice in self._choices.values())
            self.is_complete = not chunk["choices"] and bool(self._choices) and all(ended)
        if not self.hides_usage or "usage" not in chunk:
            return event
        if not chunk["choices"] and isinstance(usage, dict):
            return None  # it is there only because we asked for it
        shown = {key: value for key, value in chunk.items() if key != "usage"}
        return StreamEvent(json.dumps(shown, separators=(",", ":")), event.event)

    def _choice(self, part: dict[str, Any]) -> None:
        place = _place(part)
        choice = self._choices.setdefault(place, {"index": place})
        for name, value in part.items():
            if name == "delta" and isinstance(value, dict):
                _merge(choice.setdefault("message", {"role": "assistant", "content": None}), value)
            elif name == "text" and isinstance(value, str):
                choice["text"] = choice.get("text", "") + value
            elif name == "logprobs" and isinstance(value, dict):
                if not isinstance(choice.get(name), dict):
                    choice[name] = {}
                _merge(choice[name], value)
            elif name != "delta" and (value is not None or name not in choice):
                choice[name] = value

    # Google's chunks: each is an answer of its own, with what is new

    def _google(self, chunk: dict[str, Any]) -> None:
        candidates = chunk.pop("candidates", None)
        for part in candidates if isinstance(candidates, list) else ():
            if isinstance(part, dict):
                self._candidate(part)
        if self.body is None:
            self.body = {}
        if self._choices:
            self.body["candidates"] = [self._choices[place] for place in sorted(self._choices)]
        self.body.update(chunk)
        feedback = self.body.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self.is_complete = True
            return
        has_ended = bool(self._choices) and all(
            choice.get("finishReason") for choice in self._choices.values()
        )
        # Every chunk has the usage so far: only what comes with the end or after it is all.
        has_usage = isinstance(chunk.get("usageMetadata"), dict)
        self.is_complete = has_ended and (self.is_complete or has_usage)

    def _candidate(self, part: dict[str, Any]) -> None:
        candidate = self._choices.setdefault(_place(part), {})
        for name, value in part.items():
            old = candidate.get(name)
            if name == "content" and isinstance(value, dict):
                content = candidate.setdefault("content", {"parts": []})
                content.update((key, each) for key, each in value.items() if key != "parts")
                _add_parts(content["parts"], value.get("parts"))
            elif name in _COLLECTED and isinstance(old, dict) and isinstance(value, dict):
                _merge(old, value)
            elif name != "content":
                candidate[name] = value

    # Anthropic's parts

    def _part(self, kind: str, chunk: dict[str, Any]) -> None:
        place, delta = _place(chunk), chunk.get("delta")
        if kind == "message_start" and isinstance(chunk.get("message"), dict):
            self.body = {**chunk["message"], "content": []}
        elif self.body is None:
            return
        elif kind == "content_block_start" and isinstance(chunk.get("content_block"), dict):
            self._blocks[place] = block = dict(chunk["content_block"])
            self.body["content"] = [self._blocks[each] for each in sorted(self._blocks)]
            block.pop("_json", None)
        elif kind == "content_block_delta" and place in self._blocks and isinstance(delta, dict):
            _add_to_block(self._blocks[place], delta)
        elif kind == "content_block_stop" and place in self._blocks:
            _close_block(self._blocks[place])
        elif kind == "message_delta":
            self.body.update(delta if isinstance(delta, dict) else {})
            usage = chunk.get("usage")
            if isinstance(usage, dict):  # cumulative
                told = {key: value for key, value in usage.items() if value is not None}
                self.body["usage"] = {**(self.body.get("usage") or {}), **told}
                self.is_complete = self.body.get("stop_reason") is not None
        elif kind == "message_stop":
            self.is_complete = True


def _place(part: Mapping[str, Any]) -> int:
    place = part.get("index", 0)
    return place if isinstance(place, int) else 0


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta: texts are joined, numbered lists by their numbers, others replace."""
    for name, value in delta.items():
        old = into.get(name)
        if isinstance(value, str) and isinstance(old, str) and name in _JOINED:
            into[name] = old + value
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif isinstance(value, list) and value and all(_is_numbered(item) for item in value):
            into[name] = _merge_list(old if isinstance(old, list) else [], value)
        elif isinstance(value, list) and isinstance(old, list):
            old.extend(value)
        elif (value is not None and value != "") or not old:  # an id is repeated empty by some
            into[name] = value


def _is_numbered(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("index"), int)


def _merge_list(old: list[Any], parts: list[dict[str, Any]]) -> list[Any]:
    by_place = {item["index"]: item for item in old if _is_numbered(item)}
    for part in parts:
        _merge(by_place.setdefault(part["index"], {"index": part["index"]}), part)
    return [by_place[place] for place in sorted(by_place)]


def _add_parts(parts: list[Any], more: Any) -> None:
    """Add a candidate's new parts; text goes on where the last one is text of the same kind."""
    for part in more if isinstance(more, list) else ():
        last = parts[-1] if parts else None
        if (
            isinstance(last, dict)
            and isinstance(part, dict)
            and _is_mere_text(last)
            and _is_mere_text(part)
            and bool(last.get("thought")) is bool(part.get("thought"))
        ):
            last["text"] += part["text"]
        else:
            parts.append(part)


def _is_mere_text(part: dict[str, Any]) -> bool:
    """Whether it has nothing but text; a signature stands for its own part alone."""
    return isinstance(part.get("text"), str) and part.keys() <= {"text", "thought"}


def _add_to_block(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for name in ("text", "thinking", "signature"):
        if isinstance(delta.get(name), str):
            block[name] = (block.get(name) or "") + delta[name]
    if isinstance(delta.get("partial_json"), str):
        block["_json"] = block.get("_json", "") + delta["partial_json"]
    if isinstance(delta.get("citation"), dict):
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]


def _close_block(block: dict[str, Any]) -> None:
    text = block.pop("_json", None)
    if text is None:
        return
    try:
        block["input"] = json.loads(text or "{}")
    except (ValueError, RecursionError):
        block["input"] = text
