"""A router's alias costs as the dearest model that it may reach."""

from __future__ import annotations

import functools

import pytest

from scheduler import Budget, PriceUnknown, Scheduler, Simulated
from scheduler.adapters.routers import Deployment, reach
from scheduler.prices.book import PriceBook
from scheduler.request import Request
from scheduler.testing import VirtualClock, run

MESSAGES = [{"role": "user", "content": "Hi"}]
USAGE = {"prompt_tokens": 1_000, "completion_tokens": 100}


def deployment(name, model, **more):
    info = more.pop("model_info", {})
    params = {"model": model, "api_key": "k", **more}
    return {"model_name": name, "litellm_params": params, "model_info": info}


CHEAP, DEAR = (
    deployment("fast", "openai/gpt-4o-mini"),
    deployment("fast", "anthropic/claude-sonnet-4-5"),
)


class Router:
    """The older form: lists as attributes."""

    def __init__(self, *model_list, **settings):
        self.model_list, self.model_group_alias = list(model_list), {}
        self.fallbacks = self.context_window_fallbacks = self.content_policy_fallbacks = None
        self.calls = []
        for name, value in settings.items():
            setattr(self, name, value)

    async def acompletion(self, model, messages, **kwargs):
        self.calls.append(model)
        return {"usage": USAGE}

    def completion(self, model, messages, **kwargs):
        self.calls.append(model)
        return {"usage": USAGE}


class NewerRouter:
    """The newer form: lists behind views; the older names warn, which is an error here."""

    def __init__(self, *model_list, **settings):
        older = Router(*model_list, **settings)
        self.registry, self.settings = lambda: self, lambda: older
        self.all, self.aliases = lambda: older.model_list, lambda: older.model_group_alias

    @property
    def model_list(self):
        raise DeprecationWarning("use registry()")

    async def acompletion(self, model, messages, **kwargs):
        return {"usage": USAGE}


