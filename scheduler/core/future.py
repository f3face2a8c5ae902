"""The future a submission gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from dataclasses import replace
from typing import Any, Protocol

from scheduler.admission.plan import LaneKey
from scheduler.core.callers.terms import Terms, terms_in
from scheduler.core.nested.pace import Pace
from scheduler.errors import CallFailed, DeadlineExceeded, SchedulerError
from scheduler.providers.base import Emit, Send
from scheduler.request import Request, RequestState, Response
from scheduler.shortfall import Shortfall
from scheduler.stores.base import Finished


class Keeper(Protocol):
    """Who looks after a future's request: the scheduler."""

    def cancelled(self, future: RequestFuture) -> None: ...  # noqa: D102

    def awaited(self, future: RequestFuture) -> None: ...  # noqa: D102

    def streams(self, future: RequestFuture) -> None: ...  # noqa: D102

    def why_parked(self, lane: LaneKey) -> Shortfall | None: ...  # noqa: D102

    def notice(self, lack: Shortfall) -> str: ...  # noqa: D102


class Parked(Protocol):
    """Something that may be parked."""

    @property
    def notice(self) -> str | None: ...  # noqa: D102


def explain(error: BaseException, waiting: Parked | None) -> None:
    """Say, in a note on the exception that ends a wait, why it took so long."""
    note = None if waiting is None else waiting.notice
    if note is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


class RequestFuture(asyncio.Future[Response]):
    """An `asyncio.Future` that also tells how its request is doing.

    It works with `gather`, `wait`, `as_completed` and timeouts. Cancelling it
    while the request waits removes the request, at no cost; cancelling it while
    the request runs ends the call, and what it reserved keeps counting, since the
    provider may bill it.
    """

    __slots__ = (
        "_keeper", "_note", "_submitted_to", "_terms", "ceiling_nusd", "context", "due_at_ms", "emit",
        "expires_at_ms", "heard", "is_running", "lack", "lane", "let_flow", "most_attempts", "pace", "request",
        "request_id", "send", "since_ms", "trace",
    )  # fmt: skip

    def __init__(
        self, request: Request, lane: LaneKey | None, keeper: Keeper | None,
        loop: asyncio.AbstractEventLoop, terms: Terms | None = None,
    ) -> None:  # fmt: skip
        super().__init__(loop=loop)
        # The lane in which its request waits here; None: it does not, another process has it.
        self.request, self.lane, self._keeper = request, lane, keeper
        self.request_id: int | None = None  # None until it is in the store
        self.is_running = False
        self.ceiling_nusd = 0  # what an attempt may cost at most, as it was quoted
        self.emit: Emit | None = None  # takes the events of the answer, if it is streamed
        self.send: Send | None = None  # makes the call, in this context; None: its provider does
        self.most_attempts: int | None = None  # of `send`, if whoever makes the call said so
        self.heard: Callable[[Response], None] | None = None  # told the answer before it is settled
        self.context: Context | None = None
        self.let_flow: Callable[[], None] | None = None  # stop waiting for the stream's reader
        self.pace: Pace | None = None  # of the stream's reader, once there is one
        self._submitted_to, self._terms = lane, terms
        self.expires_at_ms: int | None = None  # as it was first submitted,
        self.since_ms = 0  # and when that was, if it expires
        self.due_at_ms: int | None = None  # its deadline, likewise
        self.lack: Shortfall | None = None  # why another process has it parked
        self._note: str | None = None
        self.trace: Any = None  # of who watches it

    def is_read_at(self, pace: Pace) -> None:
        """Its answer is read as it comes."""
        self.pace = pace
        if self._keeper is not None:
            self._keeper.streams(self)

    @property
    def terms(self) -> Terms:
        """On what terms this caller waits, as they first said."""
        if self._terms is None:  # seldom asked for, so made when it is
            lane = self._submitted_to
            assert lane is not None
            self._terms = terms_in(
                lane, self.request, self.expires_at_ms, self.since_ms, self.due_at_ms
            )
        return self._terms

    @property
    def is_private(self) -> bool:
        """Whether only this process could send its request when it was submitted."""
        return self._submitted_to is not None and not self._submitted_to.is_shared

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
        """Why the request is parked, how much is missing and until when; None: it is not.

        What is not yet in the store is not parked. `Shortfall.too_late_at_ms` says that the
        request's time is over before that.
        """
        if self.done() or self.is_running or self._keeper is None or self.request_id is None:
            return None
        lack = self.lack if self.lane is None else self._keeper.why_parked(self.lane)
        at_ms = self.expires_at_ms if self._terms is None else self._terms.expires_at_ms
        return lack if lack is None or at_ms is None else lack.seen_by(at_ms)

    def cancel(self, msg: object | None = None) -> bool:
        """Cancel the request; see the class for what that costs."""
        self._note = self.notice
        if not super().cancel(msg):
            return False
        if self._keeper is not None:
            self._keeper.cancelled(self)
        return True

    @property
    def notice(self) -> str | None:
        """Why the request is parked, or was when it was cancelled, and what to do; None: it is not."""
        lack = self.parked
        return self._note if lack is None or self._keeper is None else self._keeper.notice(lack)

    def result(self) -> Response:
        """The response. A cancellation that hit a parked request says, in a note, why it waited."""
        try:
            return super().result()
        except asyncio.CancelledError as exc:
            explain(exc, self)
            raise

    def __await__(self) -> Generator[Any, None, Response]:
        """Wait for `result`, this class's own."""
        if not self.done():
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    __iter__ = __await__

    def fail(self, error: SchedulerError) -> None:
        """End with an error that nobody has to look at."""
        if not self.done():
            self.set_exception(error)
            self.exception()  # read, so that asyncio does not complain

    def answer(self, response: Response) -> None:
        """End with a response: that of its request, whoever asked for its key first."""
        if response.metadata is not self.request.metadata:
            response = replace(response, metadata=self.request.metadata)
        self.set_result(response)

    def finish(self, finished: Finished) -> None:
        """End with what the store knows of the request."""
        if self.done():
            return
        if finished.response is not None:
            self.answer(finished.response)
            return
        error = CallFailed((finished.error or {}).get("message", finished.state.value))
        error.attempts, error.cost_nusd = finished.attempts, finished.cost_nusd
        self.set_exception(error)
