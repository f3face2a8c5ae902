"""Where callers wait, and are told what became of their requests.

Everything that a committed turn did to a request comes by here: it is in the store, is known
already, is looked after by another process; it was tried, answered, refused, or came too late.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from scheduler import events
from scheduler.clock import Clock
from scheduler.core.callers.again import Again
from scheduler.core.callers.elsewhere import Elsewhere
from scheduler.core.callers.terms import terms_of
from scheduler.core.callers.twins import Twins
from scheduler.core.callers.unsent import Unsent, named_by
from scheduler.core.callers.waiters import Enqueued, Holder, Waiters
from scheduler.core.calls import Attempt, settled
from scheduler.core.flight import Flight
from scheduler.core.future import Keeper, RequestFuture
from scheduler.core.inbox import Inbox
from scheduler.core.intake import Intake
from scheduler.core.labels import budget_of
from scheduler.core.tally import Tally
from scheduler.core.tries import Tries
from scheduler.errors import CallFailed, KeyConflict, RateLimited, SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.request import RequestState
from scheduler.stores.base import (
    ExpiredRequest,
    Finished,
    NewRequest,
    Outcome,
    Refused,
    Store,
    Submitted,
)

logger = logger_of("scheduler.pump")

READ_EVERY_MS = 1_000  # so often it is noted whose outcomes were read


class Desk:
    """The callers of one process. Used by `Pump` alone.

    Args:
        store: Where requests wait.
        intake: Prepares them.
        clock: Tells the time.
        inbox: Takes what is to be changed in the next turn.
        flight: The calls under way.
        tries: What became of earlier attempts.
        tally: Sums.
        announcer: Tells everybody else.
        keeper: Looks after futures.
        queue: Puts a request in the queue for somebody.
        wake: Has the pump take a turn.

    Attributes:
        waiters: Who waits for which request.
        twins: Requests that several wait for.
        elsewhere: Requests that other processes look after.
        shared: Requests that were submitted here, and that any process may send.
        read: Requests with keys whose outcomes somebody here got, and of which that is not noted.
        suspended: Called with the reservation when an outcome is unknown.
    """

    def __init__(
        self, store: Store, intake: Intake, clock: Clock, inbox: Inbox, flight: Flight,
        tries: Tries, tally: Tally, announcer: events.Announcer, keeper: Keeper,
        queue: Callable[[NewRequest, RequestFuture], None], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._store, self._clock, self._inbox, self._flight = store, clock, inbox, flight
        self._intake = intake
        self._tries, self._tally, self._announcer = tries, tally, announcer
        self.suspended: Callable[[int, tuple[int, int] | None], None] = lambda lost, told: None
        self.read: list[int] = []
        self._read_at_ms = 0
        self.shared: set[int] = set()
        self._delayed: list[int] = []  # heap: when shared ones that were tried here wait again
        self._waiting_shared = 0
        self.waiters = Waiters()
        self.twins = Twins(store, intake, self.waiters, wake)
        self._again = Again(store, intake, self.waiters, keeper, queue)
        self.elsewhere = Elsewhere(
            store, clock, self.waiters, flight.calls, self._again.prepare,
            self._again.submit_all, queue, self._ended,
        )  # fmt: skip
        self._unsent = Unsent(
            store, intake, self.waiters, self.twins, tries, tally, announcer, self._again.submit,
            inbox.amend, inbox.cancel,
        )  # fmt: skip

    # What was submitted

    def enqueued(self, new: NewRequest, submitted: Submitted) -> None:
        """A request without a future is in the store, or its key was."""
        if submitted.is_known or new.lane.is_shared:
            self._tally.waiting -= 1
        held = submitted.held
        if held is not None and not submitted.is_conflict:
            self.twins.note_enqueued(submitted.id, held)
            terms = terms_of(new, self._clock.now_ms())
            self.twins.join(submitted.id, Enqueued(new.request, held.lane, terms))

    def submitted(self, new: NewRequest, future: RequestFuture, submitted: Submitted) -> bool:
        """The same with a future; whether its caller has cancelled it meanwhile."""
        if submitted.is_known or new.lane.is_shared:
            self._tally.waiting -= 1
        future.request_id = request_id = submitted.id
        if submitted.is_conflict:
            assert new.request.key is not None
            future.fail(KeyConflict(new.request.key, new.request.job))
            return False
        if submitted.finished is not None:
            future.finish(submitted.finished)
            self._note(request_id, [future])
            return False
        if submitted.is_elsewhere:
            self.waiters.add(request_id, future)
            self.elsewhere.add(request_id, new, future)
        elif submitted.held is not None:
            self.twins.note_enqueued(request_id, submitted.held)
            self.twins.join(request_id, future)
            future.lane = submitted.held.lane
            future.is_running = request_id in self._flight.calls
        else:
            self.waiters.add(request_id, future)
            if new.lane.is_shared:
                self.shared.add(request_id)
                self.elsewhere.add(request_id, new, future)
            future.lane, future.is_running = new.lane, False
        return future.cancelled()

    # What was tried

    def settled(self, ended: Attempt, lives_on: bool | None, now_ms: int) -> None:
        """An attempt is settled; `lives_on`: others took its request, which still waits or not."""
        claimed, settlement = ended.claimed, ended.settlement
        if ended.is_sent:
            self._flight.calls.pop(claimed.request_id, None)
        self._count(ended)
        if lives_on is not None:
            self._follow_elsewhere(ended, lives_on)
        elif settlement.state is RequestState.QUEUED:
            self._wait_again(ended, now_ms)
        else:
            self._tally.ended[settlement.state] += 1
            self._tries.forget(claimed.request_id)
            self._resolve(ended)
        if self._announcer.hears(events.Settled):
            provider = self._flight.provider_of(claimed)
            budget = budget_of(self._intake.book, claimed.request, claimed.budgets)
            self._announcer.emit(settled(ended, now_ms, provider, lives_on is not None, budget))

    def _count(self, ended: Attempt) -> None:
        """Its money is no longer reserved: it is spent, free again, or unknown."""
        tally, claimed, settlement = self._tally, ended.claimed, ended.settlement
        tally.reserved_nusd -= claimed.ceiling_nusd
        if settlement.outcome is Outcome.POST:
            tally.posted_nusd += settlement.nusd
            if ended.overrun_nusd:
                tally.overruns += 1
                logger.warning(
                    "request %s cost %d nano-dollars more than its ceiling",
                    claimed.request.key or claimed.request_id, ended.overrun_nusd,
                )  # fmt: skip
        elif settlement.outcome is Outcome.SUSPEND:
            tally.suspense_nusd += claimed.ceiling_nusd
            tally.suspended[claimed.reservation_id] = claimed.ceiling_nusd
            self.suspended(claimed.reservation_id, ended.told)

    def _wait_again(self, ended: Attempt, now_ms: int) -> None:
        """Its request waits for another attempt."""
        request_id, at_ms = ended.claimed.request_id, ended.settlement.not_before_ms
        if not ended.claimed.is_shared:
            self._tally.waiting += 1
        elif at_ms is not None:
            heapq.heappush(self._delayed, at_ms)
        self._remember(ended, now_ms)
        is_of_others = ended.claimed.is_shared and request_id not in self.elsewhere
        for future in self.waiters.of(request_id):
            future.is_running = False
            if future.cancelled() and not is_of_others:
                self._inbox.cancel(request_id)
        for holder in self.twins.late_of(request_id, now_ms):
            self._unsent.give_up(request_id, holder, now_ms)
        if is_of_others:  # anybody may send it next: who joined it here asks again
            for each in self.waiters.take(request_id):
                if isinstance(each, RequestFuture) and not each.done():
                    self._again.submit(each)

    @property
    def waiting(self) -> int:
        """How many requests wait: this process's, and those that any process may send."""
        return self._tally.waiting + self._waiting_shared + len(self._delayed)

    def count_shared(self, waiting: int, now_ms: int, *, is_all_told: bool) -> None:
        """So many wait in shared lanes since a turn at that time.

        Until all that it did was told, what came out of these lanes, or into them, counts here:
        nobody is to think that nothing waits because a turn is on its way.
        """
        if not is_all_told:
            self._waiting_shared = max(self._waiting_shared, waiting)
            return
        self._waiting_shared = waiting
        while self._delayed and self._delayed[0] <= now_ms:  # its lane counts it
            heapq.heappop(self._delayed)

    def _remember(self, ended: Attempt, now_ms: int) -> None:
        """Keep, for as long as its request waits for another, what became of an attempt."""
        error, settlement = ended.error, ended.settlement
        if isinstance(error, CallFailed) and ended.is_sent:
            is_free = settlement.outcome is Outcome.VOID and not settlement.is_attempt
            is_free = is_free and not isinstance(error, RateLimited) and error.credit is None
            is_probe = settlement.not_before_ms is None
            request_id = ended.claimed.request_id
            self._tries.note(request_id, error, is_free=is_free, is_probe=is_probe, now_ms=now_ms)

    def _follow_elsewhere(self, ended: Attempt, lives_on: bool) -> None:
        """A call has ended that others had given up for lost: its request went its own way."""
        request_id = ended.claimed.request_id
        self._tries.forget(request_id)
        for future in self.waiters.of(request_id):
            future.is_running = False
        if ended.claimed.request.key is not None:
            self._again.submit_all(request_id)
        elif not lives_on:  # without a key nobody else can answer it
            if ended.settlement.state is RequestState.QUEUED:
                self._again.submit_all(request_id)
            else:
                self._resolve(ended)

    def _resolve(self, ended: Attempt) -> None:
        holders = self.waiters.take(ended.claimed.request_id)
        self.forget(ended.claimed.request_id)
        for future in holders:
            if future.done():
                continue
            if ended.response is not None:
                future.answer(ended.response)
            elif ended.error is not None:
                future.set_exception(ended.error)
            else:
                self._again.submit(future)  # who cancelled it was somebody else
        if ended.claimed.request.key is not None:
            self._note(ended.claimed.request_id, holders)

    # What was not

    def cancelled(self, request_id: int) -> None:
        """A request was cancelled while it waited."""
        self._tally.end_waiting(RequestState.CANCELLED)
        self._tally.waiting += request_id in self.shared
        self._tries.forget(request_id)
        self.forget(request_id)
        holders = self.waiters.take(request_id)
        if self._announcer.hears(events.Cancelled):
            named = named_by(holders, self._intake.book)
            self._announcer.emit(events.Cancelled(self._clock.now_ms(), request_id, *named))
        self._note(request_id, holders)

    def answered(self, finished: Finished) -> None:
        """A request that waits here was answered by a process that had been taken for dead."""
        self._tries.forget(finished.id)
        self.waiters.finish(finished)

    def refused(self, refused: Refused) -> None:
        """A request does not fit and may not wait."""
        futures = self.waiters.of(refused.id)
        self._unsent.refused(refused, self._clock.now_ms())
        if refused.id not in self.waiters:
            self._note(refused.id, futures)

    def expired(self, expired: ExpiredRequest, now_ms: int) -> None:
        """The time of a request was over before it was sent."""
        futures = self.waiters.of(expired.id)
        self.forget(expired.id)
        self._unsent.expired(expired, now_ms)
        self._tally.waiting += expired.is_shared
        self._note(expired.id, futures)

    def give_up(self, request_id: int, holder: Holder, now_ms: int) -> None:
        """The time of one caller is over; the request lives on for others."""
        self._unsent.give_up(request_id, holder, now_ms)

    def forget(self, request_id: int) -> None:
        """A request has ended, or is none of this process's business any more."""
        if self.shared or self.elsewhere:
            self.elsewhere.forget(request_id)
            self.shared.discard(request_id)

    def _ended(self, request_id: int) -> None:
        """Another process has ended a request."""
        self.shared.discard(request_id)
        self._tries.forget(request_id)

    def left_alone(self, request_id: int) -> bool:
        """A caller went; whether nobody wants the request any more."""
        if self.waiters.is_wanted(request_id):  # by somebody else
            self.twins.leave(request_id)
            return False
        return True

    def fail(self, error: SchedulerError, why: str) -> None:
        """Nothing more becomes of any request of this process."""
        for request_id in self.waiters.ids():
            ended = self._tries.ended(request_id, error, why)
            for future in self.waiters.take(request_id):
                future.fail(ended)

    # Whose outcomes were read

    def _note(self, request_id: int, holders: Sequence[Holder]) -> None:
        """Somebody got the outcome of a request: it need not be kept for them any longer."""
        for each in holders:
            if isinstance(each, RequestFuture) and each.request.key is not None and each.done():
                self.read.append(request_id)
                return

    async def note_read(self, now_ms: int | None = None) -> None:
        """Have the store know whose outcomes were read, now and then; None: in any case."""
        if not self.read or (now_ms is not None and now_ms < self._read_at_ms + READ_EVERY_MS):
            return
        read, self.read = self.read, []
        self._read_at_ms = now_ms or 0
        await self._store.delivered(read)
