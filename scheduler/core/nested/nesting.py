"""Calls made on behalf of running ones, which never wait for those.

A request that is submitted within a call under way (an agent, a function that asks again) is an
*inner* one of that call, its *caller*, however deep. Two things follow.

Its place. A caller that waits works on nothing, so it lends its place: one inner request at a time
goes beyond the number of places (`LaneKey.is_lent`); more of them take free ones, or follow on it.
While all that it waits for lacks money, its place is anybody's (`parked`, `resting`).

Its money is reserved beside its caller's, as for any request. What it lacks may be held by callers
that wait themselves: `stuck` finds out whether it can ever have it. Of the inner requests that
cannot go the newest gets an error, one at a time, since its caller's end may free the others.

Whether a caller waits is told by its inner requests' futures: somebody awaits one of them. Of a
caller that polls them, and of what other processes hold, nobody can tell: for that money an inner
request waits for `PATIENCE_S`, then it gets the same error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from scheduler.admission.plan import LaneKey
from scheduler.core.callers.waiters import Waiters
from scheduler.core.calls import UnderWay
from scheduler.core.flight import Call
from scheduler.core.future import Keeper, RequestFuture
from scheduler.core.nested.stuck import PATIENCE_S, Holding, Inner, find_stuck
from scheduler.errors import SchedulerError
from scheduler.ledger.account import Needs
from scheduler.stores.base import NewRequest, Store, Submitted

REACTION_S = 0.1  # how long a caller may take to make something of an error before it waits again
EARLY_S = 0.001  # so much before its time a timer may ring


class InnerFuture(RequestFuture):
    """The future of a request that was submitted within a call under way."""

    __slots__ = ("caller", "counted", "gave_up", "needs")

    def __init__(
        self, new: NewRequest, caller: UnderWay, keeper: Keeper, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(new.request, new.lane, keeper, loop)
        self.caller = caller
        self.gave_up = False  # its caller's place, since it lacked money
        self.counted: LaneKey | None = None  # among those in which inner requests may wait
        self.needs: Needs = (new.ceiling_nusd, new.ceiling_tokens, 1)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it, besides `Nesting`."""
        return len(self._callbacks or ()) > 1

    def add_done_callback(
        self, fn: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        """As any future's; from now on its caller waits."""
        super().add_done_callback(fn, context=context)
        if self._keeper is not None and not self.done():
            self._keeper.awaited(self)


@dataclass(slots=True)
class _Caller:
    """A call under way with inner requests.

    Attributes:
        inner: Those that have not ended, oldest first.
        lent: Which of them has its place; None: none.
        told_until_s: Until then it makes something of an error that it got.
    """

    attempt: UnderWay
    inner: dict[InnerFuture, None] = field(default_factory=dict)
    lent: InnerFuture | None = None
    told_until_s: float = 0.0


class Nesting:
    """Which calls of one process wait for which. Used by `Pump` alone.

    Args:
        store: Knows the balances.
        calls: Those under way, by request.
        waiters: Who waits for which request.
        elsewhere: The requests that other processes look after.
        wake: Has the pump take a turn.
    """

    def __init__(
        self,
        store: Store,
        calls: Mapping[int, Call],
        waiters: Waiters,
        elsewhere: Container[int],
        wake: Callable[[], None],
    ) -> None:
        self._store, self._calls, self._waiters = store, calls, waiters
        self._elsewhere, self._wake = elsewhere, wake
        self._loop = asyncio.get_running_loop()
        self._callers: dict[UnderWay, _Caller] = {}
        self._lanes: Counter[LaneKey] = Counter()  # in which inner requests may wait, none lent
        self._joined: set[InnerFuture] = set()  # those whose request was running when they came
        self._since_s: dict[Inner, float] = {}  # since when it waits for `PATIENCE_S`
        self._lends: dict[int, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._callers)

    # Places

    def begin(self, new: NewRequest, caller: UnderWay, keeper: Keeper) -> InnerFuture:
        """The future of an inner request that is submitted now."""
        future = InnerFuture(new, caller, keeper, self._loop)
        future.add_done_callback(self._ended)
        self._callers.setdefault(caller, _Caller(caller)).inner[future] = None
        self._count(future, new.lane)
        return future

    def place(self, future: InnerFuture, new: NewRequest) -> None:
        """Give a request that is to be queued its caller's place, if no other has it."""
        caller = self._callers.get(future.caller)
        if caller is not None and future.caller.is_live and caller.lent in (None, future):
            caller.lent = future
            new.lane = new.lane._replace(is_lent=True)
        self._count(future, new.lane)
        future.lane, future.needs = new.lane, (new.ceiling_nusd, new.ceiling_tokens, 1)

    def amended(self, request_id: int, new: NewRequest) -> None:
        """A request goes on waiting on other terms: it keeps the place that it was lent."""
        for future in self._waiters.of(request_id):
            if not isinstance(future, InnerFuture) or future.done():
                continue
            if request_id in self._calls:
                self._count(future, new.lane)
            else:
                self.place(future, new)
        if new.lane.is_lent:
            self._lends.pop(request_id, None)

    def submitted(self, future: InnerFuture, submitted: Submitted) -> None:
        """It is in the store; or the request of its key is, which may have begun long ago."""
        caller, request_id = self._callers[future.caller], submitted.id
        self._count(future, future.lane)
        if request_id in self._calls or submitted.is_elsewhere:
            self._joined.add(future)
            if caller.lent is future:
                caller.lent = None  # it needs none
        elif caller.lent is future and (
            submitted.is_known or (future.lane is not None and not future.lane.is_lent)
        ):
            self._lend(request_id, True)
        if future.lane is None:
            return
        probing = self._store.gates.probing(future.lane.provider)
        if probing is not None and probing in _ancestors(future.caller):
            self._store.gates.probe(future.lane.provider)  # who tries would wait for this one

    def _lend(self, request_id: int, is_lent: bool) -> None:
        self._lends[request_id] = is_lent
        for future in self._waiters.of(request_id):
            if future.lane is not None:
                future.lane = future.lane._replace(is_lent=is_lent)
        self._wake()

    def take_lends(self) -> list[tuple[int, bool]]:
        """For which requests that wait this has changed; for the next turn."""
        lends, self._lends = list(self._lends.items()), {}
        return lends

    def _ended(self, future: asyncio.Future[Any]) -> None:
        assert isinstance(future, InnerFuture)
        self._joined.discard(future)
        self._since_s.pop(future, None)
        self._count(future, None)
        caller = self._callers[future.caller]
        del caller.inner[future]
        if caller.lent is future:
            caller.lent = None
            self._take_back(future)
        if not caller.inner:
            del self._callers[future.caller]
        self._wake()

    def _count(self, future: InnerFuture, lane: LaneKey | None) -> None:
        """It may wait in this lane from now on; None: in none of this process."""
        if future.counted is not None:
            self._lanes[future.counted] -= 1
            if not self._lanes[future.counted]:
                del self._lanes[future.counted]
        future.counted = None if lane is None else _plain(lane)
        if future.counted is not None:
            self._lanes[future.counted] += 1

    def pass_on(self) -> None:
        """Lend the places of callers on which nothing runs; take back those of callers that ended."""
        for caller in self._callers.values():
            lent, following = caller.lent, None
            if caller.attempt.is_live:
                following = self._following(caller)
                if lent is not None and (following is None or not self._is_parked(lent)):
                    continue
            caller.lent = following
            if lent is not None:
                lent.gave_up = self._is_parked(lent)
                self._take_back(lent)
            if following is not None:
                following.gave_up = False
                if following.request_id is not None:
                    self._lend(following.request_id, True)

    def _following(self, caller: _Caller) -> InnerFuture | None:
        """Who may go next on a caller's place: whoever lacks money only if all do."""
        waiting = [each for each in caller.inner if each is not caller.lent and self._waits(each)]
        able = next((each for each in waiting if not self._is_parked(each)), None)
        return able or (waiting[0] if waiting and caller.lent is None else None)

    def parked(self) -> list[Call]:
        """The calls that wait for nothing but what lacks money; other places are passed on."""
        if not self._is_any_shut():
            return []
        self.pass_on()
        known: dict[int, bool] = {}
        calls = [self._calls.get(each.request_id) for each in self._callers]
        return [each for each in calls if each is not None and self._rests(each, known)]

    def _rests(self, call: Call, known: dict[int, bool]) -> bool:
        """Whether a call works on nothing, since all that it waits for is parked, or rests, too."""
        request_id = call.claimed.request_id
        caller = None if call.attempt is None else self._callers.get(call.attempt)
        if caller is None or request_id in known:
            return known.get(request_id, False)
        known[request_id] = False  # if it waits for itself

        def is_idle(future: InnerFuture) -> bool:
            running = self._calls.get(future.request_id or 0)
            return self._is_parked(future) if running is None else self._rests(running, known)

        awaited = [each for each in caller.inner if not each.done() and each.is_awaited]
        known[request_id] = bool(awaited) and all(map(is_idle, awaited))
        return known[request_id]

    def _is_parked(self, future: InnerFuture) -> bool:
        lane = future.lane
        if lane is None or not self._waits(future):
            return False
        # Without a free place nobody looks at money: what was found out before is believed.
        return future.gave_up or self._store.shortfall(lane) is not None

    def _take_back(self, future: InnerFuture) -> None:
        """Its caller lends a request no place any more; others may wait for it, and lend theirs."""
        request_id = future.request_id
        others = () if request_id is None else self._waiters.of(request_id)
        if request_id in self._calls or all(each.done() for each in others):
            return
        assert request_id is not None
        if not any(isinstance(each, InnerFuture) and self._is_lent(each) for each in others):
            self._lend(request_id, False)

    def _is_lent(self, future: InnerFuture) -> bool:
        caller = self._callers.get(future.caller)
        return caller is not None and caller.lent is future

    def waiting_for(self, providers: Container[str]) -> list[InnerFuture]:
        """The inner requests that wait for these providers."""
        return [
            each for caller in self._callers.values() for each in caller.inner
            if self._waits(each) and each.request_id is not None
            and each.lane is not None and each.lane.provider in providers
        ]  # fmt: skip

    def _waits(self, future: InnerFuture) -> bool:
        request_id = future.request_id
        is_under_way = future.done() or future.is_running
        return not (is_under_way or request_id in self._calls or request_id in self._elsewhere)

    # Money

    def stuck(self, now_ms: int) -> tuple[InnerFuture, SchedulerError] | None:
        """The inner request that would wait for ever and is to end with this error; None: none."""
        if not self._callers or not (self._joined or self._is_any_shut()):
            return None
        now_s = self._loop.time()
        calls = [
            Holding(each.claimed, self._awaited_by(each, now_s)) for each in self._calls.values()
        ]
        found = find_stuck(calls, self._store.balances, self._is_patient(now_s), now_ms)
        self._since_s = {each: self._since_s[each] for each in found.doubtful}
        if found.newest is None:
            return None
        future = found.newest
        assert isinstance(future, InnerFuture)
        self._callers[future.caller].told_until_s = now_s + REACTION_S
        self._loop.call_later(REACTION_S, self._wake)
        return future, found.error()

    def _is_any_shut(self) -> bool:
        shortfall = self._store.shortfall
        return any(
            shortfall(lane) is not None or shortfall(lane._replace(is_lent=True)) is not None
            for lane in self._lanes
        )

    def _awaited_by(self, call: Call, now_s: float) -> list[InnerFuture] | None:
        """The inner requests a call waits for; none: nobody can tell; None: it waits for none."""
        caller = None if call.attempt is None else self._callers.get(call.attempt)
        if caller is None or call.is_over or caller.told_until_s > now_s + EARLY_S:
            return None
        inner = [each for each in caller.inner if not each.done()]
        awaited = [each for each in inner if each.is_awaited]
        if not inner or any(each.request_id is None for each in awaited):
            return None  # what is on its way to the store is looked at when it is there
        is_elsewhere = any(each.request_id in self._elsewhere for each in awaited)
        return [] if is_elsewhere else awaited

    def _is_patient(self, now_s: float) -> Callable[[Inner], bool]:
        """Whether one still waits for what nobody can tell of."""

        def is_patient(future: Inner) -> bool:
            if future not in self._since_s:
                self._since_s[future] = now_s
                self._loop.call_later(PATIENCE_S, self._wake)
            return now_s + EARLY_S < self._since_s[future] + PATIENCE_S

        return is_patient


def _plain(lane: LaneKey) -> LaneKey:
    return lane._replace(is_lent=False)


def _ancestors(attempt: UnderWay | None) -> Iterator[int]:
    """The requests of a call under way and of its callers."""
    while attempt is not None:
        yield attempt.request_id
        attempt = attempt.outer
