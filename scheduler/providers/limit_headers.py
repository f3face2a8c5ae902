"""What response headers say about rate limits, in each provider's dialect; nonsense is ignored.

    x-ratelimit-{limit,remaining,reset}-{requests,tokens}     OpenAI, Azure, Groq, xAI, vLLM's
        resets as Go writes durations ("6m0s", "12ms"); Azure may send −1 or 0 for "no limit"
    anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}
        resets as RFC 3339
    x-ratelimit-{limit,remaining,reset}                       OpenRouter, Together: requests,
        the reset as Unix milliseconds or seconds, or seconds from now
    x-ratelimit-{limit,remaining}-{tokens,req}-minute         Mistral

and how long to wait: ``retry-after-ms``, ``retry-after`` in seconds or as a date, the reset of a
limit that is used up, Google's ``RetryInfo``, or the words "try again in 1.2s".
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.limits import Dimension, Seen

MAX_RETRY_AFTER_MS = 86_400_000
MAX_LIMIT = 10**12
_SOON_S = 10**8  # a larger reset is an instant, not a span
_MS_EPOCH = 10**11  # a larger instant is in milliseconds

_OPENAI = (("requests", Dimension.REQUESTS), ("tokens", Dimension.TOKENS))
_ANTHROPIC = (
    ("requests", Dimension.REQUESTS),
    ("input-tokens", Dimension.INPUT),
    ("output-tokens", Dimension.OUTPUT),
    ("tokens", Dimension.TOKENS),
)
_MISTRAL = (("req", Dimension.REQUESTS), ("tokens", Dimension.TOKENS))
_WORDS = re.compile(
    r"(?:try again|retry)(?: after)? in (?:about )?((?:\d+(?:\.\d+)?\s*(?:ms|[smh])\s*)+)", re.I
)
_DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"')

Headers = Mapping[str, str]


def read_limits(headers: Headers) -> tuple[Seen, ...]:
    """What the headers of a response say about rate limits; names in lower case."""
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        return tuple(_openai(headers))
    if "anthropic-ratelimit-requests-limit" in headers:
        return tuple(_anthropic(headers))
    if "x-ratelimit-limit" in headers:
        return tuple(_plain(headers))
    if "x-ratelimit-limit-req-minute" in headers or "x-ratelimit-limit-tokens-minute" in headers:
        return tuple(_mistral(headers))
    return ()


def _openai(headers: Headers) -> Iterator[Seen]:
    for unit, dimension in _OPENAI:
        reset = headers.get(f"x-ratelimit-reset-{unit}")
        full_in_ms = None if reset is None else _span_ms(reset)
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
        full_in_ms = _until_ms(headers.get(start + "reset"), headers)
        yield from _seen(
            dimension, headers.get(start + "limit"), headers.get(start + "remaining"), full_in_ms
        )


def _plain(headers: Headers) -> Iterator[Seen]:
    reset = headers.get("x-ratelimit-reset")
    yield from _seen(
        Dimension.REQUESTS,
        headers.get("x-ratelimit-limit"),
        headers.get("x-ratelimit-remaining"),
        None if reset is None else _instant_or_span_ms(reset),
    )


def _mistral(headers: Headers) -> Iterator[Seen]:
    for unit, dimension in _MISTRAL:
        yield from _seen(
            dimension,
            headers.get(f"x-ratelimit-limit-{unit}-minute"),
            headers.get(f"x-ratelimit-remaining-{unit}-minute"),
            None,
        )


def _seen(
    dimension: Dimension, limit: str | None, remaining: str | None, full_in_ms: int | None
) -> Iterator[Seen]:
    most, left = _count(limit), _count(remaining)
    if most is not None and left is not None and most > 0 and left <= most:
        yield Seen(dimension, most, left, full_in_ms)


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 15:  # −1 is Azure's "no limit"
        return None
    return min(int(text), MAX_LIMIT)


def _span_ms(text: str) -> int | None:
    """A Go duration, or plain seconds."""
    try:
        return parse_duration_ms(text, "reset")
    except ConfigError:
        seconds = _number(text)
        return None if seconds is None else min(round(seconds * 1000), MAX_RETRY_AFTER_MS)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _instant_or_span_ms(text: str) -> int | None:
    value = _number(text)
    if value is None:
        return _span_ms(text)
    if value < _SOON_S:
        return round(value * 1000)
    at_s = value / 1000 if value > _MS_EPOCH else value
    return max(0, min(round((at_s - time.time()) * 1000), MAX_RETRY_AFTER_MS))


def _until_ms(text: str | None, headers: Headers) -> int | None:
    """Until an instant of RFC 3339, by the other side's own clock if it tells the time."""
    if text is None:
        return None
    try:
        at_s = datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return max(0, min(round((at_s - _their_time_s(headers)) * 1000), MAX_RETRY_AFTER_MS))


def _their_time_s(headers: Headers) -> float:
    told = headers.get("date")
    if told:
        try:
            return parsedate_to_datetime(told).timestamp()
        except (ValueError, TypeError, OverflowError):
            pass
    return time.time()


def retry_after_ms(headers: Headers, message: str, content: bytes) -> int | None:
    """How long the provider asks to wait, from wherever it says so; None: it does not."""
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1000)):
        value = headers.get(name)
        if value:
            try:
                wait_ms = float(value) * unit_ms
            except ValueError:
                continue
            if wait_ms == wait_ms:  # not a NaN
                return int(min(max(wait_ms, 0), MAX_RETRY_AFTER_MS))
    date = headers.get("retry-after")
    if date:
        try:
            until_s = parsedate_to_datetime(date).timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        wait_s = max(until_s - _their_time_s(headers), 0)
        return int(min(wait_s * 1000, MAX_RETRY_AFTER_MS))
    return _reset_ms(headers) or _said_ms(message, content)


def _reset_ms(headers: Headers) -> int | None:
    """When the limit that is used up has room again."""
    told = [
        (headers.get(f"x-ratelimit-remaining-{unit}"), headers.get(f"x-ratelimit-reset-{unit}"))
        for unit, _ in _OPENAI
    ]
    waits_ms = [_span_ms(reset) or 0 for left, reset in told if left == "0" and reset is not None]
    if not told[0][0]:
        waits_ms += [
            seen.full_in_ms
            for seen in read_limits(headers)
            if seen.remaining == 0 and seen.full_in_ms is not None
        ]
    return min(max(waits_ms), MAX_RETRY_AFTER_MS) or None if waits_ms else None


def _said_ms(message: str, content: bytes) -> int | None:
    found = _DELAY.search(content[:20_000].decode("utf-8", "replace"))
    if found is not None:
        return min(round(float(found[1][:15]) * 1000), MAX_RETRY_AFTER_MS)
    said = _WORDS.search(message)
    span_ms = None if said is None else _span_ms(said[1])
    return None if span_ms is None else min(span_ms, MAX_RETRY_AFTER_MS)
