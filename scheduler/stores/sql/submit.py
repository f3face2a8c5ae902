"""Putting requests in the queue of a SQLite file, and changing those that wait there."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from scheduler.admission.plan import LaneKey
from scheduler.request import RequestState
from scheduler.stores.base import Finished, Known, NewRequest, Submitted
from scheduler.stores.lanes import Lane
from scheduler.stores.sql.books import encode_budgets, rows_of_keys
from scheduler.stores.sql.codec import decode_request, decode_response, encode_request
from scheduler.stores.sql.settle import Settling, state_of
from scheduler.stores.views import is_tried_again, keep_line


class _Known(NamedTuple):
    """What is stored under a key."""

    id: int
    digest: str
    state: str
    lane_id: int
    submitted_at_ms: int


class Submitting(Settling):
    """Books of a process that takes requests in."""

    def __init__(self) -> None:
        super().__init__()
        self.worker_id = 0  # 0: not registered, this process has only looked so far
        self._jobs: dict[str, int] = {}
        self._taken: set[int] = set()  # queued here, and may still be answered elsewhere

    def _submit(self, batch: Sequence[NewRequest], now_ms: int) -> list[Submitted]:
        known = self._read_known(batch)
        (next_id,) = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM requests").fetchone()
        rows, result = [], []
        taken: dict[int, NewRequest] = {}  # those of this very batch with a key
        for new in batch:
            job_id, key = self._job_id(new.request.job), new.request.key
            if key is not None and (job_id, key) in known:
                first = taken.get(known[job_id, key].id)
                answer, now_known = self._resubmit(new, known[job_id, key], first, now_ms)
                known[job_id, key] = now_known
                result.append(answer)
                continue
            lane = self._lane(new.lane)
            mark_ms = self._enqueue(lane, next_id, new, now_ms)
            if new.is_kept or self.store_prompts != "full":
                self.kept[next_id] = new.request
            rows.append(
                (
                    next_id,
                    job_id,
                    key,
                    "" if self.store_prompts == "none" else new.digest,
                    lane.id,
                    RequestState.QUEUED.value,
                    new.request.model,
                    new.ceiling_nusd,
                    new.ceiling_tokens,
                    new.expected_nusd,
                    now_ms,
                    new.expires_at_ms,
                    mark_ms,
                    key is None,
                    self._payload(new),
                    *new.tokens,
                )
            )
            self._deltas[job_id, RequestState.QUEUED] += 1
            if key is not None:
                taken[next_id] = new
                known[job_id, key] = _Known(
                    next_id, new.digest, RequestState.QUEUED.value, lane.id, now_ms
                )
            result.append(Submitted(next_id))
            next_id += 1
        self._db.executemany(
            "INSERT INTO requests (id, job_id, key, digest, lane_id, state, model, ceiling_nusd,"
            " ceiling_tokens, expected_nusd, submitted_at_ms, expires_at_ms, parked_mark_ms,"
            " is_delivered, payload, input_tokens, output_tokens)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        return result

    def _payload(self, new: NewRequest) -> str | None:
        """What of the request's content goes to the disk."""
        if self.store_prompts != "full":
            return None
        return new.payload or encode_request(new.request)

    def _read_known(self, batch: Sequence[NewRequest]) -> dict[tuple[int, str], _Known]:
        """Rows of the batch's keys that were submitted before."""
        keys: dict[int, list[str]] = {}
        for new in batch:
            if new.request.key is not None:
                keys.setdefault(self._job_id(new.request.job), []).append(new.request.key)
        columns = "key, id, digest, state, lane_id, submitted_at_ms"
        known: dict[tuple[int, str], _Known] = {}
        for job_id, names in keys.items():
            found = rows_of_keys(self._db, columns, job_id, names)
            known |= {(job_id, row[0]): _Known(*row[1:]) for row in found}
        return known

    def _resubmit(
        self, new: NewRequest, known: _Known, first: NewRequest | None, now_ms: int
    ) -> tuple[Submitted, _Known]:
        """Submit a key that is known; `first`: what was submitted for it in this batch."""
        request_id, digest, text, lane_id, submitted_at_ms = known
        state = state_of(text)
        answer = Submitted(request_id, state, is_known=True, submitted_at_ms=submitted_at_ms)
        if Known(state, digest).is_conflict(new.digest):
            answer.is_conflict = True
            return answer, known
        if state.is_final:
            done = read_finished(self._db, request_id)
            if not is_tried_again(state, new.retry_failed, done and done.error):
                answer.finished = done
                return answer, known
        elif (lane := self.lanes.by_id(lane_id)) is not None:
            answer.held = first or self._as_it_waits(request_id, lane)
            return answer, known
        elif state is RequestState.RUNNING or self._is_owned(lane_id):
            answer.is_elsewhere = True
            return answer, known
        else:
            self._db.execute(
                "UPDATE lanes SET waiting = max(0, waiting - (SELECT state = 'queued' FROM requests"
                " WHERE id = ?)) WHERE id = ?",
                (request_id, lane_id),
            )
        if self._db.execute(
            "SELECT 1 FROM reservations WHERE request_id = ? AND (state = 'suspense' OR is_assumed)",
            (request_id,),
        ).fetchone():
            self._taken.add(request_id)
        lane = self._lane(new.lane)
        mark_ms = self._enqueue(lane, request_id, new, now_ms)
        self._db.execute(
            "UPDATE requests SET state = 'queued', lane_id = ?, parked_mark_ms = ?,"
            " expires_at_ms = ?,"
            " ceiling_nusd = ?, ceiling_tokens = ?, expected_nusd = ?, model = ?, input_tokens = ?,"
            " output_tokens = ?, attempts = 0, error = NULL,"
            " payload = ?, is_delivered = 0, ended_at_ms = NULL WHERE id = ?",
            (
                lane.id, mark_ms, new.expires_at_ms, new.ceiling_nusd, new.ceiling_tokens,
                new.expected_nusd, new.request.model, *new.tokens, self._payload(new), request_id,
            ),
        )  # fmt: skip
        if new.is_kept or self.store_prompts != "full":
            self.kept[request_id] = new.request
        job_id = self._job_id(new.request.job)
        self._deltas[job_id, state.value] -= 1
        self._deltas[job_id, RequestState.QUEUED] += 1
        queued = known._replace(state=RequestState.QUEUED.value, lane_id=lane.id)
        return Submitted(request_id), queued

    def _answered_elsewhere(self, now_ms: int) -> list[Finished]:
        """Of what was taken over from processes that seemed dead, what these have answered."""
        ended = self._db.execute(
            "SELECT id, state, lane_id FROM requests"
            " WHERE id IN (SELECT value FROM json_each(?))"
            " AND state IN ('succeeded', 'failed', 'cancelled', 'expired')",
            (json.dumps(list(self._taken)),),
        ).fetchall()
        self._taken.difference_update(request_id for request_id, _, _ in ended)
        answered = [each for each in ended if each[1] == RequestState.SUCCEEDED]
        for lane_id in {lane_id for _, _, lane_id in answered}:
            lane = self.lanes.by_id(lane_id)
            if lane is not None:
                (waiting,) = self._db.execute(
                    "SELECT count(*) FROM requests WHERE lane_id = ? AND state = 'queued'",
                    (lane_id,),
                ).fetchone()
                self.lanes.remove(lane, now_ms, lane.waiting - waiting)
        self._is_miscounted |= bool(answered)
        found = (read_finished(self._db, request_id) for request_id, _, _ in answered)
        return [each for each in found if each is not None]

    def _amend(self, request_id: int, new: NewRequest, now_ms: int) -> None:
        row = self._db.execute(
            "SELECT lane_id, state, parked_mark_ms FROM requests WHERE id = ?"
            " AND state IN ('queued', 'delayed', 'running')",
            (request_id,),
        ).fetchone()
        old = None if row is None else self.lanes.by_id(row[0])
        if old is None:
            return
        _, state, mark_ms = row
        lane, parked_ms = self._lane(new.lane), 0
        if state == RequestState.QUEUED:
            parked_ms = max(0, old.parked_clock_ms(now_ms) - mark_ms)
            self._change_lane(request_id, old, lane, new, now_ms)
            mark_ms = self._enqueue(lane, request_id, new, now_ms)
        self._db.execute(
            "UPDATE requests SET lane_id = ?, parked_mark_ms = ?, parked_ms = parked_ms + ?,"
            " ceiling_nusd = ?, ceiling_tokens = ?, expected_nusd = ?, model = ?, input_tokens = ?,"
            " output_tokens = ?, payload = ?,"
            " expires_at_ms = CASE WHEN ? THEN expires_at_ms ELSE ? END WHERE id = ?",
            (
                lane.id, mark_ms, parked_ms, new.ceiling_nusd, new.ceiling_tokens,
                new.expected_nusd, new.request.model, *new.tokens, self._payload(new),
                new.keeps_time, new.expires_at_ms, request_id,
            ),
        )  # fmt: skip
        if new.is_kept or self.store_prompts != "full":
            self.kept[request_id] = new.request

    def _change_lane(
        self, request_id: int, old: Lane, lane: Lane, new: NewRequest, now_ms: int
    ) -> None:
        """It leaves one lane for another, which it enters next."""
        self.lanes.remove(old, now_ms)
        accounts = self._accounts_of(old.key.budgets), self._accounts_of(lane.key.budgets)
        needs = (new.ceiling_nusd, new.ceiling_tokens, 1)
        if keep_line(*accounts, request_id, lane.key.priority, needs):
            self.lanes.wake_behind((each.id for each in accounts[0]), now_ms)

    def _lend(self, request_id: int, is_lent: bool, now_ms: int) -> None:
        """A request goes on waiting among those that are lent a place, or no more."""
        row = self._db.execute(
            "SELECT state, lane_id, parked_mark_ms, ceiling_nusd, ceiling_tokens FROM requests"
            " WHERE id = ? AND state IN ('queued', 'delayed')",
            (request_id,),
        ).fetchone()
        lane = None if row is None else self.lanes.by_id(row[1])
        if lane is None or lane.key.is_lent is is_lent:
            return
        state, lane_id, mark_ms, nusd, tokens = row
        other, parked_ms = self._lane(lane.key._replace(is_lent=is_lent)), 0
        if state == RequestState.QUEUED:
            parked_ms = max(0, lane.parked_clock_ms(now_ms) - mark_ms)
            self._leave_lane(request_id, lane_id, now_ms)
            mark_ms = self._requeue(other.id, (nusd, tokens, 1), now_ms)
        self._db.execute(
            "UPDATE requests SET lane_id = ?, parked_mark_ms = ?, parked_ms = parked_ms + ?"
            " WHERE id = ?",
            (other.id, mark_ms, parked_ms, request_id),
        )

    def _as_it_waits(self, request_id: int, lane: Lane) -> NewRequest | None:
        """A request of this process as it might be submitted; None: what it asks was not kept."""
        payload, expires_at_ms = self._db.execute(
            "SELECT payload, expires_at_ms FROM requests WHERE id = ?", (request_id,)
        ).fetchone()
        request = self.kept.get(request_id)
        if request is None and payload is not None:
            request = decode_request(payload)
        if request is None:
            return None
        return NewRequest(request, lane.key, 0, expires_at_ms=expires_at_ms)

    def _is_owned(self, lane_id: int) -> bool:
        """Whether the lane's process is still there."""
        row = self._db.execute(
            "SELECT 1 FROM lanes JOIN workers ON workers.id = lanes.worker_id"
            " WHERE lanes.id = ? AND NOT workers.is_lost",
            (lane_id,),
        ).fetchone()
        return row is not None

    def _enqueue(self, lane: Lane, request_id: int, new: NewRequest, now_ms: int) -> int:
        self.lanes.add(lane, request_id)
        needs = (new.ceiling_nusd, new.ceiling_tokens, 1)
        if request_id < lane.passed_id:
            lane.look_at_all(needs)
        if lane.shortfall is not None and lane.wakes_for(
            needs, self._accounts_of(lane.key.budgets)
        ):
            self.lanes.reopen(lane, now_ms)
        return lane.parked_clock_ms(now_ms)

    def _lane(self, key: LaneKey) -> Lane:
        return self.lanes.get(key, lambda: self._insert_lane(key))

    def _insert_lane(self, key: LaneKey) -> int:
        row = self._db.execute(
            "INSERT INTO lanes (worker_id, provider, budgets, priority, may_wait, model)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            self._lane_row(key),
        ).fetchone()
        return int(row[0])

    def _lane_row(self, key: LaneKey) -> tuple[int, str, str, int, bool, str]:
        budgets = encode_budgets(key.budgets)
        return self.worker_id, key.provider, budgets, key.priority, key.may_wait, key.model

    def _job_id(self, name: str) -> int:
        job_id = self._jobs.get(name)
        if job_id is None:
            self._db.execute("INSERT OR IGNORE INTO jobs (name) VALUES (?)", (name,))
            (job_id,) = self._db.execute("SELECT id FROM jobs WHERE name = ?", (name,)).fetchone()
            self._jobs[name] = job_id
        return int(job_id)


def read_finished(db: sqlite3.Connection, request_id: int) -> Finished | None:
    """The outcome of a request that has ended."""
    row = db.execute(
        "SELECT r.id, r.key, r.state, r.error, r.cost_nusd, r.attempts, a.response, r.digest"
        " FROM requests r LEFT JOIN responses a ON a.request_id = r.id WHERE r.id = ?",
        (request_id,),
    ).fetchone()
    return None if row is None else decode_finished(row)


def decode_finished(
    row: tuple[int, str | None, str, str | None, int, int, str | None, str],
) -> Finished:
    """An outcome from its row: id, key, state, error, cost, attempts, response, digest."""
    request_id, key, state, error, cost_nusd, attempts, response, digest = row
    return Finished(
        request_id, key, RequestState(state),
        None if response is None else decode_response(response),
        None if error is None else json.loads(error), cost_nusd, attempts, digest,
    )  # fmt: skip
