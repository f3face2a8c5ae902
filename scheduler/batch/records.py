"""The records of a file, one after another, in bytes: of lines, or of values that span lines.

Memory does not grow with the file: a record is kept up to the most that is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

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
        self._begin(0)
        self._depth = -1  # no value has begun

    def _begin(self, number: int) -> None:
        self._number, self._depth, self._size = number, 0, 0
        self._is_text = self._is_escaped = self._is_scalar = False
        self._pieces: list[bytes] = []

    def read(self, file: BinaryIO) -> Iterator[Record]:
        """All of them."""
        if self._is_wrapped:
            self._skip_wrapper(file)
        while chunk := _some(file):
            position = 0
            while position < len(chunk):
                if self._depth < 0:
                    position = self._between(chunk, position)
                    continue
                end, is_whole = self._end(chunk, position)
                self._keep(chunk[position:end])
                position = end
                if is_whole:
                    yield self._finish()
        if self._depth >= 0:
            yield self._finish() if self._is_scalar else self._unfinished()

    def _skip_wrapper(self, file: BinaryIO) -> None:
        while (byte := file.read(1)) and byte != b"[":
            self._line += byte == b"\n"
        self._is_array = True

    def _between(self, chunk: bytes, position: int) -> int:
        """Go on to where a value begins; gives the position there, or the end."""
        found = _BEGINS.search(chunk, position)
        end = len(chunk) if found is None else found.start()
        self._line += chunk.count(b"\n", position, end)
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
            return end + 1
        self._begin(self._line)
        self._is_scalar = byte not in b"{["
        return end

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
        return Record(self._number, f"item-{self._count}", data, problem)

    def _unfinished(self) -> Record:
        record = self._finish()
        problem = (
            "begins here and has no end: a bracket or a quote is missing, so that nothing behind "
            "it could be read"
        )
        return Record(record.number, record.place, record.data[:KEPT_BYTES], problem)
