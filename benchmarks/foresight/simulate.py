"""A budget spent by many calls at once, under one rule of admission: plain events, no scheduler.

The rule `Foreseen` is the scheduler's own (`scheduler.foresight`); the others are what else one
might do, and what one could do who knew all costs beforehand.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.foresight.lengths import Call
from scheduler.foresight import Flight, Histories, Pool, Risk

DEPTH, MOST_PASSED = 100, 32  # as the scheduler's own plan looks past who does not fit
MODEL = "m"


class Ran(NamedTuple):
    """How a budget was spent.

    Attributes:
        at_95_ms: When 95 % of it were spent; never, if they were not.
        over: Spent beyond the limit, as a share of it.
        used: Spent, as a share of it.
        spent: When how much was, in order.
    """

    at_95_ms: float
    over: float
    used: float
    spent: list[tuple[int, int]]


class Rule:
    """Whom to let in; this one knows what each will cost."""

    def begin(self, limit: int) -> None:
        """A budget begins."""
        self.limit, self.spent, self.promised, self.flying = limit, 0, 0, {}  # type: ignore[var-annotated]

    def counts(self, call: Call) -> int:
        """What a call under way counts."""
        return call.cost

    def fits(self, now_ms: int, call: Call) -> bool:
        """Whether one more may go."""
        return self.spent + self.promised + self.counts(call) <= self.limit

    def enter(self, now_ms: int, id: int, call: Call) -> None:
        """It goes."""
        self.promised += self.counts(call)

    def leave(self, now_ms: int, id: int, call: Call) -> None:
        """It has ended."""
        self.promised -= self.counts(call)
        self.spent += call.cost


class Ceilings(Rule):
    """Each counts at its ceiling, as without a risk."""

    def counts(self, call: Call) -> int:
        return call.ceiling


class Afterwards(Rule):
    """None counts until it has ended."""

    def counts(self, call: Call) -> int:
        return 0

    def fits(self, now_ms: int, call: Call) -> bool:
        return self.spent < self.limit


class Same(Rule):
    """Each counts at the same: the mean of all, or what few exceed; which nobody knows beforehand."""

    def __init__(self, amount: int) -> None:
        self._amount = amount

    def counts(self, call: Call) -> int:
        return min(call.ceiling, self._amount)


class PlainMean(Rule):
    """All together at the mean of all that was ever asked, and so many deviations."""

    def __init__(self, calls: Sequence[Call], sigmas: float) -> None:
        costs = [call.cost for call in calls]
        self._mean = sum(costs) / len(costs)
        self._variance = sum((cost - self._mean) ** 2 for cost in costs) / len(costs)
        self._sigmas, self._count = sigmas, 0

    def begin(self, limit: int) -> None:
        super().begin(limit)
        self._count = 0

    def fits(self, now_ms: int, call: Call) -> bool:
        count = self._count + 1
        kept = count * self._mean + self._sigmas * math.sqrt(count * self._variance)
        return self.spent + kept <= self.limit

    def enter(self, now_ms: int, id: int, call: Call) -> None:
        self._count += 1

    def leave(self, now_ms: int, id: int, call: Call) -> None:
        self._count -= 1
        self.spent += call.cost


class Foreseen(Rule):
    """As the scheduler does with a risk.

    Args:
        risk: Which.
        is_blind: Learn from calls that have ended alone, as one must not.
        earlier: Calls that were made before, from which it has learned.
    """

    def __init__(self, risk: Risk, *, is_blind: bool = False, earlier: Sequence[Call] = ()) -> None:
        self.risk, self._is_blind, self._earlier = risk, is_blind, earlier

    def begin(self, limit: int) -> None:
        super().begin(limit)
        self.histories = Histories()
        self.pool = Pool(self.risk, 0, self.histories)
        for call in self._earlier:
            flight = Flight((MODEL, call.job), -call.took_ms, (call.ceiling, 0))
            self.histories.learn(flight, 0, (call.cost, 0))

    def counts(self, call: Call) -> int:
        return call.ceiling

    def fits(self, now_ms: int, call: Call) -> bool:
        if super().fits(now_ms, call):
            return True
        left, ceilings = self.limit - self.spent, self.promised + call.ceiling
        if ceilings > self.risk.stretch * left:
            return False
        _, kept = self.pool.kept(now_ms, -(10**12), (MODEL, call.job), call.ceiling)
        return kept <= left

    def enter(self, now_ms: int, id: int, call: Call) -> None:
        super().enter(now_ms, id, call)
        self.pool.enter(id, Flight((MODEL, call.job), now_ms, (call.ceiling, 0)))
        if self._is_blind:
            self.histories.forget_flights()

    def leave(self, now_ms: int, id: int, call: Call) -> None:
        super().leave(now_ms, id, call)
        flight = Flight((MODEL, call.job), now_ms - call.took_ms, (call.ceiling, 0))
        if self._is_blind:
            self.histories.learn(flight, now_ms, (call.cost, 0))
        self.pool.leave(id, now_ms, (call.cost, 0))


class _Waiting:
    """Calls in the order in which they came; who does not fit may be passed, but not for ever."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls, self._next = calls, 0
        self._passed: list[list[int]] = []  # of who was: its number, and how often

    def admit(self, rule: Rule, now_ms: int, places: int) -> list[int]:
        """Who goes now."""
        gone: list[int] = []
        position = 0
        while position < len(self._passed) and len(gone) < places:
            number, often = self._passed[position]
            if rule.fits(now_ms, self.calls[number]):
                self._go(rule, now_ms, number, gone, position)
                del self._passed[position]
            elif position == 0 and often >= MOST_PASSED:
                return gone
            else:
                position += 1
        while (
            len(gone) < places and self._next < len(self.calls) and len(self._passed) < DEPTH
            and not (self._passed and self._passed[0][1] >= MOST_PASSED)
        ):  # fmt: skip
            number = self._next
            self._next += 1
            if rule.fits(now_ms, self.calls[number]):
                self._go(rule, now_ms, number, gone, len(self._passed))
            else:
                self._passed.append([number, 0])
        return gone

    def _go(self, rule: Rule, now_ms: int, number: int, gone: list[int], past: int) -> None:
        rule.enter(now_ms, number, self.calls[number])
        gone.append(number)
        for each in self._passed[:past]:
            each[1] += 1


def simulate(calls: Sequence[Call], limit: int, rule: Rule, at_once: int = 256) -> Ran:
    """Spend a budget."""
    waiting, under_way = _Waiting(calls), []  # type: ignore[var-annotated]
    spent, now_ms, at_95_ms, told = 0, 0, math.inf, []
    rule.begin(limit)
    while True:
        for number in waiting.admit(rule, now_ms, at_once - len(under_way)):
            heapq.heappush(under_way, (now_ms + calls[number].took_ms, number))
        if not under_way:
            return Ran(at_95_ms, max(0, spent - limit) / limit, spent / limit, told)
        now_ms = under_way[0][0]
        while under_way and under_way[0][0] == now_ms:
            _, number = heapq.heappop(under_way)
            spent += calls[number].cost
            rule.leave(now_ms, number, calls[number])
        told.append((now_ms, spent))
        if at_95_ms == math.inf and spent >= 0.95 * limit:
            at_95_ms = now_ms
