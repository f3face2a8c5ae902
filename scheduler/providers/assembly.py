"""The whole that the events of one stream amount to; pure.

The dialects: OpenAI's chat and text completions, its Responses API, Anthropic's Messages,
Google's generateContent. What is put together here looks like the answer to the same call
without a stream.

It is an answer only if nothing is missing: every event could be read, none was an error, every
choice has its reason for ending (a message its stop reason, a response its last event). Its usage
is what was told with the end or after it; what was told before may be less than the bill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scheduler.errors import cut
from scheduler.prices.outputs import answers_of
from scheduler.providers.meaning import error_in, has_failed, most_of
from scheduler.request import CHAT, COMPLETIONS, Request, StreamEvent

DONE = "[DONE]"
MAX_MESSAGE_CHARS = 500
_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")
_KEPT_ALIVE = frozenset({"ping", "heartbeat", "keepalive", "keep-alive", "keep_alive"})
_GOOGLES = frozenset({"candidates", "usageMetadata", "promptFeedback"})  # any: a chunk of Google's
_COLLECTED = ("citationMetadata", "logprobsResult")  # of a candidate; the rest replaces
_LATE = ("id", "created", "model", "service_tier", "system_fingerprint")  # of a head
_NOT_OF_HEAD = ("choices", "usage", "error")
_JOINED = ("content", "refusal", "reasoning_content", "reasoning", "text", "arguments")


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the caller asked for the chunk with the usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def needs_asking(request: Request) -> bool:
    """Whether the usage of a stream has to be asked for, and its caller did not."""
    return request.url in (CHAT, COMPLETIONS) and not wants_usage(request.body)


class Assembly:
    """Takes the events of one answer; see the module.

    Attributes:
        body: The answer so far; None: nothing of it has come.
        is_complete: The last word has been said, and with it the usage: whatever comes, or does
            not come, after it changes nothing.
        error: What went wrong in the middle of it; None: nothing.
        error_value: The same as it was told.
        error_at: The number of the event in which the service said so; 0: it did not.
        events: How many have come.
        hides_usage: The reader did not ask for the usage, and is not shown it.
        is_usage_alone: The last event told the usage, and nothing of any choice.
        is_done: OpenAI's mark of the end has come.
        has_whole_usage: The usage was told, and nothing can follow that adds to it.
    """

    def __init__(self, request: Request, asked_for_usage: bool = True) -> None:
        self.body: dict[str, Any] | None = None
        self.events = self.error_at = 0
        self.error: str | None = None
        self.error_value: Any = None
        self.hides_usage = asked_for_usage and needs_asking(request)
        self.is_done = self.has_whole_usage = self.is_usage_alone = False
        self._asked = answers_of(request) if request.url in (CHAT, COMPLETIONS) else 1
        self._is_over = self._came_with_end = False
        self._choices: dict[int, dict[str, Any]] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._items: dict[int, dict[str, Any]] = {}  # of a response

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the answer is missing, though its usage may be still to come."""
        if self.error is not None or self.body is None:
            return False
        if self._is_over:
            return True
        if not self._choices or not all(map(_end_of, self._choices.values())):
            return False
        # Of several answers one may end before another has begun; fewer only if it is said.
        return len(self._choices) >= self._asked or self.is_done or self.has_whole_usage

    @property
    def is_complete(self) -> bool:
        """See the class."""
        return self.has_ended and (self.has_whole_usage or self.is_done)

    @property
    def knows_usage(self) -> bool:
        """Whether the usage so far is all, if nothing more comes."""
        return self.has_whole_usage or self._came_with_end

    def take(self, event: StreamEvent) -> StreamEvent | None:
        """Add an event; returns it as its reader sees it, None if it is none of their business."""
        text, self.is_usage_alone = event.data.strip(), False
        if text == DONE:
            self.is_done = True
            return None
        self.events += 1
        if not text or event.event.lower() in _KEPT_ALIVE:
            return event
        was_whole = self.is_done and self.is_complete
        chunk = _decoded(event)
        if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict):
            chunk = chunk[0] if error_in(chunk[0]) is not None else chunk  # Google's, in a list
        shown: StreamEvent | None = event
        if was_whole and _is_no_part(chunk, event):
            return event  # an error after the last word takes nothing back
        if was_whole and isinstance(chunk.get("choices"), list) and chunk["choices"]:
            return self._late(chunk, event)
        if isinstance(chunk, dict):
            shown = self._take(chunk, event)
        if event.event == "error":
            self._failed(chunk or text)
        elif not isinstance(chunk, dict) and text != "null" and self.error is None:
            self.error = f"an event that cannot be read: {cut(text, 100)!r}"
        return shown

    def _take(self, chunk: dict[str, Any], event: StreamEvent) -> StreamEvent | None:
        kind, shown = chunk.get("type"), event
        is_response = isinstance(kind, str) and isinstance(chunk.get("response"), dict)
        error = None if is_response else error_in(chunk)
        if is_response:
            self._response(str(kind), chunk["response"])
        elif isinstance(chunk.get("choices"), list):
            shown = self._chunk(chunk, event)  # type: ignore[assignment]
        elif _GOOGLES & chunk.keys():
            self._google(chunk)
        elif isinstance(kind, str) and error is None:
            self._part(kind, chunk)
        elif isinstance(chunk.get("usage"), dict):  # told beside an error, or on its own
            self._told_usage(chunk["usage"], is_last=True)
            self.is_usage_alone = error is None
        if error is not None:
            self._failed(error)
        return shown

    def whole(self) -> dict[str, Any]:
        """The answer as the same call without a stream gives it."""
        for choice in self._choices.values():
            for call in (choice.get("message") or {}).get("tool_calls") or ():
                call.pop("index", None)
        return self.body or {}

    def _failed(self, error: Any) -> None:
        """The service says that something went wrong."""
        if self.error is not None:
            return  # the first one says why
        found = error if isinstance(error, dict) else {"message": error}
        words = [found.get(name) for name in ("type", "code", "status", "message")]
        text = ": ".join(str(word) for word in words if word and word != "error")
        self.error = cut(text or json.dumps(error, default=str), MAX_MESSAGE_CHARS)
        self.error_value, self.error_at = error, self.events

    def _told_usage(self, usage: dict[str, Any], *, is_last: bool) -> None:
        """Usage was told, perhaps not for the first time: never less than before."""
        if self.body is None:
            self.body = {}
        self.body["usage"] = most_of(self.body.get("usage"), usage)
        self.has_whole_usage = is_last

    def _response(self, kind: str, response: dict[str, Any]) -> None:
        """An event of the Responses API that has the response so far."""
        told = (self.body or {}).get("usage")
        self.body = response
        if kind in _RESPONSE_ENDS:
            self._is_over = True
            self.has_whole_usage = isinstance(response.get("usage"), dict)
        if told is not None:
            self.body["usage"] = most_of(told, response.get("usage"))
        if kind in _RESPONSE_ENDS and self._items and not response.get("output"):
            self.body["output"] = [self._items[place] for place in sorted(self._items)]
        if kind == "response.failed":
            self._failed(response.get("error") or "the response has failed")

    # OpenAI's chunks

    def _chunk(self, chunk: dict[str, Any], event: StreamEvent) -> StreamEvent | None:
        if self.body is None or "choices" not in self.body:
            kind = str(chunk.get("object", "")).removesuffix(".chunk")
            told = self.body or {}
            self.body = {key: value for key, value in chunk.items() if key not in _NOT_OF_HEAD}
            self.body |= {"object": kind, "choices": [], **told}
        for name in _LATE:  # Azure's first chunk has empty ones
            if chunk.get(name) and not self.body.get(name):
                self.body[name] = chunk[name]
        if not self.body.get("object"):
            self.body["object"] = str(chunk.get("object") or "").removesuffix(".chunk")
        for part in chunk["choices"]:
            if isinstance(part, dict):
                self._choice(part)
                if has_failed(part):
                    ended = f"a choice ended with {part.get('finish_reason')!r}"
                    self._failed(chunk.get("error") or part.get("error") or ended)
        self.body["choices"] = [self._choices[place] for place in sorted(self._choices)]
        usage = chunk.get("usage")
        self.is_usage_alone = isinstance(usage, dict) and not chunk["choices"]
        if isinstance(usage, dict):
            # Some send it with every chunk: only the one without choices is the last word, or
            # the one with which the last choice ends.
            self._told_usage(usage, is_last=not chunk["choices"])
            self._came_with_end = bool(chunk["choices"]) and self.has_ended
        elif any(map(_has_more, chunk["choices"])):
            self.has_whole_usage = self._came_with_end = False
        return self._shown(chunk, event)

    def _late(self, chunk: dict[str, Any], event: StreamEvent) -> StreamEvent | None:
        """More of an answer after the mark of its end, where SDKs read no further: only what it
        tells of the usage counts.
        """  # noqa: D205
        if isinstance(chunk.get("usage"), dict):
            self._told_usage(chunk["usage"], is_last=self.has_whole_usage)
        return self._shown(chunk, event)

    def _shown(self, chunk: dict[str, Any], event: StreamEvent) -> StreamEvent | None:
        """A chunk as its reader sees it."""
        usage = chunk.get("usage")
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
        usage = chunk.pop("usageMetadata", None)
        self.body.update(chunk)
        feedback = self.body.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self._is_over = self.is_done = True
        if isinstance(usage, dict):
            self.body["usageMetadata"] = most_of(self.body.get("usageMetadata"), usage)
        # Every chunk has the usage so far: only what comes with the end or after it is all.
        self.has_whole_usage = self.has_ended and (self.has_whole_usage or isinstance(usage, dict))

    def _candidate(self, part: dict[str, Any]) -> None:
        candidate = self._choices.setdefault(_place(part), {})
        for name, value in part.items():
            old = candidate.get(name)
            if name == "content" and isinstance(value, dict):
                content = candidate.setdefault("content", {"parts": []})
                content.update((key, each) for key, each in value.items() if key != "parts")
                _add_parts(content["parts"], value.get("parts"))
            elif name == "groundingMetadata" and isinstance(old, dict) and isinstance(value, dict):
                candidate[name] = {**old, **value, **_queries(old, value)}
            elif name in _COLLECTED and isinstance(old, dict) and isinstance(value, dict):
                _merge(old, value)
            elif name != "content":
                candidate[name] = value

    # Anthropic's parts

    def _part(self, kind: str, chunk: dict[str, Any]) -> None:
        place, delta = _place(chunk), chunk.get("delta")
        if kind == "message_start" and isinstance(chunk.get("message"), dict):
            told = (self.body or {}).get("usage")
            self.body = {**chunk["message"], "content": []}
            if told is not None:
                self.body["usage"] = most_of(told, self.body.get("usage"))
            self._is_over = self.has_whole_usage = False
        elif self.body is None:
            return
        elif kind == "response.output_item.done" and isinstance(chunk.get("item"), dict):
            self._items[_place(chunk, "output_index")] = chunk["item"]
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
            self._is_over = bool(self.body.get("stop_reason"))
            usage = chunk.get("usage")
            if isinstance(usage, dict):  # cumulative
                self._told_usage(usage, is_last=self._is_over)
        elif kind == "message_stop":
            self.is_done = True


