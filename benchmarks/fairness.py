"""Three tenants on one budget, with and without fairness: who gets how much, and how long the small one waits.

    python -m benchmarks.fairness

In virtual time, so it is the same each time. A budget of $0.60 a minute, four calls at once. *few* asks once a
minute, *many* a hundred times as often, *dear* as often as *many* what costs ten times as much, each for an
hour. Printed as the table of docs/fairness.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from scheduler import Budget, FunctionProvider, Request, RequestFuture, Scheduler
from scheduler.testing import VirtualClock, run

HOUR_S = 3_600.0
CENTS = {"few": 2, "many": 2, "dear": 20}  # that a request may cost; it costs half
EVERY_S = {"few": 60.0, "many": 0.6, "dear": 0.6}


async def _asked(s: Scheduler, user: str) -> list[tuple[float, RequestFuture]]:
    """One tenant's requests of an hour, and when they were made."""
    loop = asyncio.get_running_loop()
    made = []
    while loop.time() < HOUR_S:
        request = Request({"model": "m", "user": user}, tags={"user": user})
        made.append((loop.time(), s.submit(request)))
        await asyncio.sleep(EVERY_S[user])
    return made


async def simulate(fair_by: str | None) -> tuple[Counter[str], list[float]]:
    """What each spent in that hour, in cents, and how many seconds each request of *few* waited."""
    spent: Counter[str] = Counter()
    began: dict[int, float] = {}

    async def send(request: Request) -> dict[str, str]:
        user = str(request.body["user"])
        spent[user] += CENTS[user] // 2
        began[id(request)] = asyncio.get_running_loop().time()
        await asyncio.sleep(2)
        return {}

    provider = FunctionProvider(
        "bench", send, quote=lambda request: f"${CENTS[request.body['user']] / 100}",
        cost=lambda request, _: f"${CENTS[request.body['user']] / 200}",
    )  # fmt: skip
    async with Scheduler(
        budgets=Budget("default", "$0.60/minute"), providers=provider, concurrency=4,
        clock=VirtualClock(), fair_by=fair_by,
    ) as s:  # fmt: skip
        made = await asyncio.gather(*(_asked(s, user) for user in CENTS))
        total = Counter(spent)
        waited = [began.get(id(each.request), HOUR_S) - at_s for at_s, each in made[0]]
        for _, future in [pair for pairs in made for pair in pairs]:
            future.cancel()
    return total, waited


def rows() -> Iterator[str]:
    """The table, line by line."""
    yield "| | *few* | *many* | *dear* | *few* waited (most) |"
    yield "|---|---|---|---|---|"
    for name, fair_by in (("by age", None), ('`fair_by="user"`', "user")):
        spent, waited = run(simulate(fair_by))
        shares = " | ".join(f"${spent[user] / 100:,.2f}" for user in CENTS)
        mean = sum(waited) / len(waited)
        yield f"| {name} | {shares} | {mean:,.0f} s ({max(waited):,.0f} s) |"


if __name__ == "__main__":
    print("\n".join(rows()))
