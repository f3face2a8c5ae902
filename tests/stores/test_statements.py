"""How many statements a turn takes: as many for a thousand requests as for a few."""

from __future__ import annotations

from collections import Counter

import pytest

from scheduler.budget import Budget
from scheduler.stores.base import Outcome
from scheduler.stores.sql.connection import SqliteConnection
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import FAILED, QUEUED, T0, Bench, end, new, post

SIZES = (1, 64, 1_000)
MOST = 40  # of one turn, whatever it does


@pytest.fixture
def counted(monkeypatch):
    """Statements by their beginning; a bulk write is one."""
    counts: Counter[str] = Counter()

    def counting(name):
        method = getattr(SqliteConnection, name)

        def run(self, what, *values):
            if name != "write_many" or values[0]:
                text = what if isinstance(what, str) else self.dialect.bulk(what)
                counts[text[:90]] += 1
            return method(self, what, *values)

        monkeypatch.setattr(SqliteConnection, name, run)

    for name in ("read", "write", "write_many"):
        counting(name)
    return counts


class Work:
    """A store with budgets, and turns of so many requests on it."""

    def __init__(self, path, size, budgets, counted):
        self.bench = Bench(SqliteStore(path))
        self.size, self.number, self.counted = size, budgets, counted
        self.most = {}

    async def __aenter__(self):
        await self.bench.store.open(T0)
        await self.bench.define(*[Budget(f"b{n}", "$1") for n in range(self.number)])
        self.ids = list(self.bench.ids.values())
        await self.bench.turn(0)  # registers
        return self

    async def __aexit__(self, *_):
        await self.bench.store.aclose()

    def requests(self, prefix, **options):
        return [
            new([self.ids[n % self.number]], 10, key=f"{prefix}{n}", **options)
            for n in range(self.size)
        ]

    async def turn(self, name, slots=None, **options):
        self.counted.clear()
        result = await self.bench.turn(slots, **options)
        self.most[name] = dict(self.counted)
        return result


async def all_kinds(work):
    """A turn of every kind, each with as many requests."""
    size, bench = work.size, work.bench
    await work.turn("submit", submit=work.requests("a"))
    claimed = (await work.turn("claim", slots=size)).claimed
    assert len(claimed) == size
    await work.turn("settle", settle=[post(each, 7) for each in claimed])
    again = await work.turn("submit known", submit=work.requests("a"))
    assert all(each.finished for each in again.submitted)

    waiting = await work.turn("submit and claim", slots=size, submit=work.requests("b"))
    assert len(waiting.claimed) == size
    settle = [
        end(each, Outcome.VOID, QUEUED, not_before_ms=bench.now_ms + 50) for each in waiting.claimed
    ]
    done = await work.turn("settle, submit, claim", slots=size, settle=settle,
                           submit=work.requests("c"))  # fmt: skip
    assert len(done.claimed) == size
    bench.now_ms += 50
    assert len((await work.turn("promote", slots=size)).claimed) == size
    await work.turn("fail", settle=[end(each, Outcome.SUSPEND, FAILED) for each in done.claimed])

    queued = await bench.turn(None, submit=work.requests("d"))
    ids = [each.id for each in queued.submitted]
    changed = work.requests("d", priority=3)
    await work.turn("amend", amend=list(zip(ids, changed, strict=True)))
    await work.turn("lend", lend=[(each, True) for each in ids])
    await work.turn("lend no more", lend=[(each, False) for each in ids])
    assert all((await work.turn("cancel", cancel=ids)).cancelled)
    await work.turn("submit again", submit=work.requests("d"))

    await bench.turn(None, submit=work.requests("e", expires_at_ms=bench.now_ms + 10))
    bench.now_ms += 10
    assert len((await work.turn("expire")).expired) == size
    refused = await work.turn(
        "refuse", slots=size,
        submit=[new([each], 10**10, may_wait=False) for each in work.ids[:1] for _ in range(size)],
    )  # fmt: skip
    assert len(refused.refused) == size


@pytest.mark.parametrize("budgets", ["one budget", "a budget each"])
async def test_a_turn_takes_as_many_statements_however_many_requests_are_in_it(
    tmp_path, counted, budgets
):
    found = {}
    for size in SIZES:
        number = 1 if budgets == "one budget" else size
        async with Work(tmp_path / f"{size}.db", size, number, counted) as work:
            await all_kinds(work)
            assert await work.bench.is_sound()
        found[size] = work.most
    for name in found[1]:
        few, *more = (sum(found[size][name].values()) for size in SIZES)
        assert few <= MOST, found[1][name]
        # A page more of a lane is one read more, for all lanes together.
        assert max(more) <= few + 4, (name, found[1][name], found[1_000][name])


async def test_budgets_that_are_as_they_were_are_one_read(tmp_path, counted):
    bench = Bench(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    budgets = [Budget(f"b{n}", "$1") for n in range(3_000)]
    await bench.store.define(budgets, T0)
    counted.clear()

    await bench.store.define(budgets, T0 + 1)

    assert sum(counted.values()) == 1, counted
    await bench.store.aclose()


async def test_defining_many_budgets_takes_as_many_statements_as_defining_one(tmp_path, counted):
    bench = Bench(SqliteStore(tmp_path / "s.db"))
    await bench.store.open(T0)
    counts = []
    for number in (1, 500):
        counted.clear()
        budgets = [Budget(f"{number}-{n}", "$1, 50 requests/hour") for n in range(number)]
        await bench.store.define(budgets, T0)
        await bench.store.define(
            [Budget(each.name, "$2, 70 requests/hour") for each in budgets], T0
        )
        await bench.store.budgets(T0)
        counts.append(sum(counted.values()))
    await bench.store.aclose()

    assert counts[0] >= counts[1]
