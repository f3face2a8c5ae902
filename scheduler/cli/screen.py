"""What ``scheduler top`` shows: a picture of a store in so many columns and lines; pure.

Columns that matter less go first where there is no room, and rows that matter less are counted instead of
told. Nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scheduler.budget import Unit, WindowKind
from scheduler.cli.output import bar, clock_time, local
from scheduler.cli.widths import GAP, cells, fitted, head, middle
from scheduler.duration import format_duration
from scheduler.guards.plain import one_line
from scheduler.request import RequestState, priority_word
from scheduler.stores.course import HOUR_MS
from scheduler.telemetry.picture import Picture

if TYPE_CHECKING:
    from scheduler.stats import BudgetStatus, CapStatus, SpendRow, Standing

WIDE_NAME, NARROW_NAME = 18, 8  # cells of a name at least, while columns can go, and then
DEAR = 5  # columns that keep less go before names are shortened to that
BAR = 8  # cells between its ends
WARN, FULL = 80, 95  # percent of a limit
EMPHASIS, FAINT, GOOD, CARE, BAD = "bold", "dim", "green", "yellow", "red"


class Piece(NamedTuple):
    """A part of a line, and how it looks."""

    text: str
    style: str = ""


Line = list[Piece]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast requests end, lately; `seconds`: over how long that was seen, 0: not yet."""

    ended: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.seconds <= 0:
            return "-"
        rate = self.ended / self.seconds
        return (
            f"{rate:,.0f}/s"
            if rate >= 10
            else f"{rate:.1f}/s"
            if rate >= 1
            else f"{60 * rate:.1f}/min"
        )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        keeps: What goes first where there is no room has the smallest number.
        is_right: Numbers.
        is_name: May be shortened in the middle.
    """

    title: str
    keeps: int
    is_right: bool = False
    is_name: bool = False


def screen(
    picture: Picture, speed: Speed, width: int, height: int | None = None, *, is_live: bool = False
) -> list[Line]:
    """Lines that fit, the most important first.

    Args:
        picture: What is shown.
        speed: How fast requests end.
        width: Cells of a line.
        height: Lines; None: as many as it takes.
        is_live: Whether it goes on until a key is typed.
    """
    lines = _top(picture, speed, width, "q quits" if is_live else "")
    sections = [
        _budgets(picture), _queue(picture),
        _spend("MODEL", picture.lately.by_model), _spend("JOB", picture.lately.by_job),
    ]  # fmt: skip
    sections = [each for each in sections if each.rows]
    room = None if height is None else height - len(lines)
    for section, most in zip(sections, _shares([len(x.rows) for x in sections], room), strict=True):
        if most > 0:
            lines += [[], *section.lines(width, most)]
    return lines if height is None else lines[:height]


def _shares(wanted: Sequence[int], room: int | None) -> list[int]:
    """How many rows each section gets; each takes two lines more. 0: it is left out.

    >>> _shares([2, 9, 4], 20), _shares([9, 9, 9], 14), _shares([9, 9], 3)
    ([2, 8, 4], [4, 2, 2], [1, 0])
    """
    if room is None:
        return list(wanted)
    given = [0] * len(wanted)
    for at in range(len(wanted)):
        if room >= 3:
            given[at], room = 1, room - 3
    while room > 0:
        short = [at for at, most in enumerate(wanted) if 0 < given[at] < most]
        if not short:
            break
        at = min(short, key=lambda each: (given[each] * (1 + each), each))
        given[at], room = given[at] + 1, room - 1
    return given


# The lines at the top


def _top(picture: Picture, speed: Speed, width: int, keys: str) -> list[Line]:
    counts, at_ms = picture.counts, picture.at_ms
    clock = f"{local(at_ms, 'UTC'):%Y-%m-%d %H:%M:%S} UTC"
    short = clock[11:]
    title = fitted(
        {"store": [one_line(picture.store), middle(one_line(picture.store), 24)],
         "clock": [clock, short], "keys": [keys, ""]},
        ["store", "clock", "keys"], width,
    )  # fmt: skip
    parts = {
        "done": [f"{counts.succeeded:,} done"],
        "failed": [f"{counts.failed:,} failed", ""] if counts.failed else [""],
        "gone": [f"{counts.cancelled + counts.expired:,} dropped", ""]
        if counts.cancelled + counts.expired else [""],
        "running": [f"{counts.running:,} running"],
        "queued": [f"{counts.queued:,} queued"],
        "parked": [f"{counts.parked:,} parked"],
    }  # fmt: skip
    rate = sum(row.posted_nusd for row in picture.lately.by_model) * HOUR_MS
    spent = rate // picture.lately.lasted_ms(at_ms)
    total = sum(row.posted_nusd for row in picture.spend)
    live = sum(each.is_live for each in picture.workers)
    pace = {
        "speed": [f"{speed} ended"], "rate": [f"{short_usd(spent)} an hour", f"{short_usd(spent)}/h"],
        "since": [f"lately: since {clock_time(picture.lately.since_ms, 'UTC', at_ms)}", ""],
        "total": [f"{short_usd(total)} ever", ""],
        "workers": [f"{live} live workers", f"{live} workers", ""] if picture.workers else [""],
    }  # fmt: skip
    lines: list[Line] = [[Piece(head(title.split("\n")[0], width), EMPHASIS)]]
    lines += [[Piece(text)] for text in fitted(parts, ["gone", "failed"], width).split("\n")]
    lines += [
        [Piece(text)]
        for text in fitted(pace, ["workers", "total", "since", "rate"], width).split("\n")
    ]
    for forms in _troubles(picture):
        text = next((each for each in forms if cells(each) <= width), head(forms[-1], width))
        lines.append([Piece(text, BAD)])
    return lines


def _troubles(picture: Picture) -> list[tuple[str, ...]]:
    """What somebody should look at, each in words from the longest to the shortest."""
    found: list[tuple[str, ...]] = []
    unknown = picture.unknown
    if unknown.attempts:
        ago = format_duration(max(0, picture.at_ms - unknown.oldest_at_ms))
        what, hold = ("outcome", "holds") if unknown.attempts == 1 else ("outcomes", "hold")
        short = f"unknown: {unknown.attempts:,} {what} {hold} {short_usd(unknown.nusd)}"
        longer = f"{short}, the oldest for {ago}"
        found.append((f"{longer} (scheduler resolve)", longer, short))
    for each in picture.unserved:
        short = f"unserved: {each.waiting:,} for {one_line(each.provider)}"
        found.append((f"{short}, by no live worker", short))
    found += [(f"limited: {one_line(each.sentence)}",) for each in picture.limited]
    return found[:3]


# Tables


class Section:
    """A table: its columns, its rows, and what is told of the rows that have no room."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[Piece]]) -> None:
        self.columns, self.rows = columns, rows

    def lines(self, width: int, most: int) -> list[Line]:
        """The heading, and at most so many rows."""
        shown = self.rows if len(self.rows) <= most else self.rows[: max(1, most - 1)]
        chosen, widths = self._fit(width, shown)
        lines = [_laid(
            [Piece(self.columns[at].title, EMPHASIS) for at in chosen], chosen, widths, self.columns
        )]  # fmt: skip
        lines += [_laid([row[at] for at in chosen], chosen, widths, self.columns) for row in shown]
        left = len(self.rows) - len(shown)
        if left and most > 1:
            lines.append([Piece(head(f"and {left:,} more", width), FAINT)])
        return lines

    def _fit(self, width: int, rows: Sequence[Sequence[Piece]]) -> tuple[list[int], dict[int, int]]:
        """Which columns there is room for, and how wide each is."""
        chosen = list(range(len(self.columns)))
        natural = {
            at: max(cells(text) for text in [self.columns[at].title, *(row[at].text for row in rows)])
            for at in chosen
        }  # fmt: skip
        chosen = [at for at in chosen if any(row[at].text for row in rows) or at == 0]
        while True:
            widths = {at: natural[at] for at in chosen}
            over = sum(widths.values()) + GAP * (len(chosen) - 1) - width
            for at in chosen:
                if over > 0 and self.columns[at].is_name:
                    least = WIDE_NAME if self._cheapest(chosen) < DEAR else NARROW_NAME
                    shorter = max(least, widths[at] - over)
                    over -= max(0, widths[at] - shorter)
                    widths[at] = min(widths[at], shorter)
            if over <= 0 or len(chosen) == 1:
                widths[chosen[0]] = min(widths[chosen[0]], width)
                return chosen, widths
            chosen.remove(min(chosen, key=lambda at: self.columns[at].keeps))

    def _cheapest(self, chosen: Sequence[int]) -> int:
        return min(self.columns[at].keeps for at in chosen)


