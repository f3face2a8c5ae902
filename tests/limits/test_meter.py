"""One limit: what goes through it in any stretch of time, and how it follows the provider's count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.limits.meter import (
    COUNTING,
    DAY_MS,
    HEADROOM,
    MINUTE_MS,
    Counting,
    Dimension,
    Meter,
    Seen,
    span_of,
)
from scheduler.request import Tokens

REQUESTS, TOKENS = Dimension.REQUESTS, Dimension.TOKENS


def meter(limit=600, burst_s=1.0):
    return Meter(REQUESTS, limit, MINUTE_MS, burst_s, is_given=True)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3000)), min_size=1, max_size=60),
    st.sampled_from([60, 600, 6_000]),
    st.sampled_from([0.0, 1.0, 60.0]),
)
def test_no_stretch_of_time_holds_more_than_the_burst_and_the_rate(charges, limit, burst_s):
    gate, now_ms, sent = meter(limit, burst_s), 1_000_000.0, []
    for charge, pause_ms in charges:
        now_ms = max(now_ms + pause_ms, gate.opens_at_ms(charge, now_ms + pause_ms, 1.0))
        gate.take(charge, now_ms, 1.0)
        sent.append((now_ms, charge))

    for first, (begin_ms, _) in enumerate(sent):
        used = 0
        for at_ms, charge in sent[first:]:
            used += charge
            largest = max(gate.burst, *(c for _, c in sent))  # one beyond the burst may go alone
            allowed = largest + (at_ms - begin_ms) / gate.unit_ms(1.0)
            assert used <= allowed + 1e-6


def test_it_opens_exactly_when_the_charge_is_paid_off():
    gate = meter(600, burst_s=0.0)
    gate.take(1, 1000, 1.0)

    opens_ms = gate.opens_at_ms(1, 1000, 1.0)

    assert opens_ms == pytest.approx(1000 + 100 / HEADROOM)
    assert gate.opens_at_ms(1, opens_ms, 1.0) == opens_ms
    assert gate.opens_at_ms(1, opens_ms - 1, 1.0) > opens_ms - 1


def test_what_is_given_back_opens_it_again():
    gate = meter(600)
    gate.take(9, 1000, 1.0)
    assert gate.opens_at_ms(1, 1000, 1.0) > 1000

    gate.take(-3, 1000, 1.0)

    assert gate.level(1000, 1.0) == pytest.approx(3)
    assert gate.opens_at_ms(3, 1000, 1.0) == pytest.approx(1000)


def test_a_charge_beyond_the_burst_goes_once_all_is_paid_off():
    gate = meter(600)
    gate.take(5, 1000, 1.0)

    opens_ms = gate.opens_at_ms(500, 1000, 1.0)

    assert opens_ms == pytest.approx(1000 + 5 * gate.unit_ms(1.0))


def test_half_a_share_takes_twice_as_long():
    assert meter().unit_ms(0.5) == pytest.approx(2 * meter().unit_ms(1.0))


def test_others_using_the_same_key_are_seen_and_counted_once():
    gate = meter(600)
    gate.widen()
    for _ in range(3):
        gate.take(1, 1000, 1.0)
    level = gate.level(1000, 1.0)
    # Somebody else has used a hundred: both calls of ours are told so.
    seen = Seen(REQUESTS, 600, 600 - 3 - 100, 10_000)
    gate.compare(seen, level, 0.0, 1.0, 1000)
    gate.compare(seen, level, 0.0, 1.0, 1000)

    assert gate.level(1000, 1.0) == pytest.approx(level - 100, abs=1.5)


def test_what_we_counted_too_much_is_given_back():
    gate = meter(600)
    gate.widen()
    gate.take(300, 1000, 1.0)
    gate.compare(Seen(REQUESTS, 600, 400, 20_000), gate.level(1000, 1.0), 0.0, 1.0, 1000)

    assert gate.level(1000, 1.0) == pytest.approx(370, abs=1.5)


def test_once_bitten_it_is_wary():
    gate = meter(600)
    gate.widen()
    assert gate.burst == 570

    gate.narrow(1.0)
    gate.widen()

    assert gate.burst == 9


@pytest.mark.parametrize(
    ("counting", "tokens", "requests", "into", "out", "both"),
    [
        ("openai", Tokens(500, 4096), 1, 500, 300, 4096),
        ("openai", Tokens(5000, 100), 1, 5000, 100, 5000),
        ("openai", Tokens(500, 0), 1, 500, 300, 500),
        ("azure", Tokens(500, 4096), 1, 500, 300, 4596),
        ("anthropic", Tokens(500, 4096), 1, 500, 300, 800),
        ("anthropic", Tokens(500, 100), 1, 500, 100, 600),
        ("default", Tokens(500, 100), 1, 500, 100, 600),
    ],
)
def test_every_provider_counts_in_its_own_way(counting, tokens, requests, into, out, both):
    rule = COUNTING[counting]
    charges = [rule.charge(dimension, tokens, 300) for dimension in
               (REQUESTS, Dimension.INPUT, Dimension.OUTPUT, TOKENS)]  # fmt: skip

    assert charges == [requests, into, out, both]
    assert rule.as_of


@pytest.mark.parametrize(
    ("seen", "span_ms"),
    [
        (Seen(REQUESTS, 600, 599, 100), MINUTE_MS),
        (Seen(REQUESTS, 600, 0, 60_000), MINUTE_MS),
        (Seen(REQUESTS, 600, 600, 0), MINUTE_MS),
        (Seen(REQUESTS, 600, 500, None), MINUTE_MS),
        (Seen(REQUESTS, 14_400, 14_370, 179_560), DAY_MS),
        (Seen(TOKENS, 6_000, 1_000, 50_000), MINUTE_MS),
    ],
)
def test_over_which_time_a_limit_holds_follows_from_when_it_is_full_again(seen, span_ms):
    assert span_of(seen, Counting()) == span_ms


def test_a_provider_that_tells_requests_a_day_is_known_for_it():
    assert span_of(Seen(REQUESTS, 14_400, 14_399, 6_000), COUNTING["groq"]) == DAY_MS
