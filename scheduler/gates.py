"""May a request go to its provider now? What holds it back that is not money; pure.

A *gate* stands before a provider, and one before each of its models. It is shut for

    a limit      of requests or tokens a minute, given or learned from headers: `limits.Meter`
    a pause      the provider said when to come back
    no credit    the provider says its own account is empty: one probe on a widening timer
    down         it does not answer at all: likewise

Where no limit is known, the number of calls under way adapts: it grows by what succeeds and
shrinks when the provider refuses by surprise, and calls start evenly spaced.

Gates are part of what a store decides on: a claim takes from them in the same transaction
that reserves the money, so processes that share a store share a provider's limits. They are
advice, not law: the provider corrects them, nothing but time is lost by an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from scheduler.limits import (
    COUNTING,
    MINUTE_MS,
    Counting,
    Dimension,
    Limits,
    Meter,
    Seen,
    span_of,
)
from scheduler.request import Tokens

FIRST_WINDOW = 16  # calls under way before anything is known of a provider
# After a refusal the number of calls under way follows a cubic, as TCP does (RFC 9438), but counted
# in answers, so that refusals stay rare at any rate: quickly back to where it was refused, a while
# there, then beyond, ever faster.
DEPTH, DEEPER = 0.1, 0.2  # it starts lower by this share; by more if it is refused again at once
GROWTH = 0.15
PACING = 0.8  # of even spacing, so that it is the number that limits
USED = 0.5  # of the number must have been used for an answer to say that there may be more
PLATEAU = (24, 400)  # answers until it is back; a quarter of all so far
# Of known limits that are refused all the same.
SHARE_CUT, SHARE_STEP, LEAST_SHARE = 0.8, 0.002, 0.1
FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 500, 30_000  # after a refusal that says no time
LONGEST_ASKED_MS = 86_400_000
MARGIN_MS = 20  # whoever comes back at the very instant may be too early by the other's clock
DOWN_AFTER = 5  # failures in a row without an answer
FIRST_PROBE_MS = {"provider_down": 1_000, "provider_credit": 30_000}
LONGEST_PROBE_MS = {"provider_down": 60_000, "provider_credit": 600_000}
PROBE_LEASE_MS = 900_000  # whoever probes may die of it: another one tries then
LATENCY_WEIGHT = MEAN_WEIGHT = 0.1
FIRST_OUTPUT = 300.0  # tokens of an answer, until some have been seen
NEVER = math.inf


class Heard(StrEnum):
    """What came back from one attempt, as far as the gate is concerned."""

    ANSWERED = "answered"
    LIMITED = "limited"  # too many requests or tokens, or too busy
    NO_CREDIT = "no_credit"
    BUSY = "busy"  # too much for it now, of anybody's; it did no work
    DOWN = "down"  # no answer, or an error of the server
    OTHER = "other"  # refused for its own sake
    UNSENT = "unsent"


@dataclass(slots=True)
class Report:
    """What one attempt told about its provider.

    Attributes:
        at_ms: When it was heard.
        usage: Input and output tokens used, input read from a cache; None: not told.
        words: The provider's own, where it refused.
    """

    request_id: int
    provider: str
    model: str
    heard: Heard
    at_ms: int
    usage: tuple[int, int, int] | None = None
    seen: tuple[Seen, ...] = ()
    retry_after_ms: int | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """What is known of a provider before anything is sent.

    Attributes:
        limits: For all its models together.
        model_limits: For single models.
        counting: A name in `limits.COUNTING`.
        concurrency: Most calls under way at once.
    """

    limits: Limits = field(default_factory=Limits)
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    counting: str = "default"
    concurrency: int = 64


@dataclass(slots=True)
class Closed:
    """Nothing goes but a probe.

    Attributes:
        reason: ``"provider_credit"`` or ``"provider_down"``, as in `ParkReason`.
        words: The provider's own.
        probe_at_ms: When one request may try.
        pause_ms: The time between probes, which widens.
        probing: The request that tries now; None: nobody.
    """

    reason: str
    words: str
    since_ms: int
    probe_at_ms: int
    pause_ms: int
    probing: int | None = None
    probing_since_ms: int = 0

    def next_at_ms(self, now_ms: int) -> int:
        """When somebody may try next."""
        if self.probing is None:
            return self.probe_at_ms
        return max(now_ms + 1, self.probing_since_ms + PROBE_LEASE_MS)

    def hurry(self) -> None:
        """Let somebody try now."""
        self.probe_at_ms, self.probing = 0, None

    def may_probe(self, now_ms: int) -> bool:
        """Whether a request may try now."""
        if self.probing is not None:
            return now_ms - self.probing_since_ms >= PROBE_LEASE_MS
        return now_ms >= self.probe_at_ms


class _Mark(NamedTuple):
    """What a gate noted when a request was sent."""

    at_ms: int
    running: int
    taken: tuple[tuple[Dimension, float, float, float], ...]  # charge, level after it, shift


class GateStatus(NamedTuple):
    """What a gate holds back now, for people.

    `until_ms` None: until calls under way end, or somebody acts.
    """

    provider: str
    model: str
    why: str
    until_ms: int | None
    is_closed: bool = False

    @property
    def sentence(self) -> str:
        """One line: which model of which provider, and why."""
        return f"{self.provider}{' ' * bool(self.model)}{self.model}: {self.why}"


class Metered:
    """What stands before a provider or a model: its limits, and what goes through them."""

    closed: Closed | None = None
    is_front = False

    def __init__(self, provider: str, model: str, counting: Counting, limits: Limits) -> None:
        self.provider, self.model, self.counting = provider, model, counting
        self.meters = {
            dimension: Meter(
                dimension, limit, MINUTE_MS, counting.at_once_s(dimension), is_given=True
            )
            for dimension, limit in limits.per_minute().items()
        }
        self.share, self.produced = 1.0, FIRST_OUTPUT
        self.is_dirty, self.version = False, 0  # changed since, and as of, the last common state
        self._marks: dict[int, _Mark] = {}
        self._cut_at_ms = 0

    def opens_at_ms(self, tokens: Tokens, now_ms: int) -> float:
        """When a request may go as far as this is concerned; `now_ms` or earlier: now."""
        at_ms = 0.0
        for dimension, meter in self.meters.items():
            charge = self.counting.charge(dimension, tokens, self.produced)
            at_ms = max(at_ms, meter.opens_at_ms(charge, now_ms, self.share))
        return at_ms

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes."""
        taken = []
        for dimension, meter in self.meters.items():
            charge = self.counting.charge(dimension, tokens, self.produced)
            meter.take(charge, now_ms, self.share)
            taken.append((dimension, charge, meter.level(now_ms, self.share), meter.shift))
            self.is_dirty = True
        self._marks[request_id] = _Mark(now_ms, len(self._marks) + 1, tuple(taken))

    def hear(self, report: Report) -> None:
        """Take in what came back."""
        mark = self._marks.pop(report.request_id, None)
        if mark is not None:
            self._correct(report, mark)
        self._learn(report, mark)
        if report.heard is Heard.ANSWERED:
            self._answered(report, mark)
        elif report.heard in (Heard.LIMITED, Heard.BUSY):
            is_new = mark is None or mark.at_ms > self._cut_at_ms
            if is_new:
                self._cut_at_ms = report.at_ms
            self._refused(report, mark, is_new)

    def _correct(self, report: Report, mark: _Mark) -> None:
        """Replace what was charged by what was used, where the provider does."""
        for dimension, charge, _, _ in mark.taken:
            meter, used = self.meters.get(dimension), self._used(dimension, charge, report)
            if meter is None or (meter.is_followed and report.heard is Heard.ANSWERED):
                continue  # the provider's own count says it
            if used != charge:
                meter.take(used - charge, report.at_ms, self.share)
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

    def _learn(self, report: Report, mark: _Mark | None) -> None:
        """Follow what the headers say of limits that are known."""
        if mark is None or not self.counting.trusts_headers:
            return
        noted = {dimension: (level, shift) for dimension, _, level, shift in mark.taken}
        for seen in report.seen:
            meter = self.meters.get(seen.dimension)
            if meter is None or meter.limit != seen.limit or seen.dimension not in noted:
                continue
            meter.widen()
            if seen.dimension is not Dimension.OUTPUT:  # counted only as it is produced
                meter.compare(seen, *noted[seen.dimension], self.share, report.at_ms)
            self.is_dirty = True

    def _answered(self, report: Report, mark: _Mark | None) -> None:
        if report.usage is not None:
            self.produced += MEAN_WEIGHT * (report.usage[1] - self.produced)
        if self.share < 1:
            self.share = min(1.0, self.share + SHARE_STEP)
            self.is_dirty = True

    def _refused(self, report: Report, mark: _Mark | None, is_new: bool) -> None:
        """Refused although the limits had room: use less of them."""
        if not self.meters:
            return
        for meter in self.meters.values():
            meter.empty(report.at_ms, self.share)
            if is_new:
                meter.narrow(self.counting.at_once_s(meter.dimension))
        if is_new:
            self.share = max(LEAST_SHARE, self.share * SHARE_CUT)
        self.is_dirty = True

    # For other processes, and for people

    def dump(self) -> list[Any]:
        """What other processes need to know, for JSON."""
        meters = [
            [m.dimension, m.limit, m.span_ms, m.burst, m.due_ms, m.shift, m.is_given, m.is_wary]
            for m in self.meters.values()
        ]
        return [self.share, self.produced, meters]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """Take over what another process wrote.

        A limit that was given to it is its own affair; with `as_it_is`, for those who only look,
        it is taken over, too. Instants further ahead than any limit reaches are not believed.

        Raises `ValueError` and kin for nonsense.
        """
        share, produced, meters = state[:3]
        self.share, self.produced = float(share), float(produced)
        for name, limit, span_ms, burst, due_ms, shift, is_given, is_wary in meters:
            mine = self.meters.get(Dimension(name))
            if is_given and mine is None and not as_it_is:
                continue
            if mine is None or not (mine.is_given or is_given):
                mine = Meter(Dimension(name), int(limit), int(span_ms), 0.0, bool(is_given))
                self.meters[mine.dimension] = mine
            if mine.limit == limit:
                mine.burst, mine.is_wary = float(burst), bool(is_wary)
            mine.due_ms, mine.shift = min(float(due_ms), now_ms + 2 * mine.span_ms), float(shift)

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        for meter in self.meters.values():
            at_ms = meter.opens_at_ms(1, now_ms, self.share)
            if at_ms > now_ms:
                per = "minute" if meter.span_ms == MINUTE_MS else "day"
                what = meter.dimension.replace("_", " ")
                why = f"at its limit of {meter.limit:,} {what} a {per}"
                return GateStatus(self.provider, self.model, why, math.ceil(at_ms))
        return None


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

    @property
    def is_known(self) -> bool:
        """Whether what limits requests is known."""
        return (self._is_known or bool(self.meters)) and not self._is_doubted

    def opens_at_ms(self, tokens: Tokens, now_ms: int) -> float:
        """As above; `NEVER`: once calls under way have ended."""
        if len(self._marks) >= self.window:
            return NEVER
        at_ms = float(self.paused_until_ms)
        if not self.is_known:
            at_ms = max(at_ms, self._next_ms)
        return max(at_ms, super().opens_at_ms(tokens, now_ms)) if self.meters else at_ms

    def take(self, request_id: int, tokens: Tokens, now_ms: int) -> None:
        """A request goes; where nothing is known but that it may be refused, evenly spaced."""
        if self.meters:
            super().take(request_id, tokens, now_ms)
        else:
            self._marks[request_id] = _Mark(now_ms, len(self._marks) + 1, ())
        if self._peak and not self.is_known:
            step_ms = PACING * self._latency_ms / max(1.0, self.window)
            self._next_ms = max(self._next_ms, now_ms - step_ms) + step_ms

    def hear(self, report: Report) -> None:
        """Take in what came back."""
        if self.meters or report.seen or report.heard is not Heard.ANSWERED:
            super().hear(report)
        else:  # on the way of every request where no limit is known
            self._answered(report, self._marks.pop(report.request_id, None))

    def _learn(self, report: Report, mark: _Mark | None) -> None:
        for seen in report.seen:
            old = self.meters.get(seen.dimension)
            span_ms = span_of(seen, self.counting)
            if old is None or (old.limit, old.span_ms) != (seen.limit, span_ms):
                self._adopt(seen, span_ms, old)
        super()._learn(report, mark)

    def _adopt(self, seen: Seen, span_ms: int, old: Meter | None) -> None:
        """A limit nobody had told, or another one than was believed; what was given may be less."""
        if old is not None and old.is_given and seen.limit / span_ms >= old.limit / old.span_ms:
            return
        meter = Meter(
            seen.dimension, seen.limit, span_ms, self.counting.at_once_s(seen.dimension),
            is_given=old is not None and old.is_given,
        )  # fmt: skip
        if old is not None:
            meter.due_ms, meter.is_wary = old.due_ms, old.is_wary
        self.meters[seen.dimension] = meter
        self._peak, self._next_ms, self.is_dirty = 0.0, 0.0, True

    def _answered(self, report: Report, mark: _Mark | None) -> None:
        super()._answered(report, mark)
        self._refusals = 0
        if mark is None:
            return
        latency_ms = max(0, report.at_ms - mark.at_ms)
        self._latency_ms += LATENCY_WEIGHT * (latency_ms - self._latency_ms)
        self._answers += 1
        if self.window < self.cap and mark.running >= USED * self.window:
            self._since_peak += 1
            self.window = min(self.cap, self._grown())

    def _grown(self) -> float:
        """How many calls at once, so many answers after the last refusal."""
        if not self._peak:
            return self.window + 1
        x = self._since_peak / self._plateau - 1
        return max(1.0, self._peak * (1 + (self._depth if x < 0 else GROWTH) * x**3))

    def _refused(self, report: Report, mark: _Mark | None, is_new: bool) -> None:
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
            for meter in self.meters.values():
                meter.empty(self.paused_until_ms, self.share)
        elif is_new:
            running = min(self.window, max(len(self._marks) + 1, self.window / 2))
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
        """As above, and the pause."""
        return [*super().dump(), self.paused_until_ms]

    def load(self, state: Sequence[Any], now_ms: int, *, as_it_is: bool = False) -> None:
        """As above, and the pause."""
        super().load(state, now_ms, as_it_is=as_it_is)
        self.paused_until_ms = min(int(state[3]), now_ms + LONGEST_ASKED_MS)

    def status(self, now_ms: int) -> GateStatus | None:
        """What it holds back now; None: nothing."""
        if self.paused_until_ms > now_ms:
            why = "the provider asked to wait"
            return GateStatus(self.provider, self.model, why, self.paused_until_ms)
        if len(self._marks) >= self.window < self.cap:
            why = f"{len(self._marks)} calls at once: more were refused"
            return GateStatus(self.provider, self.model, why, None)
        return super().status(now_ms)


