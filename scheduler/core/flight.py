"""The calls under way: each is begun once, and its end is taken in once, whatever it is.

A call's task may end in many ways: by its provider's answer or exception, cancelled from here,
by its own provider or by anybody else, before it has begun, by an exception that ends the
program; or not at all. All of them come to one place, `Flight._over`, and from there
to the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import NamedTuple

from scheduler.clock import Clock
from scheduler.core.calls import Attempt, UnderWay, attempt, interrupt, lost, unsent
from scheduler.core.intake import Intake
from scheduler.core.nested.pace import Pace
from scheduler.core.tries import Tries
from scheduler.errors import words_of
from scheduler.guards.plain import logger_of
from scheduler.limits.retry import Retry
from scheduler.providers.base import Provider, Send
from scheduler.request import RequestState
from scheduler.stores.base import Claimed, Outcome, Settlement

logger = logger_of("scheduler.flight")

STUBBORN_S = 10.0  # a call that goes on for so long after it was cancelled is given up for lost
CLOSED = "the scheduler was closed while the call was under way"
TORN = "somebody else cancelled the task of the call"


class Call:
    """One call under way.

    Attributes:
        attempt: By which what runs within it knows it; None: it has not begun.
        ended: How it ended; None: it has not, or was torn away.
        is_begun: Whether its task has; if not, nothing was sent.
        is_over: Its end has been taken in, or was given up waiting for.
        interrupted: Why it was cancelled from here though its request is still wanted; None: it
            was not.
        is_unwanted: It was cancelled because nobody waits for it any more.
        end_rest: Takes its place again, which it lent while nobody works on it; None: it did not.
        pace: Of the reader of its stream, once there is one.
    """

    __slots__ = (
        "attempt", "claimed", "end_rest", "ended", "interrupted", "is_begun", "is_over", "is_unwanted", "pace", "provider", "task",
    )  # fmt: skip

    def __init__(self, claimed: Claimed, provider: str) -> None:
        self.claimed, self.provider = claimed, provider
        self.task: asyncio.Task[None] | None = None
        self.ended: Attempt | None = None
        self.attempt: UnderWay | None = None
        self.interrupted: str | None = None
        self.end_rest: Callable[[], None] | None = None
        self.pace: Pace | None = None
        self.is_begun = self.is_over = self.is_unwanted = False

    def strike(self) -> None:
        """Cancel its task, once."""
        if self.task is not None and not self.task.cancelling():
            self.task.cancel()


class Sender(NamedTuple):
    """Who makes a call.

    Attributes:
        is_callers: Whether it is whoever asked, rather than the provider.
        most_attempts: How often they want it tried at most; None: as it is usual.
    """

    send: Send
    is_callers: bool = False
    most_attempts: int | None = None


Choose = Callable[[Provider], Sender]


class Flight:
    """The calls under way of one process. Used by `Pump` alone.

    Args:
        owner: What tells this scheduler from others: its store.
        intake: Knows the providers.
        retry: For providers that have no rule of their own.
        clock: Tells the time.
        tries: What became of earlier attempts.
        landed: Takes every end, to be settled.

    Attributes:
        calls: By request, until they are settled.
        slots: Free places per provider.
        lease_until_s: When others may take this process for dead, on the loop's clock; None: never.
    """

    def __init__(
        self,
        owner: object,
        intake: Intake,
        retry: Retry,
        clock: Clock,
        tries: Tries,
        slots: dict[str, int],
        landed: Callable[[Attempt], None],
    ) -> None:
        self._owner, self._intake, self._retry, self._clock = owner, intake, retry, clock
        self._tries, self._landed = tries, landed
        self._loop = asyncio.get_running_loop()
        self.calls: dict[int, Call] = {}
        self.slots = slots
        self.lease_until_s: float | None = None

    def start(self, claimed: Claimed, choose: Choose, context: Context | None) -> None:
        """Begin a call.

        Args:
            claimed: What was admitted.
            choose: Who makes the call; asked when it begins.
            context: In which it runs; None: this one.
        """
        name = self.provider_of(claimed)
        self.slots[name] -= 1
        call = self.calls[claimed.request_id] = Call(claimed, name)
        call.task = self._loop.create_task(self._make(call, choose), context=context)
        call.task.add_done_callback(partial(self._over, call))

    def provider_of(self, claimed: Claimed) -> str:
        """The name of who is asked."""
        return claimed.request.provider or self._intake.default_provider

    async def _make(self, call: Call, choose: Choose) -> None:
        if self.lease_until_s is not None and self._loop.time() > self.lease_until_s:
            return  # so long did this process stand still that others may have sent it meanwhile
        call.is_begun = True
        provider = self._intake.providers[call.provider]
        send, is_callers, most_attempts = choose(provider)
        retry = provider.retry or self._retry
        if is_callers:  # who makes a call has patience of their own, and waits for its error
            retry = retry.without_patience()
        if most_attempts is not None:
            retry = retry.with_attempts(most_attempts)
        call.attempt = UnderWay(self._owner, call.claimed.request_id)
        with call.attempt:
            call.ended = await attempt(
                call.provider, self._intake.tariff(provider), call.claimed,
                retry, self._clock.now_ms, send, self._tries,
            )  # fmt: skip
        report = call.ended.settlement.report
        if report is not None:
            is_slow = call.pace is not None and call.pace.is_slow
            report.is_timed = not (call.attempt.has_waited or is_slow)

    def _over(self, call: Call, task: asyncio.Task[None]) -> None:
        """A call's task has ended, in whatever way."""
        error = None if task.cancelled() else task.exception()
        if call.is_over:
            return
        if not call.is_begun:
            self._take_back(call, RequestState.QUEUED)
            return
        ended = call.ended
        if ended is None:
            why = TORN if error is None else f"the call ended by {words_of(error)}"
            if isinstance(error, Exception):
                logger.error("a call ended in a way that it should not", exc_info=error)
            ended = self._lost(call, call.interrupted or why)
        elif ended.settlement.state is RequestState.CANCELLED and not call.is_unwanted:
            interrupt(ended, call.interrupted or TORN)
        if call.interrupted is not None and ended.settlement.state is RequestState.CANCELLED:
            # Not its caller's wish: it is the next run's work.
            ended.settlement.state = RequestState.QUEUED
        self._take_in(call, ended)

    def _lost(self, call: Call, why: str) -> Attempt:
        return lost(call.claimed, call.provider, self._clock.now_ms(), why)

    def _take_in(self, call: Call, ended: Attempt) -> None:
        call.is_over = True
        if call.end_rest is not None:
            call.end_rest()
        self.slots[call.provider] += 1
        self._landed(ended)

    # Ended from here

    def cancel(self, request_id: int) -> None:
        """Nobody wants this call any more."""
        call = self.calls[request_id]
        if not call.is_over:
            call.is_unwanted = True
            self._strike(call, RequestState.CANCELLED)

    def interrupt(self) -> None:
        """End all calls; their requests go back to the queue."""
        calls = [call for call in self.calls.values() if not call.is_over]
        for call in calls:
            if not call.is_over:  # it may have gone with one that waited for it
                call.interrupted = CLOSED
                self._strike(call, RequestState.QUEUED)
        if calls:
            self._loop.call_later(STUBBORN_S, self._give_up, calls)

    def _strike(self, call: Call, state: RequestState) -> None:
        """End a call; one whose task has not begun was never sent, so it costs nothing."""
        call.strike()
        if not call.is_begun:
            self._take_back(call, state)

    def _give_up(self, calls: Sequence[Call]) -> None:
        """Wait no longer for calls that go on although they were cancelled."""
        for call in calls:
            if not call.is_over:
                logger.warning(
                    "a call of %s goes on %g s after it was cancelled; it is given up for lost",
                    call.provider, STUBBORN_S,
                )  # fmt: skip
                ended = self._lost(call, CLOSED)
                ended.settlement.state = RequestState.QUEUED
                self._take_in(call, ended)

    def drop(self) -> list[asyncio.Task[None]]:
        """End all calls, and take in no end any more; the tasks that go on for a while."""
        calls, self.calls = list(self.calls.values()), {}
        for call in calls:
            call.is_over = True
            call.strike()
        return [call.task for call in calls if call.task is not None]

    # What was never sent

    def _take_back(self, call: Call, state: RequestState) -> None:
        call.is_over = True
        del self.calls[call.claimed.request_id]
        self.slots[call.provider] += 1
        self.hand_back(call.claimed, state)

    def hand_back(
        self, claimed: Claimed, state: RequestState, not_before_ms: int | None = None
    ) -> None:
        """Undo a claim of which nothing was sent."""
        settlement = Settlement(
            claimed.reservation_id, claimed.request_id, Outcome.VOID, state,
            not_before_ms=not_before_ms, is_attempt=False,
            report=unsent(claimed, self.provider_of(claimed), self._clock.now_ms()),
        )  # fmt: skip
        self._landed(Attempt(claimed, settlement, is_sent=False))

    def tasks(self) -> Iterable[asyncio.Task[None]]:
        """The tasks of the calls."""
        return [call.task for call in self.calls.values() if call.task is not None]
