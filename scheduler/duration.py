"""Spans of time in human forms, as integer milliseconds, written ``_ms``.

>>> parse_duration_ms("1h30m"), parse_duration_ms(90), parse_duration_ms("500ms")
(5400000, 90000, 500)
>>> format_duration(11_520_000), format_duration(45_000), format_duration(0)
('3h12m', '45s', '0s')
"""

from __future__ import annotations

import re
from datetime import timedelta

from scheduler.errors import ConfigError, brief

UNITS_MS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
MAX_MS = 3_660 * UNITS_MS["d"]  # ten years: a longer wait is a mistake
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])\s*")


def parse_duration_ms(value: str | int | float | timedelta, what: str = "duration") -> int:
    """Convert a span of time to milliseconds; plain numbers are seconds.

    Raises:
        ConfigError: Not a span, negative, or above ten years.
    """
    if isinstance(value, timedelta):
        ms = value.total_seconds() * 1000
    elif isinstance(value, str):
        ms = _parse_text(value, what)
    else:
        ms = value * 1000
    if not 0 <= ms <= MAX_MS:  # nor a NaN
        raise ConfigError(what, f"{brief(value)} is not between 0 and ten years")
    return round(ms)


def _parse_text(text: str, what: str) -> float:
    ms, position = 0.0, 0
    stripped = text.strip()
    while match := _PART.match(stripped, position):
        ms += float(match[1]) * UNITS_MS[match[2]]
        position = match.end()
    if not stripped or position < len(stripped):
        problem = f"{brief(text)} is not a span of time such as '90s', '10m' or '1h30m'"
        raise ConfigError(what, problem)
    return ms


def format_duration(ms: int) -> str:
    """A span for people, in at most two units: ``"3h12m"``, ``"2d4h"``, ``"45s"``."""
    seconds = max(0, ms) // 1000
    for big, small in (("d", "h"), ("h", "m"), ("m", "s")):
        size, rest_size = UNITS_MS[big] // 1000, UNITS_MS[small] // 1000
        if seconds >= size:
            rest = seconds % size // rest_size
            return f"{seconds // size}{big}{rest}{small}" if rest else f"{seconds // size}{big}"
    return f"{seconds}s"
