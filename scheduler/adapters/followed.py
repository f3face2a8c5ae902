"""A stream of a function's on its way to its reader; its pieces tell what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Self

from scheduler.adapters.results import Pieces, has_usage
from scheduler.answer import Answer
from scheduler.core.nested.pace import Pace
from scheduler.core.nested.parts import Tab
from scheduler.errors import CallFailed, StreamBroken

if TYPE_CHECKING:
    from scheduler.adapters.functions import FunctionVisit


def is_stream(result: Any, was_asked_for: bool) -> bool:
    """Whether a result is read in pieces, and says only then what it cost.

    Args:
        result: What a function gave back; files and the like can be read in pieces, too.
        was_asked_for: The call said ``stream=True``.
    """
    if isinstance(result, Followed) or inspect.isasyncgen(result) or inspect.isgenerator(result):
        return True
    ways = ("__anext__", "__next__", "__aiter__")
    return was_asked_for and any(hasattr(result, way) for way in ways) and not has_usage(result)


class Followed:
    """Looks like the stream it follows.

    Read to its end it is settled by what it told of its usage; left before, or broken off, it keeps
    counting all that was reserved. What makes it asks for its function, wherever it is read.

    Attributes:
        is_told: The scheduler has heard of its end.
        pieces: How many its reader has taken.
    """

    def __init__(
        self, visit: FunctionVisit, stream: Any, ended: asyncio.Future[Answer],
        pieces: Pieces | None, tab: Tab,
    ) -> None:  # fmt: skip
        self._visit, self._stream, self._ended, self._pieces = visit, stream, ended, pieces
        self._tab = tab
        self._last, self.is_told, self.pieces = stream, False, 0
        self.pace = Pace(visit.tell, visit.loop.time)
        self._chunks: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy asks before there is anything
            raise AttributeError(name)
        return getattr(self._stream, name)

    # In an event loop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self.pace.asked()
        try:
            with self._tab.gone_on():
                if self._chunks is None:
                    self._chunks = aiter(self._stream)
                chunk = await anext(self._chunks)
            return self._seen(chunk)
        except StopAsyncIteration:
            self._end(is_over=True)
            await self._visit.settled()
            raise
        except BaseException as exc:  # cancelled: its source is not to be read on
            self._end(exc)
            raise

    async def aclose(self) -> None:
        """Leave it."""
        close = getattr(self._stream, "aclose", None) or getattr(self._stream, "close", None)
        with self._tab.gone_on():
            done: Any = None if close is None else close()
            if hasattr(done, "__await__"):
                await done
        self._end()
        await self._visit.settled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # In a thread

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self.pace.asked()
        try:
            with self._tab.gone_on():
                if self._chunks is None:
                    self._chunks = iter(self._stream)
                chunk = next(self._chunks)
            return self._seen(chunk)
        except StopIteration:
            self._end(is_over=True)
            self._visit.settled_sync()
            raise
        except BaseException as exc:
            self._end(exc)
            raise

    def close(self) -> Any:
        """Leave it; gives what to await, if its stream does."""
        close = getattr(self._stream, "close", None)
        with self._tab.gone_on():
            done = None if close is None else close()
        self._end()
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._visit.settled_sync()

    def _seen(self, chunk: Any) -> Any:
        self.pieces += 1
        self.pace.given()
        if has_usage(chunk):
            self._last = chunk
        if self._pieces is not None:
            self._pieces.take(chunk)
        return chunk

    def _end(self, error: BaseException | None = None, *, is_over: bool = False) -> None:
        """Tell, once, what it amounts to."""
        if self.is_told:
            return
        self.is_told = True
        outcome: Answer | CallFailed | None = None
        if is_over:
            outcome = self._visit.read(self._last, self._pieces)
        elif isinstance(error, Exception):
            # Whatever it says: a part was answered, and its reader has it.
            outcome = StreamBroken(self._visit.understood(error).message, self.pieces)
        with contextlib.suppress(RuntimeError):  # the scheduler's loop is no more
            self._visit.tell(_settle, self._visit, self._ended, outcome)

    def __del__(self) -> None:
        self._end()


def _settle(
    visit: FunctionVisit, ended: asyncio.Future[Answer], outcome: Answer | CallFailed | None
) -> None:
    """In the scheduler's loop."""
    if outcome is None:
        visit.give_up()
    elif ended.done():
        pass  # the scheduler was closed meanwhile
    elif isinstance(outcome, CallFailed):
        ended.set_exception(outcome)
    else:
        ended.set_result(outcome)
