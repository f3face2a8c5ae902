"""The future a submission gives back."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Protocol

from scheduler.admission import LaneKey, Shortfall
from scheduler.errors import CallFailed, DeadlineExceeded, SchedulerError
from scheduler.providers.base import Emit, Send
from scheduler.request import Request, RequestState, Response
from scheduler.stores.base import Finished


class Keeper(Protocol):
    """Who looks after a future's request: the scheduler."""

    def cancelled(self, future: RequestFuture) -> None: ...  # noqa: D102

    def why_parked(self, lane: LaneKey) -> Shortfall | None: ...  # noqa: D102


class RequestFuture(asyncio.Future[Response]):
    """An `asyncio.Future` that also tells how its request is doing.

    It works with `gather`, `wait`, `as_completed` and timeouts. Cancelling it
    while the request waits removes the request, at no cost; cancelling it while
    the request runs ends the call, and what it reserved keeps counting, since the
    provider may bill it.
    """

    __slots__ = (
        "_keeper", "context", "emit", "is_running", "lane", "request", "request_id", "send",
    )  # fmt: skip

    def __init__(
        self, request: Request, lane: LaneKey | None, keeper: Keeper | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        super().__init__(loop=loop)
        self.request, self.lane, self._keeper = request, lane, keeper
        self.request_id: int | None = None  # None until it is in the store
        self.is_running = False
        self.emit: Emit | None = None  # takes the events of the answer, if it is streamed
        self.send: Send | None = None  # makes the call, in this context; None: its provider does
        self.context: Context | None = None

    @property
    def key(self) -> str | None:
        """The request's key."""
        return self.request.key

    @property
    def state(self) -> RequestState:
        """Where the request is now."""
        if self.done():
            if self.cancelled():
                return RequestState.CANCELLED
            error = self.exception()
            if error is None:
                return RequestState.SUCCEEDED
            expired = isinstance(error, DeadlineExceeded)
            return RequestState.EXPIRED if expired else RequestState.FAILED
        if self.is_running:
            return RequestState.RUNNING
        return RequestState.QUEUED if self.parked is None else RequestState.PARKED

    @property
    def parked(self) -> Shortfall | None:
        """Why the request is parked, how much is missing and until when; None: it is not."""
        if self.done() or self.is_running or self.lane is None or self._keeper is None:
            return None
        return self._keeper.why_parked(self.lane)

    def cancel(self, msg: object | None = None) -> bool:
        """Cancel the request; see the class for what that costs."""
        if not super().cancel(msg):
            return False
        if self._keeper is not None:
            self._keeper.cancelled(self)
        return True

    def fail(self, error: SchedulerError) -> None:
        """End with an error that nobody has to look at."""
        if not self.done():
            self.set_exception(error)
            self.exception()  # read, so that asyncio does not complain

    def finish(self, finished: Finished) -> None:
        """End with what the store knows of the request."""
        if self.done():
            return
        if finished.response is not None:
            self.set_result(finished.response)
            return
        error = CallFailed((finished.error or {}).get("message", finished.state.value))
        error.attempts, error.cost_nusd = finished.attempts, finished.cost_nusd
        self.set_exception(error)
