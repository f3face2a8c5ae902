"""What hooks are told: which facts of a picture are news, in data and in words; pure.

News is found by looking at how things stand, not by waiting for an event, so that none is lost with the
process that saw it happen. Each has a topic that is the same whoever looks: a threshold of one limit in
one window, one day on which something was parked for too long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from scheduler.budget import Unit, WindowKind
from scheduler.duration import format_duration
from scheduler.guards.plain import one_line
from scheduler.money import decimal_usd, format_usd
from scheduler.request import RequestState

if TYPE_CHECKING:
    from scheduler.stats import BudgetStatus, CapStatus, Counts, SpendRow, Standing
    from scheduler.telemetry.picture import Picture

THRESHOLD = "budget.threshold"
PROJECTED = "budget.projected"
PARKED = "requests.parked"
UNKNOWN = "outcomes.unknown"
DONE = "job.done"
KINDS = (THRESHOLD, PROJECTED, PARKED, UNKNOWN, DONE)
PREFIX = "io.scheduler."
DAY_MS = 86_400_000
_SLOW = ("window_spent",)  # until an instant that does not move; others are told once a day


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one hook wants to be told.

    Attributes:
        kinds: Some of `KINDS`.
        thresholds: Percent of a limit.
        parked_after_ms: How long something has to be parked.
        unknown_after_ms: How long an outcome has to be unknown.
        budgets: Names or patterns of budgets; empty: all.
    """

    kinds: frozenset[str] = frozenset(KINDS)
    thresholds: tuple[int, ...] = (80, 100)
    parked_after_ms: int = 30 * 60_000
    unknown_after_ms: int = 60 * 60_000
    budgets: tuple[str, ...] = ()

    def is_about(self, budget: str) -> bool:
        """Whether it wants to hear of that budget."""
        return not self.budgets or any(fnmatchcase(budget, each) for each in self.budgets)


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of news.

    Attributes:
        topic: The same for whoever notices it.
        subject: Which budget, provider or job.
        text: For people, in one line.
        data: For programs; amounts in dollars are exact decimal strings.
    """

    kind: str
    topic: str
    subject: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def event(self, hook: str, source: str, at_ms: int) -> dict[str, Any]:
        """The same as a CloudEvent, version 1.0; its id is the same for whoever notices it."""
        identity = hashlib.sha256("\0".join((source, hook, self.topic)).encode("utf-8", "replace"))
        return {
            "specversion": "1.0",
            "id": identity.hexdigest()[:32],
            "source": source,
            "type": PREFIX + self.kind,
            "subject": self.subject,
            "time": iso(at_ms),
            "datacontenttype": "application/json",
            "data": {"text": self.text, **self.data},
        }


def items(picture: Picture, wanted: Wanted) -> list[Item]:
    """What there is to be told of a picture, told before or not."""
    found: list[Item] = []
    for status in picture.budgets:
        if wanted.is_about(status.budget.name):
            for cap in status.caps:
                if THRESHOLD in wanted.kinds:
                    found += _threshold(status, cap, wanted.thresholds, picture.at_ms)
                if PROJECTED in wanted.kinds:
                    found += _projected(picture, status, cap)
    if PARKED in wanted.kinds:
        found += _parked(picture, wanted)
    if UNKNOWN in wanted.kinds:
        found += _unknown(picture, wanted.unknown_after_ms)
    return found


def _threshold(
    status: BudgetStatus, cap: CapStatus, thresholds: Sequence[int], at_ms: int
) -> Iterator[Item]:
    """The highest that was passed."""
    if not cap.limit:
        return
    percent = 100 * cap.posted // cap.limit
    passed = max((each for each in thresholds if each <= percent), default=None)
    if passed is None:
        return
    yield Item(
        THRESHOLD, f"threshold:{_window_of(status, cap, at_ms)}:{cap.limit}:{passed}",
        status.budget.name,
        f"Budget {_quoted(status)} has spent {_told(cap, cap.posted)} of "
        f"{_told(cap, cap.limit)} ({percent} %){_until(cap, at_ms)}.",
        {"threshold_percent": passed, "percent": percent, **_of_cap(status, cap)},
    )  # fmt: skip


def _projected(picture: Picture, status: BudgetStatus, cap: CapStatus) -> Iterator[Item]:
    """That it will be used up clearly before its reset."""
    found = picture.used_up(status, cap)
    if found is None or cap.resets_at_ms is None or cap.limit is None:
        return
    spent_at_ms, rate = found
    left_ms = cap.resets_at_ms - picture.at_ms
    projected = cap.posted + rate * left_ms // 3_600_000
    yield Item(
        PROJECTED, f"projected:{_window_of(status, cap, picture.at_ms)}:{cap.limit}",
        status.budget.name,
        f"Budget {_quoted(status)} will have spent its {_told(cap, cap.limit)} in about "
        f"{format_duration(spent_at_ms - picture.at_ms)}, at {_told(cap, rate)} an hour"
        f"{_until(cap, picture.at_ms)}.",
        {
            "projected_at": iso(spent_at_ms), **_amounts(cap, projected=projected, per_hour=rate),
            **_of_cap(status, cap),
        },
    )  # fmt: skip


def _parked(picture: Picture, wanted: Wanted) -> Iterator[Item]:
    seen: dict[tuple[str, str], list[Standing]] = {}
    for each in picture.standing:
        if each.state is RequestState.PARKED and each.lack is not None:
            seen.setdefault((each.reason, each.budget), []).append(each)
    for (reason, name), group in seen.items():
        longest = min(group, key=lambda each: each.since_ms)
        lack, parked_ms = longest.lack, picture.at_ms - longest.since_ms
        assert lack is not None
        if parked_ms < wanted.parked_after_ms or not (lack.is_of_provider or wanted.is_about(name)):
            continue
        requests, resumes_at_ms = sum(each.requests for each in group), lack.resumes_at_ms
        once = (
            f"until {resumes_at_ms}" if reason in _SLOW and resumes_at_ms else _day(picture.at_ms)
        )
        what = "provider" if lack.is_of_provider else "budget"
        words = f"{_counted(requests, 'request')} parked for {format_duration(parked_ms)}"
        on = "" if resumes_at_ms is None else f"; goes on at {iso(resumes_at_ms)}"
        yield Item(
            PARKED, f"parked:{reason}:{name}:{once}", name,
            f"{words}: {what} {one_line(name)!r}, {reason.replace('_', ' ')}{on}.",
            {
                "reason": reason, what: name, "requests": requests,
                "parked_since": iso(longest.since_ms), "parked_seconds": parked_ms // 1000,
                "resumes_at": iso(resumes_at_ms),
            },
        )  # fmt: skip


def _unknown(picture: Picture, after_ms: int) -> Iterator[Item]:
    unknown = picture.unknown
    age_ms = picture.at_ms - unknown.oldest_at_ms
    if not unknown.attempts or age_ms < after_ms:
        return
    yield Item(
        UNKNOWN, f"unknown:{_day(picture.at_ms)}", "",
        f"{_counted(unknown.attempts, 'call')} with an unknown outcome hold "
        f"{format_usd(unknown.nusd)}, the oldest for {format_duration(age_ms)}. "
        "See: scheduler resolve.",
        {
            "outcomes": unknown.attempts, "held_usd": decimal_usd(unknown.nusd),
            "oldest_at": iso(unknown.oldest_at_ms),
        },
    )  # fmt: skip


def job_done(job: str, counts: Counts, row: SpendRow | None, at_ms: int) -> Item:
    """That nothing of a job waits or runs any more."""
    posted_nusd = 0 if row is None else row.posted_nusd
    suspense_nusd = 0 if row is None else row.suspense_nusd
    failed = counts.failed + counts.cancelled + counts.expired
    unknown = f", {format_usd(suspense_nusd)} held for unknown outcomes" if suspense_nusd else ""
    return Item(
        DONE, f"job:{job}:{at_ms}", job,
        f"Job {one_line(job)!r} is done: {counts.succeeded:,} answered, {failed:,} not; "
        f"{format_usd(posted_nusd)} spent{unknown}.",
        {
            "job": job, "succeeded": counts.succeeded, "failed": counts.failed,
            "cancelled": counts.cancelled, "expired": counts.expired,
            "posted_usd": decimal_usd(posted_nusd), "suspense_usd": decimal_usd(suspense_nusd),
        },
    )  # fmt: skip


def _window_of(status: BudgetStatus, cap: CapStatus, at_ms: int) -> str:
    """Which window of which cap: a rolling one is told anew when its span has passed."""
    window = cap.cap.window
    starts_ms = 0
    if window.kind is WindowKind.CALENDAR:
        starts_ms = cap.window_start_ms
    elif window.kind is WindowKind.ROLLING:
        starts_ms = at_ms - at_ms % window.span_ms
    return f"{status.budget.name}:{cap.cap.unit.value}:{window}:{starts_ms}"


def _of_cap(status: BudgetStatus, cap: CapStatus) -> dict[str, Any]:
    return {
        "budget": status.budget.name, "cap": str(cap.cap), "unit": cap.cap.unit.value,
        **_amounts(cap, limit=cap.limit, posted=cap.posted, reserved=cap.reserved,
                   available=cap.available),
        "window": cap.cap.window.describe(), "resets_at": iso(cap.resets_at_ms),
    }  # fmt: skip


def _amounts(cap: CapStatus, **values: int | None) -> dict[str, Any]:
    """Amounts by name: in dollars as exact decimal strings, in other units as they are."""
    if cap.cap.unit is not Unit.USD:
        return dict(values)
    return {f"{k}_usd": None if n is None else decimal_usd(n) for k, n in values.items()}


def _told(cap: CapStatus, value: int) -> str:
    return cap.cap.format_amount(value)


def _quoted(status: BudgetStatus) -> str:
    return repr(one_line(status.budget.name))


def _until(cap: CapStatus, at_ms: int) -> str:
    if cap.resets_at_ms is None:
        return ""
    verb = "frees money" if cap.cap.window.kind is WindowKind.ROLLING else "resets"
    return f"; it {verb} in {format_duration(max(0, cap.resets_at_ms - at_ms))}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _day(at_ms: int) -> str:
    return f"day {at_ms // DAY_MS}"


def iso(at_ms: int | None) -> str | None:
    """An instant in ISO 8601, in UTC; None stays None."""
    if at_ms is None:
        return None
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
