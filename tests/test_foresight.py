"""What calls under way are expected to cost: the rules alone, as tables and properties."""

from __future__ import annotations

import math
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.budget import Budget, parse_caps
from scheduler.errors import ConfigError
from scheduler.foresight import PRESETS, Flight, Histories, History, Pool, Risk, drift, recall
from scheduler.foresight.drift import stretch
from scheduler.foresight.recall import EVER_MS, Recall, Seen, first_seen_ms
from scheduler.foresight.reserve import Load
from scheduler.foresight.survival import FEW, TELLING, Outlook, estimate, share_of_ceiling
from scheduler.foresight.tail import Tail, find_tail
from scheduler.ledger.account import Account

KIND = ("m", "")
U = 1_000


def history(ends, ceiling=U):
    """Calls that began at 0: how long each took, and what it cost."""
    made = History()
    for took_ms, cost in sorted(ends):
        made.learn(0, took_ms, (cost, cost), (ceiling, ceiling))
    return made


# The estimator


def test_calls_that_have_not_ended_make_the_others_count_for_more():
    """Kaplan and Meier's product, with one more call that never ends."""
    # Of ten that began together four have ended; the others have lasted 5.
    curve = history([(1, 10), (2, 20), (3, 30), (4, 40)]).curve(0, [0] * 6, 5)

    # 1 - 1/11, then 1 - 1/10 of it, then 8/9, then 7/8: seven of eleven have not ended.
    _, rest = curve._beyond[0]
    assert rest == pytest.approx(7 / 11)
    assert curve.outlook(0, U).mean == pytest.approx(4 / 11 * 25 + 7 / 11 * U)


def test_looking_only_at_calls_that_ended_expects_too_little():
    ends = [(n, 10 * n) for n in range(1, 21)]

    blind = history(ends).curve(0, (), 20)
    right = history(ends).curve(0, [0] * 20, 20)

    assert blind.outlook(0, U).mean < 0.5 * right.outlook(0, U).mean


def test_who_began_before_one_looked_counts_from_the_age_it_had_then():
    # Two began at 0 and ended at 11 and 12; what ended before 10 is forgotten. Two began at 10 and
    # ended at 11 and 13.
    seen = history([]).__class__()
    for made_at_ms, ended_at_ms in ((0, 11), (10, 11), (0, 12), (10, 13)):
        seen.learn(made_at_ms, ended_at_ms, (ended_at_ms - made_at_ms, 0), (U, 0))
    curve = estimate(seen.memory.last, (), [(0, 10)], 13, 0)

    # At age 1 the two old ones were not there yet: two at risk, and the one that never ends.
    # At 3 one; at 11 and 12 the old ones, who joined at 10.
    expected = [1.0, 1 - 1 / 3, (1 - 1 / 3) * (1 - 1 / 2)]
    expected.append(expected[-1] * (1 - 1 / 3))
    expected.append(expected[-1] * (1 - 1 / 2))
    from scheduler.foresight.survival import _weigh

    found, hazards, rest = _weigh([1, 3, 11, 12], [10, 10], [1, 3, 11, 12])
    survived = [1.0]
    for weight in found:
        survived.append(survived[-1] - weight)
    assert survived == pytest.approx(expected)
    assert rest == pytest.approx(expected[-1])
    assert hazards == pytest.approx(
        [0, 1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1 / 3, 1 / 3 + 1 / 2 + 1 / 3 + 1 / 2]
    )
    assert curve.count == 4


def test_the_dear_ones_are_left_when_the_cheap_ones_have_ended():
    curve = history([(n, 10 * n) for n in range(1, 51)]).curve(0, (), 50)

    means = [curve.outlook(age, U).mean for age in (0, 10, 25, 40)]

    assert means == sorted(means)
    assert means[-1] > 1.6 * means[0]


@pytest.mark.parametrize("longer", range(FEW))
def test_of_so_few_that_took_longer_nothing_is_concluded(longer):
    # No tail: cost has nothing to do with time.
    curve = history([(n, 50) for n in range(1, 51)]).curve(0, (), 50)

    assert curve.outlook(50 - longer, U) == (float(U), 0.0, 0.0, 0.0)


