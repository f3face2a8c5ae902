"""The planner that looks at a few lanes at a time decides as if it saw all of them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.admission.plan import MOST_IN_VAIN, LaneKey, LaneView, Planner, Verdict, plan
from scheduler.budget import parse_caps
from scheduler.ledger.account import Account
from scheduler.limits import Gates
from scheduler.limits.meter import Limits
from scheduler.limits.words import ProviderRules
from scheduler.request import Tokens
from scheduler.stores.lanes import Lanes

BUDGETS = (1, 2, 3)


@dataclass(frozen=True)
class Waiting:
    id: int
    need: int
    tokens = Tokens()

    @property
    def needs(self):
        return (self.need, self.need, 1)


def make_accounts(reserved):
    made = {}
    for number, amount in zip(BUDGETS, reserved, strict=True):
        account = made[number] = Account(number, number, f"b{number}", parse_caps("100 tokens")[0])
        account.look(0)
        account.reserve(amount)
    return made


def make_gates():
    """At provider `p` some models wait after each request; the others have no rules."""
    limits = {name: Limits(requests_per_minute=3) for name in ("m", "")}
    return Gates({"p": ProviderRules(model_limits=limits)})


def a_view(key, waiting, accounts, gates):
    mine = [accounts[each] for each in key.budgets]
    return LaneView(key, mine, iter(waiting), gates.of(key.provider, key.model))


def told(result, accounts):
    lines = {number: [(each.request_id, each.bypassed) for each in account.line]
             for number, account in accounts.items()}  # fmt: skip
    return (
        [each.id for each in result.admitted],
        [(each.id, lack.reason) for each, lack in result.refused],
        {number: account.reserved for number, account in accounts.items()},
        lines,
        result.places.opens_at_ms,
    )


LANES = st.lists(
    st.tuples(
        st.builds(
            LaneKey,
            st.sampled_from(["p", "q", "full"]),
            st.sets(st.sampled_from(BUDGETS), max_size=2).map(sorted).map(tuple),
            st.sampled_from([0, 10, 20]),
            st.sampled_from([True, True, True, False]),
            st.sampled_from(["m", "", "o"]),
            st.sampled_from([False, False, False, True]),
        ),
        st.integers(1, 6),
    ),
    max_size=25,
    unique_by=lambda each: each[0],
)


@settings(max_examples=500, deadline=None)
@given(
    lanes=LANES,
    data=st.data(),
    reserved=st.tuples(*[st.integers(0, 90)] * 3),
    slots=st.fixed_dictionaries({"p": st.integers(0, 6), "q": st.integers(0, 20)}),
    admitted_before=st.integers(0, 15),
)
def test_a_few_lanes_at_a_time_decide_the_same_as_all_at_once(
    lanes, data, reserved, slots, admitted_before
):
    slots = {**slots, "full": 0}
    owners = [number for number, (_, size) in enumerate(lanes) for _ in range(size)]
    order = data.draw(st.permutations(owners)) if owners else []
    waiting = {number: [] for number in range(len(lanes))}
    for request_id, number in enumerate(order, 1):
        waiting[number].append(
            Waiting(request_id, data.draw(st.sampled_from([0, 1, 5, 30, 60, 120])))
        )
    is_vague = data.draw(st.booleans())  # of the oldest no more is known than a lower bound

    whole_accounts, gates = make_accounts(reserved), make_gates()
    views = [a_view(key, waiting[number], whole_accounts, gates)
             for number, (key, _) in enumerate(lanes)]  # fmt: skip
    whole = plan(views, slots, 0, admitted_before=admitted_before)

    accounts, gates, book = make_accounts(reserved), make_gates(), Lanes()
    ids = count()
    for number, (key, size) in enumerate(lanes):
        lane = book.get(key, ids.__next__)
        book.add(lane, size, max(0, waiting[number][0].id - 3 * is_vague))
    planner = Planner(slots, 0, admitted_before=admitted_before)
    looked_at = []
    while batch := book.batch(planner):
        looked_at += batch
        planner.look([a_view(each.key, waiting[each.id], accounts, gates) for each in batch])
    found = planner.finish()

    assert len({lane.id for lane in looked_at}) == len(looked_at)
    assert told(found, accounts) == told(whole, whole_accounts)
    by_lane = {lane.id: verdict for lane, verdict in zip(looked_at, found.verdicts, strict=True)}
    for number, verdict in enumerate(whole.verdicts):
        lazy = by_lane.get(number, Verdict())
        assert lazy.shortfall == verdict.shortfall
        assert (lazy.wakes, lazy.behind, lazy.held) == (verdict.wakes, verdict.behind, verdict.held)


def a_book(keys, first_ids=None):
    book, ids = Lanes(), count(1)
    for number, key in enumerate(keys):
        lane = book.get(key, ids.__next__)
        book.add(lane, 1, first_ids[number] if first_ids else lane.id)
    return book


def run(book, slots, waiting, accounts=None, gates=None, admitted_before=0):
    """One turn; who was admitted, and how many lanes were looked at."""
    planner = Planner(slots, 0, admitted_before=admitted_before)
    looked_at = []
    while batch := book.batch(planner):
        looked_at += batch
        planner.look([
            a_view(each.key, [waiting[each.id]], accounts or {}, gates or Gates()) for each in batch
        ])  # fmt: skip
    found = planner.finish()
    for candidate in found.admitted:
        book.remove(book.by_id(candidate.id), 0)
    for lane, verdict in zip(looked_at, found.verdicts, strict=True):
        book.settle(lane, verdict, 0)
    return found, len(looked_at)


@pytest.mark.parametrize("number", [10, 1_000])
@pytest.mark.parametrize("models", [False, True])
def test_a_turn_looks_at_as_many_lanes_as_it_has_places(number, models):
    keys = [LaneKey("p", (), 10, True, f"m{each}") if models
            else LaneKey("p", (1_000 + each,), 10, True, "m") for each in range(number)]  # fmt: skip
    book = a_book(keys)
    waiting = {number: Waiting(number, 1) for number in range(1, number + 1)}
    accounts = {1_000 + each: deepcopy(make_accounts((0, 0, 0))[1]) for each in range(number)}

    found, looked = run(book, {"p": 8}, waiting, accounts)

    assert [each.id for each in found.admitted] == list(range(1, 9))
    assert looked == 8


def test_a_gate_where_somebody_waits_costs_one_look_however_many_lanes_wait_behind_it():
    gates, keys = make_gates(), [LaneKey("p", (each,), 10, True, "m") for each in range(500)]
    book = a_book([*keys, LaneKey("p", (500,), 10, True, "other")])
    waiting = {number: Waiting(number, 0) for number in range(1, 502)}
    account = make_accounts((0, 0, 0))[1]

    found, looked = run(book, {"p": 8}, waiting, dict.fromkeys(range(501), account), gates)

    assert [each.id for each in found.admitted] == [1, 501]
    assert looked <= 16


def test_a_turn_that_looks_in_vain_goes_on_in_the_next_one_and_reaches_whoever_fits():
    many = 3 * MOST_IN_VAIN
    book = a_book([LaneKey("p", (1 + (each == many),), 10, True, f"m{each}")
                   for each in range(many + 1)])  # fmt: skip
    waiting = {number: Waiting(number, 50) for number in range(1, many + 2)}
    accounts = make_accounts((90, 0, 0))

    turns = 0
    while True:
        turns += 1
        found, looked = run(book, {"p": 8}, waiting, accounts)
        assert looked < 2 * MOST_IN_VAIN
        if found.admitted:
            break
        assert found.look_again_at_ms == 0, "there are lanes that it has not looked at"

    assert [each.id for each in found.admitted] == [many + 1]
    assert turns <= 4


def test_lanes_that_wait_at_their_own_gates_keep_nobody_else_from_being_looked_at():
    models = [f"m{each}" for each in range(2 * MOST_IN_VAIN)]
    limits = {name: Limits(requests_per_minute=1) for name in models}
    gates = Gates({"p": ProviderRules(model_limits=limits)})
    for name in models:
        for gate in gates.of("p", name):
            gate.take(0, Tokens(), 0)
    book = a_book([LaneKey("p", (), 10, True, name) for name in [*models, "free"]])
    waiting = {number: Waiting(number, 0) for number in range(1, len(models) + 2)}

    found, _ = run(book, {"p": 8}, waiting, gates=gates)

    assert [each.id for each in found.admitted] == [len(models) + 1]


def test_many_lanes_are_opened_bit_by_bit_the_most_urgent_first():
    book = a_book([LaneKey("p", (1,), 10 + each % 3, True, f"m{each}") for each in range(3_000)])
    lack = plan(
        [a_view(LaneKey("p", (1,), 0), [Waiting(1, 500)], make_accounts((0, 0, 0)), Gates())],
        {"p": 1}, 0,
    ).verdicts[0]  # fmt: skip
    lanes = list(book)
    for lane in lanes:
        book.settle(lane, lack, 0)

    book.wake_on(1, 5)
    assert book.due_ms == 5
    book.batch(Planner({"p": 1}, 5))
    opened = [lane for lane in lanes if lane.shortfall is None]

    assert len(opened) == 1_000
    assert {lane.key.priority for lane in opened} == {10}
    for _ in range(2):
        book.batch(Planner({"p": 1}, 5))
    assert all(lane.shortfall is None for lane in lanes)
    assert book.due_ms is None
