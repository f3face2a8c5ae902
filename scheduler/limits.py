"""How fast may requests go to a provider? Rates and how providers count; pure.

A *meter* watches one limit, by the generic cell rate algorithm (ITU-T I.371): it keeps the
instant at which all that was sent will have been paid off at the limit's rate, and lets a
charge through if that instant is not further ahead than the burst allows. So it needs one
number, costs the same at any rate, and knows exactly when the next request may go.

Every provider counts in its own way: `COUNTING` has the rules, dated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from scheduler.request import Tokens

HEADROOM = 0.99  # of a limit is used: clocks and counts differ a little
BURST_SHARE = 0.95  # of what a bucket holds is sent at once
SMALL_BURST_SHARE = 0.9  # of one that holds a few seconds' worth, where jitter counts more
MINUTE_MS, DAY_MS = 60_000, 86_400_000
SLACK = 1.1  # a minute told as a little more is a minute


class Dimension(StrEnum):
    """What a provider counts against a limit."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # input and output together
    INPUT = "input_tokens"
    OUTPUT = "output_tokens"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows, as somebody who knows it says; None: not known.

    Attributes:
        concurrency: Most calls of this process under way at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrency: int | None = None

    def per_minute(self) -> dict[Dimension, int]:
        """The limits that are known."""
        pairs = (
            (Dimension.REQUESTS, self.requests_per_minute),
            (Dimension.TOKENS, self.tokens_per_minute),
            (Dimension.INPUT, self.input_tokens_per_minute),
            (Dimension.OUTPUT, self.output_tokens_per_minute),
        )
        return {dimension: limit for dimension, limit in pairs if limit is not None}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the headers of one response say about one limit.

    Attributes:
        limit: How much the bucket or window holds.
        remaining: What was left right after the request was counted.
        full_in_ms: How long until it is wholly replenished; None: not told.
    """

    dimension: Dimension
    limit: int
    remaining: int
    full_in_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Counting:
    """How a provider counts against its limits.

    Attributes:
        output: What of the output its limit of tokens counts when a request arrives: the
            ``"cap"`` in the request, or what such requests ``"produce"`` on average.
        joins: Whether input and output are added up, or the larger one counts.
        corrects: Whether the count is corrected to what was used when the answer is there.
        counts_refused: Whether refused requests count as requests.
        burst_s: How many seconds' worth of requests may go at once, until its headers say more.
        token_burst_s: The same for tokens.
        trusts_headers: Whether what the headers say is left may be sent at once.
        spans_ms: Over which time a limit told in headers holds, where not a minute.
        cached_is_free: Whether input read from a cache counts.
        as_of: When the rule was last checked, and where.
    """

    output: Literal["cap", "produced"] = "cap"
    joins: Literal["sum", "max"] = "sum"
    corrects: bool = True
    counts_refused: bool = True
    burst_s: float = 1.0
    token_burst_s: float = 1.0
    trusts_headers: bool = True
    spans_ms: Mapping[Dimension, int] = field(default_factory=dict)
    cached_is_free: bool = False
    as_of: str = ""

    def charge(self, dimension: Dimension, tokens: Tokens, produced: float) -> float:
        """What a request takes when it is sent; `produced`: output of such requests so far."""
        if dimension is Dimension.REQUESTS:
            return 1
        if dimension is Dimension.INPUT:
            return tokens.input
        likely = min(produced, tokens.output or produced)
        if dimension is Dimension.OUTPUT:
            return likely
        out = tokens.output if self.output == "cap" else likely
        return max(tokens.input, out) if self.joins == "max" else tokens.input + out

    def at_once_s(self, dimension: Dimension) -> float:
        """How many seconds' worth may go at once, until headers say more."""
        return self.burst_s if dimension is Dimension.REQUESTS else self.token_burst_s

    def is_corrected(self, dimension: Dimension) -> bool:
        """Whether a charge is replaced by what was used."""
        return dimension is Dimension.OUTPUT or (
            self.corrects and dimension is not Dimension.REQUESTS
        )


COUNTING: dict[str, Counting] = {
    "default": Counting(as_of="no rule known: what is promised counts until the answer is there"),
    "openai": Counting(
        joins="max", corrects=False, as_of="2026-10, guides/rate-limits: the larger of max_tokens "
        "and an estimate from the characters; unsuccessful requests count"
    ),
    "openai-per-second": Counting(
        joins="max", corrects=False, trusts_headers=False,
        as_of="2026-10, guides/rate-limits: a limit may be enforced over shorter times",
    ),
    "azure": Counting(
        burst_s=0.0, token_burst_s=60.0, trusts_headers=False, as_of="2026-09, Azure OpenAI quota: "
        "prompt estimate and max_tokens over a minute, released at the end; requests over 1 or 10 "
        "seconds",
    ),
    "anthropic": Counting(
        output="produced", cached_is_free=True, as_of="2026-10, api/rate-limits: token buckets; "
        "input estimated and corrected, output as it is produced; 60 a minute may be 1 a second",
    ),
    "groq": Counting(
        output="produced", cached_is_free=True, spans_ms={Dimension.REQUESTS: DAY_MS},
        as_of="2026-10, docs/rate-limits: headers tell requests per day and tokens per minute",
    ),
    "window": Counting(
        burst_s=0.5, token_burst_s=0.5, trusts_headers=False, as_of="fixed windows, as LiteLLM's proxy and OpenRouter count"
    ),
}  # fmt: skip
"""How providers count, by the name in `Provider.counting`."""


