"""Whom the plan admits: tables, and invariants 1, 8 and 9 as properties."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.admission.plan import (
    AGING,
    DEPTH,
    MAX_BYPASS_MS,
    MAX_BYPASSED,
    LaneKey,
    LaneView,
    Verdict,
    plan,
)
from scheduler.budget import parse_caps
from scheduler.ledger.account import (
    FAR,
    MAX_KEPT,
    MAX_LINE,
    NOT_YET,
    Account,
    ReservationState,
    Waiter,
)
from scheduler.limits.words import Closed
from scheduler.request import Tokens
from scheduler.shortfall import ParkReason
from scheduler.stores.lanes import Lanes

LIMIT = 100
SPEC = "$0.0000001/day"  # 100 nano-dollars


@dataclass(frozen=True)
class Waiting:
    id: int
    need: int
    tokens = Tokens()

    @property
    def needs(self):
        return (self.need, self.need, 1)


def account(id=1, spec=SPEC, posted=0, reserved=0):
    made = Account(id, id, f"b{id}", parse_caps(spec)[0])
    made.look(0)
    made.reserve(posted + reserved)
    if posted:
        made.settle(0, ReservationState.PENDING, ReservationState.POSTED, posted, posted)
    return made


def lane(accounts, needs, first_id=1, priority=10, provider="p", may_wait=True):
    key = LaneKey(provider, tuple(a.id for a in accounts), priority, may_wait)
    waiting = [Waiting(first_id + i, need) for i, need in enumerate(needs)]
    return LaneView(key, accounts, iter(waiting))


def admitted(result):
    return [candidate.id for candidate in result.admitted]


@pytest.mark.parametrize(
    ("posted", "reserved", "need", "reason", "missing"),
    [
        (0, 0, 100, None, 0),
        (0, 40, 60, None, 0),
        (0, 41, 60, ParkReason.HELD_IN_FLIGHT, 1),
        (10, 41, 60, ParkReason.HELD_IN_FLIGHT, 11),
        (41, 0, 60, ParkReason.WINDOW_SPENT, 1),
        (41, 9, 60, ParkReason.WINDOW_SPENT, 10),
        (0, 0, 101, ParkReason.LARGER_THAN_LIMIT, 1),
        (100, 0, 0, None, 0),  # what is free always fits
        (150, 0, 0, None, 0),  # even after an overrun
        (150, 0, 1, ParkReason.WINDOW_SPENT, 51),
    ],
)
def test_what_fits_is_admitted_and_what_does_not_says_why(posted, reserved, need, reason, missing):
    view = lane([account(posted=posted, reserved=reserved)], [need])

    result = plan([view], {"p": 1}, 0)

    assert admitted(result) == ([1] if reason is None else [])
    lack = result.verdicts[0].shortfall
    assert (None if lack is None else lack.reason) == reason
    if lack is not None:
        assert (lack.missing, lack.needed, lack.limit) == (missing, need, LIMIT)
        assert (lack.posted, lack.reserved, lack.budget) == (posted, reserved, "b1")
        assert (lack.resumes_at_ms is not None) == (reason is ParkReason.WINDOW_SPENT)


def test_money_in_suspense_does_not_come_back_by_itself():
    unknown = account(reserved=60)
    unknown.settle(0, ReservationState.PENDING, ReservationState.SUSPENSE, 60, 0)

    result = plan([lane([unknown], [50])], {"p": 1}, 0)

    assert result.verdicts[0].shortfall.reason is ParkReason.WINDOW_SPENT
    assert result.verdicts[0].resumes_at_ms == 86_400_000


def test_a_reset_may_come_before_the_calls_under_way_settle():
    result = plan([lane([account(reserved=60)], [50])], {"p": 1}, 0)

    assert result.verdicts[0].shortfall.reason is ParkReason.HELD_IN_FLIGHT
    assert result.verdicts[0].resumes_at_ms == 86_400_000


def test_a_burst_of_200_on_a_budget_for_two_admits_exactly_two():
    result = plan([lane([account()], [50] * 200)], {"p": 200}, 0)

    assert admitted(result) == [1, 2]
    assert result.verdicts[0].shortfall.reason is ParkReason.HELD_IN_FLIGHT


def test_every_budget_of_a_request_has_to_fit():
    wide, narrow = account(1), account(2, posted=95)

    result = plan([lane([wide, narrow], [10])], {"p": 1}, 0)

    assert admitted(result) == []
    assert (wide.reserved, narrow.reserved) == (0, 0)
    assert result.verdicts[0].shortfall.budget == "b2"


def test_of_several_shortfalls_the_one_with_the_longest_wait_is_told():
    held, spent = account(1, reserved=95), account(2, posted=95)

    result = plan([lane([held, spent], [10])], {"p": 1}, 0)

    assert result.verdicts[0].shortfall.reason is ParkReason.WINDOW_SPENT


def test_caps_in_tokens_and_requests_count_in_their_unit():
    tokens, requests = account(1, "25 tokens/day"), account(2, "3 requests/day")

    result = plan([lane([tokens, requests], [10] * 5)], {"p": 5}, 0)

    assert admitted(result) == [1, 2]
    assert (tokens.reserved, requests.reserved) == (20, 2)


def test_lower_priority_numbers_run_first_and_equals_in_order_of_age():
    late, urgent = lane([account()], [1] * 3), lane([account(2)], [1] * 2, first_id=10, priority=0)

    assert admitted(plan([late, urgent], {"p": 10}, 0)) == [10, 11, 1, 2, 3]


def test_one_admission_in_sixteen_goes_to_the_oldest_of_a_less_urgent_priority():
    idle = lane([account(1, "$1")], [1] * 10, first_id=1, priority=30)
    urgent = lane([account(2, "$1")], [1] * 100, first_id=100, priority=0)

    order = admitted(plan([idle, urgent], {"p": 3 * AGING}, 0))

    assert [position for position, id in enumerate(order) if id < 100] == [15, 31, 47]


def test_a_full_provider_does_not_hold_up_another():
    full, free = lane([account()], [1] * 3), lane([account(2)], [1], first_id=9, provider="q")

    result = plan([full, free], {"p": 0, "q": 1}, 0)

    assert admitted(result) == [9]
    assert result.verdicts[0].shortfall is None  # it waits for a place, not for money


def test_who_waits_for_a_reset_is_passed_freely():
    view = lane([account(posted=60)], [50] + [1] * 40)

    assert len(plan([view], {"p": 100}, 0).admitted) == 40


def test_a_request_that_waits_for_money_in_flight_is_passed_by_a_bounded_number():
    shared = account(reserved=60)

    result = plan([lane([shared], [50] + [1] * 40)], {"p": 100}, 0)

    assert len(result.admitted) == MAX_BYPASSED
    assert shared.waiter.request_id == 1


def test_a_request_that_waits_for_money_in_flight_is_passed_for_a_bounded_time():
    shared = account(reserved=60)
    plan([lane([shared], [50])], {"p": 100}, 0)

    before = plan([lane([shared], [50, 1])], {"p": 100}, MAX_BYPASS_MS - 1)
    after = plan([lane([shared], [50, 1, 1])], {"p": 100}, MAX_BYPASS_MS)

    assert (len(before.admitted), len(after.admitted)) == (1, 0)


def test_the_bound_holds_across_lanes_that_share_a_budget():
    shared = account(reserved=60)
    large, small = lane([shared], [50]), lane([shared], [1] * 50, first_id=10, priority=20)

    assert len(plan([large, small], {"p": 100}, 0).admitted) == MAX_BYPASSED


def test_who_waits_for_something_else_is_no_longer_first_in_line():
    held, other = account(1, reserved=60), account(2)
    both = [held, other]
    plan([lane(both, [50])], {"p": 1}, 0)
    assert held.waiter.request_id == 1

    other.reserve(80)
    other.settle(0, ReservationState.PENDING, ReservationState.POSTED, 80, 80)
    plan([lane(both, [50])], {"p": 1}, 1)

    assert held.waiter is None


def test_what_is_free_neither_waits_behind_anybody_nor_holds_anybody_up():
    shared = account(reserved=60)
    plan([lane([shared], [50])], {"p": 1}, 0)
    shared.waiter = replace(shared.waiter, bypassed=MAX_BYPASSED)

    result = plan([lane([shared], [0], first_id=9)], {"p": 1}, 1)

    assert admitted(result) == [9]


def test_a_more_urgent_request_may_pass_one_that_waits():
    shared = account(reserved=60)
    plan([lane([shared], [50])], {"p": 100}, 0)
    shared.waiter = replace(shared.waiter, bypassed=MAX_BYPASSED)

    urgent = plan([lane([shared], [5], first_id=99, priority=0)], {"p": 1}, 1)

    assert admitted(urgent) == [99]


def test_the_waiter_goes_as_soon_as_it_fits():
    shared = account(reserved=60)
    plan([lane([shared], [50])], {"p": 1}, 0)
    shared.settle(0, ReservationState.PENDING, ReservationState.VOIDED, 60, 0)

    result = plan([lane([shared], [50, 60])], {"p": 2}, 1)

    assert admitted(result) == [1]
    assert shared.waiter.request_id == 2


def test_a_request_that_may_not_wait_is_refused_even_without_a_free_place():
    view = lane([account(reserved=95)], [10, 1], may_wait=False)

    result = plan([view], {"p": 0}, 0)

    assert [(candidate.id, lack.missing) for candidate, lack in result.refused] == [(1, 5)]
    assert admitted(result) == []


def test_a_paused_budget_admits_nothing():
    paused = account()
    paused.paused = True

    result = plan([lane([paused], [0, 1])], {"p": 2}, 0)

    assert admitted(result) == []
    assert result.verdicts[0].shortfall.reason is ParkReason.PAUSED


def test_a_plan_looks_a_bounded_number_of_requests_deep():
    needs = [200] * (DEPTH + 5) + [1]
    view = lane([account()], needs)

    plan([view], {"p": 1}, 0)

    assert len(list(view.candidates)) == len(needs) - DEPTH - 1


LANES = st.lists(
    st.tuples(
        st.sets(st.integers(1, 3), max_size=3),  # budgets
        st.sampled_from([0, 10, 20]),
        st.lists(st.integers(0, 130), max_size=12),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300)
@given(
    lanes=LANES,
    posted=st.tuples(*[st.integers(0, 120)] * 3),
    reserved=st.tuples(*[st.integers(0, 60)] * 3),
    free=st.integers(0, 12),
)
def test_no_plan_overspends_and_none_leaves_out_what_fits(lanes, posted, reserved, free):
    accounts = {i: account(i, posted=posted[i - 1], reserved=reserved[i - 1]) for i in (1, 2, 3)}
    before = {i: a.available for i, a in accounts.items()}
    all_needs, views = {}, []
    for position, (budgets, priority, needs) in enumerate(lanes):
        first_id = 1 + 100 * position
        all_needs.update({first_id + i: (need, budgets) for i, need in enumerate(needs)})
        views.append(lane([accounts[b] for b in sorted(budgets)], needs, first_id, priority))

    result = plan(views, {"p": free}, 0)

    ids = admitted(result)
    assert len(ids) == len(set(ids)) <= free
    for i, each in accounts.items():
        took = sum(need for id, (need, budgets) in all_needs.items() if id in ids and i in budgets)
        assert each.available == before[i] - took
        if took:
            assert each.posted + each.reserved <= LIMIT
    if len(ids) < free:
        for id, (need, budgets) in all_needs.items():
            behind = any(accounts[b].waiter is not None for b in budgets)
            if id not in ids and not behind:
                assert any(need > accounts[b].available for b in budgets), "left out, but fits"


def rolling(taken, spec="100 tokens/60s"):
    """An account of which so much was posted in the bucket of each second."""
    made = Account(1, 1, "b1", parse_caps(spec)[0])
    for second, amount in taken.items():
        made.look(1000 * second)
        made.reserve(amount)
        made.settle(
            1000 * second, ReservationState.PENDING, ReservationState.POSTED, amount, amount
        )
    return made


def looked(account, now_ms):
    account.look(now_ms)
    return account


def test_who_waits_for_what_leaves_a_rolling_window_is_passed_by_a_bounded_number():
    spent = rolling({10: 50, 19: 10}, "100 tokens/30s")
    passed = []
    for bucket in range(40):
        now_ms = 20_000 + 500 * bucket
        view = lane([looked(spent, now_ms)], [100, 1])
        passed += admitted(plan([view], {"p": 9}, now_ms))

    assert len(passed) == MAX_BYPASSED


def test_who_waits_for_what_leaves_a_rolling_window_is_passed_for_a_bounded_time():
    spent = rolling({0: 10, 10: 50})
    plan([lane([looked(spent, 20_000)], [100])], {"p": 1}, 20_000)

    result = plan([lane([looked(spent, 50_000)], [100, 1])], {"p": 9}, 50_000)

    assert admitted(result) == []
    assert result.verdicts[0].resumes_at_ms == 10_000 + 61_000  # no sooner: nothing to look at


def test_what_a_coarse_bucket_frees_beyond_the_need_may_be_taken_for_ever():
    spent = rolling({0: 10, 10: 50})  # when the fifty leave there is room for ten besides
    plan([lane([looked(spent, 20_000)], [90])], {"p": 1}, 20_000)

    result = plan([lane([looked(spent, 55_000)], [90, 6, 5, 4])], {"p": 9}, 55_000)

    assert admitted(result) == [2, 4]
    assert spent.waiter.bypassed == 0


def test_who_waits_for_a_reset_is_the_first_after_it():
    shared = account(spec="$0.0000001/minute", posted=60)
    plan([lane([shared], [50])], {"p": 1}, 0)
    assert admitted(plan([lane([shared], [30], first_id=9)], {"p": 1}, 59_000)) == [9]

    late = plan([lane([looked(shared, 60_000)], [60, 50], first_id=20)], {"p": 2}, 60_000)

    assert admitted(late) == [21]  # of another process, say: it leaves room
    assert admitted(plan([lane([shared], [50])], {"p": 1}, 60_000)) == [1]


def test_of_a_total_what_was_left_goes_to_whoever_it_suffices_for_and_what_is_added_does_not():
    total = account(spec="$0.0000001", posted=60)
    plan([lane([total], [50])], {"p": 1}, 0)
    total.redefine(parse_caps("$0.000000105")[0])

    result = plan([lane([looked(total, 50_000)], [50, 38, 3])], {"p": 9}, 50_000)

    assert admitted(result) == [2]  # of the forty that were left; the five are kept
    assert result.verdicts[0].resumes_at_ms is None


def test_who_is_first_again_has_been_passed_as_often_as_before():
    shared = account(reserved=60)
    plan([lane([shared], [50] + [1] * 20)], {"p": 100}, 0)
    plan([lane([shared], [45], first_id=90, priority=0)], {"p": 1}, 1)
    assert shared.waiter.request_id == 90
    shared.leave_line(90)

    result = plan([lane([shared], [1] * 20, first_id=50)], {"p": 100}, 2)

    assert len(result.admitted) == MAX_BYPASSED - 20


def test_who_gave_up_its_place_while_it_waited_elsewhere_has_been_passed_as_often_as_before():
    here, there = looked(rolling({}), 1_000), account(2, posted=60)
    here.reserve(60)
    there.redefine(parse_caps("$0.0000002/day")[0])
    plan(
        [lane([here, looked(there, 1_000)], [50]), lane([here], [1] * 20, first_id=2)],
        {"p": 100},
        1_000,
    )
    assert here.waiter_of(1).bypassed == 20
    there.redefine(parse_caps(SPEC)[0])  # from now on it waits there, for a day
    plan([lane([here, looked(there, 2_000)], [50])], {"p": 1}, 2_000)
    assert here.waiter is None
    crowd = [lane([here], [90], first_id=30 + i) for i in range(MAX_LINE)]
    assert admitted(plan(crowd, {"p": 9}, 2_000)) == []
    assert here.waiter.request_id == 30
    for i in range(MAX_LINE):
        here.leave_line(30 + i)
    there.redefine(parse_caps("$0.0000002/day")[0])

    plan([lane([here, looked(there, 2_000)], [50])], {"p": 1}, 2_000)
    result = plan([lane([here], [1] * 20, first_id=50)], {"p": 100}, 2_000)

    assert len(result.admitted) == MAX_BYPASSED - 20


def test_who_is_first_again_after_many_more_urgent_ones_has_been_passed_as_often_as_before():
    shared = account(reserved=60)
    plan([lane([shared], [50] + [1] * 20)], {"p": 100}, 0)
    for i in range(MAX_LINE):
        plan([lane([shared], [45], first_id=90 + i, priority=9 - i)], {"p": 1}, 1)
    for i in range(MAX_LINE):
        shared.leave_line(90 + i)

    result = plan([lane([shared], [50] + [1] * 20), lane([shared], [1] * 20, 50)], {"p": 100}, 2)

    assert len(result.admitted) == MAX_BYPASSED - 20


def test_who_comes_to_a_line_while_it_waits_elsewhere_is_not_the_first_but_behind_nobody():
    here, there = rolling({0: 60}), account(2, posted=60)
    both = [looked(here, 1_000), there]

    plan([lane(both, [50] * (MAX_LINE + 4))], {"p": 1}, 1_000)

    assert [each.since_ms for each in here.line] == [1_000] + [NOT_YET] * (MAX_LINE - 1)


def test_those_who_gave_up_their_places_are_not_many():
    shared = account(reserved=99)

    for i in range(2 * MAX_KEPT):
        plan([lane([shared], [2], first_id=1 + i, priority=100 - i)], {"p": 1}, 0)

    assert [each.request_id for each in shared.line] == [*range(2 * MAX_KEPT, MAX_KEPT, -1)]


def test_whose_place_was_given_up_takes_none_from_those_who_wait_here():
    here = account(reserved=99)
    for i in range(MAX_LINE):
        here.get_in_line(Waiter(10 - i, 1 + i, 50, 0, NOT_YET))  # each the first for a moment
    assert not here.has_room_for(Waiter(11, 20, 50, 0, NOT_YET))

    here.line[3].away_until_ms = 10_000

    assert here.has_room_for(Waiter(11, 20, 50, 0, NOT_YET))
    here.get_in_line(Waiter(11, 20, 50, 0, NOT_YET))
    assert len(here.line) == MAX_LINE + 1
    assert not here.has_room_for(Waiter(12, 21, 50, 0, NOT_YET))


def test_who_waits_elsewhere_is_the_first_where_more_than_all_is_spent_too():
    here = account(posted=150)

    here.get_in_line(Waiter(10, 1, 50, 0, NOT_YET, away_until_ms=10_000))

    assert here.line[0].since_ms == 0


def test_who_comes_after_those_that_lack_nothing_any_more_is_the_first():
    here, busy, spent = account(reserved=80), account(2, reserved=100), account(3, posted=100)
    plan([lane([here, busy], [30]), lane([here, spent], [50], first_id=2)], {"p": 1}, 0)
    assert [each.since_ms for each in here.line] == [0, NOT_YET]
    here.settle(0, ReservationState.PENDING, ReservationState.VOIDED, 40, 0)

    plan([lane([looked(here, 1_000), looked(busy, 1_000)], [30])], {"p": 1}, 1_000)

    assert [each.since_ms for each in here.line] == [0, 1_000]


def test_a_lane_that_lets_somebody_go_first_hears_of_it_when_the_line_moves():
    spent = rolling({0: 10, 10: 50})
    plan([lane([looked(spent, 20_000)], [90])], {"p": 1}, 20_000)
    behind = plan([lane([looked(spent, 50_000)], [1], first_id=9)], {"p": 1}, 50_000)
    assert behind.verdicts[0].behind == set()  # the bucket frees ten more than is needed
    blocked = plan([lane([looked(spent, 50_000)], [20], first_id=10)], {"p": 1}, 50_000)
    assert blocked.verdicts[0].behind == {1}

    gone = plan([lane([looked(spent, 71_000)], [90])], {"p": 1}, 71_000)

    assert admitted(gone) == [1]
    assert gone.moved == {1}


def test_the_line_of_an_account_has_an_end_and_says_who_found_no_place():
    shared = account(reserved=99)
    views = [lane([shared], [2], first_id=1 + i, priority=10 + i) for i in range(MAX_LINE + 1)]

    result = plan(views, {"p": 9}, 0)

    assert [each.request_id for each in shared.line] == list(range(1, MAX_LINE + 1))
    assert result.verdicts[-1].beyond == {1: (10 + MAX_LINE, FAR, 1 + MAX_LINE)}


def is_open(lanes):
    return [each for each in lanes if each.shortfall is None]


def test_lanes_are_opened_when_the_line_moves_and_those_without_a_place_one_at_a_time():
    lanes = Lanes()
    made = [lanes.get(LaneKey("p", (1,), priority), iter([priority]).__next__)
            for priority in (5, 6, 7)]  # fmt: skip
    lack = plan([lane([account(reserved=99)], [2])], {"p": 1}, 0).verdicts[0].shortfall
    verdicts = [Verdict(lack, behind={1}), Verdict(lack, beyond={1: (7, FAR, 70)}),
                Verdict(lack, beyond={1: (6, FAR, 60)})]  # fmt: skip
    for each, verdict in zip(made, verdicts, strict=True):
        lanes.add(each)
        lanes.settle(each, verdict, (FAR, 0), 0)
    lanes.wake_behind([2], 1)
    assert is_open(lanes) == []

    assert lanes.wake_behind([1], 1)
    assert is_open(lanes) == [made[0], made[2]]
    assert lanes.wake_behind([1], 1)
    assert is_open(lanes) == [made[0], made[1], made[2]]
    assert not lanes.wake_behind([1], 1)


def test_who_is_turned_away_by_a_closed_provider_leaves_the_line():
    shared = account(reserved=60)
    plan([lane([shared], [50])], {"p": 1}, 0)
    away = lane([shared], [50])
    away.gates = [SimpleNamespace(closed=Closed("provider_down", "no answer", 0, 60_000, 60_000))]

    result = plan([away], {"p": 1}, 1)

    assert (shared.line, result.moved) == ([], {1})
