"""A store at one instant: what `status`, `top`, metrics and pages show, gathered in one place.

Nothing here reads requests one by one: what waits is told by lanes, what was spent by the sums that are
kept as reservations are settled. These are kept by quarters of an hour, so what was spent *lately* is
told from the beginning of one: for the last 45 to 60 minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.budget import Unit
from scheduler.guards.plain import without_password
from scheduler.request import Priority, RequestState
from scheduler.stores.course import QUARTER_MS

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

HOUR_MS = 3_600_000
LATELY_MS = 45 * 60_000  # at least so long is lately
SAMPLE = 200  # parked requests of one job that are looked at to tell why they wait


@dataclass(frozen=True, slots=True)
class Lately:
    """What attempts cost that were begun since `since_ms`, by what they were for."""

    since_ms: int
    by_model: tuple[SpendRow, ...] = ()
    by_job: tuple[SpendRow, ...] = ()
    by_budget: Mapping[str, SpendRow] = field(default_factory=dict)


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

    def per_hour(self, status: BudgetStatus, cap: CapStatus) -> float:
        """How much of a cap's unit was lately spent in an hour, in its budget."""
        row = self.lately.by_budget.get(status.budget.name)
        if row is None:
            return 0.0
        spent = {
            Unit.USD: row.posted_nusd, Unit.TOKENS: row.tokens, Unit.REQUESTS: row.attempts
        }[cap.cap.unit]  # fmt: skip
        return spent * HOUR_MS / max(1, self.at_ms - self.lately.since_ms)

    def spent_at_ms(self, status: BudgetStatus, cap: CapStatus) -> int | None:
        """When a cap will be used up, if spending goes on as lately; None: not before its reset."""
        rate = self.per_hour(status, cap)
        if cap.limit is None or rate <= 0:
            return None
        at_ms = self.at_ms + int(max(0, cap.limit - cap.counted) * HOUR_MS / rate)
        if cap.resets_at_ms is not None and at_ms >= cap.resets_at_ms:
            return None
        return at_ms


async def look(
    store: Store, url: str, at_ms: int, *, job: str | None = None,
    spend: Sequence[SpendRow] | None = None,
) -> Picture:  # fmt: skip
    """Take a picture of an open store.

    Args:
        store: It.
        url: How it is told to people; a password in it is left out.
        at_ms: The time.
        job: Count, and tell why they are parked, only this job's requests.
        spend: What was ever spent, if it is known; None: sum it.
    """
    counts, standing = await store.counts(job), await store.standing(at_ms)
    return Picture(
        store=without_password(url),
        at_ms=at_ms,
        counts=counts,
        shortfalls=await _why(store, counts, standing, job, at_ms),
        limited=tuple(await store.limited(at_ms)),
        budgets=tuple(await store.budgets(at_ms)),
        spend=tuple(await store.spend("model") if spend is None else spend),
        workers=tuple(await store.workers(at_ms)),
        unserved=tuple(await store.unserved(at_ms, job)),
        standing=tuple(standing),
        lately=await _lately(store, at_ms),
        unknown=await store.unknown_sum(),
        tenants=tuple(await store.tenants(at_ms)),
    )


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


async def _lately(store: Store, at_ms: int) -> Lately:
    since_ms = lately_since_ms(at_ms)
    by_budget = await store.spend("budget", since_ms)
    return Lately(
        since_ms,
        tuple(await store.spend("model", since_ms)),
        tuple(await store.spend("job", since_ms)),
        {row.name: row for row in by_budget},
    )


def lately_since_ms(at_ms: int) -> int:
    """The beginning of the quarter of an hour in which that begins which is told as lately.

    >>> lately_since_ms(60 * 60_000) // 60_000, lately_since_ms(74 * 60_000) // 60_000
    (15, 15)
    """
    began_ms = at_ms - LATELY_MS
    return began_ms - began_ms % QUARTER_MS


def priority_word(priority: int) -> str:
    """The word for a priority; of an int between two of them the more urgent one.

    >>> priority_word(0), priority_word(12), priority_word(99)
    ('interactive', 'normal', 'idle')
    """
    return max(each for each in Priority if each <= priority).name.lower()
