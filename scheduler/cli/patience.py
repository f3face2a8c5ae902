"""How long a run waits: for money, for a provider, for a first answer."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.cli.progress import why
from scheduler.duration import format_duration
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stats import Stats

FIRST_ANSWER_S = 60.0  # without any answer since the run began: its address may be wrong


def worst(shortfalls: Sequence[Shortfall]) -> Shortfall | None:
    """The one that will take the longest."""
    order = list(ParkReason)
    return min(shortfalls, key=lambda lack: order.index(lack.reason), default=None)


class Patience:
    """Says when a run has waited enough; told about ten times a second how things are.

    Args:
        stops: Wait for no money at all, and for a provider that is down only for a while.
        max_wait_ms: Wait so long at most, whatever for; None: as long as it takes.
        store_option: For commands shown to people.
    """

    def __init__(self, stops: bool, max_wait_ms: int | None, store_option: str) -> None:
        self._stops, self._max_wait_ms, self._store_option = stops, max_wait_ms, store_option
        self._since_s: float | None = None  # nothing has gone on since then
        self._is_answered = False
        self._told: tuple[object, ...] | None = None

    def answered(self) -> None:
        """Somebody has answered a request, whatever it said."""
        self._since_s, self._is_answered = None, True

    def enough(self, stats: Stats, now_s: float, now_ms: int, *, is_fed: bool = True) -> str | None:
        """Why to wait no longer; None: go on. Not `is_fed`: more may come that can be sent."""
        parked = sum(stats.parked.values())
        down = {lack.budget for lack in stats.shortfalls if lack.is_of_provider}
        # A provider that is closed is asked by one call at a time: that is waiting, too.
        if not (parked or stats.queued) or stats.running > len(down):
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        waited_ms = int((now_s - self._since_s) * 1000)
        lack = worst(stats.shortfalls)
        needs_money = lack is not None and not lack.is_brief
        if is_fed and needs_money and not stats.queued and not stats.running:
            if self._stops:
                return self._why(stats, lack, now_ms)
            if self._max_wait_ms is not None and lack is not None:
                ahead_ms = 0 if lack.is_of_provider else (stats.resumes_at_ms or now_ms) - now_ms
                if waited_ms + max(0, ahead_ms) > self._max_wait_ms:
                    return self._why(stats, lack, now_ms)
        if self._max_wait_ms is not None and waited_ms > self._max_wait_ms:
            return f"waited {format_duration(waited_ms)}. {self._why(stats, lack, now_ms)}"
        return self._silent(stats, lack, waited_ms, now_ms)

    def _silent(
        self, stats: Stats, lack: Shortfall | None, waited_ms: int, now_ms: int
    ) -> str | None:
        if lack is None or not self._ends_when_down(lack) or waited_ms <= FIRST_ANSWER_S * 1000:
            return None
        hint = (
            ""
            if self._is_answered
            else " Nothing has answered since the run began: is its URL right?"
        )
        return (
            f"waited {format_duration(waited_ms)} for provider {lack.budget!r}, which does not answer"
            f"{f' ({lack.words})' if lack.words else ''}.{hint} What waits is kept for the next run"
        )

    def _ends_when_down(self, lack: Shortfall) -> bool:
        is_down = lack.reason is ParkReason.PROVIDER_DOWN
        return is_down and (self._stops or not self._is_answered)

    def _why(self, stats: Stats, lack: Shortfall | None, now_ms: int) -> str:
        waiting = sum(stats.parked.values())
        if lack is not None:
            return why(lack, waiting, now_ms, self._store_option)
        held = stats.limited[0].sentence if stats.limited else "they are to be tried again later"
        return f"{waiting + stats.queued:,} requests wait: {held}"

    def news(self, stats: Stats, now_ms: int) -> str | None:
        """Why nothing moves, once per reason."""
        lack = worst(stats.shortfalls)
        if lack is None or stats.running or stats.queued:
            if lack is None:
                self._told = None
            return None
        reason = (lack.reason, lack.budget, lack.resumes_at_ms)
        if reason == self._told:
            return None
        self._told = reason
        text = self._why(stats, lack, now_ms)
        if self._ends_when_down(lack):
            text += f". The run ends after {format_duration(int(FIRST_ANSWER_S * 1000))} without an answer"
        return text
