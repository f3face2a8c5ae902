"""How far off are the dates that a rehearsal tells?

Each world is a queue that is answered to its end by the whole scheduler, in virtual time: that is the
truth. Before it begins, a rehearsal is asked when it will be done, of which it is told only what a user's
store would know: some hundred calls, and the queue. Made-up worlds, and traces given by path (CSV with
`input_tokens` and `output_tokens`), in the order in which they came. Known is a sample of the batch, or
with `--knows before` what came just before it.

    python -m benchmarks.finish [--known 100] [--requests 4000] [--knows before] [TRACE.csv ...]
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scheduler import Budget, FunctionProvider, Request, Scheduler
from scheduler.answer import Answer
from scheduler.events import Settled
from scheduler.limits import Limits
from scheduler.rehearsal import Ask, Desk, Group, Lesson, Lore, Purse, Scene, finish
from scheduler.request import Quote, Tokens, Usage
from scheduler.testing import START_MS, VirtualClock, run

CAP, IN, OUT = 4096, 2_500, 10_000  # tokens; nano-dollars a token
HOUR_MS = 3_600_000
Length = tuple[int, int]  # of prompt and answer, in tokens


@dataclass(frozen=True)
class Terms:
    """What the queue is answered under; `share` is the part of its cost that one window holds."""

    name: str
    share: float = 0.0
    window: str = ""
    risk: str = "none"
    rpm: int | None = None
    tpm: int | None = None
    at_once: int = 64
    begins_h: float = 10.0  # of the day


TERMS = (
    Terms("64 at once"),
    Terms("rates", rpm=600),
    Terms("tokens a minute", tpm=1_000_000, at_once=128),
    Terms("a day", 0.4, "/day"),
    Terms("a day, late", 0.15, "/day", begins_h=22),
    Terms("many hours", 0.03, "/hour"),
    Terms("rolling", 0.2, "/6h"),
    Terms("paced", 0.55, "/day paced"),
    Terms("paced by hours", 0.45, "/day paced 09:00-18:00"),
    Terms("risk", 0.3, "/hour", "default", at_once=128),
    Terms("two caps", 0.1, "/hour, {day}/day"),
)


def lengths(kind: str, rng: random.Random) -> Callable[[int, int], Length]:
    """What made-up calls are like: from the number of one, and of how many, to its lengths."""

    def cut(value: float) -> int:
        return min(CAP, max(1, round(value)))

    def prompt() -> int:
        return min(20_000, max(20, round(rng.lognormvariate(6.5, 0.8))))

    def one(at: int, count: int) -> Length:
        match kind:
            case "lognormal":
                return prompt(), cut(rng.lognormvariate(math.log(300) - 0.5, 1.0))
            case "bimodal":
                mean = 60 if rng.random() < 0.85 else 1500
                return prompt(), cut(rng.gauss(mean, mean / 5))
            case "Pareto 1.6":
                return prompt(), cut(60 * rng.paretovariate(1.6))
        # drifting: half as long again at its end as at its beginning
        return prompt(), cut(rng.lognormvariate(math.log(240) - 0.5, 1.0) * (1 + 0.5 * at / count))

    return one


def trace(path: str) -> list[Length]:
    """The lengths in a file."""
    with Path(path).open(encoding="utf-8") as file:
        return [(int(row["input_tokens"]), min(CAP, int(row["output_tokens"])))
                for row in csv.DictReader(file)]  # fmt: skip


def cost(each: Length) -> int:
    return each[0] * IN + each[1] * OUT


def took_s(each: Length) -> float:
    return 0.4 + 0.02 * each[1] + 0.00005 * each[0]


def quote(each: Length) -> Quote:
    tokens = each[0] + CAP
    return Quote(
        each[0] * IN + CAP * OUT, each[0] * IN + 300 * OUT, tokens, tokens=Tokens(each[0], CAP)
    )


def budget_of(terms: Terms, queue: list[Length]) -> Budget | None:
    if not terms.share:
        return None
    whole = sum(map(cost, queue))
    amount = max(terms.share * whole, 3 * max(quote(each).ceiling_nusd for each in queue))
    day = f"${4 * amount / 1e9:.6f}"
    return Budget("b", f"${amount / 1e9:.6f}{terms.window.format(day=day)}", risk=terms.risk)


async def truth(queue: list[Length], terms: Terms, now_ms: int) -> float:
    """How many seconds it really takes."""

    async def call(request: Request) -> Answer:
        each = queue[request.body["at"]]
        await asyncio.sleep(took_s(each))
        return Answer(None, usage=Usage(*each), cost_nusd=cost(each))

    budget, done, ended = budget_of(terms, queue), asyncio.Event(), 0
    provider = FunctionProvider("p", call, quote=lambda r: quote(queue[r.body["at"]]))
    provider.limits = Limits(terms.rpm, terms.tpm)

    def note(event: Settled) -> None:
        nonlocal ended
        ended += 1
        if ended == len(queue):
            done.set()

    async with Scheduler(
        budgets=budget or (), providers=provider, clock=VirtualClock(now_ms),
        concurrency=terms.at_once, max_attempts=1,
    ) as s:  # fmt: skip
        s.on(Settled, note)
        await s.enqueue([Request({"model": "m", "at": at}) for at in range(len(queue))])
        await done.wait()
        return asyncio.get_running_loop().time()


def scene(known: list[Length], queue: list[Length], terms: Terms, now_ms: int) -> Scene:
    """The same as a rehearsal is told of it."""
    rng, budget = random.Random(0), budget_of(terms, queue)
    group = Group("p", "m", 10, () if budget is None else ("b",))
    for each in queue:
        one = quote(each)
        group.add(Ask(one.ceiling_nusd, one.ceiling_tokens, one.expected_nusd, each[0], CAP), rng)
    lore = Lore({"m": [
        Lesson(cost(each), sum(each), round(1000 * took_s(each)), quote(each).expected_nusd, each[0])
        for each in known
    ]})  # fmt: skip
    desk = Desk("p", terms.at_once, Limits(terms.rpm, terms.tpm))
    purses = [] if budget is None else [_purse(budget, now_ms)]
    return Scene(now_ms, [group], purses, {"p": desk}, lore, begins=True)


def _purse(budget: Budget, now_ms: int) -> Purse:
    from scheduler.stats import CapStatus

    return Purse("b", tuple(
        CapStatus(cap, cap.limit, 0, 0, 0, cap.window.slot_start_ms(now_ms), None)
        for cap in budget.caps
    ), budget.risk)  # fmt: skip


def main() -> None:
    """Print a line for each world, and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*")
    parser.add_argument("--known", type=int, default=100)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--terms", default="")
    parser.add_argument("--made-up", default="lognormal,bimodal,Pareto 1.6,drifting")
    parser.add_argument("--knows", choices=("sample", "before", "all"), default="sample")
    asked = parser.parse_args()
    names = [*(asked.made_up.split(",") if asked.made_up else ()), *asked.traces]
    right = total = within = 0
    for name in names:
        for seed in asked.seeds:
            rng = random.Random(f"{name}/{seed}")
            size = asked.known + asked.requests
            if name in asked.traces:
                whole = trace(name)
                start = rng.randrange(max(1, len(whole) - size))
                rows = whole[start : start + size]
            else:
                make = lengths(name, rng)
                rows = [make(max(0, at - asked.known), asked.requests) for at in range(size)]
            if (
                asked.knows == "sample"
            ):  # of the batch itself, as `scheduler quote --sample` draws it
                drawn = set(rng.sample(range(len(rows)), asked.known))
                known = [rows[at] for at in sorted(drawn)]
                queue = [each for at, each in enumerate(rows) if at not in drawn]
            else:
                known, queue = rows[: asked.known], rows[asked.known :]
                known = queue if asked.knows == "all" else known  # what is wrong by itself
            for terms in TERMS:
                if asked.terms and asked.terms != terms.name:
                    continue
                now_ms = START_MS + round(terms.begins_h * HOUR_MS)
                begun = time.process_time()
                told = finish(scene(known, queue, terms, now_ms), seed=seed)
                cpu_s = time.process_time() - begun
                begun = time.process_time()
                real_s = run(truth(queue, terms, now_ms))
                real_cpu_s = time.process_time() - begun
                early, likely, late = (
                    None if each is None else (each - now_ms) / 1000
                    for each in (told.early_ms, told.likely_ms, told.late_ms)
                )
                off = None if likely is None else likely / real_s - 1
                total += 1
                right += off is not None and abs(off) <= 0.1
                within += early is not None and late is not None and early <= real_s <= late
                print(json.dumps({
                    "lengths": name.rsplit("/", 1)[-1], "terms": terms.name, "real_s": round(real_s),
                    "early_s": early and round(early), "likely_s": likely and round(likely),
                    "late_s": late and round(late), "off": off if off is None else round(off, 3),
                    "cpu_s": round(cpu_s, 2), "real_cpu_s": round(real_cpu_s, 1),
                }), flush=True)  # fmt: skip
    print(json.dumps({"within_10_percent": right, "between_early_and_late": within, "of": total}))


if __name__ == "__main__":
    main()
