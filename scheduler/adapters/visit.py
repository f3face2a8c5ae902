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

from scheduler.adapters.places import AsyncPlace, Place, thrown
from scheduler.answer import Answer
from scheduler.core.future import RequestFuture, explain
from scheduler.core.intake import OnExceeded
from scheduler.core.nested.pace import Pace
from scheduler.core.nested.parts import Tab
from scheduler.core.steady import is_running
from scheduler.errors import CallFailed, words_of
from scheduler.guards.hooks import PROGRAM_ENDS
from scheduler.request import Request, Response

if TYPE_CHECKING:
    from scheduler.scheduler import Scheduler


class Visit(ABC):
    """A call on its way through the scheduler.

    Attributes:
        scheduler: Who says when.
        loop: The scheduler's.
        place: Where the caller is.
        error: Why there is no answer; None: there is, or not yet.
        response: What was settled; None: nothing, or not yet.
        max_retries: How often the caller wants it sent again at most; None: they did not say.
        tab: Of the function that asks, if this is a part of that; None: it waits for money itself.
        tries_again: Whether a part that failed in a way that may pass is asked again.
    """

    max_retries: int | None = None
    tab: Tab | None = None
    tries_again = False

    def __init__(self, scheduler: Scheduler, on_exceeded: OnExceeded | None, place: Place) -> None:
        self.scheduler, self.loop = scheduler, scheduler.loop
        self._on_exceeded, self.place = on_exceeded, place
        self._future: asyncio.Future[Response] | None = None
        self._is_given_up, self._waits_since_s = False, self.loop.time()
        self._failure: BaseException | None = None  # what was raised where the caller is
        self.error: BaseException | None = None
        self.response: Response | None = None

    @abstractmethod
    def make_request(self) -> Request:
        """What is asked. Called in the scheduler's loop, in the caller's context."""

    @abstractmethod
    async def send(self, request: Request) -> Answer:
        """Make one attempt. Called in the scheduler's loop; raises `CallFailed` and its kin."""

    @abstractmethod
    def explain(self, exc: BaseException) -> CallFailed:
        """What an exception of the call means."""

    def understood(self, exc: BaseException) -> CallFailed:
        """As `explain`, for exceptions that cannot even say what they are, too."""
        try:
            return self.explain(exc)
        except BaseException:
            return CallFailed(f"the call raised {words_of(exc)}")

    async def there(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where the caller is.

        Raises:
            CallFailed: It raised something, anything at all, which its caller will get.
        """
        task = asyncio.current_task()
        try:
            return await self.place.run(function, *args)
        except BaseException as exc:
            if _is_loops_own(exc, task):
                raise
            self._failure = thrown(exc)
        raise self.understood(self._failure)  # here, where it takes nothing else along

    def start(self) -> None:
        """Get in line; in the scheduler's loop."""
        if self._is_given_up:
            return
        if self.tab is not None and not self.tab.takes_more:
            self.tab = None  # the function that asks was billed meanwhile: a call of its own
        try:
            future = self._line_up(self.make_request())
        except BaseException as error:  # whatever it is: the caller waits for it, elsewhere
            self.error = error
            self.place.wake()
            if isinstance(error, PROGRAM_ENDS):
                raise
            return
        self._future, self._waits_since_s = future, self.loop.time()
        future.add_done_callback(self._ended)

    def _line_up(self, request: Request) -> asyncio.Future[Response]:
        most = None if self.max_retries is None else self.max_retries + 1
        if self.tab is not None:
            return self.scheduler.part(
                self.tab, request, self.attempt, tries_again=self.tries_again, most_attempts=most
            )
        future = self.scheduler.submit(request, on_exceeded=self._on_exceeded, send=self.attempt)
        future.most_attempts = most
        return future

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
        self.place.tell(function, *args)

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
        self.place.wake()


def _is_loops_own(exc: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an exception ends the task that it hits, and is no word of the call's."""
    if isinstance(exc, asyncio.CancelledError):
        return task is not None and bool(task.cancelling())
    return isinstance(exc, GeneratorExit) and not is_running(task)


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
