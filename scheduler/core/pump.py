"""The one task that owns every change of state.

It gathers what waits (submissions, ends of calls, cancellations), has the store do
all of it and the next claim in one transaction, and acts on the answer: it starts
calls and resolves futures only when that is committed. While a transaction is under
way the next one gathers, so a slow disk makes bigger transactions, not more.

    inbox ──▶ turn of the store ──▶ desk      tells those who wait
      ▲                        └──▶ starting  sends what was admitted
      └── callers, ends of calls ◀──────┘
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from itertools import islice

from scheduler import events
from scheduler.admission.notices import sentence
from scheduler.admission.plan import LaneKey
from scheduler.clock import Clock
from scheduler.core.alarm import Alarm
from scheduler.core.callers.desk import Desk
from scheduler.core.calls import Attempt, caller_of_one_more
from scheduler.core.flight import STUBBORN_S, Flight
from scheduler.core.future import RequestFuture
from scheduler.core.inbox import Gathered, Inbox
from scheduler.core.intake import Intake
from scheduler.core.lookout import Lookout
from scheduler.core.nested.nesting import InnerFuture, Nesting
from scheduler.core.nested.opening import Opening
from scheduler.core.nested.resting import Resting
from scheduler.core.starting import Starting
from scheduler.core.steady import Steady, is_running, raise_in
from scheduler.core.steps import Steps
from scheduler.core.tally import Tally
from scheduler.core.telling import Telling
from scheduler.core.tries import Tries
from scheduler.core.watching import Watchers
from scheduler.errors import CredentialsRefused, SchedulerClosed, SchedulerError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.limits.retry import Retry
from scheduler.providers.base import Provider
from scheduler.shortfall import Shortfall
from scheduler.stores.base import NewRequest, Settlement, Store, Submitted, Turn, TurnResult

logger = logger_of("scheduler.pump")

COMPANY_S = 0.02  # so long what nobody waits for is kept for a transaction that others need


class Pump:
    """Moves requests through a store; see the module. Used by `Scheduler` alone."""

    def __init__(
        self, store: Store, intake: Intake, retry: Retry, clock: Clock,
        announcer: events.Announcer, concurrency: int, poll_s: float, *, role: str = "both",
        watchers: Watchers | None = None,
    ) -> None:  # fmt: skip
        self.store, self.announcer = store, announcer
        self.tally = Tally()
        self.broken: BaseException | None = None  # the store failed: nothing more is sent
        self.is_closed = False
        self._intake, self._clock, self._most = intake, clock, concurrency
        self._watchers = Watchers() if watchers is None else watchers
        self._loop = asyncio.get_running_loop()
        self._signal = asyncio.Event()
        tries = self._tries = Tries()
        self._inbox = Inbox(
            self.tally, self._signal.set, store.most_per_turn, splits=not store.is_shared
        )
        self._is_worker = role == "worker"
        self.key_refused: Callable[[str], object] = lambda provider: None
        self._flight = Flight(
            store, intake, retry, clock, tries, intake.concurrency(concurrency), self._landed
        )
        self._desk = Desk(
            store, intake, clock, self._inbox, self._flight, tries, self.tally, announcer, self,
            self._queue, self.wake,
        )  # fmt: skip
        waiters, elsewhere = self._desk.waiters, self._desk.elsewhere
        self._nesting = Nesting(store, self._flight.calls, waiters, elsewhere, self.wake)
        self._resting = Resting(self._flight, store, self.wake)
        self.streams = self._resting.add  # for futures
        self._opening = Opening(sends=role != "client")
        self._starting = Starting(
            store, clock, self._flight, self._opening, intake, waiters, self.tally, announcer,
            self._watchers,
        )  # fmt: skip
        self._telling = Telling(store.gates, intake, announcer)
        self._lookout = Lookout(
            store, intake, clock, poll_s, self._flight, self._desk, self.tally, self.wake,
            self._is_full, serves=role != "client",
        )  # fmt: skip
        self._alarm = Alarm(self._loop, clock, self.wake)
        self._tasks: list[Steady] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._pause: asyncio.TimerHandle | None = None  # until what has time is settled
        self._turning = False  # a transaction is under way
        self._has_turned = False  # one was
        self._told_to_end = asyncio.Event()
        self._drain_timer: asyncio.TimerHandle | None = None

    @property
    def suspended(self) -> Callable[[int, tuple[int, int] | None], None]:
        """Called with the reservation, and what its answer told, when an outcome is unknown."""
        return self._desk.suspended

    @suspended.setter
    def suspended(self, told: Callable[[int, tuple[int, int] | None], None]) -> None:
        self._desk.suspended = told

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
            look = self._lookout.run(lambda: self._tasks[1].cancel())
            if self._lookout.serves:
                self._signal.set()  # others may have left something to be sent
            self._tasks.append(Steady(look, cancelled, self._loop, "scheduler poll"))
        return self._tasks[0]

    def submit(self, new: NewRequest) -> RequestFuture:
        """Queue a request in the next transaction; its call runs in the context that is now."""
        caller = caller_of_one_more(self.store)
        if caller is not None:
            new.lane = new.lane.as_private()  # it takes its caller's place
        new.is_kept = not new.lane.is_shared
        if caller is None:
            future = RequestFuture(new.request, new.lane, self, self._loop)
        else:
            future = self._nesting.begin(new, caller, self)
        future.context, future.ceiling_nusd = copy_context(), new.ceiling_nusd
        if self._watchers:
            self._watchers.submitted(future)
        if new.expires_at_ms is not None:
            future.expires_at_ms, future.since_ms = new.expires_at_ms, self._clock.now_ms()
            future.due_at_ms = new.due_at_ms
        self._queue(new, future)
        return future

    async def enqueue(self, batch: list[NewRequest]) -> list[Submitted]:
        """Queue requests without futures; returns when they are stored."""
        done = self._inbox.add_batch(batch)
        parts = await asyncio.shield(asyncio.gather(*done))
        return [submitted for part in parts for submitted in part]

    async def withdraw(self, ids: Iterable[int]) -> None:
        """Cancel requests that wait and that nobody here waits for; returns when that is stored."""
        for each in ids:
            self._inbox.cancel(each)
        while self._inbox.cancels or self._turning:
            if self.is_closed or self.broken is not None:
                return
            await self.turned()

    def _landed(self, ended: Attempt) -> None:
        """A call has ended, or was given back unsent.

        Where a worker's key is refused, that says nothing of the request: it is left to others who
        may have a better one, and this process asks that provider nothing more.
        """
        refused = isinstance(ended.error, CredentialsRefused)
        if refused and self._is_worker and ended.claimed.is_shared:
            ended.settlement.try_again()
            provider = self._flight.provider_of(ended.claimed)
            self.stop_admitting(provider)
            self.key_refused(provider)
        has_time = self._is_heard(ended) and self.store.is_shared and not self._desk.waiting
        self._inbox.landed(ended, has_time=has_time)
        if has_time and self._pause is None:
            self._pause = self._loop.call_later(COMPANY_S, self._stop_waiting)

    def _is_heard(self, ended: Attempt) -> bool:
        """Tell its answer to those who want it before it is settled; whether these are all."""
        if ended.response is None:
            return False
        futures = self._desk.waiters.of(ended.claimed.request_id)
        hearing = [future.heard for future in futures if future.heard is not None]
        for hear in hearing:
            hear(ended.response)
        return 0 < len(hearing) == len(futures)

    def _stop_waiting(self) -> None:
        """Nothing else has come: settle what has ended by itself."""
        self._pause = None
        self._signal.set()

    @property
    def stopped(self) -> frozenset[str]:
        """Providers to which nothing more goes."""
        return frozenset(self._opening.stopped)

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
    def waiting(self) -> int:
        """Requests that wait, as far as this process is to see to them."""
        return self._desk.waiting

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._flight.calls)

    @property
    def is_calling(self) -> bool:
        """Whether a transaction or calls are under way, or have ended and are not settled yet."""
        is_any = self._turning or self._flight.calls or self._inbox.has_ended
        return self.broken is None and bool(is_any)

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

    async def finish_for_others(self) -> None:
        """Start nothing more, and let calls finish that are made for other processes."""
        if self._is_sending_for_others():
            self.stop_admitting()
            while self._is_sending_for_others():
                await self.turned()

    def _is_sending_for_others(self) -> bool:
        calls = () if self.is_closed or self.broken is not None else self._flight.calls.values()
        return any(
            call.claimed.is_shared and call.claimed.request_id not in self._desk.waiters
            for call in calls
        )

    def let_flow(self) -> None:
        """Have no call wait for whoever reads its stream: there will be no other time for it."""
        for request_id in self._flight.calls:
            for future in self._desk.waiters.of(request_id):
                if future.let_flow is not None:
                    future.let_flow()

    async def turned(self) -> None:
        """Wait for the next transaction to be acted on."""
        if self.is_closed or self.broken is not None:
            return
        waiter = self._loop.create_future()
        self._idle_waiters.append(waiter)
        await waiter

    async def begun(self) -> None:
        """Wait until the first transaction was acted on, if there is to be one."""
        while not (self._has_turned or self.is_closed or self.broken is not None):
            await self.turned()

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

    # For futures

    def why_parked(self, lane: LaneKey) -> Shortfall | None:
        """Why a lane is shut."""
        return self.store.shortfall(lane)

    def notice(self, lack: Shortfall) -> str:
        """Why a request is parked, and what to do, in words."""
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
        if not self._desk.left_alone(request_id):
            return
        if request_id in self._flight.calls:
            self._flight.cancel(request_id)
        elif request_id in self._desk.shared:
            self._desk.elsewhere.forget(request_id)
            self._inbox.cancel(request_id)
        elif request_id in self._desk.elsewhere:  # not ours to cancel
            self._desk.elsewhere.forget(request_id)
            self._desk.waiters.take(request_id)
        else:
            self._inbox.cancel(request_id)

    def _queue(self, new: NewRequest, future: RequestFuture) -> None:
        if isinstance(future, InnerFuture):
            self._nesting.place(future, new)
        self._inbox.add(new, future)

    # The loop

    async def _live(self, let_go: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._move()
            await self._note_read()
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
        if self._pause is not None:
            self._pause.cancel()
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
                # So long a call takes whose answer is there at once; and callers that come in one by
                # one, over HTTP, gather.
                for _ in range(4):
                    await asyncio.sleep(0)
                if not self._inbox.has_time:
                    self._signal.set()

    async def _note_read(self) -> None:
        try:
            await self._desk.note_read()
        except StoreError as exc:  # it is a hint for `prune`
            logger.warning("could not note which outcomes were read: %s", exc)

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

    def _fail_waiting(self, error: SchedulerError) -> None:
        self._desk.fail(error, "the scheduler was closed")
        self._inbox.fail(error)
        self._tell_idle()

    def _tell_idle(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _is_full(self) -> bool:
        """Whether all places are taken, and nobody waits who could go on a lent one."""
        free = self._flight.slots.values()
        return bool(self._flight.calls) and not self._nesting and not any(n > 0 for n in free)

    # A turn

    async def _turn(self) -> None:
        now_ms, began_s = self._clock.now_ms(), self._loop.time()
        gathered = self._gather(now_ms)
        turn = Turn(
            now_ms, [each.settlement for each in gathered.ended], gathered.amends,
            gathered.submit, gathered.cancels,
            self._opening.room(self._flight.slots, bool(self._nesting)), self._desk.twins.holds,
            self._nesting.take_lends(),
        )  # fmt: skip
        if turn.slots is None and self._nesting and self._opening.lets_finish:
            self._signal.set()  # in the next one they get room
        try:
            result = await self.store.turn(turn)
        except BaseException:
            self._inbox.put_back(gathered)  # so that closing can tell its futures
            raise
        self.tally.turns += 1
        if result.lease_ms is not None:
            self._flight.lease_until_s = began_s + result.lease_ms / 1000
        self._lookout.was_lost |= result.was_lost
        await self._act(gathered, result, now_ms)

    def _gather(self, now_ms: int) -> Gathered:
        """What has come together since the last turn."""
        desk = self._desk
        for request_id, holder in islice(desk.twins.late(now_ms), self.store.most_per_turn):
            if request_id not in self._flight.calls:
                desk.give_up(request_id, holder, now_ms)
        if self._nesting:
            self._nesting.pass_on()
        gathered = self._inbox.take(desk.waiters.is_wanted, desk.twins.amends)
        if self._nesting:
            for request_id, new in gathered.amends:
                self._nesting.amended(request_id, new)
        return gathered

    async def _act(self, gathered: Gathered, result: TurnResult, now_ms: int) -> None:
        """Do what a committed turn means, in the store's order: a key may be cancelled and
        submitted anew in one turn.
        """  # noqa: D205
        steps = Steps()
        self._desk.count_shared(result.waiting_shared, now_ms, is_all_told=False)
        await self._tell_waiting(gathered, result, now_ms, steps)
        await self._tell_submitted(gathered, result, steps)
        await self._tell_unsent(result, now_ms, steps)
        await self._telling.tell(result, now_ms, steps)
        for claimed in result.claimed:
            self._starting.start(claimed, now_ms)
            if steps.is_long():
                await asyncio.sleep(0)
        self._desk.count_shared(result.waiting_shared, now_ms, is_all_told=True)
        self._free_the_stuck(now_ms)
        self._resting.rest(self._nesting.parked())
        instants = (result.look_again_at_ms, self._desk.twins.due_ms)
        self._alarm.set(min((each for each in instants if each is not None), default=None))
        if result.waiting is not None:
            self.tally.waiting = result.waiting + self._inbox.count
        if not self.store.is_shared:
            await self._desk.note_read()
        self._has_turned = True
        self._tell_idle()

    async def _tell_waiting(
        self, gathered: Gathered, result: TurnResult, now_ms: int, steps: Steps
    ) -> None:
        """What became of those that were waiting, or under way."""
        desk = self._desk
        for request_id, new in gathered.amends:
            for future in desk.waiters.of(request_id):
                future.lane = new.lane
        for ended in gathered.ended:
            desk.settled(ended, result.superseded.get(ended.settlement.reservation_id), now_ms)
            if steps.is_long():
                await asyncio.sleep(0)
        for request_id, is_cancelled in zip(gathered.cancels, result.cancelled, strict=True):
            if is_cancelled:
                desk.cancelled(request_id)
            elif request_id in desk.shared:  # another process sends it, for nobody here
                desk.forget(request_id)
                desk.waiters.take(request_id)
            if steps.is_long():
                await asyncio.sleep(0)
        for finished in result.answered:
            desk.answered(finished)

    async def _tell_submitted(
        self, gathered: Gathered, result: TurnResult, steps: Steps
    ) -> None:  # fmt: skip
        """What became of those that are new: they wait, or their keys were known."""
        for (new, future), submitted in zip(gathered.waiting, result.submitted, strict=False):
            if self._desk.submitted(new, future, submitted):
                self.cancelled(future)
            if isinstance(future, InnerFuture) and not future.done():
                self._nesting.submitted(future, submitted)
            if steps.is_long():
                await asyncio.sleep(0)
        position = len(gathered.waiting)
        for batch, done in gathered.batches:
            answers = result.submitted[position : position + len(batch)]
            position += len(batch)
            for new, submitted in zip(batch, answers, strict=True):
                self._desk.enqueued(new, submitted)
                if steps.is_long():
                    await asyncio.sleep(0)
            if not done.done():
                done.set_result(answers)

    async def _tell_unsent(self, result: TurnResult, now_ms: int, steps: Steps) -> None:
        """What ends without having been sent."""
        for refused in result.refused:
            self._desk.refused(refused)
            if steps.is_long():
                await asyncio.sleep(0)
        for expired in result.expired:
            self._desk.expired(expired, now_ms)
            if steps.is_long():
                await asyncio.sleep(0)

    # Calls within calls

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
        if self._desk.left_alone(request_id) and request_id not in self._flight.calls:
            self._desk.waiters.take(request_id)
            self._tries.forget(request_id)
            self._inbox.cancel(request_id)
