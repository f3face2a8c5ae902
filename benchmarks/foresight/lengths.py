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
    """What a call may cost, does cost, and how long it takes."""

    ceiling: int
    cost: int
    took_ms: int


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


MADE_UP: dict[str, Callable[[random.Random, int], float]] = {
    "lognormal": lambda draw, _: _lognormal(draw, 300, 1),
    "bimodal": _bimodal,
    "pareto 1.6": lambda draw, _: 110 * draw.paretovariate(1.6),
    "twice as long after 54 %": lambda draw, n: _lognormal(draw, 300, 1) * (1 + (n > 0.54 * COUNT)),
    "pareto 1.1": lambda draw, _: 60 * draw.paretovariate(1.1),
    "5 % run into the cap": lambda draw, _: _lognormal(draw, 10, 0.4) if draw.random() < 0.95 else CAP,
    "40 % run into the cap": lambda draw, _: CAP if draw.random() < 0.4 else _lognormal(draw, 1200, 0.8),
    "very short": lambda draw, _: _lognormal(draw, 8, 0.5),
    "waves": lambda draw, n: _lognormal(draw, 300, 0.6) * (1 + 0.8 * math.sin(n / 150)),
}  # fmt: skip


def made_up(name: str, seed: int, count: int = COUNT) -> Lengths:
    """Requests of a distribution."""
    draw, make = random.Random(seed), MADE_UP[name]
    return [(int(_lognormal(draw, 500, 0.5)), int(make(draw, n))) for n in range(count)]


def as_calls(lengths: Lengths, *, jitter: float = 0.0, seed: int = 0) -> list[Call]:
    """The same as calls, which take longer the longer their answers are.

    Args:
        lengths: Input and output tokens.
        jitter: By how much the speed of calls differs; 0: all are equally fast.
        seed: Of that.
    """
    draw, calls = random.Random(seed), []
    for tokens_in, tokens_out in lengths:
        out = max(1, min(CAP, tokens_out))
        took_s = 0.4 + 0.02 * out
        if jitter:
            took_s = draw.uniform(0.5, 1) + out / 60 * draw.uniform(1 - jitter, 1 + jitter)
        known = tokens_in * INPUT_NUSD
        ceiling, cost = known + CAP * OUTPUT_NUSD, known + out * OUTPUT_NUSD
        calls.append(Call(ceiling, cost, round(1000 * took_s)))
    return calls
