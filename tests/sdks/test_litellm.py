"""The real LiteLLM: its functions and its Router wait for money, and its own budgets are heeded."""

from __future__ import annotations

import asyncio
import os

import pytest

import scheduler
from scheduler import BudgetExceeded, ConfigError, DeadlineExceeded, PriceUnknown, refusal_of
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import IS_NEWEST, MODEL, said

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not IS_NEWEST, reason="is tried with the newest SDKs"),
]
PRICE_PER_TOKEN = {"input_cost_per_token": 0.15e-6, "output_cost_per_token": 0.60e-6}


@pytest.fixture(scope="module")
def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices when imported
    import litellm

    litellm.suppress_debug_info = True
    return litellm


@pytest.fixture(autouse=True)
def no_callbacks(litellm):
    """What a Router registers for all of the process ends with its test."""
    yield
    litellm.callbacks.clear()


@pytest.fixture
def options(service):
    return {
        "model": "openai/sim-small",
        "api_base": f"{service.url}/v1",
        "api_key": "sk-test",
        "max_tokens": 30,
        "max_retries": 0,
    }


async def test_acompletion_parks_and_is_settled_by_its_usage(litellm, options, service):
    async with make_scheduler("$0.00000001") as s:
        calls = [
            asyncio.create_task(s.call(litellm.acompletion, messages=said(f"Q{n}"), **options))
            for n in range(5)
        ]
        await until(lambda: s.stats().parked == {"larger_than_limit": 5})
        await s.set_limit("team", "$1")
        answers = await asyncio.gather(*calls)

        assert {type(answer).__name__ for answer in answers} == {"ModelResponse"}
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")


async def test_what_litellm_says_it_cost_is_believed_but_not_its_zero(litellm, options, service):
    async with make_scheduler() as s:
        priced = await s.call(
            litellm.acompletion, messages=said("Priced"), **options, **PRICE_PER_TOKEN
        )
        posted_nusd = s.stats().posted_nusd
        free = await s.call(
            litellm.acompletion, messages=said("Priced"), **options, input_cost_per_token=0,
            output_cost_per_token=0,
        )  # fmt: skip

        assert priced._hidden_params["response_cost"] == pytest.approx(posted_nusd / 1e9)
        assert not free._hidden_params["response_cost"]
        assert s.stats().posted_nusd == 2 * posted_nusd == service.since("billed_nusd")


async def test_a_stream_is_settled_when_it_has_been_read(litellm, options, service):
    async with make_scheduler() as s:
        stream = await s.call(
            litellm.acompletion, messages=said("In pieces"), stream=True,
            stream_options={"include_usage": True}, **options,
        )  # fmt: skip
        assert s.stats().running == 1
        chunks = [chunk async for chunk in stream]
        text = "".join([chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices])

        assert len(text.split()) == 12
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd") > 0


async def test_a_stream_without_usage_counts_all_that_was_reserved(litellm, options, service):
    async with make_scheduler() as s:
        stream = await s.call(
            litellm.acompletion, messages=said("In pieces"), stream=True, **options
        )
        assert [chunk async for chunk in stream]

        assert counted(s) == s.stats().posted_nusd > service.since("billed_nusd") > 0


async def test_embeddings(litellm, options, service):
    async with make_scheduler() as s:
        more = {**options, "model": "openai/sim-embedding"}
        del more["max_tokens"]
        answer = await s.call(litellm.aembedding, input=["one", "two"], **more)

        assert len(answer.data) == 2
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd") > 0


async def test_no_key_among_the_arguments_is_kept(litellm, options, service, tmp_path):
    path = tmp_path / "s.db"
    async with make_scheduler(store=path) as s:
        await s.call(litellm.acompletion, messages=said("Marked"), **options)

        written = path.read_bytes() + b"".join(
            each.read_bytes() for each in tmp_path.glob("s.db-*")
        )
        assert b"sk-test" not in written
        assert b"openai/sim-small" in written


