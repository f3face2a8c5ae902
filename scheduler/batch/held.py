"""What files of results hold already: an answer is delivered when it is there."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any

from scheduler.batch.results import line_id

_BY_POSITION = re.compile(r"line-\d+")  # names that nobody gave: they say where, not what


class Marks:
    """A set of hashes in 16 to 32 bytes each, since files have millions of lines."""

    def __init__(self) -> None:
        self._slots, self._count = array("q", bytes(8 * 64)), 0

    def add(self, *parts: object) -> bool:
        """Put the hash of these in; whether it is new."""
        return self._put(hash(parts) or 1)

    def _put(self, mark: int) -> bool:
        slots = self._slots
        last = len(slots) - 1
        place = mark & last
        while found := slots[place]:
            if found == mark:
                return False
            place = (place + 1) & last
        slots[place] = mark
        self._count += 1
        if self._count * 2 > last:
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots, self._count = array("q", bytes(16 * len(old))), 0
        for mark in old:
            if mark:
                self._put(mark)

    def has(self, *parts: object) -> bool:
        """Whether it is in."""
        mark, slots = hash(parts) or 1, self._slots
        last = len(slots) - 1
        place = mark & last
        while found := slots[place]:
            if found == mark:
                return True
            place = (place + 1) & last
        return False

    def __len__(self) -> int:
        return self._count


class Held:
    """The requests that have a line in a file.

    A line says which request it answers by its ``custom_id`` and the fingerprint of what was asked,
    so that it is known in whatever store, and a changed prompt under the same id is another
    request. A line without the fingerprint counts by the store's number and ``custom_id``.
    """

    def __init__(self) -> None:
        self._marks = Marks()

    def __len__(self) -> int:
        return len(self._marks)

    def read(self, line: Mapping[str, Any]) -> None:
        """Take in a line of the file."""
        name, key, digest = names_of(line)
        if digest:
            self._marks.add(key, digest)
        elif isinstance(name, str):
            self._marks.add(name, key, "")
            if isinstance(key, str) and not _BY_POSITION.fullmatch(key):
                self._marks.add(key)

    def add(self, request_id: int, key: str | None, digest: str) -> bool:
        """A line is about to be written; whether there was none."""
        if self.has(request_id, key, digest):
            return False
        self._marks.add(key, digest) if digest else self._marks.add(line_id(request_id), key, "")
        return True

    def has(self, request_id: int, key: str | None, digest: str) -> bool:
        """Whether a request of the store has a line."""
        if digest and self._marks.has(key, digest):
            return True
        return self._marks.has(line_id(request_id), key, "")

    def covers(self, line: Mapping[str, Any]) -> bool:
        """Whether the request of another file's line has a line here."""
        name, key, digest = names_of(line)
        return (bool(digest) and self._marks.has(key, digest)) or self._marks.has(name, key, "")

    def answers(self, key: str, digest: str) -> bool:
        """Whether a line answers a request that no store need know."""
        return self._marks.has(key, digest) or self._marks.has(key)


def names_of(line: Mapping[str, Any]) -> tuple[object, object, str]:
    """By what a line names its request: the store's number, ``custom_id``, fingerprint or ``""``."""
    extras = line.get("scheduler")
    digest = extras.get("digest") if isinstance(extras, Mapping) else None
    return line.get("id"), line.get("custom_id"), digest if isinstance(digest, str) else ""


def is_answer(line: Mapping[str, Any]) -> bool:
    """Whether a line of a results file is the answer of a request."""
    response = line.get("response")
    return line.get("error") is None and isinstance(response, Mapping)
