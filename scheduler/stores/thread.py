"""SQLite on a thread of its own, which runs whole functions."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosqlite

from scheduler.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")


class Thread(aiosqlite.Connection):
    """A connection that runs whole functions on its thread."""

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `function(db, …)` on the thread; cancelling the caller does not stop it."""
        if not self._running:
            raise StoreError("the file was closed meanwhile")
        loop, db = asyncio.get_running_loop(), self._conn
        done: asyncio.Future[T] = loop.create_future()

        # Told from here rather than by aiosqlite, whose thread ends, and leaves all others waiting,
        # when somebody's loop has ended before they were answered.
        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function(db, *args, **kwargs)
            except BaseException as exc:
                error = exc
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(answer, done, result, error)
            del result, error  # and the frames that an error holds

        self._tx.put_nowait((None, work))
        return await done


def answer(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Tell a future what came of work on another thread, on the thread of its loop."""
    if done.done():
        return  # nobody waits for it any more
    if isinstance(error, StopIteration):  # a future takes none
        wrapped = RuntimeError(f"{error!r} was raised in the store's thread")
        wrapped.__cause__, error = error, wrapped
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
