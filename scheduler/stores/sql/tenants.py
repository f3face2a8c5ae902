"""What the processes on one store know together of who was served how much: see `admission.fairness`.

Tenants that share a place are a row each, with one for its clock, and one for the clock of all providers.
They are read in a transaction that looks at them, into what this process remembers of them, and
written in the same one. What a process remembers only says where to look first: of who starts earlier
than it knew, since another process gave something back to them, it hears (`changes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial

from scheduler.admission.fairness import (
    ALL,
    SCALE,
    SPAN_MS,
    Clock,
    Place,
    Tenant,
    TenantKey,
    tenant_key,
    weight_of,
)
from scheduler.ledger.account import ReservationState
from scheduler.stats import TenantStatus
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert
from scheduler.stores.sql.rows import Row
from scheduler.stores.sql.sheet import Sheet
from scheduler.stores.views import tenant_statuses

EVERY = 256  # transactions between two times that old rows are dropped
_KEY = {"provider": TEXT, "priority": INT, "is_clock": INT, "tenant": TEXT}
_TENANTS = Insert(
    "tenants", {**_KEY, "state": TEXT, "changed_at_ms": INT},
    "ON CONFLICT (provider, priority, is_clock, tenant) DO UPDATE SET state = excluded.state,"
    " changed_at_ms = excluded.changed_at_ms",
)  # fmt: skip


def know_tenants(sheet: Sheet, keys: Iterable[TenantKey]) -> None:
    """Read what is stored of these tenants, and of the clocks they go by, unless that was done."""
    shares, db = sheet.books.shares, sheet.db
    if shares.fairness is None:
        return
    tenants = {key for key in keys if key not in sheet.tenants and "\0" not in key.provider}
    if not tenants:
        return
    sheet.tenants |= tenants
    sheet.save = partial(save_tenants, sheet)
    places: set[Place] = set()
    for key in tenants:
        places |= {(key.provider, key.priority), (ALL, key.priority)}
    places -= sheet.clocks
    sheet.clocks |= places
    for key in tenants:
        _take(shares.of(key), "[0, 0, 0, 0, 0]")
    for place in places:
        _set(shares.clock(*place), 0)
    wanted = [(key.provider, key.priority, 0, key.tenant) for key in tenants]
    wanted += [(*place, 1, "") for place in places]
    for provider, priority, is_clock, tenant, state in db.read(
        "SELECT t.provider, t.priority, t.is_clock, t.tenant, t.state"
        f" FROM {db.dialect.rows('k', _KEY)} CROSS JOIN tenants t"
        " WHERE t.provider = k.provider AND t.priority = k.priority AND t.is_clock = k.is_clock"
        " AND t.tenant = k.tenant",
        *db.dialect.row_values(wanted),
    ):
        if is_clock:
            _set(shares.clock(provider, priority), json.loads(state))
        else:
            _take(shares.of(TenantKey(provider, priority, tenant)), state)


def _take(tenant: Tenant, state: str) -> None:
    tenant.at, tenant.back, tenant.hour_ms, *served = json.loads(state)
    tenant.served = (served[0], served[1])
    tenant.is_changed = False


def _set(clock: Clock, now: int) -> None:
    clock.now, clock.is_changed = now, False


def tenant_of(sheet: Sheet, row: Row) -> TenantKey | None:
    """Whose a request is; its lane is known, or its owner is."""
    lane, owner = sheet.books.lanes.by_id(row.lane_id), sheet.owners.get(row.lane_id)
    if lane is not None:
        return tenant_key(lane.key)
    return None if owner is None else owner.tenant


def give_back(sheet: Sheet, row: Row, new: ReservationState, size: int, cost: int) -> None:
    """A call under way has ended: what it cost less is its tenant's."""
    key = tenant_of(sheet, row) if new.is_end else None
    if key is not None:
        know_tenants(sheet, [key])
        sheet.books.shares.of(key).settle(size, cost, sheet.now_ms)
        sheet.books.lanes.open.moved_up(key)
        sheet.news.tenants.add(key)


def hear_of(sheet: Sheet, told: Iterable[TenantKey], *, is_all: bool) -> None:
    """Others gave something back to these tenants: those that wait here may start earlier."""
    book = sheet.books.lanes.open
    keys = list(book.tenants()) if is_all else [key for key in told if book.has(key)]
    know_tenants(sheet, keys)
    for key in keys:
        book.moved_up(key)


def save_tenants(sheet: Sheet) -> None:
    """Write those that were changed."""
    shares, rows = sheet.books.shares, []
    for key in sheet.tenants:
        tenant = shares.of(key)
        if tenant.is_changed:
            tenant.is_changed = False
            state = [tenant.at, tenant.back, tenant.hour_ms, *tenant.served, tenant.units]
            rows.append(
                (key.provider, key.priority, 0, key.tenant, json.dumps(state), sheet.now_ms)
            )
    for provider, priority in sheet.clocks:
        clock = shares.clock(provider, priority)
        if clock.is_changed:
            clock.is_changed = False
            rows.append((provider, priority, 1, "", json.dumps(clock.now), sheet.now_ms))
    if not rows:
        return
    sheet.db.write_many(_TENANTS, rows)
    sheet.books.saved_tenants += 1
    if sheet.books.saved_tenants % EVERY == 0:
        sheet.db.write(
            "DELETE FROM tenants WHERE is_clock = 0 AND changed_at_ms < ?",
            sheet.now_ms - 2 * SPAN_MS,
        )


def statuses(db: Connection, now_ms: int) -> list[TenantStatus]:
    """`Store.tenants`."""
    served: list[tuple[str, int]] = []
    weights: dict[str, float] = {}
    for name, state in db.read("SELECT tenant, state FROM tenants WHERE is_clock = 0"):
        tenant = Tenant(Clock(), 1)
        _take(tenant, state)
        served.append((name, sum(tenant.lately(now_ms))))
        weights[name] = weight_of((*json.loads(state), SCALE)[5])
    if not served:
        return []
    waiting = db.read("SELECT tenant, sum(waiting) FROM lanes WHERE waiting > 0 GROUP BY tenant")
    return tenant_statuses(
        [(name, int(count)) for name, count in waiting], served, lambda name: weights.get(name, 1.0)
    )
