"""Who waits for which request: its future, and those of others who submitted the same key."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextvars import Context

from scheduler.admission.plan import LaneKey
from scheduler.core.callers.terms import Terms
from scheduler.core.future import RequestFuture
from scheduler.request import Request
from scheduler.stores.base import Finished


class Enqueued:
    """Somebody who put a request in the queue and has no future of it."""

    __slots__ = ("is_gone", "lane", "request", "terms")

    def __init__(self, request: Request, lane: LaneKey, terms: Terms) -> None:
        self.request, self.lane, self.terms = request, lane, terms
        self.is_gone = False

    def done(self) -> bool:
        """Whether it is nothing to them any more."""
        return self.is_gone

    def fail(self, error: object) -> None:
        """It has ended for them; there is nobody to tell."""
        self.is_gone = True

    answer = finish = set_exception = fail


Holder = RequestFuture | Enqueued


class Waiters:
    """Those who wait in one process, by request.

    Of somebody who enqueued a request nothing is noted until somebody else asks for its key.
    """

    def __init__(self) -> None:
        self._first: dict[int, Holder] = {}
        self._twins: dict[int, list[Holder]] = {}  # more callers of one key
        # The request that several hold as it waits now: whose it is, and on what terms.
        self.shared: dict[int, tuple[Request, Terms]] = {}

    def add(self, request_id: int, holder: Holder) -> bool:
        """One more waits for a request; whether it is the first."""
        if request_id in self._first:
            self._twins.setdefault(request_id, []).append(holder)
            return False
        self._first[request_id] = holder
        if isinstance(holder, Enqueued):
            self._twins[request_id] = []
        return True

    def of(self, request_id: int) -> Sequence[RequestFuture]:
        """The futures of a request."""
        first = self._first.get(request_id)
        if first is None:
            return ()
        twins = self._twins.get(request_id) if self._twins else None
        if twins is None:
            return (first,)  # type: ignore[return-value]  # an `Enqueued` is noted with its twins
        return [each for each in (first, *twins) if isinstance(each, RequestFuture)]

    def holders(self, request_id: int) -> Sequence[Holder]:
        """Everybody who still wants a request, in the order in which they came."""
        first = self._first.get(request_id)
        if first is None:
            return ()
        return [each for each in (first, *self._twins.get(request_id, ())) if not each.done()]

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._first

    def is_wanted(self, request_id: int) -> bool:
        """Whether anybody still waits for it."""
        return bool(self.holders(request_id))

    def take(self, request_id: int) -> Sequence[Holder]:
        """Everybody who waits for a request, to be forgotten here."""
        first = self._first.pop(request_id, None)
        if first is None:
            return ()
        if self.shared:
            self.shared.pop(request_id, None)
        return (first, *self._twins.pop(request_id, ())) if self._twins else (first,)

    def take_some(self, request_id: int, some: Container[Holder]) -> Sequence[Holder]:
        """Those of them who wait for a request, to be forgotten here; all others wait on."""
        shared = self.shared.get(request_id)
        everybody = self.take(request_id)
        taken = [each for each in everybody if each in some]
        for each in everybody:
            if each not in taken:
                self.add(request_id, each)
        if shared is not None and request_id in self:
            self.shared[request_id] = shared
        return taken

    def finish(self, finished: Finished) -> None:
        """Tell everybody who waits for a request what became of it."""
        for each in self.take(finished.id):
            each.finish(finished)

    def ids(self) -> list[int]:
        """The requests that somebody waits for."""
        return list(self._first)


def context_of(futures: Sequence[RequestFuture]) -> Context | None:
    """Where a call runs: in a copy of its submitter's context; None: nobody waits for it."""
    for future in futures:
        if future.context is not None and not future.done():
            return future.context.copy()
    return None
