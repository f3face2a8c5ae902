"""What every gate has: meters for its limits, and what goes through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from scheduler.limits.meter import (
    MINUTE_MS,
    Counting,
    Dimension,
    Limits,
    Meter,
    Seen,
    is_window,
    key_of,
    span_name,
    span_of,
)
from scheduler.limits.windows import EXHAUSTED, WindowMeter, dump_meter, load_meter, make_meter
from scheduler.limits.words import Closed, GateStatus, Heard, Report
from scheduler.request import Tokens

# Of known limits that are refused all the same.
SHARE_CUT, SHARE_STEP, LEAST_SHARE = 0.8, 0.002, 0.1
MEAN_WEIGHT = 0.1
MOST_SAID = 32
FIRST_OUTPUT = 300.0  # tokens of an answer, until some have been seen


class Taken(NamedTuple):
    """What one request took from one meter."""

    meter: Meter
    charge: float
    level: float  # of the meter after it
    shift: float


class Mark(NamedTuple):
    """What a gate noted when a request was sent."""

    at_ms: int
    running: int
    tokens: Tokens
    taken: tuple[Taken, ...]


class Metered:
    """What stands before a provider or a model: its limits, and what goes through them."""

    closed: Closed | None = None
    is_front = False
    resting = 0  # of what goes through, what has lent its place
    elsewhere = 0  # calls of other processes that are under way
    company: Collection[int] = ()  # other processes, which want to know how many are here

    def __init__(self, provider: str, model: str, counting: Counting, limits: Limits) -> None:
        self.provider, self.model, self.counting = provider, model, counting
        given = [make_meter(dimension, limit, MINUTE_MS, counting, is_given=True)
                 for dimension, limit in limits.per_minute().items()]  # fmt: skip
        self.meters = {meter.key: meter for meter in given}
        self.share, self.produced = 1.0, FIRST_OUTPUT
        self._is_dirty, self.version = False, 0  # changed since, and as of, the last common state
        self.noted: Callable[[Metered], None] | None = None  # told when it begins to differ
        self._marks: dict[int, Mark] = {}
        self._cut_at_ms = 0
        self._said: dict[tuple[Dimension, int], int] = {}  # spans of limits, from words

    @property
    def limits(self) -> Limits:
        """What its meters hold, a minute."""
        told: dict[Dimension, int] = {}
        for meter in self.meters.values():
            per_minute = max(1, round(meter.limit * MINUTE_MS / meter.span_ms))
            told[meter.dimension] = min(per_minute, told.get(meter.dimension, per_minute))
        return Limits(*(told.get(each) for each in Dimension))

    @property
    def is_dirty(self) -> bool:
        """Whether it changed since the last state that processes have in common."""
        return self._is_dirty

    @is_dirty.setter
    def is_dirty(self, is_dirty: bool) -> None:
        if is_dirty and not self._is_dirty and self.noted is not None:
            self.noted(self)
        self._is_dirty = is_dirty

    def opens_at_ms(self, tokens: Tokens, now_ms: int, is_lent: bool = False) -> float:
        """When a request may go as far as this is concerned; `now_ms` or earlier: now.

        `is_lent`: it has a place, however many calls are under way.
        """
        at_ms = 0.0
        for meter in self.meters.values():
            charge = self.counting.charge(meter.dimension, tokens, self.produced)
            at_ms = max(at_ms, meter.opens_at_ms(charge, now_ms, self.share))
        return at_ms

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes."""
        taken = []
        for meter in self.meters.values():
            charge = self.counting.charge(meter.dimension, tokens, self.produced)
            meter.take(charge, now_ms, self.share)
            taken.append(Taken(meter, charge, meter.level(now_ms, self.share), meter.shift))
            self.is_dirty = True
        self._mark(request_id, tokens, now_ms, tuple(taken))

    def let(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes, and not in order to try whether the gate is open again."""
        self.take(request_id, tokens, now_ms)

    def _mark(
        self, request_id: int, tokens: Tokens, now_ms: int, taken: tuple[Taken, ...] = ()
    ) -> None:
        running = len(self._marks) + 1 - self.resting + self.elsewhere
        self._marks[request_id] = Mark(now_ms, running, tokens, taken)
        if self.company:
            self.is_dirty = True

    def begun(self, request_id: int) -> None:
        """The answer to one has begun to come."""

    def hear(self, report: Report) -> None:
        """Take in what came back."""
        mark = self._marks.pop(report.request_id, None)
        if report.seen:
            report.seen = tuple([self._with_span(seen) for seen in report.seen])
        if mark is not None:
            self._correct(report, mark)
        self._learn(report, mark)
        if mark is not None and report.heard not in (Heard.ANSWERED, Heard.LIMITED):
            for taken in mark.taken:
                taken.meter.stopped(taken.charge, taken.level, False)
        if report.heard is Heard.ANSWERED:
            self._answered(report, mark)
        elif report.heard in (Heard.LIMITED, Heard.BUSY):
            is_new = mark is None or mark.at_ms > self._cut_at_ms
            if is_new:
                self._cut_at_ms = report.at_ms
            self._refused(report, mark, is_new)

    def _correct(self, report: Report, mark: Mark) -> None:
        """Replace what was charged by what was used, where the provider does."""
        for meter, charge, level, _ in mark.taken:
            used = self._used(meter.dimension, charge, report)
            if report.heard is Heard.ANSWERED:
                meter.passed(charge, level)
                if meter.is_followed:
                    continue  # the provider's own count says it
            if used != charge:
                meter.take(used - charge, report.at_ms, self.share, mark.at_ms)
                self.is_dirty = True

    def _used(self, dimension: Dimension, charge: float, report: Report) -> float:
        heard = report.heard
        if heard is Heard.UNSENT:
            return 0
        if heard in (Heard.LIMITED, Heard.BUSY, Heard.NO_CREDIT):
            counts = dimension is Dimension.REQUESTS and self.counting.counts_refused
            return charge if counts else 0
        if report.usage is None or not self.counting.is_corrected(dimension):
            return charge
        into, out, cached = report.usage
        if self.counting.cached_is_free:
            into -= cached
        return {Dimension.INPUT: into, Dimension.OUTPUT: out}.get(dimension, into + out)

    def _with_span(self, seen: Seen) -> Seen:
        """Once words have said that a limit is one of a day, the header of the same limit is, too."""
        place = (seen.dimension, seen.limit)
        if seen.span_ms is None:
            return replace(seen, span_ms=self._said[place]) if place in self._said else seen
        if len(self._said) < MOST_SAID:
            self._said[place] = seen.span_ms
        return seen

    def _learn(self, report: Report, mark: Mark | None) -> None:
        """Follow what the provider says of limits that are known."""
        for seen in report.seen:
            key = key_of(seen.dimension, span_of(seen, self.counting))
            meter = self.meters.get(key)
            if meter is None or meter.limit != seen.limit:
                continue
            if is_window(seen, meter.span_ms, self.counting) and not (
                meter.is_wary or isinstance(meter, WindowMeter)
            ):
                meter = self._replace(meter, seen, report, mark)
            self._follow(meter, seen, report, mark)
            self.is_dirty = True

    def _follow(self, meter: Meter, seen: Seen, report: Report, mark: Mark | None) -> None:
        """Follow the provider's own count, and when its window ends."""
        if isinstance(meter, WindowMeter) and seen.full_in_ms is not None:
            # It may have been written when the request came, or when the answer went.
            begins_ms = report.at_ms if mark is None else mark.at_ms
            meter.ends(begins_ms + seen.full_in_ms, report.at_ms + seen.full_in_ms)
        if report.heard is Heard.LIMITED and (not seen.remaining or seen.span_ms is not None):
            left = meter.level(report.at_ms, self.share) - seen.remaining
            if left > 0:
                meter.take(left, report.at_ms, self.share)
            return
        noted = None if mark is None else next((t for t in mark.taken if t.meter is meter), None)
        if noted is None or not self.counting.trusts_headers:
            return
        meter.widen()
        if seen.dimension is not Dimension.OUTPUT:  # counted only as it is produced
            meter.compare(seen, noted.level, noted.shift, self.share, report.at_ms)

    def _replace(self, old: Meter | None, seen: Seen, report: Report, mark: Mark | None) -> Meter:
        """A meter for what headers tell, with what was used before it was known."""
        meter = make_meter(
            seen.dimension, seen.limit, span_of(seen, self.counting), self.counting,
            is_given=old is not None and old.is_given, seen=seen,
        )  # fmt: skip
        if old is not None:
            meter.is_wary = old.is_wary
        if self.counting.trusts_headers:
            since_ms = report.at_ms if mark is None else mark.at_ms
            used = sum(
                self.counting.charge(seen.dimension, other.tokens, self.produced)
                for other in self._marks.values()
                if other.at_ms > since_ms and seen.dimension is not Dimension.OUTPUT
            )
            meter.widen()
            meter.begin(used + seen.limit - seen.remaining, report.at_ms, self.share)
        self.meters[meter.key] = meter
        self.is_dirty = True
        return meter

    def _answered(self, report: Report, mark: Mark | None) -> None:
        if report.usage is not None:
            self.produced += MEAN_WEIGHT * (report.usage[1] - self.produced)
        if self.share < 1:
            self.share = min(1.0, self.share + SHARE_STEP)
            self.is_dirty = True

    def _refused(self, report: Report, mark: Mark | None, is_new: bool) -> None:
        """Refused although the limits had room: use less of them."""
        if not self.meters:
            return
        self.is_dirty = True
        if self._was_tried(mark) or _is_of_long(report.seen, self.counting):
            return
        until_ms = report.at_ms + (report.retry_after_ms or 0)
        is_expected = False
        for meter in list(self.meters.values()):
            if meter.span_ms > MINUTE_MS:
                continue  # it said when it is the day's that is used up
            if isinstance(meter, WindowMeter):
                is_told = any(seen.dimension is meter.dimension and not seen.remaining
                              for seen in report.seen)  # fmt: skip
                if is_told or meter.is_used_up(report.at_ms):
                    is_expected = True
                    if report.retry_after_ms is not None:
                        meter.ends(until_ms, until_ms)
                    meter.empty(report.at_ms, self.share)
                elif is_new:
                    self._demote(meter)
                continue
            meter.empty(until_ms, self.share)
            if is_new:
                meter.narrow(self.counting.at_once_s(meter.dimension))
        if is_new and not is_expected:
            self.share = max(LEAST_SHARE, self.share * SHARE_CUT)

    def _was_tried(self, mark: Mark | None) -> bool:
        """Whether it was refused because more than the known burst was tried; then it is no more."""
        if mark is None:
            return False
        stopped = [t.meter.stopped(t.charge, t.level, True) for t in mark.taken]  # each is told
        return any(stopped)

    def _demote(self, old: WindowMeter) -> None:
        """It is no window of that length after all: go at the limit's pace."""
        burst_s = self.counting.at_once_s(old.dimension)
        meter = Meter(old.dimension, old.limit, old.span_ms, burst_s, old.is_given)
        meter.is_wary = True
        self.meters[meter.key] = meter

    # For other processes, and for people

    def dump(self) -> list[Any]:
        """What other processes need to know, for JSON."""
        return [self.share, self.produced, [dump_meter(meter) for meter in self.meters.values()]]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """Take over what another process wrote.

        A limit that was given to it is its own affair; with `as_it_is`, for those who only look,
        it is taken over, too. Instants further ahead than any limit reaches are not believed.

        Raises `ValueError` and kin for nonsense.
        """
        share, produced, meters = state[:3]
        self.share, self.produced = float(share), float(produced)
        for each in meters:
            key = key_of(Dimension(each[0]), int(each[2]))
            mine = self.meters.get(key)
            if each[6] and mine is None and not as_it_is:
                continue
            self.meters[key] = load_meter(each, mine, now_ms)

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        shut = [(meter.opens_at_ms(1, now_ms, self.share), meter) for meter in self.meters.values()]
        at_ms, meter = max(shut, key=lambda each: each[0], default=(0.0, None))
        if meter is None or at_ms <= now_ms:
            return None
        what, span = meter.dimension.replace("_", " "), span_name(meter.span_ms)
        why = f"at its limit of {meter.limit:,} {what} a {span}"
        return GateStatus(self.provider, self.model, why, math.ceil(at_ms))


def _is_of_long(told: Sequence[Seen], counting: Counting) -> bool:
    """Whether a refusal says that a limit of more than a minute is used up: that explains it."""
    return any(
        seen.remaining <= (1 - EXHAUSTED) * seen.limit and span_of(seen, counting) > MINUTE_MS
        for seen in told
    )
