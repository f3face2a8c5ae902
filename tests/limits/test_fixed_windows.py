"""Meters for fixed windows: no window holds too much wherever it begins, and each is used whole."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.limits import Gates, Heard, ProviderRules, Report
from scheduler.limits.meter import (
    COUNTING,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    RISK,
    Counting,
    Dimension,
    Limits,
    Meter,
    Seen,
    is_window,
    span_of,
)
from scheduler.limits.windows import ENTRIES, GRAIN, WindowMeter, dump_meter, load_meter
from scheduler.request import Tokens

REQUESTS, TOKENS = Dimension.REQUESTS, Dimension.TOKENS
T0 = 1_000_000
GRAIN_MS = MINUTE_MS / GRAIN


def window(limit=600):
    return WindowMeter(REQUESTS, limit, MINUTE_MS, 1.0, is_given=True)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20_000)), min_size=1, max_size=120),
    st.sampled_from([20, 100, 600]),
)
def test_no_stretch_of_its_length_holds_more_than_the_limit(charges, limit):
    meter, now_ms, sent = window(limit), float(T0), []
    for charge, pause_ms in charges:
        charge = min(charge, limit // 2)
        now_ms = max(now_ms + pause_ms, meter.opens_at_ms(charge, now_ms + pause_ms, 1.0))
        meter.take(charge, now_ms, 1.0)
        sent.append((now_ms, charge))

    for begin_ms, _ in sent:  # any window is as full as one that begins with something sent
        within = [c for at_ms, c in sent if begin_ms <= at_ms < begin_ms + MINUTE_MS]
        assert sum(within) <= limit
    assert len(meter._sent) <= ENTRIES


@pytest.mark.parametrize("each_ms", [0, 5, 100, 400])
def test_nearly_the_whole_limit_goes_in_each_window_however_it_is_sent(each_ms):
    meter, now_ms, count = window(), float(T0), 0
    while now_ms < T0 + 10 * MINUTE_MS:
        now_ms = meter.opens_at_ms(1, now_ms + each_ms, 1.0)
        meter.take(1, now_ms, 1.0)
        count += 1

    offered = 10 * MINUTE_MS / each_ms if each_ms else 6000
    assert count >= 0.95 * min(6000, offered)


def test_what_is_given_back_may_go_again_at_once():
    meter = window(100)
    meter.take(60, T0, 1.0)
    meter.take(39, T0 + 5000, 1.0)
    assert meter.opens_at_ms(1, T0 + 6000, 1.0) > T0 + 50_000

    meter.take(-30, T0 + 6000, 1.0, T0)

    assert meter.level(T0 + 6000, 1.0) == pytest.approx(30)


def test_the_end_of_the_providers_window_frees_all_of_it():
    meter = window(100)
    meter.take(99, T0, 1.0)
    meter.ends(T0 + 20_000, T0 + 21_000)

    opens_ms = meter.opens_at_ms(99, T0 + 1000, 1.0)

    assert opens_ms == pytest.approx(T0 + 21_000 + GRAIN_MS)


def test_what_may_have_arrived_in_the_next_window_counts_there_too():
    meter = window(100)
    meter.take(50, T0, 1.0)
    meter.take(49, T0 + 19_990, 1.0)
    meter.ends(T0 + 20_000, T0 + 20_000)

    assert meter.level(T0 + 21_000, 1.0) == pytest.approx(50)


def test_others_who_use_it_are_seen_until_its_end():
    meter = window(100)
    meter.take(1, T0, 1.0)
    meter.ends(T0 + 20_000, T0 + 20_000)
    meter.compare(Seen(REQUESTS, 100, 30), meter.level(T0, 1.0), 0.0, 1.0, T0)
    assert meter.level(T0, 1.0) == pytest.approx(29)

    assert meter.level(T0 + 21_000, 1.0) == pytest.approx(99)


@pytest.mark.parametrize(
    ("seen", "counting", "expected"),
    [
        (Seen(REQUESTS, 600, 599, 60_000), "default", True),
        (Seen(REQUESTS, 600, 590, 41_000), "default", True),
        (Seen(REQUESTS, 600, 599, 100), "default", False),
        (Seen(REQUESTS, 600, 0, 60_000), "default", False),  # it may be either
        (Seen(REQUESTS, 50, 49, 1_000), "anthropic", False),  # in whole seconds
        (Seen(REQUESTS, 600, 599, 60_000), "openai-per-second", False),
        (Seen(REQUESTS, 600, 300, None), "default", False),
        (Seen(REQUESTS, 600, 599, 100), "window", True),
        (Seen(REQUESTS, 14_400, 14_370, 179_560), "groq", False),
    ],
)
def test_a_window_is_known_by_when_it_says_to_be_full_again(seen, counting, expected):
    rule = COUNTING[counting]

    assert is_window(seen, span_of(seen, rule), rule) is expected


@pytest.mark.parametrize(
    ("seen", "span_ms"),
    [
        (Seen(REQUESTS, 100, 99, 3_500_000), HOUR_MS),
        (Seen(REQUESTS, 100, 99, 80_000_000), DAY_MS),
        (Seen(REQUESTS, 1000, 999, 33_011_382), DAY_MS),
        (Seen(REQUESTS, 200, 199, 432_000), DAY_MS),  # a bucket: 7m12s for each
        (Seen(REQUESTS, 50, 0, 40_000_000, DAY_MS), DAY_MS),
    ],
)
def test_the_length_of_a_window_is_at_least_the_time_to_its_end(seen, span_ms):
    assert span_of(seen, Counting()) == span_ms


# Among processes, and versions


def test_a_window_is_shared_and_what_is_to_come_is_not_believed():
    meter = window(100)
    meter.take(70, T0, 1.0)
    meter.ends(T0 + 20_000, T0 + 20_000)
    state = json.loads(json.dumps(dump_meter(meter)))
    given_here = Meter(REQUESTS, 100, MINUTE_MS, 1.0, is_given=True)

    loaded = load_meter(state, given_here, T0)
    early = load_meter(state, None, T0 - 10**9)

    assert loaded.level(T0, 1.0) == pytest.approx(29)
    assert loaded.level(T0 + 21_000, 1.0) == pytest.approx(99)
    assert early.opens_at_ms(99, T0 - 10**9, 1.0) <= T0 - 10**9 + 2 * MINUTE_MS


@pytest.mark.parametrize("full_in_ms", [100, 60_000])
def test_what_is_under_way_is_corrected_though_others_wrote_meanwhile(full_in_ms):
    gates = Gates({"p": ProviderRules()})
    _, gate = gates.of("p", "m")
    gate.take(1, Tokens(10, 10), T0)
    seen = (Seen(TOKENS, 6000, 5980, full_in_ms),)
    gates.hear([Report(1, "p", "m", Heard.ANSWERED, T0, usage=(10, 10, 0), seen=seen)])
    gate.take(2, Tokens(1000, 1000), T0)
    before = gate.meters["tokens"].level(T0, 1.0)

    gate.load(json.loads(json.dumps(gate.dump())), T0)  # as another process wrote it
    gates.hear([Report(2, "p", "m", Heard.UNSENT, T0)])

    assert gate.meters["tokens"].level(T0, 1.0) > before + 1000


def test_rows_of_older_versions_are_read():
    gates = Gates({"p": ProviderRules(Limits(600))})
    front, gate = gates.of("p", "m")
    old = ["requests", 600, 60_000, 9.0, T0 + 500.0, 0.0, True, False]
    front.load([1.0, 300.0, [old], None], T0)
    gate.load([1.0, 300.0, [["tokens", 30_000, 60_000, 28_500.0, T0, 0.0, False, False]], 0], T0)

    assert front.meters["requests"].due_ms == T0 + 500
    assert gate.meters["tokens"].limit == 30_000


# Refusals, and what is tried


def send(gate, count, at_ms, first=1):
    for n in range(first, first + count):
        gate.take(n, Tokens(10, 10), at_ms)


def test_a_refusal_within_the_limit_ends_the_window_and_then_all_of_it_goes():
    gates = Gates({"p": ProviderRules(Limits(100), counting="window")})
    front, _ = gates.of("p", "m")
    send(front, 95, T0)
    gates.hear([Report(95, "p", "m", Heard.LIMITED, T0 + 100, retry_after_ms=12_000)])
    meter = front.meters["requests"]

    assert front.share == 1.0
    assert front.opens_at_ms(Tokens(1, 1), T0 + 200) >= T0 + 12_100
    assert meter.level(T0 + 12_400, 1.0) == pytest.approx(99)


def test_a_refusal_long_before_the_limit_says_that_it_is_no_such_window():
    gates = Gates({"p": ProviderRules(Limits(100), counting="window")})
    front, _ = gates.of("p", "m")
    send(front, 10, T0)
    gates.hear([Report(10, "p", "m", Heard.LIMITED, T0 + 100, retry_after_ms=500)])

    assert not isinstance(front.meters["requests"], WindowMeter)
    assert front.meters["requests"].burst == 1
    assert front.share < 1


@settings(max_examples=60)
@given(st.integers(10, 600), st.integers(0, 400))
def test_what_is_tried_is_never_more_than_a_small_share_of_what_went_through(holds, pause_ms):
    """Against a bucket that holds any amount, and is refilled at the limit's rate."""
    limit, now_ms, level, last_ms = 600, float(T0), float(holds), float(T0)
    meter = Meter(REQUESTS, limit, MINUTE_MS, 1.0, is_given=True, tries=True)
    meter.burst = meter.first_burst = min(meter.burst, 0.9 * holds)
    went = refused = 0
    for _ in range(3000):
        now_ms = max(now_ms + (pause_ms if went % 50 == 0 else 0), meter.opens_at_ms(1, now_ms, 1))
        level = min(holds, level + (now_ms - last_ms) * limit / MINUTE_MS)
        last_ms = now_ms
        meter.take(1, now_ms, 1.0)
        left = meter.level(now_ms, 1.0)
        if level >= 1:
            level, went = level - 1, went + 1
            meter.passed(1, left)
        else:
            refused += 1
            meter.stopped(1, left, True)
        assert refused <= 1 + RISK * went
    assert meter.burst <= 1.05 * max(holds, meter.first_burst)


def test_what_is_there_is_found():
    meter, now_ms = Meter(REQUESTS, 600, MINUTE_MS, 1.0, True, tries=True), float(T0)
    for _ in range(3000):
        now_ms = meter.opens_at_ms(1, now_ms, 1.0)
        meter.take(1, now_ms, 1.0)
        meter.passed(1, meter.level(now_ms, 1.0))

    assert meter.burst == pytest.approx(570, abs=1)
