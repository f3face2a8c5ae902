"""When a budget will be used up, at the rate at which it is spent. Pure.

Calls come by chance, λ of them a millisecond, and cost c each: what is spent in t is about m·t, with a
variance of v·t, where m = λ·E[c] and v = λ·E[c²] (a compound Poisson process). So what is left, R, lasts

    t(z) = ((−z·√v + √(z²·v + 4·m·R)) / 2m)²

with the probability that belongs to z.

>>> used_up_ms(1_000, 1.0, 0.0, 0)
(1000, 1000, 1000)
>>> early, likely, late = used_up_ms(1_000, 1.0, 10.0, 0)
>>> early < likely < late, likely
(True, 1000)
"""

from __future__ import annotations

from math import sqrt

TENTH = 1.2816  # of which one in ten is beyond


def used_up_ms(left: float, mean: float, variance: float, now_ms: int) -> tuple[int, int, int]:
    """When nothing is left: in one of ten cases before, likely, and in one of ten later.

    Args:
        left: What is left, above 0.
        mean: What is spent in a millisecond, above 0.
        variance: Of that.
        now_ms: The time.
    """
    early, likely, late = (
        now_ms + round(_lasts_ms(max(0.0, left), mean, variance, z)) for z in (TENTH, 0.0, -TENTH)
    )
    return early, likely, late


def _lasts_ms(left: float, mean: float, variance: float, z: float) -> float:
    chance = z * sqrt(variance)
    return ((sqrt(chance * chance + 4 * mean * left) - chance) / (2 * mean)) ** 2
