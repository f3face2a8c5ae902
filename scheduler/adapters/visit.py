"""One call that its caller makes itself, when the scheduler says so.

submit ──▶ queue ──▶ admitted: `send` makes the attempt where the caller is
▲          │ failed in a way that may pass: back to the queue
└──────────┘
settled, refused, or begun to stream ──▶ the caller goes on
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scheduler.adapters.places import AsyncPlace, Place
from scheduler.future import RequestFuture, explain
from scheduler.intake import OnExceeded
from scheduler.pace import Pace
from scheduler.parts import Tab
from scheduler.providers.base import Answer
from scheduler.request import Request, Response

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler


LOOPS_OWN = (asyncio.CancelledError, GeneratorExit)
"""What ends a task, and is no word of the call's."""


class Visit(ABC):
    """A call on its way through the scheduler.

    Attributes:
        scheduler: Who says when.
        loop: The scheduler's.
        error: Why there is no answer; None: there is, or not yet.
        response: What was settled; None: nothing, or not yet.
        tab: Of the function that asks, if this is a part of that; None: it waits for money itself.
        tries_again: Whether a part that failed in a way that may pass is asked again.
    """

    tab: Tab | None = None
    tries_again = False

    def __init__(self, scheduler: Scheduler, on_exceeded: OnExceeded | None, place: Place) -> None:
        self.scheduler, self.loop = scheduler, scheduler.loop
        self._on_exceeded, self._place = on_exceeded, place
        self._future: asyncio.Future[Response] | None = None
        self._is_given_up = False
        self.error: BaseException | None = None
        self.response: Response | None = None

    @abstractmethod
    def make_request(self) -> Request:
        """What is asked. Called in the scheduler's loop, in the caller's context."""

    @abstractmethod
    async def send(self, request: Request) -> Answer:
        """Make one attempt. Called in the scheduler's loop; raises `CallFailed` and its kin."""

    def start(self) -> None:
        """Get in line; in the scheduler's loop."""
        if self._is_given_up:
            return
        try:
            future = self._line_up(self.make_request())
        except Exception as error:  # whatever it is: the caller waits for it, elsewhere
            self.error = error
            self._place.wake()
            return
        self._future = future
        future.add_done_callback(self._ended)

    def _line_up(self, request: Request) -> asyncio.Future[Response]:
        if self.tab is not None:
            return self.scheduler.part(
                self.tab, request, self.attempt, tries_again=self.tries_again
            )
        return self.scheduler.submit(request, on_exceeded=self._on_exceeded, send=self.attempt)

    async def attempt(self, request: Request) -> Answer:
        """`send`; what goes out below it is this call, and no part of another."""
        with Tab(self.scheduler.store, counts=False).kept():
            return await self.send(request)

    async def wait_at(self, place: AsyncPlace) -> None:
        """Get in line, and wait; where the caller is."""
        try:
            await place.wait(self.start, self.give_up)
        except asyncio.CancelledError as exc:
            if isinstance(self._future, RequestFuture):
                explain(exc, self._future)
            raise

    def is_read_at(self, pace: Pace) -> None:
        """A stream of it has its reader; in the scheduler's loop."""
        if isinstance(self._future, RequestFuture):
            self._future.is_read_at(pace)

    def give_up(self) -> None:
        """Nobody waits for it any more; in the scheduler's loop.

        What has been sent keeps counting, what has not costs nothing.
        """
        self._is_given_up = True
        if self._future is not None:
            self._future.cancel()

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the scheduler's loop; from any thread."""
        self._place.tell(function, *args)

    async def settled(self) -> None:
        """Wait until the ledger has what came of it; from any loop."""
        if asyncio.get_running_loop() is self.loop:
            await self._until_settled()
        elif self.loop.is_running():
            waiting = asyncio.run_coroutine_threadsafe(self._until_settled(), self.loop)
            await asyncio.wrap_future(waiting)

    def settled_sync(self) -> None:
        """As `settled`, from a thread; in the scheduler's own it does not wait."""
        if self.loop.is_running() and not _is_running_here(self.loop):
            asyncio.run_coroutine_threadsafe(self._until_settled(), self.loop).result()

    async def _until_settled(self) -> None:
        if self._future is not None:
            await asyncio.wait([self._future])

    def _ended(self, future: asyncio.Future[Response]) -> None:
        if not future.cancelled():
            self.error = future.exception()
            self.response = None if self.error is not None else future.result()
        self._place.wake()


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
