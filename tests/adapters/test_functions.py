"""Any async function waits for money: what it may cost, what it did, what went wrong."""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import threading
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace

import pytest

from scheduler import (
    BlockingScheduler,
    Budget,
    BudgetExceeded,
    ConfigError,
    DeadlineExceeded,
    PriceUnknown,
    ProviderRefused,
    Scheduler,
    SchedulerClosed,
    Simulated,
)
from scheduler.adapters.arguments import read_arguments
from scheduler.core.calls import UnderWay
from scheduler.money import usd
from scheduler.testing import VirtualClock, run

MESSAGES = [{"role": "user", "content": "Hi"}]
PRICES = {"m": "1/4"}  # dollars a million tokens: 1,000 and 4,000 nano-dollars each
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}  # 30,000 nano-dollars


def scheduler(limit="$1", **options):
    return Scheduler(
        budgets=Budget("team", limit), providers=Simulated(), prices=PRICES, clock=VirtualClock(),
        **options,
    )  # fmt: skip


async def complete(**kwargs):
    return {"usage": USAGE, "asked": kwargs}


def test_it_is_called_with_its_own_arguments_and_gives_its_own_result():
    async def add(a, b, *, model, messages):
        return SimpleNamespace(sum=a + b, usage=USAGE)

    async def main():
        async with scheduler() as s:
            result = await s.call(add, 1, 2, model="m", messages=MESSAGES)
            assert result.sum == 3
            assert s.stats().posted_nusd == 30_000
            assert s.providers == ("simulated", "tests/m")

    run(main())


RESULTS = [
    (USAGE, 30_000),
    (SimpleNamespace(model_dump=lambda **_: USAGE), 30_000),
    ({"cost": 0.002}, 2_000_000),
    (None, None),
    ("nonsense", None),
]


@pytest.mark.parametrize(("usage", "cost_nusd"), RESULTS)
def test_what_it_cost_is_read_from_the_result_or_is_the_ceiling(usage, cost_nusd):
    async def fn(**kwargs):
        return SimpleNamespace(usage=usage) if usage is not None else "text"

    async def main():
        async with scheduler() as s:
            await s.call(fn, model="m", messages=MESSAGES, max_tokens=10)
            ceiling_nusd = s.quote(_request(max_tokens=10)).ceiling_nusd
            assert s.stats().posted_nusd == (cost_nusd or ceiling_nusd)

    run(main())


def _request(**body):
    from scheduler import Request

    return Request.chat("m", MESSAGES, **body)


def test_it_waits_while_there_is_no_money_and_runs_in_its_callers_context():
    name = ContextVar("name", default="nobody")

    async def fn(**kwargs):
        return {"usage": USAGE, "name": name.get(), "at": asyncio.get_running_loop().time()}

    async def main():
        async with scheduler(0) as s:
            name.set("ann")
            call = asyncio.create_task(s.call(fn, model="m", messages=MESSAGES))
            await asyncio.sleep(3600)
            assert s.stats().parked == {"larger_than_limit": 1}
            await s.set_limit("team", "$1")
            assert await call == {"usage": USAGE, "name": "ann", "at": 3600}

    run(main())


def test_what_may_pass_is_tried_again_and_each_attempt_is_reserved():
    async def fn(**kwargs):
        tries.append(1)
        if len(tries) < 3:
            raise TimeoutError("slow")
        return {"usage": USAGE}

    tries = []

    async def main():
        async with scheduler() as s:
            await s.call(fn, model="m", messages=MESSAGES, max_tokens=10)
            ceiling_nusd = s.quote(_request(max_tokens=10)).ceiling_nusd
            stats = s.stats()
            assert (stats.posted_nusd, stats.suspense_nusd) == (30_000, 2 * ceiling_nusd)

    run(main())
    assert len(tries) == 3


def test_what_it_raises_in_the_end_is_its_own_with_a_note_on_money():
    class Odd(Exception):
        pass

    async def fn(**kwargs):
        raise Odd("who knows")

    async def main():
        async with scheduler() as s:
            with pytest.raises(Odd) as caught:
                await s.call(fn, model="m", messages=MESSAGES, max_tokens=10)
            spent = usd(s.stats().suspense_nusd).normalize()
            assert caught.value.__notes__ == [f"scheduler: 1 attempt, ${spent:f} counted as spent"]

    run(main())


