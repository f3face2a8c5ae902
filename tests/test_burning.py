"""When a budget burns, and when it will be used up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.budget import Budget
from scheduler.estimates.exhaustion import used_up_ms
from scheduler.ledger.account import Account, Tally
from scheduler.ledger.burning import LENGTHS_MS, Burn, Burning

MINUTE = 60_000
HOUR = 60 * MINUTE
T0 = 20_000 * 24 * HOUR  # the beginning of a day, of which that is the number


class Spending:
    """An account, and what is told of it."""

    def __init__(self, spec="1000000 tokens/day", at_ms=T0):
        self.account = Account(1, 1, "b", Budget("b", spec).caps[0])
        self.account.burn = Burn() if Burn.watches(self.account.cap) else None
        self.told = []
        self.at_ms = at_ms
        self.spend(0)

    def spend(self, amount, after_ms=0):
        self.at_ms += after_ms
        self.account.look(self.at_ms)
        slot = self.account.slots.setdefault(self.account.slot_ms, Tally())
        slot.posted += amount
        self.account.posted += amount
        self.told += [each for each in self.account.news(self.at_ms) if isinstance(each, Burning)]

    @property
    def levels(self):
        return [each.level for each in self.told]


def steadily(spending, per_minute, minutes):
    for _ in range(minutes * 4):
        spending.spend(per_minute // 4, MINUTE // 4)


# Of a million: 10 % in 15 minutes is 6,667 a minute, 25 % in 2 hours 2,084.
@pytest.mark.parametrize(
    ("per_minute", "minutes", "levels"),
    [
        (600, 24 * 60 - 1, []),  # 694 a minute is even
        (2_000, 60, []),
        (2_000, 125, ["projected"]),
        (2_200, 125, ["warn", "projected"]),
        (7_500, 10, []),
        (7_500, 16, ["page"]),
        (7_500, 40, ["page", "warn"]),
    ],
)
def test_a_level_is_told_when_so_much_goes_in_its_long_and_its_short_window(
    per_minute, minutes, levels
):
    spending = Spending()

    steadily(spending, per_minute, minutes)

    assert sorted(spending.levels) == sorted(levels)


def test_what_was_spent_between_two_notes_counts_when_it_was():
    spending = Spending()
    spending.spend(99_000, 1_000)  # not noted at once
    spending.spend(2_000, 5 * HOUR)
    spending.spend(2_000, 1_000)
    spending.spend(2_000, MINUTE)

    assert spending.levels == []


def test_what_has_ended_is_not_told():
    spending = Spending()
    spending.spend(0, HOUR)
    spending.spend(99_000, MINUTE)
    spending.spend(2_000, 10 * MINUTE)  # 10.1 % within 15 minutes, and hardly any of it now

    assert spending.levels == []


def test_it_is_told_once_a_window_and_again_in_the_next():
    spending = Spending()
    steadily(spending, 7_500, 120)
    assert spending.levels == ["page", "warn", "projected"]

    spending.spend(0, T0 + 24 * HOUR - spending.at_ms)
    steadily(spending, 7_500, 20)

    assert spending.levels[3:] == ["projected", "page"]


def test_a_rolling_window_is_told_of_again_when_its_length_has_passed():
    spending = Spending("1000000 tokens/24h")
    steadily(spending, 7_500, 20)
    steadily(spending, 0, 60)
    steadily(spending, 7_500, 20)
    assert spending.levels.count("page") == 1

    spending.spend(0, 25 * HOUR)
    steadily(spending, 7_500, 20)

    assert spending.levels.count("page") == 2


def test_it_says_when_it_is_used_up_and_not_if_that_is_after_the_reset():
    spending = Spending()
    steadily(spending, 7_500, 16)
    (page,) = spending.told

    assert page.budget == "b"
    assert 100_000 <= page.spent <= 120_000
    assert (
        abs(page.used_up_at_ms - (spending.at_ms + (1_000_000 - page.posted) / 7_500 * MINUTE))
        < HOUR
    )
    assert page.used_up_at_ms < page.resets_at_ms == T0 + 24 * HOUR

    late = Spending(at_ms=T0 + 23 * HOUR)
    steadily(late, 7_500, 16)
    assert late.told[0].used_up_at_ms is None


@pytest.mark.parametrize(
    ("spec", "is_watched"),
    [
        ("$1/day", True), ("$1/hour", True), ("$1/minute", False), ("$1/30m", False),
        ("$1/5h", True), ("$1", False), ("none/day", False), ("$0/day", False), ("$1/month", True),
    ],
)  # fmt: skip
def test_windows_of_an_hour_and_longer_with_a_limit_are_watched(spec, is_watched):
    assert Burn.watches(Budget("b", spec).caps[0]) is is_watched


@settings(max_examples=50)
@given(
    st.sampled_from(["hour", "day", "week", "24h", "5h"]),
    st.floats(0.0, 1.0),
    st.integers(0, 1_000),
    st.lists(st.integers(4, 40), min_size=1, max_size=8),
)
def test_steady_spending_at_or_below_the_even_rate_is_never_told(window, share, start, steps):
    limit = 10**9
    cap = Budget("b", f"{limit} tokens/{window}").caps[0]
    length_ms = cap.window.span_ms or LENGTHS_MS[cap.window.period]
    # From the beginning of a window on: who begins in its middle has its whole limit left.
    start_ms = T0 // length_ms * length_ms + (
        start * length_ms // 1_000 if cap.window.span_ms else 0
    )
    spending = Spending(f"{limit} tokens/{window}", cap.window.slot_start_ms(start_ms))
    begun_ms, spent, at = spending.at_ms, 0, 0

    while spending.at_ms < begun_ms + 2.2 * length_ms:
        step_ms = length_ms * steps[at % len(steps)] // 10_000 + 1
        due = int(share * limit * (spending.at_ms + step_ms - begun_ms) / length_ms)
        spending.spend(due - spent, step_ms)
        spent, at = due, at + 1

    assert spending.told == []


@given(st.floats(1, 1e12), st.floats(1e-6, 1e6), st.floats(0, 1e12), st.integers(0, 10**13))
def test_the_band_holds_what_is_likely_and_is_none_where_calls_cost_nothing_by_chance(
    left, mean, variance, now_ms
):
    early, likely, late = used_up_ms(left, mean, variance, now_ms)

    assert now_ms <= early <= likely <= late
    assert abs(likely - now_ms - left / mean) <= 1 + 1e-6 * left / mean
    assert used_up_ms(left, mean, 0.0, now_ms) == (likely, likely, likely)


@pytest.mark.anyio
async def test_people_are_told_when_it_is_used_up_if_that_is_before_the_reset():
    from scheduler.cli.burning import rates, row, sentence
    from scheduler.stores.memory.store import MemoryStore
    from tests.stores.conformance import Bench, new, post

    store = MemoryStore()
    await store.open(T0)
    bench = Bench(store)
    bench.now_ms = T0 + 8 * HOUR
    await bench.define(Budget("team", "$0.00001/day @Europe/Athens"), Budget("slow", "$1/day"))
    for _ in range(20):
        result = await bench.submit(new([bench.ids["team"], bench.ids["slow"]], 100), slots=1)
        bench.now_ms += 3 * MINUTE
        await bench.settle(post(result.claimed[0], 100), slots=0)

    found = await rates(store, await store.budgets(bench.now_ms), bench.now_ms)

    (rate,) = found  # 2,000 in two hours: the other 8,000 last for eight more
    assert (rate.budget, rate.percent, rate.within_ms) == ("team", 20, 2 * HOUR)
    early, likely, late = (each - bench.now_ms for each in rate.used_up)
    assert abs(likely - 8 * HOUR) < MINUTE
    assert 6 * HOUR < early < likely < late < 10.5 * HOUR
    assert sentence(rate, bench.now_ms).startswith(
        "team: 20 % of $0.00001/day @Europe/Athens went in the last 2h"
    )
    assert row(rate)["within_seconds"] == 7_200
    await store.aclose()
