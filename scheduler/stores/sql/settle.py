"""Ending reservations, and what becomes of their requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scheduler.admission.fairness import cost_for, size_for
from scheduler.guards.texts import words
from scheduler.ledger.account import Needs, ReservationState, cost_in
from scheduler.request import RequestState
from scheduler.stores.base import Settlement, TurnResult
from scheduler.stores.sql.codec import decode_budgets, encode_response
from scheduler.stores.sql.connection import Connection
from scheduler.stores.sql.rows import COLUMNS, DELAYED, QUEUED, RUNNING, SUCCEEDED, Row
from scheduler.stores.sql.sheet import Sheet
from scheduler.stores.sql.tenants import give_back, know_tenants, tenant_of
from scheduler.stores.sql.waiting import end, enter_again, know_lanes, leave_lane
from scheduler.stores.tagged import Label, decode_tags
from scheduler.stores.views import SETTLED

_STATES = {state.value: state for state in ReservationState}


@dataclass(slots=True)
class Hold:
    """A reservation that may be settled."""

    id: int
    state: ReservationState
    is_assumed: bool
    cost: tuple[int, int]  # posted so far: nano-dollars, tokens
    budgets: tuple[int, ...]
    made_at_ms: int
    needs: Needs
    job_id: int
    model: str
    tags: str | None
    row: Row

    @property
    def labels(self) -> tuple[Label, ...]:
        """By what else it is summed."""
        return () if self.tags is None else decode_tags(self.tags)

    @property
    def counted(self) -> int:
        """What it counts in its request's cost, in nano-dollars."""
        return self.needs[0] if self.state is ReservationState.SUSPENSE else self.cost[0]


_HOLDS = (
    "SELECT h.id, h.state, h.is_assumed, h.nusd, h.tokens, h.budgets, h.made_at_ms, h.ceiling_nusd,"
    f" h.ceiling_tokens, h.job_id, h.model, h.tags, {COLUMNS} FROM reservations h JOIN requests r ON r.id = h.request_id"
)


Ids = Sequence[tuple[int, int]]  # of reservations, and of their requests


def ask_holds(db: Connection, ids: Ids) -> None:
    """`read_holds` will be called for these."""
    if ids:
        db.ahead(_holds(db), *_wanted(db, ids))


def _holds(db: Connection) -> str:
    # By both, or an engine may go through all requests there are, in the order of their ids.
    return f"{_HOLDS} WHERE h.id {db.dialect.among} AND r.id {db.dialect.among}"


def _wanted(db: Connection, ids: Ids) -> Iterator[object]:
    return map(db.dialect.a_list, zip(*ids, strict=True))


def read_holds(sheet: Sheet, ids: Ids) -> dict[int, Hold]:
    """Gather what settling these reservations takes: they, their requests, and their accounts."""
    if not ids:
        return {}
    db = sheet.db
    rows = db.read(_holds(db), *_wanted(db, ids))
    holds = {}
    for row in rows:
        id_, state, is_assumed, nusd, tokens, budgets, made_at_ms = row[:7]
        held_nusd, held_tokens, job_id, model, tags = row[7:12]
        holds[id_] = Hold(
            id_, _STATES[state], bool(is_assumed), (nusd, tokens),
            decode_budgets(budgets), made_at_ms, (held_nusd, held_tokens, 1), job_id, model,
            tags, sheet.meet(Row(*row[12:])),
        )  # fmt: skip
    sheet.load(
        {budget_id for hold in holds.values() for budget_id in hold.budgets},
        [(hold.budgets, hold.made_at_ms) for hold in holds.values()],
    )
    know_lanes(sheet, (hold.row for hold in holds.values()))
    whose = (tenant_of(sheet, hold.row) for hold in holds.values())
    know_tenants(sheet, (key for key in whose if key is not None))
    return holds


def write_answers(settlements: Iterable[Settlement]) -> None:
    """Write their responses as text, if they are to be kept."""
    for each in settlements:
        if each.response is not None and each.response.key is not None:
            each.text = encode_response(each.response)


def settle(
    sheet: Sheet, settlements: Sequence[Settlement], holds: dict[int, Hold], result: TurnResult
) -> list[bool]:
    """End these reservations; whether each settlement was the first to."""
    firsts = []
    for each in settlements:
        hold = holds.get(each.reservation_id)
        if hold is None:
            result.superseded[each.reservation_id] = False
            firsts.append(False)
        else:
            firsts.append(_settle(sheet, each, hold, result))
    return firsts


