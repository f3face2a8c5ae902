"""What has to be kept for calls under way: less than the sum of their ceilings, at some risk.

    kept = the smaller of     the sum of all ceilings
           and                expected + sigmas · deviation + pad · the largest gap

A call is let in if what is spent and what is kept, it included, are within the limit, and

    the sum of all ceilings ≤ stretch · what is left

so that, whatever happens, no more is spent than `stretch` times what was left. All are taken
together: single calls may cost far more than expected, many hardly do. What is expected of a call
rises with its age (`survival`): the cheap ones have ended before it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

from scheduler.foresight.risk import Risk
from scheduler.foresight.survival import Amounts, Curve, History

MOST_KINDS = 1_000
STALE_MS = 100  # at most so long many calls are not added up anew, since all that is a guess

Kind = tuple[str, Hashable]  # of calls that cost alike: model, job


class Flight(NamedTuple):
    """A call under way."""

    kind: Kind
    made_at_ms: int
    ceilings: Amounts


class Histories:
    """What is remembered of all kinds, and what is under way of each."""

    def __init__(self) -> None:
        self._histories: dict[Kind, History] = {}
        self.count = 0  # of what was learned
        self._flights: dict[Kind, dict[int, int]] = {}

    def forget_flights(self) -> None:
        """Whoever is under way is told anew."""
        self._flights.clear()

    def enter(self, id: int, flight: Flight) -> None:
        """A call begins."""
        self._flights.setdefault(flight.kind, {})[id] = flight.made_at_ms

    def leave(self, id: int, flight: Flight, ended_at_ms: int, costs: Amounts | None) -> None:
        """A call has ended; told twice, it counts once.

        Args:
            id: Its own.
            flight: As it began.
            ended_at_ms: When it ended.
            costs: What it counts for good; None: nothing is learned of it.
        """
        flights = self._flights.get(flight.kind)
        if flights is None or flights.pop(id, None) is None:
            return
        if not flights:
            del self._flights[flight.kind]
        if costs is not None:
            self.learn(flight, ended_at_ms, costs)

    def learn(self, flight: Flight, ended_at_ms: int, costs: Amounts) -> None:
        """What a call took and cost."""
        self.count += 1
        history = self._histories.pop(flight.kind, None) or History()
        self._histories[flight.kind] = history  # the last that anything was learned of
        history.learn(flight.made_at_ms, ended_at_ms, costs, flight.ceilings)
        if len(self._histories) > MOST_KINDS:
            del self._histories[next(iter(self._histories))]

    def curve(self, kind: Kind, unit: int, warm: int, now_ms: int) -> Curve | None:
        """What is to be expected of a kind; None: too little is known."""
        history = self._histories.get(kind)
        if history is None or len(history) < warm:
            return None
        return history.curve(unit, self._flights.get(kind, {}).values(), now_ms)


class _Sum:
    """What calls of one kind add up to."""

    __slots__ = ("count", "variance")

    def __init__(self) -> None:
        self.count, self.variance = 0, 0.0


class Load:
    """What calls under way add up to, at one instant."""

    __slots__ = ("_shares", "_sums", "ceilings", "gap", "mean")

    def __init__(self) -> None:
        self.ceilings, self.mean, self.gap = 0, 0.0, 0.0
        self._sums: dict[Kind, tuple[Curve, _Sum]] = {}
        self._shares: dict[int, tuple[Kind | None, int, float, float]] = {}

    def add(self, id: int, kind: Kind, curve: Curve | None, age_ms: int, ceiling: int) -> None:
        """One call more."""
        self.ceilings += ceiling
        if curve is None:
            self.mean += ceiling
            self._shares[id] = None, ceiling, ceiling, 0.0
            return
        mean, variance, gap = curve.outlook(age_ms, ceiling)
        self.mean += mean
        if gap > self.gap:
            self.gap = gap
        found = self._sums.get(kind)
        if found is None:
            found = self._sums[kind] = curve, _Sum()
        found[1].count += 1
        found[1].variance += variance
        self._shares[id] = kind, ceiling, mean, variance

    def remove(self, id: int) -> None:
        """One that was added has ended; the largest gap stays."""
        share = self._shares.pop(id, None)
        if share is None:
            return  # it did not count any more
        kind, ceiling, mean, variance = share
        self.ceilings -= ceiling
        self.mean -= mean
        if kind is not None:
            total = self._sums[kind][1]
            total.count -= 1
            total.variance = max(0.0, total.variance - variance) if total.count else 0.0

    def kept(
        self, risk: Risk, kind: Kind | None = None, curve: Curve | None = None, ceiling: int = 0
    ) -> int:
        """What has to be kept for them, and for one more that begins."""
        ceilings, mean, gap, more = self.ceilings + ceiling, self.mean, self.gap, 0.0
        if curve is None:
            mean += ceiling
        else:
            expected, more, its_gap = curve.outlook(0, ceiling)
            mean, gap = mean + expected, max(gap, its_gap)
        variance, is_met = 0.0, False
        for each, (its, total) in self._sums.items():
            # An error in what is expected is common to all of a kind.
            is_its = each == kind
            is_met |= is_its
            new = total.variance + more if is_its else total.variance
            variance += new * (1 + (total.count + is_its) / its.count)
        if curve is not None and not is_met:
            variance += more * (1 + 1 / curve.count)
        return min(ceilings, math.ceil(mean + risk.sigmas * math.sqrt(variance) + risk.pad * gap))


class Pool:
    """Calls under way that count on one limit.

    Args:
        risk: What is taken.
        unit: Of the amounts that count.
        histories: What is known of such calls.
    """

    def __init__(self, risk: Risk, unit: int, histories: Histories) -> None:
        self.risk, self._unit, self._histories = risk, unit, histories
        self._flights: dict[int, Flight] = {}
        self._load: Load | None = None
        self._as_of = (0, 0, 0)  # when it was added up, which slots counted, what was learned

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def is_known(self) -> bool:
        """Whether it knows who is under way."""
        return True

    def enter(self, id: int, flight: Flight) -> None:
        """A call begins."""
        self._flights[id] = flight
        self._histories.enter(id, flight)
        if self._load is not None:
            self._add(self._load, id, flight, flight.made_at_ms)

    def leave(self, id: int, ended_at_ms: int, costs: Amounts | None) -> None:
        """A call has ended; see `Histories.leave`."""
        flight = self._flights.pop(id, None)
        if flight is not None:
            self._histories.leave(id, flight, ended_at_ms, costs)
            if self._load is not None:
                self._load.remove(id)

    def tell(self) -> None:
        """Tell the histories anew who is under way here."""
        for id_, flight in self._flights.items():
            self._histories.enter(id_, flight)

    def kept(
        self, now_ms: int, oldest_ms: int, kind: Kind | None = None, ceiling: int = 0
    ) -> tuple[int, int]:
        """What all ceilings are together, and what has to be kept of them, one more included.

        Args:
            now_ms: The time.
            oldest_ms: Calls that began before count no more.
            kind: Of the one more.
            ceiling: Of the one more.
        """
        load = self._load
        if load is None or not self._is_fresh(now_ms, oldest_ms):
            load = Load()
            for id_, flight in self._flights.items():
                if flight.made_at_ms >= oldest_ms:
                    self._add(load, id_, flight, now_ms)
            self._load, self._as_of = load, (now_ms, oldest_ms, self._histories.count)
        curve = None if kind is None else self._curve(kind, now_ms)
        return load.ceilings + ceiling, load.kept(self.risk, kind, curve, ceiling)

    def _is_fresh(self, now_ms: int, oldest_ms: int) -> bool:
        """Whether what was added up last still holds; of few calls it does as of that very moment."""
        then_ms, old_ms, count = self._as_of
        if old_ms != oldest_ms:
            return False
        stale_ms = min(STALE_MS, len(self._flights) // 16)
        if stale_ms:
            return then_ms <= now_ms <= then_ms + stale_ms
        return then_ms == now_ms and count == self._histories.count

    def _add(self, load: Load, id: int, flight: Flight, now_ms: int) -> None:
        age_ms = max(0, now_ms - flight.made_at_ms)
        curve = self._curve(flight.kind, now_ms)
        load.add(id, flight.kind, curve, age_ms, flight.ceilings[self._unit])

    def _curve(self, kind: Kind, now_ms: int) -> Curve | None:
        return self._histories.curve(kind, self._unit, self.risk.warm, now_ms)
