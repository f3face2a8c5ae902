"""Forgetting old requests in a SQLite file without changing a balance.

What their attempts cost is folded into sums by minute, budgets, model, job and the
slots it counted in, so that every balance can still be recomputed from what is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scheduler.stores.base import Archive, Finished
from scheduler.stores.sql.books import MINUTE_MS
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.rows import decode_finished
from scheduler.stores.sql.turn import Transactions
from scheduler.stores.sql.upgrade import add_indexes

ENDED = "state IN ('succeeded', 'failed', 'cancelled', 'expired')"  # as in the index
_NEVER = -(1 << 62)


class Place(NamedTuple):
    """Where a page goes on: behind this request, of those delivered or not, in this lane."""

    delivered: int = 1
    lane_id: int = 0
    ended_at_ms: int = _NEVER
    id: int = 0


@dataclass(slots=True)
class Sweep:
    """How far one round of pages has come, so that what has to stay is read once in it."""

    what: tuple[int, bool] | None = None
    place: Place = field(default_factory=Place)

    def resume(self, before_ms: int, undelivered: bool) -> Place:
        """Where to go on; at the beginning, if something else was asked for before."""
        if self.what != (before_ms, undelivered):
            self.what, self.place = (before_ms, undelivered), Place()
        return self.place


def prune(
    db: Any,
    transactions: Transactions,
    sweep: Sweep,
    before_ms: int,
    now_ms: int,
    undelivered: bool,
    limit: int,
    archive: Archive | None,
) -> list[Finished]:
    """`Store.prune`; one page is one transaction."""
    add_indexes(db)
    place = sweep.resume(before_ms, undelivered)
    rows, place = _old(db, place, before_ms, undelivered, limit)
    found = [decode_finished(row) for row in rows]
    if found:
        if archive is not None:
            archive(found)
        ids = json.dumps([each.id for each in found])
        _fold(db, transactions, ids)
        for statement in (
            "DELETE FROM reservations WHERE request_id IN (SELECT value FROM json_each(?))",
            "DELETE FROM responses WHERE request_id IN (SELECT value FROM json_each(?))",
            "DELETE FROM requests WHERE id IN (SELECT value FROM json_each(?))",
        ):
            db.execute(statement, (ids,))
        # A page that is not full is the end of this round; the next one looks at all again.
        sweep.what, sweep.place = sweep.what if len(found) == limit else None, place
    else:  # the last page: what belongs to no request any more
        _drop_old_slots(db, transactions, min(before_ms, now_ms), now_ms)
        db.execute(UNUSED_LANES)
        sweep.what = None
    return found


UNUSED_LANES = (
    "DELETE FROM lanes WHERE worker_id <> 0 AND worker_id NOT IN (SELECT id FROM workers)"
    f" AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.lane_id = lanes.id AND r.{ENDED})"
    " AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.lane_id = lanes.id AND r.state = 'queued')"
    " AND id NOT IN (SELECT lane_id FROM requests WHERE state = 'delayed')"
    " AND id NOT IN (SELECT lane_id FROM requests WHERE state = 'running')"
)
"""Lanes of processes that have gone, in which no request is left: asked by index, lane by lane."""

OLD = (
    "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest,"
    " l.id, coalesce(r.ended_at_ms, r.submitted_at_ms)"
    " FROM lanes l CROSS JOIN requests r ON r.lane_id = l.id"
    " LEFT JOIN responses a ON a.request_id = r.id"
    f" WHERE r.{ENDED} AND l.id >= :lane_id AND r.is_delivered = :delivered"
    " AND coalesce(r.ended_at_ms, r.submitted_at_ms) < :before_ms"
    " AND (l.id > :lane_id OR coalesce(r.ended_at_ms, r.submitted_at_ms) > :ended_at_ms"
    "  OR coalesce(r.ended_at_ms, r.submitted_at_ms) = :ended_at_ms AND r.id > :id)"
    " AND NOT EXISTS (SELECT 1 FROM reservations h WHERE h.request_id = r.id"
    "  AND (h.state IN ('pending', 'suspense') OR h.settled_at_ms >= :before_ms"
    # Its own answer may still come, and correct what was assumed.
    "   OR h.is_assumed AND h.worker_id IN (SELECT id FROM workers)))"
    # The newest one of each kind stays: its id must not be given again.
    " AND r.id < (SELECT max(id) FROM requests)"
    " AND coalesce(r.reservation_id, 0) < (SELECT coalesce(max(id), 1) FROM reservations)"
    " ORDER BY l.id, coalesce(r.ended_at_ms, r.submitted_at_ms), r.id LIMIT :limit"
)


def _old(
    db: Any, place: Place, before_ms: int, undelivered: bool, limit: int
) -> tuple[list[tuple[Any, ...]], Place]:
    """The next page of what may be forgotten, lane by lane, and where it ends."""
    while True:
        asked = place._asdict() | {"before_ms": before_ms, "limit": limit}
        rows = db.execute(OLD, asked).fetchall()
        if rows:
            *_, lane_id, ended_at_ms = rows[-1]
            place = Place(place.delivered, lane_id, ended_at_ms, rows[-1][0])
            return [row[:-2] for row in rows], place
        if not (place.delivered and undelivered):
            return [], place
        place = Place(delivered=0)


def _fold(db: Any, transactions: Transactions, ids: str) -> None:
    """Add what these requests' attempts posted to the sums."""
    sums: dict[tuple[int, str, str, int, str], list[int]] = {}
    for budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd in db.execute(
        "SELECT budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd FROM reservations"
        " WHERE state = 'posted' AND request_id IN (SELECT value FROM json_each(?))",
        (ids,),
    ):
        slots = json.dumps(_slots_of(db, transactions, decode_budgets(budgets), made_at_ms))
        key = (made_at_ms - made_at_ms % MINUTE_MS, budgets, model, job_id, slots)
        total = sums.setdefault(key, [0, 0, 0, 0])
        for position, amount in enumerate((1, nusd, tokens, int(nusd > ceiling_nusd))):
            total[position] += amount
    db.executemany(
        "INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " attempts = attempts + excluded.attempts, nusd = nusd + excluded.nusd,"
        " tokens = tokens + excluded.tokens, overruns = overruns + excluded.overruns",
        [(*key, *total) for key, total in sums.items()],
    )


def _slots_of(
    db: Any, transactions: Transactions, budgets: tuple[int, ...], made_at_ms: int
) -> dict[int, int]:
    """The slot in which each of these budgets' accounts counts a reservation."""
    return {
        account_id: transactions.cap_of(account_id, cap).window.slot_start_ms(made_at_ms)
        for budget_id in budgets
        for account_id, cap in db.execute(
            "SELECT id, cap FROM accounts WHERE budget_id = ? ORDER BY id", (budget_id,)
        )
    }


def _drop_old_slots(db: Any, transactions: Transactions, before_ms: int, now_ms: int) -> None:
    """Drop balances of slots that stopped counting and hold nothing open."""
    oldest = [
        (account_id, transactions.cap_of(account_id, cap).window.oldest_counting_ms(now_ms))
        for account_id, cap in db.execute("SELECT id, cap FROM accounts").fetchall()
    ]
    db.executemany(
        "DELETE FROM balances WHERE account_id = ? AND slot_ms < ? AND reserved = 0",
        [(account_id, min(slot_ms, before_ms)) for account_id, slot_ms in oldest],
    )
