"""Do calls begun lately last longer than those before them? How many times as long, at least?

Of a call that has lasted so long one knows how many ends were to be expected of it by then, had it been
like the earlier ones (their cumulative hazard). Summed up over calls begun lately, whether they have
ended or not, that is how many of them should have ended. What is missing is told from chance by its
deviation (a log-rank test against one sample). So it shows seconds after lengths have changed, long
before the calls that cost more have ended. What is assumed then is that all takes, and costs, so many
times as much; by the smallest factor that makes what one sees plausible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

LATELY = 256  # calls begun last
FEWEST_BEFORE = 50  # calls before them, to compare them with
SIGMAS = 1.0  # fewer ended than that below what was to be expected: it is taken for no chance
FEWEST = 8  # calls that should have ended, before anything is concluded
MOST, STEPS = 64.0, 12


class Earlier(Protocol):
    """What earlier calls told."""

    count: int

    def hazard(self, age_ms: float) -> float:
        """How many ends were to be expected of one call by that age."""


def stretch(earlier: Earlier, ages_ms: Sequence[int], ended: int) -> float:
    """How many times as long calls last, at least; 1: no longer, as far as one can tell.

    Args:
        earlier: With what they are compared.
        ages_ms: How long each has lasted, ended or not.
        ended: How many of them have ended.
    """

    def is_plausible(times: float) -> bool:
        expected = sum(earlier.hazard(age_ms / times) for age_ms in ages_ms)
        deviation = math.sqrt(expected * (1 + expected / earlier.count))
        return expected < FEWEST or ended >= expected - SIGMAS * deviation

    if is_plausible(1.0):
        return 1.0
    low, high = 0.0, math.log(MOST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_plausible(math.exp(middle)) else (middle, high)
    return math.exp(high)
