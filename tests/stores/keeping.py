"""What every store promises of a share of a budget that is kept for urgent requests. To inherit."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.admission.plan import MAX_BYPASSED
from scheduler.budget import Budget
from scheduler.shortfall import ParkReason, Shortfall
from scheduler.stores.base import TurnResult
from tests.stores.conformance import DAY_MS, T0, Bench, new, post

URGENT, NORMAL, BATCH = 0, 10, 20
HOUR_MS = DAY_MS // 24
MINUTE_MS = HOUR_MS // 60
DAILY = "$0.0000006/day keep 20% for interactive"  # of 600 are 120 kept in the beginning


def lack(result: TurnResult) -> Shortfall:
    """Why the requests of the one lane wait that is told of."""
    (found,) = [each.shortfall for each in result.lanes if each.shortfall is not None]
    return found


def costs(result: TurnResult) -> list[int]:
    return [each.ceiling_nusd for each in result.claimed]


@pytest.mark.anyio
class Keeping:
    """Inherit and provide the fixture ``store``: an open, empty store."""

    @pytest.fixture
    async def bench(self, store) -> Bench:
        return Bench(store)

    async def team(self, bench: Bench, spec: str = DAILY, **options: Any) -> list[int]:
        """A budget, and its id as requests have it."""
        await bench.define(Budget("team", spec, **options))
        return [bench.ids["team"]]

    async def spend(self, bench: Bench, team: list[int], nusd: int) -> None:
        """So much of it, urgently."""
        result = await bench.submit(new(team, nusd, priority=URGENT), slots=1)
        await bench.settle(*[post(each, nusd) for each in result.claimed], slots=0)

    async def test_what_is_kept_is_left_for_the_urgent_alone(self, bench):
        team = await self.team(bench)

        result = await bench.submit(*[new(team, 100, priority=BATCH) for _ in range(6)])
        assert costs(result) == [100] * 4
        urgent = await bench.submit(*[new(team, 100, priority=URGENT) for _ in range(6)])

        assert costs(urgent) == [100] * 2
        assert await bench.balance() == (0, 600)
        assert await bench.is_sound()

    async def test_why_it_waits_for_whom_and_until_when_is_told(self, bench):
        team = await self.team(bench)
        await self.spend(bench, team, 450)

        result = await bench.submit(new(team, 60, priority=BATCH))

        told = lack(result)
        assert (told.reason, told.words, told.missing) == (ParkReason.KEPT, "interactive", 30)
        # A quarter of it has to be released.
        assert T0 + 6 * HOUR_MS <= told.resumes_at_ms <= T0 + 6.5 * HOUR_MS
        assert (await bench.store.counts()).parked_by_reason == {"kept": 1}

    async def test_it_goes_at_the_instant_that_is_told_and_not_before(self, bench):
        team = await self.team(bench)
        await self.spend(bench, team, 450)
        at_ms = lack(await bench.submit(new(team, 60, priority=BATCH))).resumes_at_ms

        bench.now_ms = at_ms - 1
        assert costs(await bench.turn()) == []
        bench.now_ms = at_ms
        assert costs(await bench.turn()) == [60]

    async def test_at_the_end_of_the_day_nothing_is_kept(self, bench):
        team = await self.team(bench)
        await self.spend(bench, team, 500)
        await bench.submit(new(team, 100, priority=BATCH))

        bench.now_ms = T0 + DAY_MS - 20 * MINUTE_MS

        assert costs(await bench.turn()) == [100]

    async def test_with_a_new_day_as_much_is_kept_again(self, bench):
        team = await self.team(bench)
        bench.now_ms = T0 + DAY_MS - MINUTE_MS
        assert costs(await bench.submit(new(team, 600, priority=BATCH))) == [600]

        bench.now_ms = T0 + DAY_MS
        result = await bench.submit(*[new(team, 240, priority=BATCH) for _ in range(3)])

        assert costs(result) == [240] * 2

    @pytest.mark.parametrize("window", ["", "/5h"])
    async def test_where_nobody_knows_the_end_it_is_kept_for_good(self, bench, window):
        team = await self.team(bench, f"$0.0000006{window} keep 20% for interactive")
        await self.spend(bench, team, 400)
        bench.now_ms += HOUR_MS

        told = lack(await bench.submit(new(team, 100, priority=BATCH)))

        assert told.reason is ParkReason.KEPT
        assert told.resumes_at_ms == (None if not window else told.resumes_at_ms)
        assert (told.resumes_at_ms is None) == (not window)
        if window:  # when what was spent has left it
            bench.now_ms = told.resumes_at_ms
            assert costs(await bench.turn()) == [100]

    async def test_each_priority_leaves_what_is_for_all_more_urgent_ones(self, bench):
        team = await self.team(bench, f"{DAILY} and 10% for normal")

        batch = await bench.submit(*[new(team, 60, priority=BATCH) for _ in range(9)])
        normal = await bench.submit(*[new(team, 60, priority=NORMAL) for _ in range(9)])
        urgent = await bench.submit(*[new(team, 60, priority=URGENT) for _ in range(9)])

        assert (costs(batch), costs(normal), costs(urgent)) == ([60] * 7, [60], [60] * 2)

    @pytest.mark.parametrize(("unit", "amount"), [("requests", 10), ("tokens", 1_000)])
    async def test_requests_and_tokens_are_kept_as_dollars_are(self, bench, unit, amount):
        team = await self.team(bench, f"{amount} {unit}/day keep 20% for interactive")

        batch = await bench.submit(*[new(team, 100, priority=BATCH) for _ in range(12)], slots=20)
        urgent = await bench.submit(*[new(team, 100, priority=URGENT) for _ in range(12)], slots=20)

        assert (len(batch.claimed), len(urgent.claimed)) == (8, 2)

    async def test_what_a_call_gives_back_lets_others_go_up_to_what_is_kept(self, bench):
        team = await self.team(bench)
        running = (await bench.submit(new(team, 450, priority=URGENT))).claimed
        told = lack(await bench.submit(*[new(team, 90, priority=BATCH) for _ in range(5)]))
        assert told.reason is ParkReason.HELD_IN_FLIGHT

        result = await bench.settle(post(running[0], 250))

        assert costs(result) == [90] * 2
        assert await bench.balance() == (250, 180)

    async def test_who_waits_for_what_is_kept_does_not_hold_up_the_urgent(self, bench):
        """However many of them, and for however long."""
        team = await self.team(bench, "$0.000006 keep 20% for interactive")
        await self.spend(bench, team, 4_800)
        await bench.submit(new(team, 100, priority=BATCH))
        gone = 0
        for _ in range(3 * MAX_BYPASSED):
            bench.now_ms += MINUTE_MS
            result = await bench.submit(new(team, 10, priority=URGENT))
            gone += len(result.claimed)
            await bench.settle(*[post(each, 10) for each in result.claimed])

        assert gone == 3 * MAX_BYPASSED

    async def test_what_is_kept_from_one_is_left_by_all_less_urgent_ones(self, bench):
        """Small ones go on while a larger one waits, and leave what is kept all the same."""
        team = await self.team(bench)
        await self.spend(bench, team, 400)
        await bench.submit(new(team, 100, priority=BATCH))

        result = await bench.submit(*[new(team, 10, priority=BATCH) for _ in range(20)], slots=30)

        assert costs(result) == [10] * 8

    async def test_a_raise_lets_go_what_leaves_enough_of_the_new_limit(self, bench):
        team = await self.team(bench)
        await self.spend(bench, team, 480)
        await bench.submit(*[new(team, 100, priority=BATCH) for _ in range(9)])

        await bench.define(Budget("team", DAILY).with_limit("$0.000001"))

        assert costs(await bench.turn()) == [100] * 3  # of 1,000 are 200 kept
        (status,) = await bench.store.budgets(bench.now_ms)
        assert status.budget.spec == "$0.000001/day keep 20% for interactive"

    async def test_defined_anew_without_it_nothing_is_kept(self, bench):
        team = await self.team(bench)
        await self.spend(bench, team, 480)
        await bench.submit(new(team, 100, priority=BATCH))

        await bench.define(Budget("team", "$0.0000006/day"))

        assert costs(await bench.turn()) == [100]

    async def test_a_pace_says_how_fast_it_is_released(self, bench):
        team = await self.team(bench, "$0.0000006/day paced 12:00-24:00 keep 20% for interactive")
        bench.now_ms = T0 + 15 * HOUR_MS  # a quarter of the hours that count has passed
        paced = lack(await bench.submit(new(team, 200, priority=BATCH)))
        assert paced.reason is ParkReason.PACED

        bench.now_ms = T0 + 18 * HOUR_MS  # 300 and some are allowed, 60 kept
        result = await bench.submit(new(team, 100, priority=BATCH), new(team, 70, priority=BATCH))

        assert costs(result) == [200]
        assert (await bench.store.counts()).parked_by_reason == {"held_in_flight": 2}

    async def test_with_a_risk_calls_leave_what_is_kept_of_what_is_expected(self, bench):
        """Ceilings of 100, costs of 10: many more go, and none of them takes the share."""
        team = await self.team(bench, "$0.0000020 keep 50% for interactive risk default")
        asked = [new(team, 100, priority=URGENT) for _ in range(60)]
        for each in asked:
            claimed = (await bench.submit(each, slots=1)).claimed
            bench.now_ms += 1_000
            await bench.settle(*[post(one, 10) for one in claimed], slots=0)
        (status,) = await bench.store.budgets(bench.now_ms)
        assert status.caps[0].posted == 600

        result = await bench.submit(*[new(team, 100, priority=BATCH) for _ in range(40)], slots=50)

        went = len(result.claimed)
        assert 4 < went < 40  # more than their ceilings would let go; not all of them
        assert 600 + 10 * went <= 1_000
        urgent = await bench.submit(new(team, 100, priority=URGENT), slots=50)
        assert len(urgent.claimed) == 1
