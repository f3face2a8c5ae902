"""How spending went, and how long calls took: sums by the quarter of an hour, as stores keep them.

Durations are counted in buckets, four to each doubling, so a quantile read from them is off by less
than an eighth, however many calls there were.

>>> [bucket_of(ms) for ms in (0, 3, 4, 5, 1000, 1100, 2000)]
[0, 3, 4, 5, 35, 36, 39]
>>> from_ms(35), from_ms(36)
(896, 1024)
>>> quantile_ms({35: 90, 39: 10}, 0.5), quantile_ms({35: 90, 39: 10}, 0.95), quantile_ms({}, 0.5)
(960, 1920, None)

What was spent *lately* is told from the beginning of a quarter of an hour on, for the last 45 to 60
minutes; the rate is that of this time, or of what there is of it since spending began.

>>> lately_since_ms(60 * MINUTE_MS) // MINUTE_MS, lately_since_ms(74 * MINUTE_MS) // MINUTE_MS
(15, 15)
>>> rate_per_hour([(15 * MINUTE_MS, 30), (30 * MINUTE_MS, 10)], 55 * MINUTE_MS)
60
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MINUTE_MS = 60_000
QUARTER_MS = 15 * MINUTE_MS
HOUR_MS = 60 * MINUTE_MS
LATELY_MS = 45 * MINUTE_MS  # at least so long is lately
LAST = 150  # of buckets: what took longer than about twelve days


class CourseRow(NamedTuple):
    """What was posted on one budget for attempts that began in one quarter of an hour."""

    budget_id: int
    quarter_ms: int
    nusd: int
    tokens: int
    requests: int


class TookRow(NamedTuple):
    """Answered attempts for one model that ended in one quarter of an hour and took about as long.

    Attributes:
        bucket: How long; see `from_ms`.
        ceiling_nusd: What was reserved for all of them.
    """

    quarter_ms: int
    model: str
    bucket: int
    calls: int
    nusd: int
    ceiling_nusd: int


def lately_since_ms(at_ms: int) -> int:
    """The beginning of the quarter of an hour in which that begins which is told as lately."""
    began_ms = at_ms - LATELY_MS
    return began_ms - began_ms % QUARTER_MS


def rate_per_hour(posted: Sequence[tuple[int, int]], now_ms: int) -> int:
    """What an hour costs, by what was posted lately.

    Args:
        posted: By quarters of an hour, in order.
        now_ms: The time.
    """
    since_ms = lately_since_ms(now_ms)
    recent = [each for each in posted if each[0] >= since_ms and each[1]]
    if not recent:
        return 0
    lasted_ms = max(QUARTER_MS, now_ms - recent[0][0])
    return sum(amount for _, amount in recent) * HOUR_MS // lasted_ms


def bucket_of(ms: int) -> int:
    """The bucket in which a duration is counted."""
    if ms < 4:
        return max(0, ms)
    octave = ms.bit_length() - 3
    return min(LAST, 4 * octave + (ms >> octave))


def from_ms(bucket: int) -> int:
    """The shortest duration of a bucket."""
    if bucket < 4:
        return bucket
    octave, part = divmod(bucket - 4, 4)
    return (4 + part) << octave


def quantile_ms(calls: Mapping[int, int], share: float) -> int | None:
    """The duration that this share of calls did not exceed, by the middle of its bucket.

    Args:
        calls: How many there were, by bucket; none: None.
        share: Between nothing and one.
    """
    left = share * sum(calls.values())
    for bucket in sorted(calls):
        left -= calls[bucket]
        if left <= 0:
            return (from_ms(bucket) + from_ms(bucket + 1)) // 2
    return None
