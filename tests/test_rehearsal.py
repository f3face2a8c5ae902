"""When what waits will be done: dates against real runs of the whole scheduler."""

import asyncio
import random

import pytest

from benchmarks.finish import START_MS, Terms, cost, lengths, scene, truth
from scheduler import Budget, FunctionProvider, Request, Scheduler
from scheduler.answer import Answer
from scheduler.limits import Limits
from scheduler.rehearsal import Ask, Desk, Group, Lesson, Lore, Purse, Scene, finish, finish_once
from scheduler.rehearsal.remaining import lore_of, remaining
from scheduler.rehearsal.scale import shrink
from scheduler.request import Quote
from scheduler.stats import CapStatus, Took
from scheduler.testing import VirtualClock, _JumpingSelector, run

HOUR = 3_600_000
NOON = START_MS + 12 * HOUR
DAY = 24 * HOUR


def purse(spec, posted=0, now_ms=NOON, **options):
    caps = tuple(
        CapStatus(cap, cap.limit, posted, 0, 0, cap.window.slot_start_ms(now_ms), None)
        for cap in Budget("b", spec).caps
    )
    return Purse("b", caps, **options)


def waiting(count, *purses, ms=10_000, ceiling=2_000, nusd=1_000, at_once=8, limits=None):
    """So many requests, each of which takes ten seconds and costs 1,000 nano-dollars."""
    group = Group("p", "m", 10, ("b",) if purses else (), count, [Ask(ceiling, 10, nusd)])
    desk = Desk("p", at_once, limits or Limits())
    return Scene(NOON, [group], purses, {"p": desk}, Lore({"m": [Lesson(nusd, 10, ms, nusd)] * 50}))


def near(at_ms, wanted_ms, share=0.1, now_ms=NOON):
    return abs(at_ms - wanted_ms) <= share * (wanted_ms - now_ms)


