"""Queue and ledger in memory: the reference model, and the default for one process.

Everything happens in plain dictionaries within one call, without threads or
awaiting, so it is exact under virtual time. Nothing survives the process. What was
settled long ago is folded into sums, so memory does not grow with requests that
are done. Of those with a key the outcomes are remembered, without what was asked, and
no more of them than a stated number: the oldest are forgotten, and their keys are free again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from functools import partial

from scheduler.admission.fairness import Fairness, Shares, cost_for, size_for, tenant_key
from scheduler.admission.plan import LaneKey, Planner
from scheduler.budget import Budget
from scheduler.errors import ConfigError
from scheduler.guards.texts import words
from scheduler.ledger.account import Account, Crossing, ReservationState, cost_in
from scheduler.ledger.burning import Burning
from scheduler.request import RequestState
from scheduler.shortfall import Shortfall
from scheduler.stats import BudgetStatus, Counts, QueueRow, TenantStatus
from scheduler.stores.base import (
    Archive,
    Claimed,
    ExpiredRequest,
    Finished,
    Known,
    LaneStatus,
    NewRequest,
    Refused,
    Settlement,
    Submitted,
    Turn,
    TurnResult,
    Unknown,
)
from scheduler.stores.lanes import Lane, Lanes, hear
from scheduler.stores.lineup import Lineup
from scheduler.stores.memory.budgets import Budgets
from scheduler.stores.memory.ended import KEEP_FINISHED, Ended
from scheduler.stores.memory.glance import Glance
from scheduler.stores.memory.journal import Journal, counts_for_good, held_cost
from scheduler.stores.memory.notes import Notes
from scheduler.stores.memory.outlook import Outlook
from scheduler.stores.memory.pages import Pages
from scheduler.stores.memory.papers import Folder
from scheduler.stores.memory.queues import Queues
from scheduler.stores.memory.rows import Hold, Row
from scheduler.stores.refusing import in_use, refusal
from scheduler.stores.views import SETTLED, is_tried_again, keep_line

MAX_ASSUMED = 10_000  # ends that may be corrected; of more the oldest are taken for final


class MemoryStore(Notes, Folder, Glance, Outlook):
    """A store that lives and dies with its process; see the module.

    Args:
        keep_finished: Most requests with keys whose outcomes are remembered. None: all, until
            they are pruned. With an attempt whose outcome is unknown they stay beyond that.
    """

    most_per_turn = 500  # it is one step of the event loop

    def __init__(self, keep_finished: int | None = KEEP_FINISHED) -> None:
        if keep_finished is not None and keep_finished < 0:
            raise ConfigError("keep_finished", f"{keep_finished} is below 0")
        super().__init__()
        self._finished = Ended(keep_finished)
        self._ids, self._tickets = itertools.count(1), itertools.count(1)
        self._next_id = partial(next, self._ids)
        self._now_ms = 0
        self._rows: dict[int, Row] = {}
        self._pages = Pages()  # the same, by page
        self._running = 0
        self._keys: dict[tuple[str, str], Row] = {}
        self._shares = Shares()
        self._lanes = Lanes(self._shares, lambda lane: self._queues.forget(lane))
        self._queues = Queues(self._rows, self._lanes, self._shares)
        self._delayed: list[tuple[int, int, int]] = []  # heap of (not before, request id, ticket)
        self._expiring: list[tuple[int, int]] = []  # heap of (expires at, request id)
        self._holds: dict[int, Hold] = {}
        self._undelivered: dict[int, Row] = {}  # ended rows, in the order they ended
        self._delivered: list[tuple[int, int]] = []  # heap of (ended at, request id)
        self._stays: list[tuple[int, int]] = []  # of these, what this sweep may not forget
        self._sweep = 0, False  # what is being pruned
        self._unknown: dict[int, Hold] = {}  # those in suspense, in the order they became so
        self._open: Counter[int] = Counter()  # request id → reservations in `_holds`
        self._assumed: deque[int] = deque()  # ends that may still be corrected, oldest first
        self._untold: list[Crossing | Burning] = []  # of what was resolved since the last turn
        self._journal = Journal()
        self._budgets = Budgets(self._next_id, self._journal, self._holds, self._lanes)
        self._ended: Counter[RequestState] = Counter()
        self._admitted = 0
        self._prices: dict[str, str] = {}
        self._is_open = False

    async def open(self, now_ms: int) -> None:
        if self._is_open:
            raise in_use()
        self._is_open = True

    async def aclose(self) -> None:
        self._is_open = False

    async def changed(self, now_ms: int) -> bool:
        return False

    def serve(
        self, services: Mapping[str, str], *, at_once: int | None = None, left: Collection[str] = ()
    ) -> None:
        self._lanes.leave(frozenset(left))

    def share(self, fairness: Fairness | None) -> None:
        self._shares.fairness = fairness

    def sharing(self, now_ms: int) -> list[TenantStatus]:
        return self._lanes.sharing(now_ms)

    # The turn

    async def turn(self, turn: Turn) -> TurnResult:
        now_ms = self._look(turn.now_ms)
        result, self._untold = TurnResult(crossings=self._untold), []
        hear(self.gates, turn.settle, self._lanes, now_ms)
        for settlement in turn.settle:
            result.settled.append(self._settle(settlement, now_ms, result))
        for request_id in turn.cancel:
            result.cancelled.append(self._cancel(request_id, now_ms))
        self._promote(now_ms)
        for request_id, new in turn.amend:
            self._amend(request_id, new, now_ms)
        for request_id, is_lent in turn.lend:
            self._lend(request_id, is_lent, now_ms)
        for new in turn.submit:
            result.submitted.append(self._submit(new, now_ms))
        self._expire(now_ms, result)
        if len(result.expired) >= self.most_per_turn:
            result.look_again_at_ms = now_ms  # at the others, before anything is sent
        elif turn.slots is not None:
            self._claim(turn, now_ms, result)
        else:
            for account in self._budgets.all_accounts():
                account.leave_line()  # whoever does not claim is not in line
        changed = self._lanes.take_changed()
        result.lanes = [LaneStatus(each.key, each.waiting, each.shortfall) for each in changed]
        result.look_again_at_ms = self._look_again_at_ms(result.look_again_at_ms)
        return result

    def _look(self, now_ms: int) -> int:
        """Note the time, which never goes backwards here, whatever the clock says."""
        self._now_ms = now_ms = max(now_ms, self._now_ms)
        self._lanes.wake_due(now_ms)
        return now_ms

    def _look_again_at_ms(self, gate_ms: int | None) -> int | None:
        while self._delayed and not self._is_delayed(*self._delayed[0][1:]):
            heapq.heappop(self._delayed)
        while self._expiring and not self._is_expiring(*self._expiring[0]):
            heapq.heappop(self._expiring)
        instants = [heap[0][0] for heap in (self._delayed, self._expiring) if heap]
        instants += [at_ms for at_ms in (self._lanes.due_ms, gate_ms) if at_ms is not None]
        return min(instants, default=None)

    def _is_delayed(self, request_id: int, ticket: int) -> bool:
        row = self._rows.get(request_id)
        return row is not None and row.ticket == ticket and row.state is RequestState.QUEUED

    def _is_expiring(self, at_ms: int, request_id: int) -> bool:
        row = self._rows.get(request_id)
        return row is not None and row.state is RequestState.QUEUED and row.expires_at_ms == at_ms

    def _settle(self, settlement: Settlement, now_ms: int, result: TurnResult) -> bool:
        hold = self._holds.get(settlement.reservation_id)
        row = self._rows.get(settlement.request_id)
        new = SETTLED[settlement.outcome]
        is_first = hold is not None and hold.state.may_become(
            new, was_assumed=hold.is_assumed, is_assumed=settlement.is_assumed
        )
        if hold is not None and is_first:
            before_nusd = held_cost(hold)
            self._move(hold, new, settlement, now_ms, result.crossings)
            if new is ReservationState.POSTED and not settlement.is_assumed:
                self._remember(hold, row, settlement, now_ms)
            if row is not None:
                row.cost_nusd += held_cost(hold) - before_nusd
        if row is None:
            result.superseded[settlement.reservation_id] = False
        elif (
            is_first
            and row.state is RequestState.RUNNING
            and row.reservation_id == settlement.reservation_id
        ):
            self._end_attempt(row, settlement, now_ms)
        elif settlement.state is RequestState.SUCCEEDED and row.is_live:
            # Whatever its money, an answer is one: the request needs no other.
            self._answered_late(row, settlement, now_ms)
        else:
            result.superseded[settlement.reservation_id] = row.is_live
        return is_first

    def _move(
        self, hold: Hold, new: ReservationState, settlement: Settlement, now_ms: int,
        crossings: list[Crossing | Burning],
    ) -> None:  # fmt: skip
        old, hold.state = hold.state, new
        assumed = (hold.nusd, hold.tokens)
        is_posted, was_posted = new is ReservationState.POSTED, old is ReservationState.POSTED
        hold.nusd, hold.tokens = (settlement.nusd, settlement.tokens) if is_posted else (0, 0)
        hold.is_assumed, hold.settled_at_ms = settlement.is_assumed, now_ms
        hold.provider_id = words(settlement.provider_id) or hold.provider_id
        hold.why = words(settlement.why) or hold.why
        self._unknown.pop(hold.id, None)
        self._journal.answered(hold, old, now_ms)
        self._journal.tagged(hold, assumed if was_posted else None)
        if new is ReservationState.SUSPENSE:
            self._unknown[hold.id] = hold
        if self._shares.fairness is not None and old is ReservationState.PENDING:
            self._give_back(hold, new, now_ms)
        for account in self._accounts_of(hold.budgets):
            cost = cost_in(account.index, hold.nusd, hold.tokens)
            before = cost_in(account.index, *assumed) if was_posted else 0
            account.settle(hold.made_at_ms, old, new, hold.needs[account.index], cost, before)
            if account.pool is not None and old is ReservationState.PENDING:
                account.pool.leave(hold.request_id, now_ms, counts_for_good(hold))
            if is_posted:
                crossings.extend(account.news(now_ms))
            self._lanes.wake(account, now_ms)
            if old is not ReservationState.PENDING and account.cap.window.span_ms:
                self._lanes.wake_returned(account, now_ms)
        if hold.is_final:
            self._fold(hold)
        elif new.is_end:
            self._assumed.append(hold.id)
            if len(self._assumed) > MAX_ASSUMED:
                oldest = self._holds.get(self._assumed.popleft())
                if oldest is not None and oldest.state.is_end:
                    self._fold(oldest)

    def _give_back(self, hold: Hold, new: ReservationState, now_ms: int) -> None:
        """A call under way has ended: what it cost less is its tenant's."""
        row = self._rows.get(hold.request_id)
        if row is not None and new.is_end:
            key, is_posted = tenant_key(row.lane.key), new is ReservationState.POSTED
            cost = cost_for(hold.needs, hold.nusd, hold.tokens) if is_posted else 0
            self._shares.of(key).settle(size_for(hold.needs), cost, now_ms)
            self._lanes.open.moved_up(key)

    def _fold(self, hold: Hold) -> None:
        """What nothing can change any more needs no row of its own."""
        del self._holds[hold.id]
        self._open[hold.request_id] -= 1
        if not self._open[hold.request_id]:
            del self._open[hold.request_id]
        self._journal.add(hold, self._accounts_of(hold.budgets))

    def _answered_late(self, row: Row, settlement: Settlement, now_ms: int) -> None:
        """The answer of an attempt given up for lost has come: the request needs no other."""
        if row.state is RequestState.QUEUED:
            self._leave_lane(row, now_ms)
        else:
            self._running -= 1
        row.state, row.response, row.error = RequestState.SUCCEEDED, settlement.response, None
        self._end(row)

    def _end_attempt(self, row: Row, settlement: Settlement, now_ms: int) -> None:
        row.state = settlement.state
        self._running -= 1
        row.attempts -= not settlement.is_attempt
        if settlement.state is not RequestState.QUEUED:
            row.response, row.error = settlement.response, settlement.error
            self._end(row)
            return
        if row.expires_at_ms is not None:
            heapq.heappush(self._expiring, (row.expires_at_ms, row.id))
        if settlement.not_before_ms is not None and settlement.not_before_ms > now_ms:
            row.is_delayed, row.ticket = True, next(self._tickets)
            heapq.heappush(self._delayed, (settlement.not_before_ms, row.id, row.ticket))
        else:
            self._enqueue(row, now_ms)

    def _end(self, row: Row) -> None:
        self._ended[row.state] += 1
        row.ended_at_ms = self._now_ms
        if row.request.key is None:
            del self._rows[row.id]
            self._pages.drop(row.id)
            return
        row.request = self._finished.outline(row.request)
        self._undelivered[row.id] = row
        if self._finished.add(row.id):
            self._forget_oldest()

    def _enqueue(self, row: Row, now_ms: int) -> None:
        lane = row.lane
        heap = self._queues.heaps.get(lane.id)
        if heap is None:  # it was empty for long, and is forgotten
            lane = row.lane = self._lane(lane.key)
            heap = self._queues.heaps[lane.id]
        row.parked_mark_ms = lane.parked_clock_ms(now_ms)
        row.ticket = next(self._tickets)
        head = lane.key.head(row)
        heapq.heappush(heap, (*head, row.ticket))
        self._lanes.add(lane, head)
        if lane.shortfall is not None and lane.wakes_for(
            row.needs, self._accounts_of(lane.key.budgets)
        ):
            self._lanes.reopen(lane, now_ms)

    def _promote(self, now_ms: int) -> None:
        while self._delayed and self._delayed[0][0] <= now_ms:
            _, request_id, ticket = heapq.heappop(self._delayed)
            if self._is_delayed(request_id, ticket):
                row = self._rows[request_id]
                row.is_delayed = False
                self._enqueue(row, now_ms)

    def _cancel(self, request_id: int, now_ms: int) -> bool:
        row = self._rows.get(request_id)
        if row is None or row.state is not RequestState.QUEUED:
            return False
        self._drop(row, RequestState.CANCELLED, now_ms)
        return True

    def _drop(self, row: Row, state: RequestState, now_ms: int) -> None:
        self._leave_lane(row, now_ms)
        row.state = state
        self._end(row)

    def _leave_lane(self, row: Row, now_ms: int) -> None:
        """It no longer waits; its place in the heap is found empty later."""
        if not row.is_delayed:
            row.parked_ms += row.lane.parked_clock_ms(now_ms) - row.parked_mark_ms
            self._lanes.remove(row.lane, now_ms)
        for account in self._accounts_of(row.lane.key.budgets):
            if account.leave_line(row.id):
                self._lanes.wake_behind((account.id,), now_ms)

    def _expire(self, now_ms: int, result: TurnResult) -> None:
        expiring = self._expiring
        while expiring and expiring[0][0] <= now_ms and len(result.expired) < self.most_per_turn:
            at_ms, request_id = heapq.heappop(expiring)
            if self._is_expiring(at_ms, request_id):
                row = self._rows[request_id]
                waited_ms, request = now_ms - row.submitted_at_ms, row.request
                result.expired.append(
                    ExpiredRequest(
                        row.id, waited_ms, request.key, request.job, row.why_parked, at_ms
                    )
                )
                self._drop(row, RequestState.EXPIRED, now_ms)

    def _submit(self, new: NewRequest, now_ms: int) -> Submitted:
        key, known = new.request.key, None
        if key is not None:
            known = self._keys.get((new.request.job, key))
            if known is not None:
                if Known(known.state, known.digest).is_conflict(new.digest):
                    return known.as_submitted(is_conflict=True)
                if not is_tried_again(known.state, new.retry_failed, known.error):
                    if known.state.is_final:
                        return known.as_submitted(finished=known.finished())
                    return known.as_submitted(held=known.as_new())
                self._ended[known.state] -= 1
                self._remove(known)
        lane = self._lane(new.lane)
        row = Row(next(self._ids) if known is None else known.id, new, lane, now_ms)
        if known is not None:
            row.cost_nusd, row.submitted_at_ms = known.cost_nusd, known.submitted_at_ms
        self._rows[row.id] = row
        self._pages.add(row)
        if key is not None:
            self._keys[(new.request.job, key)] = row
        self._enqueue(row, now_ms)
        if new.expires_at_ms is not None:
            heapq.heappush(self._expiring, (new.expires_at_ms, row.id))
        return Submitted(row.id)

    def _amend(self, request_id: int, new: NewRequest, now_ms: int) -> None:
        row = self._rows.get(request_id)
        if row is None or row.state.is_final:
            return
        old, waits = row.lane, row.state is RequestState.QUEUED
        if new.keeps_time:
            new.set_time(row.expires_at_ms, row.due_at_ms)
        row.request, row.lane = new.request, self._lane(new.lane)
        row.needs, row.tokens = (new.ceiling_nusd, new.ceiling_tokens, 1), new.tokens
        row.expected_nusd = new.expected_nusd
        if not new.keeps_time:
            row.expires_at_ms, row.due_at_ms = new.expires_at_ms, new.due_at_ms
            if waits and new.expires_at_ms is not None:
                heapq.heappush(self._expiring, (new.expires_at_ms, row.id))
        if not waits or row.is_delayed:
            return
        row.parked_ms += old.parked_clock_ms(now_ms) - row.parked_mark_ms
        self._lanes.remove(old, now_ms)
        accounts = self._accounts_of(old.key.budgets), self._accounts_of(new.lane.budgets)
        if keep_line(*accounts, row.id, row.lane.key, row.due_at_ms, row.needs):
            self._lanes.wake_behind((each.id for each in accounts[0]), now_ms)
        self._enqueue(row, now_ms)

    def _lend(self, request_id: int, is_lent: bool, now_ms: int) -> None:
        row = self._rows.get(request_id)
        if row is None or row.state is not RequestState.QUEUED or row.lane.key.is_lent is is_lent:
            return
        lane = self._lane(row.lane.key._replace(is_lent=is_lent))
        if row.is_delayed:
            row.lane = lane
        else:
            self._leave_lane(row, now_ms)
            row.lane = lane
            self._enqueue(row, now_ms)

    def _lane(self, key: LaneKey) -> Lane:
        lane = self._lanes.get(key, self._next_id)
        self._queues.heaps.setdefault(lane.id, [])
        return lane

    def _claim(self, turn: Turn, now_ms: int, result: TurnResult) -> None:
        self._lanes.wake_eased(self._accounts_of, now_ms)
        if not self._lanes.open:
            return
        assert turn.slots is not None
        passed: list[list[Row]] = []
        show = partial(self._queues.show, passed, self._accounts_of, self.gates)
        lineup = Lineup(self._lanes.open, show, self.gates, turn.slots, now_ms)
        decided = Planner(lineup, turn.slots, now_ms, self._admitted).decide()
        self._admitted += len(decided.admitted)
        result.look_again_at_ms = now_ms if decided.is_cut else decided.look_again_at_ms
        for candidate in decided.admitted:
            result.claimed.append(self._start(self._rows[candidate.id], now_ms))
        for candidate, lack in decided.refused:
            row = self._rows[candidate.id]
            result.refused.append(Refused(row.id, row.request, lack))
            if not (row.request.fallback or row.id in turn.holds):
                row.error = refusal(lack)
                self._drop(row, RequestState.FAILED, now_ms)
        for lane, seen, verdict, rest in zip(
            lineup.looked, passed, decided.verdicts, decided.rests, strict=True
        ):
            if self._queues.put_back(lane, seen):
                result.look_again_at_ms = now_ms  # at the rest of it
            self._lanes.settle(lane, verdict, rest, now_ms)
        if self._shares.fairness is not None:
            self._shares.forget(self._lanes.active, now_ms)
        if self._lanes.wake_behind(decided.moved, now_ms):
            result.look_again_at_ms = now_ms

    def _start(self, row: Row, now_ms: int) -> Claimed:
        hold = Hold(next(self._ids), row, now_ms)
        self._holds[hold.id] = hold
        self._open[row.id] += 1
        lane = row.lane
        row.state, row.reservation_id = RequestState.RUNNING, hold.id
        self._running += 1
        row.attempts += 1
        row.parked_ms += lane.parked_clock_ms(now_ms) - row.parked_mark_ms
        self._lanes.remove(lane, now_ms)
        return Claimed(
            row.id, hold.id, row.request, row.attempts, row.needs[0], row.needs[1], row.cost_nusd,
            row.submitted_at_ms, row.parked_ms, row.digest, lane.key.budgets,
            now_ms,
        )  # fmt: skip

    def _accounts_of(self, budgets: tuple[int, ...]) -> list[Account]:
        return self._budgets.accounts_of(budgets, self._now_ms)

    # What is known without asking

    def latest(self) -> list[BudgetStatus]:
        return self._budgets.pictures(self._now_ms)

    def balances(self, budgets: Collection[int]) -> list[BudgetStatus]:
        return self._budgets.pictures_of(budgets, self._now_ms)

    def lanes(self) -> list[LaneStatus]:
        return [LaneStatus(x.key, x.waiting, x.shortfall) for x in self._lanes if x.waiting]

    def shortfall(self, key: LaneKey) -> Shortfall | None:
        lane = self._lanes.find(key)
        return None if lane is None else lane.shortfall

    # Budgets

    async def define(self, budgets: Sequence[Budget], now_ms: int) -> None:
        now_ms = self._look(now_ms)
        for budget in budgets:
            self._budgets.define(budget, now_ms)
        self._journal.forget_run()

    async def remove(self, name: str, now_ms: int) -> None:
        self._budgets.remove(name, self._look(now_ms))
        self._journal.forget_run()

    async def defined(self, names: Iterable[str]) -> list[tuple[int, Budget]]:
        return self._budgets.defined(names)

    async def budgets(self, now_ms: int) -> list[BudgetStatus]:
        self._look(now_ms)
        return self.latest()

    async def pause(self, name: str, paused: bool, now_ms: int) -> None:
        self._budgets.pause(name, paused, self._look(now_ms))

    async def prices(self) -> dict[str, str]:
        return dict(self._prices)

    async def set_price(self, model: str, price: str | None) -> None:
        self._prices.pop(model, None)
        if price is not None:
            self._prices[model] = price

    # Looking

    async def counts(self, job: str | None = None) -> Counts:
        if job is not None:
            return await self._pages.counts_of(job)
        parked = self._lanes.parked
        queued = len(self._rows) - self._finished.count - self._running - parked.total()
        ended = {state.value: count for state, count in self._ended.items()}
        return Counts(queued, parked.total(), self._running, **ended, parked_by_reason={**+parked})

    async def queue(
        self, states: Iterable[RequestState], now_ms: int, *, job: str | None = None,
        limit: int = 1000, after_id: int = 0,
    ) -> list[QueueRow]:  # fmt: skip
        found = await self._pages.find(set(states), job, limit, after_id)
        return [row.as_queue_row(now_ms) for row in found]

    # What nobody knows

    async def suspended(
        self, *, job: str | None = None, limit: int = 1000, after_id: int = 0
    ) -> list[Unknown]:
        found = sorted(
            reservation_id
            for reservation_id, hold in self._unknown.items()
            if reservation_id > after_id and job in (None, hold.job)
        )
        return await self.suspended_of(found[:limit])

    async def suspended_since(
        self, since_ms: int, *, after_id: int = 0, limit: int = 10_000
    ) -> list[tuple[int, int]]:
        newer: list[tuple[int, int]] = []
        for hold in reversed(self._unknown.values()):  # it keeps the order in which they became so
            if hold.settled_at_ms < since_ms:
                break
            newer.append((hold.settled_at_ms, hold.id))
        return sorted(each for each in newer if each > (since_ms, after_id))[:limit]

    async def suspended_of(self, ids: Sequence[int]) -> list[Unknown]:
        return [self._unknown[each].as_unknown() for each in ids if each in self._unknown]

    async def resolve(self, settlements: Sequence[Settlement], now_ms: int) -> list[bool]:
        now_ms, result = self._look(now_ms), TurnResult()
        done = []
        for each in settlements:
            hold = self._holds.get(each.reservation_id)
            is_pending = hold is not None and hold.state is ReservationState.PENDING
            done.append(not is_pending and self._settle(each, now_ms, result))
        self._untold += result.crossings
        return done

    # Results kept for files

    async def finished(self, job: str, *, undelivered: bool = True) -> AsyncIterator[Finished]:
        for row in sorted(self._rows.values(), key=lambda row: row.id):
            is_wanted = row.request.job == job and row.state.is_final
            if is_wanted and not (undelivered and row.delivered):
                yield row.finished()

    async def known(self, job: str, keys: Sequence[str]) -> dict[str, Known]:
        found = {key: self._keys.get((job, key)) for key in keys}
        return {key: row.as_known() for key, row in found.items() if row is not None}

    async def outcomes(self, ids: Sequence[int]) -> list[Finished]:
        rows = [self._rows[each] for each in ids if each in self._rows]
        return [row.finished() for row in rows if row.state.is_final]

    async def forget(self, job: str, now_ms: int) -> None:
        now_ms = self._look(now_ms)
        for (name, key), row in list(self._keys.items()):
            if name != job:
                continue
            del self._keys[name, key]
            if row.state is RequestState.QUEUED:
                self._drop(row, RequestState.CANCELLED, now_ms)
            if row.state.is_final:
                self._remove(row)

    def _remove(self, row: Row) -> None:
        """Forget one that has ended, but for its key."""
        if self._rows.pop(row.id, None) is not None:
            self._pages.drop(row.id)
            self._undelivered.pop(row.id, None)
            self._finished.count -= 1

    def _forget(self, row: Row) -> None:
        """Forget one that has ended; its key is free, unless it is another's by now."""
        self._remove(row)
        if self._keys.get(name := (row.request.job, row.key or "")) is row:
            del self._keys[name]

    def _forget_oldest(self) -> None:
        """More have ended than are kept: forget what is oldest, but nothing that is still open."""
        for request_id in self._finished.oldest():
            row = self._rows.get(request_id)
            if row is None or row.is_live:
                continue  # it was forgotten, or asked again, and is told again when it ends
            if row.id in self._open:
                self._finished.put_back(row.id)
            else:
                self._forget(row)

    async def delivered(self, ids: Sequence[int]) -> None:
        for request_id in ids:
            row = self._rows.get(request_id)
            if row is not None and not row.delivered:
                row.delivered = True
                if self._undelivered.pop(row.id, None) is not None:
                    heapq.heappush(self._delivered, (row.ended_at_ms, row.id))
        if len(self._delivered) > 2 * self._finished.count + 1_000:  # most were forgotten
            self._delivered = sorted(each for each in self._delivered if each[1] in self._rows)

    async def prune(
        self, before_ms: int, now_ms: int, *, undelivered: bool = False, limit: int = 1000,
        archive: Archive | None = None,
    ) -> list[Finished]:  # fmt: skip
        if self._sweep != (before_ms, undelivered):
            self._end_sweep()
            self._sweep = before_ms, undelivered
        found = self._take_delivered(before_ms, limit)
        if undelivered:
            for row in self._undelivered.values():
                if len(found) == limit or row.ended_at_ms >= before_ms:
                    break
                if row.id not in self._open:
                    found.append(row)
        page = [row.finished() for row in found]
        try:
            if archive is not None and page:
                archive(page)
        except BaseException:
            self._stays += [(row.ended_at_ms, row.id) for row in found if row.delivered]
            self._end_sweep()
            raise
        for row in found:
            self._forget(row)
        if len(page) < limit:
            self._end_sweep()
        return page

    def _take_delivered(self, before_ms: int, most: int) -> list[Row]:
        """Those that ended before then and may be forgotten; what may not is set aside."""
        found: list[Row] = []
        while self._delivered and self._delivered[0][0] < before_ms and len(found) < most:
            at_ms, request_id = heapq.heappop(self._delivered)
            row = self._rows.get(request_id)
            if row is None or not row.delivered or row.ended_at_ms != at_ms:
                continue  # forgotten or asked again meanwhile
            if row.id in self._open:
                self._stays.append((at_ms, request_id))
            else:
                found.append(row)
        return found

    def _end_sweep(self) -> None:
        for entry in self._stays:
            heapq.heappush(self._delivered, entry)
        self._stays.clear()
