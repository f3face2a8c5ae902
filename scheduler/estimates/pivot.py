"""How far a sum over skewed, long-tailed amounts may be from what a few of them say.

A bootstrap-t: the known calls are drawn again and again, and each time it is looked how far their
sum is from the true one, in units of the error that they themselves tell. Two things make it hold
for 30 to 100 calls. The highest tenth is drawn from a Pareto tail fitted to them (Hill), up to what
the cap allows, since the longest answer of a few is hardly ever the longest there is. And amounts
are compared by their logarithm, in which the error depends less on the amount itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

DRAWS = 120_000  # numbers drawn in all, and
FEWEST_TIMES, MOST_TIMES = 399, 1999  # times that calls are drawn anew
TAIL = 0.1  # of the calls
LEAST_ALPHA = 1.05  # a tail without a mean is cut by the cap, and is not believed beyond it
FEW_LEFT = 4  # times the known calls: so few are drawn as well


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; of nothing, 0."""
    return sum(values) / len(values) if values else 0.0


def variance(values: Sequence[float]) -> float:
    """The variance, as a sample tells it of where it comes from."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return sum((each - middle) ** 2 for each in values) / (len(values) - 1)


@dataclass(slots=True)
class Stratum:
    """Requests that are judged by the same calls.

    Attributes:
        values: What those came to, but for the part that is known.
        noise: What each came to beside that, by chance, up or down alike; empty: nothing.
        caps: What each might have come to.
        left: How many requests are still to come.
        scale: What one of these is, in units of the values.
        known: What is known of them.
        shift: What they come to beside their count times the mean.
        is_positive: Whether their logarithms may be compared.
    """

    values: list[float]
    caps: list[float]
    left: int
    scale: float = 1.0
    known: float = 0.0
    shift: float = 0.0
    is_positive: bool = True
    noise: Sequence[float] = ()
    _tail: _Tail | None = field(default=None, repr=False)

    @property
    def weight(self) -> float:
        """By which a mean becomes a sum."""
        return self.left * self.scale

    @property
    def expected(self) -> float:
        """The sum beside what is known."""
        return self.weight * (mean(self.values) + mean(self.noise)) + self.shift

    @property
    def doubt(self) -> float:
        """The variance of the error of that."""
        if not self.noise:
            return self._doubt(variance(self.values))
        return self._doubt(
            variance([sum(both) for both in zip(self.values, self.noise, strict=True)])
        )

    def _doubt(self, of_values: float) -> float:
        return self.weight**2 * of_values * (1 / len(self.values) + 1 / self.left)

    def begin(self) -> None:
        """Fit the tail."""
        self._tail = _Tail(self.values, self.caps)

    def draw(self, rng: Random) -> tuple[float, float, float]:
        """A sum as other calls would tell it, the variance of its error, and the true one."""
        assert self._tail is not None
        known = self._drawn(rng, len(self.values))
        if self.left <= FEW_LEFT * len(self.values):
            true = mean(self._drawn(rng, self.left))
        else:
            true = self._tail.mean + mean(self.noise)
        told = self.weight * mean(known) + self.shift
        return told, self._doubt(variance(known)), self.weight * true + self.shift

    def _drawn(self, rng: Random, count: int) -> list[float]:
        assert self._tail is not None
        found = self._tail.draw(rng, count)
        if self.noise:
            more = rng.choices(self.noise, k=count)
            found = [sum(both) for both in zip(found, more, strict=True)]
        return found

    @property
    def draws(self) -> int:
        """How many numbers one draw takes."""
        few = self.left <= FEW_LEFT * len(self.values)
        return len(self.values) + (self.left if few else 0)


class _Tail:
    """What calls are drawn from: the known ones, the highest of them from a fitted tail."""

    def __init__(self, values: Sequence[float], caps: Sequence[float]) -> None:
        pairs = sorted(zip(values, caps, strict=True))
        count = max(3, round(TAIL * len(pairs)))
        self._from = pairs[-count - 1][0] if len(pairs) > count + 1 else 0.0
        if self._from <= 0:
            count = 0
        self._low = [value for value, _ in pairs[: len(pairs) - count]]
        self._caps = [cap for _, cap in pairs[len(pairs) - count :]]
        logs = (
            sum(log(value / self._from) for value, _ in pairs[len(pairs) - count :]) if count else 0
        )
        self._alpha = max(LEAST_ALPHA, (count - 1) / logs) if logs > 1e-9 else 1e6
        self.mean = (sum(self._low) + sum(map(self._mean_below, self._caps))) / len(pairs)

    def _mean_below(self, cap: float) -> float:
        """The mean of the tail, if none is above a cap."""
        beyond: float = max(1.0, cap / self._from) ** (1 - self._alpha)
        return self._from * (1 + (1 - beyond) / (self._alpha - 1))

    def draw(self, rng: Random, count: int) -> list[float]:
        """So many calls."""
        low = len(self._low)
        found = []
        for at in rng.choices(range(low + len(self._caps)), k=count):
            if at < low:
                found.append(self._low[at])
            else:
                value = self._from * (1.0 - rng.random()) ** (-1 / self._alpha)
                found.append(min(value, max(self._from, self._caps[at - low])))
        return found


def quantiles(strata: Sequence[Stratum], rng: Random, share: float) -> tuple[float, float, bool]:
    """How far off sums are, in units of their own error: what so few are below, and above.

    Returns:
        Both, and whether it is the logarithms that are compared.
    """
    for each in strata:
        each.begin()
    is_log = all(each.is_positive for each in strata) and sum(each.expected for each in strata) > 0
    draws = sum(each.draws for each in strata)
    times = max(FEWEST_TIMES, min(MOST_TIMES, DRAWS // draws))
    found = []
    for _ in range(times):
        drawn = [each.draw(rng) for each in strata]
        told, true = sum(each[0] for each in drawn), sum(each[2] for each in drawn)
        spread = sqrt(sum(each[1] for each in drawn))
        if spread <= 1e-12 * abs(told):
            continue  # all of them alike: they tell no error
        if not is_log:
            found.append((told - true) / spread)
        elif told > 0 < true:
            found.append(log(told / true) * told / spread)
    if not found:
        return 0.0, 0.0, is_log
    found.sort()
    place = min(len(found) - 1, int(share * (len(found) + 1)))
    # Calls that are drawn from a few are a little more alike than what those were drawn from.
    more = 1 + 1 / min(len(each.values) for each in strata)
    return found[place] * more, found[-1 - place] * more, is_log
