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
search or choose another model on their own. For these there is an estimate, `media`
has how.

>>> bound_input_tokens("/v1/embeddings", {"model": "m", "input": "grüezi"})
TokenBound(tokens=39, is_bound=True)
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from scheduler.billing import ONLY_TEXT, Asked
from scheduler.errors import ConfigError
from scheduler.media import (
    LEAST_SOUND,
    MEDIA_BYTES_PER_TOKEN,
    OPENAI_TOKENS_A_SECOND,
    TOKENS_A_PAGE,
    TOKENS_A_SECOND,
    document_tokens,
    find_media,
    patches,
    picture_size,
    seconds_of,
    tiles,
    without,
)
from scheduler.request import (
    CHAT,
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


class _Picture(NamedTuple):
    """How a model counts images: most tokens at low and at any detail, and by their size."""

    low: int
    most: int
    base: int = 0
    tile: int = 0
    patch_percent: int = 0  # tokens for a hundred patches of 32 pixels


# By the beginning of the model's name; the longest holds. From OpenAI's guide to images
# (November 2026): tiles, or patches of which there are 1,536 at most, times the model's factor.
_IMAGES = {
    "gpt-4-turbo": _Picture(LOW_DETAIL_IMAGE, TILED_IMAGE, 85, 170),
    "gpt-4o": _Picture(LOW_DETAIL_IMAGE, TILED_IMAGE, 85, 170),
    "chatgpt-4o": _Picture(LOW_DETAIL_IMAGE, TILED_IMAGE, 85, 170),
    "gpt-4o-mini": _Picture(2_833, 48_169, 2_833, 5_667),
    "gpt-4.1": _Picture(LOW_DETAIL_IMAGE, 1_536, 85, 170, 100),  # documented as both
    "gpt-4.1-mini": _Picture(2_489, 2_489, patch_percent=162),
    "gpt-4.1-nano": _Picture(3_779, 3_779, patch_percent=246),
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
_SOUND_PARTS = ("input_audio", "audio", "audio_url")
_FILE_PARTS = ("file", "input_file", "document")
_FILM_PARTS = ("video_url", "input_video", "video")

# Tools that the provider runs itself, by the beginning of their type or the name of their field.
_SEARCHES = ("web_search", "websearch", "googlesearch", "enterprisewebsearch", "googlemaps")
_LOOKS = ("file_search", "filesearch")
_RUNS = ("code_interpreter", "code_execution")
_DRAWS = ("image_generation",)
# How often one may run for one request, where the request does not say. A guess.
USUAL_TOOL_CALLS = 10
_MOST_TOOL_CALLS = 1_000
READ_A_TOOL = 8_000  # tokens of what it finds, which are read as input; a guess, too


class TokenBound(NamedTuple):
    """Most tokens something can be; a mere estimate if not `is_bound`."""

    tokens: int
    is_bound: bool = True


class Input(NamedTuple):
    """What goes in with a request, at most.

    Attributes:
        tokens: All of them.
        media: Those that are estimated from pictures, sound and files, part of the former.
        why_unbound: Why they are a mere estimate; empty: they are a bound.
        asked: What the request asks for beside text.
    """

    tokens: int
    media: int = 0
    why_unbound: str = ""
    asked: Asked = ONLY_TEXT


def bound_input_tokens(url: str, body: Mapping[str, Any]) -> TokenBound:
    """Most tokens the input of a request can be.

    Raises:
        ConfigError: The body has no form in JSON: nested too deep, or within itself.
    """
    found = count_input(url, body)
    return TokenBound(found.tokens, not found.why_unbound)


def count_input(url: str, body: Mapping[str, Any]) -> Input:
    """What goes in with a request, at most. Raises as `bound_input_tokens`."""
    try:
        return _count_input(url, body)
    except (RecursionError, ValueError, TypeError) as exc:
        raise ConfigError("request", f"has no form in JSON: {exc}; nothing was sent") from None


def _count_input(url: str, body: Mapping[str, Any]) -> Input:
    model = body.get("model")
    traits = _traits(model) if isinstance(model, str) else _traits("")
    counter = _Counter(traits._replace(normalises=True) if url in GEMINI else traits)
    if url in GEMINI:
        fixed = PER_REQUEST if url == EMBED_CONTENT else PER_CONVERSATION
        counter.google(body)
        return counter.sum(fixed)
    if url in (EMBEDDINGS, MODERATIONS, COMPLETIONS):
        counter.plain(body.get("prompt" if url == COMPLETIONS else "input"))
        counter.json(body.get("suffix"))
        return counter.sum(PER_REQUEST)
    if traits.acts and url == CHAT:
        counter.asks(web_searches=1)
    turns = "input" if url == RESPONSES else "messages"
    counter.conversation(body.get(turns))
    for name, value in body.items():
        if name == turns or name in _NOT_SENT or value is None:
            continue
        if name in ("tools", "functions"):
            counter.tools(value, body.get("max_tool_calls"))
            continue
        counter.json(value)
        if name in _UNBOUNDED:
            counter.unbind(f"{name} adds what the request does not show")
        if name == "web_search_options":
            counter.asks(web_searches=1)
        if name == "plugins" or name == "search_parameters":
            counter.asks(web_searches=USUAL_TOOL_CALLS)
        if name in ("modalities", "audio"):
            counter.makes(value if name == "modalities" else "audio")
    return counter.sum(PER_CONVERSATION)


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
    image: _Picture | None
    sound_tokens: int  # a second
    makes_pictures: bool


@lru_cache(1024)
def _traits(model: str) -> _Traits:
    """What a model's name tells about how it counts."""
    lower, name = model.lower(), bare_name(model)
    known = max((start for start in _IMAGES if name.startswith(start)), key=len, default="")
    return _Traits(
        any(word in lower for word in _NORMALISING),
        any(word in lower for word in _ACTING),
        _IMAGES.get(known),
        OPENAI_TOKENS_A_SECOND if name.startswith("gpt-") else TOKENS_A_SECOND,
        "image" in name,
    )


class _Counter:
    """Adds up bounds."""

    __slots__ = ("_asked", "_media", "_traits", "_why", "tokens")

    def __init__(self, traits: _Traits) -> None:
        self.tokens, self._media, self._why = 0, 0, ""
        self._traits, self._asked = traits, ONLY_TEXT
        if traits.acts:
            self.unbind("the model searches, or calls other models, by itself")
        if traits.makes_pictures:
            self._asked = self._asked._replace(image_out=True)

    def sum(self, fixed: int) -> Input:
        """What was counted, and the provider's own beside it."""
        return Input(fixed + self.tokens, self._media, self._why, self._asked)

    def unbind(self, why: str) -> None:
        """Say why it is no bound; the first reason is kept."""
        self._why = self._why or why

    def asks(self, **most: int) -> None:
        """What the provider may do itself, so often at most."""
        asked = self._asked
        more = {name: max(count, getattr(asked, name)) for name, count in most.items()}
        self._asked = asked._replace(**more)

    def makes(self, modalities: object) -> None:
        """What the answer may be besides text."""
        words = {str(each).lower() for each in _listed(modalities)}
        asked = self._asked
        self._asked = asked._replace(
            audio_out=asked.audio_out or "audio" in words,
            image_out=asked.image_out or "image" in words,
            video_out=asked.video_out or "video" in words,
        )

    def _add_media(self, tokens: int) -> None:
        self.tokens += tokens
        self._media += tokens

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
        if turn.get("type") == "image_generation_call":
            self.part(turn)  # a picture of an earlier answer
            return
        for name, value in turn.items():
            if type(value) is str:
                self.text(value)
                if name == "type" and value in _STORED_ITEMS:
                    self.unbind(f"{value} points to what the provider keeps")
            elif name in ("content", "output", "images"):
                self._parts(value)
            elif name == "audio" and isinstance(value, Mapping):  # of an earlier answer
                self._sound(value)
            else:
                self.json(value)

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
        elif kind in ("computer_screenshot", "image_generation_call"):
            self._image(part)
            self.unbind("a picture that the provider may keep in another size")
        elif kind in _SOUND_PARTS:
            self._sound(part)
        elif kind in _FILE_PARTS:
            self._file(part)
        elif kind in _FILM_PARTS:
            media = find_media(part)
            self.json(without(part, media))
            self._add_media(max(OTHER_IMAGE, len(media.data) // MEDIA_BYTES_PER_TOKEN))
            self.unbind("how many tokens a film has is an estimate")
        elif kind == "tool_result":
            self.json({name: value for name, value in part.items() if name != "content"})
            self._parts(part.get("content"))
            self.unbind("results of tools are wrapped in what the provider does not show")
        else:
            self.json(part)
            self.unbind(f"parts of type {str(kind)[:40]!r} have no known count")

    def _image(self, part: Mapping[str, Any]) -> None:
        source = part.get("image_url")
        detail = part.get("detail") or (
            source.get("detail") if isinstance(source, Mapping) else None
        )
        media = find_media(part)
        size = picture_size(media.data) if media.is_here else None
        rule = self._traits.image
        if rule is None:
            self._add_media(_usual_picture(size))
            self.unbind("how many tokens this model takes for an image is an estimate")
        elif detail == "low":
            self._add_media(rule.low)
        else:
            self._add_media(rule.most if size is None else _picture_tokens(rule, size))

    def _sound(self, part: Mapping[str, Any]) -> None:
        media = find_media(part)
        self.json(without(part, media))
        seconds = seconds_of(media) if media.is_here else 0
        rule = max(LEAST_SOUND, seconds * self._traits.sound_tokens)
        count = min(rule, len(media.data)) if media.is_here else OTHER_IMAGE
        self._add_media(count)
        asked = self._asked
        self._asked = asked._replace(
            audio=asked.audio + count, audio_seconds=asked.audio_seconds + seconds
        )
        self.unbind("how many tokens sound has is an estimate")

    def _file(self, part: Mapping[str, Any]) -> None:
        source = part.get("source")
        if isinstance(source, Mapping) and source.get("type") in ("text", "content"):
            self.json({name: value for name, value in part.items() if name != "source"})
            self._parts(source.get("data", source.get("content")))
        else:
            media = find_media(part)
            self.json(without(part, media))
            found = document_tokens(media) if media.is_here else TOKENS_A_PAGE
            self._add_media(min(found, len(media.data)) if media.is_here else found)
        self.unbind("how many tokens a document has is an estimate")

    def tools(self, tools: object, most: object = None) -> None:
        """Tools the model may call, its caller's and the provider's own, so often at most."""
        listed = tools if isinstance(tools, list) else [tools]
        if listed:
            self.tokens += PER_TOOLS
        for tool in listed:
            self.tokens += PER_TOOL
            self.json(tool)
            kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
            if kind not in _LOCAL_TOOLS:
                # The provider runs it, in turns of its own.
                said = tool.get("max_uses", most) if isinstance(tool, Mapping) else most
                self._hosted(str(kind), said)

    def _hosted(self, kind: str, most: object = None) -> None:
        """A tool that the provider runs."""
        self.unbind(f"the provider runs {kind[:40]} itself, and bills what it adds")
        self._add_media(READ_A_TOOL)
        calls = most if type(most) is int and 0 < most <= _MOST_TOOL_CALLS else USUAL_TOOL_CALLS
        for words, name in (
            (_SEARCHES, "web_searches"), (_LOOKS, "file_searches"), (_DRAWS, "made_images"),
        ):  # fmt: skip
            if kind.startswith(words):
                self.asks(**{name: 1 if name == "made_images" else calls})
        if kind.startswith(_RUNS):
            self.asks(code_sessions=1)

    # Google's bodies

    def google(self, body: Mapping[str, Any]) -> None:
        """A body of the Gemini API, or one of the requests in it."""
        for spelt, value in body.items():
            name = _plain(spelt)
            if name == "servicetier" and "priority" in str(value).lower():
                self.unbind("priority is dearer, by how much the catalogue does not tell")
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
                    self.unbind(f"{name} adds what the request does not show")
                if name == "generationconfig" and isinstance(value, Mapping):
                    told = {_plain(key): each for key, each in value.items()}
                    self.makes(told.get("responsemodalities"))

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
            if isinstance(value, Mapping) and "parts" in value:  # a function's answer in pictures
                self._google_pictured(value)
                continue
            self.json(value)
            if name not in _LOCAL_PARTS:
                self.unbind(f"parts of kind {name[:40]!r} have no known count")

    def _google_pictured(self, answer: Mapping[str, Any]) -> None:
        """An answer of a function with media in it: by these, or by its bytes if there are few."""
        before, media = self.tokens, self._media
        self.json(answer)
        most = self.tokens
        self.tokens = before
        self.json({key: each for key, each in answer.items() if key != "parts"})
        for each in _listed(answer["parts"]):
            self._google_part(each)
        if self.tokens > most:
            self.tokens, self._media = most, media
        self.unbind("what a function answers besides text is an estimate")

    def _google_media(self, media: object) -> None:
        self.unbind("how many tokens images, sound and files have is an estimate")
        fields = media if isinstance(media, Mapping) else {}
        told = {_plain(name): value for name, value in fields.items()}
        kind, data = str(told.get("mimetype", "")), told.get("data")
        size = len(data) if isinstance(data, str | bytes) else 0
        if kind.startswith("text/"):
            self._add_media(size)
        elif kind.startswith("image/"):
            self._add_media(OTHER_IMAGE)
        else:
            count = max(OTHER_IMAGE, size // MEDIA_BYTES_PER_TOKEN)
            self._add_media(count)
            if kind.startswith("audio/"):
                self._asked = self._asked._replace(audio=self._asked.audio + count)

    def _google_tools(self, tools: object) -> None:
        if _listed(tools):
            self.tokens += PER_TOOLS
        for tool in _listed(tools):
            self.json(tool)
            for name, value in tool.items() if isinstance(tool, Mapping) else ():
                if _plain(name) == "functiondeclarations":
                    self.tokens += PER_TOOL * len(_listed(value))
                elif value is not None and _plain(name) != "codeexecution":
                    self._hosted(_plain(name))
                elif value is not None:  # billed by its tokens alone
                    self.unbind("the provider runs code itself, in turns of its own")


def _picture_tokens(rule: _Picture, size: tuple[int, int]) -> int:
    """Tokens of an image whose size is known, by its model's rule."""
    cut = rule.base + rule.tile * tiles(*size) if rule.tile else 0
    patched = -(-min(1_536, patches(*size, 32)) * rule.patch_percent // 100)
    return min(rule.most, max(cut, patched))


def _usual_picture(size: tuple[int, int] | None) -> int:
    """Tokens of an image at a model whose rule is not known, from above.

    Claude takes a token for 28 by 28 pixels, OpenAI's smallest up to 2.5 for 32 by 32.
    """
    if size is None:
        return OTHER_IMAGE
    return min(OTHER_IMAGE, 100 + -(-patches(*size, 28) * 5 // 2))
