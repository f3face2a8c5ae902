"""A counter of Google's bodies, whose API takes names in camel case and in snake case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.prices.counting import (
    OTHER_IMAGE,
    PER_MESSAGE,
    PER_TOOL,
    PER_TOOLS,
    Counter,
    listed,
)
from scheduler.prices.media import MEDIA_BYTES_PER_TOKEN

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


def _plain(name: object) -> str:
    """A field's name however it is spelt: ``inlineData`` and ``inline_data`` are one."""
    return str(name).replace("_", "").lower()


class GoogleCounter(Counter):
    """Adds up bounds of a body of the Gemini API."""

    __slots__ = ()

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
                for each in listed(value):
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
        for turn in listed(turns):
            self.tokens += PER_MESSAGE
            parts = turn
            if isinstance(turn, Mapping) and "parts" in turn:
                self.json({name: value for name, value in turn.items() if name != "parts"})
                parts = turn["parts"]
            for part in listed(parts):
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
        for each in listed(answer["parts"]):
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
            self.add_media(size)
        elif kind.startswith("image/"):
            self.add_media(OTHER_IMAGE)
        else:
            count = max(OTHER_IMAGE, size // MEDIA_BYTES_PER_TOKEN)
            self.add_media(count)
            if kind.startswith("audio/"):
                self._asked = self._asked._replace(audio=self._asked.audio + count)

    def _google_tools(self, tools: object) -> None:
        if listed(tools):
            self.tokens += PER_TOOLS
        for tool in listed(tools):
            self.json(tool)
            for name, value in tool.items() if isinstance(tool, Mapping) else ():
                if _plain(name) == "functiondeclarations":
                    self.tokens += PER_TOOL * len(listed(value))
                elif value is not None and _plain(name) != "codeexecution":
                    self.hosted(_plain(name))
                elif value is not None:  # billed by its tokens alone
                    self.unbind("the provider runs code itself, in turns of its own")
