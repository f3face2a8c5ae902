"""How long a service asks to wait, from wherever it says so, in every spelling in public use; pure.

    retry-after-ms, retry-after, x-retry-after     "7", "0.25", "7s", "1m30s", "500 ms", "2 minutes",
                                                   a date (HTTP's, ISO's), an instant in Unix seconds
                                                   or milliseconds
    x-ratelimit-reset-…, where nothing is left     the same
    x-ratelimit-reset-after, ratelimit-reset       the same
    in the body: retryDelay, retry_after, …_ms     Google's "3.5s"; numbers of seconds, or as named
    in the words                                   "try again in 1.2s", "retry after 3 seconds",
                                                   "wait 5s", "in 500 milliseconds", "in a minute"

Negative is at once, more than a day is a day, nonsense is not said. How soon a refused provider is
asked again at the least is not decided here but in `scheduler.limits`.

>>> span_ms("6m0s"), span_ms("500 milliseconds"), span_ms("1 hour and 2 min"), span_ms("soon")
(360000, 500, 3720000, None)
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from scheduler.limits.meter import Seen

MAX_WAIT_MS = 86_400_000
SOON_S = 10**8  # a larger number of seconds is an instant, not a span
MS_EPOCH = 10**12  # a larger instant is in milliseconds
FARTHEST_S = 366 * 86_400  # an instant farther ahead is none
MAX_TEXT = 200  # characters of a header that are looked at
MAX_BODY = 20_000  # bytes of a body

Headers = Mapping[str, str]

_UNITS_MS = {"ms": 1, "mil": 1, "mse": 1, "us": 0.001, "µs": 0.001, "ns": 0.000001,
             "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}  # fmt: skip
_UNIT = (
    r"(?:milliseconds?|millisecs?|millis|msecs?|ms|µs|us|ns|seconds?|secs?|s|minutes?|mins?|m|"
    r"hours?|hrs?|h|days?|d)(?![a-z])"
)
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PART = re.compile(rf"({_NUMBER}|an?\b)[ \t]*({_UNIT})(?:\s*(?:,|and)?\s*)", re.I)
_GO = re.compile(rf"({_NUMBER})(ns|us|µs|ms|s|m|h|d)", re.I)  # Go's, with nothing in between
_SPAN = rf"((?:(?:{_NUMBER}|an?\b)[ \t]*(?:ns|us|µs|ms|[smhd](?=\d)|{_UNIT})(?:\s*(?:,|and)?\s*))+)"
_VERB = (
    r"(?:try|retry|retrying|retried|wait|waiting|available|resets?|reset)\b"
    r"(?:\s+(?:again|your|the|this|request|requests|it|back|for|at|least|after|in|about|"
    r"approximately|around|another|will|be))*\s*[:~]?\s*"
)
_WORDS = re.compile(_VERB + _SPAN, re.I)
_BARE = re.compile(
    rf"(?:retry|again|wait)(?: your request)? (?:after|in|for) ({_NUMBER})(?![\w:-])", re.I
)
_UNTIL = re.compile(
    r"(?:again|retry|wait|available|resets?)\W+(?:at|after|on|until|is)?\W*"
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d| ?UTC)?)",
    re.I,
)
_DELAY = re.compile(r'"retryDelay"\s*:\s*"([^"]{1,40})"')
_FIELD = re.compile(
    r'"retry_?after(_ms|_?millis\w*|_s|_sec\w*|_in)?"\s*:\s*"?([^",}\]]{1,40})', re.I
)


def retry_after_ms(
    headers: Headers, message: str, content: bytes, seen: Iterable[Seen] = ()
) -> int | None:
    """How long the service asks to wait; None: it does not say.

    Args:
        headers: Found by names in lower case.
        message: Its words.
        content: The body.
        seen: What the headers say about its limits.
    """
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1000), ("x-retry-after", 1000)):
        value = headers.get(name)
        wait_ms = None if not value else wait_of(value, headers, unit_ms)
        if wait_ms is not None:
            return wait_ms
    return _reset_ms(headers, seen) or _body_ms(content, headers) or _said_ms(message, headers)


def wait_of(text: str, headers: Headers, unit_ms: int = 1000) -> int | None:
    """A wait as a header tells it: a span, a number of units, an instant; None: nonsense."""
    text = text.strip()[:MAX_TEXT]
    for each in (text, text.partition(",")[0].strip()):  # sent twice, headers are joined
        number = _number(each)
        if number is not None:
            return _of_number(number, unit_ms, headers)
        found = span_ms(each)
        if found is None:
            found = until_ms(each, headers)
        if found is not None:
            return found
    return None


def _of_number(value: float, unit_ms: int, headers: Headers) -> int | None:
    if math.isnan(value):
        return None
    if SOON_S <= value < math.inf:
        at_s = value / 1000 if value >= MS_EPOCH else value
        wait_s = at_s - their_time_s(headers)
        if wait_s < FARTHEST_S:
            return _bounded(wait_s * 1000)
    return _bounded(value * unit_ms)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounded(wait_ms: float) -> int:
    return math.ceil(min(max(wait_ms - 1e-6, 0), MAX_WAIT_MS))


def span_ms(text: str) -> int | None:
    """A span with its units, in at most a day; None: it is none."""
    text = text.strip().rstrip(".")[:MAX_TEXT]
    for part in (_GO, _PART):
        total_ms, place = 0.0, 0
        while found := part.match(text, place):
            number = 1.0 if found[1][0] in "aA" else float(found[1])
            total_ms += number * _unit_ms(found[2])
            place = found.end()
        if text and place == len(text):
            return _bounded(total_ms)
    return None


def _unit_ms(unit: str) -> float:
    unit = unit.lower()
    found = _UNITS_MS.get(unit) or _UNITS_MS.get(unit[:3])
    return found if found is not None else _UNITS_MS[unit[0]]


def until_ms(text: str, headers: Headers) -> int | None:
    """Until an instant, as HTTP or ISO 8601 writes it, by the other side's own clock if it tells."""
    at = _instant(text)
    return None if at is None else _bounded((at - their_time_s(headers)) * 1000)


