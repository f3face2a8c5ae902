"""Rows of the memory store: a request, a reservation, and a shelf of requests."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from scheduler.foresight import Kind
from scheduler.ledger.account import Needs, ReservationState
from scheduler.limits import size_of
from scheduler.request import RequestState, Response
from scheduler.shortfall import Shortfall
from scheduler.stats import QueueRow
from scheduler.stores.base import Finished, Known, NewRequest, Submitted, Unknown
from scheduler.stores.lanes import Lane
from scheduler.stores.tagged import labels_of

Entry = tuple[int, int, int]  # deadline, request id, ticket: stale once the row has another ticket
MAX_SHELVED = 10_000  # in one turn: the loop is held up no longer than some milliseconds


class Row:
    """One request."""

    __slots__ = (
        "attempts",
        "cost_nusd",
        "delivered",
        "digest",
        "due_at_ms",
        "ended_at_ms",
        "error",
        "expected_nusd",
        "expires_at_ms",
        "id",
        "is_delayed",
        "lane",
        "needs",
        "parked_mark_ms",
        "parked_ms",
        "request",
        "reservation_id",
        "response",
        "state",
        "submitted_at_ms",
        "ticket",
        "tokens",
    )  # fmt: skip

    def __init__(self, id: int, new: NewRequest, lane: Lane, now_ms: int) -> None:
        self.id, self.request, self.lane = id, new.request, lane
        self.needs: Needs = (new.ceiling_nusd, new.ceiling_tokens, 1)
        self.digest, self.expected_nusd, self.tokens = new.digest, new.expected_nusd, new.tokens
        self.expires_at_ms, self.due_at_ms = new.expires_at_ms, new.due_at_ms
        self.state = RequestState.QUEUED
        self.submitted_at_ms = now_ms
        self.parked_mark_ms = lane.parked_clock_ms(now_ms)
        self.parked_ms = self.attempts = self.cost_nusd = 0
        self.reservation_id = self.ticket = self.ended_at_ms = 0
        self.response: Response | None = None
        self.error: Any = None
        self.delivered = self.is_delayed = False

    @property
    def key(self) -> str | None:
        """What its caller calls it."""
        return self.request.key

    @property
    def kind(self) -> Kind:
        """What costs as it does."""
        return self.request.model, self.request.job

    @property
    def entry(self) -> Entry:
        """Its place among those that wait in its lane."""
        due_ms, id_ = self.lane.key.head(self)
        return due_ms, id_, self.ticket

    @property
    def why_parked(self) -> Shortfall | None:
        """Why its lane is shut, if it waits there."""
        waits = self.state is RequestState.QUEUED and not self.is_delayed
        return self.lane.shortfall if waits else None

    @property
    def state_shown(self) -> RequestState:
        """Its state as people see it."""
        return self.state if self.why_parked is None else RequestState.PARKED

    @property
    def is_live(self) -> bool:
        """Whether it still waits for an answer."""
        return not self.state.is_final

    def as_queue_row(self, now_ms: int) -> QueueRow:
        """The same for who looks at the queue."""
        lack, parked_ms = self.why_parked, self.parked_ms
        if self.state is RequestState.QUEUED and not self.is_delayed:
            parked_ms += self.lane.parked_clock_ms(now_ms) - self.parked_mark_ms
        return QueueRow(
            id=self.id, key=self.request.key, job=self.request.job,
            state=self.state_shown,
            model=self.request.model, provider=self.lane.key.provider,
            priority=self.lane.key.priority, submitted_at_ms=self.submitted_at_ms,
            attempts=self.attempts, ceiling_nusd=self.needs[0], cost_nusd=self.cost_nusd,
            parked_ms=parked_ms, shortfall=lack, request=self.request, error=self.error,
            tenant=self.lane.key.tenant, due_at_ms=self.due_at_ms,
        )  # fmt: skip

    def as_new(self) -> NewRequest:
        """The same as it might be submitted."""
        return NewRequest(
            self.request, self.lane.key, self.needs[0], self.needs[1], self.expected_nusd,
            self.digest, self.expires_at_ms, self.due_at_ms, tokens=self.tokens,
        )  # fmt: skip

    def as_submitted(self, **more: Any) -> Submitted:
        """What becomes of its key where that is submitted again."""
        return Submitted(
            self.id, self.state, is_known=True, submitted_at_ms=self.submitted_at_ms, **more
        )

    def as_known(self) -> Known:
        """What of it tells whether it may be asked again."""
        return Known(self.state, self.digest, self.error if self.state.is_final else None)

    def finished(self) -> Finished:
        """Its outcome."""
        return Finished(
            self.id, self.request.key, self.state, self.response, self.error, self.cost_nusd,
            self.attempts, self.digest,
        )  # fmt: skip


class Hold:
    """One reservation."""

    __slots__ = (
        "budgets", "id", "is_assumed", "job", "labels", "made_at_ms", "model", "needs", "nusd", "provider",
        "provider_id", "request", "request_id", "settled_at_ms", "state", "tokens", "why",
    )  # fmt: skip

    def __init__(self, id: int, row: Row, made_at_ms: int) -> None:
        self.id, self.request_id, self.needs = id, row.id, row.needs
        self.budgets, self.made_at_ms = row.lane.key.budgets, made_at_ms
        self.model, self.job = row.request.model, row.request.job
        self.request, self.provider = row.request, row.lane.key.provider
        self.state, self.is_assumed = ReservationState.PENDING, False
        self.nusd = self.tokens = self.settled_at_ms = 0
        self.provider_id: str | None = None
        self.why: str | None = None
        self.labels = labels_of(row.request.tags) if row.request.tags else ()

    @property
    def kind(self) -> Kind:
        """What costs as it does."""
        return self.model, self.job

    @property
    def is_final(self) -> bool:
        """Whether nothing can change it any more: an assumption may still be corrected."""
        return self.state.is_end and not self.is_assumed

    def as_unknown(self) -> Unknown:
        """The same for who asks about it."""
        return Unknown(
            self.id, self.request_id, self.request.key, self.job, self.model, self.provider,
            self.made_at_ms, self.settled_at_ms, self.needs[0], self.needs[1], self.provider_id,
            self.why, self.request,
        )  # fmt: skip


class Shelf:
    """Those of a lane that are too large for what credit its provider has, by their size.

    Each is looked at once, and then only as the smallest of them, or when there is more credit.

    Args:
        queue: A heap of who waits in the lane.
        rows: All rows, by id.
    """

    def __init__(self, queue: list[Entry], rows: Mapping[int, Row]) -> None:
        self._queue, self._rows = queue, rows
        self._heap: list[tuple[int, Entry]] = []  # by size
        self.is_cut = False  # there were too many for one turn

    def clear(self) -> None:
        """Put all of them back."""
        self._queue += [entry for _, entry in self._heap]
        heapq.heapify(self._queue)
        self._heap.clear()

    def small(self, waiting: Iterator[Row], seen: list[Row], reach: int) -> Iterator[Row]:
        """Those that are no larger than that, oldest first; who is goes onto the shelf."""
        self.is_cut = False
        if reach < 0:
            return
        while self._heap and self._heap[0][0] <= reach:
            heapq.heappush(self._queue, heapq.heappop(self._heap)[1])
        shelved = 0
        for row in waiting:
            if size_of(*row.needs[:2]) <= reach:
                seen.append(row)
                yield row
                continue
            self._put(row)
            shelved += 1
            if shelved >= MAX_SHELVED:
                self.is_cut = True
                return

    def large(self, waiting: Iterator[Row], seen: list[Row], reach: int) -> Iterator[Row]:
        """Those on the shelf, smallest first; where nothing goes, all come onto it in time."""
        if reach < 0:
            for row in islice(waiting, MAX_SHELVED):
                self._put(row)
        while self._heap:
            _, (_, request_id, ticket) = heapq.heappop(self._heap)
            found = self._rows.get(request_id)
            if found is not None and found.ticket == ticket and found.state is RequestState.QUEUED:
                seen.append(found)
                yield found

    def size_by_id(self, lane: Lane, request_id: int) -> int | None:
        """The size of who waits in the lane; None: it does not."""
        row = self._rows.get(request_id)
        if row is None or row.lane is not lane or row.state is not RequestState.QUEUED:
            return None
        return size_of(*row.needs[:2])

    def _put(self, row: Row) -> None:
        heapq.heappush(self._heap, (size_of(*row.needs[:2]), row.entry))
