"""When a budget will be used up, at the rate at which it is spent. Pure.

*Used up* means that nothing is left: what was spent and what calls under way may cost, together, are
as much as the limit, so that whoever comes next waits. So it is earlier than the day on which as much
as the limit was spent, by what is always under way; that is what `left` says everywhere.

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

from math import ceil, sqrt

from scheduler.budget import WindowKind
from scheduler.stats import CapStatus

HOUR_MS = 3_600_000
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


def left_of(cap: CapStatus) -> int | None:
    """What is left of a limit, in the cap's unit: below 0 after an overrun or a cut; None: no limit."""
    return None if cap.limit is None else cap.limit - cap.counted


def used_up_at_ms(cap: CapStatus, per_hour: float, now_ms: int) -> int | None:
    """When nothing is left of a cap, if it goes on like this.

    Args:
        cap: Its balance.
        per_hour: What is spent in an hour, in its unit.
        now_ms: The time of that balance.

    Returns:
        The instant, `now_ms` if nothing is left already. None: not before the window ends, or it
        gives back by itself what it took, as rolling windows do.
    """
    left = left_of(cap)
    if left is None:
        return None
    if left <= 0:
        return now_ms
    if per_hour <= 0 or cap.cap.window.kind is WindowKind.ROLLING:
        return None
    at_ms = now_ms + ceil(left * HOUR_MS / per_hour)
    ends_ms = cap.cap.window.resets_at_ms(now_ms)
    return None if ends_ms is not None and at_ms >= ends_ms else at_ms
