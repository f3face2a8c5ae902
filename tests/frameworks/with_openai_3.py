"""Frameworks that go together with openai 3."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.frameworks.adopted import Adopted, of
from tests.frameworks.detours import as_bedrock, client, of_bedrock, of_vertex

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]
ASKED = [{"role": "user", "content": "Hi"}]


# LangChain and LangGraph


async def test_langchain(adopted: Adopted):
    from langchain_openai import ChatOpenAI

    llm = await adopted.line(ChatOpenAI=ChatOpenAI)

    async def stream() -> str:
        return "".join([chunk.content async for chunk in llm.astream("In pieces")])

    await adopted.parks(of(llm.ainvoke, "Hi"), lambda answer: answer.content)
    await adopted.parks(lambda: llm.invoke("In a thread"), lambda answer: answer.content)
    await adopted.streams(stream)


async def test_langchain_with_anthropic(adopted: Adopted):
    from langchain_anthropic import ChatAnthropic

    await adopted.line()
    llm = ChatAnthropic(model="sim-small", max_tokens=100)

    async def stream() -> str:
        return "".join([chunk.text async for chunk in llm.astream("In pieces")])

    await adopted.parks(of(llm.ainvoke, "Hi"), lambda answer: answer.text)
    await adopted.parks(lambda: llm.invoke("In a thread"), lambda answer: answer.text)
    await adopted.streams(stream)


async def test_langchain_with_google(adopted: Adopted):
    from langchain_google_genai import ChatGoogleGenerativeAI

    llm = ChatGoogleGenerativeAI(model="sim-small", base_url=adopted.url, max_retries=0)
    await adopted.line(llm=llm)

    async def stream() -> str:
        return "".join([chunk.text async for chunk in llm.astream("In pieces")])

    await adopted.parks(of(llm.ainvoke, "Hi"), lambda answer: answer.text)
    await adopted.parks(lambda: llm.invoke("In a thread"), lambda answer: answer.text)
    await adopted.streams(stream)


async def test_langgraph(adopted: Adopted):
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    llm = await adopted.line(ChatOpenAI=ChatOpenAI)

    async def answer(state: MessagesState):
        return {"messages": [await llm.ainvoke(state["messages"])]}

    made = StateGraph(MessagesState).add_node("answer", answer)
    graph = made.add_edge(START, "answer").add_edge("answer", END).compile()

    async def stream() -> str:
        pieces = graph.astream({"messages": "In pieces"}, stream_mode="messages")
        return "".join([chunk.content async for chunk, _ in pieces])

    await adopted.parks(
        of(graph.ainvoke, {"messages": "Hi"}), lambda state: state["messages"][-1].content
    )
    await adopted.streams(stream)


# Agents


async def test_openai_agents(adopted: Adopted):
    import agents

    await adopted.line(
        set_default_openai_client=agents.set_default_openai_client, AsyncOpenAI=AsyncOpenAI
    )
    agent = agents.Agent(name="a", model="sim-small")

    async def stream() -> str:
        result = agents.Runner.run_streamed(agent, "In pieces")
        async for _ in result.stream_events():
            pass
        return result.final_output

    await adopted.parks(of(agents.Runner.run, agent, "Hi"), lambda result: result.final_output)
    await adopted.streams(stream)


async def test_pydantic_ai(adopted: Adopted):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = await adopted.line(
        OpenAIChatModel=OpenAIChatModel, OpenAIProvider=OpenAIProvider, AsyncOpenAI=AsyncOpenAI
    )
    agent = Agent(model)

    async def stream() -> str:
        async with agent.run_stream("In pieces") as pieces:
            return await pieces.get_output()

    await adopted.parks(of(agent.run, "Hi"), lambda result: result.output)
    await adopted.streams(stream)


async def test_adk(adopted: Adopted):
    from google import genai
    from google.adk.agents import Agent, RunConfig
    from google.adk.agents.run_config import StreamingMode
    from google.adk.models import Gemini
    from google.adk.runners import InMemoryRunner

    made = await adopted.line(Gemini=Gemini, genai=genai)
    runner = InMemoryRunner(Agent(name="a", model=made), app_name="tried")

    async def ask(text: str, mode: StreamingMode) -> list:
        config = RunConfig(streaming_mode=mode)
        return await runner.run_debug(text, run_config=config, quiet=True)

    def text_of(events: list) -> str:
        return events[-1].content.parts[0].text

    async def stream() -> str:
        return text_of(await ask("In pieces", StreamingMode.SSE))

    await adopted.parks(of(ask, "Hi", StreamingMode.NONE), text_of)
    await adopted.streams(stream)


async def test_smolagents(adopted: Adopted):
    from smolagents import ChatMessage, OpenAIModel

    model = await adopted.line(OpenAIModel=OpenAIModel, OpenAI=OpenAI)
    asked = [ChatMessage(role="user", content=[{"type": "text", "text": "Hi"}])]

    def stream() -> str:
        return "".join(piece.content or "" for piece in model.generate_stream(asked))

    await adopted.parks(lambda: model.generate(asked), lambda answer: answer.content)
    await adopted.streams(stream)


async def test_haystack(adopted: Adopted):
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage

    generator = OpenAIChatGenerator(model="sim-small")
    await adopted.line(generator=generator, OpenAI=OpenAI, AsyncOpenAI=AsyncOpenAI)
    asked = [ChatMessage.from_user("Hi")]
    pieces: list[str] = []

    def stream() -> str:
        generator.run(asked, streaming_callback=lambda piece: pieces.append(piece.content))
        return "".join(pieces)

    await adopted.parks(lambda: generator.run(asked), lambda said: said["replies"][0].text)
    await adopted.parks(of(generator.run_async, asked), lambda said: said["replies"][0].text)
    await adopted.streams(stream)


async def test_autogen(adopted: Adopted):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.models import UserMessage
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    client = await adopted.line(
        OpenAIChatCompletionClient=OpenAIChatCompletionClient, model="gpt-4o-mini"
    )
    agent = AssistantAgent("a", client)

    async def stream() -> str:
        asked = [UserMessage(content="In pieces", source="user")]
        made = client.create_stream(asked)
        return "".join([each async for each in made if isinstance(each, str)])

    await adopted.parks(of(agent.run, task="Hi"), lambda result: result.messages[-1].content)
    await adopted.streams(stream)


async def test_ag2(adopted: Adopted):
    from ag2 import Agent
    from ag2.config import OpenAIConfig

    config = await adopted.line(OpenAIConfig=OpenAIConfig)
    agents = [Agent("a", config=replace(config, streaming=each)) for each in (False, True)]

    async def stream() -> str:
        return (await agents[1].ask("In pieces")).body

    await adopted.parks(of(agents[0].ask, "Hi"), lambda answer: answer.body)
    await adopted.streams(stream)


# Libraries


async def test_litellm(adopted: Adopted):
    import litellm

    asked = {"litellm": litellm, "model": "openai/sim-small", "messages": ASKED}

    async def ask():
        return await adopted.line(**asked)

    await adopted.parks(ask, lambda answer: answer.choices[0].message.content)

    await adopted.streams(of(_pieces, adopted, litellm.acompletion, "openai/sim-small"))


async def _pieces(adopted: Adopted, function, model: str) -> str:
    made = await adopted.s.call(
        function, model=model, messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in made]
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


async def test_litellm_router(adopted: Adopted):
    import litellm

    listed = {"model_name": "fast", "litellm_params": {"model": "openai/sim-small"}}
    router = litellm.Router(model_list=[listed], num_retries=0)

    async def ask():
        return await adopted.line(router=router, model="fast", messages=ASKED)

    await adopted.parks(ask, lambda answer: answer.choices[0].message.content)
    await adopted.streams(of(_pieces, adopted, router.acompletion, "fast"))


async def test_dspy(adopted: Adopted, monkeypatch):
    import dspy

    # By an argument: where the URL is told by the environment, DSPy takes LiteLLM by itself.
    there = partial(dspy.LM, api_base=f"{adopted.url}/v1")
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_BASE")
    await adopted.line(dspy=SimpleNamespace(LM=there))
    lm = adopted.names["lm"]

    await adopted.parks(of(lm.acall, "Hi"), lambda said: said[0])
    await adopted.parks(lambda: lm("Hi in a thread"), lambda said: said[0])


async def test_inspect_ai(adopted: Adopted):
    from inspect_ai import Task, eval_async
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model

    await adopted.line()
    task = Task(dataset=[Sample(input="Hi", target="x")])
    model = get_model("openai/sim-small")

    await adopted.parks(
        of(eval_async, task, model=model, log_level="error"),
        lambda logs: logs[0].samples[0].output.completion,
    )


async def test_hugging_face(adopted: Adopted):
    import huggingface_hub

    await adopted.line(huggingface_hub=huggingface_hub)
    clients = [
        kind(base_url=f"{adopted.url}/v1")
        for kind in (huggingface_hub.AsyncInferenceClient, huggingface_hub.InferenceClient)
    ]

    def text(answer) -> str:
        return answer.choices[0].message.content

    async def stream() -> str:
        made = await clients[0].chat_completion(ASKED, model="sim-small", stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in made if c.choices])

    await adopted.parks(of(clients[0].chat_completion, ASKED, model="sim-small"), text)
    await adopted.parks(lambda: clients[1].chat_completion(ASKED, model="sim-small"), text)
    await adopted.streams(stream)


# Anthropic's models elsewhere


async def test_anthropic_on_bedrock(adopted: Adopted):
    import httpx2
    from anthropic import AsyncAnthropicBedrock

    def make(**options):
        http_client = client(httpx2, server=adopted.url, ask=of_bedrock, answer=as_bedrock)
        return AsyncAnthropicBedrock(http_client=http_client, **options)

    await _messages(adopted, AsyncAnthropicBedrock=make)


async def test_anthropic_on_vertex(adopted: Adopted):
    import httpx2
    from anthropic import AsyncAnthropicVertex

    def make(**options):
        http_client = client(httpx2, server=adopted.url, ask=of_vertex)
        more = {"region": "europe-west1", "project_id": "p", "access_token": "t"}
        return AsyncAnthropicVertex(http_client=http_client, **more, **options)

    await _messages(adopted, AsyncAnthropicVertex=make)


async def _messages(adopted: Adopted, **kind):
    async def ask():
        await adopted.line(messages=ASKED, **kind)
        return adopted.names["answer"]

    async def stream() -> str:
        made = await adopted.s.call(
            adopted.names["client"].messages.create, model="sim-small", messages=ASKED,
            max_tokens=100, stream=True,
        )  # fmt: skip
        deltas = [getattr(event, "delta", None) async for event in made]
        return "".join(getattr(delta, "text", None) or "" for delta in deltas)

    await adopted.parks(ask, lambda answer: answer.content[0].text)
    await adopted.streams(stream)


async def test_anthropic_in_foundry(adopted: Adopted):
    from anthropic import AsyncAnthropicFoundry

    wrapped = await adopted.line(AsyncAnthropicFoundry=AsyncAnthropicFoundry)
    asked = {"model": "sim-small", "messages": ASKED, "max_tokens": 100}

    async def stream() -> str:
        async with wrapped.messages.stream(**asked) as pieces:
            return "".join([text async for text in pieces.text_stream])

    await adopted.parks(of(wrapped.messages.create, **asked), lambda said: said.content[0].text)
    await adopted.streams(stream)
