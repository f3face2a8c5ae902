"""The one task that owns every change of state.

It gathers what waits (submissions, ends of calls, cancellations), has the store do
all of it and the next claim in one transaction, and acts on the answer: it starts
calls and resolves futures only when that is committed. While a transaction is under
way the next one gathers, so a slow disk makes bigger transactions, not more.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from functools import partial

from scheduler import events
from scheduler.admission.notices import Notices, sentence
from scheduler.admission.plan import LaneKey
from scheduler.clock import Clock
from scheduler.core.alarm import Alarm
from scheduler.core.callers.elsewhere import Elsewhere
from scheduler.core.callers.terms import terms_of
from scheduler.core.callers.twins import Twins
from scheduler.core.callers.unsent import Unsent
from scheduler.core.callers.waiters import Enqueued, Holder, Waiters, context_of
from scheduler.core.calls import Attempt, caller_of_one_more, settled
from scheduler.core.declared import follow
from scheduler.core.flight import STUBBORN_S, Flight, Sender
from scheduler.core.future import RequestFuture
from scheduler.core.intake import Intake
from scheduler.core.nested.nesting import InnerFuture, Nesting
from scheduler.core.nested.opening import Opening
from scheduler.core.nested.resting import Resting
from scheduler.core.steady import Steady, is_running, raise_in
from scheduler.core.tally import Tally
from scheduler.core.tries import Tries
from scheduler.errors import (
    CallFailed,
    KeyConflict,
    RateLimited,
    SchedulerClosed,
    SchedulerError,
    StoreError,
)
from scheduler.guards.hooks import as_ours
from scheduler.guards.plain import logger_of
from scheduler.limits.retry import Retry
from scheduler.providers.base import Provider
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stores.base import (
    Claimed,
    NewRequest,
    Outcome,
    Settlement,
    Store,
    Submitted,
    Turn,
    TurnResult,
)

logger = logger_of("scheduler.pump")

Batch = tuple[list[NewRequest], asyncio.Future[list[Submitted]]]


class Pump:
    """Moves requests through a store; see the module. Used by `Scheduler` alone."""

    def __init__(
        self, store: Store, intake: Intake, retry: Retry, clock: Clock,
        announcer: events.Announcer, concurrency: int, poll_s: float,
    ) -> None:  # fmt: skip
        self.store, self.announcer = store, announcer
        self.tally = Tally()
        self.broken: BaseException | None = None  # the store failed: nothing more is sent
        # Called with the reservation when an outcome is unknown.
        self.suspended: Callable[[int, tuple[int, int] | None], None] = lambda lost, told: None
        self.is_closed = False
        self._intake, self._clock, self._poll_s = intake, clock, poll_s
        self._loop = asyncio.get_running_loop()
        # What waits for the next transaction; written by callers between the pump's steps.
        self._inbox: list[tuple[NewRequest, RequestFuture]] = []
        self._batches: list[Batch] = []
        self._ended: list[Attempt] = []
        self._cancels: list[int] = []
        self._amends: list[tuple[int, NewRequest]] = []
        # What is under way; written by the pump.
        self._signal = asyncio.Event()
        self._waiters = Waiters()
        self._twins = Twins(store, intake, self._waiters, self._signal.set)
        self._elsewhere = Elsewhere(
            store, self._waiters, self._prepare_again, self._submit_all_again, self._queue
        )
        self._tries = Tries()
        self._unsent = Unsent(
            store, intake, self._waiters, self._twins, self._tries, self.tally, announcer,
            self._submit_again, self._amend, self._cancel,
        )  # fmt: skip
        self._notices = Notices(store.gates.closed_since)
        self._most = concurrency
        self._flight = Flight(
            store, intake, retry, clock, self._tries, intake.concurrency(concurrency), self._landed
        )
        self._nesting = Nesting(
            store, self._flight.calls, self._waiters, self._elsewhere, self.wake
        )
        self._resting = Resting(self._flight, store, self.wake)
        self.streams = self._resting.add  # for futures
        self._alarm = Alarm(self._loop, clock, self._signal.set)
        self._tasks: list[Steady] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._turning = False  # a transaction is under way
        self._opening = Opening()
        self._told_to_end = asyncio.Event()
        self._drain_timer: asyncio.TimerHandle | None = None
        self._was_lost = False  # others took this process for dead: some keys may be theirs

    # From outside

    def start(self, let_go: Callable[[], Awaitable[None]], cancelled: Callable[[], None]) -> Steady:
        """Begin to move requests.

        Args:
            let_go: Called when nothing moves any more.
            cancelled: Called when somebody cancels the pump, as a program does that ends: from
                then on it is to end, too.
        """
        self.announcer.on_exit = partial(raise_in, self._loop)
        self._tasks = [Steady(self._live(let_go), cancelled, self._loop, "scheduler pump")]
        if self.store.is_shared:
            self._tasks.append(Steady(self._poll(), cancelled, self._loop, "scheduler poll"))
        return self._tasks[0]

    def submit(self, new: NewRequest) -> RequestFuture:
        """Queue a request in the next transaction; its call runs in the context that is now."""
        new.is_kept = True
        caller = caller_of_one_more(self.store)
        if caller is None:
            future = RequestFuture(new.request, new.lane, self, self._loop)
        else:
            future = self._nesting.begin(new, caller, self)
        future.context = copy_context()
        if new.expires_at_ms is not None:
            future.expires_at_ms, future.since_ms = new.expires_at_ms, self._clock.now_ms()
        self._queue(new, future)
        return future

    async def enqueue(self, batch: list[NewRequest]) -> list[Submitted]:
        """Queue requests without futures; returns when they are stored."""
        done: asyncio.Future[list[Submitted]] = self._loop.create_future()
        self._batches.append((batch, done))
        self.tally.waiting += len(batch)
        self._signal.set()
        return await asyncio.shield(done)

    def add(self, provider: Provider) -> None:
        """There is one provider more."""
        self._flight.slots |= self._intake.concurrency(self._most, provider)

    def wake(self) -> None:
        """Something changed: take a turn."""
        self._signal.set()

    def resolved(self, settlements: Iterable[Settlement]) -> None:
        """These outcomes are unknown no more, so what they held may let others go on."""
        tally = self.tally
        for each in settlements:
            held_nusd = tally.suspended.pop(each.reservation_id, None)
            if held_nusd is not None:
                tally.suspense_nusd -= held_nusd
                tally.posted_nusd += each.nusd
        self._signal.set()

    def tasks(self) -> Iterator[asyncio.Task[None]]:
        """All its tasks, those of the calls too."""
        yield from self._tasks
        yield from self._flight.tasks()

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._flight.calls)

    @property
    def is_calling(self) -> bool:
        """Whether a transaction or calls are under way, or have ended and are not settled yet."""
        return self.broken is None and bool(self._turning or self._flight.calls or self._ended)

    @property
    def lets_finish(self) -> bool:
        """Whether calls under way may finish, and what they wait for is started."""
        return self._opening.lets_finish

    def stop_admitting(self, provider: str | None = None) -> None:
        """Start nothing new, or nothing at one provider."""
        if provider is None:
            self._opening.admits = False
        else:
            self._opening.stopped.add(provider)
        self._signal.set()

    def cancel_running(self) -> None:
        """End all calls under way; their requests stay queued."""
        self._opening.close(lets_finish=False)
        self._flight.interrupt()

    def let_flow(self) -> None:
        """Have no call wait for whoever reads its stream: there will be no other time for it."""
        for request_id in self._flight.calls:
            for future in self._waiters.of(request_id):
                if future.let_flow is not None:
                    future.let_flow()

    async def turned(self) -> None:
        """Wait for the next transaction to be acted on."""
        if self.is_closed or self.broken is not None:
            return
        waiter = self._loop.create_future()
        self._idle_waiters.append(waiter)
        await waiter

    def end(self, *, within_s: float = 0.0) -> None:
        """Admit nothing more, end what runs, settle it, and come to an end.

        Args:
            within_s: How long what runs may take to finish by itself.
        """
        self._opening.close(lets_finish=within_s > 0)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        if within_s > 0:
            self.let_flow()
            if within_s < math.inf:
                self._drain_timer = self._loop.call_later(within_s, self.cancel_running)
        else:
            self.cancel_running()
        self._told_to_end.set()
        self._signal.set()

    # The loop

    async def _live(self, let_go: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._move()
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and not is_running(self._tasks[0]):
                raise  # its loop was thrown away
            if isinstance(exc, asyncio.CancelledError) and self._tasks[0].cancelling():
                self._fail_waiting(SchedulerClosed())
                raise
            calls = self._break(exc)
            await self._told_to_end.wait()
            if calls:
                await asyncio.wait(calls, timeout=STUBBORN_S)
        for task in self._tasks[1:]:
            task.tear()
        self._resting.stop()
        self._alarm.set(None)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        self.is_closed = True
        self._fail_waiting(SchedulerClosed())
        await let_go()

    async def _move(self) -> None:
        """Take turns until it is told to end, and nothing runs and everything is settled."""
        while self.is_calling or not self._told_to_end.is_set():
            await self._signal.wait()
            self._signal.clear()
            if self.is_calling or not self._told_to_end.is_set():
                self._turning = True
                await self._turn()
                self._turning = False

    def _break(self, exc: BaseException) -> list[asyncio.Task[None]]:
        """Go no further: what the store holds may differ from what this process believes.

        Returns:
            The calls that are still under way, and were cancelled.
        """
        logger.error("the store failed; nothing more is sent: %s", exc)
        self.broken = exc
        calls = self._flight.drop()
        error = exc if isinstance(exc, StoreError) else StoreError(f"the pump failed: {exc!r}")
        error.__cause__ = exc if error is not exc else exc.__cause__
        self._fail_waiting(error)
        if isinstance(exc, KeyboardInterrupt | SystemExit):
            raise_in(self._loop, exc)
        return calls

    async def _turn(self) -> None:
        now_ms, began_s = self._clock.now_ms(), self._loop.time()
        for request_id, holder in self._twins.late(now_ms):
            if request_id not in self._flight.calls:
                self._unsent.give_up(request_id, holder, now_ms)
        if self._nesting:
            self._nesting.pass_on()
        inbox, self._inbox = self._still_wanted(), []
        batches, self._batches = self._batches, []
        ended, self._ended = self._ended, []
        # The key may have been submitted again since its caller lost interest.
        cancels = [each for each in self._cancels if not self._waiters.is_wanted(each)]
        self._cancels = []
        amends, self._amends = [*self._amends, *self._twins.amends()], []
        if self._nesting:
            for request_id, new in amends:
                self._nesting.amended(request_id, new)
        submit = [new for new, _ in inbox]
        for batch, _ in batches:
            submit += batch
        turn = Turn(
            now_ms, [each.settlement for each in ended], amends, submit, cancels,
            self._opening.room(self._flight.slots, bool(self._nesting)), self._twins.holds,
            self._nesting.take_lends(),
        )  # fmt: skip
        if turn.slots is None and self._nesting and self._opening.lets_finish:
            self._signal.set()  # in the next one they get room
        try:
            result = await self.store.turn(turn)
        except BaseException:
            # Put back what was taken, so that closing can tell its futures.
            self._inbox = inbox + self._inbox
            self._batches = batches + self._batches
            raise
        if result.lease_ms is not None:
            self._flight.lease_until_s = began_s + result.lease_ms / 1000
        self._was_lost = self._was_lost or result.was_lost
        for request_id, new in amends:
            for future in self._waiters.of(request_id):
                future.lane = new.lane
        self._apply(now_ms, inbox, batches, ended, cancels, result)

    def _still_wanted(self) -> list[tuple[NewRequest, RequestFuture]]:
        """The inbox without what was cancelled before it was even stored."""
        wanted = [(new, future) for new, future in self._inbox if not future.cancelled()]
        for _ in range(len(self._inbox) - len(wanted)):
            self.tally.end_waiting(RequestState.CANCELLED)
        return wanted

    def _apply(
        self, now_ms: int, inbox: list[tuple[NewRequest, RequestFuture]], batches: list[Batch],
        ended: list[Attempt], cancels: list[int], result: TurnResult,
    ) -> None:  # fmt: skip
        # In the store's order: a key may be cancelled and submitted anew in one turn.
        for each in ended:
            self._settled(each, result.superseded.get(each.settlement.reservation_id), now_ms)
        for request_id, is_cancelled in zip(cancels, result.cancelled, strict=True):
            if is_cancelled:
                self.tally.end_waiting(RequestState.CANCELLED)
                self._tries.forget(request_id)
                self._waiters.take(request_id)
        for finished in result.answered:
            self._tries.forget(finished.id)
            self._waiters.finish(finished)
        position = len(inbox)
        for (new, future), submitted in zip(inbox, result.submitted, strict=False):
            self._submitted(new, future, submitted)
        for batch, done in batches:
            answers = result.submitted[position : position + len(batch)]
            position += len(batch)
            for new, submitted in zip(batch, answers, strict=True):
                self._enqueued(new, submitted)
            if not done.done():
                done.set_result(answers)
        for refused in result.refused:
            self._unsent.refused(refused)
        for expired in result.expired:
            self._unsent.expired(expired, now_ms)
        self._tell(result, now_ms)
        for claimed in result.claimed:
            self._start(claimed, now_ms)
        self._free_the_stuck(now_ms)
        self._resting.rest(self._nesting.parked())
        instants = (result.look_again_at_ms, self._twins.due_ms)
        self._alarm.set(min((each for each in instants if each is not None), default=None))
        if result.waiting is not None:
            arrived = len(self._inbox) + sum(len(batch) for batch, _ in self._batches)
            self.tally.waiting = result.waiting + arrived
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _enqueued(self, new: NewRequest, submitted: Submitted) -> None:
        if submitted.is_known:
            self.tally.waiting -= 1
        held = submitted.held
        if held is not None and not submitted.is_conflict:
            self._twins.note_enqueued(submitted.id, held)
            terms = terms_of(new, self._clock.now_ms())
            self._twins.join(submitted.id, Enqueued(new.request, held.lane, terms))

    def _submitted(self, new: NewRequest, future: RequestFuture, submitted: Submitted) -> None:
        if submitted.is_known:
            self.tally.waiting -= 1
        future.request_id = request_id = submitted.id
        if submitted.is_conflict:
            assert new.request.key is not None
            future.fail(KeyConflict(new.request.key, new.request.job))
        elif submitted.finished is not None:
            future.finish(submitted.finished)
        else:
            if submitted.is_elsewhere:
                self._waiters.add(request_id, future)
                self._elsewhere.add(request_id, new, future)
            elif submitted.held is not None:
                self._twins.note_enqueued(request_id, submitted.held)
                self._twins.join(request_id, future)
                future.lane = submitted.held.lane
                future.is_running = request_id in self._flight.calls
            else:
                self._waiters.add(request_id, future)
                future.lane, future.is_running = new.lane, False
            if future.cancelled():
                self.cancelled(future)
        if isinstance(future, InnerFuture) and not future.done():
            self._nesting.submitted(future, submitted)

    def _start(self, claimed: Claimed, now_ms: int) -> None:
        tally = self.tally
        tally.waiting -= 1
        tally.reserved_nusd += claimed.ceiling_nusd
        futures = self._waiters.of(claimed.request_id)
        if claimed.request_id in self._flight.calls:
            # Others took this process for dead and queued again what it is still sending.
            not_before_ms = self._clock.now_ms() + self.store.lease_ms
            self._flight.hand_back(claimed, RequestState.QUEUED, not_before_ms)
            return
        if self._opening.gives_back and not self._opening.takes(futures):
            self._flight.hand_back(claimed, RequestState.QUEUED)
            return
        if self._is_given_up(claimed.request_id, futures):
            self._flight.hand_back(claimed, RequestState.CANCELLED)
            return
        request = claimed.request
        for future in futures:
            future.is_running = True
        self._flight.start(
            claimed, partial(self._sender_of, claimed.request_id), context_of(futures)
        )
        if self.announcer.hears(events.Admitted):
            self.announcer.emit(
                events.Admitted(
                    now_ms, claimed.request_id, request.key, request.job, claimed.attempt,
                    claimed.ceiling_nusd, claimed.parked_ms,
                )
            )  # fmt: skip

    def _is_given_up(self, request_id: int, futures: Sequence[RequestFuture]) -> bool:
        if futures and not futures[0].done():
            return False
        return request_id in self._waiters and not self._waiters.is_wanted(request_id)

    def _landed(self, ended: Attempt) -> None:
        """A call has ended, or was given back unsent."""
        self._ended.append(ended)
        self._signal.set()

    def _sender_of(self, request_id: int, provider: Provider) -> Sender:
        """Who makes the call: whoever submitted it, if they said so, else its provider."""
        for future in self._waiters.of(request_id):
            if future.done():
                continue
            if future.send is not None:
                return Sender(future.send, True, future.most_attempts)
            if future.emit is not None:
                return Sender(partial(provider.stream, emit=future.emit))
        return Sender(provider.send)

    def _settled(self, ended: Attempt, lives_on: bool | None, now_ms: int) -> None:
        """An attempt is settled; `lives_on`: others took its request, which still waits or not."""
        claimed, settlement = ended.claimed, ended.settlement
        if ended.is_sent:
            self._flight.calls.pop(claimed.request_id, None)
        tally = self.tally
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
        if lives_on is not None:
            self._follow_elsewhere(ended, lives_on)
        elif settlement.state is RequestState.QUEUED:
            tally.waiting += 1
            self._note(ended, now_ms)
            for future in self._waiters.of(claimed.request_id):
                future.is_running = False
                if future.cancelled():
                    self._cancel(claimed.request_id)
            for holder in self._twins.late_of(claimed.request_id, now_ms):
                self._unsent.give_up(claimed.request_id, holder, now_ms)
        else:
            tally.ended[settlement.state] += 1
            self._tries.forget(claimed.request_id)
            self._resolve(ended)
        if self.announcer.hears(events.Settled):
            provider = self._flight.provider_of(claimed)
            self.announcer.emit(settled(ended, now_ms, provider, lives_on is not None))

    def _note(self, ended: Attempt, now_ms: int) -> None:
        """Remember, for as long as its request waits for another, what became of an attempt."""
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
        for future in self._waiters.of(request_id):
            future.is_running = False
        if ended.claimed.request.key is not None:
            self._submit_all_again(request_id)
        elif not lives_on:  # without a key nobody else can answer it
            if ended.settlement.state is RequestState.QUEUED:
                self._submit_all_again(request_id)
            else:
                self._resolve(ended)

    def _submit_all_again(self, request_id: int) -> None:
        for future in self._waiters.take(request_id):
            if not future.done():
                self._submit_again(future)

    def _resolve(self, ended: Attempt) -> None:
        for future in self._waiters.take(ended.claimed.request_id):
            if future.done():
                continue
            if ended.response is not None:
                future.answer(ended.response)
            elif ended.error is not None:
                future.set_exception(ended.error)
            else:
                self._submit_again(future)  # who cancelled it was somebody else

    def _submit_again(self, holder: Holder) -> None:
        future = holder if isinstance(holder, RequestFuture) else self._stand_in(holder)
        try:
            new = self._prepare_again(future)
        except Exception as exc:
            future.fail(as_ours(exc))
            return
        self._queue(new, future)

    def _stand_in(self, enqueued: Enqueued) -> RequestFuture:
        """A future in place of somebody who has none; nobody looks at it."""
        future = RequestFuture(enqueued.request, None, self, self._loop, enqueued.terms)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _amend(self, request_id: int, new: NewRequest) -> None:
        self._amends.append((request_id, new))
        self._signal.set()

    def _cancel(self, request_id: int) -> None:
        self._cancels.append(request_id)
        self._signal.set()

    def _prepare_again(self, future: RequestFuture) -> NewRequest:
        """Its request on its own terms: it has waited since it was first submitted."""
        new = self._intake.prepare(future.request, future.terms.on_exceeded)
        self.store.prepare(new)
        new.is_kept, new.expires_at_ms = True, future.terms.expires_at_ms
        return new

    def _queue(self, new: NewRequest, future: RequestFuture) -> None:
        if isinstance(future, InnerFuture):
            self._nesting.place(future, new)
        self._inbox.append((new, future))
        self.tally.waiting += 1
        self._signal.set()

    def _fail(self, request_id: int, error: SchedulerError) -> None:
        for future in self._waiters.take(request_id):
            future.fail(error)

    def _free_the_stuck(self, now_ms: int) -> None:
        """End the newest inner request that would wait for ever, if there is one."""
        stuck = self._nesting.stuck(now_ms)
        if stuck is not None:
            self._end_inner(*stuck)
        if self._opening.stopped and self._nesting:
            for future in self._nesting.waiting_for(self._opening.stopped):
                self._end_inner(future, SchedulerClosed("nothing more is sent to its provider"))

    def _end_inner(self, future: InnerFuture, error: SchedulerError) -> None:
        request_id = future.request_id
        assert request_id is not None
        future.fail(self._tries.left(request_id, error, "it would never be sent"))
        if self._waiters.is_wanted(request_id):  # by others, who may wait
            self._twins.leave(request_id)
        elif request_id not in self._flight.calls:
            self._waiters.take(request_id)
            self._tries.forget(request_id)
            self._cancel(request_id)

    def _tell(self, result: TurnResult, now_ms: int) -> None:
        for each in result.crossings:
            self.announcer.emit(
                events.ThresholdCrossed(
                    now_ms, each.budget, str(each.cap), each.percent, each.posted, each.limit,
                    each.resets_at_ms,
                )
            )  # fmt: skip
        if result.lanes:
            started = {each.request.model for each in result.claimed}
            self._notices.tell(result.lanes, started, now_ms)
        for lane in result.lanes:
            provider, budgets = lane.key.provider, lane.key.budgets
            if lane.shortfall is not None:
                self.announcer.emit(events.Parked(now_ms, lane.shortfall, lane.waiting, provider))
            else:
                names = tuple(self._intake.book.name(each) for each in budgets)
                self.announcer.emit(events.Unparked(now_ms, lane.waiting, provider, names))

    def why_parked(self, lane: LaneKey) -> Shortfall | None:
        """Why a lane is shut; for futures."""
        return self.store.shortfall(lane)

    def notice(self, lack: Shortfall) -> str:
        """Why a request is parked, and what to do, in words; for futures."""
        return sentence(lack, self._clock.now_ms())

    def awaited(self, future: RequestFuture) -> None:
        """A call under way waits for a request made within it."""
        if future.parked is not None or future.is_running:
            self._signal.set()

    def cancelled(self, future: RequestFuture) -> None:
        """A caller cancelled a future: remove the request, or end the call."""
        request_id = future.request_id
        if request_id is None:
            return  # still in the inbox: seen when it was submitted
        if self._waiters.is_wanted(request_id):  # by somebody else
            self._twins.leave(request_id)
            return
        if request_id in self._elsewhere:  # not ours to cancel
            self._elsewhere.forget(request_id)
            self._waiters.take(request_id)
        elif request_id in self._flight.calls:
            self._flight.cancel(request_id)
        else:
            self._cancel(request_id)

    async def _poll(self) -> None:
        """Notice what other processes changed; keep the lease while there is work."""
        try:
            await self._look_around()
        except (KeyboardInterrupt, SystemExit):
            self._tasks[1].cancel()  # nobody would keep the lease any more
            raise

    async def _look_around(self) -> None:
        renewed_s = self._loop.time()
        while True:
            await asyncio.sleep(self._poll_s)
            due = self._loop.time() - renewed_s > self.store.lease_ms / 3000
            if not (self.tally.waiting or self._elsewhere or self._was_lost or due):
                continue
            renewed_s = self._loop.time() if due else renewed_s
            try:
                if self._was_lost:
                    self._was_lost = False
                    calls = self._flight.calls
                    waiting = [each for each in self._waiters.ids() if each not in calls]
                    await self._elsewhere.look_what_was_taken(waiting)
                now_ms = self._clock.now_ms()  # first: changes may never end
                await self._elsewhere.follow(now_ms, partial(self._unsent.give_up, now_ms=now_ms))
                if await self.store.changed(now_ms):
                    self._signal.set()
                    await follow(self.store, self._intake.book, self._clock.now_ms())
                    await self._elsewhere.look()
            except Exception as exc:
                logger.warning("cannot look for changes by other processes: %s", exc)

    def _fail_waiting(self, error: SchedulerError) -> None:
        for request_id in self._waiters.ids():
            self._fail(request_id, self._tries.ended(request_id, error, "the scheduler was closed"))
        for _, future in self._inbox:
            future.fail(error)
        for _, done in self._batches:
            if not done.done():
                done.set_exception(error)
        for waiter in self._idle_waiters:
            if not waiter.done():
                waiter.set_result(None)
