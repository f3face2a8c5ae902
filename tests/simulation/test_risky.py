"""The same worlds with budgets that take a risk, so eager that a few calls suffice for it.

All must hold as without it, but for the limit itself: what is promised in full may exceed that as
many times as the risk says, and no more.
"""

from __future__ import annotations

import logging
from unittest import mock

import pytest

from scheduler.foresight import PRESETS, Risk, survival
from scheduler.ledger.account import Account
from tests.simulation.world import World

EAGER = Risk("high", 0.5, 0.0, 6, warm=3)
STEPS = 60


class RiskyWorld(World):
    takes = "high"

    def check_limits(self, computer, reserved) -> None:
        """Of what is left so many times as much may be promised; what is not foreseen, once."""
        for status in computer.inner.latest() if reserved else ():
            for cap in status.caps:
                if cap.limit is not None and (status.budget.name, cap.cap.unit) in reserved:
                    left = cap.limit - cap.posted - cap.suspense
                    times = 1 if cap.cap.unit.value == "requests" else EAGER.stretch
                    assert cap.reserved - cap.suspense <= times * left, (status.budget.name, cap)


@pytest.fixture(autouse=True)
def eager():
    logging.disable(logging.CRITICAL)
    with mock.patch.dict(PRESETS, {"high": EAGER}), mock.patch.object(survival, "FEW", 1):
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("store", "first", "count"), [("memory", 0, 8), ("memory", 8, 8), ("sqlite", 0, 3)]
)
def test_nothing_goes_wrong_where_budgets_take_a_risk(store, first, count):
    for seed in range(first, first + count):
        try:
            RiskyWorld(seed, STEPS, store).run()
        except BaseException as exc:
            exc.add_note(f"RiskyWorld({seed}, {STEPS}, {store!r})")
            raise


def test_in_these_worlds_more_goes_than_ceilings_allow():
    lacks, eased = Account.lacks, []

    def watched(account, need, request, kept=0):
        found = lacks(account, need, request, kept)
        if found <= 0 < need - account.available:
            eased.append(account.budget)
        return found

    with mock.patch.object(Account, "lacks", watched):
        for seed in range(7):
            RiskyWorld(seed, STEPS, "memory").run()

    assert len(eased) > 3
