"""A rule meets a model under every name by which it can be asked and billed, and no other model."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.budget import Budget
from scheduler.clock import SystemClock
from scheduler.core.aliases import Aliases
from scheduler.core.intake import Intake, Prevention
from scheduler.ledger.matching import BudgetBook
from scheduler.naming import is_met, names_of
from scheduler.prices.book import PriceBook
from scheduler.providers.anthropic import Anthropic
from scheduler.providers.openai import OpenAI
from scheduler.providers.outside import Outside
from scheduler.request import Request
from scheduler.testing import run
from tests.conftest import Bench


@pytest.mark.parametrize(
    ("written", "pattern", "is_it"),
    [
        ("gpt-4o", "gpt-4*", True),
        ("GPT-4o", "gpt-4*", True),
        ("gpt-4o", "GPT-4*", True),
        ("openai/gpt-4o", "gpt-4*", True),
        ("openai:gpt-4o", "gpt-4o", True),
        ("openrouter:openai/gpt-4o", "gpt-4o", True),
        ("openrouter/openai/gpt-4o", "openai/gpt-4*", True),
        ("openrouter/openai/gpt-4o", "openrouter:*", True),
        ("openai/gpt-4o:nitro", "gpt-4o", True),
        ("models/gemini-2.5-flash", "gemini-2.5-flash", True),
        ("publishers/google/models/gemini-2.5-flash", "gemini-2.5*", True),
        ("gemini-2.5-flash", "models/gemini-2.5-flash", True),
        ("gemini/gemini-2.5-flash", "google/gemini-*", True),
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        ("claude-sonnet-4-20250514", "claude-sonnet-4", True),
        ("vertex_ai/claude-sonnet-4@20250514", "claude-sonnet-4", True),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "claude-sonnet-4", True),
        ("bedrock/anthropic.claude-sonnet-4-20250514-v1:0", "bedrock/claude-*", True),
        ("mistralai/mistral-large", "mistral/mistral-large", True),
        ("openai/gpt-4o:online:nitro", "gpt-4o", True),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo", True),
        ("xai/grok-4-0709", "grok-4", True),
        ("mistral-large-2411", "mistral-large", True),
        ("gemini-2.5-flash-001", "gemini-2.5-flash", True),
        ("gemini-2.5-flash-preview-05-20", "gemini-2.5-flash", True),
        ("gemini-2.5-flash-preview-09-2025", "gemini-2.5-flash", True),
        ("google-vertex:gemini-2.5-flash", "vertex_ai/gemini-*", True),
        ("google_genai:gemini-2.5-flash", "google/gemini-*", True),
        ("azure_ai/gpt-4o", "azure/gpt-4o", True),
        ("gemini-2.5-flash-lite-001", "gemini-2.5-flash", False),
        ("gpt-4-1106-preview", "gpt-4", False),
        ("llama3-70b-8192", "llama3-70b", False),
        ("qwen3-235b-a22b-2507", "qwen3-235b", False),
        ("claude-sonnet-4-5", "claude-sonnet-4.5", True),
        ("claude-sonnet-4.5", "claude-sonnet-4-5", True),
        ("anthropic/claude-3.5-sonnet:beta", "claude-3-5-*", True),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4.5", True),
        ("claude-sonnet-4-5[1m]", "claude-sonnet-4.5", True),
        ("claude-opus-4-0", "claude-opus-4", True),
        ("claude-opus-4", "claude-opus-4-0", True),
        ("claude-opus-4-1", "claude-opus-4", False),
        ("claude-sonnet-4-5", "claude-sonnet-4", False),
        ("gpt-4-1106-preview", "gpt-4.1*", False),
        ("llama3:8b", "llama3:8b", True),
        ("llama3:latest", "llama3", True),
        ("anything", "*", True),
        ("gpt-4o", "gpt-4", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o-mini-2024-07-18", "gpt-4o", False),
        ("gpt-4-turbo", "gpt-4", False),
        ("gpt-4", "gpt-4o*", False),
        ("azure/gpt-4o", "openai/gpt-4o", False),
        ("openai/gpt-4o", "azure/*", False),
        ("ft:gpt-4o-2024-08-06:org::id", "gpt-4o", False),
        ("codestral", "mistral*", False),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", False),
        ("claude-3-5-haiku", "claude-3-5-sonnet*", False),
    ],
)
def test_a_pattern_means_a_model_however_it_is_written(written, pattern, is_it):
    assert is_met(pattern, names_of(written)) is is_it
    assert Budget("b", 1, models=[pattern]).covers(written, {}) is is_it


MODELS = ["gpt-4o", "gpt-4o-mini", "gpt-4", "claude-sonnet-4", "gemini-2.5-flash", "o3"]
BEFORE = ["", "openai/", "openai:", "openrouter:openai/", "models/", "litellm_proxy/", "Azure/"]
BEHIND = ["", "-2025-04-14", "-20250414", "-latest", ":nitro", ":free"]
PATTERNS = [
    *MODELS,
    *(f"{model}*" for model in MODELS),
    "gpt-4*",
    "*flash*",
    "*",
    "gpt-[45]o",
    "??",
]


@settings(max_examples=400)
@given(
    st.sampled_from(MODELS), st.sampled_from(BEFORE), st.sampled_from(BEHIND),
    st.sampled_from(PATTERNS), st.booleans(), st.booleans(),
)  # fmt: skip
def test_whatever_stands_around_a_name_changes_nothing_for_rules_without_a_provider(
    model, before, behind, pattern, is_loud, is_loud_pattern
):
    written = f"{before}{model}{behind}"
    written = written.upper() if is_loud else written
    means_it = fnmatchcase(model, pattern)
    pattern = pattern.upper() if is_loud_pattern else pattern

    met = is_met(pattern, names_of(written))

    if "*" in pattern:
        assert met >= means_it  # a star may also stand for what is behind
    else:
        assert met is means_it


# What configurations and prices add


class Named(Bench):
    """A provider that says what its names stand for."""

    def __init__(self, name, **attributes):
        super().__init__(name)
        for attribute, value in attributes.items():
            setattr(self, attribute, value)


AZURE = "https://res.openai.azure.com/openai/v1"
PROVIDERS = [
    Named("first", price_source="openai"),
    Named("azure", price_source="azure", priced_as={"my-deploy": "gpt-4o"}),
    Named("eu", price_source="azure", priced_as={"*": "gpt-4o"}, deployment="main"),
    Named("openrouter", price_source="openrouter"),
    Named("router", reaches=("groq/llama-3.3-70b-versatile", "openai/gpt-4o-mini")),
    Named("claude", price_source="anthropic"),
]
ROUTES = {"fast": "openrouter:openai/gpt-4o-mini", "big-*": "first:gpt-4o", "claude-*": "claude"}


def intake_of(*budgets, providers=PROVIDERS, routes=ROUTES):
    made = Intake(providers, PriceBook(), SystemClock(), "wait", Prevention(), routes)
    made.book.update(enumerate(budgets, 1))
    return made


@pytest.mark.parametrize(
    ("model", "provider", "pattern", "is_it"),
    [
        ("fast", None, "gpt-4o-mini", True),
        ("fast", None, "fast", True),
        ("openrouter:openai/gpt-4o-mini", None, "fast", True),
        ("fast", None, "openrouter/*", True),
        ("fast", None, "first/*", False),
        ("big-one", None, "gpt-4o", True),
        ("big-one", None, "big-*", True),
        ("big-one", None, "openai/gpt-4o", True),
        ("claude-3-5-sonnet-latest", None, "anthropic/claude-3-5-sonnet", True),
        ("anthropic/claude-3.5-sonnet", "openrouter", "claude-3-5-sonnet", True),
        ("claude-sonnet-4-20250514", None, "claude-sonnet-4-0", True),
        ("my-deploy", "azure", "gpt-4*", True),
        ("my-deploy", "azure", "my-deploy", True),
        ("my-deploy", "azure", "azure/gpt-4o", True),
        ("my-deploy", "azure", "openai/gpt-4o", False),
        ("", "eu", "gpt-4o", True),
        ("", "eu", "main", True),
        ("gpt-35-turbo", "azure", "gpt-3.5-turbo", True),
        ("gpt-4-0613", None, "gpt-4", True),
        ("gpt-5-codex", None, "gpt-5", False),
        ("gpt-4o-mini-search-preview", None, "gpt-4o-mini", False),
        ("alias", "router", "gpt-4o-mini", True),
        ("alias", "router", "groq/*", True),
        ("alias", "router", "groq/gpt-4o-mini", False),
        ("gpt-4o", None, "gpt-4", False),
    ],
)
def test_a_rule_meets_the_model_that_is_asked_and_billed(model, provider, pattern, is_it):
    intake = intake_of(Budget("ruled", "$0", models=[pattern]))

    found = intake.explain(Request({"model": model}, provider=provider, budget=()))

    assert (found.rules == ("ruled",)) is is_it, found.names


@pytest.mark.parametrize(
    ("provider", "pattern", "is_it"),
    [
        (OpenAI(), "openai/gpt-4o", True),
        (OpenAI("work", base_url=AZURE), "azure/gpt-4o", True),
        (OpenAI("work", base_url=AZURE), "openai/gpt-4o", False),
        (OpenAI("work", base_url="https://openrouter.ai/api/v1"), "openrouter/*", True),
        (Outside("https://api.openai.com/v1"), "openai/gpt-4*", True),
        (Outside("https://api.groq.com/openai/v1"), "openai/gpt-4*", False),
        (Anthropic(api_key="k"), "anthropic/*", True),
    ],
)
def test_a_provider_is_known_by_its_name_its_address_and_its_prices(provider, pattern, is_it):
    intake = intake_of(Budget("ruled", "$0", models=[pattern]), providers=provider, routes=None)

    found = intake.explain(Request({"model": "gpt-4o"}, budget=()))

    assert (found.rules == ("ruled",)) is is_it, found.names


def test_models_that_a_gateway_may_fall_back_to_are_met_as_well():
    intake = intake_of(Budget("ruled", "$0", models=["gpt-4*"]))
    body = {"model": "meta-llama/llama-3-8b", "models": ["openai/gpt-4o"]}

    found = intake.explain(Request(body, provider="openrouter", budget=()))

    assert found.rules == ("ruled",)


def test_names_are_found_once_for_each_model_provider_and_tags(monkeypatch):
    asked = []
    names = Aliases.names
    monkeypatch.setattr(
        Aliases, "names", lambda self, each: asked.append(each) or names(self, each)
    )
    intake = intake_of(Budget("ruled", None, models=["gpt-4*"], tags={"user": "*"}))

    for _ in range(3):
        for model, user in product(("gpt-4o", "fast"), ("ann", "bob")):
            request = Request.chat(model, "hi", max_tokens=5, tags={"user": user}, budget=())
            assert intake.prepare(request, None).lane.budgets == (1,)

    assert [each.model for each in asked] == ["gpt-4o", "openai/gpt-4o-mini"]


def test_without_rules_for_models_nobody_asks_for_names(monkeypatch):
    monkeypatch.setattr(Aliases, "names", None)
    intake = intake_of(Budget("all", None, tags={"user": "ann"}))

    request = Request.chat("gpt-4o", "hi", max_tokens=5, tags={"user": "ann"}, budget=())

    assert intake.prepare(request, None).lane.budgets == (1,)


# Nothing goes out


WAYS = [
    ({"model": "gpt-4o"}, None),
    ({"model": "GPT-4O"}, None),
    ({"model": "openrouter:openai/gpt-4o"}, None),
    ({"model": "openai/gpt-4o-2024-11-20"}, None),
    ({"model": "my-deploy"}, "azure"),
    ({"model": "fast"}, None),
    ({"model": "big-one"}, None),
    ({"model": "alias"}, "router"),
]


@settings(max_examples=25)
@given(
    st.sampled_from(WAYS), st.sampled_from(["gpt-4*", "GPT-4*", "*gpt-4o*"]),
    st.lists(st.sampled_from(["gpt-4o", "fast", "openrouter:openai/gpt-4o"]), max_size=2),
)  # fmt: skip
def test_no_name_no_route_and_no_fallback_leads_past_a_rule(way, pattern, fallback):
    body, provider = way
    sent = []

    async def main():
        from scheduler import BudgetExceeded, DeadlineExceeded, Scheduler

        providers = [
            Named(each.name, price_source=each.price_source, priced_as=each.priced_as,
                  reaches=each.reaches)
            for each in PROVIDERS
        ]  # fmt: skip
        budgets = [Budget("big", "$0", models=[pattern]), Budget("all", None)]
        async with Scheduler(budgets=budgets, providers=providers, routes=ROUTES) as s:
            how = "fallback" if fallback else "raise"
            request = Request(
                {**body, "messages": []}, provider=provider, fallback=tuple(fallback), max_wait="1s"
            )
            with pytest.raises((BudgetExceeded, DeadlineExceeded), match="'big'"):
                await s.run(request, on_exceeded=how)
            sent.extend(model for each in providers for model in each.sent)

    run(main())
    assert sent == []


@settings(max_examples=100)
@given(st.lists(
    st.tuples(st.sampled_from(["gpt-4*", "claude-*", ""]), st.sampled_from(["ann", "b*", "bob", ""])),
    max_size=8,
), st.sampled_from(["gpt-4o", "claude-x"]), st.sampled_from(["ann", "bob", "eve", ""]))  # fmt: skip
def test_rules_are_found_by_their_tags_as_if_each_were_asked(rules, model, user):
    budgets = [
        Budget(
            f"b{number}", 1, models=[models] if models else [], tags={"user": tag} if tag else {}
        )
        for number, (models, tag) in enumerate(rules)
    ]
    tags = {"user": user} if user else {}

    found = BudgetBook(enumerate(budgets, 1)).ruled_by(model, tags)

    assert found == tuple(sorted(b.name for b in budgets if b.covers(model, tags)))


class Listed:
    """A router in LiteLLM's form."""

    def __init__(self):
        params = {"model": "azure/my-deployment", "base_model": "gpt-4o"}
        self.model_list = [{"model_name": "quick", "litellm_params": params}]
        self.called = []

    async def acompletion(self, model, messages, max_tokens=None):
        self.called.append(model)


