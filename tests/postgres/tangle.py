"""One process of several that do anything at once to random trees of budgets.

``python -m tests.postgres.tangle '{"store": URL, "seed": 1, "turns": 60, "me": 0, "of": 6}'``. Limits are
only raised, each by one process, so in whatever anybody sees nothing may stand above them.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from scheduler.budget import Budget
from scheduler.stores.base import Claimed, Outcome
from scheduler.stores.postgres.store import PostgresStore
from tests.stores.conformance import FAILED, QUEUED, Bench, end, new, post

DEPTH, LEAST, MOST = 4, 60, 400


def limit(rng: random.Random, least: int = LEAST) -> str:
    """Of one unit or of two, over a window that does not end meanwhile."""
    amount = rng.randrange(least, 2 * least + MOST)
    money, tokens = f"${amount / 1e9:.9f}", f"{amount} tokens/day"
    return rng.choice([money, tokens, f"{money}, {tokens}"])


def tree(rng: random.Random, count: int = 12) -> list[Budget]:
    """Budgets, parents first; some stand alone, some have three above them."""
    depths: dict[str, int] = {}
    made = []
    for number in range(count):
        above = [each for each, depth in depths.items() if depth < DEPTH]
        parent = rng.choice([None, *above]) if above else None
        name = f"b{number}"
        depths[name] = 1 if parent is None else depths[parent] + 1
        made.append(Budget(name, limit(rng), parent=parent))
    return made


class Tangle:
    """What one process does."""

    def __init__(self, store: str, seed: int, turns: int, me: int, of: int) -> None:
        self.rng, self.turns, self.me, self.of = random.Random(f"{seed} {me}"), turns, me, of
        self.bench = Bench(PostgresStore(store))
        self.claimed: list[Claimed] = []
        self.waiting: list[int] = []
        self.sent: list[int] = []
        self.number = 0

    async def run(self) -> dict[str, Any]:
        bench, rng = self.bench, self.rng
        await bench.store.open(bench.now_ms)
        self.budgets = {each.budget.name: each for each in await bench.store.budgets(bench.now_ms)}
        for _ in range(self.turns):
            await self.turn(
                settle=[self.ended(each) for each in self.some_claimed()],
                submit=[self.request() for _ in range(rng.choice([0, 0, 1, 3, 6]))],
                cancel=rng.sample(self.waiting, min(len(self.waiting), rng.choice([0, 0, 1, 2]))),
            )
            if rng.random() < 0.2:
                await self.change()
        while self.claimed:
            await self.turn(0, settle=[self.posted(each) for each in self.take(len(self.claimed))])
        await bench.store.aclose()
        return {"sent": self.sent}

    async def turn(self, slots: int | None = None, **work: Any) -> None:
        result = await self.bench.turn(
            self.rng.choice([1, 4, 9]) if slots is None else slots, **work
        )
        self.waiting = [each for each in self.waiting if each not in work.get("cancel", ())]
        self.waiting += [each.id for each in result.submitted]
        self.sent += [each.request_id for each in result.claimed]
        self.claimed += result.claimed
        self.look()

    def look(self) -> None:
        for status in self.bench.store.latest():
            for cap in status.caps:
                if cap.limit is not None and cap.posted + cap.reserved > cap.limit:
                    raise AssertionError(f"OVERSPENT {status}")

    def take(self, count: int) -> list[Claimed]:
        self.rng.shuffle(self.claimed)
        taken, self.claimed = self.claimed[:count], self.claimed[count:]
        return taken

    def some_claimed(self) -> list[Claimed]:
        return self.take(self.rng.randrange(len(self.claimed) + 1))

    def ended(self, claimed: Claimed) -> Any:
        outcome = self.rng.choice([Outcome.POST, Outcome.POST, Outcome.VOID, Outcome.SUSPEND])
        if outcome is Outcome.POST:
            return self.posted(claimed)
        is_again = outcome is Outcome.VOID and self.rng.random() < 0.3
        return end(claimed, outcome, QUEUED if is_again else FAILED)

    def posted(self, claimed: Claimed) -> Any:
        """No more than was reserved."""
        said = post(claimed, self.rng.randrange(min(4, claimed.ceiling_nusd)))
        said.tokens = min(3, claimed.ceiling_tokens)
        return said

    def request(self) -> Any:
        """Names several budgets, in any order, each with all that is above it."""
        named = self.rng.sample(sorted(self.budgets), self.rng.choice([1, 1, 2, 3]))
        ids: list[int] = []
        for name in named:
            while name is not None:
                status = self.budgets[name]
                ids.append(status.id)
                name = status.budget.parent
        ids = list(dict.fromkeys(ids))
        self.rng.shuffle(ids)
        self.number += 1
        made = new(ids, self.rng.randrange(1, 40), key=f"{self.me}-{self.number}",
                   priority=self.rng.choice([0, 10]))  # fmt: skip
        made.lane = made.lane._replace(is_shared=self.rng.random() < 0.5)
        return made

    async def change(self) -> None:
        """Raise some, in any order, or pause one and go on."""
        rng, store, now_ms = self.rng, self.bench.store, self.bench.now_ms
        if rng.random() < 0.3:
            name = rng.choice(sorted(self.budgets))
            await store.pause(name, True, now_ms)
            await store.pause(name, False, now_ms)
            return
        mine = sorted(self.budgets)[self.me :: self.of]
        found = {each.budget.name: each for each in await store.budgets(now_ms)}
        await store.define(
            [raised(found[name].budget, rng) for name in rng.sample(mine, min(2, len(mine)))],
            now_ms,
        )


def raised(budget: Budget, rng: random.Random) -> Budget:
    """The same with more, or without a limit."""
    more = rng.choice([1.1, 1.5, 2])
    parts = [
        f"${cap.limit * more / 1e9:.9f}" if cap.unit == "usd" else f"{int(cap.limit * more)} tokens/day"
        for cap in budget.caps if cap.limit is not None
    ]  # fmt: skip
    return Budget(budget.name, ", ".join(parts) or None, parent=budget.parent)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Tangle(**json.loads(sys.argv[1])).run())))
