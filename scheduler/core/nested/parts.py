"""What a function under way asks, part by part: what came by so is what it cost.

Calls within a call are parts of it: they wait for nothing, and what they may cost is covered by what
was reserved for it. A `Tab` is kept of the parts of one function. What they cost is posted for the
function, once; a part of which nobody knows what became counts its own ceiling. As soon as something
goes out of which nobody can say what it may cost, only the function's own quote is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.calls import (
    Attempt,
    UnderWay,
    attempt,
    attempt_around,
    going_on_within,
)
from scheduler.core.intake import Intake
from scheduler.core.tries import Tries
from scheduler.errors import SchedulerError
from scheduler.guards.contexts import set_within
from scheduler.limits.retry import Retry
from scheduler.providers.base import Send
from scheduler.request import Request, RequestState, Response
from scheduler.stores.base import Claimed, Outcome


class Bill(NamedTuple):
    """What the parts of a function come to.

    Attributes:
        nusd: In nano-dollars, at the ceiling where nobody knows.
        parts: How many there were.
        is_known: What each of them cost is known.
        is_bound: None costs more than what it counts, and nothing else was seen to go out.
    """

    nusd: int
    parts: int
    is_known: bool
    is_bound: bool


@dataclass(slots=True, eq=False)
class Part:
    """One attempt of a call within.

    Attributes:
        nusd: What it counts; until it has ended its ceiling.
        is_known: That is what it cost.
        is_priced: There is a price for it.
    """

    nusd: int
    is_priced: bool
    is_known: bool = False

    def ended(self, how: Attempt) -> None:
        """Take down what became of it."""
        settlement, response = how.settlement, how.response
        self.is_known = settlement.outcome is not Outcome.SUSPEND
        if settlement.outcome is Outcome.VOID:
            self.nusd, self.is_priced = 0, True
        elif settlement.outcome is Outcome.POST:
            is_told = response is None or not response.is_estimated
            self.nusd, self.is_priced = settlement.nusd, self.is_priced or is_told
            self.is_known = is_told


@dataclass(slots=True, eq=False)
class Tab:
    """The parts of one function.

    Attributes:
        owner: What tells this scheduler from others: its store.
        counts: Whether parts are noted; else they are below one that is noted as a whole.
        is_open: Whether what is asked is still a part.
        around: The attempt that the function is called in.
    """

    owner: object
    counts: bool = True
    is_open: bool = True
    outer: Tab | None = None
    around: UnderWay | None = None
    _parts: list[Part] = field(default_factory=list)
    _under_way: set[asyncio.Task[Response]] = field(default_factory=set)
    _misses: bool = False
    _is_billed: bool = False

    @contextlib.contextmanager
    def kept(self) -> Iterator[Tab]:
        """What runs within the block is asked for by this function."""
        self.around = attempt_around(self.owner)
        self.outer = _tab.get()
        while self.outer is not None and not self.outer.is_open:
            self.outer = self.outer.outer  # it would be kept for nothing
        token = _tab.set(self)
        try:
            yield self
        finally:
            self.is_open = False
            _tab.reset(token)

    @contextlib.contextmanager
    def gone_on(self) -> Iterator[None]:
        """As `kept`, for what the function left to be run by others: the body of a generator."""
        with going_on_within(self.around), set_within(_tab, self):
            yield

    @property
    def takes_more(self) -> bool:
        """Whether what begins now is still on the bill; in the scheduler's loop."""
        return not self._is_billed

    def misses(self) -> None:
        """Something goes out of which nobody can say what it may cost."""
        self._misses = True

    def bill(self) -> Bill:
        """What they come to, now."""
        parts = self._parts
        return Bill(
            sum(part.nusd for part in parts), len(parts), all(part.is_known for part in parts),
            not self._misses and all(part.is_priced for part in parts),
        )  # fmt: skip

    def last_bill(self) -> Bill:
        """As `bill`, when it is settled: what is under way is not asked once more after that."""
        self._is_billed = True
        return self.bill()

    def begin(
        self,
        intake: Intake,
        retry: Retry | None,
        now_ms: Callable[[], int],
        request: Request,
        send: Send,
    ) -> asyncio.Task[Response]:
        """Ask for a part, at once; in the scheduler's loop.

        Args:
            intake: Knows providers and prices.
            retry: Whether and when to try again; None: never.
            now_ms: Tells the time.
            request: What is asked, with its provider.
            send: Asks it.
        """
        work = self._make(intake, retry, now_ms, request, send)
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _make(
        self,
        intake: Intake,
        retry: Retry | None,
        now_ms: Callable[[], int],
        request: Request,
        send: Send,
    ) -> Response:
        name = request.provider or intake.default_provider
        tariff, ceiling_nusd = intake.tariff(intake.providers[name]), None
        with contextlib.suppress(SchedulerError):  # no price: it goes all the same
            quote = intake.quoted(intake.providers[name], request)
            ceiling_nusd = quote.ceiling_nusd
        tries, number = Tries(), 0
        while True:
            number += 1
            part = Part(ceiling_nusd or 0, ceiling_nusd is not None)
            self._parts.append(part)
            at_ms = now_ms()
            claimed = Claimed(0, 0, request, number, part.nusd, 0, 0, at_ms, 0)
            how = await attempt(
                name, tariff, claimed, (retry or _ONCE).without_patience(), now_ms, send, tries
            )
            part.ended(how)
            if how.response is not None:
                return how.response
            if how.error is None:
                raise asyncio.CancelledError
            wait_ms = _wait_ms(how, number, now_ms()) if retry is not None else None
            if wait_ms is None or self._is_billed:
                raise how.error
            await asyncio.sleep(wait_ms / 1000)
            if self._is_billed:
                raise how.error

    async def settled(self) -> None:
        """Wait until those that are under way have ended."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    @property
    def is_waiting(self) -> bool:
        """Whether any is under way."""
        return bool(self._under_way)


MOST_LIMITED = 6  # tries of one that is refused for its rate: within a call there is no queue
_ONCE = Retry(stop=lambda state: True)
_tab: ContextVar[Tab | None] = ContextVar("scheduler_tab", default=None)


def _wait_ms(how: Attempt, number: int, now_ms: int) -> int | None:
    """How long to wait before another try; None: there is none."""
    settlement = how.settlement
    if settlement.state is not RequestState.QUEUED:
        return None
    if settlement.not_before_ms:
        return max(0, settlement.not_before_ms - now_ms)
    asked_ms = getattr(how.error, "retry_after_ms", None)
    return None if number >= MOST_LIMITED else max(asked_ms or 0, 500 * 2**number)


def noted_here(owner: object) -> tuple[Tab | None, bool]:
    """Where what this code asks is noted, if it is a part of a call under way of the scheduler with
    this store; and whether it is covered by a call that is noted as a whole.

    Neither: it is a call of its own. So is what a function asks when its bill was made.
    """  # noqa: D205
    around = attempt_around(owner)
    if around is None:
        return None, False
    tab, was_kept = _tab.get(), False
    while tab is not None:
        if tab.around is around:  # others are of calls around that one
            if tab.is_open:
                return (tab, False) if tab.counts else (None, True)
            was_kept = True
        tab = tab.outer
    return None, not was_kept
