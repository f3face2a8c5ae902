"""Ending reservations in a SQLite file, and what becomes of their requests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.ledger import Needs, ReservationState, cost_in
from scheduler.request import RequestState
from scheduler.stores.base import Outcome, Settlement, TurnResult
from scheduler.stores.codec import encode_response
from scheduler.stores.sqlite_books import Books, decode_budgets
from scheduler.stores.views import SETTLED

DELAYED = "delayed"  # queued, but not before a given instant


@dataclass(slots=True)
class _Hold:
    """A reservation row with the parts of its request that settling needs."""

    id: int
    state: ReservationState
    budgets: tuple[int, ...]
    made_at_ms: int
    needs: Needs
    request_id: int
    request_state: str
    current_id: int | None  # the reservation of the request's current attempt
    lane_id: int
    job_id: int
    has_key: bool


class Settling(Books):
    """Books whose reservations can be settled."""

    def __init__(self) -> None:
        super().__init__()
        self._deltas: Counter[tuple[int, str]] = Counter()  # requests by job and state

    def _settle(
        self, settlements: Sequence[Settlement], now_ms: int, result: TurnResult
    ) -> list[bool]:
        holds = self._read_holds([each.reservation_id for each in settlements])
        firsts, held, ended, responses = [], [], [], []
        for each in settlements:
            hold, new = holds.get(each.reservation_id), SETTLED[each.outcome]
            if hold is None or not hold.state.may_become(new):
                firsts.append(False)
                continue
            firsts.append(True)
            before = hold.needs[0] if hold.state is ReservationState.SUSPENSE else 0
            after = self._move(hold, new, each, now_ms, result)
            posted = (each.nusd, each.tokens) if new is ReservationState.POSTED else (0, 0)
            held.append((new.value, now_ms, *posted, hold.id))
            is_current = hold.request_state == "running" and hold.current_id == hold.id
            state, mark_ms = hold.request_state, None
            if is_current:
                state, mark_ms = self._next_state(hold, each, now_ms)
            ended.append(
                (
                    state,
                    after - before,
                    0 if each.is_attempt or not is_current else 1,
                    each.not_before_ms,
                    None if each.error is None else json.dumps(each.error, default=str),
                    is_current,
                    hold.has_key,
                    hold.request_id,
                    mark_ms,
                )
            )
            hold.request_state = state
            if is_current and each.response is not None and hold.has_key:
                responses.append((hold.request_id, encode_response(each.response)))
        self._write_settled(held, ended, responses)
        return firsts

    def _read_holds(self, ids: Sequence[int]) -> dict[int, _Hold]:
        rows = self._db.execute(
            "SELECT h.id, h.state, h.budgets, h.made_at_ms, h.ceiling_nusd, h.ceiling_tokens,"
            " r.id, r.state, r.reservation_id, r.lane_id, r.job_id, r.key IS NOT NULL"
            " FROM reservations h JOIN requests r ON r.id = h.request_id"
            " WHERE h.id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        )
        return {
            row[0]: _Hold(
                row[0], ReservationState(row[1]), decode_budgets(row[2]), row[3], (row[4], row[5], 1),
                row[6], row[7], row[8], row[9], row[10], bool(row[11]),
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
    ) -> int:
        """Change the balances; returns what the attempt counts from now on, in nano-dollars."""
        old, hold.state = hold.state, new
        for account in self._accounts_of(hold.budgets):
            self._load_slot(account, account.cap.window.slot_start_ms(hold.made_at_ms))
            cost = cost_in(account.index, settlement.nusd, settlement.tokens)
            account.settle(hold.made_at_ms, old, new, hold.needs[account.index], cost)
            if new is ReservationState.POSTED and account.posted >= account.tell_at:
                result.crossings.extend(account.crossings(now_ms))
            self.lanes.wake(account, now_ms)
        if new is ReservationState.POSTED:
            return settlement.nusd
        return hold.needs[0] if new is ReservationState.SUSPENSE else 0

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
        self._deltas[hold.job_id, state] += 1
        return state, mark_ms

    def _requeue(self, lane_id: int, needs: Needs, now_ms: int) -> int:
        """One more waits in a lane; returns the lane's parked clock."""
        lane = self.lanes.by_id(lane_id)
        if lane is None:  # another process's
            self._db.execute("UPDATE lanes SET waiting = waiting + 1 WHERE id = ?", (lane_id,))
            return 0
        self.lanes.add(lane)
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
            "UPDATE reservations SET state = ?, settled_at_ms = ?, nusd = ?, tokens = ? WHERE id = ?",
            held,
        )
        # The payload of a request without a key is of no use once it has ended.
        self._db.executemany(
            "UPDATE requests SET state = ?1, cost_nusd = cost_nusd + ?2, attempts = attempts - ?3,"
            " not_before_ms = CASE WHEN ?6 THEN ?4 ELSE not_before_ms END, error = CASE WHEN ?6 THEN ?5 ELSE error END,"
            " payload = CASE WHEN ?7 OR ?1 IN ('queued', 'delayed') THEN payload END,"
            " parked_mark_ms = coalesce(?9, parked_mark_ms)"
            " WHERE id = ?8",
            ended,
        )
        if responses:
            self._db.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?)", responses)

    def _suspend_all(self, worker_id: int, now_ms: int) -> None:
        """What a process may have sent is unknown; its requests go back to the queue."""
        rows = self._db.execute(
            "SELECT id, request_id FROM reservations WHERE worker_id = ? AND state = 'pending'",
            (worker_id,),
        ).fetchall()
        self._settle(
            [
                Settlement(reservation_id, request_id, Outcome.SUSPEND, RequestState.QUEUED)
                for reservation_id, request_id in rows
            ],
            now_ms,
            TurnResult(),
        )
