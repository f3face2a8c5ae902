"""What a run has of its process: signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any


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
