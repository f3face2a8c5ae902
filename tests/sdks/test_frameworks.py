"""What is built upon the SDKs: it waits for money through them."""

from __future__ import annotations

import asyncio

import pytest

from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import ANTHROPIC, IS_NEWEST, OPENAI

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]
newest = pytest.mark.skipif(not IS_NEWEST, reason="needs the newest SDKs")
previous = pytest.mark.skipif(IS_NEWEST, reason="excludes the newest SDKs")


async def park_and_raise(s, ask):
    """Ask with no money, see it parked, raise the limit; gives the answer."""
    await s.set_limit("team", "$0.00000001")
    call = asyncio.create_task(ask)
    await until(lambda: s.stats().parked)
    assert not call.done()
    await s.set_limit("team", "$1")
    return await call


@newest
async def test_pydantic_ai(service, connect):
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async with make_scheduler() as s:
        openai = s.wrap(connect(OPENAI, service.url, False))
        anthropic = s.wrap(connect(ANTHROPIC, service.url, False))
        models = (
            OpenAIChatModel("sim-small", provider=OpenAIProvider(openai_client=openai)),
            AnthropicModel("sim-small", provider=AnthropicProvider(anthropic_client=anthropic)),
        )
        for model in models:
            agent = Agent(model, model_settings={"max_tokens": 30})
            result = await park_and_raise(s, agent.run("Say hello"))
            assert len(result.output.split()) == 12
            async with agent.run_stream("In pieces") as stream:
                assert len((await stream.get_output()).split()) == 12

        assert s.stats().succeeded == 4
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")


@newest
async def test_langchain(service):
    from langchain_openai import ChatOpenAI

    async with make_scheduler() as s:
        clients = s.http_client(), s.http_client(sync=True)
        llm = ChatOpenAI(
            model="sim-small",
            api_key="sk-test",
            base_url=f"{service.url}/v1",
            max_tokens=30,
            max_retries=0,
            stream_usage=True,
            http_async_client=clients[0],
            http_client=clients[1],
        )
        answer = await park_and_raise(s, llm.ainvoke("Say hello"))
        in_thread = await asyncio.to_thread(llm.invoke, "In a thread")
        chunks = [chunk async for chunk in llm.astream("In pieces")]
        with s.tag(job="by tag"):
            await llm.ainvoke("Tagged")

        assert len(answer.content.split()) == len(in_thread.content.split()) == 12
        assert len("".join(chunk.content for chunk in chunks).split()) == 12
        assert {row.name for row in await s.store.spend("job")} == {"", "by tag"}
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")
        await clients[0].aclose()
        clients[1].close()


@previous
async def test_instructor(service, connect):
    import instructor
    from instructor.core.exceptions import InstructorRetryException
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str

    async with make_scheduler() as s:
        client = instructor.from_openai(
            s.wrap(connect(OPENAI, service.url, False)), mode=instructor.Mode.JSON
        )
        # The simulated provider gives no JSON: each of instructor's tries is a call of its own.
        with pytest.raises(InstructorRetryException):
            await client.chat.completions.create(
                model="sim-small", max_tokens=30, max_retries=2, response_model=Person,
                messages=[{"role": "user", "content": "Who?"}],
            )  # fmt: skip

        assert service.since("calls") == s.stats().succeeded == 3  # the first, and two retries
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")


@previous
async def test_llama_index(service):
    from llama_index.llms.openai import OpenAI

    async with make_scheduler(prices={"gpt-4o-mini": "0.15/0.60"}) as s:
        clients = s.http_client("httpx"), s.http_client("httpx", sync=True)
        llm = OpenAI(
            model="gpt-4o-mini",
            api_key="sk-test",
            api_base=f"{service.url}/v1",
            max_tokens=30,
            max_retries=0,
            async_http_client=clients[0],
            http_client=clients[1],
        )
        answer = await park_and_raise(s, llm.acomplete("Say hello"))
        in_thread = await asyncio.to_thread(llm.complete, "In a thread")
        chunks = [chunk async for chunk in await llm.astream_complete("In pieces")]

        assert len(answer.text.split()) == len(in_thread.text.split()) == 12
        assert len(chunks[-1].text.split()) == 12
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")
        await clients[0].aclose()
        clients[1].close()
