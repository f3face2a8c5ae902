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
stored conversations and caches, tools that the provider runs itself, and models that
search or choose another model on their own.

>>> bound_input_tokens("/v1/embeddings", {"model": "m", "input": "grüezi"})
TokenBound(tokens=39, is_bound=True)
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from scheduler.errors import ConfigError
from scheduler.request import (
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    GEMINI,
    MODERATIONS,
    RESPONSES,
)

PER_REQUEST = 32
PER_CONVERSATION = 128  # open models' templates tell the date and rules: up to 80 have been seen
PER_MESSAGE = 16
PER_TOOL = 64
PER_TOOLS = 512  # once, if there are any: Claude is given a page of instructions with them
# 85 + 170 for each of at most 8 tiles: OpenAI's rule for gpt-4o and gpt-4.1 at any size.
TILED_IMAGE = 1_445
LOW_DETAIL_IMAGE = 85
OTHER_IMAGE = 6_000  # an estimate above what patch-based models are known to take

# Most tokens of an image at low and at any detail, by the beginning of the model's name;
# the longest holds. Patches: 1,536 at most, times the model's factor.
_IMAGES = {
    "gpt-4-turbo": (LOW_DETAIL_IMAGE, TILED_IMAGE),
    "gpt-4o": (LOW_DETAIL_IMAGE, TILED_IMAGE),
    "chatgpt-4o": (LOW_DETAIL_IMAGE, TILED_IMAGE),
    "gpt-4o-mini": (2_833, 48_169),  # 2,833 + 5,667 for each of 8 tiles
    "gpt-4.1": (LOW_DETAIL_IMAGE, 1_536),  # documented as tiles and as patches
    "gpt-4.1-mini": (2_489, 2_489),
    "gpt-4.1-nano": (3_779, 3_779),
}
_NORMALISING = ("claude", "gemini", "gemma", "anthropic", "google")
# Models that call tools or other models by themselves and bill for it.
_ACTING = ("search", "sonar", "deep-research", ":online", "compound", "openrouter/auto")
_NOT_SENT = frozenset({
    "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p",
    "n", "seed", "stream", "service_tier", "store", "metadata", "user",
})  # fmt: skip
# Fields that add what the body does not show: stored turns, searches, other models, output
# beside the answer (rejected predictions are billed as output).
_UNBOUNDED = frozenset({
    "conversation", "previous_response_id", "prompt", "web_search_options", "search_parameters",
    "audio", "prediction", "plugins", "models", "mcp_servers", "container",
})  # fmt: skip
_LOCAL_TOOLS = ("function", "custom")
_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_STORED_ITEMS = ("item_reference", "compaction")

# Google's names as `_plain` writes them: its API takes them in camel case and in snake case.
_GOOGLE_NOT_SENT = frozenset({
    "model", "stream", "safetysettings", "servicetier", "store", "labels", "tasktype",
    "outputdimensionality",
})  # fmt: skip
_GOOGLE_UNBOUNDED = frozenset({"cachedcontent", "continuationtoken"})  # kept by the provider
_TURNS = ("contents", "content", "systeminstruction")
_LOCAL_PARTS = frozenset({
    "text", "thought", "thoughtsignature", "functioncall", "functionresponse", "executablecode",
    "codeexecutionresult",
})  # fmt: skip
_MEDIA = ("inlinedata", "filedata")
# Of media that are no pictures: pages of text, seconds of sound and frames of film all have
# more bytes than this a token, unless they are squeezed very hard.
MEDIA_BYTES_PER_TOKEN = 8


class TokenBound(NamedTuple):
    """Most tokens something can be; a mere estimate if not `is_bound`."""

    tokens: int
    is_bound: bool = True


def bound_input_tokens(url: str, body: Mapping[str, Any]) -> TokenBound:
    """Most tokens the input of a request can be.

    Raises:
        ConfigError: The body has no form in JSON: nested too deep, or within itself.
    """
    try:
        return _bound_input(url, body)
    except (RecursionError, ValueError, TypeError) as exc:
        raise ConfigError("request", f"has no form in JSON: {exc}; nothing was sent") from None


