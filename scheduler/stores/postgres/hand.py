"""A thread of one's own that runs whole functions, one after the other."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from scheduler.stores.thread import answer

P = ParamSpec("P")
T = TypeVar("T")


class Hand:
    """See the module. It is a daemon: a forgotten one keeps no process alive."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it there; cancelling the caller does not stop it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function(*args, **kwargs)
            except BaseException as exc:
                error = exc
            with suppress(RuntimeError):  # whose loop has ended
                loop.call_soon_threadsafe(answer, done, result, error)
            del result, error  # and the frames that an error holds

        self._work.put(work)
        return await done

    def later(self, function: Callable[[], None]) -> None:
        """Run it there, too, when it has time; nobody hears what came of it."""
        self._work.put(function)

    def end(self) -> None:
        """Let the thread end when its work is done."""
        self._work.put(None)

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)

    def _live(self) -> None:
        while (work := self._work.get()) is not None:
            with suppress(Exception):
                work()
            del work
