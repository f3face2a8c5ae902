"""Where does a file of values go on behind one that has no end? Pure.

A bracket or a quote that is missing makes a value swallow those behind it. Reading goes on where
another plainly begins: on a line of its own, as far from the margin as values of this file
begin, with the name first that they have first, whole, and followed by what follows a value. What
might as well be a part of the one before is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MOST_NAMES = 20  # that values of one file begin with
MOST_TRIED = 50  # beginnings in one piece
NEAR_CHARS = 16
_LINE = re.compile(rb"\n([ \t,\[]*)\{")
_FIRST_NAME = re.compile(rb'\{\s*"((?:[^"\\\n]|\\.){0,100})"\s*:')
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|["{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)
_AFTER_TEXT = re.compile(rb"\s*(?:[,:}\]]|$)")
_OPENS = {b"}": ord("{"), b"]": ord("[")}


class Beginnings:
    """How values of a file begin, as far as it was read."""

    def __init__(self) -> None:
        self._column: int | None = None
        self._names: set[bytes] = set()

    def at(self, column: int) -> None:
        """One begins on a line of its own, so far from the margin."""
        self._column = column

    def learn(self, value: bytes) -> None:
        """One begins so."""
        name = _FIRST_NAME.match(value)
        if name is not None and len(self._names) < MOST_NAMES:
            self._names.add(name[1])

    def within(self, data: bytes) -> Iterator[int]:
        """Where in the data others might begin."""
        for line in _LINE.finditer(data):
            if len(line[1]) == self._column:
                name = _FIRST_NAME.match(data, line.end() - 1)
                if name is not None and name[1] in self._names:
                    yield line.end() - 1


def torn_at(data: bytes, beginnings: Beginnings, follow: bytes) -> tuple[int, int] | None:
    """Where the next value begins in what was taken for one, and how many before it are given up.

    Args:
        data: What was read, from where a value began.
        beginnings: How values of this file begin.
        follow: What may stand behind a value.

    Returns:
        None: nowhere, as far as can be seen.
    """
    is_torn, lost = False, 0
    for tried, at in enumerate(beginnings.within(data)):
        if tried >= MOST_TRIED:
            return None
        is_torn = is_torn or _has_no_room(data[:at])
        if is_torn and _stands_alone(data[at:], follow):
            return at, lost
        lost += is_torn
    return None


def _has_no_room(data: bytes) -> bool:
    """Whether a value that begins so can hold no object next, by its brackets and quotes alone.

    Whatever else is wrong with it, it may still have an end.
    """
    open_ones, last = bytearray(), b""
    for found in _TOKEN.finditer(data):
        last = found[0]
        if last in (b"{", b"["):
            open_ones += last
        elif last in (b"}", b"]"):
            if not open_ones or open_ones.pop() != _OPENS[last]:
                return True
        elif last == b'"':
            return True  # what begins there would stand within a text, and end it at once
        elif last.startswith(b'"') and b"\n" in last and not _AFTER_TEXT.match(data, found.end()):
            return True
    return open_ones.endswith(b"{") and last != b":"


def _stands_alone(data: bytes, follow: bytes) -> bool:
    """Whether what begins here is whole, or is told by itself, since it never will be."""
    text = data.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as exc:
        # Near the end it may only be cut off.
        return exc.pos < len(text) - NEAR_CHARS and not exc.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    behind = text[end:].lstrip()[:1].encode()
    return bool(behind) and behind in follow
