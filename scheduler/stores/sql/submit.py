"""Putting requests in the queue, and changing those that wait there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.admission.plan import LaneKey
from scheduler.request import RequestState
from scheduler.stores.base import Known, NewRequest, Submitted
from scheduler.stores.lanes import Lane
from scheduler.stores.sql.books import Books
from scheduler.stores.sql.codec import decode_request, encode_request
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.dialect import TEXT, Insert
from scheduler.stores.sql.rows import (
    COLUMNS,
    QUEUED,
    SUCCEEDED,
    Row,
    ask_by_keys,
    read_by_keys,
    read_finished,
    read_payloads,
)
from scheduler.stores.sql.sheet import Sheet
from scheduler.stores.sql.waiting import (
    enter_again,
    enter_lane,
    know_lanes,
    leave_lane,
    open_lanes,
)
from scheduler.stores.tagged import encode_tags
from scheduler.stores.views import is_tried_again, keep_line

_JOBS = Insert("jobs", {"name": TEXT}, "ON CONFLICT (name) DO NOTHING")


@dataclass(slots=True)
class Asked:
    """What submitting a batch has found out, and has yet to read.

    Attributes:
        known: What is under a key, by job and key.
        ended: Submissions of keys that have ended: they are to get the outcome.
        held: Of those that this process has: they are to get what waits, unless it is of this batch.
        again: Requests queued again, which whoever had them before may still answer.
    """

    known: dict[tuple[int, str], Row]
    ended: list[Submitted] = field(default_factory=list)
    held: list[tuple[Submitted, Row, LaneKey]] = field(default_factory=list)
    again: list[int] = field(default_factory=list)


# Gather


def ask_known(db: Connection, books: Books, batch: Sequence[NewRequest]) -> None:
    """`read_known` will be called for these."""
    jobs = books.jobs
    if all(new.request.job in jobs for new in batch):
        ask_by_keys(db, COLUMNS, _names(jobs, batch))


def _names(jobs: Mapping[str, int], batch: Sequence[NewRequest]) -> list[tuple[int, str]]:
    return list(dict.fromkeys(
        (jobs[new.request.job], new.request.key) for new in batch if new.request.key is not None
    ))  # fmt: skip


def read_known(sheet: Sheet, batch: Sequence[NewRequest]) -> Asked:
    """Read what is stored under the batch's keys, and have its jobs."""
    job_ids = _have_jobs(sheet, {new.request.job for new in batch})
    rows = read_by_keys(sheet.db, COLUMNS, _names(job_ids, batch))
    found = [sheet.meet(Row(*row)) for row in rows]
    know_lanes(sheet, (row for row in found if row.is_live))
    return Asked({(row.job_id, row.key): row for row in found if row.key is not None})


def _have_jobs(sheet: Sheet, names: Iterable[str]) -> Mapping[str, int]:
    jobs, db = sheet.books.jobs, sheet.db
    missing = [name for name in names if name not in jobs]
    if missing:
        db.write_many(_JOBS, [(name,) for name in missing])
        odd = [name for name in missing if "\0" in name]
        plain = db.dialect.a_list(name for name in missing if "\0" not in name)
        jobs |= dict(db.read(f"SELECT name, id FROM jobs WHERE name {db.dialect.among}", plain))
        for name in odd:
            jobs[name] = db.value("SELECT id FROM jobs WHERE name = ?", name)
    return jobs


# Decide


def submit(sheet: Sheet, batch: Sequence[NewRequest], asked: Asked) -> list[Submitted]:
    """Queue what is not known, and tell what is; `answer` adds what is known of the rest."""
    if not batch:
        return []
    jobs = sheet.books.jobs
    names = [
        None if new.request.key is None else (jobs[new.request.job], new.request.key)
        for new in batch
    ]
    known = [None if name is None else asked.known.get(name) for name in names]
    may_be = [row is None or _may_be_queued(sheet, row) for row in known]
    lanes = iter(open_lanes(
        sheet, [_lane_key(sheet, new) for new, queued in zip(batch, may_be, strict=True) if queued]
    ))  # fmt: skip
    ids = iter(sheet.db.new_ids("requests", known.count(None)))
    taken: dict[int, NewRequest] = {}  # those of this very batch with a key
    result = []
    for new, name, queued in zip(batch, names, may_be, strict=True):
        lane = next(lanes) if queued else None
        row = None if name is None else asked.known.get(name)
        if row is not None:
            result.append(_submit_known(sheet, new, lane, row, taken.get(row.id), asked))
            continue
        assert lane is not None
        row = _new_row(sheet, next(ids), jobs[new.request.job], new)
        _queue(sheet, row, new, lane, is_new=True)
        sheet.new.append(row)
        sheet.rows[row.id] = row
        if name is not None:
            taken[row.id] = new
            asked.known[name] = row
        result.append(Submitted(row.id))
    return result


