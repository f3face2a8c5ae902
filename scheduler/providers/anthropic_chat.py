"""From OpenAI's chat to Anthropic's messages and back; pure. What has no equal is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SAME = ("model", "temperature", "top_p", "stream", "service_tier")
_IGNORED = ("user", "seed", "n", "store", "metadata", "stream_options", "max_completion_tokens",
            "max_tokens", "messages", "stop", "tools", "tool_choice", "parallel_tool_calls")  # fmt: skip
_ENDS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
         "refusal": "content_filter", "pause_turn": "stop"}  # fmt: skip


class Untranslatable(ValueError):
    """A part of a body has no translation."""


def to_messages(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat body as one for the Messages API.

    Raises:
        Untranslatable: It names what cannot be translated.
    """
    for name, value in body.items():
        if value is not None and name not in _SAME and name not in _IGNORED:
            raise Untranslatable(f"{name!r} has no translation")
    if body.get("n") not in (None, 1):
        raise Untranslatable("'n' above 1 has no translation")
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    if cap is None:
        raise Untranslatable("max_tokens is missing, which is needed (or set cap_output)")
    made = {name: body[name] for name in _SAME if body.get(name) is not None} | {"max_tokens": cap}
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in body.get("messages") or ():
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            system += _parts(content)
        elif role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"),
                      "content": _parts(content)}  # fmt: skip
            _append(messages, "user", [result])
        elif role in ("user", "assistant"):
            calls = [_tool_use(call) for call in message.get("tool_calls") or ()]
            _append(messages, role, _parts(content) + calls)
        else:
            raise Untranslatable(f"role {role!r} has no translation")
    made |= {"system": system} if system else {}
    made["messages"] = messages
    if body.get("stop") is not None:
        stop = body["stop"]
        made["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if body.get("tools"):
        made["tools"] = [_tool(tool) for tool in body["tools"]]
        made |= _tool_choice(body)
    return made


def _append(messages: list[dict[str, Any]], role: str, parts: list[dict[str, Any]]) -> None:
    """Add parts; those of one role in a row are one message there."""
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += parts
    else:
        messages.append({"role": role, "content": parts})


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_part(part) for part in content]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return dict(part)
    if kind == "image_url":
        url = part["image_url"]["url"] if isinstance(part["image_url"], dict) else part["image_url"]
        if url.startswith("data:"):
            head, _, data = url.removeprefix("data:").partition(",")
            media_type = head.removesuffix(";base64")
            source = {"type": "base64", "media_type": media_type, "data": data}
        else:
            source = {"type": "url", "url": url}
        return {"type": "image", "source": source}
    raise Untranslatable(f"a part of type {kind!r} has no translation")


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        given = json.loads(function.get("arguments") or "{}")
    except ValueError:
        raise Untranslatable("a tool call whose arguments are no JSON has no translation") from None
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Untranslatable(f"a tool of type {tool.get('type')!r} has no translation")
    function = tool["function"]
    made = {
        "name": function["name"],
        "input_schema": function.get("parameters") or {"type": "object"},
    }
    if function.get("description"):
        made["description"] = function["description"]
    return made


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choice, one_by_one = body.get("tool_choice"), body.get("parallel_tool_calls") is False
    kinds = {"auto": "auto", "none": "none", "required": "any"}
    if isinstance(choice, dict):
        made = {"type": "tool", "name": choice["function"]["name"]}
    elif choice is None and not one_by_one:
        return {}
    else:
        made = {"type": kinds[choice or "auto"]}
    if one_by_one and made["type"] != "none":
        made["disable_parallel_tool_use"] = True
    return {"tool_choice": made}


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """An answer of the Messages API as one to a chat."""
    texts, calls, thoughts = [], [], []
    for block in body.get("content") or ():
        kind = block.get("type")
        if kind == "text":
            texts.append(block.get("text", ""))
        elif kind == "thinking":
            thoughts.append(block.get("thinking", ""))
        elif kind == "tool_use":
            function = {
                "name": block.get("name"),
                "arguments": json.dumps(block.get("input") or {}),
            }
            calls.append({"id": block.get("id"), "type": "function", "function": function})
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) or None,
        "refusal": None,
    }
    message |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
    message |= {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "message": message, "logprobs": None,
              "finish_reason": _ENDS.get(body.get("stop_reason") or "", "stop")}  # fmt: skip
    return {
        "id": body.get("id"), "object": "chat.completion", "model": body.get("model"),
        "choices": [choice], "usage": _usage(body.get("usage") or {}),
    }  # fmt: skip


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    read = usage.get("cache_read_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    into, out = (usage.get("input_tokens") or 0) + read + written, usage.get("output_tokens") or 0
    told = {
        "prompt_tokens": into, "completion_tokens": out, "total_tokens": into + out,
        "prompt_tokens_details": {"cached_tokens": read, "cache_creation_tokens": written},
    }  # fmt: skip
    # Billed at rates of their own, or raises the rates of all.
    kept = ("cache_creation", "server_tool_use", "iterations", "inference_geo", "speed")
    return told | {name: usage[name] for name in kept if name in usage}
