"""``python -m benchmarks.foresight [--seeds 20] [--rules …] [--only WORD] [--budget N] [--at-once 256] [TRACE.csv …]``.

For each trace and each distribution: how many ceilings the budget is worth, the time to 95 % of it
against one who knows every cost beforehand, how often and how far it was overspent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from benchmarks.foresight.lengths import MADE_UP, Call, as_calls, made_up, of_trace
from benchmarks.foresight.simulate import (
    Afterwards,
    Ceilings,
    Foreseen,
    PlainMean,
    Rule,
    Same,
    simulate,
)
from scheduler.foresight import PRESETS

SHARE = 0.6  # of all that the requests cost
RULES = ("none", "low", "default", "high")
ALL = ("afterwards", "mean", "p99", "pool", *RULES)


def worlds(traces: list[Path], only: str) -> dict[str, object]:
    """By name: what makes the calls of a seed."""
    found: dict[str, object] = {}
    for path in traces:
        found[path.stem] = lambda seed, path=path: as_calls(of_trace(path, seed))
        found[f"{path.stem}, as they came"] = lambda seed, path=path: as_calls(
            of_trace(path, seed, in_order=True)
        )
        found[f"{path.stem}, uneven speed"] = lambda seed, path=path: as_calls(
            of_trace(path, seed), jitter=0.25, seed=seed
        )
    for name in MADE_UP:
        found[name] = lambda seed, name=name: as_calls(
            made_up(name, seed), new_job=name.startswith("a new job")
        )
    return {name: make for name, make in found.items() if only in name}


def rule_of(name: str, calls: list[Call]) -> Rule:
    """A rule by its name; some know what nobody knows beforehand."""
    costs = sorted(call.cost for call in calls)
    if name == "none":
        return Ceilings()
    if name == "afterwards":
        return Afterwards()
    if name == "mean":
        return Same(round(mean(costs)))
    if name == "p99":
        return Same(costs[len(costs) * 99 // 100])
    if name == "pool":
        return PlainMean(calls, 3)
    return Foreseen(PRESETS[name])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=ALL)
    parser.add_argument("--only", default="")
    parser.add_argument("--budget", type=float, help="in ceilings; default: 60 % of all costs")
    parser.add_argument("--at-once", type=int, default=256)
    options = parser.parse_args()
    print(
        "what                                     rule        ceilings  to 95 %   worst   over > 0.2 %  most over  used"
    )
    for name, make in worlds(options.traces, options.only).items():
        for rule in options.rules:
            told = [
                one(make, seed, rule, options.budget, options.at_once)
                for seed in range(1, options.seeds + 1)
            ]
            worth, ratios, overs, used = (list(each) for each in zip(*told, strict=True))
            print(
                f"{name:40} {rule:11} {mean(worth):8.0f}  {mean(ratios):7.2f} {max(ratios):7.2f}"
                f"   {sum(o > 0 for o in overs):3} {sum(o > 0.002 for o in overs):3} of {len(overs):3}"
                f"  {max(overs):9.2%}  {min(used):.2%}",
                flush=True,
            )


def one(
    make: object, seed: int, rule: str, budget: float | None, at_once: int = 256
) -> tuple[float, ...]:
    """One run: what the budget is worth, the ratio, how far it was overspent, and used."""
    calls = make(seed)  # type: ignore[operator]
    ceiling = mean(call.ceiling for call in calls)
    limit = round(SHARE * sum(call.cost for call in calls) if budget is None else budget * ceiling)
    ideal = simulate(calls, limit, Rule(), at_once)
    ran = simulate(calls, limit, rule_of(rule, calls), at_once)
    return limit / ceiling, ran.at_95_ms / ideal.at_95_ms, ran.over, ran.used


if __name__ == "__main__":
    main()
