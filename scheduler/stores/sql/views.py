"""What people and programs ask of a store; nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from scheduler.errors import StoreError
from scheduler.guards.plain import logger_of
from scheduler.ledger.account import Account, Tally
from scheduler.request import Request, RequestState
from scheduler.stats import Audit, Counts, Discrepancy, Past, SpendRow
from scheduler.stores.base import Finished, Known, Picture, Unknown
from scheduler.stores.sql import spent
from scheduler.stores.sql.codec import decode_request, decode_response, decode_shortfall
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.listing import ENDED
from scheduler.stores.sql.recount import replay
from scheduler.stores.sql.rows import (
    DELAYED,
    decode_finished,
    read_by_keys,
    read_finished,
    state_of,
)
from scheduler.stores.sql.sums import discrepancies as wrong_sums
from scheduler.stores.sql.turn import Transactions
from scheduler.stores.tagged import name_of, tag_of
from scheduler.stores.views import compare

logger = logger_of("scheduler.store")

_HEADINGS = {"model": "model", "job": "job_id", "budget": "budget"}


def counts(db: Connection, job: str | None) -> Counts:
    """`Store.counts`."""
    where, values = ("", ()) if job is None else (" WHERE j.name = ?", (job,))
    states: dict[str, int] = dict(
        db.read(
            "SELECT t.state, sum(t.count) FROM tallies t JOIN jobs j ON j.id = t.job_id"
            f"{where} GROUP BY t.state",
            *values,
        )
    )
    reasons: dict[str, int] = {}
    for text, waiting in _shut_lanes(db, job):
        reason = decode_shortfall(text).reason.value
        reasons[reason] = reasons.get(reason, 0) + waiting
    parked = sum(reasons.values())
    states["queued"] = max(0, states.get("queued", 0) - parked)
    return Counts(**states, parked=parked, parked_by_reason=reasons)


def _shut_lanes(db: Connection, job: str | None) -> list[tuple[str, int]]:
    """Why lanes are shut, and how many wait in each."""
    if job is None:
        return db.read(
            "SELECT shortfall, waiting FROM lanes WHERE shortfall IS NOT NULL AND waiting > 0"
        )
    return db.read(
        # From the job's own, however many of others' wait in these lanes: a cross join is read in that order.
        "SELECT l.shortfall, count(*) FROM requests r CROSS JOIN lanes l"
        " WHERE r.job_id = (SELECT id FROM jobs WHERE name = ?) AND r.ended_at_ms IS NULL"
        " AND r.state = 'queued' AND l.id = r.lane_id AND l.shortfall IS NOT NULL AND l.waiting > 0"
        " GROUP BY l.id, l.shortfall",
        job,
    )


def spend(db: Connection, by: str, since_ms: int) -> list[SpendRow]:
    """`Store.spend`."""
    rows: dict[str, list[int]] = {}
    for name, numbers in _parts(db, by, since_ms):
        total = rows.setdefault(name, [0, 0, 0, 0, 0])
        total[:] = map(sum, zip(total, numbers, strict=True))
    ordered = sorted(rows.items(), key=lambda item: (-item[1][1], item[0]))
    return [SpendRow(name, *numbers) for name, numbers in ordered]


def _parts(db: Connection, by: str, since_ms: int) -> Iterator[tuple[str, Sequence[int]]]:
    """What is summed under each heading."""
    if by not in _HEADINGS:
        tag = tag_of(by)
        for label, numbers in spent.tagged(db, tag, since_ms):
            yield name_of(label, tag), numbers
        return
    names: dict[int | str, str] = {}
    if by != "model":
        names = dict(db.read(f"SELECT id, name FROM {by}s"))
    for heads, numbers in spent.parts(db, _HEADINGS[by], since_ms):
        for head in heads:
            yield str(head) if by == "model" else names.get(head, "?"), numbers


def audit(db: Connection, transactions: Transactions, now_ms: int) -> Audit:
    """`Store.audit`; the caller holds a transaction, so that nothing moves meanwhile."""
    stored: list[Account] = []
    for account_id, budget_id, name, cap in db.read(
        "SELECT a.id, a.budget_id, b.name, a.cap FROM accounts a JOIN budgets b ON b.id = a.budget_id"
    ):
        account = Account(account_id, budget_id, name, transactions.cap_of(account_id, cap))
        for slot_ms, *sums in db.read(
            "SELECT slot_ms, posted, reserved, suspense, overrun FROM balances"
            " WHERE account_id = ?",
            account.id,
        ):
            account.slots[slot_ms] = Tally(*sums)
        account.oldest_ms = account.cap.window.oldest_counting_ms(now_ms)
        stored.append(account)
    fresh = [Account(a.id, a.budget_id, a.budget, a.cap) for a in stored]
    reservations = replay(db, fresh)
    found: list[Discrepancy] = []
    for have, should in zip(stored, fresh, strict=True):
        found += compare(have, should)
    found += wrong_sums(db)
    overruns = db.value(
        "SELECT (SELECT count(*) FROM reservations WHERE state = 'posted' AND nusd > ceiling_nusd)"
        " + (SELECT coalesce(sum(overruns), 0) FROM sums)"
    )
    return Audit(sum(len(a.slots) for a in stored), reservations, tuple(found), overruns)


def finished_page(
    db: Connection, job: str, undelivered: bool, after_id: int, limit: int
) -> list[Finished]:
    """A page of `Store.finished`."""
    ids = _ended(db, job, [0] if undelivered else [0, 1], after_id, limit)
    found = read_finished(db, ids)
    return [found[each] for each in ids]


def ended_page(db: Connection, job: str, after_id: int, limit: int) -> list[Finished]:
    """A page of `Store.ended`."""
    rows = db.read(
        "SELECT id, key, state, NULL, cost_nusd, attempts, NULL, digest FROM requests"
        f" WHERE id {db.dialect.among} ORDER BY id",
        db.dialect.a_list(_ended(db, job, [0, 1], after_id, limit)),
    )
    return [decode_finished(row) for row in rows]


def _ended(
    db: Connection, job: str, delivered: Sequence[int], after_id: int, limit: int
) -> list[int]:
    """A job's keyed requests that have ended, oldest first: each page is read by index."""
    ids: list[int] = []
    for each in delivered:
        ids += (
            row[0] for row in db.read(
                "SELECT id FROM requests WHERE job_id = (SELECT id FROM jobs WHERE name = ?)"
                f" AND is_delivered = ? AND id > ? AND key IS NOT NULL AND {ENDED}"
                " ORDER BY id LIMIT ?",
                job, each, after_id, limit,
            )
        )  # fmt: skip
    return sorted(ids)[:limit]