def _laid(
    row: Sequence[Piece], chosen: Sequence[int], widths: dict[int, int], columns: Sequence[Column]
) -> Line:
    line: Line = []
    for piece, at in zip(row, chosen, strict=True):
        text = middle(piece.text, widths[at])
        blank = " " * (widths[at] - cells(text))
        text = blank + text if columns[at].is_right else text + blank
        line += [Piece(" " * GAP)] if line else []
        line.append(Piece(text, piece.style))
    line[-1] = Piece(line[-1].text.rstrip(), line[-1].style)
    return line


def _budgets(picture: Picture) -> Section:
    columns = [
        Column("BUDGET", 99, is_name=True), Column("LIMIT", 6, is_right=True),
        Column("", 3), Column("USED", 8, is_right=True), Column("SPENT", 7, is_right=True),
        Column("HELD", 4, is_right=True), Column("LEFT", 9, is_right=True),
        Column("AN HOUR", 2, is_right=True), Column("NEXT", 5), Column("AT", 1),
    ]  # fmt: skip
    found = [(status, cap) for status in picture.budgets for cap in status.caps]
    found.sort(key=lambda each: -_used(each[1]))
    return Section(columns, [_budget(picture, status, cap) for status, cap in found])


def _used(cap: CapStatus) -> float:
    return cap.counted / cap.limit if cap.limit else 0.0


