"""The sum over requests that are still to be sent, from what others have cost: with an interval.

The prompt is known beforehand but for how it is counted, so of the input only the price of what was
guessed of it is learned (a ratio), and what differs from call to call is the length of the answer.
Models are strata: each is judged by its own calls, and those with too few of them by all, in
proportion to what is expected of each. Where the answers of a model follow the cap that was set, or
the prompt's length, the sum is corrected for how the rest differs in that (a regression).

The interval is for the rest alone, since what was paid is known (so the finite population is heeded).
Lengths are skewed and have long tails: the usual interval of Student's t holds in 75 of 100 batches
where it says 90. See `scheduler.estimates.pivot` for ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import TYPE_CHECKING

from scheduler.estimates.pivot import Stratum, mean, quantiles, variance

if TYPE_CHECKING:
    from random import Random

FEWEST = 5  # calls, from which on there is an interval
OF_ITS_OWN = 8  # calls, from which on a model is judged by its own
FOLLOWS = 0.5  # of the variance, from which on answers are said to follow what is known before
MOST_KNOWN = 400  # calls of a model that are looked at: more make it slower, and hardly better


@dataclass(frozen=True, slots=True)
class Paid:
    """What one call cost, in any one unit (nano-dollars, tokens).

    Attributes:
        guess: The tokens of its prompt, as they were guessed beforehand.
        input: What its prompt came to.
        output: What its answer came to.
        most: What its answer might have come to.
    """

    guess: float
    input: float
    output: float
    most: float


@dataclass(slots=True)
class Rest:
    """The requests of one model that are still to be sent, as sums.

    Attributes:
        guess: The tokens of their prompts, as they are guessed.
        expected: What their answers are expected to come to, if nothing is known.
        most: What their answers may come to at most.
        longest: What one of them may come to at most.
    """

    requests: int = 0
    guess: float = 0
    expected: float = 0
    most: float = 0
    longest: float = 0
    squares: float = field(default=0, repr=False)  # of their guesses

    def add(self, guess: float, expected: float, most: float) -> None:
        """Count one more."""
        self.requests += 1
        self.guess += guess
        self.squares += guess * guess
        self.expected += expected
        self.most += most
        self.longest = max(self.longest, most)


@dataclass(frozen=True, slots=True)
class Interval:
    """What a sum is expected to be, and between which bounds it is in so many of 100 cases."""

    low: float
    expected: float
    high: float
    calls: int

    def plus(self, known: float) -> Interval:
        """The same with an amount that is certain."""
        return Interval(self.low + known, self.expected + known, self.high + known, self.calls)


def total(
    paid: Mapping[str, Sequence[Paid]], rest: Mapping[str, Rest], rng: Random, level: float = 0.9
) -> Interval | None:
    """What the rest will come to.

    Args:
        paid: Calls whose cost is known, by model: drawn from the same batch, or like it.
        rest: What is still to be sent, by model.
        rng: Draws; the same seed gives the same interval.
        level: How often the interval is to hold.

    Returns:
        None: too few calls are known.
    """
    wanted = {model: each for model, each in rest.items() if each.requests}
    if not wanted:
        return Interval(0, 0, 0, 0)
    calls = sum(len(each) for each in paid.values())
    if calls < FEWEST:
        return None
    strata = list(_strata(paid, wanted))
    known = sum(each.known for each in strata)
    expected = sum(each.expected for each in strata)
    low_q, high_q, is_log = quantiles(strata, rng, (1 - level) / 2)
    spread = sqrt(sum(each.doubt for each in strata))
    if is_log:
        relative = spread / expected
        low, high = expected * exp(-high_q * relative), expected * exp(min(50.0, -low_q * relative))
    else:
        low, high = expected - high_q * spread, expected - low_q * spread
    most = sum(each.most for each in wanted.values())
    # Answers cost something; but prompts may turn out to be shorter than they were guessed.
    least = -known if any(each.noise for each in strata) else 0.0
    most = max(most, expected) - least
    low, high = (min(max(each, least), most) for each in (low, high))
    return Interval(
        known + min(low, expected), known + expected, known + max(high, expected), calls
    )


def _strata(paid: Mapping[str, Sequence[Paid]], rest: Mapping[str, Rest]) -> Iterator[Stratum]:
    """Models that are judged by their own calls, and one of those that are not."""
    few = {model for model in rest if len(paid.get(model, ())) < OF_ITS_OWN}
    for model in sorted(rest.keys() - few):
        yield _stratum(paid[model][-MOST_KNOWN:], rest[model])
    if not few:
        return
    told = {model: calls for model, calls in paid.items() if model in few}
    if sum(map(len, told.values())) < OF_ITS_OWN:
        told = dict(paid)
    yield _mixed(told, rest, few)


def _stratum(paid: Sequence[Paid], rest: Rest) -> Stratum:
    """One model's."""
    price = _ratio(sum(each.input for each in paid), sum(each.guess for each in paid))
    outputs = [min(each.output, rest.longest) for each in paid]
    caps = [min(each.most, rest.longest) for each in paid]
    # Counts err by a share of the prompt, and the longest prompts are hardly among those known.
    usual = sqrt(rest.squares / rest.requests)
    noise = [
        usual * (each.input / each.guess - price) if each.guess else each.input for each in paid
    ]
    noise = [each - mean(noise) for each in noise]
    values, shift = _corrected(outputs, paid, rest)
    has_noise = variance(noise) > 1e-6 * variance(outputs)
    return Stratum(
        values, [max(pair) for pair in zip(caps, outputs, strict=True)], rest.requests, 1.0,
        price * rest.guess, shift, 4 * variance(noise) < variance(outputs),
        noise if has_noise else (),
    )  # fmt: skip


