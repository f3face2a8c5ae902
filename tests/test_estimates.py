"""What the rest of a batch will cost, judged by some of its calls."""

import math
import random

import pytest

from scheduler.estimates import FEWEST, Paid, Rest, total


def rest_of(requests, guess=100.0, expected=300.0, most=4096.0):
    rest = Rest()
    for _ in range(requests):
        rest.add(guess, expected, most)
    return rest


def calls(lengths, guess=100.0, price=1.0, most=4096.0):
    return [Paid(guess, guess * price, float(length), most) for length in lengths]


def test_nothing_left_costs_nothing_more():
    assert total({"m": calls([10] * 9)}, {"m": Rest()}, random.Random(1)).high == 0


def test_too_few_calls_tell_nothing():
    assert total({"m": calls([10] * (FEWEST - 1))}, {"m": rest_of(90)}, random.Random(1)) is None
    assert total({}, {"m": rest_of(90)}, random.Random(1)) is None


def test_calls_that_are_all_alike_leave_no_doubt():
    found = total({"m": calls([50] * 20, price=0.7)}, {"m": rest_of(100)}, random.Random(1))

    assert found.low == pytest.approx(found.high)
    assert found.expected == pytest.approx(100 * (70 + 50))


def test_the_same_seed_gives_the_same_interval():
    paid = {"m": calls([random.Random(3).lognormvariate(5, 1) for _ in range(40)])}

    assert total(paid, {"m": rest_of(500)}, random.Random(2)) == total(
        paid, {"m": rest_of(500)}, random.Random(2)
    )


def test_more_calls_make_it_narrower():
    rng = random.Random(4)
    lengths = [rng.lognormvariate(5, 0.5) for _ in range(200)]
    few, many = (
        total({"m": calls(lengths[:n])}, {"m": rest_of(5000)}, random.Random(1)) for n in (30, 200)
    )

    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert (few.calls, many.calls) == (30, 200)


def test_the_price_of_prompts_is_learned_from_what_they_came_to():
    # A quarter more tokens than was guessed.
    paid = [
        Paid(g, 1.25 * g, 10.0, 100.0) for g in (100.0, 300.0, 50.0, 900.0, 20.0, 60.0, 70.0, 80.0)
    ]

    found = total({"m": paid}, {"m": rest_of(10, guess=1000.0, most=100.0)}, random.Random(1))

    assert found.expected == pytest.approx(10 * (1250 + 10))


def test_each_model_is_judged_by_its_own_calls():
    paid = {"long": calls([1000] * 10), "short": calls([10] * 10)}
    found = total(paid, {"long": rest_of(1), "short": rest_of(99)}, random.Random(1))

    assert found.expected == pytest.approx(100 * 100 + 1000 + 99 * 10)


def test_a_model_with_too_few_calls_is_judged_by_all_in_proportion():
    # Twice as long as expected, and of the dear one as much is expected ten times.
    paid = {"cheap": calls([600] * 12)}
    rest = {"cheap": rest_of(12), "dear": rest_of(8, expected=3000.0, most=40960.0)}

    found = total(paid, rest, random.Random(1))

    assert found.expected == pytest.approx(20 * 100 + 12 * 600 + 8 * 6000)


def test_where_answers_follow_the_cap_the_rest_is_judged_by_its_caps():
    rng = random.Random(5)
    paid = [
        Paid(10.0, 10.0, cap * rng.uniform(0.4, 0.6), cap)
        for cap in [100.0] * 15 + [1000.0] * 15
    ]  # fmt: skip
    found = total({"m": paid}, {"m": rest_of(200, guess=10.0, most=1000.0)}, random.Random(1))

    # Of all of them half is short: their mean alone would say 200 * 285.
    assert found.expected == pytest.approx(200 * 510, rel=0.06)


def test_no_answer_is_longer_than_the_rest_allows():
    found = total({"m": calls([4000] * 30)}, {"m": rest_of(10, most=50.0)}, random.Random(1))

    assert found.expected == pytest.approx(10 * 150)
    assert found.high <= 10 * 150 + 1


def test_answers_that_were_never_there_cost_nothing():
    found = total({"m": calls([0] * 30)}, {"m": rest_of(10)}, random.Random(1))

    assert found.low == found.high == pytest.approx(1000)


@pytest.mark.parametrize(
    "length",
    [
        lambda rng: min(4096.0, rng.lognormvariate(math.log(200), 1)),
        lambda rng: min(4096.0, 100 * rng.paretovariate(1.6)),
        lambda rng: rng.lognormvariate(4.4, 0.4) if rng.random() < 0.8 else rng.gauss(1500, 300),
    ],
    ids=["lognormal", "pareto", "bimodal"],
)
def test_the_interval_holds_as_often_as_it_says(length):
    held = 0
    for seed in range(40):
        rng = random.Random(seed)
        lengths = [length(rng) for _ in range(800)]
        found = total({"m": calls(lengths[:50])}, {"m": rest_of(750)}, rng)
        held += found.low <= 750 * 100 + sum(lengths[50:]) <= found.high

    assert held >= 31  # of 40: less than 9 in 10 runs, where each holds, with a chance of 1 in 100


def test_half_a_batch_says_much_of_the_other_half():
    rng = random.Random(6)
    held = 0
    for _ in range(20):
        lengths = [min(4096.0, rng.lognormvariate(5, 1)) for _ in range(60)]
        found = total({"m": calls(lengths[:30])}, {"m": rest_of(30)}, rng)
        held += found.low <= 3000 + sum(lengths[30:]) <= found.high

    assert held >= 14
