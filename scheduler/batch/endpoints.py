"""Which endpoint is meant? By the URL that a line gives, or by what is asked.

>>> endpoint_at("/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21")
'/v1/chat/completions'
>>> endpoint_at("https://api.anthropic.com/v1/messages/"), endpoint_at("/v1/threads/t/messages")
('/v1/messages', None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from scheduler.batch.parameters import words
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    MESSAGES,
    MODERATIONS,
    RESPONSES,
)

_BY_TAIL = {endpoint.removeprefix("/v1/"): endpoint for endpoint in ENDPOINTS}
# What may stand before an endpoint's own words: a version, or the name of the API. Elsewhere
# ("/v1/threads/ID/messages") the same words are another endpoint.
_BEFORE = re.compile(r"v\d+(\.\d+)?((alpha|beta|preview)\d*)?|api|openai|anthropic|inference", re.I)
_DEPLOYMENT = re.compile(r"(?:^|/)deployments/([^/]+)/", re.IGNORECASE)

_EMBEDS = re.compile(
    r"embed|(?<![a-z0-9])(bge|e5|gte|gtr|gritlm|jina|labse|m3e|minilm|mpnet|mxbai|nomic|sfr|stella|"
    r"uae|voyage|ada-002|text-similarity|text-search|sentence-t5|instructor-(?:base|large|xl))"
    r"(?![a-z0-9])"
)
_RANKS_OR_READS = re.compile(r"rerank|reader|deepsearch")
_MODERATES = re.compile(r"moderation")
# Parameters that one of the three endpoints with "input" has, and the others have not.
_OF_RESPONSES = words(
    "background conversation include instructions max_output_tokens max_tool_calls "
    "parallel_tool_calls previous_response_id prompt reasoning temperature text tool_choice tools "
    "top_p"
)
_OF_EMBEDDINGS = words("dimensions encoding_format input_type output_dimension output_dtype")
# What only Anthropic's Messages API takes beside "messages".
_OF_MESSAGES = words(
    "anthropic_beta anthropic_version container mcp_servers output_config stop_sequences system"
)
_PARTS_OF_MESSAGES = words(
    "document redacted_thinking search_result server_tool_use thinking tool_result tool_use"
)


def endpoint_at(url: object) -> str | None:
    """The endpoint that a URL, a path or a part of one plainly names; None: none."""
    if not isinstance(url, str):
        return None
    try:
        place = urlsplit(url.strip())
    except ValueError:
        return None
    parts = [part for part in place.path.split("/") if part]
    for tail, endpoint in _BY_TAIL.items():
        words = tail.split("/")
        if [part.lower() for part in parts[-len(words) :]] != words:
            continue
        before = parts[: -len(words)]
        is_plain = (
            not before
            or len(words) > 1  # "chat/completions" is nothing else anywhere
            or bool(_BEFORE.fullmatch(before[-1]))
            or (len(before) > 1 and before[-2].lower() == "deployments")
        )
        return endpoint if is_plain else None
    return None


def deployment_at(url: object) -> str | None:
    """The deployment that a URL of Azure's names, which is the model there."""
    found = _DEPLOYMENT.search(url) if isinstance(url, str) else None
    return None if found is None else unquote(found[1])


def endpoint_for(body: Mapping[str, Any]) -> str:
    """The endpoint for a body that names none.

    Raises:
        ValueError: Nothing says which.
    """
    if "messages" in body:
        return MESSAGES if is_anthropic(body) else CHAT
    if "input" in body:
        return _for_input(body)
    return COMPLETIONS if isinstance(body.get("prompt"), str | list) else CHAT


def is_anthropic(body: Mapping[str, Any]) -> bool:
    """Whether a body with messages is in the form of Anthropic's Messages API."""
    if any(body.get(name) is not None for name in _OF_MESSAGES):
        return True
    thinking, choice = body.get("thinking"), body.get("tool_choice")
    if isinstance(thinking, dict) and (
        "budget_tokens" in thinking or "claude" in str(body.get("model", "")).lower()
    ):
        return True
    if isinstance(choice, dict) and choice.get("type") in ("auto", "any", "tool", "none"):
        return True
    tools = body.get("tools")
    if any(_is_tool_of_messages(tool) for tool in (tools if isinstance(tools, list) else ())):
        return True
    turns = body.get("messages")
    return any(_is_part_of_messages(part) for part in _parts(turns))


def _is_tool_of_messages(tool: object) -> bool:
    if not isinstance(tool, dict):
        return False
    if "input_schema" in tool:
        return True
    # Those that Anthropic runs have a dated type and a name: {"type": "bash_20250124", …}
    return re.search(r"_20\d{6}$", str(tool.get("type", ""))) is not None


def _parts(turns: object) -> list[Any]:
    contents = [
        turn.get("content")
        for turn in (turns if isinstance(turns, list) else ())
        if isinstance(turn, dict)
    ]
    return [part for content in contents if isinstance(content, list) for part in content]


def _is_part_of_messages(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if not isinstance(kind, str):
        return False
    return kind in _PARTS_OF_MESSAGES or (kind == "image" and isinstance(part.get("source"), dict))


def _for_input(body: Mapping[str, Any]) -> str:
    model, given = body.get("model"), body["input"]
    name = model.lower() if isinstance(model, str) else ""
    if _MODERATES.search(name):
        return MODERATIONS
    if is_embedding_name(name):
        return EMBEDDINGS
    if any(body.get(each) is not None for each in _OF_RESPONSES):
        return RESPONSES
    if any(body.get(each) is not None for each in _OF_EMBEDDINGS):
        return EMBEDDINGS
    if isinstance(given, list) and given:
        return RESPONSES if any(isinstance(item, dict) for item in given) else EMBEDDINGS
    writes = _writes(name)
    if writes is None and name:
        raise ValueError(
            f"nothing says whether {model!r:.80} embeds or answers its 'input'; add "
            f'"url": "{EMBEDDINGS}" or "url": "{RESPONSES}"'
        )
    return EMBEDDINGS if writes is False else RESPONSES


def is_embedding_name(model: str) -> bool:
    """Whether a model's name says that it embeds."""
    return bool(_EMBEDS.search(model)) and not _RANKS_OR_READS.search(model)


@lru_cache(1024)
def _writes(model: str) -> bool | None:
    """Whether the catalogue has a price for the model's output; None: it knows no such model."""
    from scheduler.errors import PriceUnknown
    from scheduler.prices.rates import look_up
    from scheduler.providers.simulated.bill import SIMULATED_PRICES

    if model in SIMULATED_PRICES:
        return True  # the one that embeds says so in its name
    for name in dict.fromkeys((model, model.partition(":")[2], model.rpartition("/")[2])):
        if name in _listed():
            return _listed()[name]
        try:
            rates = look_up(name, None, None).now(0) if name else None
        except PriceUnknown:
            continue
        if rates is not None:
            return any(price for _, price in rates.output)
    return None


@cache
def _listed() -> dict[str, bool]:
    """Every model of the catalogue by its id, at whatever provider: has its output a price?"""
    from genai_prices.data_snapshot import get_snapshot

    found: dict[str, bool] = {}
    for provider in get_snapshot().providers:
        for model in provider.models:
            listed = model.prices if isinstance(model.prices, list) else [model.prices]
            prices = [getattr(each, "prices", each) for each in listed]
            name = model.id.lower()
            writes = any(getattr(each, "output_mtok", None) for each in prices)
            found[name] = found.get(name, False) or writes
    return found
