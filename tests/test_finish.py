"""When a batch would be done, over windows and paces."""

import pytest

from scheduler.budget import Budget
from scheduler.estimates.finish import finish_ms
from scheduler.stats import CapStatus

HOUR = 3_600_000
NOON = 20_000 * 24 * HOUR + 12 * HOUR
MIDNIGHT = NOON + 12 * HOUR


def finish(spec, need, posted=0, unused=0, now_ms=NOON):
    found = []
    for cap in Budget("b", spec).caps:
        status = CapStatus(cap, cap.limit, posted, 0, 0, now_ms, None)
        found.append((status, need, unused))
    return finish_ms(found, now_ms)


@pytest.mark.parametrize(
    ("spec", "need", "posted", "unused", "when"),
    [
        ("100 tokens/day", 0, 100, 0, NOON),
        ("100 tokens/day", 60, 40, 0, NOON),
        ("100 tokens/day", 61, 40, 0, MIDNIGHT),
        ("100 tokens/day", 160, 40, 0, MIDNIGHT),
        ("100 tokens/day", 161, 40, 0, MIDNIGHT + 24 * HOUR),
        ("100 tokens/day", 161, 0, 20, MIDNIGHT + 24 * HOUR),  # 80 a day
        ("100 tokens/day", 50, 200, 0, MIDNIGHT),  # an overrun is not paid back
        ("100 tokens", 100, 0, 0, NOON),
        ("100 tokens", 61, 40, 0, None),
        ("100 tokens/day", 10, 0, 100, None),  # one of them may need all there ever is
        ("100 tokens/hour, 150 tokens/day", 160, 0, 0, MIDNIGHT),
        ("100 tokens/10h", 60, 40, 0, NOON),
        ("100 tokens/10h", 61, 40, 0, NOON + 10 * HOUR + HOUR // 6),
    ],
)
def test_the_last_starts_when_its_window_begins(spec, need, posted, unused, when):
    assert finish(spec, need, posted, unused) == when


def test_a_paced_budget_lets_it_go_on_as_its_share_grows():
    # A share of 24 tokens is there at once for the first hour; half of the day has passed.
    assert finish("2400 tokens/day paced", 1300) == NOON
    assert finish("2400 tokens/day paced", 1500) == NOON + 2 * HOUR
    assert finish("2400 tokens/day paced", 2400 + 500) == MIDNIGHT + 4 * HOUR


def test_without_a_limit_it_is_now():
    assert finish_ms([], NOON) == NOON
