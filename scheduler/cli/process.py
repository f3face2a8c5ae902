"""What a run has of its process: standard input that can be given up, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

WATCH_S = 0.1  # how often a reader that waits looks whether the run is stopping


class _Stdin(io.RawIOBase):
    """Standard input that ends when nothing comes and the run is stopping.

    Without it an interrupt would wait for whoever writes to the pipe.
    """

    def __init__(self, number: int, stopping: asyncio.Event) -> None:
        self._number, self._stopping = number, stopping

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not select.select([self._number], [], [], WATCH_S)[0]:
            if self._stopping.is_set():
                return 0
        return os.readv(self._number, [buffer])


def open_stdin(stopping: asyncio.Event) -> BinaryIO:
    """Standard input, as a run reads it: it ends when the run is stopping and nothing comes."""
    if sys.platform == "win32":
        return sys.stdin.buffer  # its pipes cannot be selected
    try:
        return io.BufferedReader(_Stdin(sys.stdin.fileno(), stopping))
    except (OSError, ValueError):
        return sys.stdin.buffer  # no file of the system's


@contextlib.contextmanager
def signals_to(handler: Any) -> Iterator[None]:
    """Interrupts and SIGTERM go to the handler while the run lasts."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, handler, number)
    except (NotImplementedError, RuntimeError, ValueError):
        yield  # no signals here: another thread, or another system
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
