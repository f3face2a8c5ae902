"""A store at one instant: what `status`, `top`, metrics and pages show, gathered in one place.

Nothing here reads requests one by one: what waits is told by lanes, what was spent by the sums that are
kept as reservations are settled (`stores.course`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.budget import WindowKind
from scheduler.estimates.exhaustion import used_up_at_ms
from scheduler.guards.plain import without_password
from scheduler.ledger.account import unit_index
from scheduler.ledger.burning import Burn, is_early, length_ms, spans_ms
from scheduler.request import RequestState
from scheduler.stores.course import HOUR_MS, QUARTER_MS, CourseRow, lately_since_ms, rate_per_hour

if TYPE_CHECKING:
    from scheduler.limits import GateStatus
    from scheduler.shortfall import Shortfall
    from scheduler.stats import (
        BudgetStatus,
        CapStatus,
        Counts,
        SpendRow,
        Standing,
        TenantStatus,
        UnknownSum,
        Unserved,
        WorkerStatus,
    )
    from scheduler.stores.base import Store

SAMPLE = 200  # parked requests of one job that are looked at to tell why they wait


@dataclass(frozen=True, slots=True)
class Lately:
    """What attempts cost that were begun since `since_ms`, by what they were for.

    Attributes:
        by_budget: What was posted, by the budget's id and quarters of an hour.
    """

    since_ms: int
    by_model: tuple[SpendRow, ...] = ()
    by_job: tuple[SpendRow, ...] = ()
    by_budget: Mapping[int, Sequence[CourseRow]] = field(default_factory=dict)

    def lasted_ms(self, at_ms: int) -> int:
        """How long that is, as far as it is known when spending began; see `rate_per_hour`."""
        began_ms = [row.quarter_ms for rows in self.by_budget.values() for row in rows]
        return max(QUARTER_MS, at_ms - min(began_ms, default=self.since_ms))


@dataclass(frozen=True, slots=True)
class Picture:
    """A store at one instant.

    Attributes:
        store: Its name, without a password.
        counts: Requests by state; of one job, if that was asked for.
        shortfalls: Why something is parked, for each reason and budget.
        standing: Live requests by state, priority and reason.
        limited: What providers' limits hold back.
        spend: What was ever spent, by model.
        lately: What was spent in the last 45 to 60 minutes.
        unknown: Of attempts whose outcome nobody knows.
        tenants: Who shares with whom, where that is asked for.
        burned: If it was asked for, what budgets cost from some instants on, by these and by name.
    """

    store: str
    at_ms: int
    counts: Counts
    shortfalls: tuple[Shortfall, ...]
    limited: tuple[GateStatus, ...]
    budgets: tuple[BudgetStatus, ...]
    spend: tuple[SpendRow, ...]
    workers: tuple[WorkerStatus, ...]
    unserved: tuple[Unserved, ...]
    standing: tuple[Standing, ...]
    lately: Lately
    unknown: UnknownSum
    tenants: tuple[TenantStatus, ...]
    burned: Mapping[int, Mapping[str, SpendRow]] = field(default_factory=dict)

    def per_hour(self, status: BudgetStatus, cap: CapStatus) -> int:
        """How much of a cap's unit was lately spent in an hour, in its budget."""
        index = unit_index(cap.cap.unit)
        rows = self.lately.by_budget.get(status.id, ())
        posted = [(row.quarter_ms, (row.nusd, row.tokens, row.requests)[index]) for row in rows]
        return rate_per_hour(posted, self.at_ms)

    def used_up(self, status: BudgetStatus, cap: CapStatus) -> tuple[int, int] | None:
        """When a calendar window will be used up, and at what an hour, if that is clearly too early.

        By the rule of `events.BudgetBurning`, with what the store knows; None: it is not.
        """
        if not _ends(cap) or cap.limit is None or cap.resets_at_ms is None:
            return None
        rates = []
        for since_ms in burned_since_ms(cap, self.at_ms):
            row = self.burned.get(since_ms, {}).get(status.budget.name)
            amounts = (0, 0, 0) if row is None else (row.posted_nusd, row.tokens, row.attempts)
            rates.append((amounts[unit_index(cap.cap.unit)], self.at_ms - since_ms))
        long, short = rates
        left = cap.limit - cap.posted
        if not is_early((long, short), left, cap.resets_at_ms - self.at_ms, length_ms(cap.cap)):
            return None
        spent, ms = long
        return self.at_ms + left * ms // spent, spent * HOUR_MS // ms

    def spent_at_ms(self, status: BudgetStatus, cap: CapStatus) -> int | None:
        """When nothing is left of a cap, if spending goes on as lately; see `used_up_at_ms`."""
        return used_up_at_ms(cap, self.per_hour(status, cap), self.at_ms)


