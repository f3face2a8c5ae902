"""The shell: takes requests in, lets out what fits, gives back what came of it.

One task, the pump, owns every change of state. It gathers what waits (submissions,
ends of calls, cancellations), has the store do all of it and the next claim in one
transaction, and acts on the answer: it starts calls and resolves futures only when
that is committed. While a transaction is under way the next one gathers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from scheduler import events
from scheduler.admission import LaneKey, Shortfall
from scheduler.budget import Budget
from scheduler.calls import Attempt, CallPolicy, attempt
from scheduler.clock import Clock, SystemClock
from scheduler.duration import parse_duration_ms
from scheduler.errors import (
    BudgetExceeded,
    CallFailed,
    ConfigError,
    CostTooHigh,
    DeadlineExceeded,
    KeyConflict,
    QueueFull,
    SchedulerClosed,
    SchedulerError,
    StoreError,
)
from scheduler.future import RequestFuture
from scheduler.ledger import UNLIMITED
from scheduler.matching import BudgetBook
from scheduler.money import parse_usd
from scheduler.pricing import PriceBook, with_output_cap
from scheduler.providers.base import Provider, Tariff
from scheduler.request import Duration, Priority, Quote, Request, RequestState, Response
from scheduler.stats import Stats
from scheduler.stores import open_store
from scheduler.stores.base import (
    Claimed,
    Finished,
    NewRequest,
    Outcome,
    Settlement,
    Store,
    Submitted,
    Turn,
    TurnResult,
)

logger = logging.getLogger("scheduler")

OnExceeded = Literal["wait", "raise"]
E_ = TypeVar("E_", bound=events.Event)


class Scheduler:
    """Runs requests within budgets; what does not fit waits and goes on by itself.

    Args:
        store: Where queue and ledger live: a URL such as ``sqlite:///scheduler.db``,
            or a `Store`. None: in memory, gone with the process.
        budgets: Budgets to define. One that is stored already is changed to this
            definition and keeps what was spent.
        providers: How requests leave; the first is the default. None given: OpenAI's
            API, with the key from ``OPENAI_API_KEY``.
        prices: Prices of your own, model to ``"IN/OUT"`` in USD per million tokens;
            they come before the catalogue's. Or a `PriceBook`.
        concurrency: Most calls under way at once, per provider.
        on_exceeded: ``"wait"`` parks what does not fit; ``"raise"`` refuses it with
            `BudgetExceeded`.
        max_attempts: Most attempts for one request; each has its own reservation.
        max_queue: Most requests of this process that may wait. None: no bound.
        cap_output: Most output tokens for requests whose body sets no cap; written
            into the body. None: bodies are sent as they are.
        retry_wait_s: From the number of an attempt that failed to the seconds to wait
            before the next. None: exponential with jitter.
        clock: Tells the time. None: the computer's clock.
        poll_interval: How often to look for changes by other processes.

    Use it as an async context manager. Everything runs in the event loop it was
    entered in.
    """

    def __init__(
        self,
        store: str | Path | Store | None = None,
        *,
        budgets: Iterable[Budget] | Budget = (),
        providers: Provider | Iterable[Provider] = (),
        prices: PriceBook | Mapping[str, str] | None = None,
        concurrency: int = 64,
        on_exceeded: OnExceeded = "wait",
        max_attempts: int = 3,
        max_queue: int | None = None,
        cap_output: int | None = None,
        retry_wait_s: Callable[[int], float] | None = None,
        clock: Clock | None = None,
        poll_interval: Duration = 0.2,
    ) -> None:
        if concurrency < 1:
            raise ConfigError("concurrency", f"{concurrency} is not at least 1")
        if max_attempts < 1:
            raise ConfigError("max_attempts", f"{max_attempts} is not at least 1")
        if on_exceeded not in ("wait", "raise"):
            raise ConfigError("on_exceeded", f"{on_exceeded!r} is neither 'wait' nor 'raise'")
        self.store: Store = store if isinstance(store, Store) else open_store(store)
        self.concurrency, self.max_queue = concurrency, max_queue
        self._on_exceeded, self._cap_output = on_exceeded, cap_output
        self._policy = CallPolicy(max_attempts, retry_wait_s)
        self._clock = clock or SystemClock()
        self.prices = (
            prices
            if isinstance(prices, PriceBook)
            else PriceBook(prices or {}, now_ms=self._clock.now_ms)
        )
        self._poll_s = parse_duration_ms(poll_interval, "poll_interval") / 1000
        self._wanted = [budgets] if isinstance(budgets, Budget) else list(budgets)
        self._providers = _by_name(providers)
        self._default_provider = next(iter(self._providers))
        for provider in self._providers.values():
            for model, price in (provider.prices or {}).items():
                if model not in self.prices.own:
                    self.prices.set(model, price)
        self._tariffs: dict[str, Tariff] = {}
        self._book = BudgetBook()
        self._listeners: dict[type[events.Event], list[Callable[[Any], None]]] = {}
        # Everything below is written by the pump, or by callers between its steps.
        self._inbox: list[tuple[NewRequest, RequestFuture | None]] = []
        self._batches: list[tuple[list[NewRequest], asyncio.Future[list[Submitted]]]] = []
        self._ended: list[Attempt] = []
        self._cancels: list[int] = []
        self._futures: dict[int, RequestFuture] = {}
        self._twins: dict[int, list[RequestFuture]] = {}  # more futures of one key
        self._elsewhere: set[int] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._slots: dict[str, int] = dict.fromkeys(self._providers, concurrency)
        self._cooldown_until_ms: dict[str, int] = {}
        self._tally = _Tally()
        self._signal = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self._poll_task: asyncio.Task[None] | None = None
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._admits = True
        self._gives_back = False  # calls that are cancelled go back to the queue
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._broken: BaseException | None = None

    # Opening and closing

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise SchedulerClosed("a scheduler can be opened once; make a new one")
        self._loop = asyncio.get_running_loop()
        await self.store.open(self._clock.now_ms())
        try:
            for model, price in (await self.store.prices()).items():
                if model not in self.prices.own:
                    self.prices.set(model, price)
            if self._wanted:
                await self.store.define(self._wanted, self._clock.now_ms())
            await self._read_budgets()
        except BaseException:
            await self.store.aclose()
            raise
        self._state = "open"
        self._pump_task = self._loop.create_task(self._pump(), name="scheduler pump")
        if self.store.is_shared:
            self._poll_task = self._loop.create_task(self._poll(), name="scheduler poll")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, *, drain: bool = False) -> None:
        """End everything; what waits stays in a durable store for the next run.

        Calls under way are cancelled, and what they reserved keeps counting, since
        the provider may bill it. With `drain`, they are let finish first. Futures that
        are not done get `SchedulerClosed`.
        """
        if self._state in ("closing", "closed"):
            return
        was_open, self._state = self._state == "open", "closing"
        if was_open:
            await self._end_calls(drain)
        for task in (self._poll_task, self._pump_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self._fail_waiting(SchedulerClosed())
        self._state = "closed"
        for provider in self._providers.values():
            await provider.aclose()
        if was_open:
            await self.store.aclose()

    async def _end_calls(self, drain: bool) -> None:
        self._admits, self._gives_back = False, True
        if not drain:
            self.cancel_running()
        while (self._calls or self._ended) and self._broken is None:
            await self._idle()

    # Taking requests in

    async def run(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> Response:
        """Answer one request, however long it has to wait for money.

        Raises:
            RequestRejected: Never sent, never charged: see its leaves.
            CallFailed: Tried, and given up; says what it cost.
            StoreError: Queue and ledger cannot be written; nothing new is sent.
        """
        return await self.submit(request, on_exceeded=on_exceeded)

    def submit(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> RequestFuture:
        """Put a request in the queue and give back a future of its response.

        It is in the store, and so survives a crash if the store does, once the
        event loop has run the next transaction.

        Raises:
            PriceUnknown, BudgetUnknown, CostTooHigh, QueueFull, ConfigError,
            SchedulerClosed: at once; nothing was queued.
        """
        new = self._prepare(request, on_exceeded)
        new.is_kept = True
        self._check_room(1)
        future = RequestFuture(new.request, new.lane, self, self._loop)
        self._inbox.append((new, future))
        self._tally.waiting += 1
        self._signal.set()
        return future

    async def enqueue(
        self, requests: Sequence[Request], *, retry_failed: bool = False
    ) -> list[Submitted]:
        """Put many requests in the queue in one transaction, without futures.

        When it returns they are in the store. Their outcomes come as `Settled` and
        `Expired` events and stay in the store under their keys.

        Raises:
            RequestRejected: One of them cannot be taken; none was queued.
        """
        batch = []
        for request in requests:
            new = self._prepare(request, None)
            new.retry_failed = retry_failed
            batch.append(new)
        self._check_room(len(batch))
        done: asyncio.Future[list[Submitted]] = self._loop.create_future()
        self._batches.append((batch, done))
        self._tally.waiting += len(batch)
        self._signal.set()
        return await asyncio.shield(done)

    async def map(
        self,
        requests: Iterable[Request] | AsyncIterator[Request],
        *,
        ordered: bool = False,
        window: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Response]:
        """Answer requests as they complete, taking in only a few ahead.

        Args:
            requests: Read lazily; each may be awaited for.
            ordered: Give responses back in the order of the requests.
            window: Most requests taken in and not given back yet. None: four times
                the concurrency.
            return_exceptions: Give back errors (with ``index`` and ``key`` set on
                them) in place of responses instead of raising the first.

        Every response has ``index``, its request's position, and ``key``. Leaving
        the loop early cancels what was taken in and not given back.
        """
        size = window or 4 * self.concurrency
        source = _aiter(requests)
        taken: deque[RequestFuture] = deque()
        done: asyncio.Queue[RequestFuture] = asyncio.Queue()
        positions: dict[RequestFuture, int] = {}
        exhausted, index = False, 0
        try:
            while True:
                while not exhausted and len(positions) < size:
                    try:
                        request = await anext(source)
                    except StopAsyncIteration:
                        exhausted = True
                        break
                    future = self._submit_or_fail(request)
                    positions[future], index = index, index + 1
                    taken.append(future)
                    future.add_done_callback(done.put_nowait)  # type: ignore[arg-type]
                if not positions:
                    return
                future = taken.popleft() if ordered else await done.get()
                if ordered:
                    await asyncio.wait([future])
                yield _outcome(future, positions.pop(future), return_exceptions)
        finally:
            for future in positions:
                future.cancel()

    def _submit_or_fail(self, request: Request) -> RequestFuture:
        """As `submit`, but a rejection becomes the future's."""
        try:
            return self.submit(request)
        except SchedulerClosed:
            raise
        except SchedulerError as error:
            future = RequestFuture(request, None, None, self._loop)
            future.set_exception(error)
            return future

    def quote(self, request: Request) -> Quote:
        """What one attempt of a request may cost, without sending it.

        Raises:
            PriceUnknown: There is no price for its model.
        """
        return self._tariff(self._provider(request)).quote(self._as_sent(request))

    def _prepare(self, request: Request, on_exceeded: OnExceeded | None) -> NewRequest:
        if self._state != "open":
            raise SchedulerClosed(f"the scheduler is {self._state}; nothing was sent")
        if self._broken is not None:
            raise StoreError(f"the store failed earlier: {self._broken}") from self._broken
        provider = self._provider(request)
        request = self._as_sent(request)
        quote = self._tariff(provider).quote(request)
        if request.max_cost is not None:
            max_cost_nusd = parse_usd(request.max_cost, "max_cost")
            if quote.ceiling_nusd > max_cost_nusd:
                raise CostTooHigh(quote.ceiling_nusd, max_cost_nusd)
        priority = request.priority
        if priority.__class__ is not Priority:
            priority = Priority.parse(priority)
        lane = LaneKey(
            provider.name,
            self._book.draws_on(request.model, request.tags, request.budget),
            int(priority),
            (on_exceeded or self._on_exceeded) == "wait",
        )
        new = NewRequest(
            request, lane, quote.ceiling_nusd, quote.ceiling_tokens, quote.expected_nusd,
            request.digest() if request.key is not None else "", self._expiry(request),
        )  # fmt: skip
        self.store.prepare(new)
        return new

    def _as_sent(self, request: Request) -> Request:
        return request if self._cap_output is None else with_output_cap(request, self._cap_output)

    def _provider(self, request: Request) -> Provider:
        name = request.provider
        if name is None:
            return self._providers[self._default_provider]
        if name not in self._providers:
            known = ", ".join(map(repr, self._providers))
            raise ConfigError("provider", f"no provider is named {name!r} (there are: {known})")
        return self._providers[name]

    def _tariff(self, provider: Provider) -> Tariff:
        tariff = self._tariffs.get(provider.name)
        if tariff is None:
            tariff = provider.tariff or self.prices.tariff(provider.price_source)
            self._tariffs[provider.name] = tariff
        return tariff

    def _expiry(self, request: Request) -> int | None:
        if request.deadline is None and request.max_wait is None:
            return None
        now_ms, instants = self._clock.now_ms(), []
        if isinstance(request.deadline, datetime):
            if request.deadline.tzinfo is None:
                raise ConfigError("deadline", f"{request.deadline} has no time zone")
            instants.append(int(request.deadline.timestamp() * 1000))
        elif request.deadline is not None:
            instants.append(now_ms + parse_duration_ms(request.deadline, "deadline"))
        if request.max_wait is not None:
            instants.append(now_ms + parse_duration_ms(request.max_wait, "max_wait"))
        return min(instants)

    def _check_room(self, more: int) -> None:
        if self.max_queue is not None and self._tally.waiting + more > self.max_queue:
            raise QueueFull(self._tally.waiting, self.max_queue)

    # Budgets

    async def set_limit(self, name: str, limit: str | int | float | Decimal | None) -> None:
        """Change a budget's limit; what was spent stays spent.

        Args:
            name: A defined budget.
            limit: An amount (``"$20"``, keeps the window), a full form
                (``"$20/day"``), or None to switch the limit off.

        Raising it lets parked requests go on at once; lowering it cancels nothing.
        """
        await self._read_budgets()
        await self.define(self._book[name].with_limit(limit))

    async def define(self, *budgets: Budget) -> None:
        """Create budgets, or change them to this definition; what was spent stays spent."""
        await self.store.define(budgets, self._clock.now_ms())
        await self._read_budgets()
        self._signal.set()

    async def pause(self, name: str) -> None:
        """Admit nothing on a budget until `resume`; calls under way finish."""
        await self.store.pause(name, True, self._clock.now_ms())
        self._signal.set()

    async def resume(self, name: str) -> None:
        """Admit on a paused budget again."""
        await self.store.pause(name, False, self._clock.now_ms())
        self._signal.set()

    async def _read_budgets(self) -> None:
        statuses = await self.store.budgets(self._clock.now_ms())
        self._book = BudgetBook([(status.id, status.budget) for status in statuses])

    # Looking

    def stats(self) -> Stats:
        """A picture of this scheduler now; awaits nothing."""
        parked: Counter[str] = Counter()
        shortfalls = []
        for lane in self.store.lanes():
            if lane.shortfall is not None:
                parked[lane.shortfall.reason.value] += lane.waiting
                shortfalls.append(lane.shortfall)
        resumes = [s.resumes_at_ms for s in shortfalls if s.resumes_at_ms is not None]
        tally = self._tally
        return Stats(
            queued=max(0, tally.waiting - parked.total()),
            parked=dict(parked),
            running=len(self._calls),
            succeeded=tally.ended[RequestState.SUCCEEDED],
            failed=tally.ended[RequestState.FAILED],
            cancelled=tally.ended[RequestState.CANCELLED],
            expired=tally.ended[RequestState.EXPIRED],
            posted_nusd=tally.posted_nusd,
            reserved_nusd=tally.reserved_nusd,
            suspense_nusd=tally.suspense_nusd,
            overruns=tally.overruns,
            resumes_at_ms=min(resumes, default=None),
            shortfalls=tuple(shortfalls),
            budgets=tuple(self.store.latest()),
        )

    def __repr__(self) -> str:
        if self._state != "open":
            return f"<Scheduler {self._state}>"
        return f"<Scheduler {self.stats()}>"

    def on(self, kind: type[E_], callback: Callable[[E_], None]) -> Callable[[], None]:
        """Call `callback` with every event of this kind; returns a way to stop it."""
        callbacks = self._listeners.setdefault(kind, [])
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    def _hears(self, kind: type[events.Event]) -> bool:
        return bool(self._listeners.get(kind) or self._listeners.get(events.Event))

    def _emit(self, event: events.Event) -> None:
        for kind in (type(event), events.Event):
            for callback in tuple(self._listeners.get(kind, ())):
                try:
                    callback(event)
                except Exception:
                    logger.exception("a callback for %s raised", type(event).__name__)

    async def join(self) -> None:
        """Wait until nothing of this process waits or runs.

        Raises:
            StoreError: Queue and ledger cannot be written any more.
        """
        while self._tally.waiting or self._calls or self._ended:
            if self._broken is not None:
                raise StoreError(f"the store failed: {self._broken}") from self._broken
            await self._idle()

    def stop_admitting(self) -> None:
        """Start nothing new; what runs goes on, what waits stays where it is."""
        self._admits = False

    def cancel_running(self) -> None:
        """End all calls under way; what they reserved keeps counting, their requests stay queued."""
        self._admits = False
        self._gives_back = True
        for task in self._calls.values():
            task.cancel()

    async def drain(self) -> None:
        """Stop admitting and wait until nothing runs."""
        self._admits = False
        while (self._calls or self._ended) and self._broken is None:
            await self._idle()

    async def _idle(self) -> None:
        """Wait for the pump to have acted on a transaction."""
        waiter = self._loop.create_future()
        self._idle_waiters.append(waiter)
        await waiter

    # The pump

    async def _pump(self) -> None:
        try:
            while True:
                await self._signal.wait()
                self._signal.clear()
                await self._turn()
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            # What the store holds may differ from what this process believes: go no further.
            logger.error("the store failed; nothing more is sent: %s", exc)
            self._broken = exc
            for task in self._calls.values():
                task.cancel()
            error = exc if isinstance(exc, StoreError) else StoreError(f"the pump failed: {exc!r}")
            error.__cause__ = exc if error is not exc else exc.__cause__
            self._fail_waiting(error)

    async def _turn(self) -> None:
        now_ms = self._clock.now_ms()
        inbox, self._inbox = self._inbox, []
        batches, self._batches = self._batches, []
        ended, self._ended = self._ended, []
        cancels, self._cancels = self._cancels, []
        submit = [new for new, _ in inbox]
        for batch, _ in batches:
            submit += batch
        turn = Turn(
            now_ms, [each.settlement for each in ended], submit, cancels, self._free_slots(now_ms)
        )
        try:
            result = await self.store.turn(turn)
        except BaseException:
            # Put back what was taken, so that closing can tell its futures.
            self._inbox = inbox + self._inbox
            self._batches = batches + self._batches
            raise
        self._apply(now_ms, inbox, batches, ended, cancels, result)

    def _free_slots(self, now_ms: int) -> dict[str, int] | None:
        if not self._admits:
            return None
        if not self._cooldown_until_ms:
            return self._slots
        for name, until_ms in list(self._cooldown_until_ms.items()):
            if until_ms <= now_ms:
                del self._cooldown_until_ms[name]
        return {
            name: 0 if name in self._cooldown_until_ms else free
            for name, free in self._slots.items()
        }

    def _apply(
        self,
        now_ms: int,
        inbox: list[tuple[NewRequest, RequestFuture | None]],
        batches: list[tuple[list[NewRequest], asyncio.Future[list[Submitted]]]],
        ended: list[Attempt],
        cancels: list[int],
        result: TurnResult,
    ) -> None:
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
        for each, is_first in zip(ended, result.settled, strict=True):
            self._settled(each, is_first, now_ms)
        for request_id, is_cancelled in zip(cancels, result.cancelled, strict=True):
            if is_cancelled:
                self._tally.end_waiting(RequestState.CANCELLED)
                self._take_futures(request_id)
        for request_id, lack in result.refused:
            self._tally.end_waiting(RequestState.FAILED)
            self._fail(request_id, exceeded(lack))
        for request_id, waited_ms in result.expired:
            self._expired(request_id, waited_ms, now_ms)
        self._tell(result, now_ms)
        for claimed in result.claimed:
            self._start(claimed, now_ms)
        self._set_timer(result.look_again_at_ms, now_ms)
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _submitted(
        self, new: NewRequest, future: RequestFuture | None, submitted: Submitted
    ) -> None:
        if submitted.is_known:
            self._tally.waiting -= 1
        if future is None:
            return
        future.request_id = request_id = submitted.id
        if submitted.is_conflict:
            assert new.request.key is not None
            _set_exception(future, KeyConflict(new.request.key, new.request.job))
        elif submitted.finished is not None:
            _resolve_finished(future, submitted.finished)
        elif request_id in self._futures:
            future.is_running = request_id in self._calls
            self._twins.setdefault(request_id, []).append(future)
        else:
            self._futures[request_id] = future
            if submitted.is_elsewhere:
                self._elsewhere.add(request_id)
            if future.cancelled():
                self.cancelled(future)

    def _waiting_for(self, request_id: int) -> Sequence[RequestFuture]:
        """Everybody who waits for a request."""
        future = self._futures.get(request_id)
        if future is None:
            return ()
        return (future, *self._twins.get(request_id, ())) if self._twins else (future,)

    def _take_futures(self, request_id: int) -> Sequence[RequestFuture]:
        """As `_waiting_for`, and forget them."""
        futures = self._waiting_for(request_id)
        self._futures.pop(request_id, None)
        self._twins.pop(request_id, None)
        return futures

    def _start(self, claimed: Claimed, now_ms: int) -> None:
        tally = self._tally
        tally.waiting -= 1
        tally.reserved_nusd += claimed.ceiling_nusd
        if claimed.request_id in self._calls:
            self._hand_back(claimed)
            return
        request = claimed.request
        name = request.provider or self._default_provider
        self._slots[name] -= 1
        for future in self._waiting_for(claimed.request_id):
            future.is_running = True
        self._calls[claimed.request_id] = self._loop.create_task(self._call(name, claimed))
        if self._listeners and self._hears(events.Admitted):
            self._emit(
                events.Admitted(
                    now_ms,
                    claimed.request_id,
                    request.key,
                    request.job,
                    claimed.attempt,
                    claimed.ceiling_nusd,
                    claimed.parked_ms,
                )
            )

    def _hand_back(self, claimed: Claimed) -> None:
        """Others took this process for dead and queued again what it is still sending."""
        settlement = Settlement(
            claimed.reservation_id, claimed.request_id, Outcome.VOID, RequestState.QUEUED,
            not_before_ms=self._clock.now_ms() + self.store.lease_ms, is_attempt=False,
        )  # fmt: skip
        self._ended.append(Attempt(claimed, settlement, is_sent=False))
        self._signal.set()

    async def _call(self, name: str, claimed: Claimed) -> None:
        provider = self._providers[name]
        ended = await attempt(
            provider, self._tariff(provider), claimed, self._policy, self._clock.now_ms
        )
        if ended.settlement.state is RequestState.CANCELLED and self._gives_back:
            ended.settlement.state = (
                RequestState.QUEUED
            )  # not the caller's wish: the next run's work
        self._slots[name] += 1
        if ended.cooldown_ms is not None:
            until_ms = self._clock.now_ms() + ended.cooldown_ms
            self._cooldown_until_ms[name] = max(until_ms, self._cooldown_until_ms.get(name, 0))
        self._ended.append(ended)
        self._signal.set()

    def _settled(self, ended: Attempt, is_first: bool, now_ms: int) -> None:
        claimed, settlement = ended.claimed, ended.settlement
        if ended.is_sent:
            self._calls.pop(claimed.request_id, None)
        tally = self._tally
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
        if settlement.state is RequestState.QUEUED:
            tally.waiting += 1
            for future in self._waiting_for(claimed.request_id):
                future.is_running = False
                if future.cancelled():
                    self._cancels.append(claimed.request_id)
                    self._signal.set()
        else:
            tally.ended[settlement.state] += 1
            self._resolve(ended)
        if self._listeners and self._hears(events.Settled):
            self._emit(_settled_event(ended, now_ms))

    def _resolve(self, ended: Attempt) -> None:
        for future in self._take_futures(ended.claimed.request_id):
            if future.done():
                continue
            if ended.response is not None:
                future.set_result(ended.response)
            elif ended.error is not None:
                future.set_exception(ended.error)
            else:
                future.cancel()

    def _expired(self, request_id: int, waited_ms: int, now_ms: int) -> None:
        self._tally.end_waiting(RequestState.EXPIRED)
        futures = self._waiting_for(request_id)
        why = futures[0].parked if futures else None
        error = DeadlineExceeded(waited_ms, "" if why is None else f"parked: {why.reason}")
        if self._hears(events.Expired):
            request = futures[0].request if futures else None
            self._emit(
                events.Expired(
                    now_ms,
                    request_id,
                    request.key if request else None,
                    request.job if request else "",
                    error,
                )
            )
        self._fail(request_id, error)

    def _fail(self, request_id: int, error: SchedulerError) -> None:
        for future in self._take_futures(request_id):
            _set_exception(future, error)

    def _tell(self, result: TurnResult, now_ms: int) -> None:
        if not self._listeners:
            return
        for each in result.crossings:
            self._emit(
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
                self._emit(events.Parked(now_ms, lane.shortfall, lane.waiting, provider))
            else:
                names = tuple(self._book.name(each) for each in budgets)
                self._emit(events.Unparked(now_ms, lane.waiting, provider, names))

    def _set_timer(self, look_again_at_ms: int | None, now_ms: int) -> None:
        instants = [until for until in self._cooldown_until_ms.values() if until > now_ms]
        if look_again_at_ms is not None:
            instants.append(look_again_at_ms)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if instants:
            delay_s = max(0, min(instants) - self._clock.now_ms()) / 1000
            # A day at most: the computer's clock may be set while we wait.
            self._timer = self._loop.call_later(min(delay_s, 86_400), self._signal.set)

    def why_parked(self, lane: LaneKey) -> Shortfall | None:
        """Why a lane is shut; for futures."""
        return self.store.shortfall(lane)

    def cancelled(self, future: RequestFuture) -> None:
        """A caller cancelled a future: remove the request, or end the call."""
        request_id = future.request_id
        if request_id is None:
            return  # still in the inbox: seen when it was submitted
        twins = self._waiting_for(request_id)
        if any(not twin.cancelled() for twin in twins):
            return  # somebody else still wants the answer
        call = self._calls.get(request_id)
        if call is not None:
            call.cancel()
        else:
            self._cancels.append(request_id)
            self._signal.set()

    async def _poll(self) -> None:
        """Notice what other processes changed; keep the lease while there is work."""
        renewed_s = self._loop.time()
        while True:
            await asyncio.sleep(self._poll_s)
            due = self._loop.time() - renewed_s > self.store.lease_ms / 3000
            if not (self._tally.waiting or self._elsewhere or due):
                continue
            renewed_s = self._loop.time() if due else renewed_s
            try:
                if await self.store.changed(self._clock.now_ms()):
                    await self._read_budgets()
                    await self._look_elsewhere()
                    self._signal.set()
            except StoreError as exc:
                logger.warning("cannot look for changes by other processes: %s", exc)

    async def _look_elsewhere(self) -> None:
        if not self._elsewhere:
            return
        for finished in await self.store.outcomes(tuple(self._elsewhere)):
            self._elsewhere.discard(finished.id)
            for future in self._take_futures(finished.id):
                _resolve_finished(future, finished)

    def _fail_waiting(self, error: SchedulerError) -> None:
        for request_id in list(self._futures):
            self._fail(request_id, error)
        for _, future in self._inbox:
            if future is not None:
                _set_exception(future, error)
        for _, done in self._batches:
            if not done.done():
                done.set_exception(error)
        for waiter in self._idle_waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Tally:
    """Sums of this process since it opened."""

    __slots__ = ("ended", "overruns", "posted_nusd", "reserved_nusd", "suspense_nusd", "waiting")

    def __init__(self) -> None:
        self.waiting = self.posted_nusd = self.reserved_nusd = self.suspense_nusd = 0
        self.overruns = 0
        self.ended: Counter[RequestState] = Counter()

    def end_waiting(self, state: RequestState) -> None:
        self.waiting -= 1
        self.ended[state] += 1


def exceeded(lack: Shortfall) -> BudgetExceeded:
    """A shortfall as the error a caller sees."""
    limit = 0 if lack.limit == UNLIMITED else lack.limit
    return BudgetExceeded(
        lack.budget, limit, lack.posted, lack.reserved, lack.needed, lack.resumes_at_ms, lack.zone,
        lack.unit.value,
    )  # fmt: skip


def _by_name(providers: Provider | Iterable[Provider]) -> dict[str, Provider]:
    found = [providers] if isinstance(providers, Provider) else list(providers)
    if not found:
        from scheduler.providers.openai import OpenAI

        found = [OpenAI()]
    named = {provider.name: provider for provider in found}
    if len(named) < len(found):
        raise ConfigError("providers", "two of them have the same name")
    return named


async def _aiter(requests: Iterable[Request] | AsyncIterator[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterator):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


def _outcome(future: RequestFuture, index: int, return_exceptions: bool) -> Response:
    error = future.exception()
    if error is None:
        response = future.result()
        response.index = index
        return response
    if not return_exceptions:
        raise error
    error.index, error.key = index, future.request.key  # type: ignore[attr-defined]
    return error  # type: ignore[return-value]


def _set_exception(future: RequestFuture, error: SchedulerError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # read: nobody has to await a rejection


def _resolve_finished(future: RequestFuture, finished: Finished) -> None:
    if future.done():
        return
    if finished.response is not None:
        future.set_result(finished.response)
    else:
        error = CallFailed((finished.error or {}).get("message", finished.state.value))
        error.attempts, error.cost_nusd = finished.attempts, finished.cost_nusd
        future.set_exception(error)


def _settled_event(ended: Attempt, now_ms: int) -> events.Settled:
    request, settlement = ended.claimed.request, ended.settlement
    cost_nusd = settlement.nusd
    if settlement.outcome is Outcome.SUSPEND:
        cost_nusd = ended.claimed.ceiling_nusd
    return events.Settled(
        now_ms, ended.claimed.request_id, request.key, request.job, request.model,
        settlement.outcome.value, cost_nusd, ended.overrun_nusd, settlement.state,
        ended.claimed.attempt, ended.response, ended.error,
    )  # fmt: skip