def test_what_of_a_ceiling_is_spent_in_any_case_is_found():
    made = History()
    for n in range(60):
        known = 100 * (n % 7)
        made.learn(0, 1 + n % 5, (known + 10 + n % 3, 0), (known + U, 0))
    curve = made.curve(0, (), 5)

    assert share_of_ceiling(made.memory.last, 0) == pytest.approx(1, abs=0.01)
    assert curve.outlook(0, 600 + U).mean - curve.outlook(0, U).mean == pytest.approx(600, rel=0.05)


def test_amounts_of_each_unit_are_told_apart():
    made = History()
    for n in range(1, 61):
        made.learn(0, n, (5 * n, 7), (U, 9))

    assert made.curve(1, (), 60).outlook(0, 9).mean == pytest.approx(7, abs=0.1)
    assert made.curve(0, (), 60).outlook(0, U).mean > 100


costs = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 2 * U), st.integers(0, 2 * U)),
    min_size=1, max_size=60,
)  # fmt: skip


@settings(max_examples=200)
@given(
    ends=costs, under_way=st.lists(st.integers(0, 10_000), max_size=20),
    instants=st.lists(st.integers(0, 10_000), min_size=1, max_size=4), age_ms=st.integers(0, 30_000),
    ceiling=st.integers(1, 3 * U),
)  # fmt: skip
def test_what_is_expected_is_something_and_at_most_the_ceiling(
    ends, under_way, instants, age_ms, ceiling
):
    made = History()
    for took_ms, cost, held in ends:
        made.learn(10_000 - took_ms, 10_000, (cost, 0), (held, 0))
    horizons = [(100 * n, at_ms) for n, at_ms in enumerate(sorted(instants, reverse=True))]
    curve = estimate(made.memory.last, under_way, horizons, 10_000, 0)

    mean, variance, third, gap = curve.outlook(age_ms, ceiling)

    assert mean <= ceiling + 1e-6
    assert variance >= 0
    assert gap >= 0
    assert all(math.isfinite(each) for each in (mean, variance, third, gap))


# What is remembered


def test_short_calls_do_not_make_one_forget_the_long_ones():
    made = History()
    for n in range(5_000):
        made.learn(n, 100 + n, (5, 0), (U, 0))
    for n in range(60):  # one each second, which takes half a minute, or a little more
        made.learn(1_000 * n, 1_000 * n + 30_000 + 100 * n, (500, 0), (U, 0))
    for n in range(5_000):
        made.learn(100_000 + n, 100_100 + n, (5, 0), (U, 0))

    curve = made.curve(0, (), 105_100)

    assert curve.outlook(0, U).mean < 20
    assert 500 <= curve.outlook(10_000, U).mean < 550


def test_of_calls_that_are_alike_the_last_are_remembered():
    made = Recall()
    for n in range(2 * recall.KEPT):
        made.add(Seen(n, 100, (n, 0), (U, 0)))

    assert [each.made_at_ms for each in made.all()] == list(range(recall.KEPT, 2 * recall.KEPT))
    assert made.horizons() == [(0, recall.KEPT - 1 + 100)]


def test_of_each_length_about_as_many_is_no_plain_sample_and_counts_as_a_smaller_one():
    made = History()
    for n in range(2 * recall.KEPT):
        made.learn(10 * n, 10 * n + 5, (n, 0), (U, 0))

    assert len(made.memory.of_each_length.all()) == recall.KEPT
    assert made.curve(0, (), 20 * recall.KEPT).count == TELLING < recall.KEPT


begun = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=60)


