"""What a reader of a streamed answer holds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from scheduler.core.future import RequestFuture, explain
from scheduler.core.nested.pace import Pace
from scheduler.request import RequestState, Response, StreamEvent
from scheduler.shortfall import Shortfall

ROOM = 16  # events that wait for their reader before the next are read


class ResponseStream:
    """The events of one answer as they come, and in the end the whole of it.

    Iterate over it, best inside ``async with``: leaving early ends the call, and what it
    reserved keeps counting until somebody knows what it cost, since the provider may go on
    and bill it. An error of the request is raised where the next event was expected.

    A key that was answered before gives no events, only the `response`.
    """

    def __init__(self, future: RequestFuture) -> None:
        loop = future.get_loop()
        self._future, self._pipe, self._pace = future, _Pipe(), Pace(_call, loop.time)
        future.is_read_at(self._pace)
        future.emit, future.let_flow = self._pipe.put, self._pipe.let_flow
        future.add_done_callback(self._pipe.end)

    @property
    def state(self) -> RequestState:
        """Where the request is now."""
        return self._future.state

    @property
    def parked(self) -> Shortfall | None:
        """Why the request waits, how much is missing and until when; None: it is not parked."""
        return self._future.parked

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        self._pace.asked()
        try:
            event = await self._pipe.get()
        except asyncio.CancelledError as exc:
            explain(exc, self._future)
            raise
        self._pace.given()
        if event is not None:
            return event
        if not self._future.cancelled():  # closed: there is no more to say
            self._future.result()  # raises what went wrong
        raise StopAsyncIteration

    async def response(self) -> Response:
        """The whole answer, as `Scheduler.run` gives it; events not read yet are skipped."""
        self._pace.asked()
        self._pipe.open_wide()
        return await self._future

    async def aclose(self) -> None:
        """End the call, if it is still under way or waits."""
        self._pipe.open_wide()
        self._future.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Nobody reads on: without this the call would wait for its reader for ever.
        future = self._future
        if not future.done() and not future.get_loop().is_closed():
            self._pipe.open_wide()
            future.cancel()
        elif future.done() and not future.cancelled():
            future.exception()  # seen, as far as asyncio is concerned


def _call(function: Callable[[], None]) -> None:
    function()


class _Pipe:
    """Hands events from the call to the reader, a few at a time."""

    def __init__(self) -> None:
        self._events: deque[StreamEvent] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._is_over = self._is_open_wide = self._is_flowing = False

    async def put(self, event: StreamEvent) -> None:
        """Hand an event over; returns when there is room for the next."""
        while len(self._events) >= ROOM and not (self._is_open_wide or self._is_flowing):
            self._room.clear()
            await self._room.wait()
        if not self._is_open_wide:
            self._events.append(event)
            self._news.set()

    async def get(self) -> StreamEvent | None:
        """The next event; None: there are no more."""
        while not self._events:
            if self._is_over:
                return None
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._events.popleft()

    def end(self, future: object) -> None:
        """No more events come."""
        self._is_over = True
        self._news.set()

    def let_flow(self) -> None:
        """Keep all that comes for the reader, whenever they read it."""
        self._is_flowing = True
        self._room.set()

    def open_wide(self) -> None:
        """Nobody reads any more: hold nothing up."""
        self._is_open_wide = True
        self._events.clear()
        self._room.set()
