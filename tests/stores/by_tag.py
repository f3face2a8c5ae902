"""What the audit says of sums by tag, in stores on a database. To inherit."""

from __future__ import annotations

import pytest

from scheduler.stores import tagged
from scheduler.stores.base import Outcome
from scheduler.stores.course import QUARTER_MS
from tests.stores.conformance import FAILED, Bench, end, new, post

REQUESTS, USD, TOKENS = "requests", "usd", "tokens"


async def off(bench):
    """What the audit finds: whose, in what, stored, recomputed."""
    found = (await bench.store.audit(bench.now_ms)).discrepancies
    return [(each.budget, each.unit.value, each.stored, each.recomputed) for each in found]


@pytest.mark.anyio
class ByTag:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    async def by_hand(self, store, sql):
        await store._write(lambda db: db.write(sql))

    @pytest.fixture
    async def bench(self, store):
        return Bench(store)

    async def spend(self, bench, *tags, nusd=5):
        result = await bench.submit(*[new((), 30, tags=each) for each in tags])
        await bench.settle(*[post(each, nusd) for each in result.claimed])
        return result.claimed

    async def test_what_was_only_added_and_corrected_is_sound(self, bench, monkeypatch):
        monkeypatch.setattr(tagged, "MOST_VALUES", 2)
        monkeypatch.setattr(tagged, "MOST_TAGS", 2)
        await self.spend(bench, *[{"user": each, "page": 7} for each in ("ann", "bob", "eve")])
        await self.spend(bench, {"user": "eve", "third": "x"}, {}, {"user": "ann"})
        result = await bench.submit(*[new((), 30, tags={"user": "eve"}) for _ in range(2)])
        one, two = result.claimed
        await bench.settle(end(one, Outcome.VOID, FAILED), end(two, Outcome.SUSPEND, FAILED))
        (unknown,) = await bench.store.suspended()
        assumed = end(two, Outcome.POST, FAILED, nusd=30, tokens=30, is_assumed=True)
        await bench.store.resolve([assumed], bench.now_ms)
        assert await off(bench) == []
        await bench.settle(post(two, 7))  # its own answer after all
        bench.now_ms += QUARTER_MS
        await self.spend(bench, {"user": "eve"})

        assert unknown.request_id == two.request_id
        assert await off(bench) == []

    async def test_a_sum_that_was_changed_is_told(self, bench):
        await self.spend(bench, {"user": "ann"}, {"user": "bob"})
        await self.by_hand(
            bench.store, "UPDATE spent_of_tags SET nusd = nusd + 3 WHERE value = 'ann'"
        )

        assert await off(bench) == [("(tag user=ann)", USD, 8, 5)]

    async def test_so_is_one_that_is_gone_or_that_nothing_explains(self, bench):
        await self.spend(bench, {"user": "ann"}, {"user": "bob"})
        await self.by_hand(
            bench.store, "UPDATE spent_of_tags SET value = 'eve' WHERE value = 'bob'"
        )

        assert await off(bench) == [
            ("(tag user=bob)", REQUESTS, 0, 1), ("(tag user=bob)", USD, 0, 5),
            ("(tag user=bob)", TOKENS, 0, 3), ("(tag user=eve)", REQUESTS, 1, 0),
            ("(tag user=eve)", USD, 5, 0), ("(tag user=eve)", TOKENS, 3, 0),
        ]  # fmt: skip

    async def test_what_was_pruned_explains_as_much_as_it_cost(self, bench):
        await self.spend(bench, {"user": "ann"}, {"user": "bob"})
        bench.now_ms += 1_000
        await self.spend(bench, {"user": "ann"})
        assert await bench.store.prune(bench.now_ms, bench.now_ms, undelivered=True)
        assert await off(bench) == []  # two attempts, of ten in all, whose tags nobody knows now

        await self.by_hand(bench.store, "UPDATE spent_of_tags SET nusd = 4 WHERE value = 'ann'")
        assert await off(bench) == [("(tag user=ann)", USD, 4, 5)]
        await self.by_hand(bench.store, "UPDATE spent_of_tags SET nusd = 16 WHERE value = 'ann'")
        assert await off(bench) == [("(tag user=ann)", USD, 16, 15)]

    async def test_what_was_spent_before_there_were_such_sums_is_no_fault(self, bench):
        await self.spend(bench, {"user": "ann"})
        await self.by_hand(bench.store, "DELETE FROM spent_of_tags")
        await self.by_hand(bench.store, "UPDATE reservations SET tags = NULL")

        assert await off(bench) == []
        await self.spend(bench, {"user": "ann"})
        assert await off(bench) == []
