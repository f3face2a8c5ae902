"""How long calls take, and what they have cost by then: learned from those that ended, and those that did not.

Who looks only at calls that have ended learns too little of them: of calls that began together the
cheapest end first. So a call that is under way counts as one of which it is known that it takes
longer than it has so far (Kaplan and Meier), and one that began before what is still remembered
(`recall`) counts from the age that it had then (left truncation). One more call counts that never
ends: after n calls the next one is the longest of all in one case of n + 1. What calls cost that nobody
has outlived yet is guessed (`tail`), where there is reason to; else they count at their ceilings. And
where calls begun lately last longer than those before them, all is expected to go on like that (`drift`).

Part of a ceiling may be known for sure, as what a prompt costs. So not the cost is learned but what
it is beyond a share of the ceiling, and that share, by least squares. Where all ceilings are the
same it is zero. What a ceiling is beyond the largest that was seen counts in full.

>>> history = History()
>>> for took_ms in range(1, 101):
...     history.learn(0, took_ms, (10 * took_ms, 0), (5_000, 0))
>>> curve = history.curve(0, (), 100)
>>> fresh, old = curve.outlook(0, 5_000), curve.outlook(90, 5_000)
>>> round(fresh.mean), round(old.mean)  # one that has lasted so long is one of the dear ones
(515, 1002)
>>> round(curve.outlook(101, 5_000).mean)  # nobody ever took as long
1482
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from scheduler.foresight import drift
from scheduler.foresight.recall import Amounts, Horizons, Memory, Seen, first_seen_ms
from scheduler.foresight.tail import Moments, Tail, central, find_tail, mixed

REBUILD = 16  # so many new ones, before they are looked at anew
ANEW = 64  # and so many, before those before them are
TELLING = 256  # those that are kept by their length tell no more than so many of the last would
FEW = 3  # of so many that took longer nothing is concluded
RIPE = 0.9  # at an age by which so many have ended it shows whether a call is a usual one
MOST_RIPE = 4096
ONWARD = 0.15  # lengths that have risen may go on rising: a deviation of such a part of it
APART = 0.5  # jobs of one model differ by so much of their mean, as far as one knows

Tells = tuple[Moments, float]  # what it costs, and the gap


class Outlook(NamedTuple):
    """What one call will have cost: the mean, the variance, the third moment about the mean.

    Attributes:
        gap: How far its ceiling is above what it costs if it ends as others did.
    """

    mean: float
    variance: float
    third: float
    gap: float


class Curve:
    """What calls cost that last longer than any given time, frozen.

    Args:
        slope: The share of a ceiling that is spent in any case.
        took_ms: When calls ended, in order.
        hazards: For each position: how many had to be expected to end before it, of one call.
        beyond: For each position: of those from there on, what they cost beyond that share, and
            the part of them that has not ended yet.
        tail: What these cost; None: their ceilings.
        least: The least that any cost beyond that share.
        widest: The largest of their ceilings.

    Attributes:
        count: Calls it was learned from, as many as tell of one.
        ripe: Calls of which it is known whether they are usual ones.
        apart: By what part of its mean all may differ together: it was learned from others.
    """

    __slots__ = (
        "_before", "_beyond", "_hazards", "_least", "_stretch", "_tail", "_took_ms", "_widest", "apart",
        "count", "ripe", "slope",
    )  # fmt: skip

    def __init__(
        self, slope: float, took_ms: Sequence[int], hazards: Sequence[float],
        beyond: Sequence[tuple[Moments, float]], tail: Tail | None, least: float, widest: int,
    ) -> None:  # fmt: skip
        self.slope, self.count, self.ripe = slope, len(took_ms), len(took_ms)
        self._took_ms, self._hazards, self._beyond, self._tail = took_ms, hazards, beyond, tail
        self._least, self._widest, self.apart = least, widest, 0.0
        self._before: Curve = self
        self._stretch = 1.0

    def outlook(self, age_ms: int, ceiling: int) -> Outlook:
        """What to expect of a call that has lasted so long."""
        cost, gap = self._tells(age_ms, ceiling, 1.0)
        if self._stretch > 1:
            more, its_gap = self._before._tells(age_ms, ceiling, self._stretch)
            if more[0] > cost[0]:
                cost, gap = more, its_gap
        if cost[0] >= ceiling:
            return Outlook(float(ceiling), 0.0, 0.0, 0.0)
        return Outlook(max(0.0, cost[0]), cost[1], cost[2], gap)

    def _tells(self, age_ms: float, ceiling: int, times: float) -> Tells:
        """The same if all took so many times as long, and cost as much more beyond the cheapest."""
        seen = min(ceiling, self._widest)
        free = seen - self.slope * seen  # what may be spent beyond what is in any case
        if times == 1:
            (mean, variance, third), gap = self._extra(age_ms, free)
        else:
            least = min(self._least, free)
            (mean, variance, third), gap = self._extra(
                age_ms / times, least + (free - least) / times
            )
            mean, gap = least + times * (mean - least), times * gap
            variance, third = times**2 * variance, times**3 * third
        return (ceiling - free + mean, variance, third), gap

    def _extra(self, age_ms: float, free: float) -> Tells:
        ended, rest = self._beyond[bisect_right(self._took_ms, age_ms)]
        late = (free, 0.0, 0.0) if self._tail is None else self._tail.beyond(age_ms, free)
        cost = mixed(ended, late, rest)
        if cost[0] >= free:
            return (free, 0.0, 0.0), 0.0
        return cost, free - (ended[0] if rest < 1 else late[0])

    def hazard(self, age_ms: float) -> float:
        """How many ends had to be expected of one call by that age, if it began anew at each."""
        return self._hazards[bisect_right(self._took_ms, age_ms)]

    @property
    def ripe_ms(self) -> int:
        """At that age it shows whether a call is a usual one."""
        return self._took_ms[int(RIPE * len(self._took_ms))]

    def doubt(self, before: Curve, times: float) -> None:
        """Expect no less than another one does, if all took so many times as long as that says."""
        self._before, self._stretch = before, times

    def lent(self, times: float, ripe: int) -> Curve:
        """The same for others of which little is known but that they last so many times as long.

        Args:
            times: 1: not even that.
            ripe: Of so many of them it is known whether they are usual ones.
        """
        curve = Curve(
            self.slope, self._took_ms, self._hazards, self._beyond, self._tail, self._least, self._widest
        )  # fmt: skip
        curve.ripe, curve.apart = self.ripe, (1 / APART**2 + ripe) ** -0.5
        curve.doubt(self, times)
        return curve


class History:
    """What is to be expected of one kind of calls, by what is remembered of them.

    Args:
        memory: That; None: nothing yet. Who is given another's learns what that one learns.
    """

    __slots__ = ("_curves", "_earlier", "memory")

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = Memory() if memory is None else memory
        self._curves: dict[int, tuple[int, Curve]] = {}
        self._earlier: dict[int, tuple[int, int, Curve]] = {}

    def __len__(self) -> int:
        return len(self.memory.last)

    def learn(self, made_at_ms: int, ended_at_ms: int, costs: Amounts, ceilings: Amounts) -> None:
        """A call ended; told in that order."""
        self.memory.add(Seen(made_at_ms, max(0, ended_at_ms - made_at_ms), costs, ceilings))

    def curve(self, unit: int, under_way: Collection[int], now_ms: int) -> Curve:
        """What is to be expected now; anew after some more have ended.

        Args:
            unit: Of the amounts that count.
            under_way: When those began that have not ended.
            now_ms: The time.
        """
        count = self.memory.count
        built, curve = self._curves.get(unit, (0, None))
        if curve is None or count - built >= max(1, min(REBUILD, len(self) // REBUILD)):
            curve = self._look(unit, under_way, now_ms)
            self._curves[unit] = count, curve
        return curve

    def _look(self, unit: int, under_way: Collection[int], now_ms: int) -> Curve:
        seen, recall = self.memory.last, self.memory.of_each_length
        curve = estimate(recall.all(), under_way, recall.horizons(), now_ms, unit)
        curve.count = min(TELLING, curve.count)
        unripe_ms = now_ms - curve.ripe_ms
        young = sum(each.made_at_ms > unripe_ms for each in seen)
        curve.ripe = min(
            MOST_RIPE, self.memory.count - young + sum(ms <= unripe_ms for ms in under_way)
        )
        before = self._before(seen, unit, under_way, now_ms)
        if before is not None:
            from_ms, earlier = before
            curve.doubt(earlier, self.stretch(earlier, under_way, now_ms, from_ms))
            curve.apart = min(APART, (curve._stretch - 1) * ONWARD)
        return curve

    def _before(
        self, seen: Iterable[Seen], unit: int, under_way: Collection[int], now_ms: int
    ) -> tuple[int, Curve] | None:
        """What calls told that began before the last ones, and when these began."""
        built, from_ms, earlier = self._earlier.get(unit, (0, 0, None))
        if earlier is not None and self.memory.count - built < min(ANEW, len(self) // REBUILD):
            return from_ms, earlier
        begun_ms = sorted((*(each.made_at_ms for each in seen), *under_way))
        lately = min(drift.LATELY, len(begun_ms) - drift.FEWEST_BEFORE)
        if lately <= 0:
            return None
        from_ms = begun_ms[-lately]
        old = [each for each in seen if each.made_at_ms < from_ms]
        if len(old) < drift.FEWEST_BEFORE:
            return None
        earlier = estimate(
            old, [ms for ms in under_way if ms < from_ms], [(0, self.memory.since_ms)], now_ms, unit
        )
        self._earlier[unit] = self.memory.count, from_ms, earlier
        return from_ms, earlier

    def stretch(
        self, earlier: Curve, under_way: Iterable[int], now_ms: int, from_ms: int = 0
    ) -> float:
        """How many times as long calls last as others told, at least; of those begun since."""
        took_ms = [each.took_ms for each in self.memory.last if each.made_at_ms >= from_ms]
        ages_ms = [max(0, now_ms - ms) for ms in under_way if ms >= from_ms]
        return drift.stretch(earlier, took_ms + ages_ms, len(took_ms))

    def ripe(self, age_ms: int, under_way: Iterable[int], now_ms: int) -> int:
        """How many, of those remembered or under way, began so long ago."""
        from_ms = now_ms - age_ms
        return sum(each.made_at_ms <= from_ms for each in self.memory.last) + sum(
            ms <= from_ms for ms in under_way
        )


def estimate(
    seen: Iterable[Seen],
    under_way: Iterable[int],
    horizons: Horizons,
    now_ms: int,
    unit: int,
) -> Curve:
    """The curve of calls of which some have not ended, and some began before one looked.

    Args:
        seen: Who ended.
        under_way: When those began that have not.
        horizons: What is known: see `Recall.horizons`.
        now_ms: The time.
        unit: Of the amounts that count.
    """
    known: list[Seen] = []
    lives_ms: list[tuple[int, int]] = []  # at what age each was looked at first, and last
    for each in seen:
        from_ms = first_seen_ms(each.made_at_ms, horizons)
        if from_ms <= each.took_ms:
            known.append(each)
            lives_ms.append((from_ms, each.took_ms))
    for at_ms in under_way:
        from_ms, age_ms = first_seen_ms(at_ms, horizons), max(0, now_ms - at_ms)
        if from_ms <= age_ms:
            lives_ms.append((from_ms, age_ms))
    slope = share_of_ceiling(known, unit)
    ends = sorted((each.took_ms, each.costs[unit] - slope * each.ceilings[unit]) for each in known)
    joins = sorted(from_ms for from_ms, _ in lives_ms if from_ms)
    leaves = sorted(age_ms for _, age_ms in lives_ms)
    took_ms = [each[0] for each in ends]
    weights, hazards, rest = _weigh(took_ms, joins, leaves)
    tail = find_tail(ends, lives_ms)
    least = min((each[1] for each in ends), default=0.0)
    widest = max((each.ceilings[unit] for each in known), default=0)
    return Curve(slope, took_ms, hazards, _sum_up(ends, weights, rest), tail, least, widest)


def _weigh(
    took_ms: Sequence[int], joins: Sequence[int], leaves: Sequence[int]
) -> tuple[list[float], list[float], float]:
    """The weight of each end, in order, the hazard before each, and the weight of what has not ended.

    Args:
        took_ms: At what age calls ended.
        joins: At what age those who began earlier were first looked at.
        leaves: At what age each ended, or was last looked at.
    """
    weights: list[float] = []
    hazards, hazard = [0.0], 0.0
    survives, joined, left, position = 1.0, 0, 0, 0
    absent = len(joins)
    while position < len(took_ms):
        at_ms, ties = took_ms[position], 1
        while position + ties < len(took_ms) and took_ms[position + ties] == at_ms:
            ties += 1
        while joined < absent and joins[joined] < at_ms:
            joined += 1
        while left < len(leaves) and leaves[left] < at_ms:
            left += 1
        # One more is always there: the call that never ends.
        at_risk = max(ties, len(leaves) - left - (absent - joined)) + 1
        weights += [survives / at_risk] * ties
        survives *= 1 - ties / at_risk
        hazard += ties / at_risk
        hazards += [hazard] * ties
        position += ties
    return weights, hazards, survives


def _sum_up(
    ends: Sequence[tuple[int, float]], weights: Sequence[float], rest: float
) -> list[tuple[Moments, float]]:
    """For each position what follows it, up to the end, and the part that has not ended by then."""
    middle = sum(extra for _, extra in ends) / max(1, len(ends))  # else squares lose their digits
    nothing = (0.0, 0.0, 0.0), 1.0
    found: list[tuple[Moments, float]] = [nothing]
    mass = first = second = third = 0.0
    for after, ((_, extra), weight) in enumerate(
        zip(reversed(ends), reversed(weights), strict=True), start=1
    ):
        off = extra - middle
        mass += weight
        weight *= off
        first += weight
        weight *= off
        second += weight
        third += weight * off
        if after < FEW or mass <= 0:
            found.append(nothing)
            continue
        mean = first / mass
        found.append((central(middle, mean, second / mass, third / mass), rest / (mass + rest)))
    found.reverse()
    return found


def share_of_ceiling(seen: Iterable[Seen], unit: int) -> float:
    """What part of a larger ceiling is spent: between nothing and all of it."""
    pairs = [(each.ceilings[unit], each.costs[unit]) for each in seen]
    if not pairs:
        return 0.0
    ceiling = sum([pair[0] for pair in pairs]) / len(pairs)
    cost = sum([pair[1] for pair in pairs]) / len(pairs)
    off = [(its_ceiling - ceiling, its_cost - cost) for its_ceiling, its_cost in pairs]
    spread = sum([wider * wider for wider, _ in off])
    if spread <= 0:
        return 0.0
    both = sum([wider * dearer for wider, dearer in off])
    return max(0.0, min(1.0, both / spread))