def _budget(picture: Picture, status: BudgetStatus, cap: CapStatus) -> list[Piece]:
    percent = 100 * _used(cap)
    style = BAD if percent >= FULL else CARE if percent >= WARN else GOOD
    name = one_line(status.budget.name) + (" (paused)" if status.paused else "")
    window, at_ms = cap.cap.window, picture.at_ms
    spent_at_ms = picture.spent_at_ms(status, cap)
    when = at = ""
    if cap.resets_at_ms is not None:
        verb = "frees" if window.kind is WindowKind.ROLLING else "resets"
        when = f"{verb} in {format_duration(max(0, cap.resets_at_ms - at_ms))}"
        at = clock_time(cap.resets_at_ms, window.zone, at_ms)
    if spent_at_ms is not None and spent_at_ms > at_ms:
        when = f"spent in {format_duration(spent_at_ms - at_ms)}"
        at = clock_time(spent_at_ms, window.zone, at_ms)
    limit = f"{short(cap.limit, cap.cap.unit)}/{window.period or window}"
    used = ("", "") if cap.limit is None else (bar(cap.counted, cap.limit, BAR), f"{percent:.0f} %")
    left = BAD if cap.available is not None and cap.available <= 0 else ""
    return [
        Piece(name, CARE if status.paused else ""), Piece(limit), *(Piece(x, style) for x in used),
        Piece(short(cap.posted, cap.cap.unit)), Piece(short(cap.reserved, cap.cap.unit)),
        Piece(short(cap.available, cap.cap.unit), left),
        Piece(short(round(picture.per_hour(status, cap)), cap.cap.unit)),
        Piece(when, CARE if spent_at_ms is not None else ""), Piece(at, FAINT),
    ]  # fmt: skip


