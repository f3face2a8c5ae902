"""Temporary."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

from scheduler.duration import parse_duration_ms
from scheduler.money import format_usd, parse_usd


class Unit(StrEnum):
    USD = "usd"
    TOKENS = "tokens"
    REQUESTS = "requests"


class WindowKind(StrEnum):
    TOTAL = "total"
    CALENDAR = "calendar"
    ROLLING = "rolling"


@dataclass(frozen=True, slots=True)
class Window:
    kind: WindowKind
    period: str = ""
    zone: str = "UTC"
    anchor: str = ""
    span_ms: int = 0
    _cache: list = field(default_factory=lambda: [0, 0], compare=False, repr=False, hash=False)

    @property
    def _bucket(self):
        return max(1, -(-self.span_ms // 60))

    def slot_start_ms(self, at_ms):
        if self.kind is WindowKind.TOTAL:
            return 0
        if self.kind is WindowKind.ROLLING:
            return at_ms - at_ms % self._bucket
        c = self._cache
        if not c[0] <= at_ms < c[1]:
            c[:] = self._bounds(at_ms)
        return c[0]

    def _bounds(self, at_ms):
        z = ZoneInfo(self.zone)
        d = datetime.fromtimestamp(at_ms / 1000, z)
        if self.period == "hour":
            s = at_ms - at_ms % 3600000
            return s, s + 3600000
        d = d.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self.period == "week":
            d -= timedelta(days=d.weekday())
            e = d + timedelta(days=7)
        elif self.period == "month":
            d = d.replace(day=1)
            e = (d + timedelta(days=32)).replace(day=1)
        else:
            e = d + timedelta(days=1)
        return int(d.timestamp() * 1000), int(e.timestamp() * 1000)

    def oldest_counting_ms(self, now_ms):
        if self.kind is WindowKind.ROLLING:
            b = self._bucket
            return (now_ms - self.span_ms) // b * b
        return self.slot_start_ms(now_ms)

    def stops_counting_ms(self, slot):
        if self.kind is WindowKind.TOTAL:
            return None
        if self.kind is WindowKind.ROLLING:
            return slot + self._bucket + self.span_ms
        return self._bounds(slot)[1]

    def resets_at_ms(self, now_ms):
        if self.kind is not WindowKind.CALENDAR:
            return None
        self.slot_start_ms(now_ms)
        return self._cache[1]

    def describe(self):
        return {
            "total": "total",
            "calendar": f"calendar {self.period}, {self.zone}",
            "rolling": f"rolling {self.span_ms // 1000}s",
        }[self.kind]

    def __str__(self):
        if self.kind is WindowKind.TOTAL:
            return "total"
        if self.kind is WindowKind.ROLLING:
            return f"{self.span_ms // 1000}s"
        return self.period + (f" @{self.zone}" if self.zone != "UTC" else "")


@dataclass(frozen=True, slots=True)
class Cap:
    unit: Unit
    limit: int | None
    window: Window

    def __str__(self):
        a = (
            "none"
            if self.limit is None
            else format_usd(self.limit)
            if self.unit is Unit.USD
            else f"{self.limit} {self.unit}"
        )
        return f"{a}/{self.window}"


def parse_caps(spec):
    if spec is None:
        spec = "none"
    caps = []
    for part in str(spec).split(","):
        m = re.fullmatch(r"\s*([^/@]+?)\s*(?:/\s*([^@\s]+))?\s*(?:@(\S+))?\s*", part)
        amount, window, zone = m.groups()
        if window in (None, "total"):
            w = Window(WindowKind.TOTAL)
        elif window[0].isdigit():
            w = Window(WindowKind.ROLLING, span_ms=parse_duration_ms(window))
        else:
            w = Window(WindowKind.CALENDAR, window, zone or "UTC")
        unit = Unit.USD
        if amount == "none":
            limit = None
        elif amount.endswith(("tokens", "requests")):
            n, u = amount.split()
            unit = Unit(u)
            limit = int(float(n.rstrip("kM")) * {"k": 1000, "M": 10**6}.get(n[-1], 1))
        else:
            limit = parse_usd(amount)
        caps.append(Cap(unit, limit, w))
    return tuple(caps)


class Budget:
    def __init__(self, name, limit=None, *, models=(), tags=None, parent=None):
        self.name, self.caps = name, parse_caps(limit)
        self.models, self.tags, self.parent = tuple(models), dict(tags or {}), parent

    @property
    def spec(self):
        return ",".join(map(str, self.caps))

    @property
    def has_rules(self):
        return bool(self.models or self.tags)

    def covers(self, model, tags):
        return (
            self.has_rules
            and (not self.models or any(fnmatchcase(model, p) for p in self.models))
            and all(fnmatchcase(tags.get(k, "\0"), v) for k, v in self.tags.items())
        )

    def with_limit(self, limit):
        b = Budget(self.name, limit, models=self.models, tags=self.tags, parent=self.parent)
        if limit is None:
            b.caps = tuple(Cap(c.unit, None, c.window) for c in self.caps)
        elif "/" not in str(limit):
            b.caps = tuple(Cap(c.unit, b.caps[0].limit, c.window) for c in self.caps)
        return b