@settings(max_examples=300)
@given(begun=begun, under_way=st.lists(st.integers(0, 60), max_size=10))
def test_of_each_age_all_are_known_who_reached_it_since_the_instant_from_which_one_looks(
    begun, under_way
):
    """So what is forgotten makes a guess less sure, but not another one."""
    calls = [Seen(at_ms, took_ms, (0, 0), (U, 0)) for at_ms, took_ms in begun]
    made = Recall()
    with mock.patch.object(recall, "KEPT", 8):
        for each in sorted(calls, key=lambda each: each.made_at_ms + each.took_ms):
            made.add(each)
    horizons = made.horizons()

    assert [from_ms for from_ms, _ in horizons] == sorted(from_ms for from_ms, _ in horizons)
    assert len(made.all()) == min(8, len(calls))
    now_ms = 101
    ages = [(each.made_at_ms, each.took_ms) for each in calls]
    known = [(each.made_at_ms, each.took_ms) for each in made.all()]
    lasting = [(at_ms, now_ms - at_ms) for at_ms in under_way]
    for age_ms in range(1, 110):
        since_ms = [at_ms for from_ms, at_ms in horizons if from_ms < age_ms][-1]
        there = [each for each in ages + lasting if each[1] >= age_ms]
        looked_at = [each for each in known + lasting if each[1] >= age_ms]
        looked_at = [each for each in looked_at if first_seen_ms(each[0], horizons) < age_ms]
        assert sorted(looked_at) == sorted(each for each in there if each[0] + age_ms > since_ms)


def test_of_many_who_ended_in_one_instant_something_is_known():
    made = History()
    for n in range(2 * recall.KEPT):
        made.learn(n % 2, 100, (10, 0), (U, 0))

    assert made.curve(0, (), 100).outlook(0, U).mean < 20


def learned(kinds):
    histories = Histories()
    for n, (model, job) in enumerate(kinds):
        cost = {"a": 100, "b": 300}[job]
        histories.learn(Flight((model, job), 10 * n, (U, U)), 10 * n + cost, (cost + n % 5, 0))
    return histories


def test_what_a_models_only_job_told_is_remembered_once():
    histories = learned([("m", "a")] * 60)

    assert histories._of_models["m"].memory is histories._histories["m", "a"].memory


@pytest.mark.parametrize("first", ["a", "b"])
def test_each_job_goes_by_its_own_calls_and_the_model_by_all(first):
    second = {"a": "b", "b": "a"}[first]
    histories = learned([("m", first)] * 60 + [("m", second), ("m", first)] * 60)
    alone = {"a": [], "b": []}
    for job, found in alone.items():
        found += [each.costs for each in histories._histories["m", job].memory.last]
    of_model = histories._of_models["m"].memory

    assert [len(alone[first]), len(alone[second])] == [120, 60]
    assert all((cost < 200) is (job == "a") for job, found in alone.items() for cost, _ in found)
    assert sorted(each.costs for each in of_model.last) == sorted(alone["a"] + alone["b"])
    assert sorted(of_model.of_each_length.all()) == sorted(of_model.last)
    assert of_model.count == 180


def test_a_job_that_was_forgotten_and_comes_again_begins_anew_and_its_model_goes_on(monkeypatch):
    monkeypatch.setattr("scheduler.foresight.reserve.MOST_KINDS", 2)
    histories = learned([("m", "a")] * 3)
    for job in "cd":
        histories.learn(Flight(("n", job), 0, (U, U)), 1, (1, 1))
    histories.learn(Flight(("m", "a"), 0, (U, U)), 1, (1, 1))

    assert histories._histories["m", "a"].memory.count == 1
    assert histories._of_models["m"].memory.count == 4


# Changes


def steady(count=300):
    """Earlier calls: one each 10 ms, which takes 100 ms or 200, 300, …, 1,000."""
    made = History()
    ends = sorted((10 * n + 100 * (1 + n * 7 % 10), 10 * n) for n in range(count))
    for ended_at_ms, made_at_ms in ends:
        took_ms = ended_at_ms - made_at_ms
        made.learn(made_at_ms, ended_at_ms, (took_ms, 0), (U * 10, 0))
    return estimate(made.memory.last, (), [(0, EVER_MS)], 10 * count + 1_000, 0)


def test_calls_that_last_as_long_as_others_did_are_not_stretched():
    earlier = steady()
    ages = [100 * (1 + n % 10) for n in range(100)]

    assert stretch(earlier, ages, 100) == 1
    # Half of them began lately: as many have ended as should have.
    assert stretch(earlier, [min(age, 500) for age in ages], 50) == 1


