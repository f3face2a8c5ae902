"""An input: opened once, recognised by its first bytes, and read without losing them.

file, pipe or stdin ─▶ [decompressed] ─▶ [as UTF-8] ─▶ records
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import select
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from scheduler.batch.recognise import (
    BOMS,
    HEAD_BYTES,
    Layout,
    encoding_of,
    is_settled,
    layout_of,
    refuse_binary,
)
from scheduler.batch.records import CHUNK_BYTES, Record, lines, values
from scheduler.errors import ConfigError

STDIN = "<stdin>"
WATCH_S = 0.1  # how often a reader that waits looks whether the run is stopping
READING_FAILS = (OSError, EOFError, zlib.error, lzma.LZMAError)

_OPENERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_MOST_WRAPPINGS = 3


class Source:
    """An input that has been opened and recognised. Use `open_source`.

    Attributes:
        name: What errors call it.
        can_rewind: Whether it can be read a second time: it is a regular file.
        is_stopping: Asked while nothing comes from a pipe; True ends it there.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.is_stopping: Callable[[], bool] = lambda: False
        self._file = file
        self._start = _position(file)
        self.can_rewind = self._start is not None
        self._text, self._layout = self._recognise()

    def records(self, max_bytes: int) -> Iterator[Record]:
        """What is in it, to its end; what cannot be read is a record with a problem."""
        number = 0
        try:
            for record in self._read(max_bytes):
                if self.is_stopping() and not self.can_rewind and _is_torn(record):
                    return  # not the file's end, but ours
                number = record.number
                yield record
        except READING_FAILS as exc:
            problem = f"cannot be read further: {_words(exc)}. What stands before it is run"
            yield Record(number + 1, f"line-{number + 1}", b"", problem)

    def _read(self, max_bytes: int) -> Iterator[Record]:
        if self._layout is Layout.LINES:
            return lines(self._text, max_bytes)
        return values(self._text, max_bytes, self._layout is Layout.WRAPPED)

    def rewind(self) -> None:
        """Go back to its beginning; only if `can_rewind`."""
        assert self._start is not None
        self._file.seek(self._start)
        self._text, self._layout = self._recognise()

    def is_file(self, path: Path) -> bool:
        """Whether a path leads to the very file that is read, under whatever name."""
        try:
            return path.exists() and os.path.samestat(path.stat(), os.fstat(self._file.fileno()))
        except (OSError, ValueError, AttributeError):
            return False  # no file of the system's

    def close(self) -> None:
        """Let go of it. Standard input stays open."""
        if self.name != STDIN:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recognise(self) -> tuple[BinaryIO, Layout]:
        try:
            return _recognise(self._file, self.name)
        except READING_FAILS as exc:
            raise ConfigError("input", f"cannot read {self.name}: {_words(exc)}") from None


def open_source(path: Path | None) -> Source:
    """Open an input once, and find out what it is. None: standard input.

    It waits for the first bytes of a pipe.

    Raises:
        ConfigError: Missing, a folder, empty, or nothing that is read; says what it is.
    """
    if path is None:
        return _make(_stdin, STDIN)
    try:
        return _make(lambda: path.open("rb", buffering=0), str(path))
    except OSError as exc:
        raise ConfigError("input", f"cannot read {path}: {exc.strerror}") from None


def _make(open_file: Callable[[], Any], name: str) -> Source:
    file = open_file()
    waiting = None
    if _position(file) is None and sys.platform != "win32" and hasattr(file, "fileno"):
        with contextlib.suppress(OSError, ValueError):  # no file of the system's
            file = waiting = _Pipe(file)
    try:
        source = Source(io.BufferedReader(file, CHUNK_BYTES) if waiting else file, name)
    except BaseException:
        if name != STDIN:
            file.close()
        raise
    if waiting is not None:
        waiting.is_stopping = lambda: source.is_stopping()
    return source


def _stdin() -> BinaryIO:
    return sys.stdin.buffer


class _Pipe(io.RawIOBase):
    """A pipe that ends when nothing comes and the run is stopping.

    Without it an interrupt would wait for whoever writes to the pipe.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._number = file, file.fileno()
        self.is_stopping: Callable[[], bool] = lambda: False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._number)

    def readinto(self, buffer: Any) -> int:
        while not select.select([self._number], [], [], WATCH_S)[0]:
            if self.is_stopping():
                return 0
        return os.readv(self._number, [buffer])

    def close(self) -> None:
        if not self.closed and self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()


class _Again(io.RawIOBase):
    """Bytes that were looked at, and then the rest of the file they are from."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count], self._head = self._head[:count], self._head[count:]
            return count
        some = _some(self._rest, len(buffer))
        buffer[: len(some)] = some
        return len(some)


class _AsUtf8(io.RawIOBase):
    """Text of another encoding, as UTF-8."""

    def __init__(self, file: Any, encoding: str) -> None:
        self._file, self._ready = file, b""
        # Half a surrogate pair becomes bytes that are no UTF-8: a bad line, not a changed one.
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            some = _some(self._file, len(buffer))
            if not some:
                return 0
            self._ready = self._decoder.decode(some).encode("utf-8", "surrogatepass")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _recognise(file: Any, name: str) -> tuple[BinaryIO, Layout]:
    """The file's text, from its first byte on, and how its records stand there."""
    for _ in range(_MOST_WRAPPINGS):
        head = _look(file, lambda seen: len(seen) >= 4)
        file = _buffered(_Again(head, file))
        opener = next((each for magic, each in _OPENERS if head.startswith(magic)), None)
        if opener is None:
            break
        file = opener(file)
    refuse_binary(head, name)
    encoding = encoding_of(head)
    file.read(len(BOMS[encoding]) if head.startswith(BOMS.get(encoding, b"\xff\xff\xff")) else 0)
    if encoding != "utf-8":
        file = _buffered(_AsUtf8(file, encoding))
    head = _look(file, is_settled)
    if not head.strip():
        raise ConfigError("input", f"{name} is empty; give it one JSON object a line")
    return _buffered(_Again(head, file)), layout_of(head, name)


def _look(file: Any, is_enough: Callable[[bytes], bool]) -> bytes:
    """Read from its beginning until it is enough, or all, or the most that is looked at."""
    head = b""
    while len(head) < HEAD_BYTES and not is_enough(head):
        some = _some(file, HEAD_BYTES)
        if not some:
            break
        head += some
    return head


def _some(file: Any, most: int) -> bytes:
    """What is there, without waiting for more."""
    some: bytes = file.read1(most) if hasattr(file, "read1") else file.read(most)
    return some or b""


def _buffered(raw: io.RawIOBase) -> Any:
    return io.BufferedReader(raw, CHUNK_BYTES)


def _position(file: Any) -> int | None:
    """Where a regular file stands; None: it is another kind, and can be read once."""
    try:
        number = file.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.lseek(number, 0, os.SEEK_CUR)
    except (OSError, ValueError, AttributeError):
        pass  # no file of the system's
    return None


def _is_torn(record: Record) -> bool:
    return bool(record.problem) or not record.data.endswith((b"\n", b"}"))


def _words(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "it is cut off in the middle of what was compressed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
