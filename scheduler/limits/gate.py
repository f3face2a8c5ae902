"""The gate before one model: its limits, pauses, and how many calls at once.

Where no limit is known, the number of calls under way follows a cubic after a refusal, as TCP does
(RFC 9438), but counted in answers, so that refusals stay rare at any rate: quickly back to
where it was refused, a while there, then beyond, ever faster.

Processes on one store find that number together. Each tells how many calls it has under way, and may
have what the others leave: at least its equal share, and beyond that only while none that has fewer
says that it waits. Where there are more processes than places, a place is kept for each of those: else
all would stand until the one whose turn it is comes by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from scheduler.limits.meter import Counting, Limits, Meter, Seen, key_of, span_of
from scheduler.limits.metered import Mark, Metered
from scheduler.limits.words import GateStatus, Heard, Report
from scheduler.request import Tokens

FIRST_WINDOW = 16  # calls under way before anything is known of a provider
DEPTH, DEEPER = 0.1, 0.2  # it starts lower by this share; by more if it is refused again at once
GROWTH = 0.15
PACING = 0.8  # of even spacing, so that it is the number that limits
USED = 0.5  # of the number must have been used for an answer to say that there may be more
PLATEAU = (24, 400)  # answers until it is back; a quarter of all so far
FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 500, 30_000  # after a refusal that says no time
LONGEST_ASKED_MS = 86_400_000
MARGIN_MS = 20  # whoever comes back at the very instant may be too early by the other's clock
LATENCY_WEIGHT = 0.1
NEVER = math.inf


class Calls(NamedTuple):
    """What a process tells others of its calls."""

    under_way: int
    sent_at_ms: int  # the last one
    waits: int  # whether more would go


class Gate(Metered):
    """Stands before one model: its limits, pauses, and how many calls at once."""

    def __init__(
        self, provider: str, model: str, counting: Counting, limits: Limits, cap: int,
        is_known: bool,
    ) -> None:  # fmt: skip
        super().__init__(provider, model, counting, limits)
        self.cap = limits.concurrency or cap
        self._is_known = is_known
        self._is_doubted = False  # it refused although the limits that it tells had room
        self.window = float(self.cap if self.is_known else min(self.cap, FIRST_WINDOW))
        self.paused_until_ms = 0
        self._peak = 0.0  # calls under way when it last refused; 0: it never did
        self._depth, self._plateau = DEPTH, PLATEAU[0]
        self._answers = self._since_peak = 0
        self._refusals = 0
        self._latency_ms, self._next_ms = 0.0, 0.0
        self._me = 0  # this process, as others know it
        self._calls: dict[int, Calls] = {}  # of others, as they last told
        self._sent_at_ms = 0
        self.waits = False  # more would go, as others were told
        self.held: Callable[[Gate], None] | None = None  # told when more would go

    @property
    def is_known(self) -> bool:
        """Whether what limits requests is known."""
        return (self._is_known or bool(self.meters)) and not self._is_doubted

    def _is_full(self) -> bool:
        """Whether no call of this process may go until some have ended."""
        mine = len(self._marks) - self.resting
        if not self._calls or self.is_known:
            return mine >= self.window
        share = self.window / (1 + len(self._calls))
        if mine + 1 <= share:
            return False
        place = mine, self._sent_at_ms
        before = sum(each.waits and each[:2] < place for each in self._calls.values())
        if share >= 1:
            return mine + self.elsewhere >= self.window or before > 0
        return mine + self.elsewhere + before >= self.window

    def meet(self, me: int, company: Collection[int]) -> None:
        """These processes work on the same store now."""
        if not self.company and company and self._answers:
            self.is_dirty = True  # they should know what this one has found out
        self._me, self.company = me, company
        if not (self.is_known or self._peak):  # as one begins that has all their places
            self.window = max(self.window, min(self.cap * (1 + len(company)), FIRST_WINDOW))
        self._others({each: count for each, count in self._calls.items() if each in company})

    def _others(self, calls: dict[int, Calls]) -> None:
        self._calls, self.elsewhere = calls, sum(each.under_way for each in calls.values())

    def opens_at_ms(self, tokens: Tokens, now_ms: int, is_lent: bool = False) -> float:
        """As above; `NEVER`: once calls under way have ended."""
        at_ms = NEVER if self._is_full() and not is_lent else self._goes_at_ms(tokens, now_ms)
        if self.company and at_ms > now_ms and self.held is not None:
            self.held(self)
        return at_ms

    def _goes_at_ms(self, tokens: Tokens, now_ms: int) -> float:
        at_ms = float(self.paused_until_ms)
        if not self.is_known:
            at_ms = max(at_ms, self._next_ms)
        return max(at_ms, super().opens_at_ms(tokens, now_ms)) if self.meters else at_ms

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes; where nothing is known but that it may be refused, evenly spaced."""
        if self.meters:
            super().take(request_id, tokens, now_ms)
        else:
            self._mark(request_id, tokens, now_ms)
        self._sent_at_ms = now_ms
        if self._peak and not self.is_known:
            step_ms = PACING * self._latency_ms / max(1.0, self.window)
            self._next_ms = max(self._next_ms, now_ms - step_ms) + step_ms

    def hear(self, report: Report) -> None:
        """Take in what came back."""
        if self.meters or report.seen or report.heard is not Heard.ANSWERED:
            super().hear(report)
        else:  # on the way of every request where no limit is known
            self._answered(report, self._marks.pop(report.request_id, None))
        if self.company:
            self.is_dirty = True

    def _learn(self, report: Report, mark: Mark | None) -> None:
        for seen in report.seen:
            span_ms = span_of(seen, self.counting)
            old = self.meters.get(key_of(seen.dimension, span_ms))
            if old is None or old.limit != seen.limit:
                self._adopt(seen, span_ms, old, report, mark)
        super()._learn(report, mark)

    def _adopt(
        self, seen: Seen, span_ms: int, old: Meter | None, report: Report, mark: Mark | None
    ) -> None:
        """A limit nobody had told, or another one than was believed; what was given may be less."""
        if old is not None and old.is_given and seen.limit >= old.limit:
            return
        for key, other in list(self.meters.items()):
            is_same = (other.dimension, other.limit) == (seen.dimension, seen.limit)
            if is_same and other.span_ms != span_ms and not other.is_given and not seen.span_ms:
                del self.meters[key]  # the same header: it was taken for one of another span
        self._replace(old, seen, report, mark)
        self._peak, self._next_ms = 0.0, 0.0

    def _answered(self, report: Report, mark: Mark | None) -> None:
        super()._answered(report, mark)
        self._refusals = 0
        if mark is None:
            return
        if report.is_timed:
            latency_ms = max(0, report.at_ms - mark.at_ms)
            self._latency_ms += LATENCY_WEIGHT * (latency_ms - self._latency_ms)
        self._answers += 1
        self._may_grow(mark)

    def begun(self, request_id: int) -> None:
        """A stream has begun: it was let in, which is an answer, however long it may take."""
        mark = self._marks.get(request_id)
        if mark is not None:
            self._marks[request_id] = mark._replace(running=0)  # its end says it no second time
            self._may_grow(mark)

    def _may_grow(self, mark: Mark) -> None:
        most = self.cap * (1 + len(self._calls))
        if self.window < most and mark.running >= USED * self.window:
            self._since_peak += 1
            self.window = min(most, self._grown())

    def _grown(self) -> float:
        """How many calls at once, so many answers after the last refusal."""
        if not self._peak:
            return self.window + 1
        x = self._since_peak / self._plateau - 1
        return max(1.0, self._peak * (1 + (self._depth if x < 0 else GROWTH) * x**3))

    def _refused(self, report: Report, mark: Mark | None, is_new: bool) -> None:
        """Refused by surprise: wait as it says, then go slower."""
        self._refusals += is_new
        pause_ms = 0
        if report.retry_after_ms is not None:
            # Refused again and again when it said to come back: later each time, whatever it says.
            least_ms = min(LONGEST_PAUSE_MS, MARGIN_MS << min(self._refusals, 16))
            pause_ms = max(report.retry_after_ms + MARGIN_MS, least_ms)
        elif is_new:
            pause_ms = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS << min(self._refusals, 16))
        self.paused_until_ms = max(self.paused_until_ms, report.at_ms + pause_ms)
        self.is_dirty = True
        if is_new and not self._is_told_why(report):
            self._is_doubted = True
        if self.is_known:
            super()._refused(report, mark, is_new)
        elif is_new:
            under_way = len(self._marks) + 1 + self.elsewhere
            running = min(self.window, max(under_way, self.window / 2))
            is_again = self._peak and self._since_peak < running
            self._depth = DEEPER if is_again else DEPTH
            least, most = PLATEAU
            self._plateau = min(most, max(least, self._answers // 4))
            self._peak, self._since_peak = max(1.0, running), 0
            self.window = self._grown()

    def _is_told_why(self, report: Report) -> bool:
        """Whether a limit that is known explains a refusal; one that was given is believed."""
        if any(seen.remaining == 0 for seen in report.seen):
            return True
        return self._is_known or any(meter.is_given for meter in self.meters.values())

    def dump(self) -> list[Any]:
        """As above, the pause, and how many calls at once."""
        if not self.company:
            return [*super().dump(), self.paused_until_ms]
        found = (self.window, self._peak, self._depth, self._plateau, self._answers,
                 self._since_peak, self._refusals, self._cut_at_ms, self._latency_ms,
                 self._next_ms)  # fmt: skip
        mine = Calls(len(self._marks) - self.resting, self._sent_at_ms, self.waits)
        calls = {str(each): told for each, told in (*self._calls.items(), (self._me, mine))}
        return [*super().dump(), self.paused_until_ms, found, calls]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """As above, the pause, and, from those who are there, how many calls at once."""
        super().load(state, now_ms, as_it_is=as_it_is)
        self.paused_until_ms = min(int(state[3]), now_ms + LONGEST_ASKED_MS)
        if len(state) > 4 and self.company:
            self._join(state[4], state[5], now_ms)

    def _join(
        self, found: Sequence[float], calls: Mapping[str, Sequence[int]], now_ms: int
    ) -> None:
        others = {int(each): Calls(*told) for each, told in calls.items()}
        self._others({each: others[each] for each in others if each in self.company})
        answers = int(found[4])
        if self.is_known:
            return  # nothing is to be found: each has as many at once as it was told
        if answers < self._answers:  # it is of when this process was alone, and told nobody
            self.is_dirty = True
            return
        window, peak, depth, self._plateau = float(found[0]), *found[1:3], int(found[3])
        self.window, self._peak, self._depth = max(1.0, window), float(peak), float(depth)
        self._answers, self._since_peak, self._refusals = answers, int(found[5]), int(found[6])
        self._cut_at_ms = min(max(self._cut_at_ms, int(found[7])), now_ms)
        self._latency_ms = float(found[8])
        self._next_ms = min(float(found[9]), now_ms + LONGEST_PAUSE_MS)

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        held = super().status(now_ms)
        if self.paused_until_ms > now_ms and (held is None or held.until_ms is None
                                              or held.until_ms <= self.paused_until_ms):  # fmt: skip
            why = "the provider asked to wait"
            if held is not None:
                why = f"{held.why}; {why}"
            return GateStatus(self.provider, self.model, why, self.paused_until_ms)
        if held is not None:
            return held
        if len(self._marks) >= self.window < self.cap:
            why = f"{len(self._marks)} calls at once: more were refused"
            return GateStatus(self.provider, self.model, why, None)
        return None
