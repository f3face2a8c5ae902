"""Who goes next: tenants by their turn, deadlines by their instant; as properties, and against a definition."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.admission.fairness import (
    SCALE,
    Clock,
    Fairness,
    Shares,
    Tenant,
    TenantKey,
    tenant_key,
)
from scheduler.admission.plan import AGING, LaneKey, LaneView, plan
from scheduler.errors import ConfigError
from scheduler.ledger.account import FAR
from scheduler.limits import Gates, Heard, ProviderRules, Report
from scheduler.limits.meter import Limits
from scheduler.request import Request, RequestState, Tokens
from scheduler.stores.base import NewRequest, Outcome, Settlement, Turn
from scheduler.stores.memory import MemoryStore

T0 = 1_767_225_600_000
MOST = 1_000  # no ceiling is higher


class Provider:
    """A store, a provider with some places, and tenants who ask there, all from one seed.

    Notes for each tenant what was served: reserved for calls under way, and spent.
    """

    def __init__(self, seed, places, weights, models=("m",), *, is_exact=False):
        self.rng, self.places, self.models = random.Random(seed), places, models
        self.store = MemoryStore()
        self.weights, self.served = weights, Counter()
        self.store.share(Fairness("user", weights))
        self.waiting, self.running, self.back = Counter(), [], Counter()
        self.now_ms, self.is_exact = T0, is_exact

    def ask(self, tenant, ceiling, **lane):
        key = LaneKey("p", (), lane.pop("priority", 10), True, self.rng.choice(self.models),
                      tenant=tenant)  # fmt: skip
        self.waiting[tenant] += 1
        return NewRequest(Request({"tenant": tenant}), key, ceiling)

    async def turn(self, new, most=None):
        """End some calls, and let others go; gives who went, in order."""
        self.rng.shuffle(self.running)
        count = self.rng.randint(0, len(self.running)) if most is None else most
        settle, self.running = self.running[:count], self.running[count:]
        ends = []
        for claimed, tenant in settle:
            ceiling = claimed.ceiling_nusd
            cost = (
                ceiling
                if self.is_exact
                else self.rng.choice([0, ceiling, ceiling // 10, self.rng.randint(0, ceiling)])
            )
            self.served[tenant] -= ceiling - cost
            self.back[tenant] += ceiling - cost
            outcome = Outcome.POST if cost else Outcome.VOID
            model = claimed.request.body.get("model", "m")
            heard = Report(claimed.request_id, "p", model, Heard.ANSWERED, self.now_ms)
            ends.append(Settlement(claimed.reservation_id, claimed.request_id, outcome,
                                   RequestState.SUCCEEDED, cost, report=heard))  # fmt: skip
        self.now_ms += 1
        slots = {"p": self.places - len(self.running)}
        result = await self.store.turn(Turn(self.now_ms, ends, submit=new, slots=slots))
        for claimed in result.claimed:
            tenant = claimed.request.body["tenant"]
            self.running.append((claimed, tenant))
            self.waiting[tenant] -= 1
            yield tenant, claimed.ceiling_nusd

    def share(self, tenant):
        return self.served[tenant] / self.weights.get(tenant, 1)


@given(
    seed=st.integers(0, 1 << 32),
    places=st.sampled_from([1, 1, 2, 5, 20]),
    weights=st.sampled_from([{}, {"a": 2}, {"a": 0.5, "b": 3}, {"c": 100}]),
    dear=st.sampled_from([(10, 10), (1, MOST), (MOST, 30), (500, 400)]),
)
def test_two_that_always_wait_are_never_further_apart_than_two_ceilings(
    seed, places, weights, dear
):
    """Counted is what is reserved and what was spent: so what is given back to one of them, of calls
    that were under way at once, is a distance that no order could have foreseen.
    """

    async def main():
        world = Provider(seed, places, weights, models=("m", "n", "o"))
        rng, most = world.rng, dict(zip("ab", dear, strict=True))
        bound = 2 * max(most[each] / weights.get(each, 1) for each in "ab")
        since = {
            each: Counter() for each in "ab"
        }  # at its last admission: what was given back so far
        for _ in range(60):
            new = [world.ask(each, rng.randint(1, most[each])) for each in "ab"
                   for _ in range(2 * places - world.waiting[each])]  # fmt: skip
            for other in rng.sample(["c", "d", "e"], rng.choice([0, 0, 1, 3])):
                priority = rng.choice([10, 10, 10, 20])
                new.append(world.ask(other, rng.randint(1, MOST), priority=priority))
            rng.shuffle(new)
            async for tenant, ceiling in world.turn(new):
                world.served[tenant] += ceiling
                if tenant not in since:
                    continue
                since[tenant] = Counter(world.back)
                other = "b" if tenant == "a" else "a"
                ahead = world.share(tenant) - world.share(other)
                assert ahead <= bound / 2 + 1, "it was not its turn"
            for one, other in ("ab", "ba"):
                given = world.back[other] - since[one][other]
                ahead = world.share(one) - world.share(other)
                assert ahead <= bound + 1 + given / weights.get(other, 1)

    asyncio.run(main())


@given(seed=st.integers(0, 1 << 32), count=st.integers(2, 6), weight=st.sampled_from([1, 1, 4]))
def test_one_after_the_other_all_stay_within_two_ceilings_at_every_instant(seed, count, weight):
    """With one place nothing is under way when the next one goes: the bound is the plain one."""

    async def main():
        names = [f"t{n}" for n in range(count)]
        world = Provider(seed, 1, {"t0": weight})
        for _ in range(150):
            new = [world.ask(each, world.rng.randint(1, MOST)) for each in names
                   if world.waiting[each] < 2]  # fmt: skip
            async for tenant, ceiling in world.turn(new, most=len(world.running)):
                world.served[tenant] += ceiling
            shares = [world.share(each) for each in names]
            assert max(shares) - min(shares) <= 2 * MOST + 1

    asyncio.run(main())


@given(seed=st.integers(0, 1 << 32), places=st.integers(1, 8), idles=st.integers(0, 200))
def test_a_newcomer_is_served_at_once_and_idleness_is_no_credit(seed, places, idles):
    async def main():
        world = Provider(seed, places, {}, is_exact=True)
        went = []
        for turn in range(60 + idles):
            new = [world.ask("busy", 100) for _ in range(2 * places - world.waiting["busy"])]
            if turn == 2:
                new.append(world.ask("new", 100))
            if turn == 30 + idles:  # it comes back, with as many as the other one
                went.clear()
                assert world.waiting["new"] == 0
            if turn >= 30 + idles:
                new += [world.ask("new", 100) for _ in range(2 * places - world.waiting["new"])]
            first = []
            async for tenant, ceiling in world.turn(new, most=len(world.running)):
                world.served[tenant] += ceiling
                first.append(tenant)
            if turn == 2:
                assert "new" in first[:2]
            went += first
        assert abs(went.count("new") - went.count("busy")) <= 2 * places + 2

    asyncio.run(main())


def test_who_may_not_go_for_a_limit_of_rates_saves_nothing_up():
    """Its model let nothing through while others used another: then it shares that, no more."""

    async def main():
        world = Provider(1, 1, {}, is_exact=True)
        rules = ProviderRules(Limits(), {"slow": Limits(requests_per_minute=1)})
        world.store.use(Gates({"p": rules}))

        def ask(tenant, model):
            key = LaneKey("p", (), 10, True, model, tenant=tenant)
            return NewRequest(Request({"tenant": tenant, "model": model}), key, 100)

        await world.store.turn(Turn(world.now_ms, submit=[ask("held", "slow") for _ in range(20)]))
        await world.store.turn(Turn(world.now_ms, submit=[ask("free", "fast") for _ in range(200)]))
        went = []
        for turn in range(80):
            if turn == 60:
                went.clear()
                more = [ask("held", "fast") for _ in range(50)]
                await world.store.turn(Turn(world.now_ms, submit=more))
            async for tenant, _ in world.turn([], most=len(world.running)):
                went.append(tenant)
        assert 9 <= went.count("held") <= 11

    asyncio.run(main())


# The order itself, against what it is said to be


@dataclass
class Waiting:
    id: int
    needs: tuple[int, int, int]
    due_at_ms: int | None
    tokens = Tokens()


LANES = st.lists(
    st.tuples(
        st.sampled_from(["p", "q"]), st.sampled_from([0, 10, 20]), st.sampled_from(["", "a", "b"]),
        st.booleans(), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1,
                                max_size=5),
    ),
    max_size=8,
)  # fmt: skip


def views(lanes, shares):
    ids = iter(range(1, 1_000))
    made = []
    for number, (provider, priority, tenant, is_due, rows) in enumerate(lanes):
        key = LaneKey(provider, (), priority, True, f"m{number}", tenant=tenant, is_due=is_due)
        waiting = [Waiting(next(ids), (need, 0, 1), due if is_due else None) for need, due in rows]
        waiting.sort(key=key.head)
        whose = shares.of(tenant_key(key)) if shares.fairness else None
        made.append(LaneView(key, [], iter(waiting), tenant=whose))
    return made


def by_definition(lanes, places, before, shares):
    """Who goes, one after the other, by looking at all who wait each time."""
    ids, waiting = iter(range(1, 1_000)), []
    for provider, priority, tenant, is_due, rows in lanes:
        for need, due in rows:
            waiting.append(
                (provider, priority, tenant, is_due, due if is_due else FAR, next(ids), need)
            )
    went = []
    places = dict(places)

    def whose(each):
        key = LaneKey(each[0], (), each[1], tenant=each[2])
        return shares.of(tenant_key(key)) if shares.fairness else Tenant(Clock(), 1)

    def first_there(those):
        return min(those, key=lambda each: (whose(each).start, each[4], each[5]))

    while True:
        open_ = [each for each in waiting if places.get(each[0], 0) > 0]
        if not open_:
            return went
        firsts = []
        for provider in {each[0] for each in open_}:
            here = [each for each in open_ if each[0] == provider]
            urgent = min(each[1] for each in here)
            firsts.append(first_there([each for each in here if each[1] == urgent]))
        first = min(firsts, key=lambda each: (each[1], whose(each).lead, each[4], each[5]))
        chosen, is_in_turn = first, True
        if (before + len(went)) % AGING == AGING - 1:
            levels = {}
            for each in open_:
                if (each[1], not each[3]) > (first[1], not first[3]):
                    levels.setdefault((each[0], each[1], each[3]), []).append(each)
            aged = [first_there(those) for those in levels.values()]
            if aged:
                chosen, is_in_turn = min(aged, key=lambda each: each[5]), False
        waiting.remove(chosen)
        places[chosen[0]] -= 1
        went.append(chosen[5])
        whose(chosen).admit(chosen[6], is_in_turn=is_in_turn)


TIMES = st.none() | st.dictionaries(
    st.tuples(
        st.sampled_from(["p", "q"]), st.sampled_from([0, 10, 20]), st.sampled_from(["", "a", "b"])
    ),
    st.tuples(st.integers(0, 60), st.integers(0, 20)),
)


@settings(max_examples=300)
@given(LANES, st.tuples(st.integers(0, 30), st.integers(0, 30)), st.integers(0, 40), TIMES)
def test_the_plan_goes_by_the_order_as_it_is_said(lanes, places, before, times):
    def shares():
        made = Shares()
        made.fairness = None if times is None else Fairness("user", {"b": 2})
        for (provider, priority, tenant), (at, back) in (times or {}).items():
            whose = made.of(TenantKey(provider, priority, tenant))
            whose.at, whose.back, whose.clock.now = at * SCALE, min(at, back) * SCALE, 20 * SCALE
        return made

    free = dict(zip("pq", places, strict=True))
    decided = plan(views(lanes, shares()), free, 0, admitted_before=before)

    assert [each.id for each in decided.admitted] == by_definition(lanes, free, before, shares())


# What is said


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True, 1e9, None])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ConfigError, match="weights"):
        Fairness("user", {"ann": weight})


@pytest.mark.parametrize("by", ["", 7])
def test_what_is_no_tag_is_refused(by):
    with pytest.raises(ConfigError, match="fair_by"):
        Fairness(by)


def test_times_are_whole_and_a_weight_divides_them():
    fairness = Fairness("user", {"ann": 2, "bob": 0.25})

    assert [fairness.units(each) for each in ("ann", "bob", "eve")] == [
        SCALE // 2, 4 * SCALE, SCALE
    ]  # fmt: skip
    assert fairness.tenant_of({"user": "ann", "team": "x"}) == "ann"
    assert fairness.tenant_of({"team": "x"}) == ""


def test_the_clock_goes_on_with_those_whose_turn_it_is_alone():
    clock = Clock(whole := Clock())
    ann, bob = Tenant(clock, SCALE), Tenant(clock, SCALE)
    ann.admit(100)
    ann.admit(50, is_in_turn=False)
    assert (clock.now, ann.start, bob.start) == (0, 150 * SCALE, 0)

    ann.admit(10)
    assert clock.now == whole.now == bob.start == 150 * SCALE
    assert (ann.lead, ann.turn, bob.lead) == (10 * SCALE, 160 * SCALE, 0)

    bob.admit(1)  # it was behind, and is no further behind than the clock
    assert bob.at == 151 * SCALE
