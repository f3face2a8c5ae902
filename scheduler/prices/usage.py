"""What an answer says about itself: tokens used, what its provider did, and sometimes its cost.

Providers count in four dialects, and differ in what a count includes:

    prompt_tokens, completion_tokens    chat, completions, embeddings
    input_tokens, output_tokens         responses; cached tokens are part of the input
    the same with cache_…_input_tokens  Anthropic's; cached tokens come on top of the input
    promptTokenCount, …                 Google's; thoughts come on top of the candidates

Some leave reasoning out of the completion and count it in the total only; it is billed
as output, so whatever the total has beyond its parts counts as output. A part that is larger
than its whole is none of it, and comes on top. Where Anthropic tells several iterations of one
call, the whole may leave some of them out, and their sum is the bill. Numbers that cannot be right
(negative, no integers, absurd) count as not said.

>>> extract_usage({"usage": {"prompt_tokens": 9, "completion_tokens": 2}}).total_tokens
11
>>> extract_usage({"usage": {"prompt_tokens": "many"}}) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, TypeGuard

from scheduler.money import MAX_USD, NUSD_PER_USD
from scheduler.request import Usage

MAX_TOKENS = 10**12
MAX_CALLS = 10**6  # of a provider's own tools for one answer
_TICKS_PER_NUSD = 10  # xAI counts in ticks of 1e-10 dollars
_NOTHING: Mapping[str, Any] = {}


def extract_usage(body: Any) -> Usage | None:
    """What a JSON answer says it used; None if it does not say, or says nonsense."""
    if not isinstance(body, dict):
        return None
    usage = body.get("usage")
    if not isinstance(usage, dict):
        told = body.get("usageMetadata")
        return _of_google(told, body) if isinstance(told, dict) else None
    found = _tokens(usage)
    if found is None:
        return None
    if "iterations" in usage:
        found = _with_iterations(found, usage)
    if _TELL_MORE.isdisjoint(usage) and "output" not in body and not _may_cite(body):
        inside = usage.get("prompt_tokens_details")
        if not isinstance(inside, dict) or "web_search_requests" not in inside:
            return found  # as nearly always
    beside = _beside(usage, body)
    return replace(found, **beside) if beside else found


_TELL_MORE = frozenset({
    "server_tool_use", "tool_calls_details", "num_search_queries", "num_sources_used",
    "prompt_audio_seconds", "seconds",
})  # fmt: skip


def _may_cite(body: Mapping[str, Any]) -> bool:
    """Whether any answer of a chat has annotations, of whatever kind."""
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and message.get("annotations"):
            return True
    return False


def _tokens(usage: Mapping[str, Any]) -> Usage | None:
    if "prompt_tokens" in usage and (usage["prompt_tokens"] or not usage.get("input_tokens")):
        into, out = usage["prompt_tokens"], usage.get("completion_tokens") or 0
        inside = usage.get("prompt_tokens_details")
        outside = usage.get("completion_tokens_details")
        has_cache_on_top = False
    elif "input_tokens" in usage:
        into, out = usage["input_tokens"], usage.get("output_tokens") or 0
        inside, outside = usage.get("input_tokens_details"), usage.get("output_tokens_details")
        has_cache_on_top = inside is None
    else:
        return None
    if not (_is_count(into) and _is_count(out)):
        return None
    read = written = 0
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        read = _part(usage.get("cache_read_input_tokens"), MAX_TOKENS)
        written = _part(usage.get("cache_creation_input_tokens"), MAX_TOKENS)
        if has_cache_on_top or read + written > into:
            into += read + written
    if "citation_tokens" in usage:
        return _of_perplexity(usage, into, out)
    total = usage.get("total_tokens")
    if _is_count(total) and total > into + out:
        out = total - into
    if not (inside or outside or read or written):
        return Usage(into, out)
    found = _with_parts(into, out, inside, outside, read, written)
    by_span = usage.get("cache_creation")
    if isinstance(by_span, dict):  # Anthropic's: an hour costs more than five minutes
        kept = _part(by_span.get("ephemeral_1h_input_tokens"), found.cache_write_tokens)
        return replace(found, long_cache_write_tokens=kept) if kept else found
    return found


def _with_parts(into: int, out: int, inside: Any, outside: Any, read: int, written: int) -> Usage:
    inside = inside if isinstance(inside, dict) else _NOTHING
    outside = outside if isinstance(outside, dict) else _NOTHING
    read = _part(inside.get("cached_tokens") or read, MAX_TOKENS)
    written = inside.get("cache_write_tokens") or inside.get("cache_creation_tokens") or written
    written = _part(written, MAX_TOKENS)
    if read + written > into:
        into += read + written
    thought = outside.get("reasoning_tokens") or outside.get("thinking_tokens")
    out = _with_its_parts(out, outside, thought)
    into = _with_its_parts(into, inside, None)
    cached = _part(read, into)
    found = Usage(
        into,
        out,
        cached,
        _part(written, into - cached),
        _part(thought, out),
        _part(inside.get("audio_tokens"), into),
        _part(outside.get("audio_tokens"), out),
    )
    if _TELL_MEDIA.isdisjoint(inside) and _TELL_MEDIA.isdisjoint(outside):
        return found
    media = {}
    for name, place, field, whole in _MEDIA_PARTS:
        count = _part((inside if place == "in" else outside).get(name), into if whole else out)
        if count:
            media[field] = count
    kept = inside.get("cached_tokens_details")
    if isinstance(kept, dict):
        for name, field in _KEPT_PARTS:
            if count := _part(kept.get(name), cached):
                media[field] = count
    return replace(found, **media) if media else found


def _with_its_parts(whole: int, details: Mapping[str, Any], thought: Any) -> int:
    """A count with those of its parts that it cannot have in it."""
    parts = [thought, *(details.get(f"{kind}_tokens") for kind in ("audio", "image", "video"))]
    return whole + sum(count for each in parts if (count := _part(each, MAX_TOKENS)) > whole)


def iterations_of(usage: Mapping[str, Any]) -> list[tuple[str, Usage]]:
    """What each iteration of an answer used, with the model that made it; empty: it is not told."""
    told, found = usage.get("iterations"), list[tuple[str, Usage]]()
    for one in told if isinstance(told, list) else ():
        used = _tokens(one) if isinstance(one, dict) else None
        if used is not None:
            model = one.get("model")
            found.append((model if isinstance(model, str) else "", used))
    return found


def whole_of(usage: Mapping[str, Any]) -> Usage | None:
    """The tokens that usage tells, whatever its iterations tell; None: it tells none."""
    return _tokens(usage)


def _with_iterations(found: Usage, usage: Mapping[str, Any]) -> Usage:
    """The whole, or the sum of what each iteration used, if that is more."""
    each = iterations_of(usage)
    summed = Usage(**{
        field.name: sum(getattr(one, field.name) for _, one in each) for field in fields(Usage)
    })  # fmt: skip
    return summed if summed.total_tokens > found.total_tokens else found


# What details count, where, as which field; whether it is a part of the input.
_MEDIA_PARTS = (
    ("image_tokens", "in", "input_image_tokens", True),
    ("video_tokens", "in", "input_video_tokens", True),
    ("image_tokens", "out", "output_image_tokens", False),
    ("video_tokens", "out", "output_video_tokens", False),
)
_TELL_MEDIA = frozenset({"image_tokens", "video_tokens", "cached_tokens_details"})
_KEPT_PARTS = (
    ("audio_tokens", "cached_audio_tokens"),
    ("image_tokens", "cached_image_tokens"),
)


def _of_perplexity(usage: Mapping[str, Any], into: int, out: int) -> Usage:
    """Its reasoning and citations come on top of the completion, and of the total."""
    thought = _part(usage.get("reasoning_tokens"), MAX_TOKENS)
    cited = _part(usage.get("citation_tokens"), MAX_TOKENS)
    return Usage(
        into, out + thought + cited, reasoning_tokens=thought, citation_tokens=cited
    )  # fmt: skip


# Beside tokens


def _beside(usage: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, int]:
    """What is billed beside tokens, by the names of `Usage`; nothing in nearly all answers."""
    found: dict[str, int] = {}
    tools, inside = usage.get("server_tool_use"), usage.get("prompt_tokens_details")
    details = usage.get("tool_calls_details")
    web = details.get("search_web") if isinstance(details, dict) else None
    searches = [
        usage.get("num_search_queries"), usage.get("num_sources_used"),
        tools.get("web_search_requests") if isinstance(tools, dict) else None,
        inside.get("web_search_requests") if isinstance(inside, dict) else None,
        web.get("invocation") if isinstance(web, dict) else None,
    ]  # fmt: skip
    output = body.get("output")
    if isinstance(output, list):
        found = _of_items(output)
        searches.append(found.pop("web_searches", 0))
    elif _cites_the_web(body.get("choices")):
        searches.append(1)
    most = max([_part(each, MAX_CALLS) for each in searches])
    if most:
        found["web_searches"] = most
    if isinstance(tools, dict) and _part(tools.get("code_execution_requests"), MAX_CALLS):
        found["code_sessions"] = 1
    seconds = max(_seconds(usage.get("prompt_audio_seconds")), _seconds(usage.get("seconds")))
    if seconds:
        found["audio_seconds"] = seconds
    return found


def _of_items(output: list[Any]) -> dict[str, int]:
    """What the items of a response tell of the tools that OpenAI ran."""
    found, containers = dict[str, int](), set[str]()
    for item in output:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "web_search_call":
            action = item.get("action")
            # To open a page that was found, or to look through it, is no search.
            if not isinstance(action, dict) or action.get("type") in (None, "search"):
                found["web_searches"] = found.get("web_searches", 0) + 1
        elif kind == "code_interpreter_call":
            containers.add(str(item.get("container_id")))
            found["code_sessions"] = len(containers)
        elif isinstance(kind, str) and kind in _CALL_ITEMS:
            name = _CALL_ITEMS[kind]
            found[name] = found.get(name, 0) + 1
    return found


_CALL_ITEMS = {"file_search_call": "file_searches", "image_generation_call": "made_images"}


def _cites_the_web(choices: Any) -> bool:
    """Whether a chat's answer cites pages, which it has only after a search."""
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        cited = message.get("annotations") if isinstance(message, dict) else None
        for each in cited if isinstance(cited, list) else ():
            if isinstance(each, dict) and each.get("type") == "url_citation":
                return True
    return False


