"""How a long run tells how it is doing: a bar, plain lines, JSON, or nothing.

On a terminal one line is redrawn; elsewhere a line is written at the start, every
half minute, every twentieth of the way, and whenever the reason for waiting changes,
so that a log says why nothing moves without filling up.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from scheduler.budget import Cap
from scheduler.cli.moving import Moving
from scheduler.cli.output import bar, until
from scheduler.cli.widths import fitted, middle
from scheduler.duration import format_duration
from scheduler.guards.plain import about, one_line, plain_line
from scheduler.money import NUSD_PER_USD, decimal_usd, format_usd
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import CapStatus

_MORE = " 'MORE'"
PLAIN_EVERY_S = 30.0
PLAIN_SHARE = 20  # a line each twentieth of the way
JSON_EVERY_MS = 500


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one instant.

    Attributes:
        total: Lines read so far, or in all once the input has been read.
        is_read: Whether the input has been read to its end.
        cap: The tightest limit in dollars, if there is one.
        eta_ms: Until the end at the present speed; None: not known.
        limited: What limit of the provider holds requests back; empty: none.
    """

    at_ms: int
    done: int
    failed: int
    total: int
    is_read: bool
    running: int
    parked: int
    shortfall: Shortfall | None
    posted_nusd: int
    reserved_nusd: int
    cap: CapStatus | None
    per_hour_nusd: int
    eta_ms: int | None
    limited: str = ""


# What gives way first where a line is too long stands first; see `fitted`.
_ORDER = (
    "money", "count", "rate", "money", "parked", "left", "limited", "count", "resumes", "running",
    "money", "limited", "parked", "resumes", "left", "limited",
)  # fmt: skip
_NAME = 24  # cells of a budget's name
_SHORT = {
    ParkReason.WINDOW_SPENT: "spent",
    ParkReason.KEPT: "kept",
    ParkReason.PACED: "paced",
    ParkReason.HELD_IN_FLIGHT: "held",
    ParkReason.LARGER_THAN_LIMIT: "too large",
    ParkReason.PROVIDER_CREDIT: "no credit",
    ParkReason.PROVIDER_DOWN: "down",
}


def line(now: Snapshot, *, with_bar: bool = False, width: int | None = None) -> str:
    """A snapshot in one line.

    Args:
        now: How it is.
        with_bar: Whether a picture shows the share that has ended.
        width: Cells there are: what matters least is told in fewer words, then left out; how many
            are done, why and until when nothing goes on, and what is spent of what limit stay.
            Where even these do not fit, they stand below each other. None: all of it is told.
    """
    waits = now.parked and now.shortfall is not None and not now.running
    forms = {
        "count": _count(now, with_bar),
        "failed": [f"{now.failed:,} failed" if now.failed else ""],
        "running": [f"{now.running:,} running", ""],
        "parked": _parked(now),
        "money": _money(now),
        "rate": [f"{_cents(now.per_hour_nusd)}/h" if now.per_hour_nusd else "", ""],
        "resumes": _resumes(now.shortfall, now.at_ms) if waits and now.shortfall else [""],
        "limited": [""] if waits or not now.limited else _limited(now.limited),
        "left": [""] if waits or now.eta_ms is None else _left(now.eta_ms),
    }
    plain = {name: [plain_line(form) for form in each] for name, each in forms.items()}
    return fitted(plain, _ORDER, width)


def _count(now: Snapshot, with_bar: bool) -> list[str]:
    finished = now.done + now.failed
    text = f"{finished:,}/{now.total:,}{'' if now.is_read else '+'}"
    if not with_bar or not now.total:
        return [text]
    return [f"{text} {bar(finished, now.total)}", f"{text} {bar(finished, now.total, 6)}", text]


def _parked(now: Snapshot) -> list[str]:
    lack, text = now.shortfall, f"{now.parked:,} parked"
    if not now.parked:
        return [""]
    if lack is None:
        return [text]
    reason = f"{text} ({lack.reason.value})"
    short = f"{text} ({_SHORT.get(lack.reason, lack.reason.value)})"
    if lack.budget == "default":
        return [reason, reason, short]
    return [f"{text} ({lack.reason.value}: {middle(lack.budget, _NAME)})", reason, short]


