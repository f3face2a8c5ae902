"""What response headers say about rate limits, in each provider's dialect; nonsense is ignored.

    x-ratelimit-{limit,remaining,reset}-{requests,tokens}     OpenAI, Azure, Groq, xAI, vLLM's
        resets as Go writes durations ("6m0s", "12ms"); Azure may send −1 or 0 for "no limit",
        and mostly tells no limit but what remains
    anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}
        resets as RFC 3339
    x-ratelimit-{limit,remaining,reset}                       OpenRouter, Together: requests,
        the reset as Unix milliseconds or seconds, or seconds from now
    x-ratelimit-{limit,remaining,reset}-{req,requests,tokens}-{second,minute,hour,day}
        Mistral, Cerebras, SambaNova: the span stands in the name

How long to wait after a refusal is read in `scheduler.providers.waits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from scheduler.limits.meter import SPANS_MS, Dimension, Seen
from scheduler.providers.waits import until_ms, wait_of

MAX_LIMIT = 10**12

_OPENAI = (("requests", Dimension.REQUESTS), ("tokens", Dimension.TOKENS))
_ANTHROPIC = (
    ("requests", Dimension.REQUESTS),
    ("input-tokens", Dimension.INPUT),
    ("output-tokens", Dimension.OUTPUT),
    ("tokens", Dimension.TOKENS),
)
_UNITS = {
    "req": Dimension.REQUESTS, "requests": Dimension.REQUESTS, "tokens": Dimension.TOKENS,
    "input-tokens": Dimension.INPUT, "output-tokens": Dimension.OUTPUT,
}  # fmt: skip
_SPANNED = re.compile(
    r"x-ratelimit-limit-((req|requests|tokens|input-tokens|output-tokens)(?:-per)?"
    r"-(second|minute|hour|day))"
)

Headers = Mapping[str, str]


def read_limits(headers: Headers) -> tuple[Seen, ...]:
    """What the headers of a response say about rate limits; names in lower case."""
    spanned = tuple(_spanned(headers))
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        return (*_openai(headers), *spanned)
    if spanned:
        return spanned
    if "anthropic-ratelimit-requests-limit" in headers:
        return tuple(_anthropic(headers))
    if "x-ratelimit-limit" in headers:
        return tuple(_plain(headers))
    return ()


def _openai(headers: Headers) -> Iterator[Seen]:
    for unit, dimension in _OPENAI:
        reset = headers.get(f"x-ratelimit-reset-{unit}")
        full_in_ms = None if reset is None else wait_of(reset, headers)
        yield from _seen(
            dimension,
            headers.get(f"x-ratelimit-limit-{unit}"),
            headers.get(f"x-ratelimit-remaining-{unit}"),
            full_in_ms,
        )


def _anthropic(headers: Headers) -> Iterator[Seen]:
    has_parts = "anthropic-ratelimit-input-tokens-limit" in headers
    for unit, dimension in _ANTHROPIC:
        if unit == "tokens" and has_parts:
            continue  # it repeats whichever of the two is tighter
        start = f"anthropic-ratelimit-{unit}-"
        reset = headers.get(start + "reset")
        full_in_ms = None if reset is None else until_ms(reset, headers)
        yield from _seen(
            dimension, headers.get(start + "limit"), headers.get(start + "remaining"), full_in_ms
        )


def _plain(headers: Headers) -> Iterator[Seen]:
    reset = headers.get("x-ratelimit-reset")
    yield from _seen(
        Dimension.REQUESTS,
        headers.get("x-ratelimit-limit"),
        headers.get("x-ratelimit-remaining"),
        None if reset is None else wait_of(reset, headers),
    )


def _spanned(headers: Headers) -> Iterator[Seen]:
    for name in headers:
        found = _SPANNED.fullmatch(name)
        if found is None:
            continue
        end, (unit, span) = found[1], found.groups()[1:]
        reset = headers.get(f"x-ratelimit-reset-{end}")
        span_ms = None if span == "minute" and reset is None else SPANS_MS[span]
        yield from _seen(
            _UNITS[unit], headers.get(name), headers.get(f"x-ratelimit-remaining-{end}"),
            None if reset is None else wait_of(reset, headers), span_ms,
        )  # fmt: skip


def _seen(
    dimension: Dimension,
    limit: str | None,
    remaining: str | None,
    full_in_ms: int | None,
    span_ms: int | None = None,
) -> Iterator[Seen]:
    most, left = _count(limit), _count(remaining)
    if most is not None and left is not None and most > 0 and left <= most:
        yield Seen(dimension, most, left, full_in_ms, span_ms)


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 15:  # −1 is Azure's "no limit"
        return None
    return min(int(text), MAX_LIMIT)
