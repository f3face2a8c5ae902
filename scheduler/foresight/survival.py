"""How long calls take, and what they have cost by then: learned from those that ended, and those that did not.

Who looks only at calls that have ended learns too little of them: of calls that began together the
cheapest end first. So a call that is under way counts as one of which it is known that it takes
longer than it has so far (Kaplan and Meier), and one that began before the oldest that is still
remembered counts from the age that it had then (left truncation). One more call counts that never ends: after n calls the next one is the
longest of all in one case of n + 1. What calls cost that nobody has outlived yet is guessed (`tail`),
where there is reason to; else they count at their ceilings.

Part of a ceiling may be known for sure, as what a prompt costs. So not the cost is learned but what
it is beyond a share of the ceiling, and that share, by least squares. Where all ceilings are the
same it is zero.

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
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scheduler.foresight.tail import Tail, find_tail

RING = 256  # calls that are remembered
REBUILD = 16  # of these so many new ones, before they are looked at anew
FEW = 3  # of so many that took longer nothing is concluded

Amounts = tuple[int, int]  # nano-dollars, tokens


class Seen(NamedTuple):
    """One call that ended."""

    made_at_ms: int
    took_ms: int
    costs: Amounts
    ceilings: Amounts


class Outlook(NamedTuple):
    """What one call will have cost.

    Attributes:
        gap: How far its ceiling is above what it costs if it ends as others did.
    """

    mean: float
    variance: float
    gap: float


class Curve:
    """What calls cost that last longer than any given time, frozen.

    Args:
        slope: The share of a ceiling that is spent in any case.
        took_ms: When calls ended, in order.
        beyond: For each position: of those from there on, the mean cost beyond that share, its
            variance, and the part of them that has not ended yet.
        tail: What these cost; None: their ceilings.

    Attributes:
        count: Calls it was learned from.
    """

    __slots__ = ("_beyond", "_tail", "_took_ms", "count", "slope")

    def __init__(
        self,
        slope: float,
        took_ms: Sequence[int],
        beyond: Sequence[tuple[float, float, float]],
        tail: Tail | None,
    ) -> None:
        self.slope, self.count = slope, len(took_ms)
        self._took_ms, self._beyond, self._tail = took_ms, beyond, tail

    def outlook(self, age_ms: int, ceiling: int) -> Outlook:
        """What to expect of a call that has lasted so long."""
        extra, variance, rest = self._beyond[bisect_right(self._took_ms, age_ms)]
        free = ceiling - self.slope * ceiling  # what may be spent beyond what is in any case
        late, late_variance = free, 0.0
        if self._tail is not None:
            late, late_variance = self._tail.beyond(age_ms, free)
        mean = extra + rest * (late - extra)
        if mean >= free:
            return Outlook(float(ceiling), 0.0, 0.0)
        ends, apart = 1 - rest, late - extra
        spread = ends * variance + rest * late_variance + ends * rest * apart * apart
        return Outlook(max(0.0, ceiling - free + mean), spread, free - (extra if ends else late))


class History:
    """What is remembered of one kind of calls.

    Attributes:
        since_ms: What ended before is not remembered.
        count: How many were learned of, ever.
    """

    __slots__ = ("_curves", "_seen", "count", "since_ms")

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque()
        self.since_ms: int | None = None
        self.count = 0
        self._curves: dict[int, tuple[int, Curve]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def learn(self, made_at_ms: int, ended_at_ms: int, costs: Amounts, ceilings: Amounts) -> None:
        """A call ended; told in that order."""
        if len(self._seen) >= RING:
            oldest = self._seen.popleft()
            self.since_ms = oldest.made_at_ms + oldest.took_ms
        took_ms = max(0, ended_at_ms - made_at_ms)
        self._seen.append(Seen(made_at_ms, took_ms, costs, ceilings))
        self.count += 1

    def curve(self, unit: int, under_way: Iterable[int], now_ms: int) -> Curve:
        """What is to be expected now; anew after some more have ended.

        Args:
            unit: Of the amounts that count.
            under_way: When those began that have not ended.
            now_ms: The time.
        """
        built, curve = self._curves.get(unit, (0, None))
        if curve is None or self.count - built >= max(1, min(REBUILD, len(self) // REBUILD)):
            curve = estimate(self._seen, under_way, self.since_ms, now_ms, unit)
            self._curves[unit] = self.count, curve
        return curve


def estimate(
    seen: Sequence[Seen] | deque[Seen],
    under_way: Iterable[int],
    since_ms: int | None,
    now_ms: int,
    unit: int,
) -> Curve:
    """The curve of calls of which some have not ended, and some began before one looked."""
    slope = share_of_ceiling(seen, unit)
    ends = sorted((each.took_ms, each.costs[unit] - slope * each.ceilings[unit]) for each in seen)
    begun_ms = [(each.made_at_ms, each.took_ms) for each in seen]
    begun_ms += [(at_ms, max(0, now_ms - at_ms)) for at_ms in under_way]
    leaves = sorted(age_ms for _, age_ms in begun_ms)
    joins = [] if since_ms is None else sorted(
        since_ms - at_ms for at_ms, _ in begun_ms if at_ms < since_ms
    )  # fmt: skip
    weights, rest = _weigh([took_ms for took_ms, _ in ends], joins, leaves)
    tail = find_tail(ends, begun_ms, since_ms)
    return Curve(slope, [each[0] for each in ends], _sum_up(ends, weights, rest), tail)


def _weigh(
    took_ms: Sequence[int], joins: Sequence[int], leaves: Sequence[int]
) -> tuple[list[float], float]:
    """The weight of each end, in order, and that of what has not ended.

    Args:
        took_ms: At what age calls ended.
        joins: At what age those who began earlier were first looked at.
        leaves: At what age each ended, or was last looked at.
    """
    weights: list[float] = []
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
        position += ties
    return weights, survives


def _sum_up(
    ends: Sequence[tuple[int, float]], weights: Sequence[float], rest: float
) -> list[tuple[float, float, float]]:
    """For each position what follows it, up to the end."""
    middle = sum(extra for _, extra in ends) / max(1, len(ends))  # else squares lose their digits
    found = [(0.0, 0.0, 1.0)]
    mass = first = second = 0.0
    for after, ((_, extra), weight) in enumerate(
        zip(reversed(ends), reversed(weights), strict=True), start=1
    ):
        mass += weight
        first += weight * (extra - middle)
        second += weight * (extra - middle) ** 2
        if after < FEW or mass <= 0:
            found.append((0.0, 0.0, 1.0))
            continue
        mean = first / mass
        found.append((middle + mean, max(0.0, second / mass - mean * mean), rest / (mass + rest)))
    found.reverse()
    return found


def share_of_ceiling(seen: Iterable[Seen], unit: int) -> float:
    """What part of a larger ceiling is spent: between nothing and all of it."""
    pairs = [(each.ceilings[unit], each.costs[unit]) for each in seen]
    if not pairs:
        return 0.0
    ceiling = sum(pair[0] for pair in pairs) / len(pairs)
    cost = sum(pair[1] for pair in pairs) / len(pairs)
    spread = sum((pair[0] - ceiling) ** 2 for pair in pairs)
    if spread <= 0:
        return 0.0
    both = sum((pair[0] - ceiling) * (pair[1] - cost) for pair in pairs)
    return max(0.0, min(1.0, both / spread))
