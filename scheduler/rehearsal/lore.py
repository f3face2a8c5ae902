"""What is known of calls that were answered: what they cost and how long they took. Pure.

A call costs what one like it cost, corrected for what was expected of each (a regression): the prompts
are known beforehand, and it is the answers that are drawn. Draws are spread evenly over what is known,
so that few of them tell as much as many would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from random import Random

    from scheduler.rehearsal.scene import Ask

T = TypeVar("T")

GUESSED_MS = 5_000  # of a call, where nothing is known
GUESSED_OUTPUT = 300  # tokens of an answer
MOST_LESSONS = 1_000  # of a model: more make it slower, and hardly better
FEWEST_FOR_SLOPE = 30
OF_ITS_OWN = 8  # calls, from which on a model is judged by its own
MOST_OFF = 6.0  # errors
LEAST_TIME = 0.2  # of what calls take
TIMES = 99  # means that are drawn to know how far off one may be


class Lesson(NamedTuple):
    """What one call took and cost; `expected_nusd` and `input` as they were guessed beforehand.

    `expected_nusd` -1: nobody knows any more.
    """

    nusd: int
    tokens: int
    ms: int
    expected_nusd: int
    input: int = 0


class Drawn(NamedTuple):
    """What one call is taken to cost and to take."""

    nusd: float
    tokens: float
    ms: float


@dataclass(frozen=True, slots=True)
class Shift:
    """How much more, or less, than is known: a call's cost, and how many times its time."""

    nusd: float = 0.0
    tokens: float = 0.0
    ms: float = 1.0


@dataclass(slots=True)
class Lore:
    """Calls that are known, by model, newest last."""

    by_model: Mapping[str, Sequence[Lesson]] = field(default_factory=dict)
    _tales: dict[str, Tale] = field(default_factory=dict, repr=False)

    def of(self, model: str) -> Tale:
        """What is known of a model: from its own calls, or, for want of these, from all."""
        if model not in self._tales:
            lessons = list(self.by_model.get(model, ()))[-MOST_LESSONS:]
            if len(lessons) < OF_ITS_OWN:
                every = [each for known in self.by_model.values() for each in known]
                lessons = every[-MOST_LESSONS:] if len(every) > len(lessons) else lessons
            self._tales[model] = Tale(lessons)
        return self._tales[model]

    @property
    def count(self) -> int:
        """How many calls are known."""
        return sum(map(len, self.by_model.values()))


class Tale:
    """What the calls of one model tell."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self.lessons = sorted(lessons)  # by what they cost
        self.is_guess = not lessons
        self.slope = _slope(lessons)

    def draw(self, asks: Sequence[Ask], each: int, shift: Shift, rng: Random) -> list[Drawn]:
        """What these come to: for each the mean of so many draws."""
        if self.is_guess:
            return [
                Drawn(ask.expected_nusd, ask.input + min(GUESSED_OUTPUT, ask.ceiling_tokens), GUESSED_MS)
                for ask in asks
            ]  # fmt: skip
        picked = spread(self.lessons, len(asks) * each, rng)
        found = []
        for at, ask in enumerate(asks):
            nusd = tokens = ms = 0.0
            for known in picked[at * each : (at + 1) * each]:
                expected = known.expected_nusd if known.expected_nusd >= 0 else ask.expected_nusd
                more = self.slope * (ask.expected_nusd - expected) + shift.nusd
                nusd += min(max(known.nusd + more, 0.02 * known.nusd), ask.ceiling_nusd)
                guess = known.input or ask.input
                other = known.tokens + ask.input - guess + shift.tokens
                tokens += min(max(other, 0.02 * known.tokens), ask.ceiling_tokens or other)
                ms += known.ms
            found.append(Drawn(nusd / each, tokens / each, ms / each * shift.ms))
        return found

    def corrected(self, shift: Shift, nusd: float, tokens: float) -> Shift:
        """The same where so much more is expected of each than of those that are drawn for."""
        more = 0.0 if self.is_guess else self.slope * nusd
        return Shift(shift.nusd + more, shift.tokens + tokens, shift.ms)

    def shift(self, level: float, count: int, rng: Random) -> Shift:
        """How far `count` calls may be off what is known, so that this share of cases is below it.

        Means of few are too small more often than not where few calls are long, and tell an error that
        is too small with it. So what is drawn is how far off a mean is in units of the error that it
        tells itself (a bootstrap-t).
        """
        if level == 0.5 or len(self.lessons) < 2:
            return Shift()
        known = len(self.lessons)
        # The rest differs by chance as well, so what is drawn are fewer than are known.
        size = max(2, round(known * count / (known + count)))
        rests = [
            (each.nusd - self.slope * each.expected_nusd, each.tokens - each.input, each.ms)
            for each in self.lessons
        ]
        told = [_mean_and_error(each, size) for each in zip(*rests, strict=True)]
        off: tuple[list[float], ...] = ([], [], [])
        for _ in range(TIMES):
            drawn = zip(*rng.choices(rests, k=size), strict=True)
            for at, each in enumerate(drawn):
                mean, error = _mean_and_error(each, size)
                off[at].append((mean - told[at][0]) / error if error > 0 else 0.0)
        place = max(0, TIMES - 1 - int(level * TIMES))
        nusd, tokens, ms = (
            -max(-MOST_OFF, min(MOST_OFF, sorted(each)[place])) * error
            for each, (_, error) in zip(off, told, strict=True)
        )
        return Shift(nusd, tokens, max(LEAST_TIME, 1 + ms / told[2][0]) if told[2][0] else 1.0)


def _mean_and_error(values: Sequence[float], size: int) -> tuple[float, float]:
    """What they are on average, and how far off that of so many of them is, one deviation."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((each - mean) ** 2 for each in values) / len(values) / size)


def _slope(lessons: Sequence[Lesson]) -> float:
    """How much more a call costs of which a nano-dollar more was expected."""
    if len(lessons) < FEWEST_FOR_SLOPE or min(each.expected_nusd for each in lessons) < 0:
        return 1.0
    middle = sum(each.expected_nusd for each in lessons) / len(lessons)
    paid = sum(each.nusd for each in lessons) / len(lessons)
    spread = sum((each.expected_nusd - middle) ** 2 for each in lessons)
    if spread <= 1e-9 * middle * middle * len(lessons):
        return 1.0
    both = sum((each.expected_nusd - middle) * (each.nusd - paid) for each in lessons)
    return min(1.5, max(0.0, both / spread))


def spread(all_of_them: Sequence[T], count: int, rng: Random) -> list[T]:
    """So many of them, evenly over all, in any order."""
    step = len(all_of_them) / count
    start = rng.random() * step
    last = len(all_of_them) - 1
    picked = [all_of_them[min(last, int(start + at * step))] for at in range(count)]
    rng.shuffle(picked)
    return picked
