"""The standard streams of a command, as shells, daemons and full disks leave them.

What is told on stderr is no part of the work: where it cannot be written it is left out, and the
command goes on. What goes to stdout is data: an error there says so, and ends the command.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any

_STDOUT = "<stdout>"  # the file's name in the errors of writing to it
_WATCH_S = 1.0


def take_streams() -> None:
    """Put streams of ours in place of Python's own; those of others are left alone.

    A stream that was closed (``>&-``) gets its number back first, lest a file of ours have it.
    """
    if sys.stdin is None and sys.__stdin__ is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _taken(sys.stdout, _Data)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _taken(sys.stderr, _Narration)


def is_of_stdout(error: BaseException) -> bool:
    """Whether it is stdout that could not be written."""
    return isinstance(error, OSError) and error.filename == _STDOUT


def give_up_stdout() -> None:
    """Let nothing more fail there: what is left in it goes nowhere."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Data(io.RawIOBase):
    """Writes all of it, also where the reader is slow to take it; errors say where."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, data: Any) -> int:
        try:
            while (count := self._raw.write(data)) is None:  # made non-blocking by somebody else
                select.select([], [self.fileno()], [], _WATCH_S)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, _STDOUT) from None
        return int(count)


class _Narration(_Data):
    """Writes what can be written, and never fails."""

    def write(self, data: Any) -> int:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view and (count := self._raw.write(view)):
                view = view[count:]
        return len(data)


def _taken(stream: Any, kind: type[_Data]) -> Any:
    if stream is None:
        # Open for reading only, so that writing fails as it does where the stream is closed.
        closed = io.FileIO(os.open(os.devnull, os.O_RDONLY), "w")
        return io.TextIOWrapper(io.BufferedWriter(kind(closed)), "utf-8", line_buffering=True)
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = kind(getattr(stream.buffer, "raw", stream.buffer))
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream.line_buffering
    )
