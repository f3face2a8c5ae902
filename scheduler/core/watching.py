"""Who watches requests on their way, such as tracing, and who lives as long as a scheduler does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from scheduler.guards.plain import logger_of

if TYPE_CHECKING:
    from scheduler.core.future import RequestFuture
    from scheduler.providers.base import Provider, Send
    from scheduler.request import Request
    from scheduler.stores.base import Claimed


logger = logger_of("scheduler.watching")

RAISED = "`%s` of a watcher raised; the request goes on unwatched"


class Watcher(Protocol):
    """Sees each request on its way. It may not take long; if it raises, it has not seen it."""

    def mark(self, request: Request) -> Request:
        """What is to be submitted, in the context of its caller; may be given back changed."""

    def submitted(self, future: RequestFuture) -> None:
        """It is to be queued; its call will run in a copy of `RequestFuture.context`."""

    def around(
        self, claimed: Claimed, provider: Provider, futures: Sequence[RequestFuture], send: Send
    ) -> Send:
        """A call begins, in its own task and context: what makes it, in place of `send`."""


class Companion(Protocol):
    """Lives as long as a scheduler does: begun in its loop, and closed before its store is."""

    def begin(self) -> None:
        """It is open."""

    async def aclose(self) -> None:
        """It is about to end."""


class Watchers:
    """Those who watch one scheduler."""

    def __init__(self) -> None:
        self._all: list[Watcher] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, watcher: Watcher) -> None:
        """One more, from now on."""
        self._all.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        """One less; what it began goes on."""
        if watcher in self._all:
            self._all.remove(watcher)

    def mark(self, request: Request) -> Request:
        """See `Watcher.mark`."""
        for each in self._all:
            try:
                request = each.mark(request)
            except Exception:
                logger.exception(RAISED, "mark")
        return request

    def submitted(self, future: RequestFuture) -> None:
        """See `Watcher.submitted`."""
        for each in self._all:
            try:
                each.submitted(future)
            except Exception:
                logger.exception(RAISED, "submitted")

    def around(
        self, claimed: Claimed, provider: Provider, futures: Sequence[RequestFuture], send: Send
    ) -> Send:
        """See `Watcher.around`."""
        for each in self._all:
            try:
                send = each.around(claimed, provider, futures, send)
            except Exception:
                logger.exception(RAISED, "around")
        return send
