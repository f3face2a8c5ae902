"""Where a call runs, and who else may answer it, is in the quote and in the bill."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from scheduler import OpenAI
from scheduler.answer import Answer
from scheduler.core.deployments import tariff_of
from scheduler.errors import PriceUnknown
from scheduler.prices.billing import Rates
from scheduler.prices.book import PriceBook
from scheduler.prices.surcharges import RAISING
from scheduler.prices.usage import extract_usage
from scheduler.providers.anthropic_chat import to_chat
from scheduler.request import CHAT, MESSAGES, RESPONSES, Request, Usage

BOOK = PriceBook()
ANTHROPIC, OPENAI = BOOK.tariff("anthropic"), BOOK.tariff("openai")
ROUTER = BOOK.tariff("openrouter")
ONE = [{"role": "user", "content": "Say hello"}]
OPUS, HAIKU, MINI = "claude-opus-4-8", "claude-haiku-4-5", "gpt-4o-mini"


def messages(model=OPUS, **body):
    return Request({"model": model, "max_tokens": 100, "messages": ONE, **body}, url=MESSAGES)


def chat(model=MINI, url=CHAT, **body):
    return Request({"model": model, "max_tokens": 100, "messages": ONE, **body}, url=url)


def answered(usage, **body):
    whole = {**body, "usage": usage}
    return Answer(whole, usage=extract_usage(whole))


def told(into, out, **more):
    return {"input_tokens": into, "output_tokens": out, **more}


def cost(model, into, out, source="anthropic"):
    return BOOK.rates(model, source).cost_nusd(Usage(into, out))


# A geography, told in the body and in the answer


def test_inference_in_one_country_is_quoted_and_billed_a_tenth_dearer():
    plain, us = ANTHROPIC.quote(messages()), ANTHROPIC.quote(messages(inference_geo="us"))

    assert us.is_bound
    assert plain.ceiling_nusd * 1.1 <= us.ceiling_nusd < plain.ceiling_nusd * 1.12
    usage = told(1_000, 100)
    assert ANTHROPIC.cost_nusd(messages(inference_geo="us"), answered(usage)) == (
        cost(OPUS, 1_000, 100) * 11 // 10
    )


@pytest.mark.parametrize(
    ("asked", "geo", "percent"),
    [
        (None, "us", 110), ("us", "us", 110), ("global", "us", 110), ("us", None, 110),
        ("us", "global", 100), ("us", "not_available", 100), (None, "global", 100),
        (None, "mars", 110), (None, 7, 110),
    ],
)  # fmt: skip
def test_where_it_ran_is_billed_as_the_answer_tells_it(asked, geo, percent):
    request = messages(**({"inference_geo": asked} if asked else {}))
    answer = answered(told(1_000, 100, inference_geo=geo), model=OPUS)

    assert ANTHROPIC.cost_nusd(request, answer) == cost(OPUS, 1_000, 100) * percent // 100


def test_a_geography_nobody_has_a_price_for_is_no_bound():
    quote = ANTHROPIC.quote(messages(inference_geo="mars"))

    assert not quote.is_bound
    assert "inference_geo 'mars'" in quote.why_unbound
    assert ANTHROPIC.quote(messages(inference_geo="global")).is_bound


def test_a_price_of_the_users_own_is_what_it_costs_anywhere():
    tariff = PriceBook({OPUS: "1/2"}).tariff("anthropic")
    request = messages(inference_geo="us")

    assert tariff.quote(request).ceiling_nusd < ANTHROPIC.quote(request).ceiling_nusd
    assert tariff.cost_nusd(request, answered(told(1_000, 100, inference_geo="us"))) == 1_200_000


def test_a_translated_answer_still_tells_what_raises_its_price():
    usage = told(10, 5, inference_geo="us", speed="fast", iterations=[told(10, 5)])

    kept = to_chat({"content": [], "usage": usage})["usage"]
    assert kept["inference_geo"] == "us"
    assert kept["speed"] == "fast"
    assert kept["iterations"] == [told(10, 5)]


# Compaction


@pytest.mark.parametrize(
    ("request_", "tariff"),
    [
        (messages(context_management={"edits": [{"type": "compact_20260112"}]}), ANTHROPIC),
        (messages(context_management={"edits": [{"type": "clear_tool_uses_20250919"},
                                                {"type": "some_new_edit"}]}), ANTHROPIC),
        (messages(context_management={"edits": ["odd"]}), ANTHROPIC),
        (chat("gpt-5", RESPONSES, context_management=[{"type": "compaction"}]), OPENAI),
    ],
)  # fmt: skip
def test_what_is_billed_for_another_pass_is_no_bound(request_, tariff):
    body = {name: value for name, value in request_.body.items() if name != "context_management"}
    plain = tariff.quote(Request(body, url=request_.url))
    quote = tariff.quote(request_)

    assert not quote.is_bound
    assert quote.why_unbound.startswith("compaction")
    assert quote.ceiling_nusd >= 2 * plain.ceiling_nusd


@pytest.mark.parametrize(
    "management", [None, {}, {"edits": []}, {"edits": [{"type": "clear_tool_uses_20250919"}]}]
)
def test_a_context_that_is_only_shortened_is_bound(management):
    assert ANTHROPIC.quote(messages(context_management=management)).is_bound


# Iterations by other models


def test_each_iteration_is_billed_at_the_price_of_its_own_model():
    steps = [{"type": "message", "model": HAIKU, **told(1_000, 100)},
             {"type": "advisor_message", "model": OPUS, **told(2_000, 300)}]  # fmt: skip
    answer = answered(told(1_000, 100, iterations=steps), model=HAIKU)

    assert ANTHROPIC.cost_nusd(messages(HAIKU), answer) == (
        cost(HAIKU, 1_000, 100) + cost(OPUS, 2_000, 300)
    )


def test_an_iteration_without_a_model_is_billed_at_the_dearer():
    steps = [{"model": HAIKU, **told(1_000, 100)}, told(2_000, 300)]
    answer = answered(told(1_000, 100, iterations=steps), model=HAIKU)

    assert ANTHROPIC.cost_nusd(messages(OPUS), answer) == (
        cost(HAIKU, 1_000, 100) + cost(OPUS, 2_000, 300)
    )


def test_a_whole_that_is_more_than_its_iterations_is_the_bill():
    steps = [{"model": OPUS, **told(10, 1)}]
    answer = answered(told(5_000, 700, iterations=steps), model=OPUS)

    assert ANTHROPIC.cost_nusd(messages(OPUS), answer) == cost(OPUS, 5_000, 700)


def test_what_is_beside_tokens_is_billed_once_with_iterations():
    steps = [{"model": OPUS, **told(10, 1)}, {"model": HAIKU, **told(20, 2)}]
    usage = told(10, 1, iterations=steps, server_tool_use={"web_search_requests": 3})

    assert ANTHROPIC.cost_nusd(messages(OPUS), answered(usage, model=OPUS)) == (
        cost(OPUS, 10, 1) + cost(HAIKU, 20, 2) + 3 * 10_000_000
    )


@pytest.mark.parametrize("steps", [7, [None, 3], [{"model": OPUS}], [{"model": 7, **told(1, 1)}]])
def test_iterations_that_make_no_sense_leave_the_whole(steps):
    answer = answered(told(1_000, 100, iterations=steps), model=OPUS)

    assert ANTHROPIC.cost_nusd(messages(OPUS), answer) == cost(OPUS, 1_000, 100)


# Who answered


def billed(tariff, asked, told_name, **body):
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100}
    return tariff.cost_nusd(chat(asked, **body), answered(usage, model=told_name))


@pytest.mark.parametrize(
    ("asked", "told_name", "priced_as"),
    [
        (MINI, "gpt-4o", "gpt-4o"),
        (MINI, "gpt-4o-2024-11-20", "gpt-4o"),
        (MINI, "gpt-4o-mini-2024-07-18", MINI),
        (MINI, "openai/gpt-4o-mini", MINI),
        (MINI, "openai/gpt-4o", "gpt-4o"),
        (MINI, "azure/GPT-4o-2024-08-06", "gpt-4o"),
        (MINI, "a/name/nobody-knows", MINI),
        (MINI, None, MINI),
        (MINI, "", MINI),
        (MINI, 7, MINI),
        (MINI, "a-name-nobody-knows", MINI),
        ("gpt-4o", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),  # listed at a price of its own
        ("gpt-4o", MINI, "gpt-4o"),  # of two names the dearer
    ],
)
def test_an_answer_is_billed_at_the_dearer_of_who_was_asked_and_who_answered(
    asked, told_name, priced_as
):
    assert billed(OPENAI, asked, told_name) == cost(priced_as, 1_000, 100, "openai")


def test_googles_answers_tell_their_model_under_another_name():
    usage = {"promptTokenCount": 1_000, "candidatesTokenCount": 100}
    body = {"modelVersion": "gemini-2.5-pro", "usageMetadata": usage}
    request = Request({"model": "gemini-2.5-flash", "contents": []}, url="/v1beta:generateContent")
    answer = Answer(body, usage=extract_usage(body))

    assert BOOK.tariff("google").cost_nusd(request, answer) == (
        cost("gemini-2.5-pro", 1_000, 100, "google")
    )


def test_a_price_of_the_users_own_for_the_model_asked_holds_whoever_answers():
    assert billed(PriceBook({MINI: "1/2"}).tariff("openai"), MINI, "gpt-4o") == 1_200_000


def test_a_price_of_the_users_own_for_who_answered_is_taken():
    book = PriceBook()
    assert billed(book.tariff("openai"), MINI, "mine") == cost(MINI, 1_000, 100, "openai")
    book.set("mine", "100/200")

    assert billed(book.tariff("openai"), MINI, "mine") == 120_000_000


# Who else may answer


def test_a_preset_may_name_models_that_the_body_does_not():
    quote = ROUTER.quote(chat("openai/gpt-4o", max_tokens=5, preset="mine"))

    assert not quote.is_bound
    assert "preset" in quote.why_unbound


def test_models_that_may_answer_are_quoted_at_the_dearest_and_are_a_bound():
    others = {"models": ["openai/gpt-4o-mini", "openai/gpt-4o", "anthropic/claude-opus-4.8"]}
    quote = ROUTER.quote(chat("openai/gpt-4o-mini", **others))

    assert quote.is_bound
    assert quote.ceiling_nusd >= ROUTER.quote(chat("anthropic/claude-opus-4.8")).ceiling_nusd
    assert quote.expected_nusd < quote.ceiling_nusd / 10


def test_models_that_were_tried_before_are_billed_too():
    asked, other = (ANTHROPIC.quote(messages(each)).ceiling_nusd for each in (OPUS, HAIKU))
    quote = ANTHROPIC.quote(messages(OPUS, fallbacks=[{"model": HAIKU}]))

    assert quote.is_bound
    assert quote.ceiling_nusd >= asked + other


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"models": ["openai/gpt-4o", "nobody/has-it"]}, "'nobody/has-it'"),
        ({"fallbacks": [{"gpt-4o": ["gpt-5"]}]}, "in a way that is not known"),
        ({"models": "openai/gpt-4o,openai/gpt-5"}, "'openai/gpt-4o,openai/gpt-5'"),
        ({"models": [7]}, "in a way that is not known"),
        ({"route": "fallback"}, "does not name"),
        ({"provider": {"sort": "throughput"}}, "at different prices"),
        ({"plugins": [{"id": "web"}]}, ""),
    ],
)
def test_whoever_has_no_price_makes_it_no_bound(body, why):
    quote = ROUTER.quote(chat("openai/gpt-4o-mini", **body))

    assert not quote.is_bound
    assert why in quote.why_unbound
    assert quote.why_unbound


def test_the_one_of_several_that_answered_is_billed_and_else_the_dearest():
    others = {"models": ["openai/gpt-4o-mini", "nobody/has-it"]}
    mini, large = (cost(each, 1_000, 100, "openrouter") for each in
                   ("openai/gpt-4o-mini", "openai/gpt-4o"))  # fmt: skip

    assert billed(ROUTER, "openai/gpt-4o", "openai/gpt-4o-mini", **others) == mini
    assert billed(ROUTER, "openai/gpt-4o", "openai/gpt-4o", **others) == large
    assert billed(ROUTER, "openai/gpt-4o", None, **others) == large
    assert billed(ROUTER, "openai/gpt-4o-mini", None, models=["openai/gpt-4o"]) == large


# Regions


@pytest.mark.parametrize(
    ("url", "model", "source", "percent"),
    [
        ("https://eu.api.openai.com/v1", "gpt-6-sol", "openai", 110),
        ("https://us.api.openai.com/v1", "gpt-5.4", "openai", 110),
        ("https://eu.api.openai.com/v1", "gpt-4o-mini", "openai", 100),
        ("https://eu.api.openai.com/v1", "gpt-5-mini", "openai", 100),
        ("https://api.openai.com/v1", "gpt-6-sol", "openai", 100),
        ("https://us.api.x.ai/v1", "grok-4.3", "x-ai", 110),
        ("https://europe-west1-aiplatform.googleapis.com/v1", "claude-opus-4-6", "google", 110),
        ("https://aiplatform.us.rep.googleapis.com/v1", "claude-opus-4-6", "google", 110),
        ("https://europe-west1-aiplatform.googleapis.com/v1", "claude-3-7-sonnet", "google", 100),
        ("https://aiplatform.googleapis.com/v1", "claude-opus-4-6", "google", 100),
    ],
)
def test_a_region_costs_more_where_it_does(url, model, source, percent):
    here, there = BOOK.tariff(url), BOOK.tariff(source)
    quote, plain = here.quote(chat(model)), there.quote(chat(model))
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100}
    answer = answered(usage, model=model)

    assert quote.is_bound == plain.is_bound
    assert quote.ceiling_nusd == -(-plain.ceiling_nusd * percent // 100)
    assert here.cost_nusd(chat(model), answer) == -(
        -there.cost_nusd(chat(model), answer) * percent // 100
    )


def test_a_provider_at_a_regional_host_is_priced_there():
    async def main():
        provider = OpenAI(base_url="https://eu.api.openai.com/v1", api_key="sk-x")
        try:
            return tariff_of(provider, BOOK).quote(chat("gpt-6-sol"))
        finally:
            await provider.aclose()

    plain = OPENAI.quote(chat("gpt-6-sol"))
    assert asyncio.run(main()).ceiling_nusd == -(-plain.ceiling_nusd * 11 // 10)


@pytest.mark.parametrize(
    ("model", "usd"),
    [("global.anthropic.claude-sonnet-4-5-20250929-v1:0", 3_000_000),
     ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", 3_300_000)],
)  # fmt: skip
def test_bedrocks_regions_are_in_the_catalogue(model, usd):
    url = "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1"

    assert BOOK.tariff(url).cost_nusd(chat(model), Answer({}, usage=Usage(1_000, 0))) == usd


# A gateway's variants of a model


@pytest.mark.parametrize(
    ("ending", "is_bound"),
    [
        (":floor", True), (":free", True), (":nitro", False), (":exacto", False),
        (":extended", False), (":thinking", False), (":online", False), (":free:online", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["openrouter", "https://openrouter.ai/api/v1"])
def test_a_variant_costs_what_its_model_does(ending, is_bound, source):
    model = "openai/gpt-4o-mini"
    tariff = BOOK.tariff(source)
    base, quote = tariff.quote(chat(model)), tariff.quote(chat(model + ending))

    assert quote.ceiling_nusd >= base.ceiling_nusd
    assert quote.is_bound is is_bound
    assert bool(quote.why_unbound) is not is_bound


def test_a_variant_that_is_listed_costs_what_is_listed():
    usage = Usage(1_000, 100)

    assert BOOK.rates("openai/gpt-4o:extended", "openrouter").cost_nusd(usage) == 7_800_000
    assert ROUTER.quote(chat("openai/gpt-4o:extended")).is_bound


@pytest.mark.parametrize("url", [CHAT, RESPONSES])
def test_a_model_that_is_online_searches_each_time(url):
    model = "openai/gpt-4o-mini:online"
    base, quote = ROUTER.quote(chat(model[:-7], url)), ROUTER.quote(chat(model, url))
    answer = answered({"prompt_tokens": 1_000, "completion_tokens": 100}, model=model)
    plain_nusd = cost("openai/gpt-4o-mini", 1_000, 100, "openrouter")

    # Five results at $4 a thousand.
    assert quote.ceiling_nusd >= base.ceiling_nusd + 20_000_000
    assert ROUTER.cost_nusd(chat(model, url), answer) >= plain_nusd + 20_000_000


def test_a_plugin_that_searches_does_so_each_time():
    plugged = chat("openai/gpt-4o-mini", plugins=[{"id": "web"}])
    off = chat("openai/gpt-4o-mini", plugins=[{"id": "web", "enabled": False}, {"id": "pdf"}, 3])
    answer = answered({"prompt_tokens": 1_000, "completion_tokens": 100})
    plain_nusd = cost("openai/gpt-4o-mini", 1_000, 100, "openrouter")

    assert ROUTER.cost_nusd(plugged, answer) == plain_nusd + 20_000_000
    plugged.body["plugins"][0]["max_results"] = "10"
    assert ROUTER.cost_nusd(plugged, answer) == plain_nusd + 40_000_000
    assert ROUTER.cost_nusd(off, answer) == plain_nusd


@pytest.mark.parametrize(
    ("asked", "told", "billed"),
    [
        ("openai/gpt-4o-mini", "gpt-4o", "openai/gpt-4o"),  # without who makes it
        ("openai/gpt-4o-mini", "gpt-4o-2024-11-20", "openai/gpt-4o"),
        ("openai/gpt-4o-mini", "gpt-4o-mini", "openai/gpt-4o-mini"),
        ("openai/gpt-4o-mini", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("anthropic/claude-haiku-4.5", "claude-opus-4.8", "anthropic/claude-opus-4.8"),
        ("openai/gpt-4o-mini", "nobody-knows-it", "openai/gpt-4o-mini"),
    ],
)
def test_an_answer_that_leaves_out_who_made_its_model_is_billed_as_that_model(asked, told, billed):
    answer = answered({"prompt_tokens": 1_000, "completion_tokens": 100}, model=told)

    assert ROUTER.cost_nusd(chat(asked), answer) == cost(billed, 1_000, 100, "openrouter")


@pytest.mark.parametrize("model", ["mistral:latest", "nobody/has-it:online", ":online"])
def test_what_has_no_price_without_its_ending_has_none_with_it(model):
    with pytest.raises(PriceUnknown):
        ROUTER.quote(chat(model))


def test_rates_are_scaled_upwards_and_exactly():
    assert Rates(((0, 10**18),), ((0, 3),)).times(Decimal("1.1")) == (
        Rates(((0, 11 * 10**17),), ((0, 4),))
    )


ODD = [None, 1, "x", [], {}, [None], [[]], {"a": 1}, True, [{"model": None}], [{"model": {}}],
       {"edits": 7}, {"edits": [[]]}, "x" * 1000]  # fmt: skip


@pytest.mark.parametrize("field", [*sorted(RAISING), "plugins"])
def test_nothing_odd_in_a_body_or_an_answer_breaks_a_quote_or_a_bill(field):
    for odd in ODD:
        request = chat("openai/gpt-4o", **{field: odd})
        quote = ROUTER.quote(request)
        assert quote.is_bound is not bool(quote.why_unbound)
        for name in ODD:
            usage = told(5, 1, iterations=odd, inference_geo=name)
            answer = Answer({"model": name, "usage": usage}, usage=Usage(5, 1))
            assert ROUTER.cost_nusd(request, answer) >= cost("openai/gpt-4o", 5, 1, "openrouter")
