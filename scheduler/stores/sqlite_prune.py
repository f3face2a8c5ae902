"""Forgetting old requests in a SQLite file without changing a balance.

What their attempts cost is folded into sums by minute, budgets, model, job and the
slots it counted in, so that every balance can still be recomputed from what is there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from scheduler.stores.base import Archive, Finished
from scheduler.stores.sqlite_books import MINUTE_MS, decode_budgets
from scheduler.stores.sqlite_turn import Transactions, decode_finished


def prune(
    db: sqlite3.Connection,
    transactions: Transactions,
    before_ms: int,
    now_ms: int,
    undelivered: bool,
    limit: int,
    archive: Archive | None,
) -> list[Finished]:
    """`Store.prune`; one page is one transaction."""
    found = _old(db, before_ms, undelivered, limit)
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
    else:  # the last page: what belongs to no request any more
        _drop_old_slots(db, transactions, min(before_ms, now_ms), now_ms)
        db.execute(
            "DELETE FROM lanes WHERE worker_id NOT IN (SELECT id FROM workers)"
            " AND id NOT IN (SELECT lane_id FROM requests)"
        )
    return found


def _old(db: sqlite3.Connection, before_ms: int, undelivered: bool, limit: int) -> list[Finished]:
    only = "" if undelivered else " AND r.is_delivered"
    rows = db.execute(
        "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response"
        " FROM requests r LEFT JOIN responses a ON a.request_id = r.id"
        " WHERE r.state IN ('succeeded', 'failed', 'cancelled', 'expired')"
        f" AND coalesce(r.ended_at_ms, r.submitted_at_ms) < ?{only}"
        " AND NOT EXISTS (SELECT 1 FROM reservations h WHERE h.request_id = r.id"
        "  AND (h.state IN ('pending', 'suspense') OR h.settled_at_ms >= ?"
        # Its own answer may still come, and correct what was assumed.
        "   OR h.is_assumed AND h.worker_id IN (SELECT id FROM workers)))"
        # The newest one of each kind stays: its id must not be given again.
        " AND r.id < (SELECT max(id) FROM requests)"
        " AND coalesce(r.reservation_id, 0) < (SELECT coalesce(max(id), 1) FROM reservations)"
        " ORDER BY r.id LIMIT ?",
        (before_ms, before_ms, limit),
    )
    return [decode_finished(row) for row in rows]


def _fold(db: sqlite3.Connection, transactions: Transactions, ids: str) -> None:
    """Add what these requests' attempts posted to the sums."""
    sums: dict[tuple[int, str, str, int, str], list[int]] = {}
    for budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd in db.execute(
        "SELECT budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd FROM reservations"
        " WHERE state = 'posted' AND request_id IN (SELECT value FROM json_each(?))",
        (ids,),
    ):
        slots = json.dumps(transactions.slots_of(db, decode_budgets(budgets), made_at_ms))
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


def _drop_old_slots(
    db: sqlite3.Connection, transactions: Transactions, before_ms: int, now_ms: int
) -> None:
    """Drop balances of slots that stopped counting and hold nothing open."""
    oldest: Sequence[tuple[int, int]] = transactions.oldest_counting(db, now_ms)
    db.executemany(
        "DELETE FROM balances WHERE account_id = ? AND slot_ms < ? AND reserved = 0",
        [(account_id, min(slot_ms, before_ms)) for account_id, slot_ms in oldest],
    )
