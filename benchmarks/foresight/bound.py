"""``python -m benchmarks.foresight.bound [--seeds 20] [--only bimodal]``: how fast can one be who knows nothing beforehand?

All that was seen until now is the same in a world in which calls that outlive every age seen so far go on
otherwise. Who is not to overspend there has to count such calls as what they would cost there, be all
else known ever so well. Two who know it:

*Knows each*: of every call what it costs, if it ends at an age that some call has had. No rule is faster that is
safe in the other world, since nobody knows beforehand who is cheap, and so calls go in the order in which they came.
*Knows all together*: how calls are distributed up to that age, exactly; and keeps deviations for chance.

What outlives that age counts at its ceiling, or as much as where lengths go on like Pareto's of an index.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from statistics import mean

from benchmarks.foresight.__main__ import SHARE, worlds
from benchmarks.foresight.lengths import CAP, OUTPUT_NUSD, Call, as_calls
from benchmarks.foresight.simulate import Rule, simulate

LONGEST_MS = as_calls([(0, CAP)])[0].took_ms


class KnowsEach(Rule):
    """See above.

    Args:
        index: Of Pareto's distribution; None: ceilings.
    """

    def __init__(self, index: float | None) -> None:
        self._index = index

    def begin(self, limit: int) -> None:
        super().begin(limit)
        self._head: Call | None = None  # who did not fit; nobody passes
        self._as_of_ms = -1
        self._held = 0.0, 0.0

    def fits(self, now_ms: int, call: Call) -> bool:
        if self._head is not None and call is not self._head:
            return False
        if now_ms != self._as_of_ms:
            told = [self.told(now_ms, now_ms - at_ms, each) for at_ms, each in self.flying.values()]
            self._held = sum(each[0] for each in told), sum(each[1] for each in told)
            self._as_of_ms = now_ms
        its_mean, its_variance = self.told(now_ms, 0, call)
        kept = self._held[0] + its_mean + self.margin(self._held[1] + its_variance)
        self._head = None if self.spent + kept <= self.limit else call
        return self._head is None

    def told(self, now_ms: int, age_ms: int, call: Call) -> tuple[float, float]:
        """What a call of an age counts, and its variance; the first began at 0, so now is the greatest."""
        return (call.cost if call.took_ms <= now_ms else self.beyond(now_ms, call.ceiling)[0]), 0.0

    def margin(self, variance: float) -> float:
        """What is kept for chance."""
        return 0.0

    def beyond(self, now_ms: int, ceiling: int) -> tuple[float, float]:
        """What one costs that lasts longer than that: the mean, and that of the square."""
        if self._index is None:
            return ceiling, ceiling**2
        part, known = min(1.0, max(1, now_ms) / LONGEST_MS), ceiling - CAP * OUTPUT_NUSD
        one, two = (
            (CAP * OUTPUT_NUSD * part) ** power
            * (1 + power * (part ** (self._index - power) - 1) / (power - self._index))
            for power in (1, 2)
        )
        return known + one, known**2 + 2 * known * one + two

    def enter(self, now_ms: int, id: int, call: Call) -> None:
        self.flying[id] = now_ms, call
        told = self.told(now_ms, 0, call)
        self._held = self._held[0] + told[0], self._held[1] + told[1]

    def leave(self, now_ms: int, id: int, call: Call) -> None:
        del self.flying[id]
        self.spent += call.cost
        self._as_of_ms = -1


class KnowsAllTogether(KnowsEach):
    """See above.

    Args:
        index: As above.
        law: Very many such calls.
        sigmas: Deviations that are kept.
    """

    def __init__(self, index: float | None, law: Sequence[Call], sigmas: float) -> None:
        super().__init__(index)
        known = sorted((call.took_ms, call.cost) for call in law)
        self._took_ms = [took_ms for took_ms, _ in known]
        self._costs = [0, *accumulate(cost for _, cost in known)]
        self._squares = [0, *accumulate(cost**2 for _, cost in known)]
        self._sigmas = sigmas

    def told(self, now_ms: int, age_ms: int, call: Call) -> tuple[float, float]:
        young = bisect_right(self._took_ms, age_ms)
        old = max(young, bisect_right(self._took_ms, now_ms))
        late, squared = self.beyond(now_ms, call.ceiling)
        alive, rest = len(self._took_ms) - young, len(self._took_ms) - old
        if not alive:
            return late, squared - late**2
        one = (self._costs[old] - self._costs[young] + rest * late) / alive
        two = (self._squares[old] - self._squares[young] + rest * squared) / alive
        return one, max(0.0, two - one**2)

    def margin(self, variance: float) -> float:
        return self._sigmas * math.sqrt(variance)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="bimodal")
    options = parser.parse_args()
    print("what                           knows          beyond      to 95 %    best   worst")
    for name, make in worlds([], options.only).items():
        law = [call for seed in range(101, 111) for call in make(seed)]  # type: ignore[operator]
        rules = {
            (knows, "ceilings" if index is None else f"Pareto {index}"): rule
            for index in (None, 1.1)
            for knows, rule in (
                ("each", KnowsEach(index)), ("all, 3 sigmas", KnowsAllTogether(index, law, 3)),
            )
        }  # fmt: skip
        found: dict[tuple[str, str], list[float]] = {which: [] for which in rules}
        for seed in range(1, options.seeds + 1):
            calls = make(seed)  # type: ignore[operator]
            limit = round(SHARE * sum(call.cost for call in calls))
            ideal_ms = simulate(calls, limit, Rule()).at_95_ms
            for which, rule in rules.items():
                found[which].append(simulate(calls, limit, rule).at_95_ms / ideal_ms)
        for (knows, beyond), ratios in found.items():
            told = f"{mean(ratios):7.2f} {min(ratios):7.2f} {max(ratios):7.2f}"
            print(f"{name:30} {knows:14} {beyond:11} {told}")


if __name__ == "__main__":
    main()
