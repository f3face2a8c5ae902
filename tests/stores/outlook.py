"""What every store tells of those who wait, of calls that went, and of budgets that burn, as tests to inherit."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.ledger.burning import Burning
from tests.stores.conformance import Bench, end, new, post

MINUTE = 60_000


@pytest.mark.anyio
class Outlook:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    @pytest.fixture
    async def bench(self, store) -> Bench:
        return Bench(store)

    async def test_who_waits_and_who_runs_is_told_by_lane(self, bench):
        await bench.define(Budget("team", "$0.000001"))
        team = bench.ids["team"]
        await bench.submit(*[new([team], 300) for _ in range(8)], slots=2)
        await bench.submit(*[new([team], 10, priority=0) for _ in range(3)], slots=0)

        found = {each.priority: each for each in await bench.store.queued()}

        assert {at: each.count for at, each in found.items()} == {0: 3, 10: 8}
        assert found[0].budgets == (team,)
        assert len(found[10].asks) == 6
        assert {each[0] for each in found[10].asks} == {300}
        assert {each[0] for each in found[0].asks} == {10}

    async def test_of_many_only_some_are_shown_from_all_over_the_lane(self, bench):
        await bench.define(Budget("team", "$1"))
        await bench.submit(*[new([bench.ids["team"]], n + 1) for n in range(100)], slots=0)

        (lane,) = await bench.store.queued(10)

        assert lane.count == 100
        assert 8 <= len(lane.asks) <= 12
        assert min(each[0] for each in lane.asks) <= 10
        assert max(each[0] for each in lane.asks) >= 80

    async def test_how_calls_went_is_told_newest_first(self, bench):
        await bench.define(Budget("team", "$1"))
        result = await bench.submit(*[new([bench.ids["team"]], 100) for _ in range(3)], slots=3)
        for n, claimed in enumerate(result.claimed):
            bench.now_ms += 1_000
            await bench.settle(post(claimed, 10 + n), slots=0)

        found = await bench.store.took()

        assert sorted((each.nusd, each.ms) for each in found) == [
            (10, 1000),
            (11, 2000),
            (12, 3000),
        ]
        assert len(await bench.store.took(1)) == 1

    async def test_what_cost_nothing_and_was_never_sent_is_no_call_that_went(self, bench):
        from scheduler.request import RequestState
        from scheduler.stores.base import Outcome

        await bench.define(Budget("team", "$1"))
        result = await bench.submit(new([bench.ids["team"]], 100), slots=1)
        await bench.settle(end(result.claimed[0], Outcome.VOID, RequestState.FAILED), slots=0)

        assert await bench.store.took() == []

    @pytest.mark.parametrize("window", ["day", "24h"])
    async def test_a_budget_that_burns_is_told_once_in_the_turn_that_settles(self, bench, window):
        await bench.define(Budget("team", f"$0.00001/{window}"))  # 10,000
        team, told = bench.ids["team"], []

        for _ in range(80):  # 1.3 % a minute
            result = await bench.submit(new([team], 130), slots=1)
            bench.now_ms += MINUTE
            ended = await bench.settle(post(result.claimed[0], 130), slots=0)
            told += [each for each in ended.crossings if isinstance(each, Burning)]
            if len(told) == 2:
                break

        assert [(each.budget, each.level) for each in told] == [("team", "page"), ("team", "warn")]

    async def test_a_balance_of_a_rolling_window_says_what_was_posted_when(self, bench):
        await bench.define(Budget("team", "$1/1h"))
        for cost in (20, 30):
            result = await bench.submit(new([bench.ids["team"]], 100), slots=1)
            await bench.settle(post(result.claimed[0], cost), slots=0)
            bench.now_ms += 10 * MINUTE

        (status,) = await bench.store.budgets(bench.now_ms)

        assert [amount for _, amount in status.caps[0].slots] == [20, 30]
        first, second = (at for at, _ in status.caps[0].slots)
        assert second - first == 10 * MINUTE