@pytest.mark.parametrize(
    ("model", "prices"),
    [
        ("openai/gpt-4o", {}),
        ("openrouter/openai/gpt-4o", {}),
        ("azure/GPT-4o", {}),
        ("quick", {}),
        ("quick", {"quick": "1/2"}),
    ],
)
def test_a_function_of_others_is_not_called_past_a_rule(model, prices):
    router = Listed()

    async def main():
        from scheduler import BudgetExceeded, Scheduler

        budget = Budget("big", "$0", models=["gpt-4*"])
        options = {"providers": Bench(), "prices": prices, "on_exceeded": "raise"}
        async with Scheduler(budgets=budget, **options) as s:
            messages = [{"role": "user", "content": "hi"}]
            with pytest.raises(BudgetExceeded):
                await s.call(router.acompletion, model=model, messages=messages, max_tokens=5)

    run(main())
    assert router.called == []


@pytest.mark.parametrize("more", [{"extra_body": {"models": ["openai/gpt-4o"]}},
                                  {"models": ["openai/gpt-4o"]},
                                  {"fallbacks": ["openai/gpt-4o"]},
                                  {"fallbacks": [{"model": "openai/gpt-4o", "max_tokens": 9}]},
                                  {"context_window_fallback_dict": {"llama": "openai/gpt-4o"}}])  # fmt: skip
def test_a_function_of_others_is_not_called_for_models_that_may_answer_past_a_rule(more):
    called = []

    async def acompletion(model, messages, max_tokens=None, **kwargs):
        called.append(model)

    async def main():
        from scheduler import BudgetExceeded, Scheduler

        budget = Budget("big", "$0", models=["gpt-4*"])
        prices = {"llama": "1/2", "openai/gpt-4o": "1/2"}
        options = {"providers": Bench(), "prices": prices, "on_exceeded": "raise"}
        async with Scheduler(budgets=budget, **options) as s:
            messages = [{"role": "user", "content": "hi"}]
            with pytest.raises(BudgetExceeded):
                await s.call(acompletion, model="llama", messages=messages, max_tokens=5, **more)

    run(main())
    assert called == []
