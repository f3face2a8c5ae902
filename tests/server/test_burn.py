"""How a budget is being used up: the rate, where it leads, and what a chart shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.budget import parse_caps
from scheduler.server.page.burn import MOST_POINTS, WEEK_MS, burn, since_ms
from scheduler.stats import CapStatus
from scheduler.stores.course import HOUR_MS, QUARTER_MS, CourseRow, rate_per_hour

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC
NOON = T0 + 12 * HOUR_MS
USD = 10**9


def cap(spec, posted=0, now_ms=NOON, reserved=0):
    (made,) = parse_caps(spec)
    start_ms = made.window.slot_start_ms(now_ms)
    return CapStatus(
        made, made.limit, posted, reserved, 0, start_ms, made.window.resets_at_ms(now_ms)
    )


def row(at_ms, usd):
    return CourseRow(1, at_ms, usd * USD, 0, 1)


@pytest.mark.parametrize(
    ("posted", "now_ms", "expected"),
    [
        ([], NOON, 0),
        # The last 45 minutes, and the quarter in which they begin.
        ([(NOON - 3 * QUARTER_MS, 3)], NOON, 4),
        ([(NOON - 3 * QUARTER_MS, 4)], NOON + QUARTER_MS - 1, 4),
        ([(NOON - HOUR_MS, 4)], NOON, 0),
        # What has just begun: over as long as it has lasted, though not less than a quarter.
        ([(NOON - HOUR_MS, 9), (NOON, 3)], NOON + HOUR_MS // 2, 6),
        ([(NOON - QUARTER_MS, 0), (NOON, 3)], NOON + 60_000, 12),
    ],
)
def test_the_rate_is_that_of_lately(posted, now_ms, expected):
    assert rate_per_hour(posted, now_ms) == expected


def test_it_is_used_up_where_the_rate_meets_the_limit():
    rows = [row(T0, 12), row(NOON - 2 * QUARTER_MS, 1)]
    found = burn(cap("$20/day", 13 * USD), rows, NOON)

    assert found.per_hour == 2 * USD
    assert found.used_up_at_ms == NOON + 3 * HOUR_MS + HOUR_MS // 2
    assert found.at_end == 37 * USD
    assert (found.from_ms, found.to_ms) == (T0, T0 + 24 * HOUR_MS)
    assert found.spent[0] == (T0, 0)
    assert found.spent[-1] == (NOON, 13 * USD)


@pytest.mark.parametrize(
    ("spec", "posted", "rows"),
    [
        ("$100/day", 2, [row(NOON - QUARTER_MS, 2)]),  # the reset comes first
        ("$20/day", 14, [row(T0, 14)]),  # nothing was spent lately
        ("$20/24h", 14, [row(NOON - QUARTER_MS, 14)]),  # it gives back what it took
    ],
)
def test_it_is_not_said_to_be_used_up_where_it_will_not_be(spec, posted, rows):
    assert burn(cap(spec, posted * USD), rows, NOON).used_up_at_ms is None


def test_a_total_leads_on_without_an_end():
    found = burn(cap("$20", 14 * USD), [row(NOON - QUARTER_MS, 2)], NOON)

    assert (found.from_ms, found.at_end) == (NOON - WEEK_MS, None)
    assert found.to_ms > NOON
    assert found.used_up_at_ms == NOON + 3 * QUARTER_MS
    assert found.spent[0] == (NOON - WEEK_MS, 12 * USD)  # what was spent before counts


def test_a_rolling_window_shows_what_counted_then():
    rows = [row(NOON - 30 * HOUR_MS, 5), row(NOON - 20 * HOUR_MS, 3)]
    found = burn(cap("$20/24h", 3 * USD), rows, NOON)

    by_time = dict(found.spent)
    assert by_time[NOON - 24 * HOUR_MS] == 5 * USD
    assert found.spent[-1] == (NOON, 3 * USD)
    assert max(by_time.values()) == 8 * USD  # until the older ones left
    assert since_ms(cap("$20/24h").cap.window, NOON) == NOON - 48 * HOUR_MS


def test_a_pace_is_drawn():
    found = burn(cap("$24/day paced"), [], NOON)

    assert found.allowed[0] == (T0, USD)
    assert found.allowed[24] == (NOON, 13 * USD)
    assert found.allowed[-1][1] == 24 * USD


@given(
    st.lists(st.tuples(st.integers(0, 47), st.integers(0, 9)), max_size=60),
    st.sampled_from(["$20/day", "$20", "$20/6h", "$20/month", "$20/day paced"]),
)
def test_a_chart_never_goes_back_in_time_and_ends_at_what_is_spent(spends, spec):
    sums: dict[int, int] = {}
    for quarter, usd in spends:
        at_ms = T0 + quarter * QUARTER_MS
        sums[at_ms] = sums.get(at_ms, 0) + usd
    rows = [row(at_ms, usd) for at_ms, usd in sorted(sums.items())]
    oldest_ms = NOON - 6 * HOUR_MS if spec == "$20/6h" else 0
    total = sum(usd for at_ms, usd in sums.items() if at_ms >= oldest_ms) * USD

    found = burn(cap(spec, total), rows, NOON)

    instants = [at_ms for at_ms, _ in found.spent]
    assert instants == sorted(instants)
    assert found.spent[-1] == (NOON, total)
    assert len(instants) <= MOST_POINTS + 1
    if spec != "$20/6h":
        amounts = [amount for _, amount in found.spent]
        assert amounts == sorted(amounts)
    assert found.used_up_at_ms is None or found.used_up_at_ms >= NOON
