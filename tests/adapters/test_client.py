"""The OpenAI-shaped clients of our own: over budget they wait, or raise with LiteLLM's words."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from decimal import Decimal

import pytest

import scheduler
from scheduler import (
    AsyncClient,
    Budget,
    BudgetExceeded,
    Client,
    ConfigError,
    DeadlineExceeded,
    SchedulerClosed,
    Simulated,
)
from scheduler.adapters import shapes
from tests import warm
from tests.warm import running_server

MESSAGES = [{"role": "user", "content": "Hello"}]
ASKED = {"model": "sim-small", "messages": MESSAGES, "max_tokens": 12}


@pytest.fixture(params=["with openai", "without"])
def is_installed(request, monkeypatch):
    """Whether the openai package is there."""
    shapes._type.cache_clear()
    if request.param == "without":
        for name in ("openai", *(each for each in sys.modules if each.startswith("openai."))):
            monkeypatch.setitem(sys.modules, name, None)
    yield request.param == "with openai"
    shapes._type.cache_clear()


def make(budget=1, **options):
    return Client(cost_tracking_budget=budget, provider=Simulated(), **options)


def test_answers_have_openais_types_where_it_is_installed_and_its_members_anyway(is_installed):
    with make() as client:
        chat = client.chat.completions.create(**ASKED)
        answer = client.responses.create(model="sim-small", input="Hi", max_output_tokens=9)
        vectors = client.embeddings.create(model="sim-embedding", input=["a", "b"])

        assert type(chat).__module__.startswith("openai.") is is_installed
        assert chat.choices[0].message.content
        assert chat.choices[0].message.tool_calls is None
        assert chat.usage.completion_tokens <= 12
        assert len(answer.output_text.split()) <= 9
        assert [len(each.embedding) for each in vectors.data] == [8, 8]
        assert chat.model_dump()["usage"]["total_tokens"] == chat.usage.total_tokens
        told = (chat.scheduler, answer.scheduler, vectors.scheduler)
        assert sum(Decimal(each["cost_usd"]) for each in told) == client.current_cost
        assert told[0]["attempts"] == 1


def test_streams(is_installed):
    with make() as client:
        chunks = list(client.chat.completions.create(**ASKED, stream=True))
        with client.responses.create(model="sim-small", input="Hi", stream=True) as events:
            kinds = [event.type for event in events]
        assert type(chunks[0]).__module__.startswith("openai.") is is_installed
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert kinds[0] == "response.created"
        assert kinds[-1].startswith("response.")


def test_a_stream_that_is_left_keeps_counting():
    provider = Simulated(tokens_per_s=20)
    with Client(cost_tracking_budget=1, provider=provider) as client:
        with client.chat.completions.create(**ASKED, stream=True) as left:
            next(iter(left))

        assert client.scheduler.stats().suspense_nusd > 0


def test_the_seeds_own_example_works_and_does_not_overspend():
    with running_server() as url, Client(
        api_key="sk-test", base_url=url, cost_tracking_budget=0.00005,
        prices={"gpt-4o": "2.50/10"}, on_exceeded="raise",
    ) as client:  # fmt: skip
        asked = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 1}
        with pytest.raises(BudgetExceeded) as caught:  # noqa: PT012 - which of them is no matter
            for _ in range(100):
                client.chat.completions.create(**asked)

        assert str(caught.value).startswith("Cost tracking budget exceeded: current usage ")
        assert "of limit 0.00005 USD" in str(caught.value)
        assert client.current_cost <= Decimal("0.00005")

        client.cost_tracking_budget = 100
        assert client.chat.completions.create(**asked).choices
        assert client.cost_tracking_budget == "$100"


def test_over_budget_it_waits_until_the_budget_is_raised():
    with make(0) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.chat.completions.create(**ASKED)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while client.scheduler.stats().parked != {"larger_than_limit": 4}:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not answers
        client.set_budget(None)  # switched off
        for thread in threads:
            thread.join(10)

        assert len(answers) == 4
        assert client.cost_tracking_budget == "none"


LIMITS = [
    (100, "$100"), ("$100/month", "$100/month"), (None, "none"), (0.5, "$0.5"),
    (Budget("team", "$3"), "$3"),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "spec"), LIMITS)
def test_the_budget_takes_every_form(limit, spec):
    with make(limit) as client:
        assert client.cost_tracking_budget == spec
        assert client.chat.completions.create(**ASKED).choices


def test_a_new_limit_before_the_first_call_holds():
    with make(0, on_exceeded="raise") as client:
        client.set_budget("$1/day")

        assert client.chat.completions.create(**ASKED).choices
        assert client.cost_tracking_budget == "$1/day"


def test_max_wait_bounds_the_waiting_of_the_client_or_of_one_call():
    with make(0, max_wait="50ms") as client:
        with pytest.raises(DeadlineExceeded):
            client.chat.completions.create(**ASKED)
        with pytest.raises(DeadlineExceeded):
            client.chat.completions.create(**ASKED, max_wait="1ms")


def test_what_is_said_of_a_request_is_not_sent_and_what_is_sent_is_as_openais():
    provider = Simulated(record=True)
    with Client(cost_tracking_budget=1, provider=provider) as client:
        first = client.chat.completions.create(**ASKED)
        client.chat.completions.create(
            model="sim-small", messages=[first.choices[0].message, *MESSAGES], priority="batch",
            job="nightly", tags={"user": "ann"}, extra_headers={"X-Scheduler-Max-Cost": "$1"},
            extra_body={"seed": 7}, metadata={"theirs": "1"}, key="once",
        )  # fmt: skip
        (_, sent) = provider.bill.records

        assert set(sent.body) == {"model", "messages", "seed", "metadata"}
        assert sent.body["messages"][0]["role"] == "assistant"
        assert sent.key == "once"


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"timeout": 5}, "said to the client"),
        ({"extra_headers": {"X-Own": "1"}}, "headers for the provider"),
        ({"extra_headers": {"X-Scheduler-Bugdet": "1"}}, "is not one of"),
        ({"priority": "urgent"}, "is not one of"),
    ],
)
def test_what_cannot_be_said_to_a_call_is_told(params, problem):
    with make() as client, pytest.raises(ConfigError, match=problem):
        client.chat.completions.create(**ASKED, **params)


def test_a_provider_and_a_key_are_one_too_many():
    with pytest.raises(ConfigError, match="a key and a base URL of its own"):
        Client("sk-test", provider=Simulated())


def test_a_closed_client_says_so():
    client = make()
    client.close()
    client.close()
    with pytest.raises(SchedulerClosed, match="nothing was sent"):
        client.chat.completions.create(**ASKED)


def test_the_async_client(is_installed):
    async def main():
        async with AsyncClient(cost_tracking_budget=0, provider=Simulated()) as client:
            call = asyncio.create_task(client.chat.completions.create(**ASKED))
            s = await client.scheduler()
            while not s.stats().parked:
                await asyncio.sleep(0.005)
            await client.set_budget("$1/month")
            assert (await call).choices[0].message.content
            chunks = [c async for c in await client.chat.completions.create(**ASKED, stream=True)]
            assert type(chunks[0]).__module__.startswith("openai.") is is_installed
            async with await client.responses.create(
                model="sim-small", input="Hi", stream=True
            ) as events:
                assert "response.created" in [event.type async for event in events]
            assert (await client.embeddings.create(model="sim-embedding", input="a")).data
            assert client.cost_tracking_budget == "$1/month"
            assert client.current_cost > 0
        with pytest.raises(SchedulerClosed):
            await client.chat.completions.create(**ASKED)

    asyncio.run(main())


def test_an_async_client_that_nobody_closes_lets_its_program_end(tmp_path):
    program = """
import asyncio, scheduler
async def main():
    client = scheduler.AsyncClient(cost_tracking_budget=1, provider=scheduler.Simulated(), store=STORE)
    print((await client.chat.completions.create(
        model="sim-small", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)).choices != [])
asyncio.run(main())
"""
    for store in ("None", f"{str(tmp_path / 's.db')!r}"):
        done = warm.run(
            [sys.executable, "-c", program.replace("STORE", store)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_names_are_public():
    assert scheduler.Client is Client
    assert {"Client", "AsyncClient"} <= set(scheduler.__all__)
