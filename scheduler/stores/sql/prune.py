"""Forgetting old requests in a SQLite file without changing a balance.

What their attempts cost is folded into sums by minute, budgets, model, job and the
slots it counted in, so that every balance can still be recomputed from what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.stores.base import Archive, Finished
from scheduler.stores.sql.codec import decode_budgets
from scheduler.stores.sql.connection import Connection, Row
from scheduler.stores.sql.dialect import INT, TEXT, Delete, Insert
from scheduler.stores.sql.listing import ENDED
from scheduler.stores.sql.rows import DELAYED, decode_finished
from scheduler.stores.sql.spent import MINUTE_MS
from scheduler.stores.sql.turn import Transactions

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
    db: Connection,
    transactions: Transactions,
    sweep: Sweep,
    before_ms: int,
    now_ms: int,
    undelivered: bool,
    limit: int,
    archive: Archive | None,
) -> list[Finished]:
    """`Store.prune`; one page is one transaction."""
    place = sweep.resume(before_ms, undelivered)
    rows, place = _old(db, place, before_ms, undelivered, limit)
    found = [decode_finished(row) for row in rows]
    if found:
        if archive is not None:
            archive(found)
        ids = [each.id for each in found]
        _fold(db, transactions, ids)
        for table, column in (
            ("reservations", "request_id"),
            ("responses", "request_id"),
            ("requests", "id"),
        ):
            among = f"{column} {db.dialect.among}"
            db.write(f"DELETE FROM {table} WHERE {among}", db.dialect.a_list(ids))
        # A page that is not full is the end of this round; the next one looks at all again.
        sweep.what, sweep.place = sweep.what if len(found) == limit else None, place
    else:  # the last page: what belongs to no request any more
        _drop_old_slots(db, transactions, min(before_ms, now_ms), now_ms)
        db.write(UNUSED_LANES)
        sweep.what = None
    return found


UNUSED_LANES = (
    "DELETE FROM lanes WHERE worker_id <> 0 AND worker_id NOT IN (SELECT id FROM workers)"
    f" AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.lane_id = lanes.id AND r.{ENDED})"
    " AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.lane_id = lanes.id AND r.state = 'queued')"
    f" AND id NOT IN (SELECT lane_id FROM requests WHERE state = '{DELAYED}')"
    " AND id NOT IN (SELECT r.lane_id FROM reservations h JOIN requests r ON r.id = h.request_id"
    "  WHERE h.state = 'pending')"
)
"""Lanes of processes that have gone, in which no request is left: asked by index, lane by lane."""

_ENDED_AT = "r.ended_at_ms"  # as in the index
_OLD = (
    "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest,"
    f" l.id, {_ENDED_AT}"
    " FROM lanes l CROSS JOIN requests r LEFT JOIN responses a ON a.request_id = r.id"
    f" WHERE r.lane_id = l.id AND r.{ENDED} AND {{place}} AND {_ENDED_AT} < ?"
    " AND NOT EXISTS (SELECT 1 FROM reservations h WHERE h.request_id = r.id"
    "  AND (h.state IN ('pending', 'suspense') OR h.settled_at_ms >= ?"
    # Its own answer may still come, and correct what was assumed.
    "   OR h.is_assumed <> 0 AND h.worker_id IN (SELECT id FROM workers)))"
    # The newest one of each kind stays: its id must not be given again.
    " AND r.id < (SELECT max(id) FROM requests)"
    " AND coalesce(r.reservation_id, 0) < (SELECT coalesce(max(id), 1) FROM reservations)"
    f" ORDER BY l.id, {_ENDED_AT}, r.id LIMIT ?"
)
OLD_HERE = _OLD.format(
    place=f"l.id = ? AND r.is_delivered = ? AND {_ENDED_AT} >= ? AND ({_ENDED_AT} > ? OR r.id > ?)"
)
"""What may be forgotten of the lane in which the last page ended, from there on."""

OLD_BEHIND = _OLD.format(place="l.id > ? AND r.is_delivered = ?")
"""What may be forgotten of the lanes behind that one."""


def _old(
    db: Connection, place: Place, before_ms: int, undelivered: bool, limit: int
) -> tuple[list[Row], Place]:
    """The next page of what may be forgotten, lane by lane, and where it ends."""
    rows: list[Row] = []
    while True:
        at_ms, which = place.ended_at_ms, (place.lane_id, place.delivered)
        here = (*which, at_ms, at_ms, place.id, before_ms, before_ms)
        rows += db.read(OLD_HERE, *here, limit)
        if len(rows) < limit:
            rows += db.read(OLD_BEHIND, *which, before_ms, before_ms, limit - len(rows))
        if rows:
            *_, lane_id, ended_at_ms = rows[-1]
            place = Place(place.delivered, lane_id, ended_at_ms, rows[-1][0])
            return [row[:-2] for row in rows], place
        if not (place.delivered and undelivered):
            return [], place
        place = Place(delivered=0)


def _fold(db: Connection, transactions: Transactions, ids: Sequence[int]) -> None:
    """Add what these requests' attempts posted to the sums."""
    sums: dict[tuple[int, str, str, int, str], list[int]] = {}
    for budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd in db.read(
        "SELECT budgets, made_at_ms, model, job_id, nusd, tokens, ceiling_nusd FROM reservations"
        f" WHERE state = 'posted' AND request_id {db.dialect.among}",
        db.dialect.a_list(ids),
    ):
        slots = json.dumps(_slots_of(db, transactions, decode_budgets(budgets), made_at_ms))
        key = (made_at_ms - made_at_ms % MINUTE_MS, budgets, model, job_id, slots)
        total = sums.setdefault(key, [0, 0, 0, 0])
        for position, amount in enumerate((1, nusd, tokens, int(nusd > ceiling_nusd))):
            total[position] += amount
    db.write_many(_ADD, [(*key, *total) for key, total in sums.items()])


def _slots_of(
    db: Connection, transactions: Transactions, budgets: tuple[int, ...], made_at_ms: int
) -> dict[int, int]:
    """The slot in which each of these budgets' accounts counts a reservation."""
    return {
        account_id: transactions.cap_of(account_id, cap).window.slot_start_ms(made_at_ms)
        for budget_id in budgets
        for account_id, cap in db.read(
            "SELECT id, cap FROM accounts WHERE budget_id = ? ORDER BY id", budget_id
        )
    }


_ADD = Insert(
    "sums",
    {
        "minute_ms": INT, "budgets": TEXT, "model": TEXT, "job_id": INT, "slots": TEXT,
        "attempts": INT, "nusd": INT, "tokens": INT, "overruns": INT,
    },
    "ON CONFLICT (minute_ms, budgets, model, job_id, slots) DO UPDATE SET"
    " attempts = sums.attempts + excluded.attempts, nusd = sums.nusd + excluded.nusd,"
    " tokens = sums.tokens + excluded.tokens, overruns = sums.overruns + excluded.overruns",
)  # fmt: skip
_DROP = Delete(
    "balances",
    "account_id = :account_id AND slot_ms < :slot_ms AND reserved = 0",
    {"account_id": INT, "slot_ms": INT},
)


def _drop_old_slots(
    db: Connection, transactions: Transactions, before_ms: int, now_ms: int
) -> None:
    """Drop balances of slots that stopped counting and hold nothing open."""
    oldest = [
        (account_id, transactions.cap_of(account_id, cap).window.oldest_counting_ms(now_ms))
        for account_id, cap in db.read("SELECT id, cap FROM accounts")
    ]
    db.write_many(_DROP, [(account_id, min(slot_ms, before_ms)) for account_id, slot_ms in oldest])
