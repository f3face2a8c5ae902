"""Requests that wait: how they come into a lane and out of it, and whose time has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from scheduler.admission.fairness import TenantKey
from scheduler.admission.lane import Head
from scheduler.admission.plan import LaneKey
from scheduler.ledger.account import FAR
from scheduler.request import RequestState
from scheduler.stores.base import ExpiredRequest, TurnResult
from scheduler.stores.lanes import Lane
from scheduler.stores.sql.codec import decode_budgets, encode_budgets
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import INT
from scheduler.stores.sql.rows import COLUMNS, DELAYED, QUEUED, Row
from scheduler.stores.sql.sheet import Owner, Sheet

DATED, BY_DATE = " AND i.due_at_ms IS NOT NULL", "i.due_at_ms, i.id"  # of those with deadlines
MOST_DUE = 2_000  # of those whose time has come, in one turn; then the next one goes on

_LANE = (
    "SELECT l.id, l.worker_id, l.provider, l.budgets, l.priority, l.may_wait, l.model, l.waiting,"
    " l.parked_total_ms, l.service, l.tenant, l.is_due FROM lanes l WHERE l.worker_id = 0"
)


# Lanes


def know_lanes(sheet: Sheet, rows: Iterable[Row]) -> None:
    """Learn of the lanes of these requests that are not in the books: shared ones are, then."""
    lanes = sheet.books.lanes
    ids = {row.lane_id for row in rows if lanes.by_id(row.lane_id) is None} - sheet.owners.keys()
    if not ids:
        return
    db = sheet.db
    shared = set()
    for lane_id, worker_id, budgets, provider, priority, tenant, is_alive in db.read(
        "SELECT l.id, l.worker_id, l.budgets, l.provider, l.priority, l.tenant,"
        " CASE WHEN w.is_lost = 0 THEN 1 ELSE 0 END"
        f" FROM lanes l LEFT JOIN workers w ON w.id = l.worker_id WHERE l.id {db.dialect.among}",
        db.dialect.a_list(ids),
    ):
        whose = TenantKey(provider, priority, tenant)
        sheet.owners[lane_id] = Owner(decode_budgets(budgets), bool(is_alive), whose)
        if not worker_id:
            shared.add(lane_id)
    learn_shared(sheet, shared)


def learn_shared(sheet: Sheet, ids: Iterable[int] | None) -> None:
    """Take over how these shared lanes are doing; None: all in which somebody waits."""
    db = sheet.db
    if ids is None:
        rows = db.read(f"{_LANE} AND l.waiting > 0")
        _learn(sheet, rows, _heads(sheet, rows))
    elif wanted := list(ids):
        _learn(sheet, db.read(f"{_LANE} AND l.id {db.dialect.among}", db.dialect.a_list(wanted)))


def _heads(sheet: Sheet, rows: Sequence[Sequence[Any]]) -> dict[int, Head]:
    """The first in each of these: of very many, not all need be looked at to find out who is next."""
    db, found = sheet.db, {}
    for is_due in (0, 1):
        lanes = [row[0] for row in rows if row[-1] == is_due]
        if not lanes:
            continue
        first = db.dialect.firsts(
            "t.lane_id, t.id, t.due_at_ms", {"lane_id": INT}, "requests",
            f"i.lane_id = g.lane_id AND i.state = 'queued'{DATED if is_due else ''}",
            BY_DATE if is_due else db.dialect.queued_at,
        )  # fmt: skip
        for lane_id, id_, due_ms in db.read(
            first, *db.dialect.row_values([(each,) for each in lanes]), 1
        ):
            found[lane_id] = (due_ms if is_due else FAR, id_)
    return found


def _learn(
    sheet: Sheet, rows: Iterable[Sequence[Any]], heads: Mapping[int, Head] = MappingProxyType({})
) -> None:
    lanes = sheet.books.lanes
    for row in rows:
        lane_id, _, provider, budgets, priority, may_wait, model, waiting, parked_ms = row[:9]
        key = LaneKey(
            provider, decode_budgets(budgets), priority, bool(may_wait), model, is_shared=True,
            service=row[9], tenant=row[10], is_due=bool(row[11]),
        )  # fmt: skip
        if not sheet.books.is_served(key):
            continue  # by that name this process would ask somebody else
        lane = lanes.get(key, lambda lane_id=lane_id: lane_id)  # type: ignore[misc]
        more = waiting + sheet.more[lane_id] - lane.waiting
        if more < 0:
            lanes.remove(lane, sheet.now_ms, -more)
        # One that came may be older, or smaller, than those that are known.
        lane.passed = key.lowest
        lanes.add(lane, heads.get(lane_id), max(0, more))
        if more > 0:
            lanes.reopen(lane, sheet.now_ms)
        if lane.shortfall is None:
            lane.parked_total_ms = max(lane.parked_total_ms, parked_ms)


def open_lanes(sheet: Sheet, keys: Sequence[LaneKey]) -> list[Lane]:
    """The lanes of these keys; those that are not in the books are made."""
    lanes = sheet.books.lanes
    found = [lanes.find(key) for key in keys]
    if None in found:
        _make_lanes(sheet, [key for key, lane in zip(keys, found, strict=True) if lane is None])
    return [lane or lanes.get(key, _no_id) for key, lane in zip(keys, found, strict=True)]


def _no_id() -> int:
    raise AssertionError("it was made just now")


def _make_lanes(sheet: Sheet, keys: Sequence[LaneKey]) -> None:
    lanes = sheet.books.lanes
    missing = list(dict.fromkeys(keys))
    if shared := [key for key in missing if key.is_shared]:
        _find_shared(sheet, shared)
        missing = [key for key in missing if lanes.find(key) is None]
    ids = sheet.db.new_ids("lanes", len(missing)) if missing else ()
    for lane_id, key in zip(ids, missing, strict=True):
        sheet.new_lanes.append(lanes.get(key, lambda lane_id=lane_id: lane_id))  # type: ignore[misc]
        if key.is_shared:
            sheet.news.lanes.add(lane_id)


def _find_shared(sheet: Sheet, keys: Sequence[LaneKey]) -> None:
    """Shared lanes are one row each, whoever made it."""
    db = sheet.db
    among, a_list = db.dialect.among, db.dialect.a_list
    _learn(sheet, db.read(
        f"{_LANE} AND l.provider {among} AND l.model {among} AND l.budgets {among}",
        a_list({key.provider for key in keys}), a_list({key.model for key in keys}),
        a_list({encode_budgets(key.budgets) for key in keys}),
    ))  # fmt: skip


def enter_lane(sheet: Sheet, row: Row, lane: Lane, *, is_new: bool = False) -> None:
    """A request begins to wait in a lane."""
    head = lane.key.head(row)
    sheet.enter(lane, head)
    if not is_new or head < lane.passed:
        lane.look_at_all(row.needs)
    if lane.shortfall is not None and lane.wakes_for(
        row.needs, sheet.accounts_of(lane.key.budgets)
    ):
        sheet.books.lanes.reopen(lane, sheet.now_ms)
    row.parked_mark_ms = lane.parked_clock_ms(sheet.now_ms)


def enter_again(sheet: Sheet, row: Row) -> None:
    """A request waits again in its lane, whoever's that is."""
    lane = sheet.books.lanes.by_id(row.lane_id)
    if lane is None:
        sheet.count_elsewhere(row.lane_id, 1)
        row.parked_mark_ms = 0
    else:
        enter_lane(sheet, row, lane)


