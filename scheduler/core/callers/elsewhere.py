"""Requests that wait here, and are looked after by another process on the same store.

Whoever submits a key that another process runs waits for that one's outcome, on terms of their
own: who would rather be refused is, once it is seen parked there, and whose time is over gives
up. A process that was taken for dead finds out, when it comes back, which of its keys others
took over.
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.core.callers.waiters import Waiters
from scheduler.core.future import RequestFuture
from scheduler.guards.hooks import as_ours
from scheduler.request import RequestState
from scheduler.stores.base import NewRequest, Store


class Elsewhere:
    """Follows what other processes do with keys that are waited for here. Used by `Pump` alone.

    Args:
        store: Where they tell each other.
        waiters: Who waits here.
        prepare: Prepares a future's request anew, on its own terms.
        submit_again: Has a request, by its id, submitted anew for all who wait for it.
        queue: Puts a request in the queue for somebody.
    """

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        prepare: Callable[[RequestFuture], NewRequest],
        submit_again: Callable[[int], None],
        queue: Callable[[NewRequest, RequestFuture], None],
    ) -> None:
        self._store, self._waiters, self._prepare = store, waiters, prepare
        self._submit_again, self._queue = submit_again, queue
        self._requests: dict[int, dict[RequestFuture, NewRequest]] = {}
        self._is_news = False  # of some of them nothing has been seen yet

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def add(self, request_id: int, new: NewRequest, future: RequestFuture) -> None:
        """Another process looks after this one."""
        future.lane = None
        self._requests.setdefault(request_id, {})[future] = new
        self._is_news = True

    def forget(self, request_id: int) -> None:
        """Nobody here waits for it any more."""
        self._requests.pop(request_id, None)

    async def look_what_was_taken(self, waiting: list[int]) -> None:
        """Others took this process for dead: what they took over of these, they answer."""
        for finished in await self._store.outcomes(waiting):
            if finished.is_unsent:
                self._submit_again(finished.id)  # somebody here still wants it
            else:
                self._waiters.finish(finished)
        mine = await self._store.still_mine(waiting)
        for request_id in waiting:
            if request_id in mine or request_id in self._requests:
                continue
            for future in self._waiters.of(request_id):
                try:
                    new = self._prepare(future)
                except Exception as exc:  # its price or budget is no longer there
                    future.fail(as_ours(exc))
                    continue
                self.add(request_id, new, future)
        await self.look()

    async def look(self) -> None:
        """Take over answers of other processes, and requests of those that are gone."""
        if not self._requests:
            return
        for finished in await self._store.outcomes(tuple(self._requests)):
            if finished.is_unsent:
                continue  # nobody there wants it any more; somebody here does
            self._requests.pop(finished.id, None)
            self._waiters.finish(finished)
        requests, self._requests = self._requests, {}
        for request_id, callers in requests.items():
            for future in self._waiters.take_some(request_id, callers):
                if isinstance(future, RequestFuture):
                    self._queue(callers[future], future)

    async def follow(self, now_ms: int, give_up: Callable[[int, RequestFuture], None]) -> None:
        """See how these are doing, if there is news, and end those whose own terms say so.

        Args:
            now_ms: The time.
            give_up: Ends one whose time is over.
        """
        if self._is_news:
            self._is_news = False
            await self._see()
        for request_id, callers in list(self._requests.items()):
            for future in list(callers):
                if future.done():
                    del callers[future]
                elif not future.is_running and future.terms.is_over(now_ms):
                    give_up(request_id, future)
            if not self._waiters.is_wanted(request_id):
                self.forget(request_id)
                self._waiters.take(request_id)

    async def _see(self) -> None:
        """Read where they are now."""
        for row in await self._store.pictures(tuple(self._requests)):
            for future in self._requests.get(row.id, ()):
                future.is_running, future.lack = row.state is RequestState.RUNNING, row.lack
                if row.lack is not None and future.terms.on_exceeded == "raise":
                    future.fail(row.lack.as_error())
