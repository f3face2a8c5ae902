"""Which requests with keys have ended in the memory store, how many are kept, and how small."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from scheduler.request import Request
from scheduler.stores.base import KEEP_FINISHED as KEEP_FINISHED

MOST_LOOKED_AT = 16  # of the oldest, each time one more has ended
_NO_TAGS: Mapping[str, str] = {}


class Ended:
    """The order in which they ended, and what of their requests is worth keeping.

    Attributes:
        count: How many are kept.
    """

    def __init__(self, most: int | None) -> None:
        self._most, self.count = most, 0
        self._order: deque[int] = deque()  # some may be forgotten, or live again
        self._bodies: dict[str, dict[str, Any]] = {}  # by model: of thousands one is enough

    def outline(self, request: Request) -> Request:
        """A request that was answered, without what it asked: that is told by its digest."""
        model = request.model
        body = self._bodies.get(model)
        if body is None:
            body = self._bodies[model] = {"model": model}
        return Request(body, key=request.key, job=request.job, tags=_NO_TAGS)

    def add(self, request_id: int) -> bool:
        """One more has ended; whether these are too many now."""
        self.count += 1
        if self._most is None:
            return False
        self._order.append(request_id)
        return self.count > self._most or len(self._order) > 2 * self._most + MOST_LOOKED_AT

    def oldest(self) -> Iterator[int]:
        """The next to be forgotten, each told once, for as long as there are too many."""
        assert self._most is not None
        for _ in range(min(MOST_LOOKED_AT, len(self._order))):
            if self.count <= self._most and len(self._order) <= 2 * self._most:
                return
            yield self._order.popleft()

    def put_back(self, request_id: int) -> None:
        """It has to stay for now."""
        self._order.append(request_id)
