"""How a budget is being used up: what a burn chart shows, and where it leads; pure.

Spending is known by quarters of an hour. At the rate at which it went lately the budget is used up when
what is spent, with what calls under way may cost on top of it, meets the limit, unless its window ends
before. A rolling window gives back what it took, so no line is drawn for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.budget import Window, WindowKind
from scheduler.estimates.exhaustion import used_up_at_ms
from scheduler.ledger.account import unit_index
from scheduler.stats import CapStatus
from scheduler.stores.course import HOUR_MS, QUARTER_MS, CourseRow, rate_per_hour

WEEK_MS = 7 * 24 * HOUR_MS
MOST_POINTS = 300

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Burn:
    """One cap over the span that is shown, amounts in its unit.

    Attributes:
        spent: What counted in the window, at instants in order; the last one is now.
        allowed: How much might be used up, if it is paced; empty: it is not.
        per_hour: What an hour costs, as it went lately.
        used_up_at_ms: When nothing is left at that rate, as `estimates.exhaustion` has it.
        at_end: What is spent at that rate when the window ends; None: it has no end, or rolls.
    """

    from_ms: int
    to_ms: int
    spent: tuple[Point, ...]
    allowed: tuple[Point, ...]
    per_hour: int
    used_up_at_ms: int | None
    at_end: int | None


def since_ms(window: Window, now_ms: int) -> int:
    """From when on what was posted has to be known."""
    if window.kind is WindowKind.ROLLING:
        return now_ms - 2 * window.span_ms
    return min(_begins_ms(window, now_ms), now_ms - HOUR_MS)


def burn(cap: CapStatus, rows: Sequence[CourseRow], now_ms: int) -> Burn:
    """The chart of one cap.

    Args:
        cap: Its balance.
        rows: What was posted on its budget from `since_ms` on, in order.
        now_ms: The time of that balance.
    """
    window, index = cap.cap.window, unit_index(cap.cap.unit)
    posted = [(row.quarter_ms, (row.nusd, row.tokens, row.requests)[index]) for row in rows]
    from_ms = _begins_ms(window, now_ms)
    ends_ms = window.resets_at_ms(now_ms) if window.kind is WindowKind.CALENDAR else None
    if window.kind is WindowKind.ROLLING:
        spent = _rolling(posted, window.span_ms, from_ms, now_ms)
    else:
        spent = _adding_up(posted, cap.posted, from_ms, now_ms)
    per_hour = rate_per_hour(posted, now_ms)
    at_end = None
    if ends_ms is not None and per_hour > 0:
        at_end = cap.posted + per_hour * (ends_ms - now_ms) // HOUR_MS
    to_ms = now_ms + max(HOUR_MS, (now_ms - from_ms) // 4) if ends_ms is None else ends_ms
    return Burn(
        from_ms, to_ms, tuple(_thinned([*spent, (now_ms, cap.posted)])),
        tuple(_allowed(cap, from_ms, to_ms)), per_hour, used_up_at_ms(cap, per_hour, now_ms), at_end,
    )  # fmt: skip


def _begins_ms(window: Window, now_ms: int) -> int:
    if window.kind is WindowKind.ROLLING:
        return now_ms - window.span_ms
    return now_ms - WEEK_MS if window.kind is WindowKind.TOTAL else window.slot_start_ms(now_ms)


def _adding_up(
    posted: Sequence[Point], total: int, from_ms: int, now_ms: int
) -> list[Point]:  # fmt: skip
    """What had been spent by the end of each quarter; it ends at what is posted now."""
    inside = [each for each in posted if each[0] + QUARTER_MS > from_ms]
    spent = max(0, total - sum(amount for _, amount in inside))
    points = [(from_ms, spent)]
    for quarter_ms, amount in inside:
        if quarter_ms > points[-1][0]:
            points.append((quarter_ms, spent))  # level since the one before
        spent += amount
        points.append((min(now_ms, max(from_ms, quarter_ms + QUARTER_MS)), min(spent, total)))
    return points


def _rolling(posted: Sequence[Point], span_ms: int, from_ms: int, now_ms: int) -> list[Point]:
    """What counted at the end of each quarter."""
    found, first, total, at = [], 0, 0, 0
    end_ms = from_ms - from_ms % QUARTER_MS
    while end_ms < now_ms:
        while at < len(posted) and posted[at][0] < end_ms:
            total += posted[at][1]
            at += 1
        while first < at and posted[first][0] + QUARTER_MS <= end_ms - span_ms:
            total -= posted[first][1]
            first += 1
        found.append((max(from_ms, end_ms), total))
        end_ms += QUARTER_MS
    return found


def _allowed(cap: CapStatus, from_ms: int, to_ms: int) -> list[Point]:
    pace = cap.cap.pace
    if pace is None or cap.limit is None:
        return []
    steps = range(49)
    instants = [min(from_ms + (to_ms - from_ms) * step // 48, to_ms - 1) for step in steps]
    return [(at_ms, pace.allowed(cap.limit, cap.cap.window, at_ms)) for at_ms in instants]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """About as many as a chart has room for; the first and the last stay."""
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]