def test_an_error_of_ours_is_taken_at_its_word():
    async def fn(**kwargs):
        raise ProviderRefused(400, "no")

    async def main():
        async with scheduler() as s:
            with pytest.raises(ProviderRefused, match="nothing charged"):
                await s.call(fn, model="m", messages=MESSAGES)
            assert s.stats().suspense_nusd == s.stats().posted_nusd == 0

    run(main())


def test_another_model_and_a_cap_reach_the_function():
    async def main():
        prices = PRICES | {"dear": "100/400"}
        async with Scheduler(
            budgets=Budget("team", "$0.01"), providers=Simulated(), prices=prices, cap_output=7,
            clock=VirtualClock(), on_exceeded="fallback", fallback=["m"],
        ) as s:  # fmt: skip
            await s.set_limit("team", "$0.0005")
            result = await s.call(complete, model="dear", messages=MESSAGES, temperature=1)
            assert result["asked"] == {
                "model": "m", "messages": MESSAGES, "temperature": 1, "max_tokens": 7,
            }  # fmt: skip

    run(main())


def test_refusals_are_raised_and_nothing_is_called():
    async def main():
        async with scheduler(0, on_exceeded="raise") as s:
            with pytest.raises(BudgetExceeded):
                await s.call(complete, model="m", messages=MESSAGES)
            with pytest.raises(PriceUnknown):
                await s.call(complete, model="unheard-of", messages=MESSAGES)
            with pytest.raises(ConfigError, match="without model="):
                await s.call(complete, messages=MESSAGES)
            with pytest.raises(ConfigError, match="is not async"):
                await s.call(lambda **kwargs: None, model="m", messages=MESSAGES)
        with pytest.raises(SchedulerClosed):
            await s.call(complete, model="m", messages=MESSAGES)

    run(main())


def test_tags_hold_for_functions():
    async def main():
        async with scheduler(0) as s:
            with s.tag(max_wait=5, job="nightly"), pytest.raises(DeadlineExceeded):
                await s.call(complete, model="m", messages=MESSAGES)

    run(main())


def test_cancelling_it_while_it_waits_costs_nothing_and_while_it_runs_keeps_counting():
    async def slow(**kwargs):
        await asyncio.sleep(1e6)

    async def main():
        async with scheduler(0) as s:
            call = asyncio.create_task(s.call(slow, model="m", messages=MESSAGES, max_tokens=1))
            await asyncio.sleep(1)
            call.cancel()
            await asyncio.wait([call])
            assert s.stats().cancelled == 1

            await s.set_limit("team", "$1")
            call = asyncio.create_task(s.call(slow, model="m", messages=MESSAGES, max_tokens=1))
            await asyncio.sleep(1)
            call.cancel()
            await asyncio.wait([call])
            await s.join()
            assert s.stats().suspense_nusd > 0 == s.stats().running

    run(main())


class Chunks:
    """A stream as an SDK gives it."""

    def __init__(self, *usages, error=None):
        self.usages, self.error, self.name = usages, error, "a stream"

    async def __aiter__(self):
        for usage in self.usages:
            yield SimpleNamespace(usage=usage)
        if self.error is not None:
            raise self.error


STREAMS = [
    (Chunks(None, None, USAGE), "posted", 30_000),
    (Chunks(None, None), "posted", None),
    (Chunks(None, error=TimeoutError("stalled")), "suspense", None),
]


@pytest.mark.parametrize(("stream", "where", "cost_nusd"), STREAMS)
def test_a_stream_is_settled_by_the_last_usage_in_it(stream, where, cost_nusd):
    s = None

    async def fn(**kwargs):
        assert s.stats().failed == 0  # what was begun is never begun anew
        return stream

    async def main():
        nonlocal s
        async with scheduler() as s:
            ceiling_nusd = s.quote(_request(max_tokens=10)).ceiling_nusd
            chunks = await s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True)
            assert chunks.name == "a stream"
            assert s.stats().running == 1
            try:
                async for _ in chunks:
                    assert s.stats().running == 1
            except TimeoutError:
                await s.join()
            assert s.stats().running == 0
            assert getattr(s.stats(), f"{where}_nusd") == (cost_nusd or ceiling_nusd)

    run(main())


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_stream_that_nobody_reads_on_keeps_counting_and_frees_its_place(is_begun):
    async def fn(**kwargs):
        return Chunks(None, None, USAGE)

    async def main():
        async with scheduler() as s:
            chunks = await s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True)
            if is_begun:
                async for _ in chunks:
                    break
            del chunks
            await s.join()
            assert s.stats().running == s.stats().posted_nusd == 0 < s.stats().suspense_nusd

    run(main())


