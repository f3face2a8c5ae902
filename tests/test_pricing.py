"""Prices against the catalogue's own arithmetic, and ceilings as true upper bounds."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal
from itertools import product

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    TimeOfDateConstraint,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.answer import Answer
from scheduler.errors import ConfigError, PriceUnknown
from scheduler.prices.book import DEFAULT_OUTPUT, PriceBook, bound_output_tokens, with_output_cap
from scheduler.prices.rates import Listing, Rates
from scheduler.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Request, Usage

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOOK = PriceBook(now_ms=lambda: int(AT.timestamp() * 1000))

MODELS = [
    ("openai", "gpt-5", None),
    ("openai", "gpt-5", "flex"),
    ("openai", "gpt-5", "priority"),
    ("openai", "gpt-5-mini", None),
    ("openai", "gpt-4o", None),
    ("openai", "gpt-4o-mini", None),
    ("openai", "gpt-4.1", None),
    ("openai", "o3", None),
    ("openai", "gpt-3.5-turbo", None),
    ("anthropic", "claude-sonnet-4-5", None),
    ("anthropic", "claude-opus-4-1", None),
    ("google", "gemini-2.5-pro", None),
    ("google", "gemini-2.5-flash", None),
    ("deepseek", "deepseek-chat", None),
    ("mistral", "mistral-large-latest", None),
    ("groq", "llama-3.3-70b-versatile", None),
    ("openai", "text-embedding-3-small", None),
]
USAGES = [
    Usage(11, 7),
    Usage(1_000, 300, cached_tokens=768),
    Usage(300_000, 5_000),
    Usage(200_000, 3),  # a step begins above its number, not at it
    Usage(272_000, 3),
    Usage(250_001, 999, cached_tokens=250_000, reasoning_tokens=500),
    Usage(5_003, 17, cached_tokens=1_000, cache_write_tokens=3_001),
]


def as_theirs(usage: Usage) -> genai_prices.Usage:
    return genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )


def oracle_nusd(provider: str, model: str, tier: str | None, usage: Usage) -> int:
    price = genai_prices.calc_price(
        as_theirs(usage),
        model,
        provider_id=provider,
        genai_request_timestamp=AT,
        price_context={"service_tier": tier} if tier else None,
    )
    return int((price.total_price * 10**9).to_integral_value(ROUND_CEILING))


@pytest.mark.parametrize(("listed", "usage"), list(product(MODELS, USAGES)), ids=str)
def test_a_bill_is_the_catalogues_to_the_nano_dollar(listed, usage):
    provider, model, tier = listed

    assert BOOK.rates(model, provider, tier).cost_nusd(usage) == oracle_nusd(*listed, usage)


def test_every_model_of_the_catalogue_is_billed_to_the_nano_dollar():
    usages = [Usage(250_007, 999, 1_001, 303, 77), Usage(5_003, 301, 0, 0, 0, 1_000, 100)]
    count = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            tiers = {each.when.get("service_tier") for each in model.price_variants or ()}
            for tier, usage in product({None} | tiers, usages):
                rates = Listing(provider.id, model, tier).now(int(AT.timestamp() * 1000))
                context = {"service_tier": tier} if tier else None
                price = model.get_prices(AT, context).calc_price(as_theirs(usage))["total_price"]
                exact = int((price * 10**9).to_integral_value(ROUND_CEILING))
                assert rates.cost_nusd(usage) == exact, (provider.id, model.id, tier)
                assert rates.most_nusd(usage.input_tokens, usage.output_tokens) >= exact
                count += 1
    assert count > 2_000


def test_flex_and_priority_differ_from_the_standard_price():
    costs = {
        tier: BOOK.rates("gpt-5", "openai", tier).cost_nusd(Usage(1000, 1000))
        for tier in (None, "flex", "priority")
    }
    assert costs["flex"] < costs[None] < costs["priority"]


def test_a_prompt_that_may_be_long_is_held_at_the_long_rate():
    tariff = BOOK.tariff("google")
    body = "x " * 150_000  # up to 300,000 tokens, above the step at 200,000
    quote = tariff.quote(Request.chat("gemini-2.5-pro", body, max_tokens=100))
    bill = BOOK.rates("gemini-2.5-pro", "google").cost_nusd(Usage(300_000, 100))

    assert (
        quote.ceiling_nusd
        >= bill
        > 1.9 * BOOK.rates("gemini-2.5-pro", "google").cost_nusd(Usage(150_000, 50))
    )


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 60}, 60),
        ({"max_tokens": 50, "max_completion_tokens": 60}, 60),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 999_999_999}, 16_384),
        ({}, 16_384),
        ({"max_tokens": "50"}, 50),
        ({"max_tokens": -1}, 16_384),
    ],
)
def test_the_ceiling_counts_the_requests_own_cap_or_the_models(options, output):
    quote = BOOK.tariff("openai").quote(Request.chat("gpt-4o-mini", "hello", **options))
    one = BOOK.tariff("openai").quote(Request.chat("gpt-4o-mini", "hello", max_tokens=1))
    rate = BOOK.rates("gpt-4o-mini", "openai").output[0][1] // 10**15  # nano-dollars a token

    assert abs((quote.ceiling_nusd - one.ceiling_nusd) - (output - 1) * rate) <= 20 * rate
    assert quote.is_bound


def test_without_any_known_maximum_the_ceiling_is_no_bound_and_says_so():
    book = PriceBook({"mine": "1/2"})

    assert not book.tariff().quote(Request.chat("mine", "hi")).is_bound
    assert book.tariff().quote(Request.chat("mine", "hi", max_tokens=9)).is_bound


def test_without_a_cap_the_models_own_maximum_holds_else_its_context_else_a_default():
    assert bound_output_tokens(Request.chat("gpt-5-pro", "x"), 400_000).tokens == 272_000
    assert bound_output_tokens(Request.chat("gpt-5-mini", "x"), 400_000).tokens == 128_000
    assert bound_output_tokens(Request.chat("openai/gpt-4o", "x"), 128_000).tokens == 16_384
    assert bound_output_tokens(Request.chat("gpt-4o:extended", "x"), 128_000).tokens == 128_000
    assert bound_output_tokens(Request.chat("gpt-77", "x"), None) == (DEFAULT_OUTPUT, False)


@pytest.mark.parametrize(
    ("url", "body", "tokens"),
    [
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_output_tokens": 5}, 900),  # not chat's name for it, so it caps nothing
        (RESPONSES, {"max_output_tokens": 5}, 5),
        (RESPONSES, {"max_tokens": 5}, 900),
        (RESPONSES, {"max_output_tokens": None}, 900),
        (COMPLETIONS, {"max_tokens": 5, "prompt": "a"}, 5),
        (COMPLETIONS, {"max_tokens": 5, "prompt": ["a", "b", "c"]}, 15),
        (COMPLETIONS, {"max_tokens": 5, "prompt": [[1, 2], [3]], "n": 2, "best_of": 4}, 40),
        (COMPLETIONS, {"max_tokens": 5, "prompt": [1, 2, 3]}, 5),
        (COMPLETIONS, {"max_tokens": 5, "prompt": []}, 5),
        (EMBEDDINGS, {"max_tokens": 5}, 0),
        ("/v1/messages", {"max_tokens": 5}, 5),
    ],
)
def test_output_is_capped_by_the_endpoints_own_field_times_the_answers(url, body, tokens):
    assert bound_output_tokens(Request({"model": "m", **body}, url=url), 900) == (tokens, True)


@st.composite
def usages_within(draw, into: int, out: int) -> Usage:
    """Usage of at most so many tokens, split in any way."""
    into, out = draw(st.integers(0, into)), draw(st.integers(0, out))
    cached, audio = draw(st.integers(0, into)), draw(st.integers(0, into))
    written, reasoning = draw(st.integers(0, into - cached)), draw(st.integers(0, out))
    return Usage(into, out, cached, written, reasoning, audio, draw(st.integers(0, out)))


COUNTS = st.integers(0, 400_000)


@settings(max_examples=200)
@given(listed=st.sampled_from(MODELS), bound=COUNTS, cap=st.integers(0, 20_000), data=st.data())
def test_no_bill_within_the_bounds_is_above_the_ceiling(listed, bound, cap, data):
    provider, model, tier = listed
    usage = data.draw(usages_within(bound, cap))
    ceilings = [rates.most_nusd(bound, cap) for rates in BOOK.ceilings(model, provider, tier)]

    assert BOOK.rates(model, provider, tier).cost_nusd(usage) <= max(ceilings)


@settings(max_examples=200)
@given(
    listed=st.sampled_from(MODELS[:-1]),
    size=st.integers(0, 300_000),
    cap=st.integers(1, 4_000),
    n=st.integers(1, 3),
    data=st.data(),
)
def test_what_a_bounded_request_is_billed_never_exceeds_its_quote(listed, size, cap, n, data):
    provider, model, tier = listed
    body = {"max_tokens": cap, "n": n, "service_tier": tier}
    request, tariff = Request.chat(model, "x" * size, **body), BOOK.tariff(provider)
    usage = data.draw(usages_within(size, cap * n))
    served = data.draw(st.sampled_from([tier, "default", None]))

    quote = tariff.quote(request)
    cost_nusd = tariff.cost_nusd(request, Answer({"service_tier": served}, usage=usage))

    assert quote.is_bound
    assert cost_nusd <= quote.ceiling_nusd
    assert usage.total_tokens <= quote.ceiling_tokens
    assert 0 <= quote.least_nusd <= quote.expected_nusd <= quote.ceiling_nusd


def listing(*dated, variants=None, tier=None):
    """A made-up model; `dated` are (constraint, dollars per million tokens in)."""
    prices = [
        ConditionalPrice(constraint, prices=ModelPrice(input_mtok=Decimal(usd)))
        for constraint, usd in dated
    ]
    return Listing(
        "p", ModelInfo("m", ClauseEquals("m"), prices=prices, price_variants=variants), tier
    )


def at_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def dollars(rates) -> int:
    return rates.input[0][1] // 10**18


NIGHT = TimeOfDateConstraint(time(16, 30, tzinfo=UTC), time(0, 30, tzinfo=UTC))
RAISE = StartDateConstraint(date(2026, 12, 1))


@pytest.mark.parametrize(
    ("at", "now", "possible"),
    [
        ("2026-11-23 16:29:59", 2, {2, 1, 5}),
        ("2026-11-23 16:30:00", 1, {2, 1, 5}),
        ("2026-11-24 00:29:59", 1, {2, 1, 5}),
        ("2026-11-24 00:30:00", 2, {2, 1, 5}),
        ("2026-12-01 00:00:00", 5, {5}),  # the raise is listed last, so it holds at night too
    ],
)
def test_a_price_by_hour_and_date_is_billed_as_it_is_and_held_at_any_it_may_become(
    at, now, possible
):
    model = listing((None, 2), (NIGHT, 1), (RAISE, 5))

    assert model.fixed is None
    assert dollars(model.now(at_ms(at))) == now
    assert {dollars(rates) for rates in model.possible(at_ms(at))} == possible
    assert dollars(model.possible(at_ms(at))[0]) == now


def test_a_tiers_price_that_starts_later_is_held_before_it_does():
    fast = PriceVariant({"service_tier": "fast"}, ModelPrice(input_mtok=Decimal(9)), RAISE)
    model = listing((None, 2), variants=[fast], tier="fast")

    assert dollars(model.now(at_ms("2026-11-30 23:59:00"))) == 2
    assert {dollars(each) for each in model.possible(at_ms("2026-11-30 23:59:00"))} == {2, 9}
    assert dollars(model.now(at_ms("2026-12-01 00:00:00"))) == 9
    assert dollars(listing((None, 2), variants=[fast]).fixed) == 2


def test_a_model_that_also_bills_by_something_else_has_no_bound():
    request = Request.chat("gpt-image-1", "hi", max_tokens=5)

    assert not BOOK.rates("gpt-image-1", "openai").is_complete
    assert not BOOK.tariff("openai").quote(request).is_bound


def test_speed_is_a_tier_too():
    tariff = BOOK.tariff("anthropic")
    plain = Request.chat("claude-opus-4-8", "hi", max_tokens=100)
    fast = Request.chat("claude-opus-4-8", "hi", max_tokens=100, speed="fast")
    usage = Answer({}, usage=Usage(1_000, 100))

    assert tariff.cost_nusd(fast, usage) == 2 * tariff.cost_nusd(plain, usage)
    assert tariff.quote(fast).ceiling_nusd > 1.9 * tariff.quote(plain).ceiling_nusd


def test_the_users_own_prices_come_first_and_are_exact():
    book = PriceBook({"gpt-4o": "0.001/0.002/0.0005"})

    assert book.rates("gpt-4o", "openai").cost_nusd(Usage(1000, 1000, 500)) == 2750
    assert book.describe("gpt-4o").source == "own"
    assert book.own == {"gpt-4o": "0.001/0.002/0.0005"}


def test_a_changed_price_changes_the_next_quote():
    book = PriceBook({"mine": "1/2"})
    tariff, request = book.tariff(), Request.chat("mine", "hi", max_tokens=10)
    before = tariff.quote(request).ceiling_nusd
    book.set("mine", "1000/2000")

    assert tariff.quote(request).ceiling_nusd == 1000 * before


@pytest.mark.parametrize(
    ("source", "model", "found"),
    [
        ("openai", "gpt-4o-mini", True),
        ("https://api.openai.com/v1", "gpt-4o-mini", True),
        ("http://127.0.0.1:8000/v1", "gpt-4o-mini", True),  # by name alone
        ("https://gateway.example/v1", "anthropic/claude-sonnet-4-5", True),
        ("https://gateway.example/v1", "openai:gpt-4o", True),
        (None, "gpt-4o-2024-08-06", True),
        ("openai", "claude-sonnet-4-5", False),  # that provider has no such model
        ("https://api.openai.com/v1", "claude-sonnet-4-5", False),
        (None, "my-own-model", False),
        (None, "", False),
    ],
)
def test_a_model_is_found_at_its_provider_or_by_name_elsewhere(source, model, found):
    request = Request.chat(model, "hi", max_tokens=5)
    if found:
        assert BOOK.tariff(source).quote(request).ceiling_nusd > 0
    else:
        with pytest.raises(PriceUnknown, match=r"nothing was sent\. Set one"):
            BOOK.tariff(source).quote(request)


def test_an_unknown_model_is_told_what_is_near():
    with pytest.raises(PriceUnknown, match=r"\(the catalogue has gpt-4o-mini"):
        BOOK.rates("gpt-4o-minni", "openai")


def test_an_unknown_model_is_looked_for_once(monkeypatch):
    book, asked = PriceBook(), []

    def look_up(*place):
        asked.append(place)
        raise PriceUnknown(place[0], "", "a hint")

    monkeypatch.setattr("scheduler.prices.book.look_up", look_up)
    for _ in range(3):
        with pytest.raises(PriceUnknown, match="a hint"):
            book.tariff().quote(Request.chat("nope", "hi"))
    assert asked == [("nope", None, None)]

    book.set("nope", "1/2")
    assert book.tariff().quote(Request.chat("nope", "hi")).ceiling_nusd > 0


@pytest.mark.parametrize("price", ["1", "a/b", "-1/2", "1/2/3/4", "nan/1", "200000/1", "", "1e9/1"])
def test_a_price_that_cannot_be_one_is_a_clear_error(price):
    with pytest.raises(ConfigError, match="price of m: "):
        PriceBook({"m": price})


def test_a_cost_the_provider_reports_is_preferred():
    request = Request.chat("gpt-4o", "hi")
    tariff = BOOK.tariff("openai")

    assert tariff.cost_nusd(request, Answer({}, usage=Usage(5, 5), cost_nusd=7)) == 7
    assert tariff.cost_nusd(request, Answer({})) is None


def test_the_tier_that_answered_is_billed():
    request = Request.chat("gpt-5", "hi", service_tier="flex")
    tariff, usage = BOOK.tariff("openai"), Usage(1000, 1000)
    flex = tariff.cost_nusd(request, Answer({"service_tier": "flex"}, usage=usage))
    standard = tariff.cost_nusd(request, Answer({"service_tier": "default"}, usage=usage))
    not_told = tariff.cost_nusd(request, Answer({}, usage=usage))

    assert flex < standard == not_told <= tariff.quote(
        Request.chat("gpt-5", "x" * 1000, service_tier="flex", max_tokens=1000)
    ).ceiling_nusd  # fmt: skip


def test_a_dearer_tier_that_the_catalogue_has_no_price_for_costs_the_most_of_others():
    for model, source, asked, factor in (
        ("claude-opus-4-6", "anthropic", {"speed": "fast"}, 6),
        ("gemini-2.5-flash", "google", {"service_tier": "PRIORITY"}, 2.5),
        ("o3", "azure", {"service_tier": "priority"}, 2.5),
    ):
        tariff, usage = BOOK.tariff(source), Usage(1000, 1000, 100)
        plain = Request.chat(model, "hi", max_tokens=50)
        dear = Request.chat(model, "hi", max_tokens=50, **asked)
        quote, bill = tariff.quote(dear), tariff.cost_nusd(dear, Answer({}, usage=usage))

        assert bill == factor * tariff.cost_nusd(plain, Answer({}, usage=usage))
        assert quote.ceiling_nusd >= factor * tariff.quote(plain).ceiling_nusd
        assert not quote.is_bound
        assert "tier" in quote.why_unbound


@pytest.mark.parametrize(
    ("tier", "is_bound"), [("flex", True), ("auto", True), ("ultra", False), ("x" * 9_999, False)]
)
def test_a_tier_that_nobody_knows_is_no_bound(tier, is_bound):
    quote = BOOK.tariff("openai").quote(
        Request.chat("gpt-4o", "hi", max_tokens=5, service_tier=tier)
    )

    assert quote.is_bound is is_bound
    assert len(quote.why_unbound) < 500
    assert is_bound or "tier" in quote.why_unbound


def test_a_dear_tier_that_was_not_granted_is_not_billed():
    request = Request.chat("gpt-4o", "hi", max_tokens=5, service_tier="priority")
    tariff, usage = BOOK.tariff("openai"), Usage(1000, 1000)
    granted, refused = (
        tariff.cost_nusd(request, Answer({"service_tier": tier}, usage=usage))
        for tier in ("priority", "default")
    )

    assert refused == tariff.cost_nusd(Request.chat("gpt-4o", "hi"), Answer({}, usage=usage))
    assert refused < granted


def test_a_standard_speed_hides_no_dear_tier():
    tariff = BOOK.tariff("openai")
    dear = {"max_tokens": 5, "service_tier": "priority"}
    alone, beside = (
        tariff.quote(Request.chat("gpt-4o", "hi", **dear, **more))
        for more in ({}, {"speed": "standard"})
    )

    assert beside.ceiling_nusd >= alone.ceiling_nusd


def test_what_an_answer_says_of_its_tier_is_billed_wherever_it_says_it():
    usage = Usage(1000, 1000)
    tariff, asked = BOOK.tariff("anthropic"), {"speed": "fast", "max_tokens": 50}
    request = Request.chat("claude-opus-5", "hi", **asked)
    slow = tariff.cost_nusd(request, Answer({"usage": {"speed": "standard"}}, usage=usage))
    quick = tariff.cost_nusd(request, Answer({"usage": {"speed": "fast"}}, usage=usage))

    assert tariff.cost_nusd(request, Answer({}, usage=usage)) == quick == 2 * slow
    unasked = Request.chat("gpt-5", "hi")
    dearer = Answer({"service_tier": "priority"}, usage=usage)
    openai = BOOK.tariff("openai")
    assert openai.cost_nusd(unasked, dearer) > openai.cost_nusd(unasked, Answer({}, usage=usage))


def test_a_cache_kept_for_an_hour_is_billed_so_where_the_answer_does_not_split_it():
    mark = {"type": "ephemeral", "ttl": "1h"}
    part = {"type": "text", "text": "x", "cache_control": mark}
    kept = Request.chat("claude-sonnet-4-5", [{"role": "user", "content": [part]}], max_tokens=9)
    usage, tariff = Usage(1000, 1, 0, 1000), BOOK.tariff("anthropic")
    whole = tariff.cost_nusd(kept, Answer({"usage": {}}, usage=usage))
    split = {"usage": {"cache_creation": {"ephemeral_5m_input_tokens": 1000}}}

    assert whole == 6_000_000 + 15_000
    assert tariff.cost_nusd(kept, Answer(split, usage=usage)) == 3_750_000 + 15_000
    short = Request.chat("claude-sonnet-4-5", "x", max_tokens=9)
    assert tariff.cost_nusd(short, Answer({}, usage=usage)) == 3_750_000 + 15_000


def test_moderation_is_free_and_embeddings_have_no_output():
    assert (
        BOOK.tariff("openai").quote(Request({"input": "x"}, url="/v1/moderations")).ceiling_nusd
        == 0
    )
    quote = BOOK.tariff("openai").quote(Request.embedding("text-embedding-3-small", "x" * 1000))
    assert quote.ceiling_nusd == 1032 * 20  # $0.02 a million


def test_a_counter_of_the_users_own_replaces_the_bound():
    book = PriceBook({"m": "1000/0"}, count_tokens=lambda request: 3)

    assert book.tariff().quote(Request.chat("m", "x" * 99, max_tokens=1)).ceiling_nusd == 3_000_000


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (Request.chat("gpt-4o", "x"), "max_tokens"),
        (Request.chat("gpt-5-mini", "x"), "max_completion_tokens"),
        (Request.responses("gpt-5", "x"), "max_output_tokens"),
        (Request({"prompt": "x"}, url="/v1/completions"), "max_tokens"),
        (Request.embedding("m", "x"), None),
        (Request.chat("gpt-4o", "x", max_completion_tokens=5), None),
        (Request.chat("gpt-4o", "x", max_tokens=None), "max_tokens"),
        (Request.chat("openai/gpt-5", "x"), "max_completion_tokens"),
        (Request({"input": "x"}, url="/v1/moderations"), None),
    ],
)
def test_an_output_cap_is_written_only_where_there_is_none(request_, name):
    capped = with_output_cap(request_, 77)

    changed = {key for key, value in capped.body.items() if request_.body.get(key) != value}
    assert changed == ({name} if name else set())
    assert name is None or capped.body[name] == 77


def test_a_price_too_small_to_count_is_rounded_up_and_never_free():
    assert Rates.parse("0.0000000000000001/0").cost_nusd(Usage(1, 0)) == 1
    assert Rates.parse("0/0").cost_nusd(Usage(10**6, 10**6)) == 0


def test_rounding_up_happens_once_a_call():
    rates = Rates.parse("0.0001/0.0001")  # a tenth of a nano-dollar a token

    assert [rates.cost_nusd(Usage(n, 0)) for n in (0, 1, 10, 11)] == [0, 1, 1, 2]