BIG = deployment("big", "gpt-4o")
MODELS = {
    "one": ([CHEAP], "fast", {"openai/gpt-4o-mini"}),
    "several": ([CHEAP, DEAR, BIG], "fast", {"openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"}),
    "a pattern": ([deployment("openai/*", "openai/*")], "openai/gpt-5", {"openai/gpt-5"}),
    "everything": ([deployment("*", "groq/*"), CHEAP], "llama", {"groq/llama"}),
    "none": ([CHEAP], "gpt-4o", set()),
    "its own base": (
        [deployment("az", "azure/mine", model_info={"base_model": "azure/gpt-4o"})],
        "az", {"azure/gpt-4o"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Router, NewerRouter])
@pytest.mark.parametrize("case", MODELS)
def test_an_alias_reaches_its_deployments(kind, case):
    listed, alias, models = MODELS[case]

    assert {each.model for each in reach(kind(*listed).acompletion, alias)} == models


FALLBACKS = [
    {"fallbacks": [{"fast": ["big"]}]},
    {"fallbacks": [{"*": ["big"]}]},
    {"fallbacks": [{"other": ["x"]}, {"fast": [{"model": "big", "max_tokens": 5}]}]},
    {"context_window_fallbacks": [{"fast": ["middle"]}], "fallbacks": [{"middle": ["big"]}]},
    {"content_policy_fallbacks": [{"fast": ["big"]}]},
    {"model_group_alias": {"fast": "big"}},
    {"model_group_alias": {"fast": {"model": "big", "hidden": True}}},
]


@pytest.mark.parametrize("kind", [Router, NewerRouter])
@pytest.mark.parametrize("settings", FALLBACKS)
def test_what_it_falls_back_to_is_reached_too(kind, settings):
    found = reach(kind(CHEAP, BIG, **settings).acompletion, "fast")

    assert Deployment("gpt-4o") in found


def test_circles_end_and_fallbacks_of_one_call_count():
    router = Router(CHEAP, BIG, fallbacks=[{"fast": ["big"]}, {"big": ["fast"]}])

    assert len(reach(router.acompletion, "big")) == 2
    assert Deployment("gpt-4o") in reach(Router(CHEAP, BIG).acompletion, "fast", ["big"])


def test_a_price_in_the_list_is_taken():
    listed = deployment(
        "own", "hosted/llama", input_cost_per_token=1e-6, output_cost_per_token="2e-6"
    )
    informed = deployment("own", "hosted/b", model_info={
        "input_cost_per_token": 3e-6, "output_cost_per_token": 4e-6})  # fmt: skip

    prices = [each.price for each in reach(Router(listed, informed).acompletion, "own")]
    quoted = [PriceBook({"m": price}).rates("m") for price in prices]
    assert [(r.input[0][1], r.output[0][1]) for r in quoted] == [
        (10**18, 2 * 10**18), (3 * 10**18, 4 * 10**18),
    ]  # fmt: skip


@pytest.mark.parametrize("thing", [print, "x".upper, lambda: None, [].append])
def test_what_is_no_router_has_no_reach(thing):
    assert reach(thing, "fast") == ()


def test_a_method_is_found_behind_partials_and_decorators():
    method = Router(CHEAP).acompletion

    @functools.wraps(method)
    async def wrapped(*args, **kwargs):
        return await method(*args, **kwargs)

    assert reach(wrapped, "fast")
    assert reach(functools.partial(method, temperature=0), "fast")


def call(router, alias="fast", *, prices=None, **more):
    """What was reserved, what was posted, and the provider it went under."""
    most = []

    async def main():
        async with Scheduler(
            budgets=Budget("team", "$5"), providers=Simulated(), prices=prices, clock=VirtualClock()
        ) as s:

            async def seen(model, messages, **kwargs):
                most.append(s.stats().reserved_nusd)
                return await router.acompletion(model, messages, **kwargs)

            functools.update_wrapper(seen, router.acompletion)
            await s.call(seen, model=alias, messages=MESSAGES, max_tokens=200, **more)
            return s.stats().posted_nusd, s.providers

    posted, providers = run(main())
    return most[0], posted, providers


def one(model, provider):
    usage = PriceBook().tariff(provider)
    return usage.quote(Request.chat(model, MESSAGES, max_tokens=200)).ceiling_nusd


def test_an_alias_is_reserved_and_posted_at_the_dearest_it_may_reach():
    reserved, posted, providers = call(Router(CHEAP, DEAR))

    assert reserved == one("claude-sonnet-4-5", "anthropic") > one("gpt-4o-mini", "openai")
    assert posted == 1_000 * 3_000 + 100 * 15_000
    assert any("gpt-4o-mini, anthropic/claude-sonnet-4-5" in each for each in providers)


def test_a_fallback_is_reserved_for():
    router = Router(CHEAP, BIG, fallbacks=[{"fast": ["big"]}])

    assert call(router)[0] == one("gpt-4o", "openai")
    assert call(Router(CHEAP, BIG))[0] == one("gpt-4o-mini", "openai")
    assert call(Router(CHEAP, BIG), fallbacks=["big"])[0] == one("gpt-4o", "openai")


class Plain:
    """As a module of functions, without a list."""

    async def acompletion(self, model, messages, **kwargs):
        return {"usage": USAGE}


@pytest.mark.parametrize(
    "more",
    [
        {"fallbacks": ["gpt-4o"]},
        {"fallbacks": [{"model": "gpt-4o"}, "gpt-4o-mini"]},
        {"context_window_fallback_dict": {"gpt-4o-mini": "gpt-4o"}},
    ],
)
def test_what_a_plain_function_falls_back_to_is_reserved_for(more):
    cheap, dear = one("gpt-4o-mini", "openai"), one("gpt-4o", "openai")

    assert call(Plain(), "gpt-4o-mini")[0] == cheap < dear
    assert call(Plain(), "gpt-4o-mini", **more)[0] == dear
    assert call(Plain(), "gpt-4o-mini", prices={"gpt-4o-mini": "0.1/0.1"}, **more)[0] == dear


def test_a_fallback_without_a_price_is_named_by_who_may_reach_it():
    with pytest.raises(PriceUnknown, match=r"'mine'.*'gpt-4o-mini' may reach it"):
        call(Plain(), "gpt-4o-mini", fallbacks=["mine"])


def test_a_price_of_the_alias_comes_first():
    assert call(Router(CHEAP, DEAR), prices={"fast": "1/1"})[1] == 1_100_000


def test_two_routers_with_the_same_alias_do_not_share_a_price():
    async def main():
        async with Scheduler(
            budgets=Budget("team", "$5"), providers=Simulated(), clock=VirtualClock()
        ) as s:
            for router in (Router(CHEAP), Router(BIG | {"model_name": "fast"})):
                await s.call(router.acompletion, model="fast", messages=MESSAGES, max_tokens=200)
            return s.stats().posted_nusd

    assert run(main()) == 1_000 * (150 + 2_500) + 100 * (600 + 10_000)


def test_a_deployment_without_a_price_is_named():
    router = Router(CHEAP, deployment("fast", "hosted_vllm/mine"))

    with pytest.raises(PriceUnknown, match=r"'hosted_vllm/mine'.*'fast' may reach it"):
        call(router)
    assert call(router, prices={"hosted_vllm/mine": "0/0"})[1] == 1_000 * 150 + 100 * 600