# Decorated functions


def test_a_decorated_function_is_quoted_and_billed_by_its_own_rules():
    async def main():
        async with scheduler() as s:

            @s.budgeted(quote=lambda text: len(text) * 0.001, cost=lambda result: result["cost"])
            async def translate(text):
                """Say it in another language."""
                return {"text": text.upper(), "cost": None if text == "hi!" else "$0.0005"}

            assert await translate("hi") == {"text": "HI", "cost": "$0.0005"}
            assert s.stats().posted_nusd == 500_000
            await translate("hi!")  # which does not say: it counts as quoted
            assert s.stats().posted_nusd == 3_500_000
            assert translate.__doc__ == "Say it in another language."
            (row,) = list(await s.store.spend("model"))
            assert row.name.endswith("translate")

    run(main())


def test_a_decorated_function_waits_and_is_marked():
    async def main():
        async with scheduler(0) as s:

            @s.budgeted(quote="$0.01", cost="$0.004", job="by decorator")
            async def work():
                return "done"

            call = asyncio.create_task(work())
            await asyncio.sleep(60)
            assert not call.done()
            await s.set_limit("team", "$1")
            assert await call == "done"
            assert s.stats().posted_nusd == 4_000_000
            assert [row.name for row in await s.store.spend("job")] == ["by decorator"]

    run(main())


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ({"quote": "much"}, complete),
        ({"quote": "$1", "cost": "much"}, complete),
        ({"quote": "$1"}, lambda: None),
        ({"quote": "$1", "bugdet": "a"}, complete),
    ],
)
def test_a_wrong_decoration_is_told_where_it_is_written(options, function):
    with pytest.raises(ConfigError):
        scheduler().budgeted(**options)(function)


def test_a_call_within_a_call_is_counted_once():
    async def inner(**kwargs):
        return {"usage": USAGE}

    async def main():
        async with scheduler(concurrency=1) as s:

            @s.budgeted(quote="$0.01", cost="$0.005")
            async def outer():
                return await s.call(inner, model="m", messages=MESSAGES)

            assert await asyncio.wait_for(outer(), 60) == {"usage": USAGE}
            assert s.stats().posted_nusd == 5_000_000
            assert s.stats().succeeded == 1

    run(main())


def test_googles_way_of_asking_is_quoted_and_billed():
    class Told:
        def model_dump(self, **options):
            assert options["by_alias"]
            return {"promptTokenCount": 10, "candidatesTokenCount": 5}

    async def generate(*, model, contents, config):
        return SimpleNamespace(usage_metadata=Told())

    async def main():
        async with scheduler() as s:
            long = "word " * 1000
            with pytest.raises(BudgetExceeded) as short:
                await _dear(s, generate, "word")
            with pytest.raises(BudgetExceeded) as caught:
                await _dear(s, generate, long)
            assert caught.value.needed > short.value.needed
            await s.call(generate, model="m", contents=long, config={"max_output_tokens": 7})
            assert s.stats().posted_nusd == 30_000

    async def _dear(s, function, contents):
        await s.set_limit("team", 0)
        try:
            await s.call(
                function, model="m", contents=contents, config={"max_output_tokens": 7},
                on_exceeded="raise",
            )  # fmt: skip
        finally:
            await s.set_limit("team", "$1")

    run(main())


def test_arguments_count_by_name_wherever_they_stand():
    async def fn(model, messages, max_tokens=10):
        return {"usage": USAGE}

    async def main():
        async with scheduler() as s:
            await s.call(fn, "m", MESSAGES)
            assert s.providers[-1] == "tests/m"
            assert s.stats().posted_nusd == 30_000

    run(main())


def test_a_call_whose_prompt_nobody_sees_is_not_made():
    async def fn(**kwargs):
        raise AssertionError("not called")

    async def main():
        async with scheduler() as s:
            with pytest.raises(ConfigError, match="without any of messages, prompt, contents"):
                await s.call(fn, model="m", texts=["a" * 9999])

    run(main())


def test_a_method_of_a_client_that_tries_again_by_itself_is_refused():
    class Completions:
        def __init__(self, max_retries):
            self._client = SimpleNamespace(max_retries=max_retries)

        async def create(self, **kwargs):
            return {"usage": USAGE}

    async def main():
        async with scheduler() as s:
            with pytest.raises(ConfigError, match="tries again up to 2 times by itself"):
                await s.call(Completions(2).create, model="m", messages=MESSAGES)
            await s.call(Completions(0).create, model="m", messages=MESSAGES)
            assert s.stats().succeeded == 1

    run(main())


