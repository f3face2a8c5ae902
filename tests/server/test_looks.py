"""What a look at the page reads does not grow with what there is, or ever was."""

from __future__ import annotations

from functools import partial

import pytest

from scheduler.budget import Budget
from scheduler.rehearsal.remaining import remaining
from scheduler.request import RequestState
from scheduler.server.page import Desk
from scheduler.stores.base import Outcome
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import DAY_MS, EXPIRED, FAILED, T0, Bench, end, new, post
from tests.stores.test_growing import steps

pytestmark = pytest.mark.anyio
FEW, MANY = 300, 3_000
PAGE = 500  # requests of one turn
SAME = 1.1  # as much: trees are somewhat deeper
CHOICES = (
    "running,queued,parked", "parked", "running", "failed", "succeeded", "cancelled,expired", "",
)  # fmt: skip


class Page:
    """A page of a file in which so many requests are."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.desk = Desk(bench.store, "s.db", now_ms=lambda: bench.now_ms)
        self.desk._forecast.look = lambda waiting: None  # it reads by itself

    async def done(self, count, *, state=None):
        """So many that have ended, all in one quarter of an hour."""
        team = self.bench.ids["team"]
        for start in range(0, count, PAGE):
            many = min(PAGE, count - start)
            wanted = [new([team], 1, tags={"user": f"u{n % 3}"}) for n in range(many)]
            claimed = (await self.bench.submit(*wanted, slots=many)).claimed
            self.bench.now_ms += 1
            if state is None:
                ends = [post(each, 1) for each in claimed]
            else:
                ends = [end(each, Outcome.VOID, state) for each in claimed]
            await self.bench.settle(*ends, slots=None)

    async def wait(self, count):
        """So many that wait: one of five for a budget with which nothing goes."""
        empty, team = self.bench.ids["empty"], self.bench.ids["team"]
        for start in range(0, count, PAGE):
            await self.bench.submit(
                *[new([empty if n % 5 == 0 else team], 5) for n in range(min(PAGE, count - start))],
                slots=None,
            )  # fmt: skip
        await self.bench.turn(0)

    async def looks(self):
        """What each look reads, in steps of SQLite's machine."""
        desk = self.desk
        team = self.bench.ids["team"]
        last = (await self.bench.store.queue(list(RequestState), T0, limit=10_000))[-1].id
        wanted = {
            "picture": desk.picture,
            "burn": lambda: desk.burn(team, 0),
            "unknown": desk.unknown,
            "acts": desk.acts,
            "request": lambda: desk.request(last),
            "rehearsal": lambda: remaining(self.bench.store, self.bench.now_ms),
        }
        for choice in CHOICES:
            states = [RequestState(word) for word in choice.split(",") if word]
            states = states or list(RequestState)
            for after in (0, last // 2):
                wanted[f"{choice} after {after and 'half'}"] = lambda s=states, a=after: (
                    desk.requests(s, a)
                )

        async def count(look):
            return await steps(self.bench, lambda _: look())

        return {name: await count(look) for name, look in wanted.items()}


@pytest.fixture
async def pages(tmp_path, monkeypatch):
    """Two pages, of few and of many."""
    monkeypatch.setattr("scheduler.rehearsal.remaining.MOST_CALLS", 50)
    made = []
    for name in ("few", "many"):
        bench = Bench(SqliteStore(tmp_path / f"{name}.db"))
        await bench.store.open(T0)
        bench.store.queued = partial(bench.store.queued, 100)  # of those that wait
        await bench.define(Budget("team", "$1/day"), Budget("empty", "$0"))
        made.append(Page(bench))
    yield made
    for page in made:
        await page.bench.store.aclose()


async def grown(few, many):
    """Looks that read more of many, and how much."""
    few, many = await few.looks(), await many.looks()
    assert min(few.values()) > 0
    return {name: (few[name], many[name]) for name in few if many[name] > SAME * few[name] + 100}


async def test_with_what_has_ended(pages):
    few, many = pages
    for page, count in ((few, FEW), (many, MANY)):
        await page.done(count)
        await page.done(60, state=FAILED)
        await page.done(60, state=EXPIRED)  # all that failed are behind all that did not

    assert await grown(few, many) == {}


async def test_with_what_ended_in_the_quarter_of_an_hour_with_which_the_last_day_begins(pages):
    few, many = pages
    for page, count in ((few, FEW), (many, MANY)):
        page.bench.now_ms = T0 + 10
        await page.done(count)
        page.bench.now_ms = T0 + DAY_MS + 5

    assert await grown(few, many) == {}


async def test_with_what_failed(pages):
    few, many = pages
    for page, count in ((few, FEW), (many, MANY)):
        await page.done(count, state=FAILED)
        await page.done(60)

    assert await grown(few, many) == {}


async def test_with_what_was_voided_last(pages):
    few, many = pages
    for page, count in ((few, FEW), (many, MANY)):
        await page.done(60)
        await page.done(count, state=FAILED)

    assert await grown(few, many) == {}


async def test_with_what_waits(pages):
    few, many = pages
    for page, count in ((few, PAGE), (many, MANY)):
        await page.done(FEW)
        await page.wait(count)

    assert await grown(few, many) == {}
