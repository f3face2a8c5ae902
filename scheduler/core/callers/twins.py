"""Requests that several callers hold, each on terms of their own; see `terms`.

Whoever comes or goes changes what their terms are together, and so the request as it waits in
the store. One whose own time is over gives up alone, by the clock kept here.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from scheduler.core.callers.terms import Terms, terms_of, together
from scheduler.core.callers.waiters import Enqueued, Holder, Waiters
from scheduler.core.intake import Intake
from scheduler.guards.hooks import as_ours
from scheduler.request import Request
from scheduler.stores.base import NewRequest, Store


class Twins:
    """What is shared in one process. Used by `Pump` alone.

    Args:
        store: Where they wait.
        intake: Prepares requests.
        waiters: Who waits.
        wake: Called when there is something for the next turn.

    Attributes:
        holds: Requests that live on when they are refused: not all of their callers would be.
    """

    def __init__(
        self, store: Store, intake: Intake, waiters: Waiters, wake: Callable[[], None]
    ) -> None:
        self._store, self._intake, self._waiters, self._wake = store, intake, waiters, wake
        self.holds: set[int] = set()
        self._changed: set[int] = set()
        self._order = itertools.count()
        self._due: list[tuple[int, int, int, Holder]] = []  # heap of whose time ends before others'

    def note_enqueued(self, request_id: int, as_it_waits: NewRequest) -> None:
        """Somebody may have enqueued a request that nobody here has a future of."""
        if request_id not in self._waiters:
            terms = terms_of(as_it_waits)
            self._waiters.add(request_id, Enqueued(as_it_waits.request, as_it_waits.lane, terms))

    def join(self, request_id: int, holder: Holder) -> None:
        """One more caller holds a request."""
        waiters = self._waiters
        if request_id not in waiters.shared:
            # Nobody, if they have all given up and this one comes just in time.
            first = waiters.holders(request_id)
            if first:
                terms = together([each.terms for each in first])
                waiters.shared[request_id] = first[0].request, terms
            for each in first:
                self._await_end(request_id, each)
        waiters.add(request_id, holder)
        self._await_end(request_id, holder)
        self._changed.add(request_id)
        self._wake()

    def leave(self, request_id: int) -> None:
        """Somebody holds a request no more."""
        if request_id in self._waiters.shared:
            self._changed.add(request_id)
            self._wake()

    def _await_end(self, request_id: int, holder: Holder) -> None:
        at_ms = holder.terms.expires_at_ms
        if at_ms is not None:
            heapq.heappush(self._due, (at_ms, next(self._order), request_id, holder))

    @property
    def due_ms(self) -> int | None:
        """When the next of them gives up alone."""
        while self._due and self._due[0][3].done():
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def late(self, now_ms: int) -> Iterator[tuple[int, Holder]]:
        """Whose own time is over, with their requests."""
        while self._due and self._due[0][0] <= now_ms:
            _, _, request_id, holder = heapq.heappop(self._due)
            if self._is_late(request_id, holder, now_ms):
                yield request_id, holder

    def late_of(self, request_id: int, now_ms: int) -> list[Holder]:
        """Whose own time is over, of those who hold a request that waits again."""
        if request_id not in self._waiters.shared:
            return []
        holders = self._waiters.holders(request_id)
        return [each for each in holders if self._is_late(request_id, each, now_ms)]

    def _is_late(self, request_id: int, holder: Holder, now_ms: int) -> bool:
        shared = self._waiters.shared.get(request_id)
        if shared is None or holder.done() or not holder.terms.is_over(now_ms):
            return False
        # With the last of them the request itself expires, which is the store's to say.
        holders = self._waiters.holders(request_id)
        return holder in holders and not all(each.terms.is_over(now_ms) for each in holders)

    def amends(self, most: int) -> Iterator[tuple[int, NewRequest]]:
        """The requests whose callers have changed, as they are to wait from now on."""
        changed = sorted(self._changed)[:most]
        self._changed.difference_update(changed)
        if self._changed:
            self._wake()
        for request_id in changed:
            new = self._amend(request_id)
            if new is not None:
                yield request_id, new
        if self.holds:
            self.holds &= self._waiters.shared.keys()

    def _amend(self, request_id: int) -> NewRequest | None:
        waiters = self._waiters
        while holders := waiters.holders(request_id):
            terms = together([each.terms for each in holders])
            would_all_be_refused = all(each.terms.on_exceeded == "raise" for each in holders)
            if terms.on_exceeded == "raise" and not would_all_be_refused:
                self.holds.add(request_id)
            else:
                self.holds.discard(request_id)
            request = holders[0].request
            was, on = waiters.shared.get(request_id, (None, None))
            if was is request and on == terms:
                return None
            try:
                new = self._prepared(request, terms)
                if not any(each.lane is not None and each.lane.is_shared for each in holders):
                    new.lane = new.lane.as_private()
            except Exception as exc:  # its price or budget is no longer there
                holders[0].fail(as_ours(exc))
                continue
            waiters.shared[request_id] = request, terms
            return new
        self.holds.discard(request_id)  # nobody is left: the next refusal is the last
        return None

    def _prepared(self, request: Request, terms: Terms) -> NewRequest:
        if request.priority != terms.priority:
            request = replace(request, priority=terms.priority)
        new = self._intake.prepare(request, terms.on_exceeded)
        self._store.prepare(new)
        new.is_kept = True
        new.set_time(terms.expires_at_ms, terms.due_at_ms)
        return new