@pytest.mark.parametrize("cost", [lambda result: result["nothing"], lambda result: -1])
def test_a_cost_that_cannot_be_told_counts_as_quoted_and_the_result_is_given(cost):
    async def main():
        async with scheduler() as s:
            work = s.budgeted(quote="$0.01", cost=cost)(complete)
            assert (await work())["usage"] == USAGE
            assert s.stats().posted_nusd == 10_000_000

    run(main())


def test_a_stream_may_be_read_by_hand_or_left_by_its_block():
    async def fn(**kwargs):
        return Chunks(None, USAGE)

    async def main():
        async with scheduler() as s:
            chunks = await s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True)
            assert (await anext(chunks)).usage is None
            assert (await anext(chunks)).usage == USAGE
            with pytest.raises(StopAsyncIteration):
                await anext(chunks)
            assert s.stats().posted_nusd == 30_000

            async with await s.call(
                fn, model="m", messages=MESSAGES, max_tokens=10, stream=True
            ) as left:
                await anext(left)
            await s.join()
            assert s.stats().suspense_nusd > 0

    run(main())


def test_functions_that_block_are_called_in_their_thread_and_may_stream():
    def fn(**kwargs):
        return iter([{"usage": None}, {"usage": USAGE}]) if kwargs.get("stream") else {
            "usage": USAGE, "thread": threading.get_ident(),
        }  # fmt: skip

    with BlockingScheduler(
        Scheduler(budgets=Budget("team", "$1"), providers=Simulated(), prices=PRICES)
    ) as s:
        assert s.call(fn, model="m", messages=MESSAGES)["thread"] == threading.get_ident()
        chunks = s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True)
        assert [chunk["usage"] for chunk in chunks] == [None, USAGE]
        assert s.stats().posted_nusd == 60_000
        with s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True) as left:
            next(left)
        assert s.stats().suspense_nusd > 0
        with pytest.raises(ConfigError, match="is async"):
            s.call(complete, model="m", messages=MESSAGES)


class Refused(Exception):
    """As an SDK has it."""

    def __init__(self, status_code):
        super().__init__("refused")
        self.status_code = status_code


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_budgeted_function_that_raises_may_have_paid_for_something_before(status):
    tries = []

    async def main():
        async with scheduler() as s:

            @s.budgeted(quote="$0.01", cost="$0.001")
            async def work():
                tries.append(1)  # and paid for
                raise Refused(status)

            with pytest.raises(Refused):
                await work()
            assert s.stats().suspense_nusd == 10_000_000

    run(main())
    assert len(tries) == 1


def test_an_exception_that_was_merely_being_handled_says_nothing_of_the_call():
    async def fn(**kwargs):
        try:
            raise Refused(400)
        except Refused:  # a backup is asked instead, and paid
            raise ValueError("what it said is no JSON")  # noqa: B904 - as careless as people are

    async def main():
        async with scheduler() as s:
            with pytest.raises(ValueError, match="no JSON"):
                await s.call(fn, model="m", messages=MESSAGES, max_tokens=10)
            assert s.stats().suspense_nusd > 0

    run(main())


class Stop(BaseException):
    """No Exception, as `pytest.fail` raises it."""


def test_what_is_no_exception_reaches_the_caller_and_its_place_is_freed():
    async def fn(**kwargs):
        raise Stop

    async def main():
        async with scheduler(concurrency=1) as s:
            for _ in range(2):
                with pytest.raises(Stop):
                    await s.call(fn, model="m", messages=MESSAGES, max_tokens=10)
            assert s.stats().running == 0 < s.stats().suspense_nusd

    run(main())


def test_a_stream_that_was_given_up_is_not_taken_for_one_that_has_ended():
    class Slow(Chunks):
        async def __aiter__(self):
            yield SimpleNamespace(usage={"prompt_tokens": 1, "completion_tokens": 1})
            await asyncio.sleep(100)

    async def fn(**kwargs):
        return Slow()

    async def main():
        async with scheduler() as s:
            chunks = await s.call(fn, model="m", messages=MESSAGES, max_tokens=10, stream=True)
            await anext(chunks)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(chunks), 1)
            with pytest.raises(StopAsyncIteration):
                await anext(chunks)
            await s.join()
            assert s.stats().posted_nusd == 0 < s.stats().suspense_nusd

    run(main())


