"""The span a limit counts over, computed from an instant whenever it is looked at.

Three kinds, told apart in every text:

- *total*: everything ever;
- *calendar*: from one boundary of a local calendar to the next. Windows follow each
  other without gap or overlap, through changes of clocks and uneven months: a
  boundary at a local time that is skipped comes at the first instant after the
  skip, and one at a time that comes twice at the first of the two;
- *rolling*: any span of that length. It is counted in sixty buckets, and what was
  counted in a bucket leaves when the whole bucket is older than the span. So no
  interval of that length ever holds more than the limit, and money comes back at
  most a sixtieth of the span late.

>>> day = Window.parse("day", zone="Europe/Athens")
>>> day.describe(), str(day), Window.parse("48h").describe()
('calendar day, Europe/Athens', 'day @Europe/Athens', 'rolling 2d')
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from scheduler.duration import UNITS_MS, parse_duration_ms
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

BUCKETS = 60
PERIODS = ("minute", "hour", "day", "week", "month", "year")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ANCHOR_FORMS = {
    "day": (r"([01]?\d|2[0-3]):([0-5]\d)", "a time such as 'from 06:00'"),
    "week": (rf"({'|'.join(_WEEKDAYS)})", "a weekday such as 'from mon'"),
    "month": (r"0?([1-9]|[12]\d|3[01])", "a day of the month such as 'from 15'"),
    "year": (r"(0?[1-9]|1[0-2])-(0?[1-9]|[12]\d|3[01])", "a month and day such as 'from 04-01'"),
}


class WindowKind(StrEnum):
    """How a window follows time."""

    TOTAL = "total"
    CALENDAR = "calendar"
    ROLLING = "rolling"


@dataclass(frozen=True, slots=True)
class Window:
    """A span a limit counts over; make one with `parse`.

    Attributes:
        period: For calendar windows one of `PERIODS`; else empty.
        zone: Time zone of its boundaries; ``"UTC"`` where it has none.
        anchor: Where the period starts if not at its usual start: numbers, or empty.
        span_ms: Length of a rolling window; else 0.
    """

    kind: WindowKind
    period: str = ""
    zone: str = "UTC"
    anchor: tuple[int, ...] = ()
    span_ms: int = 0
    _last: list[int] = field(default_factory=lambda: [0, 0], compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, zone: str | None = None, anchor: str | None = None) -> Window:
        """Make a window from its word: ``day``, ``24h``, ``total``.

        Args:
            text: A period, a span, or ``total``.
            zone: For calendar windows; None: UTC.
            anchor: What follows ``from``; None: the period's usual start.

        Raises:
            ConfigError: Unknown word, zone or anchor, or one that makes no sense here.
        """
        word = text.strip().lower()
        if word in PERIODS:
            return cls(
                WindowKind.CALENDAR, word, _check_zone(zone or "UTC"), _parse_anchor(word, anchor)
            )
        if zone is not None or anchor is not None:
            extra = f"@{zone}" if zone is not None else f"from {anchor}"
            raise ConfigError(
                "window", f"{extra!r} needs a calendar window ({', '.join(PERIODS)}), not {word!r}"
            )
        if word == "total":
            return cls(WindowKind.TOTAL)
        if not word[:1].isdigit():
            import difflib

            near = difflib.get_close_matches(word, (*PERIODS, "total"), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                "window",
                f"{text!r} is not one of {', '.join(PERIODS)}, total, or a span such as 24h{hint}",
            )
        span_ms = parse_duration_ms(word, "window")
        if span_ms < 1000:
            raise ConfigError("window", f"{text!r} is shorter than a second")
        return cls(WindowKind.ROLLING, span_ms=span_ms)

    # Slots: what reservations are counted by

    def slot_start_ms(self, at_ms: int) -> int:
        """Beginning of the slot an instant belongs to; a boundary belongs to the new slot."""
        if self.kind is WindowKind.CALENDAR:
            last = self._last
            if not last[0] <= at_ms < last[1]:
                last[0], last[1] = self._bounds_ms(at_ms)
            return last[0]
        if self.kind is WindowKind.ROLLING:
            return at_ms - at_ms % self.bucket_ms
        return 0

    def oldest_counting_ms(self, now_ms: int) -> int:
        """Slots that begin here or later count at `now_ms`; earlier ones do not."""
        if self.kind is WindowKind.ROLLING:
            bucket_ms = self.bucket_ms
            return (now_ms - self.span_ms) // bucket_ms * bucket_ms
        return self.slot_start_ms(now_ms)

    def stops_counting_ms(self, slot_start_ms: int) -> int | None:
        """When what was counted in a slot counts no longer; None: never."""
        if self.kind is WindowKind.ROLLING:
            return slot_start_ms + self.bucket_ms + self.span_ms
        return self.resets_at_ms(slot_start_ms)

    def resets_at_ms(self, now_ms: int) -> int | None:
        """The next boundary of a calendar window; None for the other kinds."""
        if self.kind is not WindowKind.CALENDAR:
            return None
        self.slot_start_ms(now_ms)
        return self._last[1]

    def next_resets_ms(self, now_ms: int, count: int = 3) -> list[int]:
        """The next boundaries of a calendar window; none for the other kinds."""
        resets: list[int] = []
        while len(resets) < count:
            reset_ms = self.resets_at_ms(resets[-1] if resets else now_ms)
            if reset_ms is None:
                break
            resets.append(reset_ms)
        return resets

    @property
    def bucket_ms(self) -> int:
        """Length of one slot of a rolling window."""
        return -(-self.span_ms // BUCKETS)

    # Calendar arithmetic

    def _bounds_ms(self, at_ms: int) -> tuple[int, int]:
        zone = _zone(self.zone)
        if self.period in ("hour", "minute"):
            return _short_bounds_ms(at_ms, UNITS_MS[self.period[0]], zone)
        local = _local(at_ms, zone).date()
        # Two periods either side: an anchor or a change of clocks may move the boundary past it.
        instants = sorted({_instant_ms(start, zone) for start in self._starts_near(local)})
        start_ms = max(instant for instant in instants if instant <= at_ms)
        return start_ms, min(instant for instant in instants if instant > at_ms)

    def _starts_near(self, day: date) -> Iterator[datetime]:
        """Local times at which periods around a day start."""
        for offset in range(-2, 3):
            if self.period == "day":
                hour, minute = self.anchor or (0, 0)
                start = day + timedelta(days=offset)
                yield datetime(start.year, start.month, start.day, hour, minute)  # noqa: DTZ001
            elif self.period == "week":
                (weekday,) = self.anchor or (0,)
                monday = day - timedelta(days=(day.weekday() - weekday) % 7)
                start = monday + timedelta(weeks=offset)
                yield datetime(start.year, start.month, start.day)  # noqa: DTZ001
            elif self.period == "month":
                months = day.year * 12 + day.month - 1 + offset
                yield _clamped(months // 12, months % 12 + 1, *(self.anchor or (1,)))
            else:
                yield _clamped(day.year + offset, *(self.anchor or (1, 1)))

    # Texts

    def __str__(self) -> str:
        if self.kind is WindowKind.ROLLING:
            return _span_text(self.span_ms)
        if self.kind is WindowKind.TOTAL:
            return "total"
        zone = "" if self.zone == "UTC" else f" @{self.zone}"
        return f"{self.period}{zone}{self._anchor_text}"

    def describe(self) -> str:
        """The window for people: its kind, and for calendar windows the zone."""
        if self.kind is WindowKind.ROLLING:
            return f"rolling {_span_text(self.span_ms)}"
        if self.kind is WindowKind.TOTAL:
            return "total"
        return f"calendar {self.period}{self._anchor_text}, {self.zone}"

    @property
    def _anchor_text(self) -> str:
        if not self.anchor:
            return ""
        if self.period == "day":
            return " from {:02d}:{:02d}".format(*self.anchor)
        if self.period == "week":
            return f" from {_WEEKDAYS[self.anchor[0]]}"
        if self.period == "year":
            return " from {:02d}-{:02d}".format(*self.anchor)
        return f" from {self.anchor[0]}"


def _span_text(span_ms: int) -> str:
    if span_ms == UNITS_MS["d"]:
        return "24h"  # what people write, and nobody takes it for a calendar day
    for unit in ("d", "h", "m", "s"):
        if span_ms % UNITS_MS[unit] == 0:
            return f"{span_ms // UNITS_MS[unit]}{unit}"
    return f"{span_ms}ms"


def _parse_anchor(period: str, anchor: str | None) -> tuple[int, ...]:
    if anchor is None:
        return ()
    if period not in _ANCHOR_FORMS:
        raise ConfigError("window", f"a {period} cannot start 'from {anchor}'")
    pattern, form = _ANCHOR_FORMS[period]
    match = re.fullmatch(pattern, anchor.lower())
    if match is None:
        raise ConfigError("window", f"a {period} starts from {form}, not 'from {anchor}'")
    if period == "week":
        return (_WEEKDAYS.index(match[1]),)
    numbers = tuple(int(group) for group in match.groups())
    if period == "year" and numbers[1] > _days_in(2024, numbers[0]):
        raise ConfigError("window", f"there is no day {anchor}")
    return numbers


def _check_zone(name: str) -> str:
    try:
        _zone(name)
    except (LookupError, ValueError, OSError):
        import difflib
        from zoneinfo import available_timezones

        near = difflib.get_close_matches(name, sorted(available_timezones()), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError("zone", f"there is no time zone {name!r}{hint}") from None
    return name


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo  # where there is a window: it takes as long as a module of ours

    return ZoneInfo(name)


def _local(at_ms: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone)


def local_time(at_ms: int, zone: str) -> datetime:
    """An instant as clocks of a zone show it."""
    return _local(at_ms, _zone(zone))


def _offset_ms(at_ms: int, zone: ZoneInfo) -> int:
    offset = _local(at_ms, zone).utcoffset()
    assert offset is not None
    return offset // timedelta(milliseconds=1)


def _naive_ms(local: datetime) -> int:
    return (local.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def _instant_ms(local: datetime, zone: ZoneInfo) -> int:
    """The first instant at which clocks of the zone show this time or a later one."""
    first, second = (
        _naive_ms(local) - (local.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta(0))
        // timedelta(milliseconds=1)
        for fold in (0, 1)
    )  # fmt: skip
    if first <= second:
        return first  # the usual case, or the first of two
    # Skipped: with the offset before the change it lies behind it, with the one after before it.
    return _change_ms(second, first, zone)


def _change_ms(low_ms: int, high_ms: int, zone: ZoneInfo) -> int:
    """The instant in (low, high] from which on the zone has the offset it has at `high_ms`."""
    offset_ms = _offset_ms(high_ms, zone)
    while high_ms - low_ms > 1:
        middle_ms = (low_ms + high_ms) // 2
        if _offset_ms(middle_ms, zone) == offset_ms:
            high_ms = middle_ms
        else:
            low_ms = middle_ms
    return high_ms


def _short_bounds_ms(at_ms: int, length_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Real hours or minutes on the local grid; a change of clocks is a boundary too."""
    offset_ms = _offset_ms(at_ms, zone)
    start_ms = at_ms - (at_ms + offset_ms) % length_ms
    end_ms = start_ms + length_ms
    if _offset_ms(start_ms, zone) != offset_ms:
        start_ms = _change_ms(start_ms, at_ms, zone)
    if _offset_ms(end_ms - 1, zone) != offset_ms:
        end_ms = _change_ms(at_ms, end_ms - 1, zone)
    return start_ms, end_ms


def _days_in(year: int, month: int) -> int:
    first = date(year, month, 1)
    return ((first + timedelta(days=32)).replace(day=1) - first).days


def _clamped(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, min(day, _days_in(year, month)))  # noqa: DTZ001
