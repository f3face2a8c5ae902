"""Accounts as people and audits see them; shared by all stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from scheduler.admission.plan import LaneKey
from scheduler.budget import Budget, Cap, Unit, WindowKind
from scheduler.errors import ConfigError
from scheduler.foresight import PRESETS
from scheduler.ledger.account import FAR, Account, Needs, ReservationState
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stats import BudgetStatus, CapStatus, Discrepancy, Standing, TenantStatus
from scheduler.stores.base import Outcome, Settlement, Unknown
from scheduler.stores.refusing import is_refusal

MOST_SHOWN = 5  # names in an error
RETRY_LATER = "retry_later"  # why a request is queued that was tried already

SETTLED = {
    Outcome.POST: ReservationState.POSTED,
    Outcome.VOID: ReservationState.VOIDED,
    Outcome.SUSPEND: ReservationState.SUSPENSE,
}


def is_tried_again(state: RequestState, retry_failed: bool, error: object = None) -> bool:
    """Whether submitting a known key queues it anew: never after success, nor while it lives.

    What ended by its callers' own terms, unsent, is no answer for others; nor is a refusal.
    """
    if state in (RequestState.CANCELLED, RequestState.EXPIRED):
        return True
    was_refused = isinstance(error, Mapping) and is_refusal(error)
    return state is RequestState.FAILED and (retry_failed or was_refused)


def keep_line(
    old: Sequence[Account], new: Sequence[Account], request_id: int, lane: LaneKey,
    due_at_ms: int | None, needs: Needs,
) -> bool:  # fmt: skip
    """A request that waits goes to another lane: it keeps its place in line where it can.

    Returns:
        Whether it was in line for money that is nothing to it any more, or stands further back.
    """
    has_left = False
    for account in old:
        waiter = account.waiter_of(request_id)
        if waiter is None:
            continue
        account.leave_line(request_id)
        if account in new and waiter.need == needs[account.index]:
            due_ms = FAR if due_at_ms is None else due_at_ms
            moved = replace(waiter, priority=lane.priority, due_at_ms=due_ms)
            account.get_in_line(moved)
            has_left = has_left or waiter < moved
        else:
            has_left = True
    return has_left


def budget_status(
    id: int, budget: Budget, paused: bool, accounts: Iterable[Account], now_ms: int
) -> BudgetStatus:
    """A budget with its balances; its accounts have been looked at."""
    return BudgetStatus(id, budget, paused, tuple(_cap_status(each, now_ms) for each in accounts))


def _cap_status(account: Account, now_ms: int) -> CapStatus:
    pool = account.pool
    kept = None
    if pool is not None and pool.is_known:
        kept = account.reserved - account.suspense - account.relief
    return CapStatus(
        cap=account.cap,
        limit=account.cap.limit,
        posted=account.posted,
        reserved=account.reserved,
        suspense=account.suspense,
        window_start_ms=account.slot_ms,
        resets_at_ms=account.resets_at_ms(now_ms),
        overrun=account.overrun,
        allowed=account.allowed if account.is_paced else None,
        kept=kept,
        calls=0 if pool is None or kept is None else len(pool),
        slots=_slots(account),
    )


def _slots(account: Account) -> tuple[tuple[int, int], ...]:
    """What was posted in which part of a rolling window."""
    if account.cap.window.kind is not WindowKind.ROLLING:
        return ()
    found = ((at, each.posted) for at, each in account.slots.items() if at >= account.oldest_ms)
    return tuple(sorted(each for each in found if each[1]))


def risk_of(cap: Cap, budget: Budget) -> str | None:
    """Which risk is taken with one cap; None: none. A request is one request, whatever it costs."""
    is_foreseen = cap.unit is not Unit.REQUESTS and cap.limit is not None
    return budget.risk if is_foreseen and budget.risk in PRESETS else None


def compare(account: Account, fresh: Account, since_ms: int = 0) -> list[Discrepancy]:
    """Where an account's stored slots, from `since_ms` on, differ from recomputed ones."""
    found = []
    for slot_ms in sorted(account.slots.keys() | fresh.slots.keys()):
        stored, right = account.slots.get(slot_ms), fresh.slots.get(slot_ms)
        if slot_ms < since_ms or (slot_ms < account.oldest_ms and stored is None):
            continue  # it stopped counting and was forgotten
        for what in ("posted", "reserved", "suspense"):
            have, should = getattr(stored, what, 0), getattr(right, what, 0)
            if have != should:
                found.append(
                    Discrepancy(
                        budget=account.budget,
                        cap=str(account.cap),
                        unit=account.cap.unit,
                        window_start_ms=slot_ms,
                        what=what,
                        stored=have,
                        recomputed=should,
                    )
                )
    return found