def leave_lane(sheet: Sheet, row: Row) -> None:
    """A request that is queued waits no more in its lane, nor in any line."""
    lane = sheet.books.lanes.by_id(row.lane_id)
    if lane is None:
        know_lanes(sheet, [row])
        sheet.count_elsewhere(row.lane_id, -1)
        owner = sheet.owners.get(row.lane_id)
        budgets = owner.budgets if owner is not None else ()
    else:
        sheet.leave(lane)
        budgets = lane.key.budgets
    sheet.leave_lines(row.id, budgets)


def budgets_of(sheet: Sheet, rows: Iterable[Row]) -> set[int]:
    """The budgets of the lanes in which these requests are."""
    found: set[int] = set()
    for row in rows:
        lane, owner = sheet.books.lanes.by_id(row.lane_id), sheet.owners.get(row.lane_id)
        if lane is not None:
            found.update(lane.key.budgets)
        elif owner is not None:
            found.update(owner.budgets)
    return found


# Those who end, and those who begin, without having been sent


def drop(sheet: Sheet, row: Row, state: RequestState, error: str | None = None) -> int | None:
    """End a request that waits; returns how long it did, or None if it does not wait."""
    if not row.waits:
        return None
    now_ms = sheet.now_ms
    lane = sheet.books.lanes.by_id(row.lane_id)
    if row.state == QUEUED:
        if lane is not None:
            row.parked_ms += max(0, lane.parked_clock_ms(now_ms) - row.parked_mark_ms)
        leave_lane(sheet, row)
    end(sheet, row, state)
    row.error, row.is_changed = error, True
    if row.key is None:
        row.payload = None
    sheet.tallies[row.job_id, QUEUED] -= 1
    sheet.tallies[row.job_id, state._value_] += 1
    return now_ms - row.submitted_at_ms


def end(sheet: Sheet, row: Row, state: RequestState) -> None:
    """A request comes to its end."""
    row.state, row.ended_at_ms, row.is_settled = state._value_, sheet.now_ms, True
    if row.key is not None and (not row.worker_id or sheet.books.has_company):
        sheet.news.ended.append(row.id)
    sheet.books.kept.pop(row.id, None)
    sheet.books.claimed.pop(row.id, None)


