"""``python -m benchmarks.quote [--runs N] [TRACE.csv ...]``: how often a quote's interval holds.

Batches of 2,000 lines of which 30, 50 or 100 are known, over lengths of one's own and over traces with
the columns ``input_tokens`` and ``output_tokens``. The interval is said to hold in 90 of 100; Student's
is beside it. Prompts are guessed with an error, as they are by a run.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from scheduler.estimates import Paid, Rest, total

LINES, CAP = 2_000, 4_096
INTO, OUT = 150, 600  # nano-dollars a token
STUDENT = {30: 1.699, 50: 1.677, 100: 1.660}
Lengths = Callable[[random.Random], list[tuple[int, int]]]


def drawn(length: Callable[[random.Random], float]) -> Lengths:
    """Lines with answers of that length."""
    return lambda rng: [
        (rng.randint(50, 500), max(1, min(CAP, int(length(rng))))) for _ in range(LINES)
    ]


def bimodal(rng: random.Random) -> float:
    """Four short ones to a long one."""
    short = rng.random() < 0.8
    return (
        rng.lognormvariate(math.log(80), 0.4) if short else rng.lognormvariate(math.log(1500), 0.3)
    )


KINDS: dict[str, Lengths] = {
    "lognormal, sigma 1": drawn(lambda rng: rng.lognormvariate(math.log(200), 1)),
    "bimodal": drawn(bimodal),
    "Pareto 1.6, capped": drawn(lambda rng: 100 * rng.paretovariate(1.6)),
    # What it was not made with.
    "lognormal, sigma 0.5": drawn(lambda rng: rng.lognormvariate(math.log(300), 0.5)),
    "lognormal, sigma 1.5": drawn(lambda rng: rng.lognormvariate(math.log(100), 1.5)),
    "exponential": drawn(lambda rng: rng.expovariate(1 / 250)),
    "half and half": drawn(
        lambda rng: rng.lognormvariate(math.log(100 if rng.random() < 0.5 else 1200), 0.4)
    ),
    "one in twenty is long": drawn(
        lambda rng: rng.lognormvariate(math.log(80 if rng.random() < 0.95 else 2500), 0.4)
    ),
    "Pareto 1.2, capped": drawn(lambda rng: 60 * rng.paretovariate(1.2)),
    "Pareto 2.2, capped": drawn(lambda rng: 150 * rng.paretovariate(2.2)),
    "one in ten runs into the cap": drawn(
        lambda rng: CAP if rng.random() < 0.1 else rng.lognormvariate(math.log(200), 0.6)
    ),
}


def trace(path: Path) -> Lengths:
    """Lines out of a trace."""
    with path.open() as file:
        rows = [
            (int(row["input_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(file)
        ]
    return lambda rng: rng.sample(rows, min(LINES, len(rows)))


def holds(lengths: Lengths, known: int, seed: int) -> tuple[bool, bool, float]:
    """Whether our interval holds, and Student's, in one batch; and how wide ours is."""
    rng = random.Random(seed)
    lines = [(into, out, into * rng.lognormvariate(0.1, 0.2)) for into, out in lengths(rng)]
    paid = [Paid(guess, into * INTO, out * OUT, CAP * OUT) for into, out, guess in lines[:known]]
    rest = Rest()
    for _, _, guess in lines[known:]:
        rest.add(guess, 300 * OUT, CAP * OUT)
    real = sum(into * INTO + out * OUT for into, out, _ in lines[known:])
    found = total({"": paid}, {"": rest}, rng)
    assert found is not None
    costs = [each.input + each.output for each in paid]
    spread = statistics.stdev(costs) * math.sqrt(1 / known + 1 / rest.requests)
    is_within = abs(statistics.mean(costs) - real / rest.requests) <= STUDENT[known] * spread
    return found.low <= real <= found.high, is_within, (found.high - found.low) / real


def main() -> None:
    words = sys.argv[1:]
    runs = 100
    if "--runs" in words:
        at = words.index("--runs")
        runs = int(words[at + 1])
        del words[at : at + 2]
    kinds = KINDS | {Path(word).stem: trace(Path(word)) for word in words}
    print(f"{'lengths':28}{'known':>6}{'holds':>8}{'Student':>9}{'width':>8}   of {runs} runs")
    for name, lengths in kinds.items():
        for known in STUDENT:
            found = [holds(lengths, known, seed) for seed in range(runs)]
            ours, plain = (sum(each[at] for each in found) / runs for at in (0, 1))
            width = statistics.median(each[2] for each in found)
            print(f"{name:28}{known:6}{ours:8.0%}{plain:9.0%}{width:8.0%}", flush=True)


if __name__ == "__main__":
    main()