@pytest.mark.parametrize("times", [2, 3])
def test_calls_of_which_too_few_have_ended_are_stretched_before_the_others_end(times):
    earlier = steady()
    full = [times * 100 * (1 + n % 10) for n in range(100)]
    ages = [min(took_ms, 600) for took_ms in full]

    found = stretch(earlier, ages, sum(took_ms <= 600 for took_ms in full))

    assert 1 + (times - 1) / 2.5 < found <= times


def test_of_few_calls_that_last_no_change_is_concluded():
    assert stretch(steady(), [1_000] * 2, 0) == 1


def test_all_is_expected_to_cost_as_many_times_more_once_lengths_have_risen():
    made = History()
    began = [(10 * n, 10 * n + 100 * (1 + n * 7 % 10)) for n in range(300)]
    for made_at_ms, ended_at_ms in sorted(began, key=lambda each: each[1]):
        made.learn(made_at_ms, ended_at_ms, (ended_at_ms - made_at_ms, 0), (U * 10, 0))
    now_ms = 4_100
    usual = made.curve(0, (), now_ms).outlook(0, U * 10)
    for n in range(16):  # of 256 that began at 3,000 none has ended but these
        made.learn(3_000, now_ms, (1_100 + n, 0), (U * 10, 0))

    risen = made.curve(0, [3_000] * 240, now_ms)

    assert risen.outlook(0, U * 10).mean > 1.5 * usual.mean
    assert risen.apart > 0


def test_a_new_job_begins_from_what_its_models_others_cost_with_more_doubt():
    histories = Histories()
    for n in range(200):
        histories.learn(
            Flight(("m", "old"), 10 * n, (U, U)), 10 * n + 50 + n % 50, (100 + n % 50, 0)
        )
    old, new, alien = (
        histories.curve(kind, 0, 50, 3_000) for kind in (("m", "old"), ("m", "new"), ("n", "old"))
    )

    assert alien is None  # nothing is carried from one model to another
    assert new.outlook(0, U).mean == pytest.approx(old.outlook(0, U).mean, rel=0.02)
    assert (old.apart, new.apart) == (0, 0.5)
    kept = []
    for kind in (("m", "old"), ("m", "new")):
        pool = Pool(PRESETS["default"], 0, histories)
        for id_ in range(100):
            pool.enter(id_, Flight(kind, 3_000, (U, U)))
        kept.append(pool.kept(3_000, 0)[1])
    assert kept[1] > 1.5 * kept[0]
    assert kept[1] < 100 * U


def test_a_new_job_is_less_doubted_the_more_of_its_calls_are_known():
    histories = Histories()
    for n in range(200):
        histories.learn(Flight(("m", "old"), 10 * n, (U, U)), 10 * n + 50, (100, 0))
    for n in range(12):
        histories.learn(Flight(("m", "new"), 3_000, (U, U)), 3_050 + n, (100, 0))

    assert histories.curve(("m", "new"), 0, 50, 4_000).apart == pytest.approx((4 + 12) ** -0.5)


def test_a_new_job_whose_calls_last_longer_is_stretched():
    def expected():
        histories = Histories()
        for n in range(200):
            flight = Flight(("m", "old"), 10 * n, (U, U))
            histories.learn(flight, 10 * n + 50 + n % 50, (10 + 10 * (n % 50), 0))
        for id_ in range(12):
            histories.enter(id_, Flight(("m", "new"), 3_000, (U, U)))
        return histories.curve(("m", "new"), 0, 50, 3_095).outlook(0, U).mean

    # Most of these should have ended within 95 ms.
    with mock.patch.object(drift, "stretch", return_value=1.0):
        unnoticed = expected()

    assert expected() > 1.1 * unnoticed


def test_what_a_ceiling_is_beyond_the_largest_that_was_seen_counts_in_full():
    curve = history([(n, 10 * n) for n in range(1, 101)], ceiling=2_000).curve(0, (), 100)

    usual, wider = curve.outlook(0, 2_000), curve.outlook(0, 50_000)

    assert wider.mean - usual.mean == pytest.approx(48_000)
    assert wider.gap == pytest.approx(usual.gap)


