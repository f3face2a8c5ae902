"""How fast a budget may be spent within its window: a share of it that grows with the time.

Uniformly, in some hours of each day, or by a profile of the day. At an instant t no more than

    allowed(t) = min(limit, limit · F(t) + slack)

may have been spent or reserved, where F(t) is the share of the window that has passed by then: of
its time, or of its time weighed by the hour. What is not used up by then may be used later in the
window. The slack, the share of an hour, and of a window shorter than a day that of its twenty-fourth
part, lets it begin at once. We decide what is sent, so this needs no controller, as pacing of
advertisements does (LinkedIn, KDD 2014): who waits for its share knows when it is there.

>>> day = Window.parse("day")
>>> noon_ms = 12 * 3_600_000
>>> Pace.parse("").allowed(24_000, day, noon_ms), Pace.parse("").reaches_ms(13_001, day, noon_ms, 24_000)
(13000, 43203600)
>>> office = Pace.parse("09:00-18:00")
>>> [office.allowed(9_000, day, hour * 3_600_000) for hour in (0, 9, 12, 18, 23)]
[375, 375, 3375, 9000, 9000]
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from scheduler.errors import ConfigError
from scheduler.window import Window, WindowKind, local_time

HOUR_MS = 3_600_000
MINUTE_MS = 60_000
PARTS = 24  # of a shorter window, one of which is the slack
SHORTEST_DAY_MS = 22 * HOUR_MS  # on which clocks are put forward
_HOURS = re.compile(r"(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?")
_PROFILE = re.compile(r"\d{24}")
_FORMS = (
    "nothing (evenly), hours such as 09:00-18:00, or 24 digits, the weight of each hour of the day"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How the share grows; make one with `parse`.

    Attributes:
        text: As the grammar writes it; empty: evenly.
    """

    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Pace:
        """Make a pace from its profile. Raises `ConfigError` if it is none."""
        word = text.strip().lower()
        if word in ("", "uniform"):
            return cls()
        if _PROFILE.fullmatch(word):
            if not word.strip("0"):
                raise ConfigError("pace", f"{text!r} leaves no hour in which anything may be spent")
            return cls(word)
        match = _HOURS.fullmatch(word)
        if match is None:
            raise ConfigError("pace", f"{text!r} is not a pace: {_FORMS}")
        from_h, from_m, to_h, to_m = (int(group or 0) for group in match.groups())
        start, end = from_h * 60 + from_m, to_h * 60 + to_m
        if max(from_m, to_m) > 59 or max(start, end) > 24 * 60 or start == end:
            raise ConfigError(
                "pace", f"{text!r} is no span of a day, as 09:00-18:00 or 22:00-06:00"
            )
        return cls(f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}")

    def __str__(self) -> str:
        return f"paced {self.text}" if self.text else "paced"

    def allowed(self, limit: int, window: Window, at_ms: int) -> int:
        """How much of a limit may be spent or reserved by then, since its window began."""
        course = _course_at(self, window, at_ms)
        passed = course.passed(at_ms)
        return min(limit, limit * passed // course.total + _slack(limit, course))

    def reaches_ms(self, amount: int, window: Window, at_ms: int, limit: int) -> int | None:
        """The first instant from `at_ms` on, in its window, at which so much is allowed; None: none."""
        if amount > limit:
            return None
        course = _course_at(self, window, at_ms)
        wanted = max(0, amount - _slack(limit, course))
        if not limit:
            return at_ms
        # limit · passed // total >= wanted
        return max(at_ms, course.at_ms(-(-wanted * course.total // limit)))


def step_at(pace: Pace, window: Window, at_ms: int, steps: int) -> int:
    """How many of so many equal parts of a window's weight have passed."""
    course = _course_at(pace, window, at_ms)
    return min(steps - 1, steps * course.passed(at_ms) // course.total)


def begins_ms(pace: Pace, window: Window, at_ms: int, step: int, steps: int) -> int:
    """When such a part of a window begins; the window is that of an instant."""
    course = _course_at(pace, window, at_ms)
    return course.at_ms(-(-step * course.total // steps))


class _Course(NamedTuple):
    """How weight adds up in one window: at some instants, straight between them."""

    instants: tuple[int, ...]
    sums: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.sums[-1]

    def passed(self, at_ms: int) -> int:
        """The weight up to an instant."""
        at = bisect_right(self.instants, at_ms) - 1
        if at >= len(self.instants) - 1:
            return self.total
        length_ms = self.instants[at + 1] - self.instants[at]
        more = self.sums[at + 1] - self.sums[at]
        return self.sums[at] + more * (at_ms - self.instants[at]) // length_ms

    def at_ms(self, weight: int) -> int:
        """The first instant at which so much has passed."""
        at = bisect_left(self.sums, weight)
        if at == 0:
            return self.instants[0]
        more = self.sums[at] - self.sums[at - 1]
        length_ms = self.instants[at] - self.instants[at - 1]
        lacking = weight - self.sums[at - 1]
        return self.instants[at - 1] + -(-lacking * length_ms // more)


def _slack(limit: int, course: _Course) -> int:
    span_ms = course.instants[-1] - course.instants[0]
    slack_ms = HOUR_MS if span_ms >= SHORTEST_DAY_MS else span_ms // PARTS
    return limit * slack_ms // span_ms


def _course_at(pace: Pace, window: Window, at_ms: int) -> _Course:
    end_ms = window.resets_at_ms(at_ms)
    assert end_ms is not None, "only calendar windows are paced"
    return _course(pace, window.zone, window.slot_start_ms(at_ms), end_ms)


@lru_cache(maxsize=256)
def _course(pace: Pace, zone: str, start_ms: int, end_ms: int) -> _Course:
    if not pace.text:
        return _Course((start_ms, end_ms), (0, end_ms - start_ms))
    weights = _weights(pace.text)
    instants, sums = [start_ms], [0]
    while instants[-1] < end_ms:
        at_ms = instants[-1]
        local = local_time(at_ms, zone)
        minute = local.hour * 60 + local.minute
        weight = next(each for until, each in weights if minute < until)
        # Up to where the weight may change, and no further than the next hour: clocks may, too.
        minutes = min(60 - minute % 60, *(until - minute for until, _ in weights if until > minute))
        until_ms = min(end_ms, at_ms - at_ms % MINUTE_MS + minutes * MINUTE_MS)
        total = sums[-1] + weight * (until_ms - at_ms)
        if len(sums) > 1 and _is_straight(instants, sums, until_ms, total):
            instants[-1], sums[-1] = until_ms, total
        else:
            instants.append(until_ms)
            sums.append(total)
    if not sums[-1]:  # none of its hours is in this window
        return _Course((start_ms, end_ms), (0, end_ms - start_ms))
    return _Course(tuple(instants), tuple(sums))


def _is_straight(instants: list[int], sums: list[int], until_ms: int, total: int) -> bool:
    """Whether the last piece goes on at the same weight."""
    before = (sums[-1] - sums[-2]) * (until_ms - instants[-1])
    return before == (total - sums[-1]) * (instants[-1] - instants[-2])


@lru_cache(maxsize=64)
def _weights(text: str) -> tuple[tuple[int, int], ...]:
    """Up to which minute of the day each weight holds."""
    if ":" not in text:
        return tuple((60 * (hour + 1), int(digit)) for hour, digit in enumerate(text))
    (start, end) = (int(each[:2]) * 60 + int(each[3:]) for each in text.split("-"))
    inside, outside = (1, 0) if start < end else (0, 1)
    low, high = sorted((start, end))
    return ((low, outside), (high, inside), (24 * 60, outside))


def check(window: Window) -> None:
    """Raises `ConfigError` if a window cannot be paced: it has no end that is known beforehand."""
    if window.kind is not WindowKind.CALENDAR:
        raise ConfigError(
            "pace",
            f"a pace needs a calendar window (day, week, month, …), not {window.describe()!r}: "
            "nobody knows how far through it one is",
        )