Pair = tuple[Front, Gate] | tuple[()]


class Gates:
    """All gates of one process. A provider without rules has none, and nothing waits for it."""

    def __init__(self, rules: Mapping[str, ProviderRules] | None = None) -> None:
        self._rules = dict(rules or {})
        self._fronts: dict[str, Front] = {}
        self._hurried: set[str] = set()  # to be tried at once
        self._pairs: dict[tuple[str, str], Pair] = {}

    def add(self, rules: Mapping[str, ProviderRules]) -> None:
        """There are more providers."""
        self._rules |= rules

    @property
    def has_rules(self) -> bool:
        """Whether there are any gates at all."""
        return bool(self._rules)

    def __iter__(self) -> Iterator[Front | Gate]:
        yield from self._fronts.values()
        for pair in self._pairs.values():
            yield from pair[1:]

    def of(self, provider: str, model: str) -> Pair:
        """The gates before a model: its provider's, and its own; none without rules."""
        pair = self._pairs.get((provider, model))
        if pair is None and provider in self._rules:
            pair = self._pairs[provider, model] = self._make(provider, model)
        return pair or ()

    def _make(self, provider: str, model: str) -> Pair:
        rules = self._rules[provider]
        counting = COUNTING.get(rules.counting, COUNTING["default"])
        front = self._fronts.get(provider)
        if front is None:
            front = self._fronts[provider] = Front(provider, counting, rules.limits)
        is_known = bool(front.meters)
        limits = rules.model_limits.get(model, Limits())
        return front, Gate(provider, model, counting, limits, rules.concurrency, is_known)

    def find(self, provider: str, model: str, is_front: bool) -> Front | Gate | None:
        """The gate of that name; None: there are no rules for it."""
        if is_front and provider in self._fronts:
            return self._fronts[provider]
        pair = self.of(provider, model)
        return pair[0 if is_front else 1] if pair else None

    def hear(self, reports: Iterable[Report]) -> set[str]:
        """Take in what came back; returns the closed providers of which there is news.

        They are open again, or it is another time at which somebody may try.
        """
        news, self._hurried = self._hurried, set()
        for provider in news:
            front = self._fronts.get(provider)
            if front is not None and front.closed is not None:
                front.closed.hurry()
                front.is_dirty = True
        for report in reports:
            pair = self.of(report.provider, report.model)
            if not pair:
                continue
            closed = pair[0].closed
            is_probe = closed is not None and closed.probing == report.request_id
            for gate in pair:
                gate.hear(report)
            if is_probe or (closed is not None and pair[0].closed is None):
                news.add(report.provider)
        return news

    def is_closed(self, provider: str) -> bool:
        """Whether nothing but a probe goes to a provider."""
        front = self._fronts.get(provider)
        return front is not None and front.closed is not None

    def probe(self, provider: str) -> bool:
        """Let one request try in the next turn, where nothing else goes; whether there is need."""
        if not self.is_closed(provider):
            return False
        self._hurried.add(provider)
        return True

    def statuses(self, now_ms: int) -> list[GateStatus]:
        """What gates hold back now."""
        return [status for gate in self if (status := gate.status(now_ms)) is not None]
