"""How spending went, and how long calls took: sums by the quarter of an hour, as stores keep them.

Durations are counted in buckets, four to each doubling, so a quantile read from them is off by less
than an eighth, however many calls there were.

>>> [bucket_of(ms) for ms in (0, 3, 4, 5, 1000, 1100, 2000)]
[0, 3, 4, 5, 35, 36, 39]
>>> from_ms(35), from_ms(36)
(896, 1024)
>>> quantile_ms({35: 90, 39: 10}, 0.5), quantile_ms({35: 90, 39: 10}, 0.95), quantile_ms({}, 0.5)
(960, 1920, None)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

QUARTER_MS = 15 * 60_000
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