def _settle(sheet: Sheet, each: Settlement, hold: Hold, result: TurnResult) -> bool:
    row, new, before = hold.row, SETTLED[each.outcome], hold.counted
    is_first = hold.state.may_become(new, was_assumed=hold.is_assumed, is_assumed=each.is_assumed)
    if is_first:
        _move(sheet, hold, new, each, result)
    is_current = row.state == RUNNING and row.reservation_id == hold.id
    if sheet.books.claimed.get(row.id) == hold.id:
        del sheet.books.claimed[row.id]
    # Whatever its money, an answer is one: the request needs no other.
    is_answer = each.state is RequestState.SUCCEEDED and row.is_live
    if not (is_first or is_answer):
        result.superseded[hold.id] = row.is_live
        return False
    row.cost_nusd += hold.counted - before
    row.is_settled = True
    if not (is_current or is_answer):
        result.superseded[hold.id] = row.is_live
    else:
        row.not_before_ms = each.not_before_ms
        row.error = None if each.error is None else json.dumps(each.error, default=str)
        if is_current:
            row.attempts -= not each.is_attempt
            _go_on(sheet, row, each)
        else:
            _answered_late(sheet, row)
        if each.response is not None and row.key is not None:
            sheet.responses.append((row.id, each.text or encode_response(each.response)))
    # Of one without a key it is of no use once it has ended, unless it is asked about.
    if row.key is None and not row.is_live and new is not ReservationState.SUSPENSE:
        row.payload = None
    return is_first


def _move(
    sheet: Sheet, hold: Hold, new: ReservationState, each: Settlement, result: TurnResult
) -> None:
    """Change the balances, and the hold itself."""
    old, assumed, now_ms, lanes = hold.state, hold.cost, sheet.now_ms, sheet.books.lanes
    was_posted, is_posted = old is ReservationState.POSTED, new is ReservationState.POSTED
    hold.state, hold.is_assumed = new, each.is_assumed
    hold.cost = (each.nusd, each.tokens) if is_posted else (0, 0)
    sheet.spent.settled(hold, assumed if was_posted else None, hold.cost if is_posted else None)
    if is_posted and old is ReservationState.PENDING:
        sheet.spent.answered(hold, now_ms, each.nusd)
    is_foreseen = False
    for account in sheet.accounts_of(hold.budgets):
        is_foreseen |= account.pool is not None
        cost = cost_in(account.index, each.nusd, each.tokens)
        before = cost_in(account.index, *assumed) if was_posted else 0
        account.settle(hold.made_at_ms, old, new, hold.needs[account.index], cost, before)
        if is_posted:
            result.crossings.extend(account.news(now_ms))
        lanes.wake(account, now_ms)
        if old is not ReservationState.PENDING and account.cap.window.span_ms:
            lanes.wake_returned(account, now_ms)
            sheet.news.moved.add(account.id)
    if is_foreseen and old is ReservationState.PENDING:
        kind = hold.model, hold.job_id
        sheet.ahead.end(hold.id, kind, hold.made_at_ms, now_ms, new, hold.cost, hold.needs)
    provider_id: object = None
    why: object = None
    if hold.id in sheet.settled:
        *_, provider_id, why, _ = sheet.settled[hold.id]
    if each.provider_id is not None or each.why is not None:
        told = sheet.db.dialect.told
        provider_id = told(words(each.provider_id)) or provider_id
        why = told(words(each.why)) or why
    if sheet.books.shares.fairness is not None and old is ReservationState.PENDING:
        cost = cost_for(hold.needs, *hold.cost) if is_posted else 0
        give_back(sheet, hold.row, new, size_for(hold.needs), cost)
    sheet.settled[hold.id] = (
        new._value_, now_ms, *hold.cost, int(each.is_assumed), provider_id, why, hold.id
    )  # fmt: skip


def _go_on(sheet: Sheet, row: Row, each: Settlement) -> None:
    """The request's current attempt has ended: it ends, too, or waits again."""
    sheet.tallies[row.job_id, RUNNING] -= 1
    sheet.tallies[row.job_id, each.state._value_] += 1
    if each.state is not RequestState.QUEUED:
        end(sheet, row, each.state)
    elif each.not_before_ms is not None and each.not_before_ms > sheet.now_ms:
        row.state = DELAYED
    else:
        row.state = QUEUED
        enter_again(sheet, row)


def _answered_late(sheet: Sheet, row: Row) -> None:
    """The answer of an attempt given up for lost has come: the request needs no other."""
    old = row.public_state
    sheet.books.is_miscounted |= old is RequestState.QUEUED
    if row.state == QUEUED:
        leave_lane(sheet, row)
        row.is_changed = True  # whoever looks for those that wait must not find it
    sheet.tallies[row.job_id, old._value_] -= 1
    sheet.tallies[row.job_id, SUCCEEDED] += 1
    end(sheet, row, RequestState.SUCCEEDED)


def read_unknown(db: Connection, ids: Sequence[int]) -> set[int]:
    """Those of these reservations whose outcome is unknown, or assumed."""
    rows = db.read(
        f"SELECT id FROM reservations WHERE id {db.dialect.among}"
        " AND (state = 'suspense' OR is_assumed <> 0)",
        db.dialect.a_list(ids),
    )
    return {row[0] for row in rows}
