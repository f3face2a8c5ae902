"""What one process has seen of its requests, in counts whose number is bounded.

Labels are models and budgets, which programs may make up as they go: of pairs that come beyond the first
`MOST_PAIRS`, and of names beyond the first `MOST_NAMES`, everything is counted as ``other``. Nothing is
kept of a request or of whoever asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from scheduler import events
from scheduler.guards.plain import one_line
from scheduler.request import priority_word

if TYPE_CHECKING:
    from scheduler.core.looking import Looking
    from scheduler.request import Usage

MOST_PAIRS = 500  # of a model and a budget
MOST_NAMES = 100  # models, or providers
MOST_CHARACTERS = 120  # of a name
OTHER = "other"
WAIT_S = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
RATIO = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1, 1.1, 1.5, 2)


class Histogram:
    """How often values were up to each of some bounds.

    >>> seen = Histogram((1, 10))
    >>> for value in (0.5, 1, 7, 99): seen.add(value)
    >>> seen.below(), seen.sum
    ([2, 3, 4], 107.5)
    """

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = bounds, 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """One value more."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def below(self) -> list[int]:
        """How many were up to each bound, and in all."""
        found, total = [], 0
        for count in self._counts:
            total += count
            found.append(total)
        return found


class Names:
    """Names as labels: plain, not too long, and not too many; beyond that, ``other``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The label of a name."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._most:
                return OTHER
            known = self._known[name] = one_line(name)[:MOST_CHARACTERS]
        return known


class Pairs:
    """Models with budgets, likewise."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[str, str], tuple[str, str]] = {}

    def __call__(self, model: str, budget: str) -> tuple[str, str]:
        """The labels of a pair."""
        known = self._known.get((model, budget))
        if known is None:
            if len(self._known) >= self._most:
                return OTHER, OTHER
            known = one_line(model)[:MOST_CHARACTERS], one_line(budget)[:MOST_CHARACTERS]
            self._known[model, budget] = known
        return known


class Tallies:
    """Counts what a scheduler tells, from the moment it is made.

    Attributes:
        requests: Ended ones, by model, budget and outcome.
        cost_nusd: What was posted when they ended, by model and budget.
        tokens: By model and kind; each token is of one kind.
        attempts: By provider and how they ended in the ledger.
        overrun_nusd: What calls cost above what was put aside, by model.
        waits: Seconds from submission until a request is first sent, by priority.
        durations: Seconds from an attempt's reservation to its end, by model.
        ratios: What attempts cost in terms of what was put aside, by model.
        thresholds: Crossings, by budget and percent.
    """

    def __init__(self, s: Looking) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.cost_nusd: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.overrun_nusd: Counter[str] = Counter()
        self.waits: dict[str, Histogram] = {}
        self.durations: dict[str, Histogram] = {}
        self.ratios: dict[str, Histogram] = {}
        self.thresholds: Counter[tuple[str, str]] = Counter()
        self._pair, self._model = Pairs(MOST_PAIRS), Names(MOST_NAMES)
        self._provider, self._budget = Names(MOST_NAMES), Names(MOST_PAIRS)
        self._stops: list[Callable[[], None]] = [
            s.on(events.Admitted, self._admitted),
            s.on(events.Settled, self._settled),
            s.on(events.Expired, lambda event: self._unsent(event, "expired")),
            s.on(events.Refused, lambda event: self._unsent(event, "refused")),
            s.on(events.Cancelled, lambda event: self._unsent(event, "cancelled")),
            s.on(events.ThresholdCrossed, self._crossed),
        ]

    def close(self) -> None:
        """Count nothing more."""
        for stop in self._stops:
            stop()

    def _admitted(self, event: events.Admitted) -> None:
        if event.attempt == 1:
            word = priority_word(event.priority)
            _seen(self.waits, word, WAIT_S).add(event.waited_ms / 1000)

    def _settled(self, event: events.Settled) -> None:
        model = self._model(event.model)
        self.attempts[self._provider(event.provider), event.outcome] += 1
        if event.outcome != "void":
            _seen(self.durations, model, DURATION_S).add(event.took_ms / 1000)
        if event.outcome == "post":
            pair = self._pair(event.model, event.budget)
            self.cost_nusd[pair] += event.cost_nusd
            if event.overrun_nusd:
                self.overrun_nusd[model] += event.overrun_nusd
            if event.reserved_nusd:
                ratio = event.cost_nusd / event.reserved_nusd
                _seen(self.ratios, model, RATIO).add(ratio)
            if event.response is not None and event.response.usage is not None:
                self._count_tokens(model, event.response.usage)
        if event.state.is_final and not event.is_superseded:
            self.requests[(*self._pair(event.model, event.budget), event.state.value)] += 1

    def _count_tokens(self, model: str, usage: Usage) -> None:
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        reasoning = usage.reasoning_tokens
        for kind, count in (
            ("input", usage.input_tokens - cached - written),
            ("input_cached", cached),
            ("input_cache_write", written),
            ("output", usage.output_tokens - reasoning),
            ("output_reasoning", reasoning),
        ):
            if count > 0:
                self.tokens[model, kind] += count

    def _unsent(
        self, event: events.Expired | events.Refused | events.Cancelled, outcome: str
    ) -> None:
        self.requests[(*self._pair(event.model, event.budget), outcome)] += 1

    def _crossed(self, event: events.ThresholdCrossed) -> None:
        self.thresholds[self._budget(event.budget), str(event.percent)] += 1


def _seen(found: dict[str, Histogram], name: str, bounds: Sequence[float]) -> Histogram:
    histogram = found.get(name)
    if histogram is None:
        histogram = found[name] = Histogram(bounds)
    return histogram
