"""The gate before all of a provider: what was given for all its models, credit, life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scheduler.gates.metered import Metered
from scheduler.gates.words import Closed, GateStatus, Heard, Report
from scheduler.limits import Counting, Limits
from scheduler.request import Tokens

DOWN_AFTER = 5  # failures in a row without an answer
FIRST_PROBE_MS = {"provider_down": 1_000, "provider_credit": 30_000}
LONGEST_PROBE_MS = {"provider_down": 60_000, "provider_credit": 600_000}


class Front(Metered):
    """Stands before all of a provider: what was given for all models together, credit, life."""

    is_front = True

    def __init__(self, provider: str, counting: Counting, limits: Limits) -> None:
        super().__init__(provider, "", counting, limits)
        self.closed: Closed | None = None
        self._failures = 0

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes; while nothing else does, it is the one that tries."""
        if self.meters:
            super().take(request_id, tokens, now_ms)
        if self.closed is not None:
            self.closed.probing, self.closed.probing_since_ms = request_id, now_ms
            self.is_dirty = True

    def hear(self, report: Report) -> None:
        """Take in what came back, and judge whether anything but a probe may go."""
        if self.meters:
            super().hear(report)
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
        """As above, and what it is closed for."""
        closed = self.closed
        fields = closed and [getattr(closed, name) for name in Closed.__slots__]
        return [*super().dump(), fields]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """As above, and what it is closed for."""
        super().load(state, now_ms, as_it_is=as_it_is)
        self.closed = None if state[3] is None else Closed(*state[3])

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        closed = self.closed
        if closed is None:
            return super().status(now_ms)
        why = closed.reason.replace("_", " ") + (f": {closed.words}" if closed.words else "")
        return GateStatus(self.provider, "", why, closed.next_at_ms(now_ms), is_closed=True)