def past(db: Connection, job: str | None, limit: int) -> list[Past]:
    """`Store.past`."""
    where, values = ("", ()) if job is None else (
        " AND r.job_id = (SELECT id FROM jobs WHERE name = ?)", (job,)
    )  # fmt: skip
    rows = db.read(
        "SELECT r.model, r.cost_nusd, r.input_tokens, r.ceiling_nusd, r.ceiling_tokens, a.response,"
        " r.expected_nusd,"
        " (SELECT max(v.settled_at_ms - v.made_at_ms) FROM reservations v"
        " WHERE v.request_id = r.id AND v.state = 'posted')"
        " FROM requests r JOIN responses a ON a.request_id = r.id"
        f" WHERE r.state = 'succeeded'{where} ORDER BY r.id DESC LIMIT ?",
        *values, limit,
    )  # fmt: skip
    found = []
    for model, cost_nusd, guess, ceiling_nusd, ceiling_tokens, text, expected_nusd, ms in rows:
        usage = decode_response(text).usage
        if usage is not None:
            found.append(Past(
                model, cost_nusd, usage.input_tokens, usage.output_tokens, guess, ceiling_nusd,
                ceiling_tokens, ms or 0, expected_nusd,
            ))  # fmt: skip
    return found


def jobs(db: Connection) -> list[str]:
    """`Store.jobs`."""
    return [name for (name,) in db.read("SELECT name FROM jobs ORDER BY id")]


def known(db: Connection, job: str, keys: Sequence[str]) -> dict[str, Known]:
    """`Store.known`."""
    row = db.one("SELECT id FROM jobs WHERE name = ?", job)
    if row is None:
        return {}
    wanted = [(row[0], key) for key in keys]
    found = read_by_keys(db, "r.key, r.state, r.digest, r.error", wanted)
    return {
        key: Known(state_of(text), digest, None if error is None else json.loads(error))
        for key, text, digest, error in found
    }


def outcomes(db: Connection, ids: Sequence[int]) -> list[Finished]:
    """`Store.outcomes`."""
    return list(read_finished(db, ids).values())


def pictures(db: Connection, ids: Sequence[int]) -> list[Picture]:
    """`Store.pictures`."""
    rows = db.read(
        "SELECT r.id, r.state, l.shortfall FROM requests r JOIN lanes l ON l.id = r.lane_id"
        f" WHERE r.id {db.dialect.among}",
        db.dialect.a_list(ids),
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


def suspended(db: Connection, job: str | None, limit: int, after_id: int) -> list[Unknown]:
    """`Store.suspended`."""
    return _read_unknown(db.read(
        f"{_UNKNOWN} AND h.id > ?{'' if job is None else ' AND j.name = ?'} ORDER BY h.id LIMIT ?",
        after_id, *(() if job is None else (job,)), limit,
    ))  # fmt: skip


def suspended_since(
    db: Connection, since_ms: int, after_id: int, limit: int
) -> list[tuple[int, int]]:
    """`Store.suspended_since`."""
    return db.read(
        f"SELECT {_BECAME_UNKNOWN}, h.id FROM reservations h WHERE h.state = 'suspense'"
        f" AND {_BECAME_UNKNOWN} >= ? AND ({_BECAME_UNKNOWN} > ? OR h.id > ?)"
        f" ORDER BY {_BECAME_UNKNOWN}, h.id LIMIT ?",
        since_ms, since_ms, after_id, limit,
    )  # fmt: skip


def suspended_of(db: Connection, ids: Sequence[int]) -> list[Unknown]:
    """`Store.suspended_of`."""
    return _read_unknown(
        db.read(f"{_UNKNOWN} AND h.id {db.dialect.among} ORDER BY h.id", db.dialect.a_list(ids))
    )


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


def processes(db: Connection) -> frozenset[int]:
    """`Store.processes`."""
    return frozenset(row[0] for row in db.read("SELECT id FROM workers WHERE is_lost = 0"))


def lanes_of(db: Connection, worker_id: int, ids: Sequence[int]) -> set[int]:
    """`Store.still_mine`."""
    rows = db.read(
        "SELECT r.id FROM requests r JOIN lanes l ON l.id = r.lane_id WHERE l.worker_id = ?"
        f" AND r.id {db.dialect.among}",
        worker_id,
        db.dialect.a_list(ids),
    )
    return {row[0] for row in rows}
