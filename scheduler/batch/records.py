"""The records of a file, one after another, in bytes: of lines, or of values that span lines.

Memory does not grow with the file: a record is kept up to the most that is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from scheduler.batch.torn import Beginnings, torn_at

MAX_LINE_BYTES = 16 * 1024 * 1024  # unless told otherwise
KEPT_BYTES = 4096  # of a record that is too long, so that its id may be read
CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        number: The line where it begins.
        place: What it is called if it has no id of its own.
        data: What it is; of one with a problem only its beginning.
        problem: Why it cannot be read; empty: it can.
    """

    number: int
    place: str
    data: bytes
    problem: str = ""


def lines(file: BinaryIO, most: int) -> Iterator[Record]:
    """A record a line; blank lines count, but are skipped."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) <= most or line.endswith(b"\n"):
            if line.strip():
                yield Record(number, f"line-{number}", line)
            continue
        size, kept = len(line), line[:KEPT_BYTES]
        del line
        while rest := file.readline(CHUNK_BYTES):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        problem = f"{size:,} bytes; the longest line allowed has {most:,} (--max-line-bytes)"
        yield Record(number, f"line-{number}", kept, problem)


_BEGINS = re.compile(rb"[^\s,\x1e]")
_OUTSIDE = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb'[",\]}\n]')
_WITHIN_TEXT = re.compile(rb'["\\]')


def values(file: BinaryIO, most: int, is_wrapped: bool = False) -> Iterator[Record]:
    """JSON values, one after another or in an array, however they are laid out.

    With `is_wrapped` the array is the only member of an object around it.
    """
    return _Values(most, is_wrapped).read(file)


def _some(file: BinaryIO) -> bytes:
    """What is there, without waiting for more."""
    chunk: bytes = file.read1(CHUNK_BYTES)  # type: ignore[attr-defined]
    return chunk


class _Values:
    """Finds where values begin and end, by their brackets alone: what is in them is not judged."""

    def __init__(self, most: int, is_wrapped: bool) -> None:
        self._most, self._is_wrapped = most, is_wrapped
        self._line, self._count = 1, 0
        self._is_array = False
        self._is_over = False  # the array that was wrapped has ended
        self._beginnings = Beginnings()
        self._margin: bytes | None = b""  # what stands on this line, while it is nothing of a value
        self._begin(0)
        self._depth = -1  # no value has begun

    def _begin(self, number: int) -> None:
        self._number, self._depth, self._size = number, 0, 0
        self._is_text = self._is_escaped = self._is_scalar = False
        self._pieces: list[bytes] = []
        self._may_be_torn = False

    def read(self, file: BinaryIO) -> Iterator[Record]:
        """All of them."""
        if self._is_wrapped:
            self._skip_wrapper(file)
        while chunk := _some(file):
            yield from self._feed(chunk)
        if self._depth >= 0:
            yield self._finish() if self._is_scalar else self._unfinished()

    def _feed(self, chunk: bytes) -> Iterator[Record]:
        position = 0
        while position < len(chunk):
            if self._depth < 0:
                position = self._between(chunk, position)
                continue
            end, is_whole = self._end(chunk, position)
            self._keep(chunk[position:end])
            position = end
            if self._may_be_torn and (torn := self._torn(is_whole)) is not None:
                rest = b"".join(self._pieces)[torn[0] :]
                yield self._broken(*torn)
                chunk, position = rest + chunk[position:], 0
            elif is_whole:
                yield self._finish()

    def _torn(self, is_whole: bool) -> tuple[int, int] | None:
        """Where another value begins in this one, which has no end; see `torn_at`."""
        if self._size > self._most or self._is_scalar:
            return None
        data = b"".join(self._pieces)
        self._beginnings.learn(data)
        if next(self._beginnings.within(data), None) is None or (is_whole and is_json(data)):
            return None
        return torn_at(data, self._beginnings, b",]" if self._is_array else b",{")

    def _skip_wrapper(self, file: BinaryIO) -> None:
        while (byte := file.read(1)) and byte != b"[":
            self._line += byte == b"\n"
        self._is_array, self._margin = True, None

    def _between(self, chunk: bytes, position: int) -> int:
        """Go on to where a value begins; gives the position there, or the end."""
        found = _BEGINS.search(chunk, position)
        end = len(chunk) if found is None else found.start()
        self._line += chunk.count(b"\n", position, end)
        self._pass(chunk[position:end])
        if found is None:
            return end
        byte = chunk[end : end + 1]
        if byte == b"]" and self._is_array:
            self._is_array, self._is_over = False, self._is_wrapped
            return end + 1
        if byte == b"}" and self._is_over:
            return end + 1
        if byte == b"[" and not self._is_array:
            self._is_array = True
            self._pass(byte)
            return end + 1
        if self._margin is not None:
            self._beginnings.at(len(self._margin))
        self._margin = None
        self._begin(self._line)
        self._is_scalar = byte not in b"{["
        return end

    def _pass(self, between: bytes) -> None:
        """Take note of where on its line the next value begins."""
        _, newline, rest = between.rpartition(b"\n")
        if newline:
            self._margin = rest
        elif self._margin is not None:
            self._margin += between

    def _end(self, chunk: bytes, position: int) -> tuple[int, bool]:
        """Where the value ends in this chunk, and whether it does."""
        start = position
        while position < len(chunk):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            pattern = _WITHIN_TEXT if self._is_text else _OUTSIDE
            if self._is_scalar and not self._is_text:
                pattern = _SCALAR
            found = pattern.search(chunk, position)
            if found is None:
                break
            byte, position = found[0], found.end()
            if self._is_text:
                self._is_escaped = byte == b"\\"
                self._is_text = self._is_escaped
            elif byte == b'"':
                self._is_text = True
            elif self._is_scalar:
                return max(found.start(), start + 1), True
            else:
                self._depth += 1 if byte in b"{[" else -1
                if self._depth <= 0:
                    return position, True
        return len(chunk), False

    def _keep(self, piece: bytes) -> None:
        self._line += piece.count(b"\n")
        # A line that begins with a bracket may have begun in the piece before.
        self._may_be_torn = self._may_be_torn or b"\n" in piece
        before, self._size = self._size, self._size + len(piece)
        if self._size <= self._most:
            self._pieces.append(piece)
        elif before <= self._most:  # too long from here on: its beginning is enough
            self._pieces = [b"".join((*self._pieces, piece))[:KEPT_BYTES]]

    def _finish(self) -> Record:
        self._count += 1
        self._depth = -1
        problem = ""
        if self._size > self._most:
            problem = (
                f"{self._size:,} bytes; the longest one allowed has {self._most:,} "
                "(--max-line-bytes)"
            )
        elif self._is_over:
            problem = "stands behind the array, which is all that is read of this file"
        data, self._pieces = b"".join(self._pieces), []
        self._beginnings.learn(data)
        return Record(self._number, f"item-{self._count}", data, problem)

    def _broken(self, at: int, lost: int) -> Record:
        """One that has no end, where others are seen behind it."""
        data, self._size = b"".join(self._pieces), 0
        record = self._finish()
        self._count += lost
        self._line = self._number + data.count(b"\n", 0, at)
        self._margin = None  # `Beginnings` knows
        given_up = f" {lost:,} behind it could not be told from it." if lost else ""
        problem = (
            "begins here and has no end: a bracket or a quote is missing."
            f"{given_up} What is read begins again on line {self._line:,}"
        )
        return Record(record.number, record.place, data[: min(at, KEPT_BYTES)], problem)

    def _unfinished(self) -> Record:
        record = self._finish()
        problem = (
            "begins here and has no end: a bracket or a quote is missing, so that nothing behind "
            "it could be read"
        )
        return Record(record.number, record.place, record.data[:KEPT_BYTES], problem)


def is_json(data: bytes) -> bool:
    """Whether it is a value as it stands."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
