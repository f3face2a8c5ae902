"""Measuring one thing beside another in the same run.

Garbage collection is off while a side is measured, as `timeit` does, after a full
collection. Figures are ratios first: machines differ, and so do minutes.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Row:
    """One figure, its comparator, and the goal."""

    name: str
    ours: str
    comparator: str
    ratio: float | None
    goal: str
    met: bool | None


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass
class Watch:
    """Seconds on the wall and on the processor."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure what happens inside."""
    watch = Watch()
    with undisturbed():
        wall, cpu = time.perf_counter(), time.process_time()
        yield watch
        watch.wall_s, watch.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def best(measure: Callable[[], float], times: int = 3) -> float:
    """The highest of several rates: the one least disturbed by others."""
    return max(measure() for _ in range(times))


def show(rows: list[Row]) -> None:
    """Print the table and write it as JSON."""
    heads = ("what", "ours", "comparator", "ratio", "goal", "")
    cells = [
        (r.name, r.ours, r.comparator, "-" if r.ratio is None else f"{r.ratio:,.2f}", r.goal,
         {True: "met", False: "MISSED", None: ""}[r.met])
        for r in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    for line in (heads, *cells):
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
