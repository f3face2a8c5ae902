"""What calls will cost that have outlived all that are known, or nearly all: a guess, and its trust.

Of these one knows how long they have lasted, and of the longest others how many ended meanwhile.
Lengths of answers have heavy tails: of those that have lasted t, the part that lasts x t is about
x ** -index, whatever t is (Pareto), up to the ceiling. The index is what ended in the tail for each
doubling that was lived through there, so calls that go on and on count (Hill, with censoring); a
standard deviation less of it, since few have ended there.

A tail that breaks off, as where answers are short or run into their limit, would be seen too late
by that. So it is asked how likely it is that nobody ended in all the time that was lived through
beyond the longest that did; the less likely that is, the more of their ceilings such calls count.

Cost has to grow with time for all this. Where it does not, there is no guess, and the ceiling counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LONGEST = 32  # of so many that took longest the tail is made
FEWEST = 8
CAUTION = 1.0  # standard deviations
TRUSTED = 0.2  # what is as likely as that, or more, is believed
FITS = 0.5  # of the variance of costs has to be explained by time

Moments = tuple[float, float, float]  # the mean, the variance, the third about the mean


def central(base: float, first: float, second: float, third: float) -> Moments:
    """Moments about the mean, from those about a base."""
    variance = second - first * first
    return base + first, max(0.0, variance), third - 3 * first * variance - first * first * first


def mixed(one: Moments, other: Moments, share: float) -> Moments:
    """Of what is the one, or with that probability the other."""
    apart = other[0] - one[0]
    up, down = (1 - share) * apart, -share * apart
    return (
        one[0] + share * apart,
        (1 - share) * (one[1] + down * down) + share * (other[1] + up * up),
        (1 - share) * (one[2] + 3 * one[1] * down + down * down * down)
        + share * (other[2] + 3 * other[1] * up + up * up * up),
    )


class Tail:
    """The guess.

    Args:
        index: How fast calls of the tail end.
        at_once: What a call costs that takes no time.
        rate: What a millisecond costs.
        trust: How far it is believed.
        last_ms: The longest that ended.
    """

    __slots__ = ("_at_once", "_first", "_index", "_last_ms", "_rate", "_trust")

    def __init__(
        self, index: float, at_once: float, rate: float, trust: float, last_ms: int
    ) -> None:
        self._index, self._at_once, self._rate = index, at_once, rate
        self._trust, self._last_ms = trust, max(1, last_ms)
        self._first: dict[float, Moments] = {}  # of those that are younger, by their ceiling

    def beyond(self, age_ms: float, ceiling: float) -> Moments:
        """What one will cost that lasts longer than the longest, and than its age."""
        if age_ms > self._last_ms:
            return self._guess(age_ms, ceiling)
        known = self._first.get(ceiling)
        if known is None:
            known = self._first[ceiling] = self._guess(self._last_ms, ceiling)
        return known

    def _guess(self, age_ms: float, ceiling: float) -> Moments:
        most_ms = (ceiling - self._at_once) / self._rate
        if most_ms <= age_ms:
            return ceiling, 0.0, 0.0
        one, two, three = (self._moment(power, age_ms / most_ms) for power in (1, 2, 3))
        cost = self._rate * age_ms
        told = central(self._at_once, cost * one, cost**2 * two, cost**3 * three)
        return mixed((min(ceiling, told[0]), *told[1:]), (ceiling, 0.0, 0.0), 1 - self._trust)

    def _moment(self, power: int, part: float) -> float:
        """Of the length in ages, cut off where the ceiling is reached, of which this is a part."""
        excess = power - self._index
        if abs(excess) < 1e-6:
            return 1 - power * math.log(part)
        return 1 + power * math.expm1(-excess * math.log(part)) / excess


def find_tail(
    ends: Sequence[tuple[int, float]], lives_ms: Sequence[tuple[int, int]]
) -> Tail | None:
    """The tail of what is known; None: no guess can be made.

    Args:
        ends: How long calls took, and what they cost, in order.
        lives_ms: At what age each was looked at first, and last, those under way too.
    """
    if len(ends) < 2 * FEWEST or (line := _line(ends)) is None:
        return None
    at_once, rate = line
    from_ms = max(1, ends[-1 - min(LONGEST, len(ends) // 2)][0])
    last_ms = ends[-1][0]
    ended = sum(took_ms > from_ms for took_ms, _ in ends)
    lived, lived_after = 0.0, 0.0  # in doublings, but for a constant
    for first_ms, age_ms in lives_ms:
        if age_ms > from_ms:
            seen_ms = max(from_ms, first_ms)
            lived += math.log(age_ms / seen_ms)
            if age_ms > last_ms:
                lived_after += math.log(age_ms / max(seen_ms, last_ms))
    if lived <= 0:
        return None
    trust = 1.0
    if lived_after > 0:
        expected = ended * lived_after / (lived - lived_after) if lived > lived_after else math.inf
        trust = min(1.0, math.exp(-expected) / TRUSTED)
    index = max(0.0, ended - CAUTION * math.sqrt(ended)) / lived
    return Tail(index, at_once, rate, trust, last_ms)


def _line(ends: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """How cost grows with time: what it is at once, and for each millisecond. None: it does not."""
    count = len(ends)
    took_ms = sum([end[0] for end in ends]) / count
    cost = sum([end[1] for end in ends]) / count
    off = [(its_ms - took_ms, its_cost - cost) for its_ms, its_cost in ends]
    times = sum([later * later for later, _ in off])
    costs = sum([dearer * dearer for _, dearer in off])
    both = sum([later * dearer for later, dearer in off])
    if both <= 0 or both * both < FITS * times * costs:
        return None
    rate = both / times
    return cost - rate * took_ms, rate
