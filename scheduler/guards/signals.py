"""Signals that end a process, told to its loop: also on Windows, whose loops know none."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def signals_to(handler: Callable[[int], object]) -> Iterator[None]:
    """What asks a process to end goes to the handler, in the loop, while the block lasts.

    That is an interrupt, SIGTERM, and the end of its terminal, unless ``nohup`` has it ignored.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for number in _ENDING:
            if number == HANG_UP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            with contextlib.suppress(RuntimeError, ValueError):  # another thread: none come here
                try:
                    loop.add_signal_handler(number, handler, number)
                    stack.callback(loop.remove_signal_handler, number)
                except NotImplementedError:  # Windows, whose loops know no signals
                    stack.callback(signal.signal, number, _handled(loop, number, handler))
        yield


def _handled(loop: asyncio.AbstractEventLoop, number: int, handler: Callable[[int], object]) -> Any:
    """Let Python itself take the signal and tell the loop; gives what took it before."""

    def tell(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(handler, number)

    return signal.signal(number, tell) or signal.SIG_DFL


HANG_UP: int | None = getattr(signal, "SIGHUP", None)
_ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    if hasattr(signal, name)
)