class Meter:
    """One limit; see the module.

    Attributes:
        limit: How much may be used in `span_ms`.
        burst: How much of it may go at once.
        due_ms: When all that was sent is paid off.
        shift: All that the provider's own count has moved ours so far, in units.
        is_followed: The provider's own count is known, and corrects ours.
        is_given: Somebody said it; otherwise headers did.
        is_wary: More at once than its burst was refused before.
    """

    __slots__ = (
        "burst", "dimension", "due_ms", "is_followed", "is_given", "is_wary", "limit", "shift", "span_ms",
    )  # fmt: skip

    def __init__(
        self, dimension: Dimension, limit: int, span_ms: int, burst_s: float, is_given: bool
    ) -> None:
        self.dimension, self.limit, self.span_ms = dimension, limit, span_ms
        self.is_given, self.is_wary, self.is_followed = is_given, False, False
        self.due_ms = self.shift = 0.0
        self.burst = max(1.0, SMALL_BURST_SHARE * self.worth(burst_s))

    def worth(self, seconds: float) -> float:
        """How much of the limit so many seconds are."""
        return min(self.limit, self.limit * seconds * 1000 / self.span_ms)

    def unit_ms(self, share: float) -> float:
        """How long one unit takes to be paid off, at a share of the limit."""
        return self.span_ms / (self.limit * HEADROOM * share)

    def opens_at_ms(self, charge: float, now_ms: float, share: float) -> float:
        """When a charge may go; one beyond the burst goes when everything is paid off."""
        unit_ms = self.unit_ms(share)
        ahead_ms = (min(charge, self.burst) - self.burst) * unit_ms
        return max(now_ms, self.due_ms + ahead_ms)

    def take(self, charge: float, now_ms: float, share: float) -> None:
        """Count a charge; a negative one gives back."""
        if charge >= 0:
            self.due_ms = max(self.due_ms, now_ms)
        self.due_ms += charge * self.unit_ms(share)

    def level(self, now_ms: float, share: float) -> float:
        """How much may go at once now; negative: beyond the burst."""
        return self.burst - max(0.0, self.due_ms - now_ms) / self.unit_ms(share)

    def empty(self, now_ms: float, share: float) -> None:
        """Let nothing more go at once: from now on at the limit's pace."""
        self.due_ms = max(self.due_ms, now_ms + (self.burst - 1) * self.unit_ms(share))

    def widen(self) -> None:
        """The provider says what is left, so all of that may go at once."""
        if not self.is_wary:
            self.burst = max(self.burst, BURST_SHARE * self.limit)

    def narrow(self, burst_s: float) -> None:
        """More than that at once was refused."""
        worth = max(1.0, SMALL_BURST_SHARE * self.worth(burst_s))
        self.is_wary = self.is_wary or self.burst > worth
        self.burst = min(self.burst, worth)

    def compare(self, seen: Seen, level: float, shift: float, share: float, now_ms: float) -> None:
        """Follow the provider's own count.

        Args:
            seen: What it said was left when it counted a request.
            level: What we believed to be left when we sent that request.
            shift: What `shift` was then: corrections since are not made twice.
            share: Of the limit in use.
            now_ms: The time.
        """
        left = min(self.burst, seen.remaining - (1 - BURST_SHARE) * seen.limit)
        off = level - left - (self.shift - shift)
        self.is_followed = True
        if abs(off) < 1:
            return
        self.shift += off
        self.due_ms = max(self.due_ms, now_ms) + off * self.unit_ms(share)


def span_of(seen: Seen, counting: Counting) -> int:
    """Over which time a limit told in headers holds.

    A bucket of a minute is full again within a minute. One that says it takes longer is
    one of a day: limit / span = (limit − remaining) / time until full.
    """
    known = counting.spans_ms.get(seen.dimension)
    if known is not None:
        return known
    full_in_ms, used = seen.full_in_ms, seen.limit - seen.remaining
    if full_in_ms is None or used <= 0 or full_in_ms <= MINUTE_MS * SLACK:
        return MINUTE_MS
    told_ms = seen.limit * full_in_ms / used
    spans = (MINUTE_MS, 60 * MINUTE_MS, DAY_MS)
    return min(spans, key=lambda span_ms: abs(math.log(told_ms / span_ms)))