async def look(
    store: Store, url: str, at_ms: int, *, job: str | None = None,
    spend: Sequence[SpendRow] | None = None, burned: bool = False,
) -> Picture:  # fmt: skip
    """Take a picture of an open store.

    Args:
        store: It.
        url: How it is told to people; a password in it is left out.
        at_ms: The time.
        job: Count, and tell why they are parked, only this job's requests.
        spend: What was ever spent, if it is known; None: sum it.
        burned: Whether to find out how fast budgets are used up, for `Picture.used_up`.
    """
    counts, standing = await store.counts(job), await store.standing(at_ms)
    budgets = await store.budgets(at_ms)
    return Picture(
        store=without_password(url),
        at_ms=at_ms,
        counts=counts,
        shortfalls=await _why(store, counts, standing, job, at_ms),
        limited=tuple(await store.limited(at_ms)),
        budgets=tuple(budgets),
        spend=tuple(await store.spend("model") if spend is None else spend),
        workers=tuple(await store.workers(at_ms)),
        unserved=tuple(await store.unserved(at_ms, job)),
        standing=tuple(standing),
        lately=await _lately(store, budgets, at_ms),
        unknown=await store.unknown_sum(),
        tenants=tuple(await store.tenants(at_ms)),
        burned=await _burned(store, budgets, at_ms) if burned else {},
    )


def _ends(cap: CapStatus) -> bool:
    """Whether it may be said of a cap that it will be used up before its reset."""
    return Burn.watches(cap.cap) and cap.cap.window.kind is WindowKind.CALENDAR


def burned_since_ms(cap: CapStatus, at_ms: int) -> tuple[int, int]:
    """From when on it is seen how fast a cap is used up: about `spans_ms`, by quarters of an hour."""
    long_ms, short_ms = (at_ms - max(QUARTER_MS, each) for each in spans_ms(length_ms(cap.cap)))
    return long_ms - long_ms % QUARTER_MS, short_ms - short_ms % QUARTER_MS


async def _burned(
    store: Store, budgets: Sequence[BudgetStatus], at_ms: int
) -> dict[int, dict[str, SpendRow]]:
    wanted = {
        since_ms for status in budgets for cap in status.caps if _ends(cap)
        for since_ms in burned_since_ms(cap, at_ms)
    }  # fmt: skip
    return {
        since_ms: {row.name: row for row in await store.spend("budget", since_ms)}
        for since_ms in sorted(wanted)
    }


async def _why(
    store: Store, counts: Counts, standing: Sequence[Standing], job: str | None, at_ms: int
) -> tuple[Shortfall, ...]:
    found: dict[tuple[str, str], Shortfall] = {}
    if job is None:
        lacks = [each.lack for each in standing]
    elif counts.parked:
        rows = await store.queue([RequestState.PARKED], at_ms, job=job, limit=SAMPLE)
        lacks = [row.shortfall for row in rows]
    else:
        lacks = []
    for lack in lacks:
        if lack is not None:
            found.setdefault((lack.reason, lack.budget), lack)
    return tuple(found.values())


async def _lately(store: Store, budgets: Sequence[BudgetStatus], at_ms: int) -> Lately:
    since_ms = lately_since_ms(at_ms)
    by_budget: dict[int, list[CourseRow]] = {}
    for row in await store.course([status.id for status in budgets], since_ms):
        by_budget.setdefault(row.budget_id, []).append(row)
    return Lately(
        since_ms,
        tuple(await store.spend("model", since_ms)),
        tuple(await store.spend("job", since_ms)),
        by_budget,
    )
