"""The future a submission gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from scheduler.admission import Shortfall
from scheduler.request import Request, RequestState, Response

if TYPE_CHECKING:
    from scheduler.admission import LaneKey


class RequestFuture(asyncio.Future[Response]):
    """An `asyncio.Future` that also tells how its request is doing.

    It works with `gather`, `wait`, `as_completed` and timeouts. Cancelling it
    while the request waits removes the request, at no cost; cancelling it while
    the request runs ends the call, and what it reserved keeps counting, since the
    provider may bill it.
    """

    request: Request
    request_id: int | None  # None until it is in the store
    lane: LaneKey
    is_running: bool
    _on_cancel: Callable[[RequestFuture], None] | None
    _why: Callable[[LaneKey], Shortfall | None]

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
            from scheduler.errors import DeadlineExceeded

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
        if self.done() or self.is_running:
            return None
        return self._why(self.lane)

    def cancel(self, msg: object | None = None) -> bool:
        """Cancel the request; see the class for what that costs."""
        if not super().cancel(msg):
            return False
        if self._on_cancel is not None:
            self._on_cancel(self)
        return True
