"""When so much will have been spent, as far as budgets go: over windows to come, and paces.

In closed form, cap by cap; the slowest decides. A window is never used up to its last cent, since a
request starts only while all that it may cost is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.stats import CapStatus

MOST_WINDOWS = 20_000


def finish_ms(caps: Sequence[tuple[CapStatus, float, float]], now_ms: int) -> int | None:
    """When the last of it may start; None: not without a raise.

    Args:
        caps: Each with what is needed of it in all, and what of each window stays unused.
        now_ms: The time.
    """
    latest = now_ms
    for status, need, unused in caps:
        at_ms = _of_one(status, need, unused, now_ms)
        if at_ms is None:
            return None
        latest = max(latest, at_ms)
    return latest


def _of_one(status: CapStatus, need: float, unused: float, now_ms: int) -> int | None:
    limit, window, pace = status.limit, status.cap.window, status.cap.pace
    if limit is None or need <= 0:
        return now_ms
    used = status.posted + status.reserved
    each = limit - unused  # of a window that is new
    if need <= limit - used - unused:
        if pace is None:
            return now_ms
        return pace.reaches_ms(min(limit, round(used + need + unused)), window, now_ms, limit)
    if each <= 0:
        return None
    lacks = need - max(0.0, limit - used - unused)
    more = int(-(-lacks // each))  # windows
    if window.span_ms:
        return now_ms + more * (window.span_ms + window.bucket_ms)
    at_ms = window.resets_at_ms(now_ms)
    if at_ms is None or more > MOST_WINDOWS:
        return None
    for _ in range(more - 1):
        at_ms = window.resets_at_ms(at_ms) or at_ms
    if pace is None:
        return at_ms
    last = min(limit, round(lacks - (more - 1) * each + unused))
    return pace.reaches_ms(last, window, at_ms, limit)
