"""What people and programs ask of a SQLite store; nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.errors import ConfigError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.ledger.account import Account, Tally
from scheduler.request import Request, RequestState
from scheduler.stats import Audit, Counts, Discrepancy, QueueRow, SpendRow
from scheduler.stores.base import Finished, Known, Picture, Unknown
from scheduler.stores.sql.codec import decode_budgets, decode_request, decode_shortfall
from scheduler.stores.sql.rows import DELAYED, decode_finished, read_by_keys, state_of
from scheduler.stores.sql.turn import Transactions
from scheduler.stores.views import compare

logger = logger_of("scheduler.store")

_HEADINGS = {
    "model": "h.model",
    "job": "(SELECT name FROM jobs WHERE id = h.job_id)",
    "budget": "h.budgets",
}


def counts(db: Any, job: str | None) -> Counts:
    """`Store.counts`."""
    where, values = ("", ()) if job is None else (" WHERE j.name = ?", (job,))
    states: dict[str, int] = dict(
        db.execute(
            "SELECT t.state, sum(t.count) FROM tallies t JOIN jobs j ON j.id = t.job_id"
            f"{where} GROUP BY t.state",
            values,
        )
    )
    reasons: dict[str, int] = {}
    for text, waiting in _shut_lanes(db, job):
        reason = decode_shortfall(text).reason.value
        reasons[reason] = reasons.get(reason, 0) + waiting
    parked = sum(reasons.values())
    states["queued"] = max(0, states.get("queued", 0) - parked)
    return Counts(**states, parked=parked, parked_by_reason=reasons)


def _shut_lanes(db: Any, job: str | None) -> Any:
    """Why lanes are shut, and how many wait in each."""
    if job is None:
        return db.execute(
            "SELECT shortfall, waiting FROM lanes WHERE shortfall IS NOT NULL AND waiting > 0"
        ).fetchall()
    return db.execute(
        "SELECT l.shortfall, count(*) FROM lanes l"
        " JOIN requests r ON r.lane_id = l.id AND r.state = 'queued'"
        " JOIN jobs j ON j.id = r.job_id"
        " WHERE l.shortfall IS NOT NULL AND l.waiting > 0 AND j.name = ? GROUP BY l.id",
        (job,),
    ).fetchall()


def queue(
    db: Any,
    states: Iterable[RequestState],
    now_ms: int,
    job: str | None,
    limit: int,
    after_id: int,
) -> list[QueueRow]:
    """`Store.queue`."""
    wanted = {state.value for state in states}
    clauses = []
    if wanted & {"queued", "parked"}:
        shut = {frozenset({"queued"}): " AND l.shortfall IS NULL",
                frozenset({"parked"}): " AND l.shortfall IS NOT NULL"}.get(
            frozenset(wanted & {"queued", "parked"}), "")  # fmt: skip
        clauses.append(f"(r.state = 'queued'{shut})")
        if "queued" in wanted:
            clauses.append("r.state = 'delayed'")
    ends = sorted(wanted - {"queued", "parked"})
    if ends:
        clauses.append(f"r.state IN ({', '.join('?' * len(ends))})")
    rows = db.execute(
        "SELECT r.id, r.key, j.name, r.state, r.model, l.provider, l.priority, r.submitted_at_ms,"
        " r.attempts, r.ceiling_nusd, r.cost_nusd, r.parked_ms, r.parked_mark_ms, l.shortfall,"
        " l.shut_since_ms, l.parked_total_ms, r.payload, r.error"
        " FROM requests r JOIN lanes l ON l.id = r.lane_id JOIN jobs j ON j.id = r.job_id"
        f" WHERE r.id > ? AND ({' OR '.join(clauses)})"
        f"{'' if job is None else ' AND j.name = ?'} ORDER BY r.id LIMIT ?",
        (after_id, *ends, *(() if job is None else (job,)), limit),
    )
    return [_queue_row(row, now_ms) for row in rows]


def _queue_row(row: tuple[object, ...], now_ms: int) -> QueueRow:
    (id_, key, job, state, model, provider, priority, submitted_at_ms, attempts, ceiling_nusd,
     cost_nusd, parked_ms, mark_ms, lack, shut_since_ms, parked_total_ms, payload, error) = row  # fmt: skip
    shortfall = None
    if state == "queued":
        clock_ms = parked_total_ms
        if lack is not None:
            shortfall = decode_shortfall(str(lack))
            clock_ms += max(0, now_ms - shut_since_ms)  # type: ignore[operator]
            state = "parked"
        parked_ms += max(0, clock_ms - mark_ms)  # type: ignore[operator]
    return QueueRow(
        id=id_, key=key, job=job,  # type: ignore[arg-type]
        state=RequestState("queued" if state == "delayed" else str(state)),
        model=model, provider=provider, priority=priority, submitted_at_ms=submitted_at_ms,  # type: ignore[arg-type]
        attempts=attempts, ceiling_nusd=ceiling_nusd, cost_nusd=cost_nusd, parked_ms=parked_ms,  # type: ignore[arg-type]
        shortfall=shortfall,
        request=None if payload is None else decode_request(str(payload)),
        error=None if error is None else json.loads(str(error)),
    )  # fmt: skip


def spend(db: Any, by: str, since_ms: int) -> list[SpendRow]:
    """`Store.spend`."""
    if by not in _HEADINGS:
        raise ConfigError("by", f"{by!r} is not one of {', '.join(_HEADINGS)}")
    rows: dict[str, list[int]] = {}
    names = dict(db.execute("SELECT id, name FROM budgets"))
    for heading, *numbers in db.execute(
        f"SELECT {_HEADINGS[by]}, sum(h.state <> 'voided'), sum(h.nusd),"
        " sum(CASE WHEN h.state IN ('pending', 'suspense') THEN h.ceiling_nusd ELSE 0 END),"
        " sum(CASE WHEN h.state = 'suspense' THEN h.ceiling_nusd ELSE 0 END), sum(h.tokens)"
        " FROM reservations h WHERE h.made_at_ms >= ? GROUP BY 1"
        f" UNION ALL SELECT {_HEADINGS[by]}, sum(h.attempts), sum(h.nusd), 0, 0, sum(h.tokens)"
        " FROM sums h WHERE h.minute_ms + 60000 > ? GROUP BY 1",
        (since_ms, since_ms),
    ):
        heads = (
            [names.get(each, "?") for each in decode_budgets(heading)]
            if by == "budget"
            else [heading]
        )
        for head in heads:
            total = rows.setdefault(head, [0, 0, 0, 0, 0])
            total[:] = map(sum, zip(total, numbers, strict=True))
    ordered = sorted(rows.items(), key=lambda item: (-item[1][1], item[0]))
    return [SpendRow(name, *numbers) for name, numbers in ordered]


def audit(db: Any, transactions: Transactions, now_ms: int) -> Audit:
    """`Store.audit`; the caller holds a transaction, so that nothing moves meanwhile."""
    stored: list[Account] = []
    for account_id, budget_id, name, cap in db.execute(
        "SELECT a.id, a.budget_id, b.name, a.cap FROM accounts a JOIN budgets b ON b.id = a.budget_id"
    ).fetchall():
        account = Account(account_id, budget_id, name, transactions.cap_of(account_id, cap))
        for slot_ms, *sums in db.execute(
            "SELECT slot_ms, posted, reserved, suspense, overrun FROM balances"
            " WHERE account_id = ?",
            (account.id,),
        ):
            account.slots[slot_ms] = Tally(*sums)
        account.oldest_ms = account.cap.window.oldest_counting_ms(now_ms)
        stored.append(account)
    fresh = [Account(a.id, a.budget_id, a.budget, a.cap) for a in stored]
    reservations = transactions.replay(db, fresh)
    found: list[Discrepancy] = []
    for have, should in zip(stored, fresh, strict=True):
        found += compare(have, should)
    (overruns,) = db.execute(
        "SELECT (SELECT count(*) FROM reservations WHERE state = 'posted' AND nusd > ceiling_nusd)"
        " + (SELECT coalesce(sum(overruns), 0) FROM sums)"
    ).fetchone()
    return Audit(sum(len(a.slots) for a in stored), reservations, tuple(found), overruns)


def finished_page(
    db: Any, job: str, undelivered: bool, after_id: int, limit: int
) -> list[Finished]:
    """A page of `Store.finished`."""
    only = " AND r.is_delivered = 0" if undelivered else ""
    rows = db.execute(
        "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest"
        " FROM requests r LEFT JOIN responses a ON a.request_id = r.id"
        " WHERE r.job_id = (SELECT id FROM jobs WHERE name = ?) AND r.id > ?"
        f" AND r.state IN ('succeeded', 'failed', 'cancelled', 'expired'){only}"
        " AND r.key IS NOT NULL ORDER BY r.id LIMIT ?",
        (job, after_id, limit),
    )
    return [decode_finished(row) for row in rows]


def ended_page(db: Any, job: str, after_id: int, limit: int) -> list[Finished]:
    """A page of `Store.ended`."""
    rows = db.execute(
        "SELECT id, key, state, NULL, cost_nusd, attempts, NULL, digest FROM requests"
        " WHERE job_id = (SELECT id FROM jobs WHERE name = ?) AND id > ?"
        " AND state IN ('succeeded', 'failed', 'cancelled', 'expired')"
        " AND key IS NOT NULL ORDER BY id LIMIT ?",
        (job, after_id, limit),
    )
    return [decode_finished(row) for row in rows]


def jobs(db: Any) -> list[str]:
    """`Store.jobs`."""
    return [name for (name,) in db.execute("SELECT name FROM jobs ORDER BY id")]


def known(db: Any, job: str, keys: Sequence[str]) -> dict[str, Known]:
    """`Store.known`."""
    row = db.execute("SELECT id FROM jobs WHERE name = ?", (job,)).fetchone()
    if row is None:
        return {}
    wanted = [(row[0], key) for key in keys]
    found = read_by_keys(db, "r.key, r.state, r.digest, r.error", wanted)
    return {
        key: Known(state_of(text), digest, None if error is None else json.loads(error))
        for key, text, digest, error in found
    }


def outcomes(db: Any, ids: Sequence[int]) -> list[Finished]:
    """`Store.outcomes`."""
    rows = db.execute(
        "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest"
        " FROM requests r LEFT JOIN responses a ON a.request_id = r.id"
        " WHERE r.id IN (SELECT value FROM json_each(?))"
        " AND r.state IN ('succeeded', 'failed', 'cancelled', 'expired')",
        (json.dumps(list(ids)),),
    )
    return [decode_finished(row) for row in rows]


def pictures(db: Any, ids: Sequence[int]) -> list[Picture]:
    """`Store.pictures`."""
    rows = db.execute(
        "SELECT r.id, r.state, l.shortfall FROM requests r JOIN lanes l ON l.id = r.lane_id"
        " WHERE r.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(ids)),),
    )
    found = []
    for request_id, text, shortfall in rows:
        waits = text == RequestState.QUEUED and shortfall is not None
        lack = decode_shortfall(shortfall) if waits else None
        state = RequestState.QUEUED if text == DELAYED else RequestState(text)
        found.append(Picture(request_id, state if lack is None else RequestState.PARKED, lack))
    return found


_BECAME_UNKNOWN = "coalesce(h.settled_at_ms, h.made_at_ms)"  # as in the index
_UNKNOWN = (
    "SELECT h.id, h.request_id, r.key, j.name, h.model, l.provider, h.made_at_ms,"
    f" {_BECAME_UNKNOWN}, h.ceiling_nusd, h.ceiling_tokens, h.provider_id, h.why, r.payload"
    " FROM reservations h JOIN requests r ON r.id = h.request_id"
    " JOIN lanes l ON l.id = r.lane_id JOIN jobs j ON j.id = r.job_id"
    " WHERE h.state = 'suspense'"
)


def suspended(db: Any, job: str | None, limit: int, after_id: int) -> list[Unknown]:
    """`Store.suspended`."""
    return _read_unknown(db.execute(
        f"{_UNKNOWN} AND h.id > ?{'' if job is None else ' AND j.name = ?'} ORDER BY h.id LIMIT ?",
        (after_id, *(() if job is None else (job,)), limit),
    ))  # fmt: skip


def suspended_since(db: Any, since_ms: int, after_id: int, limit: int) -> list[tuple[int, int]]:
    """`Store.suspended_since`."""
    rows = db.execute(
        f"SELECT {_BECAME_UNKNOWN}, h.id FROM reservations h WHERE h.state = 'suspense'"
        f" AND {_BECAME_UNKNOWN} >= ? AND ({_BECAME_UNKNOWN} > ? OR h.id > ?)"
        f" ORDER BY {_BECAME_UNKNOWN}, h.id LIMIT ?",
        (since_ms, since_ms, after_id, limit),
    )
    return list(rows)


def suspended_of(db: Any, ids: Sequence[int]) -> list[Unknown]:
    """`Store.suspended_of`."""
    return _read_unknown(db.execute(
        f"{_UNKNOWN} AND h.id IN (SELECT value FROM json_each(?)) ORDER BY h.id",
        (json.dumps(list(ids)),),
    ))  # fmt: skip


def _read_unknown(rows: Iterable[tuple[Any, ...]]) -> list[Unknown]:
    found = []
    for *known, payload in rows:
        known.append(_request(payload))
        found.append(Unknown(*known))
    return found


def _request(payload: str | None) -> Request | None:
    """A stored request; None if it is not kept, or damaged: its money is no less unknown."""
    try:
        return None if payload is None else decode_request(payload)
    except StoreError as exc:
        logger.warning("%s", exc)
        return None


def lanes_of(db: Any, worker_id: int, ids: Sequence[int]) -> set[int]:
    """`Store.still_mine`."""
    rows = db.execute(
        "SELECT r.id FROM requests r JOIN lanes l ON l.id = r.lane_id WHERE l.worker_id = ?"
        " AND r.id IN (SELECT value FROM json_each(?))",
        (worker_id, json.dumps(list(ids))),
    )
    return {row[0] for row in rows}
