"""What the page shows, as JSON: numbers for its charts, and words for people; pure.

Amounts are written twice: as integers of their unit (nano-dollars, tokens, requests), with which
charts are drawn, and as text, which is what people read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from scheduler.budget import Unit
from scheduler.ledger.account import unit_index
from scheduler.money import format_usd
from scheduler.request import priority_word
from scheduler.server.page.burn import Burn
from scheduler.shortfall import Shortfall
from scheduler.stats import BudgetStatus, CapStatus, QueueRow, SpendRow, Standing, TenantStatus
from scheduler.stores.acts import Act
from scheduler.stores.base import Unknown
from scheduler.stores.course import CourseRow, TookRow, quantile_ms, rate_per_hour
from scheduler.stores.history import AttemptRow

if TYPE_CHECKING:
    from scheduler.rehearsal import Finish

NUSD = 10**9  # nano-dollars of a dollar
SHARES = (0.5, 0.95, 0.99)
MOST_ROWS = 25  # of a table
MOST_TAGS = 12  # that can be chosen


def shown(nusd: int) -> str:
    """Dollars for a page that is glanced at: cents, and of less than ten dollars two digits more.

    Of less than a hundredth of a cent two digits that say something.
    """
    size = abs(nusd)
    digits = 2 if size >= 10 * NUSD or not size else 4
    if 0 < size < NUSD // 10_000:
        digits = min(9, 11 - len(str(size)))
    step = 10 ** (9 - digits)
    return format_usd((nusd + step // 2) // step * step)


def said(unit: Unit, amount: int) -> str:
    """An amount of a unit, to be read at a glance."""
    if unit is Unit.USD:
        return shown(amount)
    return f"{amount:,} {unit.value[:-1] if amount == 1 else unit.value}"


def budget_row(status: BudgetStatus, course: Sequence[CourseRow], now_ms: int) -> dict[str, Any]:
    """A budget, with how fast it is being spent."""
    return {
        "id": status.id,
        "name": status.budget.name,
        "text": status.budget.text,
        "risk": status.budget.risk,
        "paused": status.paused,
        "caps": [_cap_row(cap, course, now_ms) for cap in status.caps],
    }


def _cap_row(cap: CapStatus, course: Sequence[CourseRow], now_ms: int) -> dict[str, Any]:
    index, window = unit_index(cap.cap.unit), cap.cap.window
    posted = [(row.quarter_ms, (row.nusd, row.tokens, row.requests)[index]) for row in course]
    per_hour = rate_per_hour(posted, now_ms)
    amounts = {
        "limit": cap.limit, "posted": cap.posted, "reserved": cap.reserved,
        "suspense": cap.suspense, "available": cap.available, "allowed": cap.allowed,
        "per_hour": per_hour,
    }  # fmt: skip
    return {
        "cap": str(cap.cap),
        "unit": cap.cap.unit.value,
        "window": window.describe(),
        "zone": window.zone,
        "resets_at_ms": cap.resets_at_ms,
        **amounts,
        "said": {
            name: None if value is None else said(cap.cap.unit, value)
            for name, value in amounts.items()
        },
    }


def burn_row(cap: CapStatus, burn: Burn) -> dict[str, Any]:
    """A chart, with what it says in a sentence for who does not see it."""

    def write(value: int) -> str:
        return said(cap.cap.unit, value)

    words = f"{write(cap.posted)} spent"
    if cap.limit is not None:
        words += f" of {write(cap.limit)}"
    words += f", {write(cap.reserved)} reserved, {write(burn.per_hour)} an hour"
    return {
        **asdict(burn),
        "unit": cap.cap.unit.value,
        "limit": cap.limit,
        "posted": cap.posted,
        "reserved": cap.reserved,
        "suspense": cap.suspense,
        "counted": cap.counted,
        "resets_at_ms": cap.resets_at_ms,
        "said": words,
        "said_at_end": None if burn.at_end is None else write(burn.at_end),
    }


def standing_row(stood: Standing) -> dict[str, Any]:
    """Those that wait or run for one reason."""
    return {
        "state": stood.state.value,
        "priority": priority_word(stood.priority),
        "reason": stood.reason.replace("_", " "),
        "budget": stood.budget,
        "requests": stood.requests,
        "oldest_at_ms": stood.oldest_at_ms,
        "why": None if stood.lack is None else why(stood.lack),
        "resumes_at_ms": None if stood.lack is None else stood.lack.resumes_at_ms,
    }


def why(lack: Shortfall) -> str:
    """Why something waits and how much is missing, in a sentence; when it goes on is told beside it."""
    if lack.is_of_provider:
        return lack.words or f"{lack.budget}: {lack.reason.value.replace('_', ' ')}"

    def write(value: int) -> str:
        return said(lack.unit, value)

    spent = f"{write(lack.posted)} of {write(lack.limit)} spent"
    match lack.reason.value:
        case "paused":
            return f"{lack.budget} is paused"
        case "larger_than_limit":
            return (
                f"the next request may need {write(lack.needed)}, more than {lack.budget} ever allows "
                f"({write(lack.limit)}): only a raise helps"
            )
        case "held_in_flight":
            return f"{lack.budget}: {spent}, the rest is reserved for calls under way"
    return f"{lack.budget}: {spent}, {write(lack.missing)} missing of {write(lack.needed)}"


def spend_row(row: SpendRow) -> dict[str, Any]:
    """What was spent under one heading."""
    return {
        "name": row.name, "attempts": row.attempts, "tokens": row.tokens,
        "posted": row.posted_nusd, "reserved": row.reserved_nusd,
        "said": {"posted": shown(row.posted_nusd), "reserved": shown(row.reserved_nusd)},
    }  # fmt: skip


def tag_rows(rows: Iterable[SpendRow]) -> list[dict[str, Any]]:
    """What was spent by the values of each tag, dearest first, and how many more of them there are."""
    by_tag: dict[str, list[SpendRow]] = defaultdict(list)
    for row in rows:
        tag, _, value = row.name.partition("=")
        by_tag[tag].append(replace(row, name=value))
    dearest = sorted(
        by_tag.items(), key=lambda item: (-sum(row.posted_nusd for row in item[1]), -len(item[1]))
    )
    return [
        {
            "tag": tag, "values": [spend_row(row) for row in its[:MOST_ROWS]],
            "more": max(0, len(its) - MOST_ROWS),
        }
        for tag, its in dearest[:MOST_TAGS]
    ]  # fmt: skip


def tenant_rows(tenants: Sequence[TenantStatus]) -> list[dict[str, Any]]:
    """How those share who share, whoever was served most first."""
    served = sum(each.served_nusd for each in tenants)
    return [
        {
            "tenant": each.tenant, "weight": each.weight, "waiting": each.waiting,
            "served": shown(each.served_nusd),
            "share": each.served_nusd / served if served > 0 else None,
        }
        for each in tenants[:MOST_ROWS]
    ]  # fmt: skip


def finish_row(finish: Finish | None) -> dict[str, Any] | None:
    """When all that waits will be done; None: it is not known, or nothing waits."""
    return None if finish is None else asdict(finish)


def model_rows(took: Iterable[TookRow]) -> list[dict[str, Any]]:
    """How long calls took and how far they stayed below their ceilings, by model, most calls first."""
    by_model: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in took:
        by_model[row.model][row.bucket] += row.calls
        for at, amount in enumerate((row.calls, row.nusd, row.ceiling_nusd)):
            sums[row.model][at] += amount
    found = []
    for model, (calls, nusd, ceiling_nusd) in sorted(sums.items(), key=lambda item: -item[1][0]):
        p50, p95, p99 = (quantile_ms(by_model[model], share) for share in SHARES)
        found.append({
            "model": model, "calls": calls, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            "posted": nusd, "said": shown(nusd),
            "of_ceiling": nusd / ceiling_nusd if ceiling_nusd else None,
        })  # fmt: skip
    return found


def throughput(took: Iterable[TookRow]) -> list[tuple[int, int]]:
    """Answered calls by the quarter of an hour in which they ended."""
    found: dict[int, int] = defaultdict(int)
    for row in took:
        found[row.quarter_ms] += row.calls
    return sorted(found.items())


def request_row(row: QueueRow) -> dict[str, Any]:
    """One request of a list."""
    return {
        "id": row.id, "key": row.key, "job": row.job, "state": row.state.value,
        "model": row.model, "provider": row.provider,
        "priority": priority_word(row.priority),
        "submitted_at_ms": row.submitted_at_ms, "attempts": row.attempts,
        "parked_ms": row.parked_ms, "ceiling": shown(row.ceiling_nusd),
        "cost": shown(row.cost_nusd) if row.cost_nusd else None,
        "why": None if row.shortfall is None else why(row.shortfall),
        "resumes_at_ms": None if row.shortfall is None else row.shortfall.resumes_at_ms,
        "error": _error(row.error),
    }  # fmt: skip


def _error(error: Mapping[str, Any] | None) -> str | None:
    if error is None:
        return None
    said = error.get("message") or error.get("error") or error
    return str(said)[:2_000]


def attempt_row(row: AttemptRow) -> dict[str, Any]:
    """One try at sending a request, with its money."""
    return {
        "id": row.id, "state": row.state, "made_at_ms": row.made_at_ms,
        "settled_at_ms": row.settled_at_ms, "ceiling": shown(row.ceiling_nusd),
        "cost": shown(row.nusd) if row.state == "posted" else None,
        "tokens": row.tokens, "is_assumed": row.is_assumed, "why": row.why,
    }  # fmt: skip


def unknown_row(unknown: Unknown) -> dict[str, Any]:
    """An attempt of which nobody knows how it ended."""
    return {
        "attempt": unknown.id, "key": unknown.key, "job": unknown.job, "model": unknown.model,
        "provider": unknown.provider, "sent_at_ms": unknown.made_at_ms,
        "ceiling": shown(unknown.ceiling_nusd), "provider_id": unknown.provider_id,
        "why": unknown.why,
    }  # fmt: skip


def act_row(act: Act) -> dict[str, Any]:
    """What somebody changed."""
    return act._asdict()
