"""Spans of time in human forms, as integer milliseconds."""

from __future__ import annotations

import re
from datetime import timedelta

from scheduler.errors import ConfigError

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
MAX_MS = 3660 * 86_400_000


def parse_duration_ms(value: str | int | float | timedelta, what: str = "duration") -> int:
    if isinstance(value, timedelta):
        ms = value.total_seconds() * 1000
    elif isinstance(value, str):
        text = value.strip().lower()
        parts = _PART.findall(text)
        if not parts or "".join(n + u for n, u in parts) != text.replace(" ", ""):
            raise ConfigError(what, f"{value!r} is not a duration such as '10m' or '1h30m'")
        ms = sum(float(n) * _UNITS_MS[u] for n, u in parts)
    else:
        ms = value * 1000
    if not 0 <= ms <= MAX_MS:
        raise ConfigError(what, f"{value!r} is not between 0 and ten years")
    return round(ms)


def format_duration(ms: int) -> str:
    for (big, b), (small, s) in (
        (("d", 86_400_000), ("h", 3_600_000)),
        (("h", 3_600_000), ("m", 60_000)),
        (("m", 60_000), ("s", 1000)),
    ):
        if ms >= b:
            rest = ms % b // s
            return f"{ms // b}{big}" + (f"{rest}{small}" if rest else "")
    return f"{ms // 1000}s"
