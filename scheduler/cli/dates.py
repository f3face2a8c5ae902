"""When what waits will be done, in words and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.cli.output import iso, local, plural
from scheduler.duration import format_duration

if TYPE_CHECKING:
    from scheduler.rehearsal import Finish

DAY_MS = 86_400_000
SOON_MS = 120_000  # told in seconds
WEEK = 6  # days in which a weekday is enough


def moment(at_ms: int, zone: str, now_ms: int) -> str:
    """An instant for people who plan: ``14:20``, ``Thu 14:20``, ``Thu 2026-03-12``."""
    then, now = local(at_ms, zone), local(now_ms, zone)
    days = (then.date() - now.date()).days
    if days <= 0:
        return f"{then:%H:%M}"
    return f"{then:%a %H:%M}" if days <= WEEK else f"{then:%a %Y-%m-%d}"


def sentence(told: Finish, zone: str, now_ms: int) -> str:
    """When it will be done, and how sure that is; the zone is told, too."""
    if told.likely_ms is None:
        return "not done without a raise"
    if told.late_ms is not None and told.late_ms - now_ms < SOON_MS:
        return f"done in about {format_duration(max(1000, _round(told.likely_ms - now_ms, 1000)))}"
    early, likely = (
        moment(now_ms if each is None else each, zone, now_ms)
        for each in (told.early_ms, told.likely_ms)
    )
    late = "not without a raise" if told.late_ms is None else moment(told.late_ms, zone, now_ms)
    band = "" if early == likely == late else f" ({early} – {late})"
    return f"done about {likely}{band} {zone}"


def basis(told: Finish) -> str:
    """What it rests on."""
    if told.calls:
        return f"judged by {plural(told.calls, 'call')}"
    return "a guess, at 5 s a call: no call like these is known"


def row(told: Finish, zone: str) -> dict[str, Any]:
    """The same for programs."""
    return {
        "early": iso(told.early_ms, zone),
        "likely": iso(told.likely_ms, zone),
        "late": iso(told.late_ms, zone),
        "requests": told.requests,
        "calls": told.calls,
    }


def end_of_day_ms(now_ms: int, zone: str) -> int:
    """When the day ends, as clocks of a zone show it."""
    from scheduler.window import Window

    end_ms = Window.parse("day", zone).resets_at_ms(now_ms)
    assert end_ms is not None, "every day ends"
    return end_ms


def _round(ms: int, step_ms: int) -> int:
    return (ms + step_ms // 2) // step_ms * step_ms
