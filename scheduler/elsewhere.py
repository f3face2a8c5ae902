"""Requests that wait here, and are looked after by another process on the same store.

Whoever submits a key that another process runs waits for that one's outcome; and a process that
was taken for dead finds out, when it comes back, which of its keys others took over.
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.errors import SchedulerError
from scheduler.future import RequestFuture
from scheduler.intake import Intake
from scheduler.request import RequestState
from scheduler.stores.base import NewRequest, Store
from scheduler.waiters import Waiters


class Elsewhere:
    """Follows what other processes do with keys that are waited for here. Used by `Pump` alone.

    Args:
        store: Where they tell each other.
        intake: Prepares requests.
        waiters: Who waits here.
        submit_again: Has a request, by its id, submitted anew for all who wait for it.
        queue: Puts a request in the queue for somebody.
        fail: Ends a request, by its id, with an error.
    """

    def __init__(
        self,
        store: Store,
        intake: Intake,
        waiters: Waiters,
        submit_again: Callable[[int], None],
        queue: Callable[[NewRequest, RequestFuture], None],
        fail: Callable[[int, SchedulerError], None],
    ) -> None:
        self._store, self._intake, self._waiters = store, intake, waiters
        self._submit_again, self._queue, self._fail = submit_again, queue, fail
        self._requests: dict[int, NewRequest] = {}

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def add(self, request_id: int, new: NewRequest) -> None:
        """Another process looks after this one."""
        self._requests[request_id] = new

    def forget(self, request_id: int) -> None:
        """Nobody here waits for it any more."""
        self._requests.pop(request_id, None)

    async def look_what_was_taken(self, waiting: list[int]) -> None:
        """Others took this process for dead: what they took over of these, they answer."""
        for finished in await self._store.outcomes(waiting):
            if finished.state is RequestState.CANCELLED:
                self._submit_again(finished.id)  # somebody here still wants it
            else:
                for each in self._waiters.take(finished.id):
                    each.finish(finished)
        mine = await self._store.still_mine(waiting)
        for request_id in waiting:
            futures = self._waiters.of(request_id)
            if not futures or request_id in mine or request_id in self._requests:
                continue
            try:
                new = self._intake.prepare(futures[0].request, None)
            except SchedulerError as error:  # its price or budget is no longer there
                self._fail(request_id, error)
                continue
            new.expires_at_ms = futures[0].expires_at_ms  # it has waited since it was submitted
            self._requests[request_id] = new
        await self.look()

    async def look(self) -> None:
        """Take over answers of other processes, and requests of those that are gone."""
        if not self._requests:
            return
        for finished in await self._store.outcomes(tuple(self._requests)):
            if finished.state in (RequestState.CANCELLED, RequestState.EXPIRED):
                continue  # nobody there wants it any more; somebody here does
            self._requests.pop(finished.id, None)
            for future in self._waiters.take(finished.id):
                future.finish(finished)
        requests, self._requests = self._requests, {}
        for request_id, new in requests.items():
            for future in self._waiters.take(request_id):
                self._queue(new, future)