def _may_be_queued(sheet: Sheet, row: Row) -> bool:
    """Whether a known key may be queued again."""
    if row.is_live:
        return sheet.books.lanes.by_id(row.lane_id) is None
    return row.state != SUCCEEDED


def _lane_key(sheet: Sheet, new: NewRequest) -> LaneKey:
    """Its lane: anybody's only if anybody could send it, and be asked for its answer."""
    key = new.lane
    is_whole = new.request.key is not None and sheet.books.store_prompts == "full"
    return key if is_whole or not key.is_shared else key._replace(is_shared=False)


def _new_row(sheet: Sheet, request_id: int, job_id: int, new: NewRequest) -> Row:
    digest = "" if sheet.books.store_prompts == "none" else new.digest
    key = new.request.key
    return Row(
        request_id, job_id, key, digest, 0, 0, "", new.request.model, new.ceiling_nusd,
        new.ceiling_tokens, new.expected_nusd, *new.tokens, sheet.now_ms, is_delivered=int(key is None),
    )  # fmt: skip


def _queue(sheet: Sheet, row: Row, new: NewRequest, lane: Lane, *, is_new: bool = False) -> None:
    """A request begins to wait, on these terms."""
    _take_terms(sheet, row, new, lane)
    row.state, row.expires_at_ms, row.due_at_ms = QUEUED, new.expires_at_ms, new.due_at_ms
    sheet.tallies[row.job_id, QUEUED] += 1
    enter_lane(sheet, row, lane, is_new=is_new)


def _take_terms(sheet: Sheet, row: Row, new: NewRequest, lane: Lane) -> None:
    """What is asked, and what it may cost, is now this."""
    books = sheet.books
    row.is_changed = True
    row.lane_id, row.worker_id = lane.id, 0 if lane.key.is_shared else books.worker_id
    row.model = new.request.model
    row.ceiling_nusd, row.ceiling_tokens = new.ceiling_nusd, new.ceiling_tokens
    row.expected_nusd = new.expected_nusd
    row.input_tokens, row.output_tokens = new.tokens
    row.tags = encode_tags(new.request.tags)
    is_full = books.store_prompts == "full"
    row.payload = (new.payload or encode_request(new.request)) if is_full else None
    if new.is_kept or not is_full:
        books.kept[row.id] = new.request


def _submit_known(
    sheet: Sheet, new: NewRequest, lane: Lane | None, row: Row, first: NewRequest | None,
    asked: Asked,
) -> Submitted:  # fmt: skip
    """Submit a key that is known; `first`: what was submitted for it in this batch."""
    books, state = sheet.books, row.public_state
    answer = Submitted(row.id, state, is_known=True, submitted_at_ms=row.submitted_at_ms)
    if Known(state, row.digest).is_conflict(new.digest):
        answer.is_conflict = True
        return answer
    if state.is_final:
        error = None if row.error is None else json.loads(row.error)
        if not is_tried_again(state, new.retry_failed, error):
            asked.ended.append(answer)
            return answer
    else:
        own = books.lanes.by_id(row.lane_id)
        if own is not None and own.key.is_shared and not books.sends(row):
            answer.is_elsewhere = True  # or nowhere yet
            return answer
        if own is not None:
            answer.held = first
            if first is None:
                asked.held.append((answer, row, own.key))
            return answer
        owner = sheet.owners.get(row.lane_id)
        if state is RequestState.RUNNING or (owner is not None and owner.is_alive):
            answer.is_elsewhere = True
            return answer
        if row.state == QUEUED:
            sheet.count_elsewhere(row.lane_id, -1)
    asked.again.append(row.id)
    sheet.tallies[row.job_id, state._value_] -= 1
    row.attempts, row.error, row.is_delivered, row.ended_at_ms = 0, None, 0, None
    assert lane is not None, "it may be queued"
    _queue(sheet, row, new, lane)
    return Submitted(row.id)


