"""Calls that wait for calls of their own hold what is kept for them, not their ceilings."""

from __future__ import annotations

import pytest

from scheduler.budget import Budget, parse_caps
from scheduler.core.nested.stuck import _Cap
from scheduler.stats import BudgetStatus, CapStatus


def cap_of(kept, locked):
    (cap,) = parse_caps("1000 tokens")
    status = CapStatus(cap, 1000, 100, 1500, 0, 0, None, kept=kept, calls=15)
    found = _Cap(BudgetStatus(1, Budget("b", "1000 tokens"), False, (status,)), status, 0)
    found.own, found.locked = 1500, locked
    return found


@pytest.mark.parametrize(
    ("kept", "locked", "goes"),
    [
        (1500, 1500, False),  # all of it is held by those who wait
        (870, 1500, False),  # 30 would be left of 900, 100 are needed
        (300, 1500, True),  # it fits now
        (870, 700, True),  # it fits once the others have ended
    ],
)
def test_who_waits_for_money_that_callers_hold(kept, locked, goes):
    assert cap_of(kept, locked).gives(100, 10, at_best=True) is goes