def cancel(sheet: Sheet, request_id: int) -> bool:
    """Whether it still waited, here or in a lane that is anybody's, and is cancelled now."""
    row = sheet.rows.get(request_id)
    if row is None or sheet.books.lanes.by_id(row.lane_id) is None:
        return False  # another process's: not ours to cancel
    return drop(sheet, row, RequestState.CANCELLED) is not None


_MINE = "r.worker_id IN (0, ?)"
_DUE = (
    f"SELECT * FROM (SELECT {COLUMNS} FROM requests r WHERE r.state = 'delayed' AND {_MINE}"
    " AND r.not_before_ms <= ? ORDER BY r.worker_id, r.not_before_ms LIMIT ?) d"
    f" UNION ALL SELECT * FROM (SELECT {COLUMNS} FROM requests r WHERE r.expires_at_ms IS NOT"
    f" NULL AND r.state IN ('queued', 'delayed') AND {_MINE} AND r.expires_at_ms <= ?"
    " ORDER BY r.worker_id, r.expires_at_ms LIMIT ?) e"
)


def ask_due(sheet: Sheet) -> None:
    """`read_due` will be called."""
    sheet.db.ahead(_DUE, *_due(sheet))


def _due(sheet: Sheet) -> tuple[int, ...]:
    return (sheet.books.worker_id, sheet.now_ms, MOST_DUE) * 2


def read_due(sheet: Sheet) -> list[Row]:
    """Those of this process's and of shared lanes whose time to be sent, or to end, has come."""
    rows = sheet.db.read(_DUE, *_due(sheet))
    return [sheet.meet(Row(*row)) for row in rows]


def promote(sheet: Sheet, due: Sequence[Row]) -> None:
    """Queue those whose time to be sent has come."""
    for row in due:
        is_due = row.not_before_ms is not None and row.not_before_ms <= sheet.now_ms
        if row.state == DELAYED and is_due:
            row.state, row.is_changed = QUEUED, True
            enter_again(sheet, row)


def expire(sheet: Sheet, rows: Iterable[Row], result: TurnResult) -> None:
    """End those of these whose time is over, oldest first."""
    late = [
        row for row in sorted(rows, key=lambda row: row.id)
        if row.expires_at_ms is not None and row.expires_at_ms <= sheet.now_ms and row.waits
        # Else its process looks after it; what is anybody's ends here, too.
        and (not row.worker_id or sheet.books.lanes.by_id(row.lane_id) is not None)
    ]  # fmt: skip
    jobs = job_names(sheet, {row.job_id for row in late})
    for row in late:
        lane, at_ms = sheet.books.lanes.by_id(row.lane_id), row.expires_at_ms
        lack = lane.shortfall if lane is not None and row.state == QUEUED else None
        waited_ms = drop(sheet, row, RequestState.EXPIRED)
        assert waited_ms is not None
        assert at_ms is not None
        is_shared = not row.worker_id
        result.expired.append(
            ExpiredRequest(row.id, waited_ms, row.key, jobs[row.job_id], lack, at_ms, is_shared)
        )


def job_names(sheet: Sheet, ids: Iterable[int]) -> dict[int, str]:
    """What these jobs are called."""
    known = {job_id: name for name, job_id in sheet.books.jobs.items()}
    missing = set(ids) - known.keys()
    if missing:
        among, wanted = sheet.db.dialect.among, sheet.db.dialect.a_list(missing)
        known |= dict(sheet.db.read(f"SELECT id, name FROM jobs WHERE id {among}", wanted))
    return known


_NEXT_DUE = (
    "SELECT (SELECT min(not_before_ms) FROM requests WHERE state = 'delayed' AND worker_id = 0),"
    " (SELECT min(not_before_ms) FROM requests WHERE state = 'delayed' AND worker_id = ?),"
    " (SELECT min(expires_at_ms) FROM requests WHERE expires_at_ms IS NOT NULL"
    "  AND state IN ('queued', 'delayed') AND worker_id = 0),"
    " (SELECT min(expires_at_ms) FROM requests WHERE expires_at_ms IS NOT NULL"
    "  AND state IN ('queued', 'delayed') AND worker_id = ?)"
)


def ask_next_due(db: Connection, worker_id: int) -> None:
    """`next_due_ms` will be called, and no request is changed before."""
    db.ahead(_NEXT_DUE, worker_id, worker_id)


def next_due_ms(db: Connection, worker_id: int) -> int | None:
    """When the next one's time comes."""
    (found,) = db.read(_NEXT_DUE, worker_id, worker_id)
    return min((each for each in found if each is not None), default=None)
