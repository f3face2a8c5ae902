"""Who works on the store: leases, and what becomes of the work of those who are gone."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement, TurnResult
from scheduler.stores.lanes import Lane
from scheduler.stores.process import GONE_MS, Process, is_dead
from scheduler.stores.sql import changes
from scheduler.stores.sql.rows import DELAYED, QUEUED
from scheduler.stores.sql.settle import read_holds, settle
from scheduler.stores.sql.sheet import Sheet, decode_line
from scheduler.stores.sql.waiting import learn_shared

SILENT = "its process was silent for longer than its lease"
NOBODY_ASKS = {
    "code": "process_gone",
    "message": "its process ended; without a key nobody can ask for it again. Nothing more is sent",
}


def keep_lease(sheet: Sheet) -> None:
    """Keep this process's lease, if that is due; take back what dead ones left."""
    books, now_ms = sheet.books, sheet.now_ms
    silent_ms = now_ms - books.seen_at_ms if books.worker_id else 0
    if books.worker_id and books.is_told and silent_ms < books.lease_ms // 3:
        return
    sheet.db.drop_ahead()  # what dead ones left may be changed first
    books.is_told = True  # first: it may serve something else by the time this is written
    if books.worker_id:
        _renew(sheet)
    else:
        _register(sheet)
    books.seen_at_ms = now_ms
    _reclaim(sheet, was_away=silent_ms > books.lease_ms)


def _register(sheet: Sheet) -> None:
    db, books, me = sheet.db, sheet.books, sheet.books.process
    books.since_ms = sheet.now_ms
    books.worker_id = db.value(
        "INSERT INTO workers (host, pid, started, seen_at_ms, about) VALUES (?, ?, ?, ?, ?)"
        " RETURNING id",
        me.host, me.pid, me.started, sheet.now_ms, books.about(),
    )  # fmt: skip
    sheet.news.is_company = True
    books.changes = changes.newest(db)
    learn_shared(sheet, None)


def _renew(sheet: Sheet) -> None:
    db, books, me = sheet.db, sheet.books, sheet.books.process
    row = db.one("SELECT is_lost FROM workers WHERE id = ?", books.worker_id)
    books.was_lost = row is None or bool(row[0])
    if row is None:  # others took it for gone, and its lanes may have been pruned
        rows = db.read("SELECT id FROM lanes WHERE worker_id = ?", books.worker_id)
        kept = {id_ for (id_,) in rows}
        for lane in books.lanes:
            if not lane.key.is_shared and lane.id not in kept:
                sheet.new_lanes.append(lane)
                _follow(sheet, lane, 0)
    db.write(
        "INSERT INTO workers (id, host, pid, started, seen_at_ms, about) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET seen_at_ms = excluded.seen_at_ms, is_lost = 0,"
        " about = excluded.about",
        books.worker_id, me.host, me.pid, me.started, sheet.now_ms, books.about(),
    )  # fmt: skip


def recount(sheet: Sheet, ids: Iterable[int] | None) -> None:
    """Read how many wait in these lanes, if they are this process's; None: in all that are.

    Others put requests back into them if they take this process for lost, which it may be the last
    to know: it stood still in the middle of something.
    """
    db, lanes = sheet.db, sheet.books.lanes
    found = lanes if ids is None else filter(None, map(lanes.by_id, ids))
    own = {lane.id: lane for lane in found if not lane.key.is_shared}
    if not own:
        return
    for lane_id, waiting in db.read(
        f"SELECT id, waiting FROM lanes WHERE id {db.dialect.among}", db.dialect.a_list(own)
    ):
        _follow(sheet, own[lane_id], waiting)


def _follow(sheet: Sheet, lane: Lane, waiting: int) -> None:
    """So many wait in a lane as the database has it, which others may have changed."""
    more, lane.noted = waiting - lane.noted, waiting
    if more:
        sheet.books.lanes.add(lane, count=more)
        sheet.books.lanes.remove(lane, sheet.now_ms, 0)  # it may be empty
        lane.passed = lane.key.lowest


def _reclaim(sheet: Sheet, *, was_away: bool) -> None:
    """End dead processes: what they may have sent is unknown, the rest waits for its key.

    Or, in a shared lane, for whoever comes. On this machine it is seen that a process has gone.
    One that is silent for longer than its lease is lost, wherever it is, since it sends nothing of
    what it had claimed: others may take its keys over. One that nobody can see is taken for gone
    after a day.

    Args:
        sheet: The transaction.
        was_away: This process itself stood still, and with it perhaps the whole machine: then
            those that are on it are given the time to say that they are there.
    """
    db, books, now_ms = sheet.db, sheet.books, sheet.now_ms
    company = set()
    for worker_id, host, pid, started, seen_at_ms, is_lost in db.read(
        "SELECT id, host, pid, started, seen_at_ms, is_lost FROM workers WHERE id <> ?",
        books.worker_id,
    ):
        silent_ms = now_ms - seen_at_ms
        is_gone = is_dead(books.process, Process(host, pid, started))
        if not is_gone:
            is_here = host == books.process.host and bool(started)
            if silent_ms <= books.lease_ms or (is_here and was_away):
                company.add(worker_id)
                continue
            is_gone = silent_ms > GONE_MS and not is_here
        if is_lost and not is_gone:
            continue
        suspend_all(sheet, worker_id, is_gone=is_gone)
        if is_gone:
            db.write("DELETE FROM workers WHERE id = ?", worker_id)
        else:
            db.write("UPDATE workers SET is_lost = 1 WHERE id = ?", worker_id)
        sheet.write()
        sheet.owners.clear()  # of which it was one
        step_out_of_line(sheet, worker_id)
        books.lanes.wake_all(now_ms)
    books.meet(company)
    for (worker_id,) in db.read(
        "SELECT DISTINCT worker_id FROM reservations WHERE state = 'pending'"
        " AND worker_id NOT IN (SELECT id FROM workers)"
    ):
        suspend_all(sheet, worker_id, is_gone=True)


