"""What the memory store tells at a glance, from its lanes and what is open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scheduler.ledger.account import ReservationState
from scheduler.stats import Standing, UnknownSum
from scheduler.stores.base import Store
from scheduler.stores.course import CourseRow, TookRow
from scheduler.stores.history import AttemptRow
from scheduler.stores.lanes import Lanes
from scheduler.stores.memory.journal import Journal
from scheduler.stores.memory.outbox import MemoryOutbox
from scheduler.stores.memory.pages import Pages
from scheduler.stores.memory.queues import Queues
from scheduler.stores.memory.rows import Hold, Row
from scheduler.stores.views import Stood


class Glance(MemoryOutbox, Store):
    """Part of `MemoryStore`, whose rows it reads."""

    _rows: dict[int, Row]
    _pages: Pages
    _journal: Journal
    _lanes: Lanes
    _queues: Queues
    _delayed: Sequence[tuple[int, int, int]]
    _holds: Mapping[int, Hold]
    _unknown: Mapping[int, Hold]

    async def standing(self, now_ms: int) -> list[Standing]:
        """See `Store.standing`."""
        stood = Stood(now_ms)
        for lane in self._lanes:
            if lane.waiting:
                first = self._queues.first(lane.id)
                oldest_at_ms = None if first is None else first.submitted_at_ms
                stood.wait(
                    lane.key.priority, lane.waiting, oldest_at_ms, lane.shortfall,
                    lane.shut_since_ms,
                )  # fmt: skip
        for _, request_id, ticket in self._delayed:
            row = self._rows.get(request_id)
            if row is not None and row.ticket == ticket and row.is_delayed and row.is_live:
                stood.later(row.lane.key.priority, 1, row.submitted_at_ms)
        for hold in self._holds.values():
            row = self._rows.get(hold.request_id)
            if hold.state is ReservationState.PENDING and row is not None:
                stood.run(row.lane.key.priority, 1, hold.made_at_ms)
        return stood.found()

    async def unknown_sum(self) -> UnknownSum:
        """See `Store.unknown_sum`."""
        held = self._unknown.values()
        return UnknownSum(
            len(held), sum(hold.needs[0] for hold in held),
            min((hold.settled_at_ms for hold in held), default=0),
        )  # fmt: skip

    async def live_by_job(self) -> dict[str, int]:
        """See `Store.live_by_job`."""
        return await self._pages.live_by_job()

    async def course(self, budgets: Collection[int], since_ms: int) -> list[CourseRow]:
        """See `Store.course`."""
        return self._journal.course(budgets, since_ms, self._holds.values())

    async def durations(self, since_ms: int) -> list[TookRow]:
        """See `Store.durations`."""
        return self._journal.durations(since_ms)

    async def attempts(self, request_id: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        held = (hold for hold in self._holds.values() if hold.request_id == request_id)
        return [
            AttemptRow(
                hold.id, hold.state.value, hold.made_at_ms, hold.settled_at_ms or None, hold.needs[0],
                hold.nusd, hold.tokens, hold.is_assumed, hold.why,
            )
            for hold in sorted(held, key=lambda hold: hold.id)
        ]  # fmt: skip
