"""What ``scheduler quote`` says of what it learned, and the sample that it takes for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from scheduler.budget import Budget
from scheduler.cli.output import plural, say, tell
from scheduler.cli.rehearsing import AT_ONCE
from scheduler.cli.sampling import Draw, Sampled
from scheduler.errors import ConfigError
from scheduler.money import decimal_usd, format_usd

if TYPE_CHECKING:
    from scheduler.batch.input import LineOptions
    from scheduler.batch.source import Source
    from scheduler.cli.delivery import Files
    from scheduler.cli.learned import Learned
    from scheduler.estimates import Interval

__all__ = [
    "Draw",
    "Estimate",
    "as_json_rows",
    "check_sample",
    "sampled",
    "tell_estimate",
]

DIGITS = 4  # of an amount that is a guess


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of the cost of the rest, and the sample that was taken, if one was."""

    learned: Learned
    sampled: Sampled | None


def check_sample(budget: str | None, source: Source) -> Budget:
    """What bounds a sample. Raises if nothing does, or if the input is no file."""
    from scheduler.cli.sampling import sample_budget

    if budget is None:
        raise typer.BadParameter(
            "says to send some lines, but not what they may cost: --budget '$0.10'",
            param_hint="--sample",
        )
    if not source.can_rewind:
        raise ConfigError(
            "--sample",
            f"{source.name} is a pipe, from which a run could not ask the same again. Write it to a file "
            "first, and give that; nothing was sent",
        )
    return sample_budget(budget)


async def sampled(
    settings: dict[str, Any], budget: Budget, draw: Draw, source: Source, files: Files,
    options: LineOptions,
) -> Sampled:  # fmt: skip
    """Take the sample that was drawn."""
    from scheduler.cli.outcome import RunOptions
    from scheduler.cli.progress import progress
    from scheduler.cli.sampling import sample
    from scheduler.limits.retry import BATCH_ATTEMPTS

    lines = draw.lines()
    if not lines:
        return Sampled(", ".join(map(str, budget.caps)), 0)
    settings = {"max_attempts": BATCH_ATTEMPTS, **settings}
    run = RunOptions(options, stops=True)
    return await sample(settings, budget, lines, source, files, run, progress("none"))


def tell_estimate(estimate: Estimate) -> None:
    """Say it to people."""
    taken, learned = estimate.sampled, estimate.learned
    if taken is not None:
        _tell_sample(taken)
    money = learned.money()
    if money is None:
        if taken is not None and taken.asked:
            tell(
                f"{plural(learned.calls, 'answer')} say too little: what is expected is a guess, and "
                "'most' is what it may cost"
            )
        return
    if not money.calls:
        return
    tell(
        f"the rest is expected to cost {_about(money.expected)}: in 9 of 10 cases from "
        f"{_between(money)}, {_basis(learned)}"
    )
    if taken is not None and taken.spent_nusd:
        tell(f"together with the sample from {_between(money.plus(taken.spent_nusd))}")
    if (tokens := learned.tokens()) is not None:
        tell(
            f"that are about {round(tokens.expected):,} tokens, from {round(tokens.low):,} to "
            f"{round(tokens.high):,}"
        )


def _tell_sample(taken: Sampled) -> None:
    if not taken.asked:
        say("no sample was taken: every line that can be sent was queued by an earlier run already")
        return
    words = (
        f"sample: {taken.answered:,} of {plural(taken.asked, 'line')} answered for "
        f"{format_usd(taken.spent_nusd)} of {taken.budget}; a run does not send them again"
    )
    if taken.failed:
        words += f"; {taken.failed:,} failed"
    say(words)
    if taken.why:
        say("the sample is not whole: what it says is less sure")


def _between(money: Interval) -> str:
    low, high = (_about(each) for each in (money.low, money.high))
    return f"{low} to {high}"


def _about(nusd: float) -> str:
    """An amount with as many digits as mean something."""
    digits = max(0, len(str(round(nusd))) - DIGITS)
    return format_usd(int(round(nusd, -digits)))


def _basis(learned: Learned) -> str:
    if learned.is_own:
        return f"judged by {plural(learned.calls, 'answer')} of this batch"
    return (
        f"from {plural(learned.calls, 'earlier call')} of the same models, if these are like those"
    )


def as_json_rows(estimate: Estimate) -> dict[str, Any]:
    """It for programs."""
    learned, taken = estimate.learned, estimate.sampled
    money, tokens = learned.money(), learned.tokens()
    seconds = learned.seconds(AT_ONCE)
    found: dict[str, Any] = {"estimate": None}
    if money is not None and money.calls:
        paid = 0 if taken is None else taken.spent_nusd
        found["estimate"] = {
            "calls": learned.calls,
            "from": "this_batch" if learned.is_own else "earlier_calls",
            "level": 0.9,
            **_usd(money),
            "with_sample": _usd(money.plus(paid)),
            "tokens": None if tokens is None else {
                name: round(getattr(tokens, name)) for name in ("low", "expected", "high")
            },
            "seconds": None if seconds is None else round(seconds, 1),
        }  # fmt: skip
    if taken is not None:
        found["sample"] = {
            "asked": taken.asked,
            "answered": taken.answered,
            "failed": taken.failed,
            "spent_usd": decimal_usd(taken.spent_nusd),
            "budget": taken.budget,
            "why_not_whole": taken.why or None,
        }
    return found


def _usd(money: Interval) -> dict[str, str]:
    return {
        f"{name}_usd": decimal_usd(round(getattr(money, name)))
        for name in ("low", "expected", "high")
    }
