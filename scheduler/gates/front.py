"""The gate before all of a provider: what was given for all its models, credit, life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scheduler.gates.metered import Metered
from scheduler.gates.model import LONGEST_ASKED_MS, LONGEST_PAUSE_MS, MARGIN_MS
from scheduler.gates.words import Closed, GateStatus, Heard, Report
from scheduler.limits import Counting, Limits
from scheduler.request import Tokens

DOWN_AFTER = 5  # failures in a row without an answer
MANY_MODELS = 5  # refused in a row without an answer: it is hardly the limit of each of them
FIRST_PROBE_MS = {"provider_down": 1_000, "provider_credit": 30_000}
LONGEST_PROBE_MS = {"provider_down": 60_000, "provider_credit": 600_000}


class Front(Metered):
    """Stands before all of a provider: what was given for all models together, credit, life.

    A model's limit is its gate's affair. Where many models are refused in a row and none is answered,
    it is the provider that refuses: then all of them together send one request each so often, ever
    more rarely, until one is answered.
    """

    is_front = True

    def __init__(self, provider: str, counting: Counting, limits: Limits) -> None:
        super().__init__(provider, "", counting, limits)
        self.closed: Closed | None = None
        self._failures = 0
        self.paused_until_ms = 0
        self._refused_models: set[str] = set()  # in a row
        self._refusals = 0  # since they are many, of what was sent after the last one
        self._cut_at_ms = 0
        self._tried: dict[int, int] = {}  # since they are many: request to when it was sent

    @property
    def refuses(self) -> bool:
        """Whether so many models were refused in a row that it is the provider that refuses."""
        return len(self._refused_models) >= MANY_MODELS

    def opens_at_ms(self, tokens: Tokens, now_ms: int, is_lent: bool = False) -> float:
        """As above, and not before the pause is over."""
        at_ms = float(self.paused_until_ms)
        return max(at_ms, super().opens_at_ms(tokens, now_ms, is_lent)) if self.meters else at_ms

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes; while nothing else does, it is the one that tries."""
        if self.meters:
            super().take(request_id, tokens, now_ms)
        if self.refuses:
            self._tried[request_id] = now_ms
            self._pause(now_ms)
        if self.closed is not None:
            self.closed.probing, self.closed.probing_since_ms = request_id, now_ms
            self.is_dirty = True

    def hear(self, report: Report) -> None:
        """Take in what came back, and judge whether anything but a probe may go."""
        if self.meters:
            super().hear(report)
        if report.heard is not Heard.ANSWERED or self._refused_models:
            self._count_refusals(report)
        closed, heard = self.closed, report.heard
        if closed is None and heard is Heard.ANSWERED:
            self._failures = 0
            return
        is_probe = closed is not None and closed.probing == report.request_id
        if heard is Heard.NO_CREDIT:
            self._failures = 0
            self._close("provider_credit", report, is_probe)
        elif heard in (Heard.DOWN, Heard.BUSY):
            self._failures += 1
            if is_probe or (closed is None and self._failures >= DOWN_AFTER):
                self._close("provider_down" if closed is None else closed.reason, report, is_probe)
        elif heard is Heard.UNSENT:
            if closed is not None and is_probe:
                closed.probing, self.is_dirty = None, True
        else:
            self._failures = 0
            # An answer to what was sent before says that it lives, not that it has credit again.
            if closed is not None and (is_probe or closed.reason == "provider_down"):
                self.closed, self.is_dirty = None, True

    def _count_refusals(self, report: Report) -> None:
        """Notice that many models are refused in a row, or that one is answered."""
        sent_at_ms = self._tried.pop(report.request_id, None)
        if report.heard is Heard.ANSWERED:
            self._refused_models.clear()
            self._tried.clear()
            self._refusals = self.paused_until_ms = 0
            self.is_dirty = True
        elif report.heard in (Heard.LIMITED, Heard.BUSY):
            is_new = sent_at_ms is not None and sent_at_ms > self._cut_at_ms
            if not self.refuses:
                self._refused_models.add(report.model)
                is_new = len(self._refused_models) == MANY_MODELS
            if is_new:
                self._cut_at_ms, self._refusals = report.at_ms, self._refusals + 1
                self._pause(report.at_ms)

    def _pause(self, now_ms: int) -> None:
        pause_ms = min(LONGEST_PAUSE_MS, MARGIN_MS << min(self._refusals, 16))
        self.paused_until_ms = max(self.paused_until_ms, now_ms + pause_ms)
        self.is_dirty = True

    def _close(self, reason: str, report: Report, is_probe: bool) -> None:
        closed = self.closed
        if closed is not None and closed.reason == reason and not is_probe:
            return  # one of those that were under way
        pause_ms, since_ms = FIRST_PROBE_MS[reason], report.at_ms
        if closed is not None and closed.reason == reason:
            pause_ms = min(LONGEST_PROBE_MS[reason], 2 * closed.pause_ms)
            since_ms = closed.since_ms
        wait_ms = max(pause_ms, report.retry_after_ms or 0)
        self.closed = Closed(reason, report.words, since_ms, report.at_ms + wait_ms, pause_ms)
        self.is_dirty = True

    def dump(self) -> list[Any]:
        """As above, what it is closed for, and the pause."""
        closed = self.closed
        fields = closed and [getattr(closed, name) for name in Closed.__slots__]
        return [*super().dump(), fields, self.paused_until_ms]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """As above, and what it is closed for."""
        super().load(state, now_ms, as_it_is=as_it_is)
        self.closed = None if state[3] is None else Closed(*state[3])
        # Rows of older programs have no pause.
        until_ms = int(state[4]) if len(state) > 4 else 0
        self.paused_until_ms = min(until_ms, now_ms + LONGEST_ASKED_MS)

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        closed = self.closed
        if closed is None:
            held = super().status(now_ms)
            if self.paused_until_ms <= now_ms or held is not None:
                return held
            why = "many of its models were refused in a row"
            return GateStatus(self.provider, "", why, self.paused_until_ms)
        why = closed.reason.replace("_", " ") + (f": {closed.words}" if closed.words else "")
        return GateStatus(self.provider, "", why, closed.next_at_ms(now_ms), is_closed=True)
