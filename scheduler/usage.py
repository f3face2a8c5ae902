"""What an answer says about itself: tokens used, and sometimes its cost.

Providers count in two dialects: ``prompt_tokens``/``completion_tokens`` (chat,
completions, embeddings) and ``input_tokens``/``output_tokens`` (responses). Numbers
that cannot be right (negative, no integers, absurd) count as not said.

>>> extract_usage({"usage": {"prompt_tokens": 9, "completion_tokens": 2}}).total_tokens
11
>>> extract_usage({"usage": {"prompt_tokens": "many"}}) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from scheduler.money import MAX_USD, NUSD_PER_USD
from scheduler.request import Usage

MAX_TOKENS = 10**12
_NOTHING: Mapping[str, Any] = {}


def extract_usage(body: Any) -> Usage | None:
    """Tokens a JSON answer says it used; None if it does not say, or says nonsense."""
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    if "prompt_tokens" in usage:
        words = ("prompt", "completion")
    elif "input_tokens" in usage:
        words = ("input", "output")
    else:
        return None
    into, out = (
        _count(usage.get(f"{words[0]}_tokens")),
        _count(usage.get(f"{words[1]}_tokens") or 0),
    )
    if into is None or out is None:
        return None
    inside = _details(usage, words[0])
    outside = _details(usage, words[1])
    cached = _part(inside, "cached_tokens", into)
    return Usage(
        input_tokens=into,
        output_tokens=out,
        cached_tokens=cached,
        cache_write_tokens=_part(inside, "cache_write_tokens", into - cached),
        reasoning_tokens=_part(outside, "reasoning_tokens", out),
        input_audio_tokens=_part(inside, "audio_tokens", into),
        output_audio_tokens=_part(outside, "audio_tokens", out),
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def _details(usage: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    details = usage.get(f"{word}_tokens_details")
    return details if isinstance(details, Mapping) else _NOTHING


def _part(details: Mapping[str, Any], name: str, whole: int) -> int:
    """A part of a count; one larger than the whole is cut to it."""
    value = details.get(name) if details else None
    return min(value, whole) if type(value) is int and value > 0 else 0


def reported_cost_nusd(body: Any) -> int | None:
    """The cost a gateway reports in ``usage.cost``, in nano-dollars, a rest rounded up.

    OpenRouter documents the field as dollars. None if there is none, or nonsense.
    """
    usage = body.get("usage") if isinstance(body, Mapping) else None
    cost = usage.get("cost") if isinstance(usage, Mapping) else None
    if isinstance(cost, bool) or not isinstance(cost, int | float | str):
        return None
    if isinstance(cost, float) and not math.isfinite(cost):
        return None
    try:
        amount = Decimal(str(cost))
    except InvalidOperation:
        return None
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        return None
    return int((amount * NUSD_PER_USD).to_integral_value(ROUND_CEILING))
