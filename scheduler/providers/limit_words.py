"""Which limit a refusal names, where its words or its body say so and no header does.

    OpenAI, Groq    "… on requests per day (RPD): Limit 14400, Used 14400, Requested 1. Please try
                    again in 6s": buckets that fill steadily
    OpenRouter      "Rate limit exceeded: free-models-per-day", the headers within the body:
                    until midnight UTC
    Gemini          QuotaFailure with a quotaId such as GenerateRequestsPerDayPerProjectPerModel,
                    and a RetryInfo of seconds that does not hold for it: a day ends at midnight
                    in California (its page on rate limits)

Collected in November 2026 from public reports of such refusals.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from scheduler.limits.meter import DAY_MS, SPANS_MS, Dimension, Seen
from scheduler.providers.limit_headers import read_limits

_SAID = re.compile(
    r"on (?:the )?(?P<unit>requests|(?:input |output )?tokens) per (?P<span>sec|min|hour|day)\w*"
    r"\s*(?:\([A-Z]+\))?[:.]?\s*limit:?\s*(?P<limit>\d+(?:,\d{3})*)(?:\.0+)?(?:\s*/\s*\w+)?"
    r"(?:[,.;]\s*(?:used|current):?\s*(?P<used>\d+(?:,\d{3})*))?",
    re.I,
)
_PER = re.compile(r"per[-_ ]?(second|sec|minute|min|hour|day)s?\b", re.I)
_DAY_IS_OVER = re.compile(r"(?:exceeded|reached|exhausted)\b[^.]{0,60}\bper[- ]day\b", re.I)
_QUOTA_ID = re.compile(r"Per(Second|Minute|Hour|Day)")
_SPANS = {"sec": "second", "min": "minute"}
_UNITS = {
    "requests": Dimension.REQUESTS, "tokens": Dimension.TOKENS,
    "input tokens": Dimension.INPUT, "output tokens": Dimension.OUTPUT,
}  # fmt: skip


class Said(NamedTuple):
    """What a refusal says.

    Attributes:
        limits: The limits it names.
        wait_ms: Until a day that is used up is over; None: it is about none.
    """

    limits: tuple[Seen, ...] = ()
    wait_ms: int | None = None


def said_limits(message: str, body: Any, is_told_when: bool) -> Said:
    """Which limits a refusal names.

    Args:
        message: The provider's own words.
        body: The decoded body, whatever it is.
        is_told_when: Whether it says how long to wait: then that is believed of a day, too,
            except of Gemini's.
    """
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    found = [*_words(message), *_google(error), *_openrouter(error, message)]
    waits_ms = [seen.full_in_ms for seen in found
                if seen.is_window and seen.span_ms == DAY_MS and seen.full_in_ms]  # fmt: skip
    if not waits_ms and _names_a_day(error):
        waits_ms.append(_until_midnight_ms(_california()))
    if not waits_ms and not is_told_when and _DAY_IS_OVER.search(message):
        waits_ms.append(_until_midnight_ms(UTC))
    return Said(tuple(found), max(waits_ms, default=None))


def merged(said: tuple[Seen, ...], told: tuple[Seen, ...]) -> tuple[Seen, ...]:
    """What words and headers say together; of the same limit the words, which name its span."""
    known = {(seen.dimension, seen.limit) for seen in said}
    return (*said, *(seen for seen in told if (seen.dimension, seen.limit) not in known))


def _words(message: str) -> Iterator[Seen]:
    for said in _SAID.finditer(message):
        limit, used = _number(said["limit"]), _number(said["used"])
        span_ms = _span_ms(said["span"])
        if limit:
            left = 0 if used is None else max(0, limit - used)
            yield Seen(_UNITS[said["unit"].lower()], limit, left, None, span_ms)


def _google(error: Mapping[str, Any]) -> Iterator[Seen]:
    for name, unit, violation in _violations(error):
        limit = _number(violation.get("quotaValue"))
        if not limit:
            continue
        span_ms = SPANS_MS[name.lower()]
        is_day = span_ms == DAY_MS
        full_in_ms = _until_midnight_ms(_california()) if is_day else None
        yield Seen(unit, limit, 0, full_in_ms, span_ms, is_day or None)


def _names_a_day(error: Mapping[str, Any]) -> bool:
    return any(name == "Day" for name, _, _ in _violations(error))


def _violations(error: Mapping[str, Any]) -> Iterator[tuple[str, Dimension, Mapping[str, Any]]]:
    """Of a QuotaFailure: which span, what it counts, and all it says."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        violations = detail.get("violations") if isinstance(detail, dict) else None
        for violation in violations if isinstance(violations, list) else ():
            quota = violation.get("quotaId") if isinstance(violation, dict) else None
            span = _QUOTA_ID.search(quota) if isinstance(quota, str) else None
            if span is None or not isinstance(quota, str):
                continue
            unit = Dimension.REQUESTS
            if "Token" in quota:
                unit = Dimension.INPUT if "Input" in quota else Dimension.TOKENS
            yield span[1], unit, violation


def _openrouter(error: Mapping[str, Any], message: str) -> Iterator[Seen]:
    metadata = error.get("metadata")
    told = metadata.get("headers") if isinstance(metadata, dict) else None
    if not isinstance(told, dict):
        return
    headers = {str(name).lower(): str(value) for name, value in told.items()}
    per = _PER.search(message)
    span_ms = None if per is None else _span_ms(per[1])
    for seen in read_limits(headers):
        yield replace(seen, span_ms=span_ms, is_window=True) if span_ms else seen


def _span_ms(word: str) -> int:
    word = word.lower()
    return SPANS_MS[_SPANS.get(word, word)]


def _number(text: Any) -> int | None:
    digits = str(text if text is not None else "").replace(",", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 12 else None


def _california() -> tzinfo:
    try:
        return ZoneInfo("America/Los_Angeles")
    except (LookupError, OSError, ValueError):  # a system without time zones
        return UTC


def _until_midnight_ms(zone: tzinfo) -> int:
    """Until a day begins somewhere."""
    now = datetime.fromtimestamp(time.time(), zone)
    day = datetime(now.year, now.month, now.day, tzinfo=zone) + timedelta(days=1)
    return max(1, round((day.timestamp() - now.timestamp()) * 1000))