def _bound_input(url: str, body: Mapping[str, Any]) -> TokenBound:
    model = body.get("model")
    traits = _traits(model) if isinstance(model, str) else _traits("")
    counter = _Counter(traits._replace(normalises=True) if url in GEMINI else traits)
    if url in GEMINI:
        fixed = PER_REQUEST if url == EMBED_CONTENT else PER_CONVERSATION
        counter.google(body)
        return TokenBound(fixed + counter.tokens, counter.is_bound)
    if url in (EMBEDDINGS, MODERATIONS, COMPLETIONS):
        counter.plain(body.get("prompt" if url == COMPLETIONS else "input"))
        counter.json(body.get("suffix"))
        return TokenBound(PER_REQUEST + counter.tokens, counter.is_bound)
    turns = "input" if url == RESPONSES else "messages"
    counter.conversation(body.get(turns))
    for name, value in body.items():
        if name == turns or name in _NOT_SENT or value is None:
            continue
        if name in ("tools", "functions"):
            counter.tools(value)
        else:
            counter.json(value)
            if name in _UNBOUNDED:
                counter.is_bound = False
    return TokenBound(PER_CONVERSATION + counter.tokens, counter.is_bound)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(name: object) -> str:
    """A field's name however it is spelt: ``inlineData`` and ``inline_data`` are one."""
    return str(name).replace("_", "").lower()


def bare_name(model: str) -> str:
    """A model's name without a gateway's prefix or the marks of a fine-tune, in lower case.

    >>> bare_name("openai/gpt-4o-mini"), bare_name("ft:gpt-4o-mini:org::id")
    ('gpt-4o-mini', 'gpt-4o-mini')
    """
    name = model.lower().rpartition("/")[2]
    return name.split(":")[1] if name.startswith("ft:") else name


class _Traits(NamedTuple):
    normalises: bool
    acts: bool
    image: tuple[int, int] | None


@lru_cache(1024)
def _traits(model: str) -> _Traits:
    """What a model's name tells about how it counts."""
    lower, name = model.lower(), bare_name(model)
    known = max((start for start in _IMAGES if name.startswith(start)), key=len, default="")
    return _Traits(
        any(word in lower for word in _NORMALISING),
        any(word in lower for word in _ACTING),
        _IMAGES.get(known),
    )


