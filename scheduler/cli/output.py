"""How the commands write: tables, JSON, money and time, in one way everywhere.

Data goes to stdout, narration to stderr. Tables are plain text that is never cut: a terminal
gets lines that fit it, a pipe a line for each row. Names that come from files cannot steer the
terminal.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from scheduler.cli.widths import columns_of, laid_out, told
from scheduler.guards.plain import one_line, plain_line
from scheduler.money import decimal_usd, format_usd

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BAR_WIDTH = 12
_LABEL = 10


def say(text: str) -> None:
    """Tell the person at the terminal something that is not data, in one plain line."""
    lines = told(plain_line(text), columns_of(sys.stderr))
    print("\n".join(lines), file=sys.stderr, flush=True)


def tell(*lines: str, end: str = "\n") -> None:
    """Write lines for people to stdout, each of them plain."""
    width = columns_of(sys.stdout)
    shown = [part for line in lines for part in told(plain_line(line), width)]
    print("\n".join(shown), end=end, flush=True)


def facts(lines: Iterable[str], width: int | None = None) -> list[str]:
    """Lines that begin with a label of ten cells, in lines that fit, the rest below itself.

    Args:
        lines: Each becomes plain, whatever is in a name.
        width: Cells of a line; None: those of stdout, if it is a terminal.
    """
    width = width or columns_of(sys.stdout)
    shown = map(plain_line, lines)
    return [part for line in shown for part in told(line[_LABEL:], width, line[:_LABEL])]


def emit_json(value: Any, indent: int | None = 2) -> None:
    """Write one JSON value to stdout, in ASCII and without control characters.

    What JSON has no words for is written as in results.
    """
    from scheduler.batch.results import plain

    text = json.dumps(plain(value), indent=indent, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), flush=True)


def fit_streams() -> None:
    """Make stdout and stderr write what their encoding has not in another way, never an error.

    Signs of ours are written in ASCII, all else with a backslash. Who says ``LC_ALL=C`` means
    ASCII, though Python takes it for UTF-8.
    """
    codecs.register_error("scheduler.signs", _spelled_out)
    is_c = os.environ.get("LC_ALL") in ("C", "POSIX") and not (
        os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") == "1"
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = "ascii" if is_c and stream.encoding.lower() == "utf-8" else None
            stream.reconfigure(encoding=encoding, errors="scheduler.signs")


_SIGNS = {
    "▕": "[", "▏": "]", "█": "#", "░": ".", "·": "-", "│": "|", "→": "->", "…": "...", "×": "x", "≤": "<=",
    "−": "-", "–": "-", "—": "-", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    odd = error.object[error.start : error.end]
    ascii_only = "".join(
        _SIGNS.get(each) or each.encode("ascii", "backslashreplace").decode() for each in odd
    )
    return ascii_only, error.end


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: str = "", *, width: int = 0
) -> str:
    """Lay out rows under their headings; on a terminal in lines that fit it.

    Args:
        columns: Headings.
        rows: Cells; None is shown as a dash.
        right: Headings of columns with numbers, separated by blanks; these are never broken.
        width: Cells of a line; 0: those of stdout, if it is a terminal.
    """
    texts = [["-" if cell is None else one_line(str(cell)) for cell in row] for row in rows]
    return "\n".join(laid_out(columns, texts, right.split(), width or columns_of(sys.stdout)))


def bar(part: int, whole: int, width: int = _BAR_WIDTH) -> str:
    """How much of a whole is taken, as a small picture: ``▕███░░░▏``."""
    filled = width if part >= whole else max(0, part * width // whole)
    return f"▕{'█' * filled}{'░' * (width - filled)}▏"


def plural(count: int, noun: str) -> str:
    """A counted noun: ``1 request``, ``1,200 requests``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def local(at_ms: int, zone: str) -> datetime:
    """An instant as people in a zone tell it."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone))


def iso(at_ms: int | None, zone: str = "UTC") -> str | None:
    """An instant in ISO 8601 with the zone's offset; None stays None."""
    if at_ms is None:
        return None
    return local(at_ms, zone).isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds")


def clock_time(at_ms: int, zone: str, now_ms: int) -> str:
    """An instant for people: the time, with the date unless it is today."""
    then, now = local(at_ms, zone), local(now_ms, zone)
    short = abs(at_ms - now_ms) < 60_000
    time = f"{then:%H:%M:%S}" if short or then.second else f"{then:%H:%M}"
    return f"{time} {zone}" if then.date() == now.date() else f"{then:%Y-%m-%d} {time} {zone}"


def until(at_ms: int | None, zone: str, now_ms: int) -> str:
    """When something happens, for people: ``00:00 Europe/Athens (in 3h12m)``."""
    from scheduler.duration import format_duration

    if at_ms is None:
        return "never by itself"
    return f"{clock_time(at_ms, zone, now_ms)} (in {format_duration(max(0, at_ms - now_ms))})"


def amount(value: int | None, unit: str) -> str | None:
    """An amount of a budget's unit for people; None: no limit."""
    if value is None:
        return None
    return format_usd(value) if unit == "usd" else f"{value:,} {unit}"


def amounts(unit: str, **values: int | None) -> dict[str, Any]:
    """Amounts for programs: dollars as exact decimal strings, other units as integers.

    Every name appears twice, with and without ``_usd``; the one that does not
    belong to the unit is null.
    """
    is_usd = unit == "usd"
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[f"{name}_usd"] = decimal_usd(value) if is_usd and value is not None else None
        found[name] = None if is_usd else value
    return found
