"""What has to be kept for calls under way: less than the sum of their ceilings, at some risk.

    kept = the smaller of     the sum of all ceilings
           and                expected + sigmas · deviation + pad · the largest gap

The deviation has three parts: how far calls differ from each other; how far what is expected of a
kind may be wrong, which is common to all of it; and that of n calls none may have been of a sort that
will come now: there may be UNSEEN / n of these, at their ceilings. So one does not go from a few calls
to hundreds at once.

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

from scheduler.foresight.recall import Amounts, Seen
from scheduler.foresight.risk import Risk
from scheduler.foresight.survival import Curve, History, Outlook

MOST_KINDS = 1_000
UNSEEN = 4  # so many of n calls may be unlike all that were seen; that is one deviation
MOST_SKEW = 2.0
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
        self._of_models: dict[str, History] = {}
        self._of_one_job: set[str] = set()  # models; both remember the same, and it is kept once
        self.count = 0  # of what was learned
        self._flights: dict[Kind, dict[int, int]] = {}
        self._lent: dict[tuple[Kind, int], tuple[int, Curve]] = {}

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
        kind, made_at_ms, ceilings = flight
        model = kind[0]
        seen = Seen(made_at_ms, max(0, ended_at_ms - made_at_ms), costs, ceilings)
        history, of_model = self._histories.pop(kind, None), self._of_models.pop(model, None)
        is_new = history is None
        if history is None:
            history = History()
        if of_model is None:
            of_model = History(history.memory)
            self._of_one_job.add(model)
        elif is_new and model in self._of_one_job:
            of_model.memory = of_model.memory.copy()
            self._of_one_job.remove(model)
        # The last that anything was learned of come last.
        self._histories[kind], self._of_models[model] = history, of_model
        history.memory.add(seen)
        if of_model.memory is not history.memory:
            of_model.memory.add(seen)
        if len(self._histories) > MOST_KINDS:
            del self._histories[next(iter(self._histories))]
        if len(self._of_models) > MOST_KINDS:
            model = next(iter(self._of_models))
            del self._of_models[model]
            self._of_one_job.discard(model)

    def curve(self, kind: Kind, unit: int, warm: int, now_ms: int) -> Curve | None:
        """What is to be expected of a kind; None: too little is known.

        Of one that is new it is what is known of its model's others, with more doubt.
        """
        history = self._histories.get(kind)
        under_way = self._flights.get(kind, {}).values()
        if history is not None and len(history) >= warm:
            return history.curve(unit, under_way, now_ms)
        of_model = self._of_models.get(kind[0])
        if of_model is None or len(of_model) < warm:
            return None
        as_of, curve = self._lent.get((kind, unit), (0, None))
        if curve is None or self.count != as_of:
            model = of_model.curve(unit, self._under_way(kind[0]), now_ms)
            own = history or History()
            times = own.stretch(model, under_way, now_ms)
            curve = model.lent(times, own.ripe(model.ripe_ms, under_way, now_ms))
            if len(self._lent) > MOST_KINDS:
                self._lent.clear()
            self._lent[kind, unit] = self.count, curve
        return curve

    def _under_way(self, model: str) -> list[int]:
        """When those of a model began that have not ended."""
        return [
            ms for kind, flights in self._flights.items() if kind[0] == model for ms in flights.values()
        ]  # fmt: skip


class _Sum:
    """What calls of one kind add up to."""

    __slots__ = ("count", "gap", "mean", "third", "variance")

    def __init__(self) -> None:
        self.count, self.mean, self.variance, self.third, self.gap = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, outlook: Outlook) -> None:
        """One call more."""
        self.count += 1
        self.mean += outlook.mean
        self.variance += outlook.variance
        self.third += outlook.third
        self.gap = max(self.gap, outlook.gap)

    def remove(self, outlook: Outlook) -> None:
        """One has ended; the largest gap stays."""
        self.count -= 1
        self.mean -= outlook.mean
        self.third -= outlook.third
        self.variance = max(0.0, self.variance - outlook.variance) if self.count else 0.0

    def spread(self, curve: Curve, more: Outlook | None = None) -> float:
        """The variance of what they cost together, and one more of them, and of what is expected."""
        count, mean, variance, gap = self.count, self.mean, self.variance, self.gap
        if more is not None:
            count, mean, variance = count + 1, mean + more.mean, variance + more.variance
            gap = max(gap, more.gap)
        unseen = UNSEEN * count * gap / (curve.ripe + 1)
        common = curve.apart * mean
        return variance * (1 + count / curve.count) + unseen * unseen + common * common


class Load:
    """What calls under way add up to, at one instant."""

    __slots__ = ("_shares", "_sums", "ceilings", "gap", "mean", "told")

    def __init__(self) -> None:
        self.ceilings, self.mean, self.gap = 0, 0.0, 0.0
        self._sums: dict[Kind, tuple[Curve, _Sum]] = {}
        self._shares: dict[int, tuple[Kind | None, int, Outlook]] = {}
        self.told: dict[tuple[Kind | None, int], int] = {}  # what was kept, since it changed last

    def add(self, id: int, kind: Kind, curve: Curve | None, age_ms: int, ceiling: int) -> None:
        """One call more."""
        self.told.clear()
        self.ceilings += ceiling
        if curve is None:
            self.mean += ceiling
            self._shares[id] = None, ceiling, Outlook(ceiling, 0.0, 0.0, 0.0)
            return
        outlook = curve.outlook(age_ms, ceiling)
        self.mean += outlook.mean
        self.gap = max(self.gap, outlook.gap)
        found = self._sums.get(kind)
        if found is None:
            found = self._sums[kind] = curve, _Sum()
        found[1].add(outlook)
        self._shares[id] = kind, ceiling, outlook

    def remove(self, id: int) -> None:
        """One that was added has ended."""
        share = self._shares.pop(id, None)
        if share is None:
            return  # it did not count any more
        self.told.clear()
        kind, ceiling, outlook = share
        self.ceilings -= ceiling
        self.mean -= outlook.mean
        if kind is not None:
            self._sums[kind][1].remove(outlook)

    def kept(
        self, risk: Risk, kind: Kind | None = None, curve: Curve | None = None, ceiling: int = 0
    ) -> int:
        """What has to be kept for them, and for one more that begins."""
        more = None if curve is None else curve.outlook(0, ceiling)
        mean = self.mean + (ceiling if more is None else more.mean)
        gap = self.gap if more is None else max(self.gap, more.gap)
        # An error in what is expected is common to all of a kind, and to that alone.
        variance = sum(
            total.spread(its, more if each == kind else None)
            for each, (its, total) in self._sums.items()
        )
        third = sum(total.third for _, total in self._sums.values())
        if curve is not None and more is not None:
            third += more.third
            if kind not in self._sums:
                variance += _Sum().spread(curve, more)
        deviation = math.sqrt(variance)
        # Sums of few are skewed as those are that they consist of (Cornish and Fisher).
        skew = max(0.0, min(MOST_SKEW, third / deviation**3)) if deviation > 0 else 0.0
        sigmas = risk.sigmas + skew * max(0.0, risk.sigmas**2 - 1) / 6
        needed = math.ceil(mean + sigmas * deviation + risk.pad * gap)
        return min(self.ceilings + ceiling, needed)


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
            made_at_ms, ceiling = flight.made_at_ms, flight.ceilings[self._unit]
            self._load.add(id, flight.kind, self._curve(flight.kind, made_at_ms), 0, ceiling)

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
            load = self._add_up(now_ms, oldest_ms)
            self._load, self._as_of = load, (now_ms, oldest_ms, self._histories.count)
        told = load.told.get((kind, ceiling))
        if told is None:  # many who wait ask the same
            curve = None if kind is None else self._curve(kind, now_ms)
            told = load.told[kind, ceiling] = load.kept(self.risk, kind, curve, ceiling)
        return load.ceilings + ceiling, told

    def _is_fresh(self, now_ms: int, oldest_ms: int) -> bool:
        """Whether what was added up last still holds; of few calls it does as of that very moment."""
        then_ms, old_ms, count = self._as_of
        if old_ms != oldest_ms:
            return False
        stale_ms = min(STALE_MS, len(self._flights) // 16)
        if stale_ms:
            return then_ms <= now_ms <= then_ms + stale_ms
        return then_ms == now_ms and count == self._histories.count

    def _add_up(self, now_ms: int, oldest_ms: int) -> Load:
        load, unit = Load(), self._unit
        curves: dict[Kind, Curve | None] = {}
        for id_, (kind, made_at_ms, ceilings) in self._flights.items():
            if made_at_ms < oldest_ms:
                continue
            if kind not in curves:
                curves[kind] = self._curve(kind, now_ms)
            load.add(id_, kind, curves[kind], max(0, now_ms - made_at_ms), ceilings[unit])
        return load

    def _curve(self, kind: Kind, now_ms: int) -> Curve | None:
        return self._histories.curve(kind, self._unit, self.risk.warm, now_ms)