def _money(now: Snapshot) -> list[str]:
    if now.cap is None or now.cap.limit is None:
        spent, reserved = _cents(now.posted_nusd), _cents(now.reserved_nusd)
        long = f"{spent} spent + {reserved} reserved"
        return [
            f"{long}, no limit (spend is tracked)", f"{long}, no limit",
            f"{spent} + {reserved}, no limit", f"{spent} spent",
        ]  # fmt: skip
    cap = now.cap
    spent, reserved, limit = _cents(cap.posted), _cents(cap.reserved), format_usd(cap.limit or 0)
    long = f"{spent} spent + {reserved} reserved of {limit}"
    return [
        f"{long} ({cap.cap.window.describe()})", long, f"{spent} + {reserved} of {limit}",
        f"{spent} of {limit}",
    ]  # fmt: skip


def _cents(nusd: int) -> str:
    """Money short enough to watch, with more digits the less it is."""
    usd = nusd / NUSD_PER_USD
    digits = 2 if usd >= 1 or not nusd else 4 if usd >= 0.01 else 6
    return f"${usd:,.{digits}f}"


def _limited(sentence: str) -> list[str]:
    return [sentence, middle(sentence, 40), middle(sentence, 24), ""]


def _left(eta_ms: int) -> list[str]:
    left = f"{format_duration(eta_ms)} left"
    return [f"about {left}", left, ""]


def _resumes(lack: Shortfall, now_ms: int) -> list[str]:
    """When it goes on, from the longest words to the shortest."""
    if lack.resumes_at_ms is not None:
        span = format_duration(max(0, lack.resumes_at_ms - now_ms))
        when = until(lack.resumes_at_ms, lack.zone, now_ms)
        return [f"resumes {when}", f"resumes in {span}", f"in {span}"]
    if lack.reason is ParkReason.HELD_IN_FLIGHT:
        return ["resumes when running calls settle", "resumes when calls settle", "calls settle"]
    return ["resumes when somebody raises or resumes it", "waits for a person", "needs a person"]


def provider_sentence(lack: Shortfall, now_ms: int) -> str:
    """Why nothing goes to a provider, in its own words, and when one request tries again."""
    said = f" ({one_line(lack.words)})" if lack.words else ""
    again = f"one request tries again {until(lack.resumes_at_ms, lack.zone, now_ms)}"
    if lack.reason is ParkReason.PROVIDER_DOWN:
        return f"provider {lack.budget!r} does not answer{said}; {again}"
    return (
        f"provider {lack.budget!r} says that its own credit is used up{said}; nothing is lost, top "
        f"it up there: {again}, and after it all others"
    )


def why(lack: Shortfall, waiting: int, now_ms: int, store: str) -> str:
    """Why requests are parked, how much is missing, until when, and how to go on now."""
    if lack.is_of_provider:
        return f"parked {waiting:,}: {provider_sentence(lack, now_ms)}"
    cap = Cap(lack.unit, lack.limit, _Any)
    missing = cap.format_amount(lack.missing)
    text = {
        ParkReason.WINDOW_SPENT: f"budget {lack.budget!r} is spent for now",
        ParkReason.PACED: f"budget {lack.budget!r} is spent bit by bit, and its share up to now is used up",
        ParkReason.HELD_IN_FLIGHT: f"budget {lack.budget!r} is held by running calls",
        ParkReason.LARGER_THAN_LIMIT: f"one request exceeds the whole limit of {lack.budget!r}",
        ParkReason.PAUSED: f"budget {lack.budget!r} is paused",
    }[lack.reason]
    numbers = (
        f"{cap.format_amount(lack.posted)} spent and {cap.format_amount(lack.reserved)} reserved "
        f"of {cap.format_amount(lack.limit)}, {missing} missing"
    )
    if lack.reason is ParkReason.PAUSED:
        fix = f"scheduler budget resume {about(lack.budget, store)}"
    else:
        fix = f"scheduler budget set {about(lack.budget, store, _MORE)}"
    how = "To go on now"
    if lack.reason is ParkReason.LARGER_THAN_LIMIT:
        how = "To let it go, cap its output (max_tokens in the body, or --cap-output N), or raise the limit"
    return f"parked {waiting:,}: {text} ({numbers}); {_resumes(lack, now_ms)[0]}. {how}: {fix}"


