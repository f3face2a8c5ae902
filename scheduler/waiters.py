"""Who waits for which request: its future, and those of others who submitted the same key."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context

from scheduler.future import RequestFuture


class Waiters:
    """The futures of one process, by request."""

    def __init__(self) -> None:
        self._first: dict[int, RequestFuture] = {}
        self._twins: dict[int, list[RequestFuture]] = {}  # more futures of one key

    def add(self, request_id: int, future: RequestFuture) -> bool:
        """One more waits for a request; whether it is the first."""
        if request_id in self._first:
            self._twins.setdefault(request_id, []).append(future)
            return False
        self._first[request_id] = future
        return True

    def of(self, request_id: int) -> Sequence[RequestFuture]:
        """Everybody who waits for a request."""
        future = self._first.get(request_id)
        if future is None:
            return ()
        return (future, *self._twins.get(request_id, ())) if self._twins else (future,)

    def is_wanted(self, request_id: int) -> bool:
        """Whether anybody still waits for it."""
        return any(not future.cancelled() for future in self.of(request_id))

    def take(self, request_id: int) -> Sequence[RequestFuture]:
        """As `of`, and forget them."""
        future = self._first.pop(request_id, None)
        if future is None:
            return ()
        return (future, *self._twins.pop(request_id, ())) if self._twins else (future,)

    def ids(self) -> list[int]:
        """The requests that somebody waits for."""
        return list(self._first)


def context_of(futures: Sequence[RequestFuture]) -> Context | None:
    """Where a call runs: in a copy of its submitter's context; None: nobody waits for it."""
    found = (future.context for future in futures if future.context is not None)
    context = next(found, None)
    return None if context is None else context.copy()
