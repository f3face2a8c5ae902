"""What an answer says about itself: tokens used, and sometimes its cost.

Providers count in four dialects, and differ in what a count includes:

    prompt_tokens, completion_tokens    chat, completions, embeddings
    input_tokens, output_tokens         responses; cached tokens are part of the input
    the same with cache_…_input_tokens  Anthropic's; cached tokens come on top of the input
    promptTokenCount, …                 Google's; thoughts come on top of the candidates

Some leave reasoning out of the completion and count it in the total only; it is billed
as output, so whatever the total has beyond its parts counts as output. Numbers that
cannot be right (negative, no integers, absurd) count as not said.

>>> extract_usage({"usage": {"prompt_tokens": 9, "completion_tokens": 2}}).total_tokens
11
>>> extract_usage({"usage": {"prompt_tokens": "many"}}) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, TypeGuard

from scheduler.money import MAX_USD, NUSD_PER_USD
from scheduler.request import Usage

MAX_TOKENS = 10**12
_TICKS_PER_NUSD = 10  # xAI counts in ticks of 1e-10 dollars
_NOTHING: Mapping[str, Any] = {}


def extract_usage(body: Any) -> Usage | None:
    """Tokens a JSON answer says it used; None if it does not say, or says nonsense."""
    if not isinstance(body, dict):
        return None
    usage = body.get("usage")
    if not isinstance(usage, dict):
        told = body.get("usageMetadata")
        return _of_google(told) if isinstance(told, dict) else None
    if "prompt_tokens" in usage:
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
        if has_cache_on_top:
            into += read + written
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
    cached = _part(inside.get("cached_tokens") or read, into)
    written = inside.get("cache_write_tokens") or inside.get("cache_creation_tokens") or written
    return Usage(
        into,
        out,
        cached,
        _part(written, into - cached),
        _part(outside.get("reasoning_tokens"), out),
        _part(inside.get("audio_tokens"), into),
        _part(outside.get("audio_tokens"), out),
    )


def _of_google(told: Mapping[str, Any]) -> Usage | None:
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
    return Usage(
        into,
        out,
        _part(told.get("cachedContentTokenCount"), prompt),
        reasoning_tokens=thoughts,
        input_audio_tokens=_audio(told, into, "promptTokensDetails", "toolUsePromptTokensDetails"),
        output_audio_tokens=_audio(told, out, "candidatesTokensDetails"),
    )


def _audio(told: Mapping[str, Any], whole: int, *names: str) -> int:
    """Tokens of audio in the lists of tokens by modality."""
    listed = [each for name in names if isinstance(told.get(name), list) for each in told[name]]
    counts = [
        _part(each.get("tokenCount"), whole)
        for each in listed
        if isinstance(each, dict) and each.get("modality") == "AUDIO"
    ]
    return min(sum(counts), whole)


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
