"""Asking anew for a request that somebody still waits for, on their own terms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler.core.callers.waiters import Enqueued, Holder, Waiters
from scheduler.core.future import Keeper, RequestFuture
from scheduler.core.intake import Intake
from scheduler.guards.hooks import as_ours
from scheduler.stores.base import NewRequest, Store


class Again:
    """Submits again what others took, or gave up. Used by `Desk` alone.

    Args:
        store: Where requests wait.
        intake: Prepares them.
        waiters: Who waits for which.
        keeper: Looks after futures.
        queue: Puts a request in the queue for somebody.
    """

    def __init__(
        self, store: Store, intake: Intake, waiters: Waiters, keeper: Keeper,
        queue: Callable[[NewRequest, RequestFuture], None],
    ) -> None:  # fmt: skip
        self._store, self._intake, self._waiters = store, intake, waiters
        self._keeper, self._queue = keeper, queue
        self._loop = asyncio.get_running_loop()

    def prepare(self, future: RequestFuture) -> NewRequest:
        """Its request on its own terms: it has waited since it was first submitted."""
        new = self._intake.prepare(future.request, future.terms.on_exceeded)
        self._store.prepare(new)
        if future.is_private:
            new.lane = new.lane.as_private()
        new.is_kept = not new.lane.is_shared
        new.set_time(future.terms.expires_at_ms, future.terms.due_at_ms)
        return new

    def submit(self, holder: Holder) -> None:
        """Ask again for somebody; what refuses it now is told to them."""
        future = holder if isinstance(holder, RequestFuture) else self._stand_in(holder)
        try:
            new = self.prepare(future)
        except Exception as exc:
            future.fail(as_ours(exc))
            return
        self._queue(new, future)

    def submit_all(self, request_id: int) -> None:
        """Ask again for all who wait for a request."""
        for future in self._waiters.take(request_id):
            if not future.done():
                self.submit(future)

    def _stand_in(self, enqueued: Enqueued) -> RequestFuture:
        """A future in place of somebody who has none; nobody looks at it."""
        future = RequestFuture(enqueued.request, None, self._keeper, self._loop, enqueued.terms)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future