def _queries(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What was searched for, of which each is billed, as told so far and now."""
    listed = [each for told in (old, new) if isinstance(told.get("webSearchQueries"), list)
              for each in told["webSearchQueries"] if isinstance(each, str)]  # fmt: skip
    return {"webSearchQueries": list(dict.fromkeys(listed))} if listed else {}


def _is_no_part(chunk: Any, event: StreamEvent) -> bool:
    """Whether an event says nothing of the answer itself: an error, or nothing to be read."""
    return not isinstance(chunk, dict) or event.event == "error" or error_in(chunk) is not None


def _end_of(choice: Mapping[str, Any]) -> Any:
    """Why a choice or candidate ended; nothing: it has not."""
    return choice.get("finish_reason") or choice.get("finishReason")


def _has_more(part: Any) -> bool:
    """Whether a part of a choice adds to what it says."""
    delta = part.get("delta") if isinstance(part, dict) else None
    said = delta if isinstance(delta, dict) else part if isinstance(part, dict) else {}
    return any(said.get(name) for name in (*_JOINED, "tool_calls", "function_call"))


def _decoded(event: StreamEvent) -> Any:
    """Its data as JSON; None: it is none."""
    try:
        return event.json()
    except (ValueError, RecursionError):
        return None


def _place(part: Mapping[str, Any], name: str = "index") -> int:
    place = part.get(name, 0)
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