# What was asked, once what waits is written


def answer(sheet: Sheet, asked: Asked) -> None:
    """Add outcomes and requests to what was found out of known keys."""
    if not (asked.ended or asked.held or asked.again):
        return
    db, books = sheet.db, sheet.books
    sheet.write()
    finished = read_finished(db, [each.id for each in asked.ended])
    for each in asked.ended:
        each.finished = finished.get(each.id)
    needed = [row.id for _, row, _ in asked.held if row.id not in books.kept]
    payloads = read_payloads(db, needed)
    for each, row, key in asked.held:
        request, payload = books.kept.get(row.id), payloads.get(row.id)
        if request is None and payload is not None:
            request = decode_request(payload)
        if request is not None:
            each.held = NewRequest(request, key, 0)
            each.held.set_time(row.expires_at_ms, row.due_at_ms)
    if asked.again:
        rows = db.read(
            "SELECT DISTINCT request_id FROM reservations"
            " WHERE (state = 'suspense' OR is_assumed <> 0)"
            f" AND request_id {db.dialect.among}",
            db.dialect.a_list(asked.again),
        )
        books.taken.update(row[0] for row in rows)


# Those that wait


def amend(sheet: Sheet, amendments: Sequence[tuple[int, NewRequest]]) -> None:
    """Have requests that live ask something else, or on other terms."""
    for request_id, new in amendments:
        known = sheet.rows.get(request_id)
        if new.keeps_time and known is not None:
            new.set_time(known.expires_at_ms, known.due_at_ms)
    lanes = open_lanes(sheet, [_lane_key(sheet, new) for _, new in amendments])
    for (request_id, new), lane in zip(amendments, lanes, strict=True):
        row = sheet.rows.get(request_id)
        old = None if row is None or not row.is_live else sheet.books.lanes.by_id(row.lane_id)
        if row is None or old is None:
            continue
        if old.key.is_shared and not (row.waits or sheet.books.sends(row)):
            continue  # another process sends it
        _amend(sheet, row, old, new, lane)


def _amend(sheet: Sheet, row: Row, old: Lane, new: NewRequest, lane: Lane) -> None:
    now_ms = sheet.now_ms
    _take_terms(sheet, row, new, lane)
    row.expires_at_ms, row.due_at_ms = new.expires_at_ms, new.due_at_ms
    if row.state == QUEUED:
        row.parked_ms += max(0, old.parked_clock_ms(now_ms) - row.parked_mark_ms)
        sheet.leave(old)
        accounts = sheet.accounts_of(old.key.budgets), sheet.accounts_of(lane.key.budgets)
        if keep_line(*accounts, row.id, lane.key, row.due_at_ms, row.needs):
            sheet.moved([account.id for account in accounts[0]])
        enter_lane(sheet, row, lane, is_new=True)


def lend(sheet: Sheet, lends: Sequence[tuple[int, bool]]) -> None:
    """Requests go on waiting among those that are lent a place, or no more."""
    lanes = sheet.books.lanes
    found: list[tuple[Row, LaneKey]] = []
    for request_id, is_lent in lends:
        row = sheet.rows.get(request_id)
        lane = None if row is None or not row.waits else lanes.by_id(row.lane_id)
        if row is not None and lane is not None and lane.key.is_lent is not is_lent:
            # A call of this process waits for it: it is nobody else's.
            found.append((row, lane.key._replace(is_lent=is_lent, is_shared=False)))
    for (row, _), other in zip(found, open_lanes(sheet, [key for _, key in found]), strict=True):
        _lend(sheet, row, other)


def _lend(sheet: Sheet, row: Row, other: Lane) -> None:
    lane = sheet.books.lanes.by_id(row.lane_id)
    assert lane is not None
    waits_now = row.state == QUEUED
    if waits_now:
        row.parked_ms += max(0, lane.parked_clock_ms(sheet.now_ms) - row.parked_mark_ms)
        leave_lane(sheet, row)
    row.lane_id, row.worker_id, row.is_changed = other.id, sheet.books.worker_id, True
    if waits_now:
        enter_again(sheet, row)