def test_a_file_is_no_stream():
    async def speak():
        return io.BytesIO(b"sound")

    async def main():
        async with scheduler() as s:
            spoken = await s.budgeted(quote="$0.02", cost="$0.01")(speak)()
            assert spoken.read() == b"sound"
            assert s.stats().posted_nusd == 10_000_000

    run(main())


def test_retries_are_found_behind_partials_and_decorators():
    class Completions:
        _client = SimpleNamespace(max_retries=2)

        async def create(self, **kwargs):
            raise AssertionError("not called")

    @functools.wraps(Completions().create)
    async def raw(**kwargs):
        raise AssertionError("not called")

    async def main():
        async with scheduler() as s:
            for function in (functools.partial(Completions().create, n=1), raw):
                with pytest.raises(ConfigError, match="tries again up to 2 times"):
                    await s.call(function, model="m", messages=MESSAGES)

    run(main())


def test_a_fallback_reaches_a_model_that_is_given_by_its_place():
    asked = []

    async def fn(model, messages, max_tokens=None):
        asked.append(model)
        return {"usage": USAGE}

    async def main():
        options = {"on_exceeded": "fallback", "fallback": ["m"], "clock": VirtualClock()}
        async with Scheduler(
            budgets=Budget("team", "$0.0005"), providers=Simulated(),
            prices=PRICES | {"dear": "100/400"}, **options,
        ) as s:  # fmt: skip
            await s.call(fn, "dear", MESSAGES, max_tokens=5)

    run(main())
    assert asked == ["m"]


def test_a_cap_that_a_function_cannot_take_is_told_before_it_is_called():
    async def fn(*, model, messages):
        raise AssertionError("not called")

    async def google(*, model, contents, config=None):
        raise AssertionError("not called")

    async def main():
        async with scheduler(cap_output=5) as s:
            with pytest.raises(ProviderRefused, match="does not take max_tokens"):
                await s.call(fn, model="m", messages=MESSAGES)
            with pytest.raises(ProviderRefused, match="does not take generationConfig"):
                await s.call(google, model="m", contents="Hi")
            assert s.stats().suspense_nusd == s.stats().posted_nusd == 0

    run(main())


CONFIGS = [
    ({"max_output_tokens": 9}, 1),
    ({"maxOutputTokens": 9}, 1),
    (SimpleNamespace(model_dump=lambda **_: {"max_output_tokens": 9, "candidate_count": 8}), 2),
    ({"max_output_tokens": 9, "system_instruction": "word " * 99}, 3),
    ({"max_output_tokens": 9, "tools": [{"function_declarations": [{"name": "x" * 999}]}]}, 3),
]


@pytest.mark.parametrize(("config", "times"), CONFIGS)
def test_googles_config_counts(config, times):
    from scheduler.adapters.arguments import read_arguments

    async def fn(**kwargs):
        """Never called."""

    def quote(config):
        call = functools.partial(fn, model="m", contents="Hi", config=config)
        return scheduler().prices.tariff().quote(read_arguments(fn, call)).ceiling_nusd

    plain = quote({"max_output_tokens": 9})
    assert quote(config) == plain if times == 1 else quote(config) > 1.3 * plain


def test_work_that_goes_on_from_call_to_call_keeps_none_of_them():
    async def step(left):
        return asyncio.create_task(go_on(left - 1)) if left else None

    async def go_on(left):
        return await s.budgeted(quote="$0.001", cost=0)(step)(left)

    def kept():
        gc.collect()
        return sum(isinstance(each, UnderWay) for each in gc.get_objects())

    async def main():
        nonlocal s
        async with scheduler() as s:
            before = kept()  # by tests that ran in this process earlier
            task = await go_on(30)
            while task is not None:
                task = await task
            assert kept() - before < 20

    s = None
    run(main())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speed", "fast"), ("inference_geo", "us"), ("thinking_budget", 9_000),
        ("thinking", {"type": "enabled", "budget_tokens": 9_000}), ("plugins", [{"id": "web"}]),
        ("models", ["openai/gpt-4o"]), ("preset", "mine"), ("num_completions", 5),
        ("context_management", {"edits": [{"type": "compact_20260112"}]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_extra", [False, True])
def test_an_argument_that_makes_a_call_dearer_is_read(name, value, is_extra):
    more = {"extra_body": {name: value}} if is_extra else {name: value}
    call = partial(fake_completion, model="m", messages=[], max_tokens=5, **more)

    assert read_arguments(fake_completion, call).body[name] == value


async def fake_completion(**arguments):
    """Never called."""
