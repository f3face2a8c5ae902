"""Requests as a transaction works on them: read once, changed in memory, written in bulk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.ledger.account import Needs
from scheduler.request import RequestState
from scheduler.stores.base import Finished
from scheduler.stores.sql.codec import decode_response
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT, TEXT, Insert, Type, Update

# As they are stored; an enum's `value` costs more than all else that is done with a state.
QUEUED, RUNNING, SUCCEEDED = (
    RequestState.QUEUED.value, RequestState.RUNNING.value, RequestState.SUCCEEDED.value
)  # fmt: skip
DELAYED = "delayed"  # queued, but not before a given instant
WAITING = (QUEUED, DELAYED)
LIVE = (*WAITING, RUNNING)
_STATES = {state.value: state for state in RequestState}
KEPT = "\0kept"  # of a payload: as it is stored


@dataclass(slots=True)
class Row:
    """A request, without what it asks.

    Attributes:
        worker_id: Whose it is; 0: nobody's, its lane is shared.
        payload: What it asks, as text, where that is to be written; None: nothing is kept.
        is_changed: It differs from what is stored.
        is_settled: It does, in what settling changes.
    """

    id: int
    job_id: int
    key: str | None
    digest: str
    lane_id: int
    worker_id: int
    state: str
    model: str
    ceiling_nusd: int
    ceiling_tokens: int
    expected_nusd: int
    input_tokens: int
    output_tokens: int
    submitted_at_ms: int
    not_before_ms: int | None = None
    expires_at_ms: int | None = None
    due_at_ms: int | None = None
    attempts: int = 0
    cost_nusd: int = 0
    parked_mark_ms: int = 0
    parked_ms: int = 0
    reservation_id: int | None = None
    error: str | None = None
    ended_at_ms: int | None = None
    is_delivered: int = 0
    tags: str | None = None
    payload: str | None = KEPT
    is_changed: bool = False
    is_settled: bool = False

    @property
    def has_only_ended(self) -> bool:
        """Whether it ran, and no more: nobody who looks for those that wait needs to know yet."""
        return self.is_settled and not self.is_changed and self.ended_at_ms is not None

    @property
    def needs(self) -> Needs:
        """What it may cost."""
        return (self.ceiling_nusd, self.ceiling_tokens, 1)

    @property
    def waits(self) -> bool:
        """Whether it is to be sent, now or later."""
        return self.state in WAITING

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.state in LIVE

    @property
    def public_state(self) -> RequestState:
        """Its state as others see it."""
        return state_of(self.state)


_FIELDS: dict[str, Type] = {
    "id": INT, "job_id": INT, "key": TEXT, "digest": TEXT, "lane_id": INT, "worker_id": INT,
    "state": TEXT, "model": TEXT, "ceiling_nusd": INT, "ceiling_tokens": INT, "expected_nusd": INT,
    "input_tokens": INT, "output_tokens": INT, "submitted_at_ms": INT, "not_before_ms": INT,
    "expires_at_ms": INT, "due_at_ms": INT, "attempts": INT, "cost_nusd": INT, "parked_mark_ms": INT,
    "parked_ms": INT, "reservation_id": INT, "error": TEXT, "ended_at_ms": INT, "is_delivered": INT,
    "tags": TEXT,
}  # fmt: skip
COLUMNS = ", ".join(f"r.{name}" for name in _FIELDS)
COUNT = len(_FIELDS)
_NEW = (
    "id", "job_id", "key", "digest", "lane_id", "worker_id", "state", "model", "ceiling_nusd",
    "ceiling_tokens", "expected_nusd", "input_tokens", "output_tokens", "submitted_at_ms",
    "expires_at_ms", "due_at_ms", "parked_mark_ms", "is_delivered",
    "tags",
)  # fmt: skip
_SETTLED = (
    "state", "cost_nusd", "attempts", "not_before_ms", "error", "parked_mark_ms", "ended_at_ms"
)  # fmt: skip
_CHANGED = tuple(
    name for name in _FIELDS if name not in ("id", "job_id", "key", "digest", "submitted_at_ms")
)


def _update(names: Sequence[str], more: str = "") -> Update:
    columns = {name: _FIELDS[name] for name in names}
    sets = ", ".join(f"{name} = :{name}" for name in names)
    if more == ":payload":
        columns["payload"] = TEXT
    return Update(
        "requests", f"{sets}, payload = {more}" if more else sets, "id = :id",
        columns | {"id": INT},
    )  # fmt: skip


_INSERT = Insert("requests", {name: _FIELDS[name] for name in _NEW} | {"payload": TEXT})
_CHANGE, _REWRITE = _update(_CHANGED), _update(_CHANGED, ":payload")
_SETTLE, _SETTLE_AND_DROP = _update(_SETTLED), _update(_SETTLED, "NULL")


def read_rows(db: Connection, ids: Iterable[int]) -> list[Row]:
    """Those of these requests that there are."""
    sql = f"SELECT {COLUMNS} FROM requests r WHERE r.id {db.dialect.among}"
    return [Row(*row) for row in db.read(sql, db.dialect.a_list(ids))]


def insert_rows(db: Connection, rows: Sequence[Row]) -> None:
    """Write new requests, which wait; those that have ended already are changed next."""
    db.write_many(_INSERT, [
        (r.id, r.job_id, r.key, r.digest, r.lane_id, r.worker_id, r.state, r.model, r.ceiling_nusd,
         r.ceiling_tokens, r.expected_nusd, r.input_tokens, r.output_tokens, r.submitted_at_ms,
         r.expires_at_ms, r.due_at_ms, r.parked_mark_ms, r.is_delivered, r.tags, r.payload)
        for r in rows
    ])  # fmt: skip
    for row in rows:
        row.is_changed, row.payload = row.ended_at_ms is not None, KEPT


def update_rows(db: Connection, rows: Iterable[Row]) -> None:
    """Write those of these requests that were changed."""
    changed, rewritten = [], []
    settled: list[tuple[object, ...]] = []
    dropped: list[tuple[object, ...]] = []
    for r in rows:
        if r.is_changed:
            values = (
                r.lane_id, r.worker_id, r.state, r.model, r.ceiling_nusd, r.ceiling_tokens,
                r.expected_nusd, r.input_tokens, r.output_tokens, r.not_before_ms, r.expires_at_ms,
                r.due_at_ms, r.attempts, r.cost_nusd, r.parked_mark_ms, r.parked_ms, r.reservation_id, r.error,
                r.ended_at_ms, r.is_delivered, r.tags,
            )  # fmt: skip
            if r.payload is KEPT:
                changed.append((*values, r.id))
            else:
                rewritten.append((*values, r.payload, r.id))
        elif r.is_settled:
            (settled if r.payload is KEPT else dropped).append((
                r.state, r.cost_nusd, r.attempts, r.not_before_ms, r.error, r.parked_mark_ms,
                r.ended_at_ms, r.id,
            ))  # fmt: skip
        else:
            continue
        r.is_changed, r.is_settled, r.payload = False, False, KEPT
    db.write_many(_SETTLE, settled)
    db.write_many(_SETTLE_AND_DROP, dropped)
    db.write_many(_CHANGE, changed)
    db.write_many(_REWRITE, rewritten)


def read_payloads(db: Connection, ids: Sequence[int]) -> dict[int, str | None]:
    """What these requests ask, as text; None: it is not kept."""
    return ask_payloads(db, ids)()


def ask_payloads(db: Connection, ids: Sequence[int]) -> Callable[[], dict[int, str | None]]:
    """The same, to be had later."""
    if not ids:
        return dict
    sql = f"SELECT id, payload FROM requests WHERE id {db.dialect.among}"
    found = db.ask(sql, db.dialect.a_list(ids))
    return lambda: dict(found())


FINISHED = "r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest"


def read_finished(db: Connection, ids: Sequence[int]) -> dict[int, Finished]:
    """Those of these requests that have ended, as they ended."""
    if not ids:
        return {}
    rows = db.read(
        f"SELECT {FINISHED} FROM requests r LEFT JOIN responses a ON a.request_id = r.id"
        f" WHERE r.id {db.dialect.among}"
        " AND r.state IN ('succeeded', 'failed', 'cancelled', 'expired')",
        db.dialect.a_list(ids),
    )
    return {row[0]: decode_finished(row) for row in rows}


def decode_finished(row: tuple[Any, ...]) -> Finished:
    """An outcome from its row: id, key, state, error, cost, attempts, response, digest."""
    request_id, key, state, error, cost_nusd, attempts, response, digest = row
    return Finished(
        request_id, key, RequestState(state),
        None if response is None else decode_response(response),
        None if error is None else json.loads(error), cost_nusd, attempts, digest,
    )  # fmt: skip


def state_of(text: str) -> RequestState:
    """A request's state from its column."""
    return RequestState.QUEUED if text == DELAYED else _STATES[text]


