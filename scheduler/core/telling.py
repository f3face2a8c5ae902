"""What a turn did to lanes and budgets, told to whoever listens."""

from __future__ import annotations

import asyncio

from scheduler import events
from scheduler.admission.notices import Notices
from scheduler.core.intake import Intake
from scheduler.core.steps import Steps
from scheduler.ledger.burning import Burning
from scheduler.limits import Gates
from scheduler.stores.base import LaneStatus, TurnResult


class Telling:
    """Tells of one process's lanes. Used by `Pump` alone.

    Args:
        gates: Know since when a provider is closed.
        intake: Knows the names of budgets.
        announcer: Tells those who asked for events.
    """

    def __init__(self, gates: Gates, intake: Intake, announcer: events.Announcer) -> None:
        self._intake, self._announcer = intake, announcer
        self._notices = Notices(gates.closed_since)

    async def tell(self, result: TurnResult, now_ms: int, steps: Steps) -> None:
        """Tell of crossed thresholds and of burning budgets, and of lanes that were shut or opened."""
        for each in result.crossings:
            if isinstance(each, Burning):
                self._announcer.emit(
                    events.BudgetBurning(
                        now_ms, each.budget, str(each.cap), each.level, each.spent, each.within_ms,
                        each.posted, each.limit, each.used_up_at_ms, each.resets_at_ms,
                    )
                )  # fmt: skip
                continue
            self._announcer.emit(
                events.ThresholdCrossed(
                    now_ms, each.budget, str(each.cap), each.percent, each.posted, each.limit,
                    each.resets_at_ms,
                )
            )  # fmt: skip
        started = {each.request.model for each in result.claimed} if result.lanes else set()
        for lane in result.lanes:
            self._notices.tell([lane], started, now_ms)
            self._tell(lane, now_ms)
            if steps.is_long():
                await asyncio.sleep(0)

    def _tell(self, lane: LaneStatus, now_ms: int) -> None:
        provider, lack = lane.key.provider, lane.shortfall
        if lack is not None and self._announcer.hears(events.Parked):
            self._announcer.emit(events.Parked(now_ms, lack, lane.waiting, provider, lane.key))
        elif lack is None and self._announcer.hears(events.Unparked):
            names = tuple(self._intake.book.name(each) for each in lane.key.budgets)
            self._announcer.emit(events.Unparked(now_ms, lane.waiting, provider, names, lane.key))