def _seconds(value: object) -> int:
    """A duration, begun seconds counted whole; nonsense is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return math.ceil(value) if 0 < value <= MAX_TOKENS else 0


def _of_google(told: Mapping[str, Any], body: Mapping[str, Any]) -> Usage | None:
    prompt = told.get("promptTokenCount")
    # Zeros are left out.
    tools, shown, thoughts = (
        told.get(name) or 0
        for name in ("toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    )
    if not (_is_count(prompt) and _is_count(tools) and _is_count(shown) and _is_count(thoughts)):
        return None
    into, out = prompt + tools, shown + thoughts
    total = told.get("totalTokenCount")
    if _is_count(total) and total > into + out:
        out = total - into
    cached = _part(told.get("cachedContentTokenCount"), prompt)
    found = Usage(into, out, cached, reasoning_tokens=thoughts)
    parts: dict[str, int] = {}
    for names, whole, kinds in (
        (("promptTokensDetails", "toolUsePromptTokensDetails"), into, _READ),
        (("cacheTokensDetails",), cached, _KEPT),
        (("candidatesTokensDetails",), out, _MADE),
    ):
        parts |= _by_modality(told, names, whole, kinds)
    searches = _groundings(body.get("candidates"))
    if searches:
        parts["web_searches"] = searches
    return replace(found, **parts) if parts else found


_READ = {"AUDIO": "input_audio_tokens", "IMAGE": "input_image_tokens",
         "DOCUMENT": "input_image_tokens", "VIDEO": "input_video_tokens"}  # fmt: skip
_KEPT = {"AUDIO": "cached_audio_tokens", "IMAGE": "cached_image_tokens",
         "DOCUMENT": "cached_image_tokens", "VIDEO": "cached_video_tokens"}  # fmt: skip
_MADE = {"AUDIO": "output_audio_tokens", "IMAGE": "output_image_tokens",
         "DOCUMENT": "output_image_tokens", "VIDEO": "output_video_tokens"}  # fmt: skip


def _by_modality(
    told: Mapping[str, Any], lists: tuple[str, ...], whole: int, fields: Mapping[str, str]
) -> dict[str, int]:
    """Tokens in the lists of tokens by modality, under the names of `Usage`."""
    found: dict[str, int] = {}
    for name in lists:
        listed = told.get(name)
        for each in listed if isinstance(listed, list) else ():
            modality = each.get("modality") if isinstance(each, dict) else None
            field = fields.get(modality) if isinstance(modality, str) else None
            count = 0 if field is None else _part(each.get("tokenCount"), whole)
            if field is not None and count:
                found[field] = min(found.get(field, 0) + count, whole)
    return found


def _groundings(candidates: Any) -> int:
    """How often Google searched for an answer: as many queries as there are, or one."""
    queries, is_grounded = set[str](), False
    for each in candidates if isinstance(candidates, list) else ():
        told = each.get("groundingMetadata") if isinstance(each, dict) else None
        if not isinstance(told, dict):
            continue
        asked = told.get("webSearchQueries")
        queries |= {
            text for text in (asked if isinstance(asked, list) else ())
            if isinstance(text, str) and text.strip()
        }  # fmt: skip
        is_grounded = is_grounded or bool(told.get("groundingChunks"))
    return len(queries) or int(is_grounded)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_TOKENS


def _part(value: object, whole: int) -> int:
    """A part of a count; one larger than the whole is cut to it."""
    return min(value, whole) if type(value) is int and value > 0 else 0


def reported_cost_nusd(body: Any) -> int | None:
    """The cost an answer reports itself, in nano-dollars, a rest rounded up.

    Read are ``usage.cost`` in dollars (OpenRouter; with the caller's own key the
    provider's bill comes on top of its fee), ``usage.cost.total_cost`` (Perplexity) and
    ``usage.cost_in_usd_ticks`` (xAI). None if there is none, or nonsense.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    cost = usage.get("cost")
    if cost is None:
        ticks = usage.get("cost_in_usd_ticks")
        if type(ticks) is int and 0 <= ticks <= MAX_USD * NUSD_PER_USD * _TICKS_PER_NUSD:
            return -(-ticks // _TICKS_PER_NUSD)
        return None
    if isinstance(cost, dict):
        cost = cost.get("total_cost")
    nusd = _as_nusd(cost)
    if nusd is None or usage.get("is_byok") is not True:
        return nusd
    details = usage.get("cost_details")
    upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
    upstream_nusd = _as_nusd(upstream)
    return None if upstream_nusd is None else nusd + upstream_nusd


def _as_nusd(cost: object) -> int | None:
    if isinstance(cost, bool) or not isinstance(cost, int | float | str):
        return None
    if isinstance(cost, float) and not math.isfinite(cost):
        return None
    try:
        amount = Decimal(str(cost))
    except (InvalidOperation, ValueError):  # ValueError: an integer of thousands of digits
        return None
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        return None
    return int((amount * NUSD_PER_USD).to_integral_value(ROUND_CEILING))
