"""How fast budgets are spent, and when they will be used up; a part of ``scheduler status``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.cli.dates import moment
from scheduler.cli.output import iso
from scheduler.duration import format_duration
from scheduler.estimates.exhaustion import left_of, used_up_ms
from scheduler.ledger.account import unit_index
from scheduler.ledger.burning import LATEST, Burn, length_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.budget import Cap
    from scheduler.stats import BudgetStatus, CapStatus, Took
    from scheduler.stores.base import Store

FEWEST = 5  # calls, from which on there is a rate
MOST_SPANS = 4  # of time that are summed up
MOST_CALLS = 500  # by which it is judged how unevenly they cost


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a cap is spent: `percent` of it went within the last `within_ms`.

    Attributes:
        used_up: When nothing is left: early, likely and late; all of it before its reset.
    """

    budget: str
    cap: Cap
    percent: int
    within_ms: int
    used_up: tuple[int, int, int]
    resets_at_ms: int | None


async def rates(store: Store, budgets: Sequence[BudgetStatus], now_ms: int) -> list[Rate]:
    """The caps that will be used up before their reset, if it goes on like this."""
    wanted = [
        (each, status) for each in budgets for status in each.caps
        if Burn.watches(status.cap) and status.posted and unit_index(status.cap.unit) < 2
    ]  # fmt: skip
    if not wanted:
        return []
    spans = sorted({length_ms(status.cap) // LATEST for _, status in wanted})[:MOST_SPANS]
    spent = {
        span_ms: {row.name: row for row in await store.spend("budget", now_ms - span_ms)}
        for span_ms in spans
    }
    unevenness = _unevenness(await store.took(MOST_CALLS))
    found = []
    for budget, status in wanted:
        span_ms = length_ms(status.cap) // LATEST
        row = spent.get(span_ms, {}).get(budget.budget.name)
        if row is None or row.attempts < FEWEST:
            continue
        at = unit_index(status.cap.unit)
        amount = min((row.posted_nusd, row.tokens)[at], status.posted)
        rate = _rate(
            budget, status, amount, amount / row.attempts * unevenness[at], span_ms, now_ms
        )
        if rate is not None:
            found.append(rate)
    return found


def _rate(
    budget: BudgetStatus, status: CapStatus, spent: int, size: float, within_ms: int, now_ms: int
) -> Rate | None:
    limit = status.limit or 0
    left, resets_ms = left_of(status) or 0, status.cap.window.resets_at_ms(now_ms)
    if left <= 0 or spent <= 0:
        return None
    mean = spent / within_ms
    early, likely, late = used_up_ms(left, mean, mean * size, now_ms)
    if resets_ms is None or likely >= resets_ms:
        return None
    when = (early, likely, min(late, resets_ms))
    return Rate(budget.budget.name, status.cap, 100 * spent // limit, within_ms, when, resets_ms)


def _unevenness(took: Sequence[Took]) -> tuple[float, float]:
    """How many times its mean a call's cost is, weighed by that: 1, if all cost the same."""
    found = []
    for values in ([each.nusd for each in took], [each.tokens for each in took]):
        total = sum(values)
        found.append(sum(v * v for v in values) * len(values) / total**2 if total else 2.0)
    return found[0], found[1]


def sentence(rate: Rate, now_ms: int) -> str:
    """It in words."""
    zone = rate.cap.window.zone
    early, likely, late = (moment(each, zone, now_ms) for each in rate.used_up)
    reset = "" if rate.resets_at_ms is None else moment(rate.resets_at_ms, zone, now_ms)
    return (
        f"{rate.budget}: {rate.percent} % of {rate.cap} went in the last {format_duration(rate.within_ms)}; "
        f"at this rate it is used up about {likely} ({early} – {late}) {zone}, before its reset at {reset}"
    )


def row(rate: Rate) -> dict[str, Any]:
    """It for programs."""
    zone = rate.cap.window.zone
    early, likely, late = (iso(each, zone) for each in rate.used_up)
    return {
        "budget": rate.budget, "cap": str(rate.cap), "percent": rate.percent,
        "within_seconds": rate.within_ms // 1000, "early": early, "likely": likely, "late": late,
        "resets_at": iso(rate.resets_at_ms, zone),
    }  # fmt: skip
