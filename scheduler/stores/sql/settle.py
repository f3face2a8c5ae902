"""Ending reservations in a SQLite file, and what becomes of their requests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.guards.texts import words
from scheduler.ledger.account import Needs, ReservationState, cost_in
from scheduler.request import Request, RequestState
from scheduler.stores.base import Outcome, Settlement, StorePrompts, TurnResult
from scheduler.stores.sql.books import Books, decode_budgets, decode_line
from scheduler.stores.sql.codec import encode_response
from scheduler.stores.views import SETTLED

DELAYED = "delayed"  # queued, but not before a given instant
SILENT = "its process was silent for longer than its lease"
NOBODY_ASKS = {
    "code": "process_gone",
    "message": "its process ended; without a key nobody can ask for it again. Nothing more is sent",
}


@dataclass(slots=True)
class _Hold:
    """A reservation row with the parts of its request that settling needs."""

    id: int
    state: ReservationState
    is_assumed: bool
    cost: tuple[int, int]  # posted so far: nano-dollars, tokens
    budgets: tuple[int, ...]
    made_at_ms: int
    needs: Needs
    request_id: int
    request_state: str
    current_id: int | None  # the reservation of the request's current attempt
    lane_id: int
    job_id: int
    has_key: bool

    @property
    def is_live(self) -> bool:
        """Whether its request still waits for an answer."""
        return self.request_state in ("queued", DELAYED, "running")


class Settling(Books):
    """Books whose reservations can be settled."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Request] = {}  # requests this process need not read back
        self.store_prompts: StorePrompts = "full"
        self._deltas: Counter[tuple[int, str]] = Counter()  # requests by job and state
        self._is_miscounted = False  # fewer requests wait than this process believes

    def _settle(
        self, settlements: Sequence[Settlement], now_ms: int, result: TurnResult
    ) -> list[bool]:
        holds = self._read_holds([each.reservation_id for each in settlements])
        firsts, held, ended, responses = [], [], [], []
        states: dict[int, str] = {}  # several attempts of one request may end together
        for each in settlements:
            hold, new = holds.get(each.reservation_id), SETTLED[each.outcome]
            if hold is None:
                firsts.append(False)
                result.superseded[each.reservation_id] = False
                continue
            hold.request_state = states.get(hold.request_id, hold.request_state)
            before = self._counted(hold)
            is_first = hold.state.may_become(
                new, was_assumed=hold.is_assumed, is_assumed=each.is_assumed
            )
            firsts.append(is_first)
            if is_first:
                self._move(hold, new, each, now_ms, result)
                hold.is_assumed = each.is_assumed
                held.append(
                    (
                        new.value, now_ms, *hold.cost, each.is_assumed, words(each.provider_id),
                        words(each.why), hold.id,
                    )
                )  # fmt: skip
            is_current = hold.request_state == "running" and hold.current_id == hold.id
            # Whatever its money, an answer is one: the request needs no other.
            is_answer = each.state is RequestState.SUCCEEDED and hold.is_live
            if not (is_first or is_answer):
                result.superseded[hold.id] = hold.is_live
                continue
            state, mark_ms = hold.request_state, None
            if is_current:
                state, mark_ms = self._next_state(hold, each, now_ms)
            elif is_answer:
                state = self._answered_late(hold, now_ms)
            is_end = is_current or is_answer
            if not is_end:
                result.superseded[hold.id] = hold.is_live
            waits = state in (RequestState.QUEUED, DELAYED)
            # Of one without a key it is of no use once it has ended, unless it is asked about.
            keeps_payload = (
                hold.has_key or waits or state == RequestState.RUNNING
                or new is ReservationState.SUSPENSE
            )  # fmt: skip
            error = None if each.error is None else json.dumps(each.error, default=str)
            ended.append(
                (
                    state, self._counted(hold) - before,
                    0 if each.is_attempt or not is_current else 1,
                    is_end, each.not_before_ms, is_end, error, keeps_payload, mark_ms,
                    is_end and not waits, now_ms, hold.request_id,
                )
            )  # fmt: skip
            states[hold.request_id] = state
            if is_end and each.response is not None and hold.has_key:
                responses.append((hold.request_id, encode_response(each.response)))
        self._write_settled(held, ended, responses)
        return firsts

    def _read_holds(self, ids: Sequence[int]) -> dict[int, _Hold]:
        rows = self._db.execute(
            "SELECT h.id, h.state, h.is_assumed, h.nusd, h.tokens, h.budgets, h.made_at_ms,"
            " h.ceiling_nusd, h.ceiling_tokens,"
            " r.id, r.state, r.reservation_id, r.lane_id, r.job_id, r.key IS NOT NULL"
            " FROM reservations h JOIN requests r ON r.id = h.request_id"
            " WHERE h.id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        )
        return {
            row[0]: _Hold(
                row[0], ReservationState(row[1]), bool(row[2]), (row[3], row[4]),
                decode_budgets(row[5]), row[6], (row[7], row[8], 1),
                row[9], row[10], row[11], row[12], row[13], bool(row[14]),
            )
            for row in rows
        }  # fmt: skip

    def _move(
        self,
        hold: _Hold,
        new: ReservationState,
        settlement: Settlement,
        now_ms: int,
        result: TurnResult,
    ) -> None:
        """Change the balances, and the hold itself."""
        old, assumed = hold.state, hold.cost
        was_posted = old is ReservationState.POSTED
        hold.state = new
        is_posted = new is ReservationState.POSTED
        hold.cost = (settlement.nusd, settlement.tokens) if is_posted else (0, 0)
        for account in self._accounts_of(hold.budgets):
            self._load_slot(account, account.cap.window.slot_start_ms(hold.made_at_ms))
            cost = cost_in(account.index, settlement.nusd, settlement.tokens)
            before = cost_in(account.index, *assumed) if was_posted else 0
            account.settle(hold.made_at_ms, old, new, hold.needs[account.index], cost, before)
            if is_posted and account.posted >= account.tell_at:
                result.crossings.extend(account.crossings(now_ms))
            self.lanes.wake(account, now_ms)
            if old is not ReservationState.PENDING and account.cap.window.span_ms:
                self.lanes.wake_returned(account, now_ms)

    @staticmethod
    def _counted(hold: _Hold) -> int:
        """What an attempt counts in its request's cost, in nano-dollars."""
        return hold.needs[0] if hold.state is ReservationState.SUSPENSE else hold.cost[0]

    def _answered_late(self, hold: _Hold, now_ms: int) -> str:
        """The answer of an attempt given up for lost has come: the request needs no other."""
        old = RequestState.QUEUED if hold.request_state == DELAYED else hold.request_state
        self._is_miscounted |= old == RequestState.QUEUED
        if hold.request_state == RequestState.QUEUED:
            self._leave_lane(hold.request_id, hold.lane_id, now_ms)
        self.kept.pop(hold.request_id, None)
        self._deltas[hold.job_id, old] -= 1
        self._deltas[hold.job_id, RequestState.SUCCEEDED] += 1
        return RequestState.SUCCEEDED.value

    def _leave_lane(self, request_id: int, lane_id: int, now_ms: int) -> None:
        """One fewer waits in a lane."""
        lane = self.lanes.by_id(lane_id)
        if lane is None:  # another process's
            (budgets,) = self._db.execute(
                "UPDATE lanes SET waiting = waiting - 1 WHERE id = ? RETURNING budgets", (lane_id,)
            ).fetchone() or ("",)
        else:
            self.lanes.remove(lane, now_ms)
        for account in self._accounts_of(
            decode_budgets(budgets) if lane is None else lane.key.budgets
        ):
            if account.leave_line(request_id):
                self.lanes.wake_behind((account.id,), now_ms)

    def _next_state(
        self, hold: _Hold, settlement: Settlement, now_ms: int
    ) -> tuple[str, int | None]:
        """What becomes of the request whose current attempt has ended, and its parked mark."""
        self._deltas[hold.job_id, "running"] -= 1
        state, mark_ms = settlement.state.value, None
        if settlement.state is RequestState.QUEUED:
            if settlement.not_before_ms is not None and settlement.not_before_ms > now_ms:
                self._deltas[hold.job_id, RequestState.QUEUED] += 1
                return DELAYED, None
            mark_ms = self._requeue(hold.lane_id, hold.needs, now_ms)
        else:
            self.kept.pop(hold.request_id, None)
        self._deltas[hold.job_id, state] += 1
        return state, mark_ms

    def _requeue(self, lane_id: int, needs: Needs, now_ms: int) -> int:
        """One more waits in a lane; returns the lane's parked clock."""
        lane = self.lanes.by_id(lane_id)
        if lane is None:  # another process's
            self._db.execute("UPDATE lanes SET waiting = waiting + 1 WHERE id = ?", (lane_id,))
            return 0
        self.lanes.add(lane)
        lane.look_at_all(needs)
        if lane.shortfall is not None and lane.wakes_for(
            needs, self._accounts_of(lane.key.budgets)
        ):
            self.lanes.reopen(lane, now_ms)
        return lane.parked_clock_ms(now_ms)

    def _write_settled(
        self, held: Sequence[tuple[object, ...]],
        ended: Sequence[tuple[object, ...]],
        responses: Sequence[tuple[int, str]],
    ) -> None:  # fmt: skip
        self._db.executemany(
            "UPDATE reservations SET state = ?, settled_at_ms = ?, nusd = ?, tokens = ?,"
            " is_assumed = ?, provider_id = coalesce(?, provider_id), why = coalesce(?, why)"
            " WHERE id = ?",
            held,
        )
        self._db.executemany(
            "UPDATE requests SET state = ?, cost_nusd = cost_nusd + ?, attempts = attempts - ?,"
            " not_before_ms = CASE WHEN ? THEN ? ELSE not_before_ms END,"
            " error = CASE WHEN ? THEN ? ELSE error END,"
            " payload = CASE WHEN ? THEN payload END,"
            " parked_mark_ms = coalesce(?, parked_mark_ms),"
            " ended_at_ms = CASE WHEN ? THEN ? ELSE ended_at_ms END WHERE id = ?",
            ended,
        )
        if responses:
            self._db.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?)", responses)

    def _suspend_all(self, worker_id: int, now_ms: int, *, is_gone: bool) -> None:
        """What a process may have sent is unknown; what can be asked for again is queued.

        Args:
            worker_id: The process's.
            now_ms: The time.
            is_gone: It will certainly not come back. False: it may only be slow.
        """
        rows = self._db.execute(
            "SELECT h.id, h.request_id, r.key IS NULL FROM reservations h"
            " JOIN requests r ON r.id = h.request_id"
            " WHERE h.worker_id = ? AND h.state IN ('pending', 'suspense') AND h.state = 'pending'",
            (worker_id,),
        ).fetchall()
        self._settle(
            [
                Settlement(
                    reservation_id,
                    request_id,
                    Outcome.SUSPEND,
                    RequestState.CANCELLED if is_gone and no_key else RequestState.QUEUED,
                    error=NOBODY_ASKS if is_gone and no_key else None,
                    why="its process ended before the answer" if is_gone else SILENT,
                )
                for reservation_id, request_id, no_key in rows
            ],
            now_ms,
            TurnResult(),
        )
        if is_gone:
            self._cancel_keyless(worker_id, now_ms)

    def _cancel_keyless(self, worker_id: int, now_ms: int) -> None:
        """End what waits without a key: with its process went whoever wanted it."""
        for state in (RequestState.QUEUED, DELAYED):
            # Written into the statement, so that the index of that state serves.
            waiting = f"state = '{state}' AND key IS NULL AND lane_id"
            rows = self._db.execute(
                f"SELECT lane_id, job_id, count(*) FROM requests WHERE {waiting} IN"
                " (SELECT id FROM lanes WHERE worker_id = ?) GROUP BY 1, 2",
                (worker_id,),
            ).fetchall()
            for lane_id, job_id, count in rows:
                self._db.execute(
                    "UPDATE requests SET state = 'cancelled', payload = NULL, error = ?,"
                    f" ended_at_ms = ? WHERE {waiting} = ? AND job_id = ?",
                    (json.dumps(NOBODY_ASKS), now_ms, lane_id, job_id),
                )
                if state == RequestState.QUEUED:
                    self._leave_together(lane_id, count, now_ms)
                self._deltas[job_id, RequestState.QUEUED] -= count
                self._deltas[job_id, RequestState.CANCELLED] += count

    def _step_out_of_line(self, worker_id: int) -> None:
        """Nobody of that process is in line any more, nor who does not wait any more."""
        db = self._db
        for budget_id, text in db.execute(
            "SELECT budget_id, waiter FROM accounts WHERE waiter IS NOT NULL"
        ).fetchall():
            for waiter in decode_line(text):
                stays = db.execute(
                    "SELECT 1 FROM requests r JOIN lanes l ON l.id = r.lane_id"
                    " WHERE r.id = ? AND r.state = 'queued' AND l.worker_id <> ?",
                    (waiter.request_id, worker_id),
                ).fetchone()
                if stays is None:
                    for account in self._accounts_of((budget_id,)):
                        account.leave_line(waiter.request_id)

    def _leave_together(self, lane_id: int, count: int, now_ms: int) -> None:
        """So many fewer wait in a lane."""
        lane = self.lanes.by_id(lane_id)
        if lane is not None:
            self.lanes.remove(lane, now_ms, count)
        self._db.execute(
            "UPDATE lanes SET waiting = max(0, waiting - ?) WHERE id = ?", (count, lane_id)
        )


def state_of(text: str) -> RequestState:
    """A request's state from its column."""
    return RequestState.QUEUED if text == DELAYED else RequestState(text)