def ask_by_keys(db: Connection, columns: str, keys: Sequence[tuple[int, str]]) -> None:
    """`read_by_keys` will be called for these."""
    plain = [each for each in keys if "\0" not in each[1]]
    if plain:
        db.ahead(_by_keys(db, columns), *db.dialect.row_values(plain))


def _by_keys(db: Connection, columns: str) -> str:
    wanted = db.dialect.rows("k", {"job_id": INT, "key": TEXT})
    return (
        f"SELECT {columns} FROM {wanted} CROSS JOIN requests r"
        " WHERE r.job_id = k.job_id AND r.key = k.key"
    )


def read_by_keys(
    db: Connection, columns: str, keys: Sequence[tuple[int, str]]
) -> list[tuple[Any, ...]]:
    """Columns of the requests, as `r`, with these keys, each with its job's id."""
    # SQLite's JSON ends a text at a NUL: such names are asked for by value.
    plain = [each for each in keys if "\0" not in each[1]]
    odd = [each for each in keys if "\0" in each[1] and db.dialect.takes_nul]
    found: list[tuple[Any, ...]] = []
    if plain:
        found += db.read(_by_keys(db, columns), *db.dialect.row_values(plain))
    for start in range(0, len(odd), 400):
        page = odd[start : start + 400]
        either = " OR ".join(["r.job_id = ? AND r.key = ?"] * len(page))
        values = [value for each in page for value in each]
        found += db.read(f"SELECT {columns} FROM requests r WHERE {either}", *values)
    return found
