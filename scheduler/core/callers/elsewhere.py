"""Requests that wait here, and are looked after by another process on the same store.

Whoever submits a key that another process runs waits for that one's outcome, on terms of their
own: who would rather be refused is, once it is seen parked there, and whose time is over gives
up. A process that was taken for dead finds out, when it comes back, which of its keys others
took over.

What a look costs follows from what happened, not from how many wait: the store is asked for the
outcomes of what has ended, and how a page of the others is doing. They are submitted again, and so
taken over, when a process is gone, and a page of them now and then in any case.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence

from scheduler.clock import Clock
from scheduler.core.callers.waiters import Waiters
from scheduler.core.future import RequestFuture
from scheduler.core.steps import Steps
from scheduler.guards.hooks import as_ours
from scheduler.request import RequestState
from scheduler.stores.base import NewRequest, Picture, Store

PAGE = 500  # requests that the store is asked about at once
AGAIN_MS = 2_000  # how often a page is submitted again, whatever is known
LOOK_AGAIN_MS = 1_000  # at one whose time is over while it runs: it may be tried again


class Elsewhere:
    """Follows what other processes do with keys that are waited for here. Used by `Desk` alone.

    Args:
        store: Where they tell each other.
        clock: Tells the time.
        waiters: Who waits here.
        calls: Requests that are under way here.
        prepare: Prepares a future's request anew, on its own terms.
        submit_again: Has a request, by its id, submitted anew for all who wait for it.
        queue: Puts a request in the queue for somebody.
        ended: Called when another process has ended one.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        waiters: Waiters,
        calls: Container[int],
        prepare: Callable[[RequestFuture], NewRequest],
        submit_again: Callable[[int], None],
        queue: Callable[[NewRequest, RequestFuture], None],
        ended: Callable[[int], None],
    ) -> None:
        self._store, self._clock, self._waiters, self._prepare = store, clock, waiters, prepare
        self._calls, self._ended_here = calls, ended
        self._submit_again, self._queue = submit_again, queue
        self._requests: dict[int, dict[RequestFuture, NewRequest]] = {}
        self._unseen: dict[int, None] = {}  # of which nothing has been seen yet
        self._seen: OrderedDict[int, None] = OrderedDict()  # longest ago first
        self._due: list[tuple[int, int, int, RequestFuture]] = []  # heap of whose time ends when
        self._order = itertools.count()
        self._heard = 0  # up to where the store has told who ended
        self._has_heard = False
        self._there: frozenset[int] = frozenset()  # the processes that were seen last
        self._again_at_ms = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def add(self, request_id: int, new: NewRequest, future: RequestFuture) -> None:
        """Another process looks after this one."""
        future.lane = None
        self._requests.setdefault(request_id, {})[future] = new
        self._unseen[request_id] = None
        self._seen.pop(request_id, None)
        if future.terms.expires_at_ms is not None:
            self._await_end(future.terms.expires_at_ms, request_id, future)

    def _await_end(self, at_ms: int, request_id: int, future: RequestFuture) -> None:
        heapq.heappush(self._due, (at_ms, next(self._order), request_id, future))

    def forget(self, request_id: int) -> None:
        """Nobody here waits for it any more."""
        self._requests.pop(request_id, None)
        self._unseen.pop(request_id, None)
        self._seen.pop(request_id, None)

    # What became of them

    async def look(self) -> None:
        """Take over what other processes have answered, or gave up, where the store says so."""
        if self._requests:
            ended = [each for each in await self._ended() if each in self._requests]
            for start in range(0, len(ended), PAGE):
                await self._end(ended[start : start + PAGE])

    async def _ended(self) -> Sequence[int]:
        """What has ended since this was asked last."""
        self._has_heard = True
        self._heard, ended = await self._store.ended_since(self._heard)
        if ended is None:  # too many did: each is seen to have ended
            return ()
        return ended

    async def _end(self, ids: Sequence[int]) -> None:
        """These have ended."""
        unsent = []
        for finished in await self._store.outcomes(ids) if ids else ():
            if finished.id not in self._requests:
                continue
            if finished.is_unsent:
                unsent.append(finished.id)  # nobody there wants it any more; somebody here does
            else:
                self.forget(finished.id)
                self._ended_here(finished.id)
                self._waiters.finish(finished)
        await self._ask_again(unsent)

    async def look_who_is_there(self) -> None:
        """Take over the requests of a process that is gone, and ask again for some others."""
        if not self._requests:
            return
        there = await self._store.processes()
        is_one_gone, self._there = bool(self._there - there), there
        now_ms = self._clock.now_ms()
        if is_one_gone:
            await self._ask_again(list(self._requests))
        elif now_ms >= self._again_at_ms:
            self._again_at_ms = now_ms + AGAIN_MS
            await self._ask_again(list(itertools.islice(self._seen, PAGE)))

    async def _ask_again(self, ids: Iterable[int]) -> None:
        steps = Steps()
        for request_id in ids:
            if request_id in self._calls:
                continue
            callers = self._requests.get(request_id, {})
            self.forget(request_id)
            for future in self._waiters.take_some(request_id, callers):
                if isinstance(future, RequestFuture) and not future.done():
                    self._queue(callers[future], future)
            if steps.is_long():
                await asyncio.sleep(0)

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
        await self._ask_again(list(self._requests))

    # How they are doing

    async def follow(self, now_ms: int, give_up: Callable[[int, RequestFuture], None]) -> None:
        """See how some of these are doing, and end those whose own terms say so.

        Args:
            now_ms: The time.
            give_up: Ends one whose time is over.
        """
        if self._requests:
            await self._see()
        while self._due and self._due[0][0] <= now_ms:
            _, _, request_id, future = heapq.heappop(self._due)
            if future.done() or future not in self._requests.get(request_id, ()):
                continue
            if future.is_running:
                self._await_end(now_ms + LOOK_AGAIN_MS, request_id, future)
                continue
            give_up(request_id, future)
            self._drop_unwanted(request_id)

    async def _see(self) -> None:
        """Read where a page of them is now: those that are new first."""
        news = list(itertools.islice(self._unseen, PAGE))
        if news and not self._has_heard:
            await self._ended()  # from now on: what ended before is seen
        ids = [*news, *itertools.islice(self._seen, PAGE - len(news))]
        for request_id in ids:
            self._unseen.pop(request_id, None)
            self._seen[request_id] = None
            self._seen.move_to_end(request_id)
        rows = await self._store.pictures(ids)
        for row in rows:
            self._show(row)
        await self._end([row.id for row in rows if row.state.is_final])
        if len(rows) < len(ids):  # some were forgotten
            await self._ask_again(set(ids).difference(row.id for row in rows))

    def _show(self, row: Picture) -> None:
        if row.id in self._calls:
            return  # here it is known better
        for future in self._requests.get(row.id, ()):
            future.is_running, future.lack = row.state is RequestState.RUNNING, row.lack
            if row.lack is not None and future.terms.on_exceeded == "raise":
                future.fail(row.lack.as_error())
        self._drop_unwanted(row.id)

    def _drop_unwanted(self, request_id: int) -> None:
        if not self._waiters.is_wanted(request_id):
            self.forget(request_id)
            self._waiters.take(request_id)
