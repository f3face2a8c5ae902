"""What is said of requests that a budget or a provider stops: once, and what to do.

Whoever waits for ever without a word looks for a fault in their own program. So the first park
of a budget for a reason is told on the logger ``scheduler.parked``: as a WARNING, or as INFO where
the wait ends by itself. The same words go with the exception that ends a parked request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from scheduler.admission.plan import LaneKey
from scheduler.budget import Cap
from scheduler.duration import format_duration
from scheduler.guards.plain import about, logger_of, one_line
from scheduler.shortfall import ParkReason, Shortfall

logger = logger_of("scheduler.parked")

MOST_TOLD = 10_000
_Subject = tuple[str, ParkReason]  # the budget, or the provider, and why
QUIET_MS = 60_000  # what ends by itself within that time, and comes back, is told no more often


class Lane(Protocol):
    """A lane that was shut, or opened."""

    @property
    def key(self) -> LaneKey: ...  # noqa: D102
    @property
    def waiting(self) -> int: ...  # noqa: D102
    @property
    def shortfall(self) -> Shortfall | None: ...  # noqa: D102


class _Told(NamedTuple):
    lanes: set[LaneKey]  # that are parked for it now
    quiet_until_ms: int
    what: tuple[int | None, ...]  # tells this park from another for the same reason


class Notices:
    """Tells of parks, once for each budget (or provider) and reason, again after it was unparked.

    That all who were parked went away, or are being tried, unparks nothing.

    Args:
        closed_since: When a provider was closed; None: it is open.
    """

    def __init__(self, closed_since: Callable[[str], int | None]) -> None:
        self._closed_since = closed_since
        self._parked: dict[LaneKey, _Subject] = {}
        self._told: dict[_Subject, _Told] = {}

    def tell(self, lanes: Iterable[Lane], started: Container[str], now_ms: int) -> None:
        """These lanes were shut or opened, while requests for these models started."""
        for lane in lanes:
            lack = lane.shortfall
            subject = None if lack is None else (lack.budget, lack.reason)
            before = self._parked.get(lane.key)
            if before is not None and before != subject:
                del self._parked[lane.key]
                self._unpark(before, lane, lane.key.model in started, now_ms)
            if lack is not None and subject is not None and before != subject:
                self._parked[lane.key] = subject
                self._park(lack, lane, now_ms)

    def _park(self, lack: Shortfall, lane: Lane, now_ms: int) -> None:
        what: tuple[int | None, ...] = (lack.limit, lack.resumes_at_ms)
        if lack.is_of_provider:
            what = (self._closed_since(lack.budget),)
        told = self._told.get((lack.budget, lack.reason))
        if told is not None:
            told.lanes.add(lane.key)
            if len(told.lanes) > 1 or told.what == what or now_ms < told.quiet_until_ms:
                return
        is_mild = ends_by_itself(lack)
        is_soon = (lack.resumes_at_ms or now_ms) < now_ms + QUIET_MS
        quiet_until_ms = now_ms + QUIET_MS if is_mild and is_soon else now_ms
        self._told.pop((lack.budget, lack.reason), None)
        self._told[lack.budget, lack.reason] = _Told({lane.key}, quiet_until_ms, what)
        self._forget_old()
        level = logging.INFO if is_mild else logging.WARNING
        if logger.isEnabledFor(level):
            logger.log(level, "%s (%s waiting)", sentence(lack, now_ms), f"{lane.waiting:,}")

    def _unpark(self, subject: _Subject, lane: Lane, has_started: bool, now_ms: int) -> None:
        told = self._told.get(subject)
        if told is None:
            return
        told.lanes.discard(lane.key)
        is_over = (lane.waiting > 0 or has_started) and now_ms >= told.quiet_until_ms
        if subject[1] in (ParkReason.PROVIDER_CREDIT, ParkReason.PROVIDER_DOWN):
            is_over = self._closed_since(subject[0]) is None
        if is_over and not told.lanes:
            del self._told[subject]

    def _forget_old(self) -> None:
        """Keep no more than is of use: some budgets are as many as there are users."""
        if len(self._told) > MOST_TOLD:
            del self._told[next(iter(self._told))]


def ends_by_itself(lack: Shortfall) -> bool:
    """Whether nobody has to do anything: calls under way settle, the window goes on or ends."""
    if lack.reason is ParkReason.HELD_IN_FLIGHT:
        return True
    goes_on = lack.reason in (ParkReason.WINDOW_SPENT, ParkReason.PACED)
    return goes_on and lack.resumes_at_ms is not None


def brief(lack: Shortfall) -> str:
    """What is lacking, in a few words."""
    if lack.is_of_provider:
        said = f" ({one_line(lack.words)})" if lack.words else ""
        return f"{lack.reason.value}: {one_line(lack.budget)}{said}"
    return f"{lack.reason.value}: budget {lack.budget!r} lacked {_cap(lack).format_amount(lack.missing)}"


def sentence(lack: Shortfall, now_ms: int) -> str:
    """Why a request is parked, how much is missing, until when, and what to do."""
    words = _of_provider(lack, now_ms) if lack.is_of_provider else _of_budget(lack, now_ms)
    if lack.too_late_at_ms is None:
        return words
    over = _at(lack.too_late_at_ms, lack.zone, now_ms)
    before = " before that," if lack.resumes_at_ms is not None else ""
    return f"{words}. Its own time is over{before} {over}: unless it can go earlier, it ends unsent"


def _of_budget(lack: Shortfall, now_ms: int) -> str:
    cap, name = _cap(lack), repr(lack.budget)
    change = about(lack.budget, rest=" 'MORE'")
    more = f"raise the limit: await s.set_limit({name}, …), or scheduler budget set {change}"
    needs = f"a request needs up to {cap.format_amount(lack.needed)}"
    missing = f"{cap.format_amount(lack.missing)} missing"
    limit = f"{cap.format_amount(lack.limit)} ({lack.window})"
    held = (
        f"{cap.format_amount(lack.posted)} spent and {cap.format_amount(lack.reserved)} reserved "
        f"of {limit}"
    )
    if lack.reason is ParkReason.PAUSED:
        return (
            f"parked: budget {name} is paused; nothing of it is sent until it is resumed: "
            f"await s.resume({name}), or scheduler budget resume {about(lack.budget)}"
        )
    if lack.reason is ParkReason.LARGER_THAN_LIMIT:
        return (
            f"parked: {needs}, and the whole limit of budget {name} is {limit}: {missing}, and no "
            f"reset will help. To let it go, cap its output (max_tokens in the body, cap_output= or "
            f"--cap-output), or {more}"
        )
    if lack.reason is ParkReason.HELD_IN_FLIGHT:
        return (
            f"parked: budget {name} is held by running calls ({held}; {needs}, {missing}); it goes on "
            f"when they settle. To go on now, {more}"
        )
    if lack.reason is ParkReason.KEPT:
        return (
            f"parked: the rest of budget {name} is kept for {lack.words} requests ({held}; {needs}, "
            f"{missing}); it goes on {_until(lack, now_ms)}. To go on now, {more}"
        )
    if lack.reason is ParkReason.PACED:
        share = f"{cap.format_amount(lack.allowed or 0)} allowed by now"
        return (
            f"parked: budget {name} is spent bit by bit ({held}, {share}; {needs}, {missing}); it goes on "
            f"{_until(lack, now_ms)}. To go on now, {more}"
        )
    return (
        f"parked: budget {name} is spent for now ({held}; {needs}, {missing}); it resumes "
        f"{_until(lack, now_ms)}. To go on now, {more}"
    )


def _of_provider(lack: Shortfall, now_ms: int) -> str:
    said = f" ({lack.words})" if lack.words else ""
    again = f"one request tries again {_until(lack, now_ms)}"
    name = repr(lack.budget)
    if lack.reason is ParkReason.PROVIDER_DOWN:
        return (
            f"parked: provider {name} does not answer{said}; {again}, and after it all others. Check "
            f"its base URL and its status page; max_wait bounds the wait, s.probe({name}) tries now"
        )
    if lack.goes_on:
        needs = (
            f"a request of up to {_cap(lack).format_amount(lack.needed)}"
            if lack.needed
            else "larger ones"
        )
        return (
            f"parked: provider {name} has not enough credit for {needs}{said}; {lack.goes_on}. To let "
            "it go, cap its output (max_tokens in the body, cap_output= or --cap-output), or top it "
            f"up there: {again}. s.probe({name}) tries now"
        )
    return (
        f"parked: provider {name} says that its own credit is used up{said}; top it up there: {again}, "
        f"and after it all others. s.probe({name}) tries now"
    )


def _until(lack: Shortfall, now_ms: int) -> str:
    at_ms = lack.resumes_at_ms
    return "never by itself" if at_ms is None else _at(at_ms, lack.zone, now_ms)


def _at(at_ms: int, zone: str, now_ms: int) -> str:
    from zoneinfo import ZoneInfo

    at = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone))
    return f"{at:%Y-%m-%d %H:%M:%S} {zone} (in {format_duration(max(0, at_ms - now_ms))})"


def _cap(lack: Shortfall) -> Cap:
    return Cap(lack.unit, lack.limit, _NO_WINDOW)


_NO_WINDOW: Any = None  # of a cap of which only the amounts are asked
