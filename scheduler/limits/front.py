"""The gate before all of a provider: what was given for all its models, credit, life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scheduler.limits.gate import LONGEST_ASKED_MS, LONGEST_PAUSE_MS, MARGIN_MS
from scheduler.limits.meter import Counting, Limits
from scheduler.limits.metered import Metered
from scheduler.limits.words import Closed, GateStatus, Heard, Report
from scheduler.request import Tokens

DOWN_AFTER = 5  # failures in a row without an answer
MANY_MODELS = 5  # refused in a row without an answer: it is hardly the limit of each of them
OFTEN = 2  # of these of one request: it may be its own fault
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
        self._failed: list[int] = []  # the latest of these that were sent
        self._let: set[int] = set()  # under way although it is closed: they are small enough

    @property
    def refuses(self) -> bool:
        """Whether so many models were refused in a row that it is the provider that refuses."""
        return len(self._refused_models) >= MANY_MODELS

    def opens_at_ms(self, tokens: Tokens, now_ms: int, is_lent: bool = False) -> float:
        """As above, and not before the pause is over."""
        at_ms = float(self.paused_until_ms)
        return max(at_ms, super().opens_at_ms(tokens, now_ms, is_lent)) if self.meters else at_ms

    def let(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes, and not in order to try."""
        self._go(request_id, tokens, now_ms)
        if self.closed is not None:
            self._let.add(request_id)

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes; while nothing else does, it is the one that tries."""
        self._go(request_id, tokens, now_ms)
        if self.closed is not None:
            self.closed.probing, self.closed.probing_since_ms = request_id, now_ms
            self.is_dirty = True

    def _go(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        if self.meters:
            super().take(request_id, tokens, now_ms)
        if self.refuses:
            self._tried[request_id] = now_ms
            self._pause(now_ms)

    def hear(self, report: Report) -> None:
        """Take in what came back, and judge whether anything but a probe may go."""
        if self.meters:
            super().hear(report)
        if report.heard is not Heard.ANSWERED or self._refused_models:
            self._count_refusals(report)
        closed, heard = self.closed, report.heard
        was_let = False
        if self._let and report.request_id in self._let:
            was_let = True
            self._let.discard(report.request_id)
        if closed is None and heard is Heard.ANSWERED:
            if self._failures:
                self._forget_failures()
            return
        is_probe = closed is not None and closed.probing == report.request_id
        if heard is Heard.NO_CREDIT:
            self._forget_failures()
            self._close("provider_credit", report, is_probe)
            self._refuse(report)
        elif heard in (Heard.DOWN, Heard.BUSY):
            self._failures += 1
            if not report.is_free:
                self._failed = [*self._failed[1 - DOWN_AFTER :], report.request_id]
            if is_probe or (closed is None and self._failures >= DOWN_AFTER):
                self._close("provider_down" if closed is None else closed.reason, report, is_probe)
            elif closed is not None and closed.is_ajar and self._failures >= DOWN_AFTER:
                closed.shut(report.at_ms + FIRST_PROBE_MS["provider_down"])
                self.is_dirty = True
        elif heard is Heard.UNSENT:
            if closed is not None and is_probe:
                closed.probing, self.is_dirty = None, True
        else:
            self._forget_failures()
            # An answer to what was sent before says that it lives, not that it has credit again.
            if closed is not None and (is_probe or closed.reason == "provider_down"):
                self._answered_probe(closed, report)
            elif closed is not None and closed.seen and was_let and heard is Heard.ANSWERED:
                self.is_dirty |= closed.grow(report.model, report.size)

    def _forget_failures(self) -> None:
        self._failures = 0
        self._failed.clear()

    def _answered_probe(self, closed: Closed, report: Report) -> None:
        self.is_dirty = True
        if closed.reason == "provider_down" or closed.answered(report.model, report.size):
            self.closed = None
        else:  # the next one may try at once
            closed.probing, closed.pause_ms = None, FIRST_PROBE_MS[closed.reason]

    def _refuse(self, report: Report) -> None:
        """Note which size there was no credit for; who else was under way may know it better."""
        closed = self.closed
        assert closed is not None
        allowed = closed.allowed
        closed.refuse(report.model, report.size, report.affords)
        if closed.allowed < allowed:
            self._let.clear()  # what they say is older
        closed.note_tried(report.request_id)
        self.is_dirty = True

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
        is_again = closed is not None and closed.reason == reason
        made = Closed(reason, report.words, since_ms, report.at_ms, pause_ms)
        if closed is not None and is_again:
            made = closed
            made.words, made.probing = report.words, None
            made.pause_ms = min(LONGEST_PROBE_MS[reason], 2 * closed.pause_ms)
            made.in_vain += 1
        if reason == "provider_down":  # it may be the fault of one that fails again and again
            often = [each for each in self._failed if self._failed.count(each) >= OFTEN]
            made.tried = sorted(set(often))
        made.probe_at_ms = report.at_ms + max(made.pause_ms, report.retry_after_ms or 0)
        self.closed, self.is_dirty = made, True

    def dump(self) -> list[Any]:
        """As above, what it is closed for, and the pause."""
        closed = self.closed
        fields = closed and [getattr(closed, name) for name in Closed.__slots__]
        return [*super().dump(), fields, self.paused_until_ms]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """As above, and what it is closed for."""
        super().load(state, now_ms, as_it_is=as_it_is)
        self.closed = None if state[3] is None else Closed.read(state[3])
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
        if closed.is_ajar:
            why += " (smaller requests go on)"
        return GateStatus(self.provider, "", why, closed.next_at_ms(now_ms), is_closed=True)
