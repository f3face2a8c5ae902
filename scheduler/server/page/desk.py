"""What the page reads of a store, and the few things it may change there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from scheduler.errors import BudgetUnknown, ConfigError
from scheduler.guards.plain import without_password
from scheduler.money import format_usd, parse_usd
from scheduler.request import RequestState
from scheduler.server.page import figures
from scheduler.server.page.burn import burn, since_ms
from scheduler.server.page.day import Day
from scheduler.server.page.forecast import Forecast
from scheduler.stats import BudgetStatus
from scheduler.stores import acts
from scheduler.stores.base import Store
from scheduler.stores.course import lately_since_ms
from scheduler.stores.views import resolved_by_hand

MOST_BUDGETS = 50  # shown at once; of more, those of which the least is left
PAGE = 25
LIVE = (RequestState.RUNNING, RequestState.QUEUED, RequestState.PARKED)


class NotFound(Exception):
    """There is no such thing."""


class Desk:
    """Reads a store for the page, and changes it.

    Args:
        store: It, open.
        name: What it is called on the page; a password in it is not shown.
        may_change: Whether limits may be raised, budgets paused, outcomes resolved.
        now_ms: The time.
    """

    def __init__(
        self, store: Store, name: str, *, may_change: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self._store, self.name, self.may_change = store, without_password(name), may_change
        self._now_ms = now_ms
        self._forecast, self._day = Forecast(store, now_ms), Day(store)

    # Looking

    async def picture(self) -> dict[str, Any]:
        """All that the page shows without being asked; costs what budgets, lanes and models do."""
        store, now_ms = self._store, self._now_ms()
        statuses = await store.budgets(now_ms)
        shown = sorted(statuses, key=_urgency)[:MOST_BUDGETS]
        course = await store.course([status.id for status in shown], lately_since_ms(now_ms))
        rows = {
            status.id: [row for row in course if row.budget_id == status.id] for status in shown
        }
        counts = await store.counts()
        unknown = await store.unknown_sum()
        return {
            "store": self.name, "at_ms": now_ms, "may_change": self.may_change,
            "budgets": [figures.budget_row(each, rows[each.id], now_ms) for each in shown],
            "more_budgets": len(statuses) - len(shown),
            "counts": {
                state: getattr(counts, state)
                for state in ("queued", "parked", "running", "succeeded", "failed", "cancelled", "expired")
            },
            "standing": [figures.standing_row(each) for each in await store.standing(now_ms)],
            **await self._day.look(now_ms),
            "tenants": figures.tenant_rows(await store.tenants(now_ms)),
            "finish": figures.finish_row(self._forecast.look(counts.waiting)),
            "unknown": {
                "attempts": unknown.attempts, "said": figures.shown(unknown.nusd),
                "oldest_at_ms": unknown.oldest_at_ms or None,
            },
            "limited": [
                {"said": each.sentence, "until_ms": each.until_ms} for each in await store.limited(now_ms)
            ],
            "workers": [
                {"host": each.host.split()[0], "pid": each.pid, "running": each.running,
                 "serves": sorted(each.serves), "is_live": each.is_live, "seen_at_ms": each.seen_at_ms}
                for each in await store.workers(now_ms)
            ],
        }  # fmt: skip

    async def burn(self, budget_id: int, position: int) -> dict[str, Any]:
        """How one cap of a budget is being used up. Raises `NotFound`."""
        now_ms = self._now_ms()
        status = await self._budget(budget_id, now_ms)
        if not 0 <= position < len(status.caps):
            raise NotFound
        cap = status.caps[position]
        rows = await self._store.course([budget_id], since_ms(cap.cap.window, now_ms))
        return figures.burn_row(cap, burn(cap, rows, now_ms))

    async def requests(self, states: Sequence[RequestState], after_id: int) -> dict[str, Any]:
        """A page of requests in these states, oldest first."""
        now_ms = self._now_ms()
        rows = await self._store.queue(states, now_ms, limit=PAGE + 1, after_id=after_id)
        return {
            "requests": [figures.request_row(row) for row in rows[:PAGE]],
            "after_id": rows[PAGE - 1].id if len(rows) > PAGE else None,
        }

    async def request(self, request_id: int) -> dict[str, Any]:
        """One request and its attempts. Raises `NotFound`."""
        rows = await self._store.queue(
            list(RequestState), self._now_ms(), limit=1, after_id=request_id - 1
        )
        if not rows or rows[0].id != request_id:
            raise NotFound
        attempts = await self._store.attempts(request_id)
        return {
            **figures.request_row(rows[0]),
            "tries": [figures.attempt_row(each) for each in attempts],
        }

    async def unknown(self) -> list[dict[str, Any]]:
        """The oldest attempts of which nobody knows how they ended."""
        return [figures.unknown_row(each) for each in await self._store.suspended(limit=PAGE)]

    async def acts(self) -> list[dict[str, Any]]:
        """What was changed, here or elsewhere, newest first."""
        return [figures.act_row(each) for each in await acts.noted(self._store)][:PAGE]

    # Changing

    async def set_limit(self, budget_id: int, text: str, who: str) -> str:
        """Change a budget's limit, as ``scheduler budget set`` does; returns it in words.

        Raises:
            NotFound: There is no such budget.
            ConfigError: The text is no limit, or nothing may be changed here.
        """
        self._check()
        now_ms = self._now_ms()
        old = (await self._budget(budget_id, now_ms)).budget
        new = old.with_limit(text)
        await self._store.define([new], now_ms)
        await acts.note(self._store, *acts.limits(now_ms, who, {old.name: old}, [new]))
        return new.text

    async def pause(self, budget_id: int, paused: bool, who: str) -> None:
        """Stop or go on admitting on a budget. Raises as `set_limit` does."""
        self._check()
        now_ms = self._now_ms()
        status = await self._budget(budget_id, now_ms)
        try:
            await self._store.pause(status.budget.name, paused, now_ms)
        except BudgetUnknown:
            raise NotFound from None
        act = acts.paused(now_ms, who, status.budget.name, was=status.paused, is_now=paused)
        await acts.note(self._store, act)

    async def resolve(self, attempt_id: int, charge: str | None, who: str) -> str:
        """Say what an unknown outcome cost; None: nothing. Returns what counts no longer, in words.

        Raises:
            NotFound: It is not unknown any more.
            ConfigError: The charge is no amount, or nothing may be changed here.
        """
        self._check()
        nusd = 0 if charge is None else parse_usd(charge, "charge")
        found = await self._store.suspended_of([attempt_id])
        if not found:
            raise NotFound
        (unknown,) = found
        settlement = resolved_by_hand(unknown, nusd, "resolved on the page")
        (was_new,) = await self._store.resolve([settlement], self._now_ms())
        if not was_new:
            raise NotFound
        await acts.note(self._store, acts.resolved(self._now_ms(), who, unknown, nusd))
        return format_usd(max(0, unknown.ceiling_nusd - nusd))

    def _check(self) -> None:
        if not self.may_change:
            raise ConfigError(
                "page", "only shows; start it with --allow-changes to change anything"
            )

    async def _budget(self, budget_id: int, now_ms: int) -> BudgetStatus:
        for status in await self._store.budgets(now_ms):
            if status.id == budget_id:
                return status
        raise NotFound


def _urgency(status: BudgetStatus) -> tuple[float, int]:
    """The share of each budget that is left, the least first."""
    left = [
        cap.available / cap.limit if cap.limit else 0.0
        for cap in status.caps
        if cap.limit is not None and cap.available is not None
    ]
    return min(left, default=2.0), status.id
