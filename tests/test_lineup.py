"""Looking at as many lanes as there are places decides the same as looking at all of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.admission.fairness import SCALE, Fairness, Shares, tenant_key
from scheduler.admission.plan import MOST_LOOKS, LaneKey, LaneView, Planner, plan
from scheduler.budget import Budget
from scheduler.ledger.account import Account
from scheduler.limits import Gates
from scheduler.request import UNTOLD_TOKENS
from scheduler.stores.lanes import Lanes
from scheduler.stores.lineup import Lineup

NOW_MS = 1_000


@dataclass
class Waiting:
    id: int
    needs: tuple[int, int, int]
    due_at_ms: int | None = None
    tokens: object = UNTOLD_TOKENS


def account(id: int, limit: int, reserved: int) -> Account:
    (cap,) = Budget("b", f"${limit / 1e9:.9f}").caps
    made = Account(id, id, "b", cap)
    made.look(NOW_MS)
    if reserved:
        made.reserve(reserved)
    return made


class World:
    """Lanes with who waits in them, and their accounts, of which each plan has its own copy.

    `times`: by tenant, how far it is, and what was given back to it; None: nobody shares.
    """

    def __init__(self, limits, lanes, times=None):
        self.accounts = {id: account(id, *each) for id, each in enumerate(limits, 1)}
        self.shares = Shares()
        if times is not None:
            self.shares.fairness = Fairness("user", {"b": 3})
        self.lanes = Lanes(self.shares)
        self.waiting = {}
        self.looks = 0
        next_id = iter(range(1, 10_000)).__next__
        for key, needs, order in lanes:
            lane = self.lanes.get(key, next_id)
            rows = self.waiting.setdefault(lane.id, [])
            for place, need in enumerate(needs):
                id = order + 1_000 * place + lane.id * 50_000 % 7_919
                row = Waiting(id, (need, 0, 1), id % 7 if key.is_due else None)
                rows.append(row)
                self.lanes.add(lane, lane.key.head(row))
        ids = [row.id for rows in self.waiting.values() for row in rows]
        self.is_sound = len(ids) == len(set(ids))
        for lane in self.lanes:
            self.waiting[lane.id].sort(key=lane.key.head)
            at, back = (times or {}).get(lane.key.tenant, (0, 0))
            if times is not None:
                tenant = self.shares.of(tenant_key(lane.key))
                tenant.at, tenant.back = at * SCALE, min(at, back) * SCALE
                tenant.clock.now = 8 * SCALE
        self.lanes.risen.clear()

    def views(self, lanes):
        self.looks += len(lanes)
        return [
            LaneView(each.key, [self.accounts[id] for id in each.key.budgets],
                     iter(self.waiting[each.id]), tenant=self.tenant(each.key))
            for each in lanes
        ]  # fmt: skip

    def tenant(self, key):
        return self.shares.of(tenant_key(key)) if self.shares.fairness is not None else None


KEYS = st.builds(
    LaneKey,
    st.sampled_from(["p", "q", "r"]),
    st.sampled_from([(1,), (2,), (1, 2), (3,), ()]),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["", "m"]),
    st.sampled_from([False, False, False, True]),
    tenant=st.sampled_from(["", "a", "b"]),
    is_due=st.sampled_from([False, False, True]),
    is_shared=st.just(False),
    service=st.just(""),
)
TIMES = st.none() | st.dictionaries(
    st.sampled_from(["", "a", "b"]), st.tuples(st.integers(0, 30), st.integers(0, 10))
)
LANES = st.lists(
    st.tuples(KEYS, st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 900)),
    max_size=12,
)
LIMITS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=3, max_size=3)
SLOTS = st.dictionaries(st.sampled_from(["p", "q", "r"]), st.integers(0, 9))


# Where the most urgent one has no place, the oldest of those that are less urgent than the next one.
NO_PLACE = [(LaneKey("p", (1,), 0), [0] * 6, 1), (LaneKey("p", (1,), 2), [0, 0], 1),
            (LaneKey("p", (1,), 3), [0], 1), (LaneKey("q", (1,), 1), [0], 1)]  # fmt: skip


@example([(0, 0)] * 3, NO_PLACE, {"p": 7}, 9, 1, None)
@given(LIMITS, LANES, SLOTS, st.integers(0, 40), st.integers(1, 5), TIMES)
def test_a_walk_decides_as_a_look_at_all_lanes(limits, lanes, slots, before, at_once, times):
    world = World(limits, lanes, times)
    if not world.is_sound:
        return
    other = copy.deepcopy(world)

    whole = plan(other.views(list(other.lanes)), slots, NOW_MS, admitted_before=before)
    lineup = Lineup(world.lanes.open, world.views, Gates(), slots, NOW_MS, at_once)
    walk = Planner(lineup, slots, NOW_MS, before).decide()

    assert [each.id for each in walk.admitted] == [each.id for each in whole.admitted]
    assert {each.id for each, _ in walk.refused} == {each.id for each, _ in whole.refused}
    told = {lane.key: verdict for lane, verdict in zip(lineup.looked, walk.verdicts, strict=True)}
    for lane, verdict in zip(other.lanes, whole.verdicts, strict=True):
        assert told.get(lane.key, type(verdict)()).shortfall == verdict.shortfall
    for lane, rest in zip(lineup.looked, walk.rests, strict=True):
        gone = {each.id for each in walk.admitted}
        assert all(
            lane.key.head(row) >= rest for row in world.waiting[lane.id] if row.id not in gone
        )


def many(count, need=1, limit=10, reserved=0):
    keys = [LaneKey("p", (n,), 5) for n in range(1, count + 1)]
    return World([(limit, reserved)] * count, [(key, [need], 1) for key in keys])


def walk_of(world, places):
    lineup = Lineup(world.lanes.open, world.views, Gates(), {"p": places}, NOW_MS)
    decided = Planner(lineup, {"p": places}, NOW_MS, 0).decide()
    for lane, verdict, rest in zip(lineup.looked, decided.verdicts, decided.rests, strict=True):
        admitted = {each.id for each in decided.admitted}
        gone = [row for row in world.waiting[lane.id] if row.id in admitted]
        if gone:
            world.lanes.remove(lane, NOW_MS, len(gone))
        world.lanes.settle(lane, verdict, rest, NOW_MS)
    return decided


def test_it_looks_at_as_many_lanes_as_there_are_places():
    world = many(5_000)

    assert len(walk_of(world, 8).admitted) == 8
    assert world.looks <= 8 + 1


def test_without_a_place_it_looks_at_none():
    world = many(5_000)

    assert walk_of(world, 0).admitted == []
    assert world.looks == 0


def test_lanes_from_which_nobody_goes_are_shut_in_slices_and_each_once():
    world = many(1_000, need=5, limit=5, reserved=1)

    plans = [walk_of(world, 8) for _ in range(5)]

    assert [each.is_cut for each in plans] == [True, True, True, False, False]
    assert world.looks == 1_000
    assert len(world.lanes.open) == 0
    assert len(plans[0].verdicts) == MOST_LOOKS + 1
