"""What a scheduler does now, as progress shows it."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.cli.patience import worst
from scheduler.cli.progress import Snapshot
from scheduler.clock import SystemClock
from scheduler.ledger.matching import DEFAULT
from scheduler.stats import CapStatus, Stats


@dataclass(frozen=True, slots=True)
class Work:
    """How far the work of a command is.

    Attributes:
        ended: Of these, by this process.
        total: As far as is known.
        is_read: Whether that is all.
    """

    done: int
    failed: int
    ended: int
    total: int
    is_read: bool


def snapshot(stats: Stats, work: Work, seconds: float) -> Snapshot:
    """A picture of it.

    Args:
        stats: Of the scheduler.
        work: How far it is.
        seconds: For how long it has been at it.
    """
    parked = sum(stats.parked.values())
    left = work.total - work.done - work.failed
    is_told = work.ended and work.is_read and not parked
    return Snapshot(
        at_ms=SystemClock().now_ms(),
        done=work.done,
        failed=work.failed,
        total=work.total,
        is_read=work.is_read,
        running=stats.running,
        parked=parked,
        shortfall=worst(stats.shortfalls),
        posted_nusd=stats.posted_nusd,
        reserved_nusd=stats.reserved_nusd + stats.suspense_nusd,
        cap=tightest_cap(stats),
        per_hour_nusd=int(stats.posted_nusd / seconds * 3600) if seconds > 1 else 0,
        eta_ms=int(left * seconds / work.ended * 1000) if is_told else None,
        limited=stats.limited[0].sentence if stats.queued and stats.limited else "",
    )


def tightest_cap(stats: Stats) -> CapStatus | None:
    """The limit of the budget 'default' that has the least left."""
    caps = [
        cap
        for status in stats.budgets
        if status.budget.name == DEFAULT
        for cap in status.caps
        if cap.limit is not None and cap.cap.unit == "usd"
    ]
    return min(caps, key=lambda cap: cap.available or 0, default=None)