async def test_a_budget_of_litellms_own_parks_and_is_probed(litellm, options, service):
    """`BudgetExceededError` is not the request's fault: it waits, like for a provider's top-up."""
    gate = {"open": False}

    async def acompletion(**kwargs):
        if not gate["open"]:
            raise litellm.BudgetExceededError(current_cost=1.05, max_budget=1.0)
        return await litellm.acompletion(**kwargs)

    async with make_scheduler() as s:
        call = asyncio.create_task(s.call(acompletion, messages=said("Hi"), **options))
        await until(lambda: s.stats().parked == {"provider_credit": 1})
        (why,) = s.stats().shortfalls
        assert "Budget has been exceeded" in why.words
        assert counted(s) == 0

        gate["open"] = True
        s.probe(why.budget)
        assert (await call).choices
        assert s.stats().posted_nusd == service.since("billed_nusd")


async def test_a_routers_provider_budget_parks_its_model_only(litellm, options, service):
    def deployment(name, **more):
        return {"model_name": name, "litellm_params": {**options, **PRICE_PER_TOKEN, **more}}

    router = litellm.Router(
        model_list=[deployment("small"), deployment("other", model="hosted_vllm/sim-small")],
        provider_budget_config={"openai": {"budget_limit": 1e-9, "time_period": "1d"}},
        num_retries=0,
    )
    async with make_scheduler(prices={"small": "0.15/0.60", "other": "0.15/0.60"}) as s:
        calls, n = [], 0
        while not s.stats().parked:  # it notices what was spent some time after the fact
            n += 1
            assert n < 50
            calls.append(
                asyncio.create_task(
                    s.call(router.acompletion, model="small", messages=said(f"Q{n}"), max_tokens=9)
                )
            )
            await asyncio.sleep(0.1)
        (why,) = s.stats().shortfalls
        assert (why.reason, why.budget) == ("provider_credit", "litellm/small")
        assert "crossed budget" in why.words
        other = await s.call(
            router.acompletion, model="other", messages=said("Elsewhere"), max_tokens=9,
            api_base=f"{service.url}/v1",
        )  # fmt: skip

        assert other.choices
        # On a busy machine more than the last one was not sent before it noticed.
        await until(
            lambda: sum(not call.done() for call in calls) == sum(s.stats().parked.values())
        )
        for call in calls:
            call.cancel()


async def test_its_rate_limit_errors_are_waited_for(litellm, options):
    async def acompletion(**kwargs):
        tries.append(kwargs)
        if len(tries) == 1:
            raise litellm.RateLimitError("slow down", "openai", "sim-small")
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    tries = []
    async with make_scheduler() as s:
        await s.call(acompletion, messages=said("Hi"), **options)

        assert len(tries) == 2
        assert s.stats().succeeded == 1
        assert counted(s) == s.stats().posted_nusd


async def test_a_routers_cooldown_is_waited_out(litellm, options):
    from litellm.types.router import RouterRateLimitError

    async def acompletion(**kwargs):
        tries.append(asyncio.get_running_loop().time())
        if len(tries) == 1:
            raise RouterRateLimitError("small", 0.3, False, [])
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    tries = []
    async with make_scheduler() as s:
        await s.call(acompletion, messages=said("Hi"), **options)

        assert tries[1] - tries[0] >= 0.3
        assert s.stats().succeeded == 1


async def test_a_routers_alias_is_priced_through_its_own_list(litellm, service):
    def deployment(name, model):
        params = {"model": model, "api_base": f"{service.url}/v1", "api_key": "sk-test"}
        return {"model_name": name, "litellm_params": params}

    router = litellm.Router(
        model_list=[deployment("fast", "openai/gpt-4o-mini"), deployment("fast", "openai/gpt-4.1"),
                    deployment("big", "openai/gpt-4o")],
        fallbacks=[{"fast": ["big"]}], model_group_alias={"quick": "fast"},
    )  # fmt: skip
    async with make_scheduler("$0.00001", prices={}) as s:
        calls = [
            asyncio.create_task(
                s.call(router.acompletion, model=name, messages=said("Hi"), max_tokens=100)
            )
            for name in ("quick", "fast")
        ]
        await until(lambda: s.stats().parked == {"larger_than_limit": 2})
        most = max(each.missing for each in s.stats().shortfalls) + 10_000
        assert most > 100 * 10_000  # as GPT-4o, to which both may come
        await s.set_limit("team", "$1")
        answers = await asyncio.gather(*calls)

        assert all(answer.choices for answer in answers)
        assert service.since("billed_nusd") <= s.stats().posted_nusd


