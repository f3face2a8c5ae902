"""The ledger's rules, and invariants 1, 2 and 6 in any order of operations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.budget import parse_caps
from scheduler.ledger.account import Account, ReservationState

PENDING, POSTED, VOIDED, SUSPENSE = ReservationState
DAY_MS = 86_400_000


def account(spec: str, now_ms: int = 0) -> Account:
    made = Account(1, 1, "team", parse_caps(spec)[0])
    made.look(now_ms)
    return made


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (PENDING, POSTED, True),
        (PENDING, VOIDED, True),
        (PENDING, SUSPENSE, True),
        (PENDING, PENDING, False),
        (SUSPENSE, POSTED, True),
        (SUSPENSE, VOIDED, True),
        (SUSPENSE, SUSPENSE, False),
        (POSTED, POSTED, False),
        (POSTED, VOIDED, False),
        (POSTED, SUSPENSE, False),
        (VOIDED, POSTED, False),
        (VOIDED, VOIDED, False),
        (VOIDED, SUSPENSE, False),
    ],
)
def test_a_reservation_is_settled_exactly_once(old, new, allowed):
    assert old.may_become(new) is allowed


@pytest.mark.parametrize(
    ("new", "cost", "posted", "reserved", "overrun"),
    [
        (POSTED, 30, 30, 0, 0),
        (POSTED, 50, 50, 0, 0),
        (POSTED, 70, 70, 0, 20),
        (VOIDED, 0, 0, 0, 0),
        (SUSPENSE, 0, 0, 50, 0),
    ],
)
def test_settling_moves_the_reserved_amount(new, cost, posted, reserved, overrun):
    team = account("$0.0000001/day")
    team.reserve(50)

    team.settle(0, PENDING, new, 50, cost)

    assert (team.posted, team.reserved, team.overrun) == (posted, reserved, overrun)
    assert team.available == 100 - posted - reserved


def test_a_late_settlement_counts_in_the_window_of_its_reservation():
    team = account("$0.0000001/day")
    team.reserve(50)
    team.look(DAY_MS)
    assert (team.posted, team.reserved, team.available) == (0, 0, 100)

    team.settle(0, PENDING, POSTED, 50, 40)

    assert (team.posted, team.reserved, team.available) == (0, 0, 100)
    assert team.slots[0].posted == 40


def test_money_leaves_a_rolling_window_only_after_its_whole_span():
    team = account("$0.0000001/60s")
    team.reserve(100)

    team.look(60_000)
    assert team.available == 0

    team.look(62_000)
    assert team.available == 100


def test_320_settlements_of_half_a_tenth_of_a_cent_sum_exactly():
    team = account("$1/day")
    for _ in range(320):
        team.reserve(500_000)
        team.settle(0, PENDING, POSTED, 500_000, 500_000)

    assert team.posted == 160_000_000  # 0.16 USD


def test_each_threshold_is_told_once_a_window():
    team, told = account("$0.0000001/day"), []
    for now_ms, cost in [(0, 49), (0, 1), (0, 30), (0, 1), (0, 19), (DAY_MS, 96)]:
        team.look(now_ms)
        team.reserve(cost)
        team.settle(now_ms, PENDING, POSTED, cost, cost)
        told.append([crossing.percent for crossing in team.crossings(now_ms)])

    assert told == [[], [50], [80], [], [95, 100], [50, 80, 95]]


def test_a_threshold_of_a_rolling_window_is_told_again_after_spending_fell():
    team, told = account("$0.0000001/60s"), []
    for now_ms in (0, 200_000):
        team.look(now_ms)
        team.reserve(60)
        team.settle(now_ms, PENDING, POSTED, 60, 60)
        told.append([crossing.percent for crossing in team.crossings(now_ms)])

    assert told == [[50], [50]]


class LedgerMachine(RuleBasedStateMachine):
    """Any order of reserving, settling and time passing, against plain sums."""

    spec = "$0.000001/day"
    limit = 1000

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.account = account(self.spec)
        self.holds: list[list] = []  # made at, amount, state, cost

    @rule(amount=st.integers(0, 600))
    def reserve(self, amount: int) -> None:
        if amount <= self.account.available:
            self.account.reserve(amount)
            self.holds.append([self.now_ms, amount, PENDING, 0])
            assert self.account.posted + self.account.reserved <= self.limit

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), new=st.sampled_from([POSTED, VOIDED, SUSPENSE]), cost=st.integers(0, 700))
    def settle(self, data, new, cost) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        made_at_ms, amount, state, _ = hold
        if state.may_become(new):
            self.account.settle(made_at_ms, state, new, amount, cost)
            hold[2:] = [new, cost]

    @rule(passed_ms=st.sampled_from([1, 1000, 3_600_000, DAY_MS, 3 * DAY_MS]))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.account.look(self.now_ms)

    @invariant()
    def sums_are_those_of_the_reservations_that_count(self) -> None:
        window = self.account.cap.window
        oldest_ms = window.oldest_counting_ms(self.now_ms)
        counting = [h for h in self.holds if window.slot_start_ms(h[0]) >= oldest_ms]
        assert self.account.posted == sum(h[3] for h in counting if h[2] is POSTED)
        assert self.account.reserved == sum(h[1] for h in counting if h[2] in (PENDING, SUSPENSE))
        assert self.account.suspense == sum(h[1] for h in counting if h[2] is SUSPENSE)
        assert self.account.available == self.limit - self.account.posted - self.account.reserved
        assert all(t.reserved >= t.suspense >= 0 for t in self.account.slots.values())


class RollingLedgerMachine(LedgerMachine):
    spec = "$0.000001/6h"


TestLedger = LedgerMachine.TestCase
TestRollingLedger = RollingLedgerMachine.TestCase
TestLedger.settings = TestRollingLedger.settings = settings(max_examples=80, stateful_step_count=40)
