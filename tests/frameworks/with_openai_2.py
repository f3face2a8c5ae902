"""Frameworks that still need openai 2."""

from __future__ import annotations

import importlib

import pytest
from openai import AsyncOpenAI

from tests.frameworks.adopted import Adopted, of
from tests.frameworks.detours import client, in_form

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


async def test_llamaindex(adopted: Adopted):
    from llama_index.llms.openai import OpenAI

    llm = await adopted.line(OpenAI=OpenAI, model="gpt-4o-mini")

    async def stream() -> str:
        return [piece async for piece in await llm.astream_complete("In pieces")][-1].text

    await adopted.parks(of(llm.acomplete, "Hi"), lambda answer: answer.text)
    await adopted.parks(lambda: llm.complete("In a thread"), lambda answer: answer.text)
    await adopted.streams(stream)


async def test_crewai(adopted: Adopted):
    from crewai import LLM, Agent

    await adopted.line()
    agent = Agent(role="r", goal="g", backstory="b", llm=LLM("openai/gpt-4o-mini"))
    streamed = LLM("openai/gpt-4o-mini", stream=True)

    await adopted.parks(of(agent.kickoff_async, "Hi"), lambda result: result.raw)
    await adopted.parks(lambda: agent.kickoff("In a thread"), lambda result: result.raw)
    await adopted.streams(lambda: streamed.call("In pieces"))


async def test_deepeval(adopted: Adopted):
    from deepeval.models import OpenAIModel

    llm = await adopted.line(OpenAIModel=OpenAIModel, model="gpt-4o-mini")

    await adopted.parks(of(llm.a_generate, "Hi"), lambda said: said[0])
    await adopted.parks(lambda: llm.generate("In a thread"), lambda said: said[0])


async def test_ragas(adopted: Adopted):
    from pydantic import BaseModel
    from ragas.llms import llm_factory

    class Said(BaseModel):
        text: str

    def make():
        return AsyncOpenAI(http_client=client(importlib.import_module("httpx"), answer=in_form))

    llm = await adopted.line(llm_factory=llm_factory, AsyncOpenAI=make)

    await adopted.parks(of(llm.agenerate, "Hi", Said), lambda said: said.text)
