"""Lengths of answers: from traces of production services, and made up to be difficult.

A request has input and output tokens. Prices, cap and durations are those of one model.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

CAP = 4096  # output tokens that each request allows
COUNT = 3000
INPUT_NUSD, OUTPUT_NUSD = 2_500, 10_000  # a token


class Call(NamedTuple):
    """What a call may cost, does cost, how long it takes, and the job that it belongs to."""

    ceiling: int
    cost: int
    took_ms: int
    job: str = ""


Lengths = list[tuple[int, int]]  # input and output tokens


@cache
def _read(path: Path) -> Lengths:
    with path.open(encoding="utf-8") as file:
        return [(int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]


def of_trace(path: Path, seed: int, *, in_order: bool = False) -> Lengths:
    """Some requests of a trace: any, or those that followed each other."""
    rows, draw = list(_read(path)), random.Random(seed)
    if in_order:
        start = draw.randrange(max(1, len(rows) - COUNT))
        return rows[start : start + COUNT]
    draw.shuffle(rows)
    return rows[:COUNT]


def _lognormal(draw: random.Random, mean: float, sigma: float) -> float:
    return draw.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


def _bimodal(draw: random.Random, _: int) -> float:
    return _lognormal(draw, 60, 0.4) if draw.random() < 0.85 else _lognormal(draw, 1500, 0.4)


def _two(draw: random.Random, share: float, short: float, long: float) -> float:
    return _lognormal(draw, *((long, 0.4) if draw.random() < share else (short, 0.5)))


MADE_UP: dict[str, Callable[[random.Random, int], float]] = {
    "lognormal": lambda draw, _: _lognormal(draw, 300, 1),
    "bimodal": _bimodal,
    "pareto 1.6": lambda draw, _: 110 * draw.paretovariate(1.6),
    "twice as long after 54 %": lambda draw, n: _lognormal(draw, 300, 1) * (1 + (n > 0.54 * COUNT)),
    "pareto 1.1": lambda draw, _: 60 * draw.paretovariate(1.1),
    "5 % run into the cap": lambda draw, _: _lognormal(draw, 10, 0.4) if draw.random() < 0.95 else CAP,
    "40 % run into the cap": lambda draw, _: CAP if draw.random() < 0.4 else _lognormal(draw, 1200, 0.8),
    "three times as long after 54 %": lambda draw, n: _lognormal(draw, 300, 1) * (1 + 2 * (n > 0.54 * COUNT)),
    "ever longer, up to three times": lambda draw, n: _lognormal(draw, 300, 1) * (1 + 2 * min(1, max(0, 5 * n / COUNT - 2))),
    "lognormal, narrow": lambda draw, _: _lognormal(draw, 300, 0.5),
    "lognormal, wide": lambda draw, _: _lognormal(draw, 300, 1.5),
    "half and half, 100 and 1,200": lambda draw, _: _two(draw, 0.5, 100, 1200),
    "5 % near 2,500, else 80": lambda draw, _: _two(draw, 0.05, 80, 2500),
    "pareto 2": lambda draw, _: 150 * draw.paretovariate(2),
    "a new job after 54 %": lambda draw, _: _lognormal(draw, 300, 1),
    "a new job after 54 %, three times as long": lambda draw, n: _lognormal(draw, 300, 1) * (1 + 2 * (n > 0.54 * COUNT)),
    "very short": lambda draw, _: _lognormal(draw, 8, 0.5),
    "waves": lambda draw, n: _lognormal(draw, 300, 0.6) * (1 + 0.8 * math.sin(n / 150)),
}  # fmt: skip


def made_up(name: str, seed: int, count: int = COUNT) -> Lengths:
    """Requests of a distribution."""
    draw, make = random.Random(seed), MADE_UP[name]
    return [(int(_lognormal(draw, 500, 0.5)), int(make(draw, n))) for n in range(count)]


def as_calls(
    lengths: Lengths, *, jitter: float = 0.0, seed: int = 0, new_job: bool = False
) -> list[Call]:
    """The same as calls, which take longer the longer their answers are.

    Args:
        lengths: Input and output tokens.
        jitter: By how much the speed of calls differs; 0: all are equally fast.
        seed: Of that.
        new_job: Those after 54 % are another job's.
    """
    draw, calls = random.Random(seed), []
    for number, (tokens_in, tokens_out) in enumerate(lengths):
        out = max(1, min(CAP, tokens_out))
        took_s = 0.4 + 0.02 * out
        if jitter:
            took_s = draw.uniform(0.5, 1) + out / 60 * draw.uniform(1 - jitter, 1 + jitter)
        known = tokens_in * INPUT_NUSD
        ceiling, cost = known + CAP * OUTPUT_NUSD, known + out * OUTPUT_NUSD
        job = "new" if new_job and number > 0.54 * COUNT else ""
        calls.append(Call(ceiling, cost, round(1000 * took_s), job))
    return calls
