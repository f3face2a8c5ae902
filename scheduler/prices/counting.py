"""Counters of what a body has in it: text by its bytes, media by their rules.

`tokens` says what these bounds rest on, `media` how sound, pictures and files are estimated.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from scheduler.prices.billing import ONLY_TEXT, Asked
from scheduler.prices.lenient import count_of
from scheduler.prices.media import (
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
_LOCAL_TOOLS = ("function", "custom")
_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal")
_IMAGE_PARTS = ("image_url", "input_image", "image")
_STORED_ITEMS = ("item_reference", "compaction")

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


def listed(value: object) -> list[Any]:
    """A list as it is, anything else as a list of it."""
    return value if isinstance(value, list) else [value]


def bare_name(model: str) -> str:
    """A model's name without a gateway's prefix or the marks of a fine-tune, in lower case.

    >>> bare_name("openai/gpt-4o-mini"), bare_name("ft:gpt-4o-mini:org::id")
    ('gpt-4o-mini', 'gpt-4o-mini')
    """
    name = model.lower().rpartition("/")[2]
    return name.split(":")[1] if name.startswith("ft:") else name


class Traits(NamedTuple):
    """What a model's name tells about how it counts."""

    normalises: bool
    acts: bool
    image: _Picture | None
    sound_tokens: int  # a second
    makes_pictures: bool
    is_online: bool  # a gateway searches for it before each call


@lru_cache(1024)
def traits_of(model: str) -> Traits:
    """What a model's name tells about how it counts."""
    lower, name = model.lower(), bare_name(model)
    known = max((start for start in _IMAGES if name.startswith(start)), key=len, default="")
    return Traits(
        any(word in lower for word in _NORMALISING),
        any(word in lower for word in _ACTING),
        _IMAGES.get(known),
        OPENAI_TOKENS_A_SECOND if name.startswith("gpt-") else TOKENS_A_SECOND,
        "image" in name,
        ":online" in lower,
    )


class Counter:
    """Adds up bounds."""

    __slots__ = ("_asked", "_media", "_traits", "_why", "tokens")

    def __init__(self, traits: Traits) -> None:
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
        words = {str(each).lower() for each in listed(modalities)}
        asked = self._asked
        self._asked = asked._replace(
            audio_out=asked.audio_out or "audio" in words,
            image_out=asked.image_out or "image" in words,
            video_out=asked.video_out or "video" in words,
        )

    def add_media(self, tokens: int) -> None:
        """Tokens that are estimated from pictures, sound or files."""
        self.tokens += tokens
        self._media += tokens

    def text(self, text: str) -> None:
        """Text, by its bytes."""
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
        """The turns of a chat."""
        if not isinstance(turns, list):
            self.json(turns)
            return
        for turn in turns:
            self.tokens += PER_MESSAGE
            if turn.__class__ is dict or isinstance(turn, Mapping):
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
        """One part of a turn, by its kind."""
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
            self.add_media(max(OTHER_IMAGE, len(media.data) // MEDIA_BYTES_PER_TOKEN))
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
            self.add_media(_usual_picture(size))
            self.unbind("how many tokens this model takes for an image is an estimate")
        elif detail == "low":
            self.add_media(rule.low)
        else:
            self.add_media(rule.most if size is None else _picture_tokens(rule, size))

    def _sound(self, part: Mapping[str, Any]) -> None:
        media = find_media(part)
        self.json(without(part, media))
        seconds = seconds_of(media) if media.is_here else 0
        rule = max(LEAST_SOUND, seconds * self._traits.sound_tokens)
        count = min(rule, len(media.data)) if media.is_here else OTHER_IMAGE
        self.add_media(count)
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
            self.add_media(min(found, len(media.data)) if media.is_here else found)
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
                self.hosted(str(kind), said)

    def hosted(self, kind: str, most: object = None) -> None:
        """A tool that the provider runs."""
        self.unbind(f"the provider runs {kind[:40]} itself, and bills what it adds")
        self.add_media(READ_A_TOOL)
        said = count_of(most) or 0
        calls = said if 0 < said <= _MOST_TOOL_CALLS else USUAL_TOOL_CALLS
        for words, name in (
            (_SEARCHES, "web_searches"), (_LOOKS, "file_searches"), (_DRAWS, "made_images"),
        ):  # fmt: skip
            if kind.startswith(words):
                self.asks(**{name: 1 if name == "made_images" else calls})
        if kind.startswith(_RUNS):
            self.asks(code_sessions=1)


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
