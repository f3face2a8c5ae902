"""``python -m tests.simulation``: replay a seed, or try seeds for as long as told."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from tests.simulation.world import Report, World


def main() -> int:
    """Run the command line; 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="only this one, with a trace")
    parser.add_argument("--first", type=int, default=0, help="the first of many (0)")
    parser.add_argument("--steps", type=int, default=60, help="things clients do (60)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on (60)")
    parser.add_argument("--store", choices=["memory", "sqlite", "both"], default="both")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    stores = ["memory", "sqlite"] if options.store == "both" else [options.store]
    if options.seed is not None:
        return max(replay(options.seed, options.steps, store) for store in stores)
    return explore(options.first, options.steps, options.seconds, stores)


def replay(seed: int, steps: int, store: str) -> int:
    """One seed, told step by step."""
    world = World(seed, steps, store)
    world.tell = print
    try:
        report = world.run()
    except BaseException:
        traceback.print_exc()
        print(f"seed {seed} on {store} fails", file=sys.stderr)
        return 1
    print(f"seed {seed} on {store}: {summary([report])}")
    return 0


def explore(first: int, steps: int, seconds: float, stores: list[str]) -> int:
    """Seed after seed, until one fails or the time is over."""
    began_s = told_s = time.monotonic()
    reports: list[Report] = []
    seed = first
    while time.monotonic() - began_s < seconds:
        for store in stores:
            try:
                reports.append(World(seed, steps, store).run())
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt):
                    raise
                traceback.print_exc()
                print(f"first failing seed: {seed} on {store}; replay it with", file=sys.stderr)
                print(f"  make simulate SEED={seed} STEPS={steps} STORE={store}", file=sys.stderr)
                return 1
        seed += 1
        if time.monotonic() - told_s > 5:
            told_s = time.monotonic()
            print(
                f"{len(reports) / (told_s - began_s):.1f} worlds/s · {summary(reports)}", flush=True
            )
    took_s = time.monotonic() - began_s
    print(
        f"{len(reports)} worlds, seeds {first} to {seed - 1}, {len(reports) / took_s:.1f}/s: all well"
    )
    print(summary(reports))
    events: Counter[str] = sum((report.events for report in reports), Counter())
    print(", ".join(f"{name} {count:,}" for name, count in events.most_common()))
    return 0


def summary(reports: list[Report]) -> str:
    """Sums over worlds."""
    names = ("steps", "transactions", "points", "sent", "answered", "crashes")
    return ", ".join(f"{name} {sum(getattr(r, name) for r in reports):,}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
