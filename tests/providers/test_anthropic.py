"""Anthropic's Messages API: its own form, and chat translated there and back."""

import json

import httpx
import pytest

from scheduler import Anthropic, Budget, ProviderRefused, Request, Scheduler
from scheduler.prices.rates import Rates
from scheduler.prices.usage import extract_usage
from scheduler.providers.anthropic_chat import Untranslatable, to_chat, to_messages
from tests.warm import running_server

KEY = "sk-ant-secret-123456"
PRICES = {"sim-small": "0.15/0.60"}
pytestmark = pytest.mark.anyio


def chat(*messages, **more):
    return {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": list(messages), **more}


def user(content):
    return {"role": "user", "content": content}


TEXT = {"type": "text", "text": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d",
                                         "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (chat(user("hi")), {"messages": [{"role": "user", "content": [TEXT]}]}),
        (
            chat({"role": "system", "content": "be brief"}, user("hi")),
            {"system": [{"type": "text", "text": "be brief"}],
             "messages": [{"role": "user", "content": [TEXT]}]},
        ),
        (chat(user("hi"), stop="x", temperature=0.5),
         {"stop_sequences": ["x"], "temperature": 0.5,
          "messages": [{"role": "user", "content": [TEXT]}]}),
        (
            chat(user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                       {"type": "image_url", "image_url": {"url": "https://x/y.png"}}])),
            {"messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}]}]},
        ),
        (
            chat(user("hi"),
                 {"role": "assistant", "content": None, "tool_calls": [
                     {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
                 {"role": "tool", "tool_call_id": "c1", "content": "done"}, user("hi"),
                 tools=[TOOL], tool_choice="required", parallel_tool_calls=False),
            {"messages": [
                {"role": "user", "content": [TEXT]},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c1",
                     "content": [{"type": "text", "text": "done"}]}, TEXT]}],
             "tools": [{"name": "f", "description": "d",
                        "input_schema": {"type": "object", "properties": {}}}],
             "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        ),
    ],
)  # fmt: skip
def test_a_chat_becomes_messages(body, made):
    assert to_messages(body) == {"model": "claude-haiku-4-5", "max_tokens": 50, **made}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (chat(user("hi"), logit_bias={"1": 2}), "logit_bias"),
        (chat(user("hi"), n=2), "'n' above 1"),
        ({"model": "m", "messages": []}, "max_tokens is missing"),
        (chat(user([{"type": "input_audio"}])), "'input_audio'"),
        (chat({"role": "critic", "content": "x"}), "'critic'"),
        (chat(user("hi"), response_format={"type": "json_object"}), "response_format"),
        (chat(user("hi"), tools=[{"type": "web_search"}]), "'web_search'"),
    ],
)
def test_what_has_no_translation_is_named_and_never_dropped(body, named):
    with pytest.raises(Untranslatable, match=named):
        to_messages(body)


def test_a_message_becomes_a_chat_answer():
    body = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hello"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3,
                  "output_tokens": 7},
    }  # fmt: skip
    made = to_chat(body)

    (choice,) = made["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "hello")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert choice["message"]["reasoning_content"] == "hm"
    assert extract_usage(made) == extract_usage(body)
    assert extract_usage(made).input_tokens == 18


def test_a_cache_kept_for_an_hour_costs_what_it_costs():
    usage = extract_usage({"usage": {
        "input_tokens": 100, "output_tokens": 0, "cache_creation_input_tokens": 3000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
    }})  # fmt: skip
    million = ((0, 10**18),)
    rates = Rates(million, cache_write=((0, 125 * 10**16),), long_cache_write=((0, 2 * 10**18),))

    assert usage.long_cache_write_tokens == 2000
    assert rates.cost_nusd(usage) == 100_000 + 1_250_000 + 4_000_000
    plain = Rates(million, cache_write=((0, 125 * 10**16),))
    assert plain.cost_nusd(usage) == 100_000 + 3_750_000


async def test_it_introduces_itself_as_anthropic_wants_it():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json={"type": "message", "content": [], "usage": {
            "input_tokens": 1, "output_tokens": 1}})  # fmt: skip

    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        provider = Anthropic(api_key=KEY, client=client, base_url="https://api.anthropic.com/v1/",
                             headers={"anthropic-beta": "b1"})  # fmt: skip
        await provider.send(Request.messages("claude-haiku-4-5", "hi", max_tokens=5))

    (request,) = seen
    assert str(request.url) == "https://api.anthropic.com/v1/messages"
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["anthropic-beta"] == "b1"
    assert "authorization" not in request.headers
    assert json.loads(request.content)["max_tokens"] == 5
    assert (provider.price_source, provider.counting) == ("anthropic", "anthropic")
    assert KEY not in repr(provider)


async def test_both_forms_and_a_stream_over_http_are_settled_as_billed():
    with running_server("--api-key", KEY, "--style", "anthropic", "--rpm", "600") as url:
        provider = Anthropic(api_key=KEY, base_url=url)
        async with Scheduler(providers=provider, prices=PRICES, budgets=Budget("b", "$1")) as s:
            native = await s.run(Request.messages("sim-small", "hello", max_tokens=40))
            translated = await s.run(Request.chat("sim-small", "hello", max_tokens=40))
            async with s.stream(Request.messages("sim-small", "hello", max_tokens=40)) as events:
                names = [event.event async for event in events]
                streamed = await events.response()
            with pytest.raises(ProviderRefused, match="are not translated"):
                await s.stream(Request.chat("sim-small", "hi", max_tokens=5)).response()
            with pytest.raises(ProviderRefused, match="max_tokens is missing"):
                await s.run(Request.chat("sim-small", "hi"))
            (budget,) = s.stats().budgets
        async with httpx.AsyncClient() as client:
            bill = (await client.get(url.removesuffix("/v1") + "/billed")).json()

    assert native.text
    assert translated.body["object"] == "chat.completion"
    assert translated.text
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"
    assert streamed.text
    assert budget.caps[0].posted == bill["billed_nusd"]
    assert bill["calls"] == 3
