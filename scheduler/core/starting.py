"""What was admitted is sent, unless there is a reason to give it back unsent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from scheduler import events
from scheduler.clock import Clock
from scheduler.core.callers.waiters import Waiters, context_of
from scheduler.core.flight import Flight, Sender
from scheduler.core.future import RequestFuture
from scheduler.core.intake import Intake
from scheduler.core.labels import budget_of
from scheduler.core.nested.opening import Opening
from scheduler.core.tally import Tally
from scheduler.core.watching import Watchers
from scheduler.providers.base import Provider
from scheduler.request import Priority, RequestState
from scheduler.stores.base import Claimed, Store


class Starting:
    """Begins the calls of one process. Used by `Pump` alone.

    Args:
        store: Where they were admitted.
        clock: Tells the time.
        flight: The calls under way.
        opening: What may be started.
        intake: Knows the names of budgets.
        waiters: Who waits for which request.
        tally: Sums.
        announcer: Tells everybody else.
        watchers: See each call.
    """

    def __init__(
        self, store: Store, clock: Clock, flight: Flight, opening: Opening, intake: Intake,
        waiters: Waiters, tally: Tally, announcer: events.Announcer, watchers: Watchers,
    ) -> None:  # fmt: skip
        self._store, self._clock, self._flight, self._opening = store, clock, flight, opening
        self._intake, self._waiters = intake, waiters
        self._tally, self._announcer, self._watchers = tally, announcer, watchers

    def start(self, claimed: Claimed, now_ms: int) -> None:
        """Send one request that was admitted."""
        self._tally.waiting -= not claimed.is_shared  # those the store counts
        self._tally.reserved_nusd += claimed.ceiling_nusd
        futures = self._waiters.of(claimed.request_id)
        if claimed.request_id in self._flight.calls:
            # Others took this process for dead and queued again what it is still sending.
            not_before_ms = self._clock.now_ms() + self._store.lease_ms
            self._flight.hand_back(claimed, RequestState.QUEUED, not_before_ms)
            return
        if self._opening.gives_back and not self._opening.takes(futures):
            self._flight.hand_back(claimed, RequestState.QUEUED)
            return
        if self._is_given_up(claimed.request_id, futures):
            self._flight.hand_back(claimed, RequestState.CANCELLED)
            return
        for future in futures:
            future.is_running = True
        self._flight.start(claimed, partial(self._sender_of, claimed), context_of(futures))
        if self._announcer.hears(events.Admitted):
            request = claimed.request
            self._announcer.emit(
                events.Admitted(
                    now_ms, claimed.request_id, request.key, request.job, claimed.attempt,
                    claimed.ceiling_nusd, claimed.parked_ms, request.model,
                    self._flight.provider_of(claimed), Priority.parse(request.priority),
                    budget_of(self._intake.book, request, claimed.budgets),
                    max(0, now_ms - claimed.submitted_at_ms),
                )
            )  # fmt: skip

    def _is_given_up(self, request_id: int, futures: Sequence[RequestFuture]) -> bool:
        if futures and not futures[0].done():
            return False
        return request_id in self._waiters and not self._waiters.is_wanted(request_id)

    def _sender_of(self, claimed: Claimed, provider: Provider) -> Sender:
        """Who makes the call, as those who watch it will have it."""
        futures = self._waiters.of(claimed.request_id)
        sender = _chosen(futures, provider)
        if self._watchers:
            send = self._watchers.around(claimed, provider, futures, sender.send)
            sender = sender._replace(send=send)
        return sender


def _chosen(futures: Sequence[RequestFuture], provider: Provider) -> Sender:
    """Whoever submitted it, if they said so, else its provider."""
    for future in futures:
        if future.done():
            continue
        if future.send is not None:
            return Sender(future.send, True, future.most_attempts)
        if future.emit is not None:
            return Sender(partial(provider.stream, emit=future.emit))
    return Sender(provider.send)
