"""SDKs themselves, in the newest and in the previous major version, and instructor."""

from __future__ import annotations

import importlib

import pytest

from tests.frameworks.adopted import Adopted, of
from tests.frameworks.detours import client, in_form
from tests.sdks.kits import ANTHROPIC, GOOGLE, GROQ, IS_NEWEST, MISTRAL, OPENAI, Kit

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


async def asks(adopted: Adopted, kit: Kit, wrapped: object) -> None:
    async def stream() -> str:
        made = kit.stream(wrapped, "In pieces")
        chunks = await made if hasattr(made, "__await__") else made
        return "".join([kit.chunk_text(chunk) async for chunk in chunks])

    await adopted.parks(of(kit.ask, wrapped, "Hi"), kit.text)
    await adopted.streams(stream)


async def test_openai(adopted: Adopted):
    from openai import AsyncOpenAI

    await asks(adopted, OPENAI, await adopted.line(AsyncOpenAI=AsyncOpenAI))


async def test_azure_openai(adopted: Adopted):
    from openai import AsyncAzureOpenAI

    await asks(adopted, OPENAI, await adopted.line(AsyncAzureOpenAI=AsyncAzureOpenAI))


async def test_anthropic(adopted: Adopted):
    from anthropic import AsyncAnthropic

    await asks(adopted, ANTHROPIC, await adopted.line(AsyncAnthropic=AsyncAnthropic))


async def test_google_genai(adopted: Adopted):
    from google import genai

    await asks(adopted, GOOGLE, await adopted.line(genai=genai))


async def test_groq(adopted: Adopted):
    from groq import AsyncGroq

    await asks(adopted, GROQ, await adopted.line(AsyncGroq=AsyncGroq))


async def test_mistralai(adopted: Adopted):
    from mistralai.client import Mistral

    def make(**options):
        return Mistral(server_url=adopted.url, **options)

    await asks(adopted, MISTRAL, await adopted.line(Mistral=make, api_key="sk-test"))


@pytest.mark.skipif(IS_NEWEST, reason="instructor excludes the newest openai")
async def test_instructor(adopted: Adopted):
    import instructor
    from openai import AsyncOpenAI
    from pydantic import BaseModel

    class Said(BaseModel):
        text: str

    def make():
        return AsyncOpenAI(http_client=client(importlib.import_module("httpx"), answer=in_form))

    made = await adopted.line(instructor=instructor, AsyncOpenAI=make)
    asked = {
        "model": "sim-small", "max_retries": 0, "response_model": Said,
        "messages": [{"role": "user", "content": "Who?"}],
    }  # fmt: skip

    await adopted.parks(of(made.chat.completions.create, **asked), lambda said: said.text)
