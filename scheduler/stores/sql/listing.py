"""A page of the requests that are in some states, oldest first.

What lives is found among what lives, however much has ended, and a page costs a page: those of a job
are in an index of their own, those that wait are the first of their lanes, and what runs holds money.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain

from scheduler.request import RequestState
from scheduler.stats import QueueRow
from scheduler.stores.history import AttemptRow
from scheduler.stores.sql.codec import decode_request, decode_shortfall
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT
from scheduler.stores.sql.rows import DELAYED

LIVE = "ended_at_ms IS NULL"  # as in the index
ENDED = "ended_at_ms IS NOT NULL"  # as in the indexes
_LAST = (1 << 62) - 1


def queue(
    db: Connection,
    states: Iterable[RequestState],
    now_ms: int,
    job: str | None,
    limit: int,
    after_id: int,
) -> list[QueueRow]:
    """`Store.queue`."""
    wanted = {state.value for state in states}
    waiting, ends = wanted & {"queued", "parked"}, wanted - {"queued", "parked", "running"}
    ids: list[int] = []
    if wanted - ends:
        if job is not None:
            ids += _live_of_job(db, wanted - ends, job, after_id, limit)
        else:
            ids += _waiting(db, _lanes(waiting), after_id, limit) if waiting else []
            ids += _delayed(db, after_id, limit) if "queued" in wanted else []
            ids += _running(db, after_id, limit) if "running" in wanted else []
    if ends:
        ids += _ended(db, sorted(ends), job, after_id, limit)
    rows = db.read(
        "SELECT r.id, r.key, j.name, r.state, r.model, l.provider, l.priority, r.submitted_at_ms,"
        " r.attempts, r.ceiling_nusd, r.cost_nusd, r.parked_ms, r.parked_mark_ms, l.shortfall,"
        " l.shut_since_ms, l.parked_total_ms, r.payload, r.error,"
        " CASE WHEN l.worker_id = 0 THEN l.service ELSE '' END, l.tenant, r.due_at_ms"
        " FROM requests r JOIN lanes l ON l.id = r.lane_id JOIN jobs j ON j.id = r.job_id"
        f" WHERE r.id {db.dialect.among} ORDER BY r.id",
        db.dialect.a_list(sorted(ids)[:limit]),
    )
    return [_queue_row(row, now_ms) for row in rows]


def _lanes(waiting: Iterable[str]) -> str:
    """Which lanes hold those: the open ones, the shut ones, or all."""
    names = set(waiting)
    if len(names) == 2:
        return "1 = 1"
    return "l.shortfall IS NULL" if "queued" in names else "l.shortfall IS NOT NULL"


def _live_of_job(
    db: Connection, wanted: Iterable[str], job: str, after_id: int, limit: int
) -> list[int]:
    waiting = {"queued", "parked"}.intersection(wanted)
    either = [f"r.state = 'queued' AND {_lanes(waiting)}"] if waiting else []
    either += [f"r.state = '{DELAYED}'"] if "queued" in waiting else []
    either += ["r.state = 'running'"] if "running" in wanted else []
    if waiting == {"parked"} and len(either) == 1 and not _is_any_shut(db):
        return []
    return _ids(
        db,
        "SELECT r.id FROM requests r CROSS JOIN lanes l WHERE l.id = r.lane_id"
        " AND r.job_id = (SELECT id FROM jobs WHERE name = ?)"
        f" AND r.{LIVE} AND ({' OR '.join(either)}) AND r.id > ? ORDER BY r.id LIMIT ?",
        job, after_id, limit,
    )  # fmt: skip


def _is_any_shut(db: Connection) -> bool:
    return (
        db.one("SELECT 1 FROM lanes WHERE shortfall IS NOT NULL AND waiting > 0 LIMIT 1")
        is not None
    )


def _waiting(db: Connection, lanes: str, after_id: int, limit: int) -> list[int]:
    """The first that wait in these lanes: of the lanes whose first ones come first."""
    heads = db.read(
        "SELECT h.id, h.head FROM (SELECT l.id, (SELECT min(r.id) FROM requests r"
        "  WHERE r.lane_id = l.id AND r.state = 'queued' AND r.id > ?) AS head"
        f" FROM lanes l WHERE {lanes}) AS h WHERE h.head IS NOT NULL ORDER BY h.head LIMIT ?",
        after_id,
        limit,
    )
    if not heads:
        return []
    # Behind the first of the last of so many lanes nothing is of this page.
    most = heads[-1][1] if len(heads) == limit else _LAST
    firsts = db.dialect.firsts(
        "t.id",
        {"lane_id": INT, "after_id": INT, "most": INT},
        "requests",
        "i.lane_id = g.lane_id AND i.state = 'queued' AND i.id > g.after_id AND i.id <= g.most",
        "i.id",
    )
    groups = [(lane_id, after_id, most) for lane_id, _ in heads]
    return _ids(db, firsts, *db.dialect.row_values(groups), limit)


def _delayed(db: Connection, after_id: int, limit: int) -> list[int]:
    return _ids(
        db,
        f"SELECT id FROM requests WHERE state = '{DELAYED}' AND +id > ? ORDER BY +id LIMIT ?",
        after_id, limit,
    )  # fmt: skip


def _running(db: Connection, after_id: int, limit: int) -> list[int]:
    return _ids(
        db,
        "SELECT request_id FROM reservations WHERE state = 'pending' AND +request_id > ?"
        " ORDER BY +request_id LIMIT ?",
        after_id, limit,
    )  # fmt: skip


def _ended(
    db: Connection, states: Sequence[str], job: str | None, after_id: int, limit: int
) -> list[int]:
    """Those that ended so; of no more rows than there are any."""
    if job is None:
        # One state after the other, so that each is read in order, and no further than asked.
        ids = [
            _ids(
                db,
                f"SELECT id FROM requests WHERE state = ? AND {ENDED} AND id > ? ORDER BY id LIMIT ?",
                state, after_id, limit,
            )
            for state in states
        ]  # fmt: skip
        return sorted(chain(*ids))[:limit]
    marks = ", ".join("?" * len(states))
    of_job, jobs = " AND +job_id = (SELECT id FROM jobs WHERE name = ?)", (job,)
    count = db.value(
        f"SELECT coalesce(sum(count), 0) FROM tallies WHERE state IN ({marks}){of_job}",
        *states,
        *jobs,
    )
    if not count:
        return []
    return _ids(
        db,
        f"SELECT id FROM requests WHERE state IN ({marks}){of_job} AND id > ? ORDER BY id LIMIT ?",
        *states, *jobs, after_id, min(limit, count),
    )  # fmt: skip


def _ids(db: Connection, sql: str, *values: object) -> list[int]:
    return [row[0] for row in db.read(sql, *values)]


def _queue_row(row: tuple[object, ...], now_ms: int) -> QueueRow:
    (id_, key, job, state, model, provider, priority, submitted_at_ms, attempts, ceiling_nusd,
     cost_nusd, parked_ms, mark_ms, lack, shut_since_ms, parked_total_ms, payload, error, service,
     tenant, due_at_ms) = row  # fmt: skip
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
        service=str(service), tenant=str(tenant), due_at_ms=due_at_ms,  # type: ignore[arg-type]
    )  # fmt: skip


def attempts(db: Connection, request_id: int) -> list[AttemptRow]:
    """`Store.attempts`."""
    return [AttemptRow._make([*row[:7], bool(row[7]), row[8]]) for row in db.read(
        "SELECT id, state, made_at_ms, settled_at_ms, ceiling_nusd, nusd, tokens, is_assumed, why"
        " FROM reservations WHERE request_id = ? ORDER BY id",
        request_id,
    )]  # fmt: skip