async def test_what_it_raises_in_the_end_is_its_own_with_a_note(litellm, options, guarded):
    more = {**options, "api_base": f"{guarded}/v1"}
    async with make_scheduler() as s:
        with pytest.raises(litellm.AuthenticationError) as caught:
            await s.call(litellm.acompletion, messages=said("Hi"), **more)

        assert caught.value.__notes__ == ["scheduler: 1 attempt, nothing charged"]
        assert counted(s) == 0


async def test_a_connection_that_was_never_made_costs_nothing(litellm, options):
    more = {**options, "api_base": "http://127.0.0.1:9/v1"}
    async with make_scheduler(max_attempts=2, retry_wait_s=lambda attempt: 0) as s:
        with pytest.raises(litellm.InternalServerError) as caught:
            await s.call(litellm.acompletion, messages=said("Hi"), **more)

        assert caught.value.__notes__ == ["scheduler: 2 attempts, nothing charged"]
        assert counted(s) == 0


async def test_refusals_are_the_schedulers_own(litellm, options):
    async with make_scheduler("$0.00000001", on_exceeded="raise") as s:
        with pytest.raises(BudgetExceeded):
            await s.call(litellm.acompletion, messages=said("Hi"), **options)
        with pytest.raises(PriceUnknown, match="openai/unheard-of"):
            await s.call(
                litellm.acompletion,
                messages=said("Hi"),
                **{**options, "model": "openai/unheard-of"},
            )
        with pytest.raises(ConfigError, match="without model="):
            await s.call(litellm.acompletion, messages=said("Hi"))
        with pytest.raises(ConfigError, match="is not async"):
            await s.call(litellm.completion, messages=said("Hi"), **options)


async def test_prices_are_found_in_litellms_way_of_naming_models(litellm, options):
    async with make_scheduler("$0.00000001", prices={}, on_exceeded="raise") as s:
        for model in ("gpt-4o-mini", "openai/gpt-4o-mini", "gemini/gemini-2.5-flash"):
            with pytest.raises(BudgetExceeded) as caught:
                await s.call(
                    litellm.acompletion, messages=said("Hi"), **{**options, "model": model}
                )
            assert caught.value.needed > 0


async def test_one_call_is_one_request_whatever_the_sdk_would_do(litellm, options, failing):
    more = {**options, "api_base": f"{failing.url}/v1"}
    del more["max_retries"]
    router = litellm.Router(model_list=[{"model_name": "small", "litellm_params": more}])
    quick = {"max_attempts": 1, "prices": {"openai/sim-small": "1/4", "small": "1/4"}}
    async with make_scheduler(**quick) as s:
        for function, asked in (
            (litellm.acompletion, more),
            (router.acompletion, {"model": "small"}),
        ):
            before = failing.since("received")
            with pytest.raises(litellm.InternalServerError):
                await s.call(function, messages=said("Hi"), **asked)
            assert failing.since("received") - before == 1


async def test_litellms_aiohttp_beneath_httpx_is_counted_once(litellm, service):
    async with make_scheduler() as s:
        with scheduler.instrument(s):
            for streams in (False, True):
                answer = await litellm.acompletion(
                    f"openai/{MODEL}", said("Hi"), api_base=f"{service.url}/v1", api_key="k",
                    max_tokens=30, num_retries=0, stream=streams,
                )  # fmt: skip
                if streams:
                    assert [chunk async for chunk in answer]

        assert s.stats().succeeded == service.since("calls") == 2
        assert counted(s) == service.since("billed_nusd") > 0


async def test_litellm_raises_its_own_behind_which_it_stands(litellm, service):
    async with make_scheduler(0) as s:
        with (
            scheduler.instrument(s), s.tag(max_wait=0.05),
            pytest.raises(Exception, match="not sent in time") as caught,
        ):  # fmt: skip
            await litellm.acompletion(
                f"openai/{MODEL}", said("Hi"), api_base=f"{service.url}/v1", api_key="k",
                max_tokens=30, num_retries=0, max_retries=0,
            )  # fmt: skip

    assert isinstance(refusal_of(caught.value), DeadlineExceeded)