def _instant(text: str) -> float | None:
    text = text.strip()
    for read in (_from_iso, parsedate_to_datetime):
        try:
            return read(text).timestamp()
        except (ValueError, TypeError, OverflowError, OSError, IndexError):
            continue
    return None


def _from_iso(text: str) -> datetime:
    at = datetime.fromisoformat(re.sub(r"\s*(?:Z|UTC)$", "+00:00", text, flags=re.I))
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def their_time_s(headers: Headers) -> float:
    """What time it is by the other side's clock, else by ours."""
    told = headers.get("date")
    at = None if not told else _instant(told)
    return time.time() if at is None else at


def _reset_ms(headers: Headers, seen: Iterable[Seen]) -> int | None:
    """When the limit that is used up has room again."""
    pairs = [(f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}")
             for unit in ("requests", "tokens")]  # fmt: skip
    waits_ms = [
        wait_of(headers[reset], headers) or 0
        for left, reset in pairs
        if headers.get(left) == "0" and headers.get(reset)
    ]
    if not headers.get(pairs[0][0]):
        waits_ms += [each.full_in_ms or 0 for each in seen if not each.remaining]
        told = (headers.get(name) for name in ("x-ratelimit-reset-after", "ratelimit-reset"))
        waits_ms += [wait_of(each, headers) or 0 for each in told if each]
    return max(waits_ms, default=0) or None


def _body_ms(content: bytes, headers: Headers) -> int | None:
    text = content[:MAX_BODY].decode("utf-8", "replace")
    found = _DELAY.search(text)
    if found is not None:
        return wait_of(found[1], headers)
    field = _FIELD.search(text)
    if field is None:
        return None
    unit_ms = 1 if (field[1] or "").lower().startswith(("_m", "m")) else 1000
    return wait_of(field[2], headers, unit_ms)


def _said_ms(message: str, headers: Headers) -> int | None:
    said = _WORDS.search(message)
    if said is not None:
        return span_ms(re.sub(r"[\s,]*(?:and)?\s*$", "", said[1]))
    until = _UNTIL.search(message)
    if until is not None:
        return until_ms(until[1], headers)
    bare = _BARE.search(message)
    return None if bare is None else _bounded(float(bare[1]) * 1000)