_Any: Any = None  # a cap of which only the amounts are asked


class Progress(Protocol):
    """Somebody who is told how a run is doing."""

    def update(self, now: Snapshot) -> None:
        """Told about ten times a second."""

    def say(self, text: str) -> None:
        """Told once: something a person wants to read."""

    def close(self) -> None:
        """The run has ended."""


def progress(mode: str, stream: TextIO | None = None) -> Progress:
    """The display for ``auto``, ``bar``, ``plain``, ``json`` or ``none``."""
    out = stream or sys.stderr
    if mode == "auto":
        is_dumb = os.environ.get("TERM", "") in ("", "dumb") or bool(os.environ.get("CI"))
        mode = "bar" if out.isatty() and not is_dumb else "plain"
    return {"bar": _Bar, "plain": _Plain, "json": _Json, "none": _Silent}[mode](out)


class _Silent:
    def __init__(self, out: TextIO) -> None:
        self.out = out

    def update(self, now: Snapshot) -> None:
        """Says nothing."""

    def say(self, text: str) -> None:
        """Even then what matters is said."""
        print(plain_line(text), file=self.out, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class _Plain(_Silent):
    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._told_at_ms: int | None = None
        self._told_share = 0

    def update(self, now: Snapshot) -> None:
        """A line now and then."""
        share = (now.done + now.failed) * PLAIN_SHARE // now.total if now.total else 0
        due = self._told_at_ms is None or now.at_ms - self._told_at_ms >= PLAIN_EVERY_S * 1000
        if due or (now.is_read and share > self._told_share):
            self._told_at_ms, self._told_share = now.at_ms, max(share, self._told_share)
            self.say(line(now))


class _Json(_Silent):
    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._told: Snapshot | None = None
        self._latest: Snapshot | None = None

    def update(self, now: Snapshot) -> None:
        """An object each half second."""
        self._latest = now
        if self._told is None or now.at_ms - self._told.at_ms >= JSON_EVERY_MS:
            self._tell(now)

    def close(self) -> None:
        """Tell where it ended."""
        if self._latest is not self._told and self._latest is not None:
            self._tell(self._latest)

    def _tell(self, now: Snapshot) -> None:
        self._told = now
        self._write({"event": "progress", **_fields(now)})

    def say(self, text: str) -> None:
        """A message as an object."""
        self._write({"event": "message", "text": text})

    def _write(self, fields: dict[str, Any]) -> None:
        print(json.dumps(fields), file=self.out, flush=True)


def _fields(now: Snapshot) -> dict[str, Any]:
    return {
        "at_ms": now.at_ms,
        "done": now.done,
        "failed": now.failed,
        "total": now.total,
        "is_read": now.is_read,
        "running": now.running,
        "parked": now.parked,
        "reason": None if now.shortfall is None else now.shortfall.reason.value,
        "resumes_at_ms": None if now.shortfall is None else now.shortfall.resumes_at_ms,
        "posted_usd": decimal_usd(now.posted_nusd),
        "reserved_usd": decimal_usd(now.reserved_nusd),
        "eta_ms": now.eta_ms,
        "limited": now.limited or None,
    }


class _Bar(_Silent):
    """One line that is redrawn, as wide as the terminal is by then."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._moving = Moving(out)
        self._now: Snapshot | None = None

    def update(self, now: Snapshot) -> None:
        """Redraw the line."""
        self._now = now
        text = line(now, with_bar=True, width=self._moving.width - 1)
        self._moving.draw(text.split("\n"))

    def say(self, text: str) -> None:
        """Lines above the bar."""
        if self._now is not None:
            self.update(self._now)
        self._moving.say(plain_line(text))

    def close(self) -> None:
        """Leave the last line standing."""
        if self._now is not None:
            self.update(self._now)
        self._moving.close()
