"""The one task that owns every change of state.

It gathers what waits (submissions, ends of calls, cancellations), has the store do
all of it and the next claim in one transaction, and acts on the answer: it starts
calls and resolves futures only when that is committed. While a transaction is under
way the next one gathers, so a slow disk makes bigger transactions, not more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial

from scheduler import events
from scheduler.admission import LaneKey, Shortfall
from scheduler.calls import Attempt, UnderWay, attempt, unsent
from scheduler.clock import Clock
from scheduler.errors import (
    DeadlineExceeded,
    KeyConflict,
    SchedulerClosed,
    SchedulerError,
    StoreError,
)
from scheduler.future import RequestFuture
from scheduler.intake import Intake
from scheduler.providers.base import Provider, Send
from scheduler.request import RequestState
from scheduler.retry import Retry
from scheduler.stores.base import (
    Claimed,
    ExpiredRequest,
    NewRequest,
    Outcome,
    Refused,
    Settlement,
    Store,
    Submitted,
    Turn,
    TurnResult,
)

logger = logging.getLogger("scheduler.pump")

# The computer's clock may be set, or the computer put to sleep, while we wait.
LONGEST_TIMER_S = 30.0

Batch = tuple[list[NewRequest], asyncio.Future[list[Submitted]]]


class Tally:
    """Sums of this process since it opened."""

    __slots__ = (
        "ended",
        "overruns",
        "posted_nusd",
        "reserved_nusd",
        "suspended",
        "suspense_nusd",
        "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.waiting = self.posted_nusd = self.reserved_nusd = self.suspense_nusd = 0
        self.overruns = 0
        self.suspended: dict[int, int] = {}  # reservations of unknown outcome → what they hold
        self.ended: Counter[RequestState] = Counter()

    def end_waiting(self, state: RequestState) -> None:
        """A request that waited has ended unsent."""
        self.waiting -= 1
        self.ended[state] += 1


class Pump:
    """Moves requests through a store; see the module. Used by `Scheduler` alone."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        retry: Retry,
        clock: Clock,
        announcer: events.Announcer,
        concurrency: int,
        poll_s: float,
    ) -> None:
        self.store, self.announcer = store, announcer
        self.tally = Tally()
        self.broken: BaseException | None = None  # the store failed: nothing more is sent
        # Called with the reservation when an outcome is unknown.
        self.suspended: Callable[[int], None] = lambda reservation_id: None
        self.is_closed = False
        self._intake, self._retry, self._clock, self._poll_s = intake, retry, clock, poll_s
        self._loop = asyncio.get_running_loop()
        # What waits for the next transaction; written by callers between the pump's steps.
        self._inbox: list[tuple[NewRequest, RequestFuture]] = []
        self._batches: list[Batch] = []
        self._ended: list[Attempt] = []
        self._cancels: list[int] = []
        self._amends: list[tuple[int, NewRequest]] = []
        # What is under way; written by the pump.
        self._futures: dict[int, RequestFuture] = {}
        self._twins: dict[int, list[RequestFuture]] = {}  # more futures of one key
        self._elsewhere: dict[int, NewRequest] = {}  # requests that another process runs
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._unsent: dict[int, Claimed] = {}  # calls whose task has not begun
        self._most, self._slots = concurrency, intake.concurrency(concurrency)
        self._signal = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._turning = False  # a transaction is under way
        self._admits = True
        self._stopped: set[str] = set()  # providers to which nothing more goes
        self._gives_back = False  # calls that are cancelled go back to the queue
        self._lease_until_s: float | None = None  # on the loop's clock; None: no lease
        self._was_lost = False  # others took this process for dead: some keys may be theirs

    # From outside

    def start(self) -> None:
        """Begin to move requests."""
        self._tasks = [self._loop.create_task(self._run(), name="scheduler pump")]
        if self.store.is_shared:
            self._tasks.append(self._loop.create_task(self._poll(), name="scheduler poll"))

    def submit(self, new: NewRequest) -> RequestFuture:
        """Queue a request in the next transaction."""
        new.is_kept = True
        future = RequestFuture(new.request, new.lane, self, self._loop)
        self._inbox.append((new, future))
        self.tally.waiting += 1
        self._signal.set()
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
        self._slots |= self._intake.concurrency(self._most, provider)

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

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._calls)

    @property
    def is_calling(self) -> bool:
        """Whether a transaction or calls are under way, or have ended and are not settled yet."""
        return self.broken is None and bool(self._turning or self._calls or self._ended)

    def stop_admitting(self, provider: str | None = None) -> None:
        """Start nothing new, or nothing at one provider."""
        if provider is None:
            self._admits = False
        else:
            self._stopped.add(provider)

    def cancel_running(self) -> None:
        """End all calls under way; their requests stay queued."""
        self._admits, self._gives_back = False, True
        for request_id in list(self._calls):
            self._cancel_call(request_id)

    async def turned(self) -> None:
        """Wait for the next transaction to be acted on."""
        waiter = self._loop.create_future()
        self._idle_waiters.append(waiter)
        await waiter

    async def aclose(self, *, drain: bool, error: SchedulerError) -> None:
        """End what runs (or let it finish) and settle it; futures left get `error`."""
        self._admits, self._gives_back = False, True
        if not drain:
            self.cancel_running()
        while self.is_calling:
            await self.turned()
        for task in self._tasks:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self.is_closed = True
        self._fail_waiting(error)

    # The loop

    async def _run(self) -> None:
        try:
            while True:
                await self._signal.wait()
                self._signal.clear()
                self._turning = True
                await self._turn()
                self._turning = False
        except asyncio.CancelledError:  # closed, or its loop ends without closing it
            self._fail_waiting(SchedulerClosed())
            raise
        except GeneratorExit:
            raise  # its loop was thrown away
        except BaseException as exc:
            # What the store holds may differ from what this process believes: go no further.
            logger.error("the store failed; nothing more is sent: %s", exc)
            self.broken = exc
            for task in self._calls.values():
                task.cancel()
            self._calls.clear()
            error = exc if isinstance(exc, StoreError) else StoreError(f"the pump failed: {exc!r}")
            error.__cause__ = exc if error is not exc else exc.__cause__
            self._fail_waiting(error)

    async def _turn(self) -> None:
        now_ms, began_s = self._clock.now_ms(), self._loop.time()
        inbox, self._inbox = self._still_wanted(), []
        batches, self._batches = self._batches, []
        ended, self._ended = self._ended, []
        # The key may have been submitted again since its caller lost interest.
        cancels = [each for each in self._cancels if not self._is_wanted(each)]
        self._cancels = []
        amends, self._amends = self._amends, []
        submit = [new for new, _ in inbox]
        for batch, _ in batches:
            submit += batch
        turn = Turn(
            now_ms, [each.settlement for each in ended], amends, submit, cancels,
            self._open_slots() if self._admits else None,
        )  # fmt: skip
        try:
            result = await self.store.turn(turn)
        except BaseException:
            # Put back what was taken, so that closing can tell its futures.
            self._inbox = inbox + self._inbox
            self._batches = batches + self._batches
            raise
        if result.lease_ms is not None:
            self._lease_until_s = began_s + result.lease_ms / 1000
        self._was_lost = self._was_lost or result.was_lost
        self._apply(now_ms, inbox, batches, ended, cancels, result)

    def _still_wanted(self) -> list[tuple[NewRequest, RequestFuture]]:
        """The inbox without what was cancelled before it was even stored."""
        wanted = [(new, future) for new, future in self._inbox if not future.cancelled()]
        for _ in range(len(self._inbox) - len(wanted)):
            self.tally.end_waiting(RequestState.CANCELLED)
        return wanted

    def _open_slots(self) -> dict[str, int]:
        return self._slots if not self._stopped else self._slots | dict.fromkeys(self._stopped, 0)

    def _apply(
        self,
        now_ms: int,
        inbox: list[tuple[NewRequest, RequestFuture]],
        batches: list[Batch],
        ended: list[Attempt],
        cancels: list[int],
        result: TurnResult,
    ) -> None:
        # In the store's order: a key may be cancelled and submitted anew in one turn.
        for each in ended:
            self._settled(each, result.superseded.get(each.settlement.reservation_id), now_ms)
        for request_id, is_cancelled in zip(cancels, result.cancelled, strict=True):
            if is_cancelled:
                self.tally.end_waiting(RequestState.CANCELLED)
                self._take_futures(request_id)
        position = len(inbox)
        for (new, future), submitted in zip(inbox, result.submitted, strict=False):
            self._submitted(new, future, submitted)
        for batch, done in batches:
            answers = result.submitted[position : position + len(batch)]
            position += len(batch)
            for new, submitted in zip(batch, answers, strict=True):
                self._submitted(new, None, submitted)
            if not done.done():
                done.set_result(answers)
        for refused in result.refused:
            self._refused(refused)
        for expired in result.expired:
            self._expired(expired, now_ms)
        self._tell(result, now_ms)
        for claimed in result.claimed:
            self._start(claimed, now_ms)
        self._set_timer(result.look_again_at_ms)
        if result.waiting is not None:
            arrived = len(self._inbox) + sum(len(batch) for batch, _ in self._batches)
            self.tally.waiting = result.waiting + arrived
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _submitted(
        self, new: NewRequest, future: RequestFuture | None, submitted: Submitted
    ) -> None:
        if submitted.is_known:
            self.tally.waiting -= 1
        if future is None:
            return
        future.request_id = request_id = submitted.id
        if submitted.is_conflict:
            assert new.request.key is not None
            future.fail(KeyConflict(new.request.key, new.request.job))
        elif submitted.finished is not None:
            future.finish(submitted.finished)
        elif request_id in self._futures:
            future.is_running = request_id in self._calls
            self._twins.setdefault(request_id, []).append(future)
        else:
            self._futures[request_id] = future
            if submitted.is_elsewhere:
                self._elsewhere[request_id] = new
            if future.cancelled():
                self.cancelled(future)

    def _waiting_for(self, request_id: int) -> Sequence[RequestFuture]:
        """Everybody who waits for a request."""
        future = self._futures.get(request_id)
        if future is None:
            return ()
        return (future, *self._twins.get(request_id, ())) if self._twins else (future,)

    def _is_wanted(self, request_id: int) -> bool:
        return any(not future.cancelled() for future in self._waiting_for(request_id))

    def _take_futures(self, request_id: int) -> Sequence[RequestFuture]:
        """As `_waiting_for`, and forget them."""
        future = self._futures.pop(request_id, None)
        if future is None:
            return ()
        return (future, *self._twins.pop(request_id, ())) if self._twins else (future,)

    def _start(self, claimed: Claimed, now_ms: int) -> None:
        tally = self.tally
        tally.waiting -= 1
        tally.reserved_nusd += claimed.ceiling_nusd
        futures = self._waiting_for(claimed.request_id)
        if claimed.request_id in self._calls:
            # Others took this process for dead and queued again what it is still sending.
            not_before_ms = self._clock.now_ms() + self.store.lease_ms
            self._hand_back(claimed, RequestState.QUEUED, not_before_ms)
            return
        if self._gives_back:
            self._hand_back(claimed, RequestState.QUEUED)
            return
        if futures and all(future.cancelled() for future in futures):
            self._hand_back(claimed, RequestState.CANCELLED)
            return
        request, name = claimed.request, self._provider_of(claimed)
        self._slots[name] -= 1
        for future in futures:
            future.is_running = True
        self._unsent[claimed.request_id] = claimed
        self._calls[claimed.request_id] = self._loop.create_task(
            self._call(name, claimed), context=self._context_of(futures)
        )
        if self.announcer.hears(events.Admitted):
            self.announcer.emit(
                events.Admitted(
                    now_ms, claimed.request_id, request.key, request.job, claimed.attempt,
                    claimed.ceiling_nusd, claimed.parked_ms,
                )
            )  # fmt: skip

    def _provider_of(self, claimed: Claimed) -> str:
        return claimed.request.provider or self._intake.default_provider

    def _hand_back(
        self, claimed: Claimed, state: RequestState, not_before_ms: int | None = None
    ) -> None:
        """Undo a claim of which nothing was sent."""
        settlement = Settlement(
            claimed.reservation_id, claimed.request_id, Outcome.VOID, state,
            not_before_ms=not_before_ms, is_attempt=False,
            report=unsent(claimed, self._provider_of(claimed), self._clock.now_ms()),
        )  # fmt: skip
        self._ended.append(Attempt(claimed, settlement, is_sent=False))
        self._signal.set()

    async def _call(self, name: str, claimed: Claimed) -> None:
        if self._lease_until_s is not None and self._loop.time() > self._lease_until_s:
            # This process stood still for so long that others may have sent it meanwhile.
            self._take_back(claimed, RequestState.QUEUED)
            return
        del self._unsent[claimed.request_id]
        provider = self._intake.providers[name]
        retry = provider.retry or self._retry
        with UnderWay(self.store):
            ended = await attempt(
                name, self._intake.tariff(provider), claimed, retry, self._clock.now_ms,
                self._sender_of(claimed.request_id, provider),
            )  # fmt: skip
        if ended.settlement.state is RequestState.CANCELLED and self._gives_back:
            # Not the caller's wish: it is the next run's work.
            ended.settlement.state = RequestState.QUEUED
        self._slots[name] += 1
        self._ended.append(ended)
        self._signal.set()

    def _sender_of(self, request_id: int, provider: Provider) -> Send:
        """Who makes the call: whoever submitted it, if they said so, else its provider."""
        for future in self._waiting_for(request_id):
            if future.send is not None:
                return future.send
            if future.emit is not None:
                return partial(provider.stream, emit=future.emit)
        return provider.send

    def _context_of(self, futures: Sequence[RequestFuture]) -> Context | None:
        """Where a call runs: in its caller's context, if they make it themselves."""
        found = (future.context for future in futures if future.context is not None)
        context = next(found, None)
        return None if context is None else context.copy()

    def _settled(self, ended: Attempt, lives_on: bool | None, now_ms: int) -> None:
        """An attempt is settled; `lives_on`: others took its request, which still waits or not."""
        claimed, settlement = ended.claimed, ended.settlement
        if ended.is_sent:
            self._calls.pop(claimed.request_id, None)
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
            self.suspended(claimed.reservation_id)
        if lives_on is not None:
            self._follow_elsewhere(ended, lives_on)
        elif settlement.state is RequestState.QUEUED:
            tally.waiting += 1
            for future in self._waiting_for(claimed.request_id):
                future.is_running = False
                if future.cancelled():
                    self._cancels.append(claimed.request_id)
                    self._signal.set()
        else:
            tally.ended[settlement.state] += 1
            self._resolve(ended)
        if self.announcer.hears(events.Settled):
            self.announcer.emit(_event(ended, now_ms, self._provider_of(claimed), lives_on))

    def _follow_elsewhere(self, ended: Attempt, lives_on: bool) -> None:
        """A call has ended that others had given up for lost: its request went its own way."""
        request_id = ended.claimed.request_id
        for future in self._waiting_for(request_id):
            future.is_running = False
        if ended.claimed.request.key is not None:
            self._submit_all_again(request_id)
        elif not lives_on:  # without a key nobody else can answer it
            if ended.settlement.state is RequestState.QUEUED:
                self._submit_all_again(request_id)
            else:
                self._resolve(ended)

    def _submit_all_again(self, request_id: int) -> None:
        for future in self._take_futures(request_id):
            if not future.done():
                self._submit_again(future)

    def _resolve(self, ended: Attempt) -> None:
        for future in self._take_futures(ended.claimed.request_id):
            if future.done():
                continue
            if ended.response is not None:
                future.set_result(ended.response)
            elif ended.error is not None:
                future.set_exception(ended.error)
            else:
                self._submit_again(future)  # who cancelled it was somebody else

    def _submit_again(self, future: RequestFuture) -> None:
        try:
            may_wait = future.lane is None or future.lane.may_wait
            new = self._intake.prepare(future.request, "wait" if may_wait else "raise")
            self.store.prepare(new)
        except SchedulerError as error:
            future.fail(error)
            return
        new.is_kept = True
        self._inbox.append((new, future))
        self.tally.waiting += 1
        self._signal.set()

    def _refused(self, refused: Refused) -> None:
        """It does not fit and may not wait: ask another model, if the user said so."""
        if refused.request.fallback:
            try:
                new = self._intake.prepare_instead(refused.request, refused.lack)
                self.store.prepare(new)
            except SchedulerError as exc:  # its price or budget is no longer there
                self._fail(refused.id, exc)
                self._cancels.append(refused.id)
            else:
                futures = self._waiting_for(refused.id)
                new.is_kept = bool(futures)
                for future in futures:
                    future.lane = new.lane
                self._amends.append((refused.id, new))
            self._signal.set()
            return
        self.tally.end_waiting(RequestState.FAILED)
        self._fail(refused.id, refused.lack.as_error())

    def _expired(self, expired: ExpiredRequest, now_ms: int) -> None:
        self.tally.end_waiting(RequestState.EXPIRED)
        futures = self._waiting_for(expired.id)
        why = futures[0].parked if futures else None
        reason = "" if why is None else f"parked: {why.reason}"
        error = DeadlineExceeded(expired.waited_ms, reason)
        if self.announcer.hears(events.Expired):
            self.announcer.emit(events.Expired(now_ms, expired.id, expired.key, expired.job, error))
        self._fail(expired.id, error)

    def _fail(self, request_id: int, error: SchedulerError) -> None:
        for future in self._take_futures(request_id):
            future.fail(error)

    def _tell(self, result: TurnResult, now_ms: int) -> None:
        for each in result.crossings:
            self.announcer.emit(
                events.ThresholdCrossed(
                    now_ms,
                    each.budget,
                    str(each.cap),
                    each.percent,
                    each.posted,
                    each.limit,
                    each.resets_at_ms,
                )
            )
        for lane in result.lanes:
            provider, budgets = lane.key.provider, lane.key.budgets
            if lane.shortfall is not None:
                self.announcer.emit(events.Parked(now_ms, lane.shortfall, lane.waiting, provider))
            else:
                names = tuple(self._intake.book.name(each) for each in budgets)
                self.announcer.emit(events.Unparked(now_ms, lane.waiting, provider, names))

    def _set_timer(self, look_again_at_ms: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if look_again_at_ms is not None:
            self._await_instant(look_again_at_ms)

    def _await_instant(self, instant_ms: int) -> None:
        """Take a turn when the clock says so, however it gets there."""
        delay_s = (instant_ms - self._clock.now_ms()) / 1000
        if delay_s > LONGEST_TIMER_S:
            self._timer = self._loop.call_later(LONGEST_TIMER_S, self._await_instant, instant_ms)
        else:
            self._timer = self._loop.call_later(max(0.0, delay_s), self._signal.set)

    def why_parked(self, lane: LaneKey) -> Shortfall | None:
        """Why a lane is shut; for futures."""
        return self.store.shortfall(lane)

    def cancelled(self, future: RequestFuture) -> None:
        """A caller cancelled a future: remove the request, or end the call."""
        request_id = future.request_id
        if request_id is None:
            return  # still in the inbox: seen when it was submitted
        if self._is_wanted(request_id):
            return  # by somebody else
        if request_id in self._elsewhere:  # not ours to cancel
            del self._elsewhere[request_id]
            self._take_futures(request_id)
        elif request_id in self._calls:
            self._cancel_call(request_id)
        else:
            self._cancels.append(request_id)
            self._signal.set()

    def _cancel_call(self, request_id: int) -> None:
        """End a call; one whose task has not begun was never sent, so it costs nothing."""
        self._calls[request_id].cancel()
        claimed = self._unsent.get(request_id)
        if claimed is not None:
            state = RequestState.QUEUED if self._gives_back else RequestState.CANCELLED
            self._take_back(claimed, state)

    def _take_back(self, claimed: Claimed, state: RequestState) -> None:
        """Forget a call of which nothing was sent."""
        del self._unsent[claimed.request_id], self._calls[claimed.request_id]
        self._slots[self._provider_of(claimed)] += 1
        self._hand_back(claimed, state)

    async def _poll(self) -> None:
        """Notice what other processes changed; keep the lease while there is work."""
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
                    await self._look_what_was_taken()
                if await self.store.changed(self._clock.now_ms()):
                    self._signal.set()
                    self._intake.read_budgets(await self.store.budgets(self._clock.now_ms()))
                    await self._look_elsewhere()
            except StoreError as exc:
                logger.warning("cannot look for changes by other processes: %s", exc)

    async def _look_what_was_taken(self) -> None:
        """Others took this process for dead: what they took over, they answer."""
        waiting = [each for each in self._futures if each not in self._calls]
        for finished in await self.store.outcomes(waiting):
            if finished.state is RequestState.CANCELLED:
                self._submit_all_again(finished.id)  # somebody here still wants it
            else:
                for each in self._take_futures(finished.id):
                    each.finish(finished)
        mine = await self.store.still_mine(waiting)
        for request_id in waiting:
            future = self._futures.get(request_id)
            if future is None or request_id in mine or request_id in self._elsewhere:
                continue
            try:
                self._elsewhere[request_id] = self._intake.prepare(future.request, None)
            except SchedulerError as error:  # its price or budget is no longer there
                self._fail(request_id, error)
        await self._look_elsewhere()

    async def _look_elsewhere(self) -> None:
        """Take over answers of other processes, and requests of those that are gone."""
        if not self._elsewhere:
            return
        for finished in await self.store.outcomes(tuple(self._elsewhere)):
            if finished.state in (RequestState.CANCELLED, RequestState.EXPIRED):
                continue  # nobody there wants it any more; somebody here does
            self._elsewhere.pop(finished.id, None)
            for future in self._take_futures(finished.id):
                future.finish(finished)
        elsewhere, self._elsewhere = self._elsewhere, {}
        for request_id, new in elsewhere.items():
            for future in self._take_futures(request_id):
                self._inbox.append((new, future))
                self.tally.waiting += 1
                self._signal.set()

    def _fail_waiting(self, error: SchedulerError) -> None:
        for request_id in list(self._futures):
            self._fail(request_id, error)
        for _, future in self._inbox:
            future.fail(error)
        for _, done in self._batches:
            if not done.done():
                done.set_exception(error)
        for waiter in self._idle_waiters:
            if not waiter.done():
                waiter.set_result(None)


def _event(ended: Attempt, now_ms: int, provider: str, lives_on: bool | None) -> events.Settled:
    claimed, settlement = ended.claimed, ended.settlement
    request, cost_nusd = claimed.request, settlement.nusd
    if settlement.outcome is Outcome.SUSPEND:
        cost_nusd = claimed.ceiling_nusd
    return events.Settled(
        now_ms, claimed.request_id, request.key, request.job, request.model,
        settlement.outcome.value, cost_nusd, ended.overrun_nusd, settlement.state, claimed.attempt,
        ended.response, ended.error, provider, claimed.digest, lives_on is not None,
    )  # fmt: skip
