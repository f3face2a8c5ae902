"""How long a request waits behind later, less urgent ones, in units of what is promised.

Pure simulation: the memory store in virtual time, looking only when something ends, arrives or is
due. Whoever waits for money that comes back may be passed `MAX_BYPASSED` times and for
`MAX_BYPASS_MS` by requests that could delay it; 1.00 is that bound. Small idle requests keep
coming, one as soon as another has started, as do larger ones of every other priority.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks.harness import Row
from scheduler.admission.plan import MAX_BYPASS_MS, MAX_BYPASSED
from tests.traffic import Stream, Traffic

WINDOWS = {
    "rolling": ["1000 tokens/10s"],
    "rolling, two caps": ["1000 tokens/10s, 2500 tokens/1m"],
    "calendar": ["1000 tokens/minute"],
    "calendar in rolling": ["600 tokens/minute, 1000 tokens/10m"],
    "total, raised bit by bit": ["1000 tokens"],
}


class Measured(Traffic):
    """Goes on whatever it finds."""

    def check(self, *passing: object) -> None:
        pass


def measure(name: str, arrivals: int) -> tuple[Measured, float]:
    """The world of one window after so many arrivals, and the seconds that took."""
    many, budgets = arrivals, WINDOWS[name]
    streams = [
        *(Stream(priority=30, need=need, every_ms=0, at_once=2, count=many, runs_ms=runs_ms,
                 share=share)
          for need, runs_ms, share in [(3, 40, 100), (11, 200, 40)]),
        Stream(priority=20, need=120, every_ms=9_000, count=many, runs_ms=2_000),
        Stream(priority=10, need=300, every_ms=31_000, count=many, runs_ms=700, share=80),
        Stream(priority=0, need=550, every_ms=73_000, count=many, runs_ms=4_000),
    ]  # fmt: skip
    limits = []
    if "raised" in name:
        limits = [(1_000 * n, 0, 100 + 4 * n) for n in range(arrivals // 8)]
    world, began_s = Measured(budgets, streams, slots=16, limits=limits), time.monotonic()
    world.run(go_on=lambda: world.arrived < arrivals)
    return world, time.monotonic() - began_s


def judge(name: str, arrivals: int) -> list[Row]:
    """One row for each priority that was ever passed."""
    world, took_s = measure(name, arrivals)
    print(f"  {name}: {world.arrived:,} arrivals in {took_s:,.0f} s", file=sys.stderr)
    rows = []
    for priority, (passed, waited_ms) in sorted(world.worst.items()):
        share = max(passed / MAX_BYPASSED, waited_ms / MAX_BYPASS_MS)
        rows.append(
            Row(f"{name}, {world.arrived:,} arrivals, priority {priority}", f"{share:.2f} of the bound",
                f"{passed} passed, for {waited_ms / 1000:.1f} s", None, "1.00", share <= 1)
        )  # fmt: skip
    return rows


def run(quick: bool) -> list[Row]:
    """Each kind of window in a process of its own: no time is measured here."""
    arrivals = 20_000 if quick else 1_000_000
    with ProcessPoolExecutor() as pool:
        done = [pool.submit(judge, name, arrivals) for name in WINDOWS]
        return [row for each in done for row in each.result()]