class _Counter:
    """Adds up bounds."""

    __slots__ = ("_traits", "is_bound", "tokens")

    def __init__(self, traits: _Traits) -> None:
        self.tokens, self.is_bound = 0, not traits.acts
        self._traits = traits

    def text(self, text: str) -> None:
        if text.isascii():
            self.tokens += len(text)
            return
        size = len(text.encode("utf-8", "surrogatepass"))
        if self._traits.normalises:
            normal = unicodedata.normalize("NFKC", text)
            size = max(size, len(normal.encode("utf-8", "surrogatepass")))
        self.tokens += size

    def json(self, value: object) -> None:
        """Text, or anything else as its JSON."""
        if isinstance(value, str):
            self.text(value)
        elif value is not None and not isinstance(value, bool | int | float):
            self.text(json.dumps(value, ensure_ascii=False, default=str))

    def plain(self, value: object) -> None:
        """Text, token ids, or a list of either."""
        if not isinstance(value, list):
            self.json(value)
            return
        for item in value:
            if isinstance(item, int):
                self.tokens += 1
            elif isinstance(item, Mapping):
                self.part(item)
            else:
                self.plain(item)
                self.tokens += PER_MESSAGE

    def conversation(self, turns: object) -> None:
        if not isinstance(turns, list):
            self.json(turns)
            return
        for turn in turns:
            self.tokens += PER_MESSAGE
            if isinstance(turn, Mapping):
                self._turn(turn)
            else:
                self.json(turn)

    def _turn(self, turn: Mapping[str, Any]) -> None:
        for name, value in turn.items():
            if type(value) is str:
                self.text(value)
                if name == "type" and value in _STORED_ITEMS:
                    self.is_bound = False
            elif name in ("content", "output"):
                self._parts(value)
            else:
                self.json(value)
                if name == "audio" and value is not None:  # an earlier answer, kept by the provider
                    self.is_bound = False

    def _parts(self, parts: object) -> None:
        for part in parts if isinstance(parts, list) else [parts]:
            if isinstance(part, Mapping):
                self.part(part)
            else:
                self.json(part)

    def part(self, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        if kind in _TEXT_PARTS:
            self.json(part.get("text", part.get("refusal")))
        elif kind in _IMAGE_PARTS:
            self._image(part)
        else:
            self.json(part)
            self.is_bound = False

    def _image(self, part: Mapping[str, Any]) -> None:
        source = part.get("image_url")
        detail = part.get("detail") or (
            source.get("detail") if isinstance(source, Mapping) else None
        )
        if self._traits.image is None:
            self.tokens += OTHER_IMAGE
            self.is_bound = False
        else:
            low, high = self._traits.image
            self.tokens += low if detail == "low" else high

    def tools(self, tools: object) -> None:
        listed = tools if isinstance(tools, list) else [tools]
        if listed:
            self.tokens += PER_TOOLS
        for tool in listed:
            self.tokens += PER_TOOL
            self.json(tool)
            kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
            if kind not in _LOCAL_TOOLS:
                self.is_bound = False  # the provider runs it, in turns of its own

    # Google's bodies

    def google(self, body: Mapping[str, Any]) -> None:
        """A body of the Gemini API, or one of the requests in it."""
        for spelt, value in body.items():
            name = _plain(spelt)
            if name == "servicetier" and "priority" in str(value).lower():
                self.is_bound = False  # dearer, by how much the catalogue does not tell
            if name in _GOOGLE_NOT_SENT or value is None:
                continue
            if name in _TURNS:
                self._google_turns(value)
            elif name == "requests":
                for each in _listed(value):
                    self.google(each if isinstance(each, Mapping) else {"content": each})
            elif name == "tools":
                self._google_tools(value)
            else:
                self.json(value)
                if name in _GOOGLE_UNBOUNDED:
                    self.is_bound = False

    def _google_turns(self, turns: object) -> None:
        """Turns of parts; also one turn, one part, or a mere text in their place."""
        for turn in _listed(turns):
            self.tokens += PER_MESSAGE
            parts = turn
            if isinstance(turn, Mapping) and "parts" in turn:
                self.json({name: value for name, value in turn.items() if name != "parts"})
                parts = turn["parts"]
            for part in _listed(parts):
                self._google_part(part)

    def _google_part(self, part: object) -> None:
        if not isinstance(part, Mapping):
            self.json(part)
            return
        for spelt, value in part.items():
            name = _plain(spelt)
            if name in _MEDIA:
                self._google_media(value)
                continue
            self.json(value)
            if name not in _LOCAL_PARTS or (isinstance(value, Mapping) and "parts" in value):
                self.is_bound = False  # also an answer of a function with pictures in it

    def _google_media(self, media: object) -> None:
        self.is_bound = False
        fields = media if isinstance(media, Mapping) else {}
        told = {_plain(name): value for name, value in fields.items()}
        kind, data = str(told.get("mimetype", "")), told.get("data")
        size = len(data) if isinstance(data, str | bytes) else 0
        if kind.startswith("text/"):
            self.tokens += size
        elif kind.startswith("image/"):
            self.tokens += OTHER_IMAGE
        else:
            self.tokens += max(OTHER_IMAGE, size // MEDIA_BYTES_PER_TOKEN)

    def _google_tools(self, tools: object) -> None:
        if _listed(tools):
            self.tokens += PER_TOOLS
        for tool in _listed(tools):
            self.json(tool)
            for name, value in tool.items() if isinstance(tool, Mapping) else ():
                if _plain(name) == "functiondeclarations":
                    self.tokens += PER_TOOL * len(_listed(value))
                elif value is not None:
                    self.is_bound = False  # the provider runs it, in turns of its own