def changes_at_ms(account: Account) -> int | None:
    """When an account's sums or window change by time alone; it has been looked at. None: never."""
    if account.is_paced:
        return account.looked_ms + 1
    window = account.cap.window
    if window.kind is WindowKind.TOTAL:
        return None
    if window.kind is WindowKind.CALENDAR:
        return window.resets_at_ms(account.looked_ms)
    leaves_ms = account.oldest_ms + window.bucket_ms + window.span_ms
    return min(account.slot_ms + window.bucket_ms, leaves_ms)


def tenant_statuses(
    waiting: Iterable[tuple[str, int]], served: Iterable[tuple[str, int]],
    weight: Callable[[str], float],
) -> list[TenantStatus]:  # fmt: skip
    """How tenants are doing, from what each of their lanes, and of their places, has."""
    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for tenant, count in waiting:
        counts[tenant] += count
    for tenant, amount in served:
        sums[tenant] += amount
    found = [
        TenantStatus(each, counts[each], sums[each], weight(each))
        for each in counts.keys() | sums.keys()
        if counts[each] or sums[each]
    ]
    return sorted(found, key=lambda each: (-each.served_nusd, -each.waiting, each.tenant))


def check_childless(name: str, children: Iterable[str]) -> None:
    """A budget that is removed takes nobody else's limit away. Raises `ConfigError`."""
    found = sorted(children)
    if found:
        more = f" and {len(found) - MOST_SHOWN:,} more" if len(found) > MOST_SHOWN else ""
        shown = ", ".join(map(repr, found[:MOST_SHOWN]))
        raise ConfigError(
            "budget",
            f"{name!r} is the parent of {shown}{more}, which would lose its limit; nothing was "
            "changed. Remove these first, or define them with another parent",
        )


class Stood:
    """Puts `Store.standing` together, from what a store knows of its lanes."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._found: dict[tuple[RequestState, int, str, str], Standing] = {}

    def wait(
        self, priority: int, requests: int, oldest_at_ms: int | None, lack: Shortfall | None,
        shut_since_ms: int,
    ) -> None:  # fmt: skip
        """So many wait in a lane, which is shut if something lacks."""
        oldest_at_ms = self._now_ms if oldest_at_ms is None else oldest_at_ms
        if lack is None:
            self._add(RequestState.QUEUED, priority, "", "", requests, oldest_at_ms)
        else:
            self._add(
                RequestState.PARKED, priority, lack.reason.value, lack.budget, requests,
                oldest_at_ms, shut_since_ms, lack,
            )  # fmt: skip

    def later(self, priority: int, requests: int, oldest_at_ms: int) -> None:
        """So many were tried, and wait for another attempt."""
        self._add(RequestState.QUEUED, priority, RETRY_LATER, "", requests, oldest_at_ms)

    def run(self, priority: int, requests: int, oldest_at_ms: int) -> None:
        """So many are under way."""
        self._add(RequestState.RUNNING, priority, "", "", requests, oldest_at_ms)

    def _add(
        self, state: RequestState, priority: int, reason: str, budget: str, requests: int,
        oldest_at_ms: int, since_ms: int = 0, lack: Shortfall | None = None,
    ) -> None:  # fmt: skip
        key = (state, priority, reason, budget)
        other = self._found.get(key)
        if other is not None:
            requests += other.requests
            oldest_at_ms = min(oldest_at_ms, other.oldest_at_ms)
            if other.since_ms <= since_ms:
                since_ms, lack = other.since_ms, other.lack
        self._found[key] = Standing(*key, requests, oldest_at_ms, since_ms, lack)

    def found(self) -> list[Standing]:
        """All of it: what runs, then what waits, the most urgent first."""
        order = [RequestState.RUNNING, RequestState.QUEUED, RequestState.PARKED]
        return sorted(
            self._found.values(),
            key=lambda each: (order.index(each.state), each.priority, each.reason, each.budget),
        )


def resolved_by_hand(unknown: Unknown, nusd: int, how: str) -> Settlement:
    """What settles an unknown outcome as a person says; the request itself stays as it is.

    Args:
        unknown: It.
        nusd: What it cost; 0: it was never billed.
        how: By which way they said so.
    """
    return Settlement(
        unknown.id, unknown.request_id, Outcome.POST if nusd else Outcome.VOID, RequestState.FAILED,
        nusd, unknown.ceiling_tokens if nusd else 0, is_assumed=True,
        why=f"{unknown.why or 'outcome unknown'}; {how}",
    )  # fmt: skip
