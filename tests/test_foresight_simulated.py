"""How often, and how far, a budget is overspent where a risk is taken: simulated, with fixed seeds.

What looks as good is planted, and has to be found: expecting the same of old calls as of new ones,
and learning from those that have ended alone.
"""

from __future__ import annotations

from unittest import mock

import pytest

from benchmarks.foresight.lengths import as_calls, made_up
from benchmarks.foresight.simulate import Ceilings, Foreseen, PlainMean, Rule, simulate
from scheduler.foresight import PRESETS, drift, reserve, survival
from scheduler.foresight.survival import Curve

DEFAULT = PRESETS["default"]
outlook = Curve.outlook


def world(name, seed, *, ceilings=None, jitter=0.0):
    """Calls, and a budget of 60 % of what they cost, or of so many ceilings."""
    new_job = name.startswith("a new job")
    calls = as_calls(made_up(name, seed), jitter=jitter, seed=seed, new_job=new_job)
    ceiling = sum(call.ceiling for call in calls) / len(calls)
    limit = 0.6 * sum(call.cost for call in calls) if ceilings is None else ceilings * ceiling
    return calls, round(limit)


@pytest.mark.parametrize("name", ["lognormal", "pareto 1.6", "5 % run into the cap", "waves"])
def test_a_budget_is_spent_faster_and_not_beyond_it(name):
    calls, limit = world(name, 3)
    ideal, strict = (simulate(calls, limit, rule) for rule in (Rule(), Ceilings()))

    ran = simulate(calls, limit, Foreseen(DEFAULT))

    assert strict.over == 0
    assert ran.over <= 0.002
    assert ran.used >= 0.99
    assert ran.at_95_ms <= 1.35 * ideal.at_95_ms
    assert ran.at_95_ms <= strict.at_95_ms


def same_whatever_their_age(self, age_ms, ceiling):
    return outlook(self, 0, ceiling)


def test_expecting_the_same_of_calls_whatever_their_age_overspends():
    """The cheap calls end first: what is left costs more than the mean of all."""
    for seed in range(2):
        calls, limit = world("half and half, 100 and 1,200", seed, ceilings=60)
        assert simulate(calls[:600], limit, Foreseen(DEFAULT)).over <= 0.002
        with mock.patch.object(Curve, "outlook", same_whatever_their_age):
            assert simulate(calls[:600], limit, Foreseen(DEFAULT)).over > 0.02


def test_the_mean_of_all_calls_overspends_even_for_who_knows_it_beforehand():
    for seed in range(4):
        calls, limit = world("lognormal", seed)
        assert simulate(calls, limit, PlainMean(calls, sigmas=3)).over > 0.02


def test_learning_from_calls_that_have_ended_alone_overspends():
    """Of calls that began together the cheapest end first."""
    for seed in range(2):
        calls, limit = world("lognormal, wide", seed, ceilings=80)
        assert simulate(calls[:1_000], limit, Foreseen(DEFAULT)).over <= 0.002
        assert simulate(calls[:1_000], limit, Foreseen(DEFAULT, is_blind=True)).over > 0.02


@pytest.mark.parametrize(
    "name", ["three times as long after 54 %", "a new job after 54 %, three times as long"]
)
def test_lengths_that_rise_near_the_end_are_noticed(name):
    calls, limit = world(name, 1, ceilings=100)
    calls = calls[1_120:2_120]  # they rise after half of these
    with (
        mock.patch.object(drift, "stretch", return_value=1.0),
        mock.patch.object(survival, "APART", 1e-6),
    ):
        unnoticed = simulate(calls, limit, Foreseen(DEFAULT)).over

    assert simulate(calls, limit, Foreseen(DEFAULT)).over <= 0.002
    assert unnoticed > 0.01


def test_of_few_calls_one_does_not_conclude_that_there_are_no_others():
    """One in twenty costs thirty times as much as the others, and few of these have ended yet."""
    calls, limit = world("5 % near 2,500, else 80", 8, ceilings=24)
    with mock.patch.object(reserve, "UNSEEN", 0):
        rash = simulate(calls[:600], limit, Foreseen(DEFAULT)).over

    assert simulate(calls[:600], limit, Foreseen(DEFAULT)).over <= 0.002
    assert rash > 0.02


def test_even_if_every_call_cost_its_ceiling_there_is_a_bound():
    """All are cheap, until all that are let in cost all they may."""
    calls, limit = world("very short", 1)
    cheap = 700
    dear = [call._replace(cost=call.ceiling, took_ms=50_000) for call in calls[cheap:]]
    rule = Foreseen(DEFAULT)

    ran = simulate([*calls[:cheap], *dear], limit, rule)

    spent_before = sum(call.cost for call in calls[:cheap])
    assert ran.used * limit <= spent_before + DEFAULT.stretch * (limit - 0.8 * spent_before)
