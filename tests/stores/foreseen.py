"""What every store promises of budgets that take a risk, as tests to inherit."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget
from scheduler.foresight import PRESETS
from scheduler.request import RequestState
from scheduler.stores.base import Outcome
from tests.stores.conformance import FAILED, Bench, end, new, post

WARM = PRESETS["default"].warm


async def warmed(bench: Bench, limit: str, *, calls: int = WARM + 10, cost: int = 10) -> int:
    """A budget named team, of whose calls some have ended; returns its id."""
    await bench.define(Budget("team", f"{limit} risk default"))
    team = bench.ids["team"]
    for n in range(calls):
        result = await bench.submit(new([team], 100), slots=1)
        bench.now_ms += 1000 + n
        await bench.settle(post(result.claimed[0], cost), slots=0)
    return team


@pytest.mark.anyio
class Foreseen:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    @pytest.fixture
    async def bench(self, store) -> Bench:
        return Bench(store)

    async def many(self, bench, team, count=40, slots=40):
        return (await bench.submit(*[new([team], 100) for _ in range(count)], slots=slots)).claimed

    async def test_what_is_kept_for_calls_under_way_is_what_they_are_expected_to_cost(self, bench):
        # 600 are spent; of 2,000 left 20 ceilings would fit.
        team = await warmed(bench, "$0.0000026")

        claimed = await self.many(bench, team)

        assert 25 < len(claimed) <= 40
        posted, reserved = await bench.balance()
        assert (posted, reserved) == (600, 100 * len(claimed))  # in the books are ceilings
        assert await bench.is_sound()

    async def test_what_it_brings_is_told(self, bench):
        team = await warmed(bench, "$0.0000026")
        claimed = await self.many(bench, team)

        (status,) = await bench.store.budgets(bench.now_ms)

        (cap,) = status.caps
        assert status.budget.risk == "default"
        assert (cap.calls, cap.more_calls) == (len(claimed), len(claimed) - 20)
        assert cap.kept is not None
        assert cap.kept <= 2000
        assert cap.available == 2600 - 600 - cap.kept

    async def test_without_a_risk_ceilings_count_whatever_is_known(self, bench):
        await warmed(bench, "$0.0000026")
        await bench.define(Budget("team", "$0.0000026 risk none"))

        claimed = await self.many(bench, bench.ids["team"])

        assert len(claimed) == 20
        (status,) = await bench.store.budgets(bench.now_ms)
        assert (status.caps[0].kept, status.caps[0].more_calls) == (None, 0)

    async def test_until_enough_calls_have_ended_a_risk_changes_nothing(self, bench):
        team = await warmed(bench, "$0.0000025", calls=WARM - 1)

        claimed = await self.many(bench, team)

        assert len(claimed) == (2500 - 10 * (WARM - 1)) // 100

    async def test_what_nobody_knows_the_end_of_counts_in_full(self, bench):
        team = await warmed(bench, "$0.0000026")
        claimed = await self.many(bench, team, count=15)
        bench.now_ms += 500
        await bench.settle(*[end(each, Outcome.SUSPEND, FAILED) for each in claimed], slots=0)

        more = await self.many(bench, team)

        assert await bench.balance() == (600, 1500 + 100 * len(more))
        assert len(more) <= 15  # of 500 left; calls may end like that, as one has seen

    async def test_no_more_is_promised_than_so_many_times_what_is_left(self, bench):
        team = await warmed(bench, "$0.00000075", cost=1)  # 60 are spent

        claimed = await self.many(bench, team, count=200, slots=200)

        assert len(claimed) * 100 <= PRESETS["default"].stretch * (750 - 60)

    async def test_who_waits_goes_on_when_calls_end_and_none_is_lost(self, bench):
        team = await warmed(bench, "$0.0000040")
        running = await self.many(bench, team, count=100, slots=30)
        ended = 0
        while running and ended < 100:
            bench.now_ms += 1000
            result = await bench.settle(post(running[0], 10), slots=1)
            ended += 1
            running = [*running[1:], *result.claimed]

        assert ended == 100  # at ten each; one ceiling more always fits
        assert (await bench.store.counts()).waiting == 0
        assert await bench.is_sound()

    async def test_what_does_not_count_in_this_window_is_not_kept(self, bench):
        team = await warmed(bench, "$0.0000026/day")
        before = await self.many(bench, team)
        bench.now_ms += 86_400_000

        claimed = await self.many(bench, team, slots=60)

        assert before
        assert len(claimed) >= 26
        (status,) = await bench.store.budgets(bench.now_ms)
        assert status.caps[0].reserved == 100 * len(claimed)
        assert status.caps[0].calls >= len(claimed)

    async def test_a_call_that_was_under_way_before_counts_when_a_risk_is_taken(self, bench):
        await warmed(bench, "$0.0000026")
        await bench.define(Budget("team", "$0.0000026 risk none"))
        team = bench.ids["team"]
        strict = await self.many(bench, team)
        assert len(strict) == 20

        await bench.define(Budget("team", "$0.0000026 risk default"))
        more = (await bench.turn(40)).claimed

        assert len(more) > 5

    async def test_voided_calls_teach_nothing(self, bench):
        await bench.define(Budget("team", "$0.0000015 risk default"))
        team = bench.ids["team"]
        for _ in range(WARM + 10):
            claimed = (await bench.submit(new([team], 100), slots=1)).claimed
            bench.now_ms += 1000
            await bench.settle(end(claimed[0], Outcome.VOID, RequestState.CANCELLED), slots=0)

        assert len(await self.many(bench, team)) == 15