def know_company(sheet: Sheet) -> None:
    """Somebody came, or went."""
    books = sheet.books
    books.meet(each for (each,) in sheet.db.read(
        "SELECT id FROM workers WHERE is_lost = 0 AND id <> ?", books.worker_id
    ))  # fmt: skip


def suspend_all(sheet: Sheet, worker_id: int, *, is_gone: bool) -> None:
    """What a process may have sent is unknown; what can be asked for again is queued.

    Args:
        sheet: The transaction.
        worker_id: The process's.
        is_gone: It will certainly not come back. False: it may only be slow.
    """
    holds = read_holds(sheet, sheet.db.read(
        "SELECT id, request_id FROM reservations WHERE worker_id = ? AND state = 'pending'",
        worker_id,
    ))  # fmt: skip
    lost = []
    for hold in holds.values():
        ends = is_gone and hold.row.key is None
        state = RequestState.CANCELLED if ends else RequestState.QUEUED
        why = "its process ended before the answer" if is_gone else SILENT
        lost.append(
            Settlement(
                hold.id, hold.row.id, Outcome.SUSPEND, state,
                error=NOBODY_ASKS if ends else None, why=why,
            )
        )  # fmt: skip
    settle(sheet, lost, holds, TurnResult())
    if is_gone:
        _cancel_keyless(sheet, worker_id)


def _cancel_keyless(sheet: Sheet, worker_id: int) -> None:
    """End what waits without a key: with its process went whoever wanted it."""
    sheet.write()
    db = sheet.db
    ids = [id_ for (id_,) in db.read("SELECT id FROM lanes WHERE worker_id = ?", worker_id)]
    if not ids:
        return
    lanes = db.dialect.a_list(ids)
    for state in (QUEUED, DELAYED):
        # Written into the statement, so that the index of that state serves.
        those = f"state = '{state}' AND key IS NULL AND lane_id {db.dialect.among}"
        found = db.read(
            f"SELECT lane_id, job_id, count(*) FROM requests WHERE {those} GROUP BY lane_id, job_id",
            lanes,
        )
        if not found:
            continue
        db.write(
            "UPDATE requests SET state = 'cancelled', payload = NULL, error = ?, ended_at_ms = ?"
            f" WHERE {those}",
            json.dumps(NOBODY_ASKS), sheet.now_ms, lanes,
        )  # fmt: skip
        for lane_id, job_id, count in found:
            if state == QUEUED:
                _leave_together(sheet, lane_id, count)
            sheet.tallies[job_id, QUEUED] -= count
            sheet.tallies[job_id, RequestState.CANCELLED.value] += count


def _leave_together(sheet: Sheet, lane_id: int, count: int) -> None:
    """So many fewer wait in a lane."""
    lane = sheet.books.lanes.by_id(lane_id)
    if lane is not None:
        sheet.leave(lane, count)
    else:
        sheet.count_elsewhere(lane_id, -count)


def step_out_of_line(sheet: Sheet, worker_id: int) -> None:
    """Nobody of that process is in line any more, nor who does not wait any more."""
    db = sheet.db
    lines = [
        (budget_id, waiter.request_id)
        for budget_id, text in db.read(
            "SELECT budget_id, waiter FROM accounts WHERE waiter IS NOT NULL"
        )
        for waiter in decode_line(text)
    ]
    if not lines:
        return
    staying = {
        row[0] for row in db.read(
            "SELECT r.id FROM requests r WHERE r.state = 'queued' AND r.worker_id <> ?"
            f" AND r.id {db.dialect.among}",
            worker_id, db.dialect.a_list({request_id for _, request_id in lines}),
        )
    }  # fmt: skip
    leaving = [(budget_id, id_) for budget_id, id_ in lines if id_ not in staying]
    sheet.load({budget_id for budget_id, _ in leaving})
    for budget_id, request_id in leaving:
        sheet.leave_lines(request_id, (budget_id,))


def leave(sheet: Sheet) -> None:
    """This process goes: what is its own waits for its key to be submitted again.

    What is anybody's stays where it is. Only after a failure is anything of it still open.
    """
    worker_id = sheet.books.worker_id
    step_out_of_line(sheet, worker_id)
    suspend_all(sheet, worker_id, is_gone=True)
    sheet.write_lanes()
    sheet.news.is_company = True
    sheet.finish()
    sheet.db.write("DELETE FROM workers WHERE id = ?", worker_id)
    sheet.books.forget_work()