def _corrected(values: list[float], paid: Sequence[Paid], rest: Rest) -> tuple[list[float], float]:
    """Without what follows from the cap or the prompt; and what that changes for the rest."""
    best, share = None, FOLLOWS
    ways = (
        ([each.most for each in paid], rest.most / rest.requests),
        ([each.guess for each in paid], rest.guess / rest.requests),
    )
    of_values = variance(values)
    for told, mean_of_rest in ways:
        of_told = variance(told)
        if of_told <= 1e-9 * mean(told) ** 2 or not of_values:
            continue
        center, middle = mean(told), mean(values)
        both = sum((t - center) * (v - middle) for t, v in zip(told, values, strict=True)) / (
            len(told) - 1
        )
        if both * both / (of_told * of_values) > share:
            share = both * both / (of_told * of_values)
            best = (told, center, mean_of_rest, both / of_told)
    if best is None:
        return values, 0.0
    told, center, mean_of_rest, slope = best
    shift = slope * (mean_of_rest - center) * rest.requests
    if mean(values) * rest.requests + shift <= 0:
        return values, 0.0
    return [v - slope * (t - center) for t, v in zip(told, values, strict=True)], shift


def _mixed(
    paid: Mapping[str, Sequence[Paid]], rest: Mapping[str, Rest], models: set[str]
) -> Stratum:
    """Several models that are judged together, in proportion to what is expected of each."""
    values: list[float] = []
    caps: list[float] = []
    for model, calls in paid.items():
        of_model = rest.get(model)
        if of_model is not None and of_model.requests:
            scale = of_model.expected / of_model.requests or 1.0
        else:  # nothing of it is left to be sent: its own mean
            scale = mean([each.output for each in calls]) or 1.0
        for each in calls[-MOST_KNOWN:]:
            values.append(each.output / scale)
            caps.append(max(each.most, each.output) / scale)
    everything = [each for calls in paid.values() for each in calls]
    price = _ratio(sum(each.input for each in everything), sum(each.guess for each in everything))
    asked = [rest[model] for model in models]
    scale = sum(each.expected for each in asked) / sum(each.requests for each in asked) or 1.0
    return Stratum(
        values, caps, sum(each.requests for each in asked), scale,
        price * sum(each.guess for each in asked), 0.0, True,
    )  # fmt: skip


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
