"""When a budget is used up: one rule, by which the page, `top` and `status` go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.budget import Budget, parse_caps
from scheduler.estimates.exhaustion import HOUR_MS, left_of, used_up_at_ms
from scheduler.server.page.burn import burn
from scheduler.stats import BudgetStatus, CapStatus, Counts, UnknownSum
from scheduler.stores.course import QUARTER_MS, CourseRow
from scheduler.telemetry.picture import Lately, Picture

NOON = 1_767_268_800_000  # 2026-01-01 12:00 UTC


def cap(spec, posted, reserved=0, **more):
    (made,) = parse_caps(spec)
    usd = 10**9
    return CapStatus(
        made, made.limit, posted * usd, reserved * usd, 0, 0, made.window.resets_at_ms(NOON),
        **{name: None if value is None else value * usd for name, value in more.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "posted", "reserved", "more", "per_hour", "hours"),
    [
        ("$20/day", 10, 0, {}, 2, 5),
        ("$20/day", 10, 4, {}, 2, 3),  # what is reserved is not left
        ("$20/day", 10, 4, {"kept": 1}, 2, 4.5),  # nor is what is kept of it, with a risk
        ("$20/day", 10, 0, {"allowed": 12}, 2, 5),  # a pace only says when
        ("$20", 10, 0, {}, 1, 10),
        ("$20/day", 10, 0, {}, 0.5, None),  # the reset comes first
        ("$22/day", 10, 0, {}, 1, None),  # at the same instant
        ("$20/day", 10, 0, {}, 0, None),  # nothing was spent lately
        ("$20/24h", 10, 0, {}, 9, None),  # it gives back what it took
        ("$20/day", 20, 0, {}, 1, 0),  # already
        ("$20/day", 15, 5, {}, 0, 0),
        ("$20/24h", 15, 6, {}, 0, 0),
    ],
)
def test_it_is_used_up_when_nothing_is_left(spec, posted, reserved, more, per_hour, hours):
    found = used_up_at_ms(cap(spec, posted, reserved, **more), per_hour * 10**9, NOON)

    assert found == (None if hours is None else NOON + hours * HOUR_MS)


def test_without_a_limit_it_never_is():
    open_ended = replace(cap("$20/day", 10), limit=None)

    assert (left_of(open_ended), used_up_at_ms(open_ended, 10**12, NOON)) == (None, None)


@pytest.mark.parametrize(("posted", "reserved"), [(10, 0), (10, 4), (10, 9), (16, 4), (25, 0)])
def test_the_page_and_the_terminal_say_the_same(posted, reserved):
    of = cap("$20/day", posted, reserved)
    rows = [CourseRow(1, NOON - 2 * QUARTER_MS, 10**9, 0, 1)]
    picture = Picture(
        store="", at_ms=NOON, counts=Counts(), shortfalls=(), limited=(), budgets=(), spend=(),
        workers=(), unserved=(), standing=(), lately=Lately(0, by_budget={1: rows}), unknown=UnknownSum(), tenants=(),
    )  # fmt: skip
    status = BudgetStatus(1, Budget("team", "$20/day"), False, (of,))

    told = burn(of, rows, NOON).used_up_at_ms

    assert told == picture.spent_at_ms(status, of)
    assert told is not None
