"""A turn on a SQLite file: plain synchronous code inside one transaction.

Everything here runs on the connection's own thread, between BEGIN IMMEDIATE and
COMMIT, and decides on rows it has just read. The one thing kept between turns is
the book of this process's lanes, which holds no money; after a failed transaction
the scheduler goes no further, so the book never outlives a rollback.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from functools import partial

from scheduler.admission.plan import LaneView, Plan, Planner
from scheduler.errors import StoreLocked
from scheduler.ledger.account import Crossing
from scheduler.limits import Gates
from scheduler.request import RequestState
from scheduler.stores.base import (
    Claimed,
    ExpiredRequest,
    LaneStatus,
    Refused,
    Settlement,
    Turn,
    TurnResult,
    refusal,
)
from scheduler.stores.lanes import Lane, Lanes, hear
from scheduler.stores.lineup import Lineup
from scheduler.stores.process import GONE_MS, Process, is_dead
from scheduler.stores.sql.books import encode_budgets
from scheduler.stores.sql.codec import decode_request, encode_shortfall
from scheduler.stores.sql.gates import load_gates, save_gates
from scheduler.stores.sql.submit import Submitting
from scheduler.stores.sql.upgrade import add_indexes
from scheduler.stores.sql.waiting import Waiting, view
from scheduler.stores.views import budget_status

AT_ONCE = 16  # lanes that are read together


class Transactions(Submitting):
    """What this process does to the file, one transaction per public method."""

    def __init__(self, process: Process, lease_ms: int) -> None:
        super().__init__()
        self.process, self.lease_ms = process, lease_ms
        self.seen_at_ms = 0
        self._was_lost = False  # others had taken this process for dead
        self._untold: list[Crossing] = []  # of what was resolved since the last turn
        self._admitted = 0
        self.gates = Gates()

    # Turns

    def turn(self, db: sqlite3.Connection, turn: Turn, foreign: bool) -> TurnResult:
        """`Store.turn`; `foreign`: another process wrote since the last one."""
        now_ms = self._begin(db, turn.now_ms)
        self._deltas.clear()
        result = TurnResult(crossings=self._untold)
        self._untold = []
        self._register(now_ms)
        if foreign:
            self.lanes.wake_all(now_ms)
            if self._taken:
                result.answered = self._answered_elsewhere(now_ms)
        load_gates(db, self.gates, now_ms)
        hear(self.gates, turn.settle, self.lanes, now_ms)
        if turn.settle:
            result.settled = self._settle(turn.settle, now_ms, result)
        for request_id in turn.cancel:
            result.cancelled.append(self._cancel(request_id, now_ms))
        self._promote(now_ms)
        for request_id, new in turn.amend:
            self._amend(request_id, new, now_ms)
        for request_id, is_lent in turn.lend:
            self._lend(request_id, is_lent, now_ms)
        if turn.submit:
            result.submitted = self._submit(turn.submit, now_ms)
        self._expire(now_ms, result)
        self.lanes.wake_due(now_ms)
        if turn.slots is not None:
            self._claim(turn, now_ms, result)
        elif self.lanes.any_waiting:
            self._step_out_of_line(self.worker_id)
        self._write_lanes(result)
        save_gates(db, self.gates)
        self._finish(now_ms)
        result.look_again_at_ms = self._look_again_at_ms(result.look_again_at_ms)
        if self._was_lost or self._is_miscounted:
            result.was_lost, self._was_lost, self._is_miscounted = self._was_lost, False, False
            (result.waiting,) = self._db.execute(
                "SELECT count(*) FROM requests WHERE state IN ('queued', 'delayed')"
                " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?)",
                (self.worker_id,),
            ).fetchone()
        result.lease_ms = self.seen_at_ms + self.lease_ms - now_ms
        return result

    def _finish(self, now_ms: int) -> None:
        """Write the accounts and tallies this transaction changed."""
        self._write_accounts()
        if self._deltas:
            self._db.executemany(
                "INSERT INTO tallies VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET count = count + excluded.count",
                [(*key, count) for key, count in self._deltas.items() if count],
            )
        for budget_id, accounts in self._accounts.items():
            known = self.statuses.get(budget_id)
            if known is not None and accounts:
                self.statuses[budget_id] = budget_status(
                    budget_id, known.budget, accounts[0].paused, accounts, now_ms
                )

    def _register(self, now_ms: int) -> None:
        """Keep this process's lease; take back what dead ones left."""
        if self.worker_id and now_ms - self.seen_at_ms < self.lease_ms // 3:
            return
        db, me = self._db, self.process
        if not self.worker_id:
            add_indexes(db)
            (self.worker_id,) = db.execute(
                "INSERT INTO workers (host, pid, started, seen_at_ms) VALUES (?, ?, ?, ?) RETURNING id",
                (me.host, me.pid, me.started, now_ms),
            ).fetchone()
        else:
            row = db.execute(
                "SELECT is_lost FROM workers WHERE id = ?", (self.worker_id,)
            ).fetchone()
            self._was_lost = row is None or bool(row[0])
            if row is None:
                self._restore_lanes()
            db.execute(
                "INSERT INTO workers (id, host, pid, started, seen_at_ms) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET seen_at_ms = excluded.seen_at_ms, is_lost = 0",
                (self.worker_id, me.host, me.pid, me.started, now_ms),
            )
            self._recount(now_ms)
        self.seen_at_ms = now_ms
        self._reclaim(now_ms)

    def _restore_lanes(self) -> None:
        """Others took this process for gone, and its lanes may have been pruned."""
        self._db.executemany(
            "INSERT OR IGNORE INTO lanes (id, worker_id, provider, budgets, priority, may_wait, model)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(lane.id, *self._lane_row(lane.key)) for lane in self.lanes],
        )

    def _recount(self, now_ms: int) -> None:
        """Read how many wait in this process's lanes: others may have put requests back."""
        for lane_id, waiting in self._db.execute(
            "SELECT id, waiting FROM lanes WHERE worker_id = ?", (self.worker_id,)
        ):
            lane = self.lanes.by_id(lane_id)
            if lane is not None and lane.waiting != waiting:
                self.lanes.add(lane, count=waiting - lane.waiting)
                self.lanes.remove(lane, now_ms, 0)  # it may be empty
                lane.passed_id = 0

    def _reclaim(self, now_ms: int) -> None:
        """End dead processes: what they may have sent is unknown, the rest waits for its key.

        On this machine a process is there or not. Elsewhere only its silence tells: after
        its lease others may take its keys over; after a day it is taken for gone.
        """
        for worker_id, host, pid, started, seen_at_ms, is_lost in self._db.execute(
            "SELECT id, host, pid, started, seen_at_ms, is_lost FROM workers WHERE id <> ?",
            (self.worker_id,),
        ).fetchall():
            silent_ms = now_ms - seen_at_ms
            is_gone = is_dead(self.process, Process(host, pid, started))
            if not is_gone:
                is_here = host == self.process.host and bool(started)
                if is_here or silent_ms <= self.lease_ms:
                    continue
                is_gone = silent_ms > GONE_MS
            if is_lost and not is_gone:
                continue
            self._suspend_all(worker_id, now_ms, is_gone=is_gone)
            if is_gone:
                self._db.execute("DELETE FROM workers WHERE id = ?", (worker_id,))
            else:
                self._db.execute("UPDATE workers SET is_lost = 1 WHERE id = ?", (worker_id,))
            self._step_out_of_line(worker_id)
            self.lanes.wake_all(now_ms)
        for (worker_id,) in self._db.execute(
            # Both conditions on the state: the first is the index's own.
            "SELECT DISTINCT worker_id FROM reservations WHERE state IN ('pending', 'suspense')"
            " AND state = 'pending' AND worker_id NOT IN (SELECT id FROM workers)"
        ).fetchall():
            self._suspend_all(worker_id, now_ms, is_gone=True)

    # Waiting

    def _cancel(self, request_id: int, now_ms: int) -> bool:
        row = self._db.execute(
            "SELECT lane_id FROM requests WHERE id = ?", (request_id,)
        ).fetchone()
        if row is None or self.lanes.by_id(row[0]) is None:
            return False  # another process's: not ours to cancel
        return self._drop(request_id, RequestState.CANCELLED, now_ms) is not None

    def _drop(
        self, request_id: int, state: RequestState, now_ms: int, error: str | None = None
    ) -> int | None:
        """End a request that waits; returns how long it did, or None if it does not wait."""
        row = self._db.execute(
            "SELECT state, lane_id, job_id, submitted_at_ms, parked_mark_ms FROM requests"
            " WHERE id = ? AND state IN ('queued', 'delayed')",
            (request_id,),
        ).fetchone()
        if row is None:
            return None
        old, lane_id, job_id, submitted_at_ms, mark_ms = row
        lane = self.lanes.by_id(lane_id)
        parked_ms = 0
        if old == RequestState.QUEUED:
            if lane is not None:
                parked_ms = lane.parked_clock_ms(now_ms) - mark_ms
            self._leave_lane(request_id, lane_id, now_ms)
        self._db.execute(
            "UPDATE requests SET state = ?, parked_ms = parked_ms + ?, error = ?, ended_at_ms = ?,"
            " payload = CASE WHEN key IS NULL THEN NULL ELSE payload END WHERE id = ?",
            (state.value, parked_ms, error, now_ms, request_id),
        )
        self.kept.pop(request_id, None)
        self._deltas[job_id, RequestState.QUEUED] -= 1
        self._deltas[job_id, state.value] += 1
        return int(now_ms - submitted_at_ms)

    def _promote(self, now_ms: int) -> None:
        """Queue those whose time has come, of this process's lanes."""
        rows = self._db.execute(
            "SELECT id, lane_id, ceiling_nusd, ceiling_tokens FROM requests"
            " WHERE state = 'delayed' AND not_before_ms <= ?"
            " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?)",
            (now_ms, self.worker_id),
        ).fetchall()
        for request_id, lane_id, nusd, tokens in rows:
            mark_ms = self._requeue(lane_id, (nusd, tokens, 1), now_ms)
            self._db.execute(
                "UPDATE requests SET state = 'queued', parked_mark_ms = ? WHERE id = ?",
                (mark_ms, request_id),
            )

    def _expire(self, now_ms: int, result: TurnResult) -> None:
        rows = self._db.execute(
            "SELECT r.id, r.key, j.name, r.lane_id, r.state, r.expires_at_ms"
            " FROM requests r JOIN jobs j ON j.id = r.job_id"
            " WHERE r.expires_at_ms <= ? AND r.expires_at_ms IS NOT NULL"
            " AND r.state IN ('queued', 'delayed')"
            " AND r.lane_id IN (SELECT id FROM lanes WHERE worker_id = ?) ORDER BY r.id",
            (now_ms, self.worker_id),
        ).fetchall()
        for request_id, key, job, lane_id, state, at_ms in rows:
            lane = self.lanes.by_id(lane_id) if state == RequestState.QUEUED else None
            lack = None if lane is None else lane.shortfall
            waited_ms = self._drop(request_id, RequestState.EXPIRED, now_ms)
            if waited_ms is not None:
                result.expired.append(ExpiredRequest(request_id, waited_ms, key, job, lack, at_ms))

    def _look_again_at_ms(self, gate_ms: int | None) -> int | None:
        row = self._db.execute(
            "SELECT min(not_before_ms) FROM requests WHERE state = 'delayed'"
            " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?)"
            " UNION ALL SELECT min(expires_at_ms) FROM requests"
            " WHERE expires_at_ms IS NOT NULL AND state IN ('queued', 'delayed')"
            " AND lane_id IN (SELECT id FROM lanes WHERE worker_id = ?)",
            (self.worker_id, self.worker_id),
        ).fetchall()
        instants = [instant for (instant,) in row if instant is not None]
        instants += [at_ms for at_ms in (self.lanes.due_ms, gate_ms) if at_ms is not None]
        return min(instants, default=None)

    # Claiming

    def _claim(self, turn: Turn, now_ms: int, result: TurnResult) -> None:
        if not self.lanes.open:
            return
        assert turn.slots is not None
        with contextlib.ExitStack() as cursors:
            show = partial(self._show, cursors)
            lineup = Lineup(self.lanes.open, show, self.gates, turn.slots, now_ms, at_once=AT_ONCE)
            decided = Planner(lineup, turn.slots, now_ms, self._admitted).decide()
        self._admitted += len(decided.admitted)
        result.look_again_at_ms = now_ms if decided.is_cut else decided.look_again_at_ms
        self._start(decided, lineup.looked, now_ms, result)
        for candidate, lack in decided.refused:
            assert isinstance(candidate, Waiting)
            request = self.kept.get(candidate.id) or decode_request(candidate.row[3])
            result.refused.append(Refused(candidate.id, request, lack))
            if not (request.fallback or candidate.id in turn.holds):
                error = json.dumps(refusal(lack))
                self._drop(candidate.id, RequestState.FAILED, now_ms, error)
        for lane, verdict, rest_id in zip(
            lineup.looked, decided.verdicts, decided.rests, strict=True
        ):
            self.lanes.settle(lane, verdict, rest_id, now_ms)
        if self.lanes.wake_behind(decided.moved, now_ms):
            result.look_again_at_ms = now_ms

    def _show(self, cursors: contextlib.ExitStack, lanes: Sequence[Lane]) -> list[LaneView]:
        """Lanes as a plan sees them."""
        views = []
        for lane in lanes:
            cursor = cursors.enter_context(contextlib.closing(self._db.cursor()))
            accounts = self._accounts_of(lane.key.budgets)
            gates = self.gates.of(lane.key.provider, lane.key.model)
            views.append(view(self._db, cursor, lane, accounts, gates))
        return views

    def _start(self, decided: Plan, lanes: Sequence[Lane], now_ms: int, result: TurnResult) -> None:
        if not decided.admitted:
            return
        (next_id,) = self._db.execute(
            "SELECT coalesce(max(id), 0) + 1 FROM reservations"
        ).fetchone()
        by_id = {lane.id: lane for lane in lanes}
        budgets = {lane.id: encode_budgets(lane.key.budgets) for lane in lanes}
        running, reserved = [], []
        for candidate in decided.admitted:
            assert isinstance(candidate, Waiting)
            (lane_id, nusd, tokens, payload, attempts, cost_nusd, submitted_at_ms, mark_ms,
             parked_ms, job_id, model, digest) = candidate.row  # fmt: skip
            lane = by_id[lane_id]
            parked_ms += max(0, lane.parked_clock_ms(now_ms) - mark_ms)
            self.lanes.remove(lane, now_ms)
            take = self.kept.pop if payload is not None else self.kept.get
            request = take(candidate.id, None) or decode_request(payload)
            running.append((next_id, parked_ms, candidate.id))
            reserved.append(
                (
                    next_id,
                    candidate.id,
                    self.worker_id,
                    job_id,
                    budgets[lane_id],
                    model,
                    now_ms,
                    nusd,
                    tokens,
                )
            )
            self._deltas[job_id, RequestState.QUEUED] -= 1
            self._deltas[job_id, RequestState.RUNNING] += 1
            result.claimed.append(
                Claimed(
                    candidate.id, next_id, request, attempts + 1, nusd, tokens, cost_nusd,
                    submitted_at_ms, parked_ms, digest, lane.key.budgets, now_ms,
                )
            )  # fmt: skip
            next_id += 1
        self._db.executemany(
            "UPDATE requests SET state = 'running', attempts = attempts + 1, reservation_id = ?,"
            " parked_ms = ? WHERE id = ?",
            running,
        )
        self._db.executemany(
            "INSERT INTO reservations (id, request_id, worker_id, job_id, budgets, model, state,"
            " made_at_ms, ceiling_nusd, ceiling_tokens) VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)",
            reserved,
        )

    def _write_lanes(self, result: TurnResult) -> None:
        changed = self.lanes.take_changed()
        for lane in changed:
            result.lanes.append(LaneStatus(lane.key, lane.waiting, lane.shortfall))
            self._db.execute(
                "UPDATE lanes SET shortfall = ?, shut_since_ms = ?, parked_total_ms = ? WHERE id = ?",
                (
                    None if lane.shortfall is None else encode_shortfall(lane.shortfall),
                    lane.shut_since_ms, lane.parked_total_ms, lane.id,
                ),
            )  # fmt: skip
        counts = [(lane.waiting, lane.id) for lane in self.lanes.take_counted()]
        self._db.executemany("UPDATE lanes SET waiting = ? WHERE id = ?", counts)

    def resolve(
        self, db: sqlite3.Connection, settlements: Sequence[Settlement], now_ms: int
    ) -> list[bool]:
        """`Store.resolve`."""
        now_ms = self._begin(db, now_ms)
        self._deltas.clear()
        unknown = {
            row[0]
            for row in db.execute(
                "SELECT id FROM reservations WHERE id IN (SELECT value FROM json_each(?))"
                " AND (state = 'suspense' OR is_assumed)",
                (json.dumps([each.reservation_id for each in settlements]),),
            )
        }
        wanted = [each for each in settlements if each.reservation_id in unknown]
        result = TurnResult()
        done = iter(self._settle(wanted, now_ms, result))
        self._untold += result.crossings
        self._finish(now_ms)
        return [each.reservation_id in unknown and next(done) for each in settlements]

    def forget(self, db: sqlite3.Connection, job: str, now_ms: int) -> None:
        """`Store.forget`."""
        now_ms = self._begin(db, now_ms)
        self._deltas.clear()
        self._check_idle(job)
        for (request_id,) in db.execute(
            "SELECT id FROM requests WHERE job_id = (SELECT id FROM jobs WHERE name = ?)"
            " AND state IN ('queued', 'delayed')",
            (job,),
        ).fetchall():
            self._drop(request_id, RequestState.CANCELLED, now_ms)
        db.execute(
            "UPDATE requests SET key = NULL, is_delivered = 1"
            " WHERE job_id = (SELECT id FROM jobs WHERE name = ?)",
            (job,),
        )
        self._finish(now_ms)

    def _check_idle(self, job: str) -> None:
        for host, pid, started in self._db.execute(
            "SELECT DISTINCT w.host, w.pid, w.started FROM requests r JOIN lanes l ON l.id = r.lane_id"
            " JOIN workers w ON w.id = l.worker_id"
            " WHERE r.job_id = (SELECT id FROM jobs WHERE name = ?) AND w.id <> ?"
            " AND r.state IN ('queued', 'delayed', 'running')",
            (job, self.worker_id),
        ):
            if not is_dead(self.process, Process(host, pid, started)):
                raise StoreLocked(
                    f"process {pid} is running the job {job!r}; nothing was changed. Stop it first"
                )

    def leave(self, db: sqlite3.Connection) -> None:
        """This process goes: what waits, waits for its key to be submitted again."""
        if not self.worker_id:
            return
        # Only after a failure is anything of this process still open.
        now_ms = self._begin(db, self._now_ms)
        self._deltas.clear()
        self._step_out_of_line(self.worker_id)
        self._suspend_all(self.worker_id, now_ms, is_gone=True)
        self._write_lanes(TurnResult())
        self._finish(now_ms)
        db.execute("DELETE FROM workers WHERE id = ?", (self.worker_id,))
        self.worker_id = self.seen_at_ms = 0  # opened again, it is another one
        self.lanes = Lanes()
        self.kept.clear()
        self._taken.clear()
