"""The shell: takes requests in, lets out what fits, gives back what came of it.

`scheduler.scheduler` adds what brings other people's code to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, overload

from scheduler import events
from scheduler.admission.fairness import fairness_of
from scheduler.budget import Budget
from scheduler.clock import Clock, SystemClock, TrustedClock
from scheduler.core.calls import is_within_call
from scheduler.core.declared import open_budgets
from scheduler.core.ending import DRAIN, Ending, close_all, drain_s
from scheduler.core.future import RequestFuture
from scheduler.core.governing import Governing
from scheduler.core.intake import EXCEEDED, Intake, OnExceeded, Prevention
from scheduler.core.looking import Looking
from scheduler.core.mapping import answered
from scheduler.core.marks import apply
from scheduler.core.nested.parts import Tab
from scheduler.core.pump import Pump
from scheduler.core.resolver import Resolver
from scheduler.core.roles import ROLES, Role, check_key, check_role, keep_here
from scheduler.core.stream import ResponseStream
from scheduler.core.tagging import Tagging
from scheduler.core.watching import Companion, Watchers
from scheduler.duration import parse_duration_ms
from scheduler.errors import (
    ConfigError,
    QueueFull,
    SchedulerClosed,
    StoreError,
    WrongLoop,
)
from scheduler.ledger.matching import DEFAULT
from scheduler.limits import Gates
from scheduler.limits.retry import ATTEMPTS, PATIENCE, Retry, plain_retry
from scheduler.money import parse_usd
from scheduler.prices.book import PriceBook
from scheduler.providers.base import Provider, Send
from scheduler.request import Duration, Quote, Request, RequestState, Response
from scheduler.stores import acts, open_store
from scheduler.stores.base import (
    KEEP_FINISHED,
    NewRequest,
    Outcome,
    Settlement,
    Store,
    StorePrompts,
    Submitted,
    Unknown,
)

FOR_OTHERS_S = 30.0  # calls that are made for other processes may take so long when this one ends
FORKED = (
    "the scheduler was opened before this process was forked, and works in the one it was forked "
    "from; nothing was sent. Open one in each process after the fork, and none before it"
)
NOT_OPENED = (
    "the scheduler is not opened yet; nothing was sent. Use it in `async with s:`, or, where there is "
    "no event loop, make it by scheduler.open(…)"
)


class Shell(Tagging, Governing, Looking):
    """What a `Scheduler` does with requests that are made for it; see there for the arguments."""

    def __init__(
        self,
        store: str | Path | Store | None = None,
        *,
        budgets: Iterable[Budget] | Budget | str | int | float | Decimal = (),
        providers: Provider | Iterable[Provider] = (),
        prices: PriceBook | Mapping[str, str] | None = None,
        concurrency: int = 64,
        on_exceeded: OnExceeded = "wait",
        max_attempts: int = ATTEMPTS,
        patience: Duration = PATIENCE,
        max_queue: int | None = None,
        cap_output: int | None = None,
        max_prompt_tokens: int | None = None,
        max_cost: str | int | float | Decimal | None = None,
        fallback: Sequence[str] = (),
        routes: Mapping[str, str] | None = None,
        retry_wait_s: Callable[[int], float] | None = None,
        retry: Retry | None = None,
        store_prompts: StorePrompts = "full",
        keep_finished: int | None = KEEP_FINISHED,
        clock: Clock | None = None,
        poll_interval: Duration = 0.2,
        role: Role = "both",
        fair_by: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if role not in ROLES:
            raise ConfigError("role", f"{role!r} is not one of 'client', 'worker' and 'both'")
        if concurrency < 1:
            raise ConfigError("concurrency", f"{concurrency} is not at least 1")
        if max_attempts < 1:
            raise ConfigError("max_attempts", f"{max_attempts} is not at least 1")
        if on_exceeded not in EXCEEDED:
            problem = f"{on_exceeded!r} is not one of 'wait', 'raise' and 'fallback'"
            raise ConfigError("on_exceeded", problem)
        super().__init__()
        if isinstance(store, Store):
            if store_prompts != "full":
                raise ConfigError("store_prompts", "is set on the store that was given")
            if keep_finished != KEEP_FINISHED:
                raise ConfigError("keep_finished", "is set on the store that was given")
            self.store: Store = store
        else:
            self.store = open_store(store, store_prompts=store_prompts, keep_finished=keep_finished)
        if role == "client" and not self.store.is_shared:
            raise ConfigError(
                "role", "a client needs a store that others share: a file, or a database"
            )
        self.role = role
        self.concurrency, self.max_queue = concurrency, max_queue
        if clock is None:
            self._clock: Clock = self.store.clock or SystemClock()
        else:
            self._clock, self.store.clock = TrustedClock(clock), None
        if not isinstance(prices, PriceBook):
            prices = PriceBook(prices or {}, now_ms=self._clock.now_ms)
        self.prices = prices
        self._given_prices = frozenset(prices.own)
        prevention = Prevention(max_prompt_tokens, max_cost, tuple(fallback), cap_output)
        self.on_exceeded = on_exceeded
        self._intake = Intake(providers, prices, self._clock, on_exceeded, prevention, routes)
        self._intake.fairness = fairness_of(fair_by, weights)
        self.store.share(self._intake.fairness)
        self._retry = retry or plain_retry(max_attempts, retry_wait_s, patience)
        self._poll_s = parse_duration_ms(poll_interval, "poll_interval") / 1000
        if isinstance(budgets, str | int | float | Decimal):
            budgets = Budget(DEFAULT, budgets)
        self._wanted = [budgets] if isinstance(budgets, Budget) else list(budgets)
        self._announcer, self._watchers = events.Announcer(), Watchers()
        self._companions: list[Companion] = []
        self._pump: Pump | None = None
        self._resolver: Resolver | None = None
        self._state: Literal["new", "open", "closing", "closed"] = "new"
        self._ending: Ending | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the one it was opened in
        self._process_id = 0  # likewise

    # Opening and closing

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise SchedulerClosed("a scheduler can be opened once; make a new one")
        resolver = Resolver(self.store, self._intake, self._clock, self._resolved)
        await self.store.open(self._clock.now_ms())
        try:
            await self.learn_prices()
            await open_budgets(self.store, self._intake.book, self._wanted, self._clock.now_ms())
        except BaseException:
            await self.store.aclose()
            raise
        self._state = "open"
        self._loop, self._process_id = asyncio.get_running_loop(), os.getpid()
        self.store.use(Gates(self._intake.rules(self.concurrency)))
        self._intake.shares = self.store.is_shared and self.store.keeps_whole
        self._serve()
        self._pump = Pump(
            self.store, self._intake, self._retry, self._clock, self._announcer, self.concurrency,
            self._poll_s, role=self.role, watchers=self._watchers,
        )  # fmt: skip
        self._pump.suspended = resolver.wake
        self._pump.key_refused = lambda provider: self._serve()
        self._resolver = resolver
        providers = self._intake.providers.values()
        self._ending = Ending(
            self._pump, resolver, self._companions, providers, self.store, self._stop
        )
        resolver.start()
        for companion in self._companions:
            companion.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        is_here = self._loop is asyncio.get_running_loop() and not self._is_forked
        if error is None and self._pump is not None and is_here and self._state == "open":
            with contextlib.suppress(TimeoutError):  # then they are cancelled like its own
                async with asyncio.timeout(FOR_OTHERS_S):
                    await self._pump.finish_for_others()
        await self._end(None if error is None else 0)

    async def aclose(self, *, drain: bool = False, drain_timeout: Duration | None = DRAIN) -> None:
        """End everything; what waits stays in a durable store for the next run.

        Calls under way are cancelled, and what they reserved keeps counting, since
        the provider may bill it: their futures get `CallInterrupted`, those of requests that were
        never sent `SchedulerClosed`. It may be awaited in another event loop, too.

        Then the providers are closed. One that takes more than ten seconds for it is named in a
        warning, and left.

        Args:
            drain: Let calls under way finish first, and streams keep for their readers what
                comes.
            drain_timeout: How long they may take; then they are cancelled. None: as long as their
                providers take. Asked twice to close, it takes the shorter time.
        """
        within_s = drain_s(drain_timeout)
        await self._end(within_s if drain else 0)

    async def _end(self, within_s: float | None) -> None:
        """As `aclose`; see `Ending.begin`."""
        loop = self._loop
        if self._is_forked:  # all of it is the other process's, which goes on with it
            self._state = "closed"
            return
        if loop is not None and loop is not asyncio.get_running_loop():
            if loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(self._end(within_s), loop)
                await asyncio.wrap_future(closing)
            self._state = "closed"  # or its loop has ended, and everything with it
            return
        if self._ending is None:  # it was never opened
            self._stop()
            await close_all(self._intake.providers.values())
        else:
            self._ending.begin(within_s)
            await self._ending.wait()
        self._state = "closed"

    def _stop(self) -> None:
        """Take nothing more in."""
        if self._state != "closed":
            self._state = "closing"

    # Taking requests in

    @overload
    async def run(
        self,
        request: Request,
        *,
        on_exceeded: OnExceeded | None = None,
        stream: Literal[False] = ...,
    ) -> Response: ...

    @overload
    async def run(
        self, request: Request, *, on_exceeded: OnExceeded | None = None, stream: Literal[True]
    ) -> ResponseStream: ...

    async def run(
        self, request: Request, *, on_exceeded: OnExceeded | None = None, stream: bool = False
    ) -> Response | ResponseStream:
        """Answer one request, however long it has to wait for money.

        Within another call of this scheduler it never waits for that one: it runs on its place, and
        what it costs is reserved beside. If it lacks what only calls hold that wait themselves, it
        raises `HeldByCallers` at once.

        Args:
            request: What is asked.
            on_exceeded: As on the scheduler, for this request.
            stream: Give back the events as they come; see `stream`.

        Raises:
            RequestRejected: Never sent, never charged: see its leaves.
            CallFailed: Tried, and given up; says what it cost.
            StoreError: Queue and ledger cannot be written; nothing new is sent.
        """
        if stream:
            return self.stream(request, on_exceeded=on_exceeded)
        return await self.submit(request, on_exceeded=on_exceeded)

    def stream(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> ResponseStream:
        """Answer one request in pieces.

        The money is put aside, and the request waits, as for any other; what it cost is
        settled from the usage at the end of the stream, which is asked for where it has to be
        (and not shown to you if you did not ask yourself). A stream that breaks off, or is
        left early, keeps counting what it reserved until somebody knows better.

        Returns:
            An async iterator of `StreamEvent`, to be used in ``async with``; its
            `response` is the whole answer, with usage and cost.

        Raises:
            As `submit`; what comes later is raised from the iteration.
        """
        return ResponseStream(self._submit(request, on_exceeded, None, is_shared=False))

    def submit(
        self, request: Request, *, on_exceeded: OnExceeded | None = None, send: Send | None = None,
        retry_failed: bool = False,
    ) -> RequestFuture:  # fmt: skip
        """Put a request in the queue and give back a future of its response.

        It is in the store, and so survives a crash if the store does, once the
        event loop has run the next transaction.

        Args:
            request: What is asked.
            on_exceeded: As on the scheduler, for this request.
            send: Makes the call itself, in place of its provider's `send` and by its rules, each
                time the request is admitted, in the context of this submission. It lives in this
                process only: after a crash the provider is asked.
            retry_failed: Ask again under a key whose request failed before.

        Raises:
            PriceUnknown, BudgetUnknown, CostTooHigh, QueueFull, ConfigError,
            SchedulerClosed, WrongLoop: at once; nothing was queued.
        """
        return self._submit(request, on_exceeded, send, send is None, retry_failed)

    def _submit(
        self, request: Request, on_exceeded: OnExceeded | None, send: Send | None,
        is_shared: bool, retry_failed: bool = False,
    ) -> RequestFuture:  # fmt: skip
        """As `submit`; not `is_shared`: what becomes of it happens in this process."""
        pump = self._pump_here()
        new = self._prepare(pump, request, on_exceeded)
        new.retry_failed = retry_failed
        if not is_shared:
            new.lane = new.lane.as_private()
        keep_here(self.role, self._intake, new)
        if self.max_queue is not None:
            self._check_room(1, self.max_queue)
        if self.role != "both":
            check_role(self.role, new)
        future = pump.submit(new)
        future.send = send
        return future

    def part(
        self, tab: Tab, request: Request, send: Send, *, tries_again: bool,
        most_attempts: int | None = None,
    ) -> asyncio.Task[Response]:  # fmt: skip
        """Make a call within an admitted one at once: it is a part of that, and noted on its tab.

        Args:
            tab: Of the function that asks.
            request: What is asked, with its provider.
            send: As for `submit`.
            tries_again: Whether to try again as for other requests.
            most_attempts: As its caller said; None: they did not.
        """
        retry = self._retry if tries_again else None
        if retry is not None and most_attempts is not None:
            retry = retry.with_attempts(most_attempts)
        return tab.begin(self._intake, retry, self._clock.now_ms, request, send)

    async def enqueue(
        self, requests: Sequence[Request], *, retry_failed: bool = False, for_others: bool = False
    ) -> list[Submitted]:
        """Put many requests in the queue in one transaction, without futures.

        When it returns they are in the store. Their outcomes come as `Settled` and
        `Expired` events and stay in the store under their keys.

        Args:
            requests: What is asked.
            retry_failed: Ask again under a key whose request failed before.
            for_others: Those for whose provider this process has no key wait for another one that
                has, if one could come; else they are refused. False: they fail for want of it.

        Raises:
            RequestRejected, ConfigError: One of them cannot be taken; none was queued.
        """
        pump, batch = self._pump_here(), []
        for request in requests:
            new = self._prepare(pump, request, None, is_checked=True)
            new.retry_failed = retry_failed
            if for_others:
                check_key(self._intake, new)
            else:
                keep_here(self.role, self._intake, new)
            if self.role != "both":
                check_role(self.role, new)
            batch.append(new)
        if self.max_queue is not None:
            self._check_room(len(batch), self.max_queue)
        return await pump.enqueue(batch)

    async def withdraw(self, ids: Iterable[int]) -> None:
        """Cancel requests by their ids in the store; what waited of them costs nothing.

        Those that run come to their end, those that another process alone can send are left to it,
        and so are those that somebody here awaits. Returns when all of that is stored.
        """
        await self._pump_here().withdraw(ids)

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
        async for response in answered(
            self.submit, requests, size, is_ordered=ordered, returns_errors=return_exceptions
        ):
            yield response

    def quote(self, request: Request) -> Quote:
        """What one attempt of a request may cost, without sending it.

        Raises:
            PriceUnknown: There is no price for its model.
        """
        return self._intake.quote(request)

    def digest(self, request: Request) -> str:
        """Fingerprint of what would be sent for a request; the same for the same question."""
        return self._intake.digest(request)

    def provider_for(self, request: Request) -> str:
        """The name of the provider that a request goes to."""
        return self._intake.provider_for(request)

    def validate(self, request: Request, *, for_others: bool = False) -> None:
        """Raise what `submit` would raise for a request, or its provider; queue nothing.

        `for_others`: what `enqueue` would, then.
        """
        new = self._prepare(self._open_pump(), request, None, is_checked=True)
        if for_others:
            check_key(self._intake, new)

    def _prepare(
        self, pump: Pump, request: Request, on_exceeded: OnExceeded | None, is_checked: bool = False
    ) -> NewRequest:
        if pump.broken is not None:
            raise StoreError(f"the store failed earlier: {pump.broken}") from pump.broken
        marks = self.marks
        if marks:
            request = apply(marks, request)
        if self._watchers:
            request = self._watchers.mark(request)
        new = self._intake.prepare(request, on_exceeded)
        if is_checked:
            self._intake.providers[new.lane.provider].check(new.request)
        self.store.prepare(new)
        return new

    def _open_pump(self) -> Pump:
        if self._state == "new":
            raise SchedulerClosed(NOT_OPENED)
        if self._pump is None or not (self._state == "open" or self._finishes_calls()):
            raise SchedulerClosed(f"the scheduler is {self._state}; nothing was sent")
        return self._pump

    def _finishes_calls(self) -> bool:
        """Whether calls under way may finish, and this is asked within one of them."""
        is_draining = self._pump is not None and self._pump.lets_finish
        return self._state == "closing" and is_draining and is_within_call(self.store)

    def _pump_here(self) -> Pump:
        """The pump, if this is its loop. Raises `SchedulerClosed` or `WrongLoop`."""
        pump = self._open_pump()
        if self._is_forked:
            raise SchedulerClosed(FORKED)
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if not is_here:
            raise WrongLoop
        return pump

    def _check_room(self, more: int, most: int) -> None:
        waiting = self._open_pump().waiting
        if waiting + more > most:
            raise QueueFull(waiting, most)

    async def learn_prices(self) -> None:
        """Take over the prices that somebody put in the store; those that were given come first."""
        for model, price in (await self.store.prices()).items():
            if model not in self._given_prices and self.prices.own.get(model) != price:
                self.prices.set(model, price)

    # What nobody knows

    async def suspended(self, *, job: str | None = None, limit: int = 1000) -> list[Unknown]:
        """Attempts whose outcome nobody knows, oldest first; what they reserved keeps counting."""
        return await self.store.suspended(job=job, limit=limit)

    async def resolve(
        self, unknown: Unknown, *, charge: str | int | float | Decimal | None
    ) -> bool:
        """Say what became of a call nobody heard back from.

        What it reserved is given back, and what it cost is posted; its own answer, should it
        come late, corrects that.

        Args:
            unknown: One of `suspended`.
            charge: What it cost, in dollars. None: nothing.

        Returns:
            Whether it was still unknown.
        """
        amount_nusd = 0 if charge is None else parse_usd(charge, "charge")
        settlement = Settlement(
            unknown.id, unknown.request_id, Outcome.POST if amount_nusd else Outcome.VOID,
            RequestState.FAILED, amount_nusd, unknown.ceiling_tokens if amount_nusd else 0,
            is_assumed=True,
        )  # fmt: skip
        now_ms = self._clock.now_ms()
        (done,) = await self.store.resolve([settlement], now_ms)
        if done:
            self._resolved([settlement])
            who = acts.this_process()
            await acts.note(self.store, acts.resolved(now_ms, who, unknown, amount_nusd))
        return done

    def _resolved(self, settlements: list[Settlement]) -> None:
        if settlements and self._pump is not None:
            self._pump.resolved(settlements)

    # Providers that turn up later

    def add_provider(self, provider: Provider) -> None:
        """Have one provider more, as if it had been given at the beginning.

        Raises:
            ConfigError: There is one of that name.
        """
        self._intake.add(provider)
        if self._pump is not None:
            self.store.gates.add(self._intake.rules(self.concurrency, provider))
            self._pump.add(provider)
            self._serve()
        if self._resolver is not None:
            self._resolver.start()

    def provider_at(self, url: str) -> str | None:
        """The provider whose service is behind a URL; None: none that is known."""
        return self._intake.provider_at(url)

    def keep_to(self, circle: str) -> None:
        """Share what is submitted from now on with processes of that circle only, and send nothing
        else of what others submit.
        """  # noqa: D205
        self._intake.circle = circle
        self._serve()

    def _serve(self) -> None:
        """Say what this process sends for others."""
        sends = self.role != "client" and self._intake.shares
        at_once = self.concurrency if sends else None
        self.store.serve(self._services(), at_once=at_once, left=self._intake.keyless)

    def _services(self) -> dict[str, str]:
        stopped = frozenset() if self._pump is None else self._pump.stopped
        services = self._intake.services
        return {name: each for name, each in services.items() if name not in stopped}

    @property
    def serves(self) -> dict[str, str]:
        """The services that it may ask for others, by provider's name."""
        services = self._services()
        return {name: each for name, each in services.items() if name not in self._intake.keyless}

    @property
    def shares(self) -> bool:
        """Whether other processes may send what is submitted to the default provider, and has a key."""
        default = self._intake.providers[self._intake.default_provider]
        return self._intake.shares and default.service is not None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it was opened in. Raises `SchedulerClosed` before and after."""
        self._open_pump()
        assert self._loop is not None
        if self._loop.is_closed():
            raise SchedulerClosed("the scheduler's event loop has ended; nothing was sent")
        if self._is_forked:
            raise SchedulerClosed(FORKED)
        return self._loop

    @property
    def _is_forked(self) -> bool:
        """Whether it was opened before this process was forked; its loop and threads are not here."""
        return self._loop is not None and os.getpid() != self._process_id

    def now_ms(self) -> int:
        """The time by its clock, in Unix milliseconds."""
        return self._clock.now_ms()

    @property
    def is_waiting(self) -> bool:
        """Whether any request of this process waits."""
        return self._pump is not None and self._pump.waiting > 0

    @property
    def is_closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._state in ("closing", "closed")

    # Looking

    def __repr__(self) -> str:
        if self._state != "open":
            return f"<Scheduler {self._state}>"
        return f"<Scheduler {self.stats()}>"

    async def begun(self) -> None:
        """Wait until it is known what others have left for this process. Raises `StoreError`."""
        await self._pump_here().begun()
        self.check()

    async def join(self) -> None:
        """Wait until nothing of this process waits or runs.

        Raises:
            StoreError: Queue and ledger cannot be written any more.
        """
        pump = self._pump_here()
        while pump.waiting > 0 or pump.is_calling:
            if pump.is_closed:
                raise SchedulerClosed
            self.check()
            await pump.turned()
        self.check()

    def check(self) -> None:
        """Whether work can go on.

        Raises:
            StoreError: Queue and ledger cannot be written any more; nothing more is sent.
                What was acknowledged is safe, and another process goes on from there.
        """
        broken = None if self._pump is None else self._pump.broken
        if broken is not None:
            raise StoreError(f"the store failed: {broken}") from broken

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers, the default first."""
        return tuple(self._intake.providers)

    def stop_admitting(self, provider: str | None = None) -> None:
        """Start nothing new, at one provider or at all; what runs goes on, what waits stays."""
        self._pump_here().stop_admitting(provider)
        if provider is not None:
            self._serve()

    def cancel_running(self) -> None:
        """End all calls under way; what they reserved keeps counting, their requests stay queued."""
        self._pump_here().cancel_running()

    async def drain(self) -> None:
        """Stop admitting and wait until nothing runs; streams keep for their readers what comes."""
        pump = self._pump_here()
        pump.stop_admitting()
        pump.let_flow()
        while pump.is_calling:
            await pump.turned()