def test_sums_of_few_are_kept_for_by_how_skewed_they_are():
    """Two kinds of calls with the same mean and spread; of the one a few cost most of it."""
    load = {}
    for third in (0.0, 8.0 * 300**3):
        load[third] = Load()
        curve = mock.Mock(count=10**9, ripe=10**9, apart=0.0)
        curve.outlook.return_value = Outlook(300.0, 300.0**2, third, 0.0)
        for id_ in range(16):
            load[third].add(id_, KIND, curve, 0, 10_000)

    plain, skewed = (each.kept(Risk("any", 3, 0, 8)) for each in load.values())

    assert plain == pytest.approx(16 * 300 + 3 * 4 * 300, abs=2)
    assert skewed == pytest.approx(plain + 4 * 300 * 2 * (9 - 1) / 6, abs=2)


# The tail


def test_who_has_lasted_long_will_last_long():
    tail = Tail(index=1.5, at_once=0, rate=1.0, trust=1.0, last_ms=100)

    assert tail.beyond(10, 10_000) == tail.beyond(100, 10_000)
    # Without an end it would be three times as long as it is.
    assert 2 * 200 < tail.beyond(200, 10_000)[0] < 3 * 200
    assert tail.beyond(400, 300) == (300, 0, 0)


@pytest.mark.parametrize("index", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_moments_are_those_of_lengths_that_are_cut_off(index):
    tail = Tail(index, 0, 1.0, 1.0, 100)
    steps = 200_000
    low, high = 100.0, 5_000.0
    # What is above x of those above 100, summed up over x.
    mean = low + sum(
        (low / x) ** index for x in (low + (n + 0.5) * (high - low) / steps for n in range(steps))
    ) * (high - low) / steps  # fmt: skip

    assert tail.beyond(100, high)[0] == pytest.approx(mean, rel=1e-3)


def test_a_tail_that_broke_off_is_not_believed():
    ends = [(n, float(n)) for n in range(100, 160)]
    steady = [(0, took_ms) for took_ms, _ in ends] + [(0, 165)]
    endless = [(0, took_ms) for took_ms, _ in ends] + [(0, 1_000)] * 5

    believed, doubted = (find_tail(ends, each) for each in (steady, endless))

    assert believed is not None
    assert doubted is not None
    assert believed.beyond(200, 4_000)[0] < 1_000
    assert doubted.beyond(200, 4_000)[0] > 3_900


def test_where_time_says_nothing_of_cost_there_is_no_guess():
    ends = [(n, float(n % 3)) for n in range(1, 100)]

    assert find_tail(ends, [(0, took_ms) for took_ms, _ in ends]) is None
    assert find_tail(ends[:10], []) is None


# What is kept


def pool_of(risk=PRESETS["default"], calls=60, cost=100):
    histories = Histories()
    for n in range(calls):
        histories.learn(Flight(KIND, 0, (U, U)), 50 + n, (cost + n % 5, 0))
    return Pool(risk, 0, histories)


def test_few_calls_are_kept_at_their_ceilings_nearly_and_many_at_less():
    pool = pool_of()
    kept = []
    for n in range(100):
        pool.enter(n, Flight(KIND, 1_000, (U, U)))
        kept.append(pool.kept(1_000, 0)[1])

    assert kept[0] > 0.5 * U
    assert kept[-1] < 0.4 * 100 * U
    assert kept[-1] > 100 * 100


def test_what_is_kept_for_one_more_is_what_is_kept_once_it_has_begun():
    pool = pool_of()
    for n in range(20):
        told = pool.kept(1_000, 0, KIND, U)
        pool.enter(n, Flight(KIND, 1_000, (U, U)))
        assert pool.kept(1_000, 0) == told


def test_an_unknown_kind_counts_in_full():
    pool = pool_of()
    pool.enter(1, Flight(("other", ""), 1_000, (U, U)))

    assert pool.kept(1_000, 0) == (U, U)
    assert pool.kept(1_000, 0, ("third", ""), U) == (2 * U, 2 * U)


def test_who_does_not_count_in_the_window_is_left_out():
    pool = pool_of()
    pool.enter(1, Flight(KIND, 900, (U, U)))
    pool.enter(2, Flight(KIND, 1_000, (U, U)))

    assert pool.kept(1_000, 950)[0] == U


def test_a_call_that_counts_on_two_limits_is_learned_once():
    histories = Histories()
    one, two = (Pool(PRESETS["default"], unit, histories) for unit in (0, 1))
    flight = Flight(KIND, 0, (U, U))
    for pool in (one, two):
        pool.enter(7, flight)
    for pool in (one, two):
        pool.leave(7, 10, (5, 5))

    assert histories.count == 1
    assert len(one) == len(two) == 0


def test_kinds_that_were_not_asked_for_long_are_forgotten(monkeypatch):
    monkeypatch.setattr("scheduler.foresight.reserve.MOST_KINDS", 3)
    histories = Histories()
    for n in range(10):
        histories.learn(Flight((f"m{n}", ""), 0, (U, U)), 1, (1, 1))

    assert list(histories._histories) == [("m7", ""), ("m8", ""), ("m9", "")]


class Asked:
    kind = KIND


def account_of(risk, limit, calls=60):
    account = Account(1, 1, "team", parse_caps(f"{limit} tokens")[0])
    account.look(10_000)
    if risk is not None:
        account.pool = pool_of(risk, calls)
    return account


risks = st.builds(
    Risk, st.just("any"), st.floats(0, 6), st.floats(0, 2), st.integers(1, 30), st.just(50)
)


@settings(max_examples=150)
@given(
    risk=risks, needs=st.lists(st.integers(1, 2 * U), min_size=1, max_size=40),
    limit=st.integers(0, 30 * U), calls=st.sampled_from([0, 49, 50, 80]),
)  # fmt: skip
def test_a_risk_lets_in_whoever_goes_without_and_never_promises_beyond_its_bound(
    risk, needs, limit, calls
):
    """Dominance; the same decisions while too little is known; the hard bound, if all cost it all."""
    account = account_of(risk, limit, calls)
    for id_, need in enumerate(needs):
        strict, lacks = need - account.available, account.lacks(need, Asked())
        assert lacks <= max(0, strict)
        if calls < risk.warm:
            assert (lacks <= 0) == (strict <= 0)
        if lacks <= 0:
            account.reserve(need)
            account.begin(id_, KIND, (need, need, 1))
            left = account.limit - account.posted - account.suspense
            promised = account.reserved - account.suspense
            assert promised <= max(left, risk.stretch * left)
            ceilings, kept = account.pool.kept(account.looked_ms, account.oldest_ms)
            assert (ceilings, kept <= ceilings) == (promised, True)


def test_a_limit_on_requests_knows_no_risk():
    from scheduler.stores.views import risk_of

    budget = Budget("b", "$5/day, 3 requests, none tokens/hour", risk="high")

    assert [risk_of(cap, budget) for cap in budget.caps] == ["high", None, None]


# How a risk is said


def test_a_risk_is_said_in_the_limit_or_beside_it():
    said = Budget("b", "$5/day, 2M tokens risk low")

    assert said == Budget("b", "$5/day, 2M tokens", risk="low")
    assert (said.risk, said.spec, said.text) == (
        "low", "$5/day, 2000000 tokens", "$5/day, 2000000 tokens risk low",
    )  # fmt: skip
    assert Budget("b", said.text) == said
    assert Budget("b", "$5/day").risk == "none"
    assert Budget("b", "$5/day, risk=High").risk == "high"
    assert "risk low" in repr(said)


def test_a_risk_stays_until_another_one_is_said():
    low = Budget("b", "$5/day risk low")

    assert low.with_limit("$8").text == "$8/day risk low"
    assert low.with_limit("$8 risk none").text == "$8/day"
    assert low.with_limit(None).risk == "low"


@pytest.mark.parametrize(
    ("limit", "risk", "problem"),
    [
        ("$5", "hihg", "'hihg' is not one of 'none', 'low', 'default', 'high'"),
        ("$5 risk much", None, "'much' is not one of"),
        ("$5 risk low", "high", "of 'b' is 'high' and, in the limit, 'low'"),
        ("risk low", None, "is not an amount"),
    ],
)
def test_a_wrong_risk_is_an_error_that_names_the_right_ones(limit, risk, problem):
    with pytest.raises(ConfigError, match=problem):
        Budget("b", limit, risk=risk)
