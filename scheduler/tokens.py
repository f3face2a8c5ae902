"""Upper bounds on tokens, without a tokenizer.

Byte-level vocabularies (all of OpenAI's since GPT-2, Llama's, Mistral's, Qwen's)
have a token for every byte and merge from there, so

    tokens ≤ bytes of the UTF-8 text

holds for any text. Ordinary English has a quarter of that; only random or control
characters come near. Vocabularies that normalise the text first (Claude's, Gemini's)
can make it longer, so for these the longer of the text and its NFKC form is counted.
What the provider adds around messages and tools is not published; the margins here
are several times what has been observed.

Not bounded, and said so: images of models other than those named here, audio, files,
stored conversations, and tools that the provider runs itself.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.request import COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES

PER_REQUEST = 32
PER_MESSAGE = 16
PER_TOOL = 64
# 85 + 170 for each of at most 8 tiles: OpenAI's rule for gpt-4o and gpt-4.1 at any size.
TILED_IMAGE = 1_445
LOW_DETAIL_IMAGE = 85
OTHER_IMAGE = 6_000  # an estimate above what patch-based models are known to take

_NORMALISING = ("claude", "gemini", "anthropic", "google")
_TILED = ("gpt-4o", "gpt-4.1", "gpt-4-turbo", "chatgpt-4o")
_NOT_SENT_AS_TEXT = ("model", "max_tokens", "max_completion_tokens", "max_output_tokens")
_HOSTED = ("conversation", "previous_response_id", "prompt", "web_search_options", "audio")
_LOCAL_TOOLS = ("function", "custom")


@dataclass(frozen=True, slots=True)
class TokenBound:
    """Most tokens something can be; a mere estimate if not `is_bound`."""

    tokens: int
    is_bound: bool = True


def bound_input_tokens(url: str, body: Mapping[str, Any]) -> TokenBound:
    """Most tokens the input of a request can be."""
    model = str(body.get("model", "")).lower()
    counter = _Counter(any(word in model for word in _NORMALISING), model)
    if url in (EMBEDDINGS, MODERATIONS, COMPLETIONS):
        counter.plain(body.get("prompt" if url == COMPLETIONS else "input", ""))
        counter.text(body.get("suffix", ""))
    else:
        counter.conversation(body.get("input" if url == RESPONSES else "messages", ""))
        for name, value in body.items():
            if name in ("tools", "functions"):
                counter.tools(value)
            elif name in _HOSTED and value is not None:
                counter.json(value)
                counter.is_bound = False
            elif name not in ("messages", "input", *_NOT_SENT_AS_TEXT):
                counter.json(value)
    return TokenBound(PER_REQUEST + counter.tokens, counter.is_bound)


class _Counter:
    """Adds up bounds."""

    __slots__ = ("_normalises", "is_bound", "model", "tokens")

    def __init__(self, normalises: bool, model: str) -> None:
        self.tokens, self.is_bound = 0, True
        self._normalises, self.model = normalises, model

    def text(self, text: object) -> None:
        if isinstance(text, str):
            self.tokens += self._bytes(text)
        elif text is not None:
            self.json(text)

    def json(self, value: object) -> None:
        """Anything else counts as its JSON."""
        if value is None or isinstance(value, bool | int | float):
            return
        self.tokens += self._bytes(json.dumps(value, ensure_ascii=False, default=str))

    def _bytes(self, text: str) -> int:
        if text.isascii():
            return len(text)
        size = len(text.encode("utf-8", "surrogatepass"))
        if self._normalises:
            normal = unicodedata.normalize("NFKC", text)
            size = max(size, len(normal.encode("utf-8", "surrogatepass")))
        return size

    def plain(self, value: object) -> None:
        """Text, token ids, or a list of either."""
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, int):
                    self.tokens += 1
                elif isinstance(item, Mapping):
                    self.part(item)
                else:
                    self.plain(item)
                    self.tokens += PER_MESSAGE
        else:
            self.json(value)

    def conversation(self, messages: object) -> None:
        if not isinstance(messages, list):
            self.text(messages)
            return
        for message in messages:
            self.tokens += PER_MESSAGE
            if isinstance(message, Mapping):
                self._message(message)
            else:
                self.json(message)

    def _message(self, message: Mapping[str, Any]) -> None:
        for name, value in message.items():
            if name != "content":
                self.text(value)
            elif isinstance(value, list):
                self._parts(value)
            else:
                self.text(value)

    def _parts(self, parts: Iterable[Any]) -> None:
        for part in parts:
            if isinstance(part, Mapping):
                self.part(part)
            else:
                self.text(part)

    def part(self, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text", "refusal"):
            self.text(part.get("text", part.get("refusal", "")))
        elif kind in ("image_url", "input_image", "image"):
            self._image(part)
        else:
            self.json(part)
            self.is_bound = False

    def _image(self, part: Mapping[str, Any]) -> None:
        source = part.get("image_url")
        detail = part.get("detail") or (
            source.get("detail") if isinstance(source, Mapping) else None
        )
        if self.model.startswith(_TILED) and "mini" not in self.model:
            self.tokens += LOW_DETAIL_IMAGE if detail == "low" else TILED_IMAGE
        else:
            self.tokens += OTHER_IMAGE
            self.is_bound = False

    def tools(self, tools: object) -> None:
        for tool in tools if isinstance(tools, list) else [tools]:
            self.tokens += PER_TOOL
            self.json(tool)
            kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
            if kind not in _LOCAL_TOOLS:
                self.is_bound = False  # the provider runs it, in turns of its own