# With 100 requests all of it is played; with 100,000 a smaller world.
@pytest.mark.parametrize("count", [100, 10_000, 1_000_000])
def test_places_and_the_time_of_calls_decide_where_nothing_else_does(count):
    told = finish(waiting(count))

    assert near(told.likely_ms, NOON + count * 10_000 // 8)
    assert told.early_ms <= told.likely_ms <= told.late_ms


@pytest.mark.parametrize("count", [300, 30_000])
def test_a_rate_limit_decides_where_it_is_slower(count):
    told = finish(waiting(count, limits=Limits(requests_per_minute=10)))

    assert near(told.likely_ms, NOON + count * 60_000 // 10)


@pytest.mark.parametrize(
    ("spec", "posted", "days"),
    [
        ("$0.01/day", 0, 1.5),  # 10,000 today, 10,000 tomorrow, 5,000 the day after
        ("$0.01/day", 10_000_000, 2.5),
        ("$0.0024/day", 0, 9.5),
        ("$0.00024/day", 0, 103.5),
        ("$0.001/hour", 0, 1.0),
        ("$0.01/day paced", 0, 2.0),
        ("$0.01/10h", 0, 0.83),
    ],
)
def test_windows_and_paces_decide_where_money_lacks(spec, posted, days):
    scene_ = waiting(25_000, purse(spec, posted), ms=100)

    at_ms = finish_once(scene_, 0.5, random.Random(1))

    assert near(at_ms, NOON + round(days * DAY), 0.06)


def test_a_total_is_done_or_needs_a_raise():
    assert finish(waiting(1_000, purse("$0.0011"))).likely_ms is not None
    assert finish(waiting(1_000, purse("$0.0009"))).likely_ms is None
    assert finish(waiting(1_000, purse("$0.0011", posted=300_000))).likely_ms is None


def test_a_paused_budget_has_it_never_done():
    assert finish(waiting(10, purse("$1", paused=True))).likely_ms is None


def test_money_that_calls_under_way_hold_slows_them_down_in_the_small_world_as_well():
    # Two ceilings fit into the budget at once, so two places are used of 64.
    told = finish(waiting(20_000, purse("$1/day"), ceiling=400_000_000, at_once=64))

    assert near(told.likely_ms, NOON + 20_000 * 10_000 // 2, 0.15)


def test_who_is_urgent_and_who_shares_the_money_is_in_it():
    one = Group("p", "m", 0, ("a",), 5_000, [Ask(2_000, 10, 1_000)])
    two = Group("p", "m", 20, ("b",), 5_000, [Ask(2_000, 10, 1_000)])
    lore = Lore({"m": [Lesson(1_000, 10, 1_000, 1_000)] * 50})
    a, b = (Purse(name, purse("$0.006/day").caps) for name in "ab")
    apart = Scene(NOON, [one, two], [a, b], {}, lore)
    together = Scene(NOON, [one, Group("p", "m", 20, ("a",), 5_000, two.asks)], [a], {}, lore)

    assert finish(apart).likely_ms < NOON + HOUR
    assert near(finish(together).likely_ms, NOON + DAY // 2)


def test_nothing_that_waits_is_done_now():
    told = finish(Scene(NOON, []))

    assert (told.early_ms, told.likely_ms, told.late_ms) == (NOON, NOON, NOON)


def test_it_costs_the_same_however_much_waits():
    small, large = (
        shrink(waiting(count, purse("$0.01/day")), 400, 0.5, random.Random(1))
        for count in (25_000, 2_500_000)
    )

    assert len(large.plays) <= 600
    assert len(small.plays) <= 600


@pytest.mark.parametrize("spec", ["$0.000003/year", "$0.000003/month"])
def test_windows_that_take_years_are_played_in_no_more_steps(spec, monkeypatch):
    """No clock ticks meanwhile, and none stands still."""
    steps = []
    select = _JumpingSelector.select
    monkeypatch.setattr(
        _JumpingSelector, "select", lambda self, s=None: steps.append(s) or select(self, s)
    )

    told = finish(waiting(15, purse(spec)), levels=(0.5,))

    assert told.likely_ms is None or told.likely_ms > NOON + 60 * DAY
    assert len(steps) < 5_000


def test_the_same_seed_tells_the_same():
    scene_ = waiting(5_000, purse("$0.002/day"))

    assert finish(scene_, seed=3) == finish(scene_, seed=3)


@pytest.mark.parametrize("risk", ["none", "default"])
@pytest.mark.parametrize(("window", "share"), [("/hour", 0.2), ("/2h", 0.3), ("/day paced", 0.6)])
def test_a_real_run_takes_as_long(risk, window, share):
    rng = random.Random(f"{risk}{window}")
    make = lengths("lognormal", rng)
    queue = [make(at, 1) for at in range(1_000)]
    terms = Terms("", share, window, risk)

    real_s = run(truth(queue, terms, NOON))
    told = finish(scene(queue, queue, terms, NOON))

    assert near(told.likely_ms, NOON + round(1000 * real_s))


def test_a_lore_corrects_for_what_is_known_beforehand():
    # Known were prompts that cost 1,000 and 3,000, answers 500 more; asked is one of 5,000.
    lore = Lore({"m": [Lesson(1_500, 10, 1, 1_000), Lesson(3_500, 10, 1, 3_000)] * 20})

    drawn = lore.of("m").draw(
        [Ask(9_000, 99, 5_000)] * 50, 1, lore.of("m").shift(0.5, 9, None), random.Random(1)
    )

    assert {each.nusd for each in drawn} == {5_500}


def test_without_its_own_calls_a_model_is_judged_by_all():
    lore = Lore({"m": [Lesson(1_500, 10, 7_000, 1_000)] * 20})

    assert lore.of("other").lessons == lore.of("m").lessons
    assert Lore().of("m").is_guess


def test_a_scheduler_says_when_what_waits_will_be_done():
    async def main():
        async def call(request):
            await asyncio.sleep(10)
            return Answer(None, cost_nusd=1_000_000)

        provider = FunctionProvider("p", call, quote=Quote(2_000_000, 1_000_000))
        budget = Budget("b", "$0.1/hour")
        async with Scheduler(
            budgets=budget, providers=provider, clock=VirtualClock(), concurrency=10
        ) as s:
            futures = [s.submit(Request({"model": "m"}, budget="b")) for _ in range(260)]
            await asyncio.sleep(600)
            waits = s.stats()
            assert sum(waits.parked.values()) == 161
            # Not by `forecast`, which uses a thread: virtual time would run ahead of it.
            scene_ = await remaining(s.store, s._clock.now_ms(), {"p": 10})
            await asyncio.gather(*futures)
            return scene_, s._clock.now_ms()

    scene_, really_ms = run(main())
    told = finish(scene_)

    assert told.calls == 99
    assert told.requests == 161
    assert near(told.likely_ms, really_ms, 0.05, START_MS)


async def test_a_scheduler_forecasts_while_it_works():
    async def call(request):
        return Answer(None, cost_nusd=1_000_000)

    provider = FunctionProvider("p", call, quote=Quote(2_000_000, 1_000_000))
    async with Scheduler(budgets=Budget("b", "$0.1/year"), providers=provider) as s:
        for _ in range(150):
            s.submit(Request({"model": "m"}, budget="b"))
        while sum(s.stats().parked.values()) != 51 or s.stats().running:
            await asyncio.sleep(0.01)
        told = await s.forecast()
        reset_ms = s.stats().resumes_at_ms

    assert told.requests == 51
    assert reset_ms <= told.likely_ms < reset_ms + HOUR


def test_lessons_come_newest_first_and_are_told_oldest_first():
    lore = lore_of([Took("m", 2, 1, 1), Took("m", 1, 1, 1)])

    assert [each.nusd for each in lore.by_model["m"]] == [1, 2]


def test_the_truth_of_the_benchmark_is_what_it_says():
    queue = [(100, 80)] * 10  # two seconds and 5 ms each

    assert run(truth(queue, Terms("", at_once=5), NOON)) == pytest.approx(2 * 2.005)
    assert cost(queue[0]) == 100 * 2_500 + 80 * 10_000