def short(value: int | None, unit: Unit) -> str:
    """An amount in few cells; None: no limit."""
    if value is None:
        return "-"
    if unit is Unit.USD:
        return short_usd(value)
    return f"{short_count(value)} {'tok' if unit is Unit.TOKENS else 'req'}"


def short_usd(nusd: int) -> str:
    """Dollars in few cells, rounded.

    >>> [short_usd(n) for n in (0, 15_432, 12_345_678, 3_914_999_999, 81_234_567_890_123, -5 * 10**8)]
    ['$0.00', '$0.0000154', '$0.0123', '$3.91', '$81,235', '-$0.50']
    """
    sign, dollars = ("-" if nusd < 0 else ""), abs(nusd) / 1e9
    if dollars >= 1000:
        return f"{sign}${dollars:,.0f}"
    if dollars >= 0.1 or not nusd:
        return f"{sign}${dollars:.2f}"
    whole, _, rest = f"{dollars:.{2 - math.floor(math.log10(dollars))}f}".partition(".")
    return f"{sign}${whole}.{rest.rstrip('0').ljust(2, '0')}"


def short_count(count: int) -> str:
    """A number in few cells.

    >>> [short_count(n) for n in (999, 12_345, 1_234_567, -45_678)]
    ['999', '12.3k', '1.23M', '-45.7k']
    """
    for scale, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if abs(count) >= scale:
            return f"{count / (1000 if letter == 'k' else scale):.3g}{letter}"
    return f"{count:,}"


_ORDER = {RequestState.PARKED: 0, RequestState.QUEUED: 1, RequestState.RUNNING: 2}


def _queue(picture: Picture) -> Section:
    columns = [
        Column("QUEUE", 9), Column("PRIORITY", 4), Column("WHY", 7), Column("OF", 6, is_name=True),
        Column("REQUESTS", 8, is_right=True), Column("OLDEST", 5, is_right=True), Column("GOES ON", 3),
    ]  # fmt: skip
    found = sorted(picture.standing, key=lambda each: (_ORDER[each.state], -each.requests))
    return Section(columns, [_stands(each, picture.at_ms) for each in found])


def _stands(each: Standing, at_ms: int) -> list[Piece]:
    on = ""
    if each.lack is not None:
        resumes_ms = each.lack.resumes_at_ms
        on = _goes_on(each, None if resumes_ms is None else max(0, resumes_ms - at_ms))
    return [
        Piece(each.state.value, CARE if each.lack is not None else ""),
        Piece(priority_word(each.priority)), Piece(each.reason.replace("_", " ")),
        Piece(one_line(each.budget)), Piece(f"{each.requests:,}"),
        Piece(format_duration(max(0, at_ms - each.oldest_at_ms))), Piece(on, FAINT),
    ]  # fmt: skip


def _goes_on(each: Standing, in_ms: int | None) -> str:
    if in_ms is not None:
        return f"in {format_duration(in_ms)}"
    return {
        "held_in_flight": "when calls settle", "paused": "when resumed",
        "larger_than_limit": "when raised", "window_spent": "when raised",
    }.get(each.reason, "")  # fmt: skip


def _spend(title: str, rows: Sequence[SpendRow]) -> Section:
    columns = [
        Column(title, 9, is_name=True), Column("LATELY", 8, is_right=True),
        Column("CALLS", 7, is_right=True), Column("TOKENS", 5, is_right=True),
        Column("HELD", 4, is_right=True), Column("EACH", 3, is_right=True),
    ]  # fmt: skip

    def each(row: SpendRow) -> list[Piece]:
        average = row.posted_nusd // row.attempts if row.attempts else 0
        return [
            Piece(one_line(row.name) or "(none)"), Piece(short_usd(row.posted_nusd)),
            Piece(f"{row.attempts:,}"), Piece(short_count(row.tokens)),
            Piece(short_usd(row.reserved_nusd)), Piece(short_usd(average)),
        ]  # fmt: skip

    return Section(columns, [each(row) for row in rows])


def plain(lines: Sequence[Line]) -> str:
    """Lines without how they look."""
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)
