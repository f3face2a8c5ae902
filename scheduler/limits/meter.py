"""How fast may requests go to a provider? Rates and how providers count; pure.

A *meter* watches one limit, by the generic cell rate algorithm (ITU-T I.371): it keeps the
instant at which all that was sent will have been paid off at the limit's rate, and lets a
charge through if that instant is not further ahead than the burst allows. So it needs one
number, costs the same at any rate, and knows exactly when the next request may go.

Every provider counts in its own way: `COUNTING` has the rules, dated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from scheduler.request import Tokens

HEADROOM = 0.99  # of a limit is used: clocks and counts differ a little
BURST_SHARE = 0.95  # of what a bucket holds is sent at once
SMALL_BURST_SHARE = 0.9  # of one that holds a few seconds' worth, where jitter counts more
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
SPANS_MS = {"second": SECOND_MS, "minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
RISK = (
    0.005  # of what was let through may be tried at once beyond a burst that is known to be there
)
SLACK = 1.1  # a minute told as a little more is a minute
LIKELY = 1.25  # how far what headers tell may be from a span to be taken for it
LATER = 0.15  # of its span later than a bucket would be full, and it is a window


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
        span_ms: Over which time it holds, where that is said in words; None: see `span_of`.
        is_window: It is a window that ends, said in words; None: see `is_window`.
    """

    dimension: Dimension
    limit: int
    remaining: int
    full_in_ms: int | None = None
    span_ms: int | None = None
    is_window: bool | None = None


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
        is_fixed: Whether it counts over fixed windows, each with its whole amount.
        may_try: Whether a larger burst may be tried, where nobody says how large it is.
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
    is_fixed: bool = False
    may_try: bool = True
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
        joins="max", corrects=False, trusts_headers=False, may_try=False,
        as_of="2026-10, guides/rate-limits: a limit may be enforced over shorter times",
    ),
    "azure": Counting(
        burst_s=0.0, token_burst_s=60.0, trusts_headers=False, may_try=False, as_of="2026-09, Azure OpenAI quota: "
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
        burst_s=0.5, token_burst_s=0.5, is_fixed=True,
        as_of="fixed windows, as LiteLLM's proxy and OpenRouter count",
    ),
}  # fmt: skip
"""How providers count, by the name in `Provider.counting`."""


class Meter:
    """One limit; see the module.

    Where nobody says how much may go at once, it tries: a little beyond the burst that is known
    to be there, once, and again only when all of it was let through. What it tries is never more
    than `RISK` of all that was let through before, so refusals stay below that; the first refusal
    ends it.

    Attributes:
        limit: How much may be used in `span_ms`.
        burst: How much of it may go at once.
        due_ms: When all that was sent is paid off.
        shift: All that the provider's own count has moved ours so far, in units.
        is_followed: The provider's own count is known, and corrects ours.
        is_given: Somebody said it; otherwise headers did.
        is_wary: More at once than its burst was refused before.
        tries: Whether a larger burst is tried.
    """

    __slots__ = (
        "_extra", "_passed", "_spent", "burst", "dimension", "due_ms", "first_burst", "is_followed",
        "is_given", "is_wary", "limit", "seen_units", "shift", "span_ms", "tries",
    )  # fmt: skip

    def __init__(
        self,
        dimension: Dimension,
        limit: int,
        span_ms: int,
        burst_s: float,
        is_given: bool,
        tries: bool = False,
    ) -> None:
        self.dimension, self.limit, self.span_ms = dimension, limit, span_ms
        self.is_given, self.is_wary, self.is_followed = is_given, False, False
        self.due_ms = self.shift = 0.0
        self.burst = self.first_burst = max(1.0, SMALL_BURST_SHARE * self.worth(burst_s))
        self.tries, self.seen_units = tries, 0.0
        self._extra = self._spent = self._passed = 0.0  # tried now: allowed, sent, let through

    @property
    def key(self) -> str:
        """What tells it from other meters of the same gate: its dimension, and its span."""
        return key_of(self.dimension, self.span_ms)

    @property
    def most(self) -> float:
        """The largest burst that is used: a little less than the bucket holds."""
        return self.limit - self.slack

    @property
    def slack(self) -> float:
        """What is left in the bucket for what the two counts differ by; of a day a minute's worth."""
        small = (1 - BURST_SHARE) * self.limit * min(1.0, MINUTE_MS / self.span_ms)
        return small if self.span_ms <= MINUTE_MS else min(self.limit - 1.0, max(1.0, small))

    def worth(self, seconds: float) -> float:
        """How much of the limit so many seconds are."""
        return min(self.limit, self.limit * seconds * 1000 / self.span_ms)

    def unit_ms(self, share: float) -> float:
        """How long one unit takes to be paid off, at a share of the limit."""
        return self.span_ms / (self.limit * HEADROOM * share)

    def opens_at_ms(self, charge: float, now_ms: float, share: float) -> float:
        """When a charge may go; one beyond the burst goes when everything is paid off."""
        unit_ms = self.unit_ms(share)
        top = self.burst + self._extra if self._spent < self._extra else self.burst
        ahead_ms = (min(charge, top) - top) * unit_ms
        return max(now_ms, self.due_ms + ahead_ms)

    def take(self, charge: float, now_ms: float, share: float, since_ms: float = 0.0) -> None:
        """Count a charge; a negative one gives back what was counted at `since_ms`."""
        if charge >= 0:
            self.due_ms = max(self.due_ms, now_ms)
        self.due_ms += charge * self.unit_ms(share)
        if charge > 0 and self._extra and self.level(now_ms, share) < 0:
            self._spent += charge

    def level(self, now_ms: float, share: float) -> float:
        """How much may go at once now; negative: beyond the burst."""
        return self.burst - max(0.0, self.due_ms - now_ms) / self.unit_ms(share)

    def passed(self, charge: float, level: float) -> None:
        """A charge that left so much of the burst was let through: more may be there."""
        if not self.tries:
            return
        self.seen_units += charge
        if self._extra and level < 0:
            self._passed += charge
            if self._passed >= self._extra:
                self.burst = min(self.most, self.burst + self._extra)
                self._extra = self._spent = self._passed = 0.0
        step = min(RISK * self.seen_units, self.burst, self.most - self.burst)
        if not self._extra and step >= charge:
            self._extra = step

    def stopped(self, charge: float, level: float, is_refused: bool) -> bool:
        """A charge was not let through; whether it is because it was tried beyond the burst."""
        if not self._extra or level >= 0:
            return False
        if is_refused:
            self.tries, self.is_wary = False, True
            self.burst = max(self.first_burst, SMALL_BURST_SHARE * self.burst)
        self._extra = self._spent = self._passed = 0.0
        return is_refused

    def empty(self, now_ms: float, share: float) -> None:
        """Let nothing more go at once: from now on at the limit's pace."""
        self.due_ms = max(self.due_ms, now_ms + (self.burst - 1) * self.unit_ms(share))

    def widen(self) -> None:
        """The provider says what is left, so all of that may go at once."""
        if not self.is_wary:
            self.burst, self.tries = max(self.burst, self.most), False

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
        left = min(self.burst, seen.remaining - self.slack)
        off = level - left - (self.shift - shift)
        self.is_followed = True
        if abs(off) < 1:
            return
        self.shift += off
        self.due_ms = max(self.due_ms, now_ms) + off * self.unit_ms(share)

    def begin(self, used: float, now_ms: float, share: float) -> None:
        """So much was used already when this meter came to know of its limit."""
        self.take(max(0.0, used), now_ms, share)

    def state(self) -> list[Any]:
        """What other processes need to know of it, besides what every meter has."""
        return ["bucket", self.tries, self.seen_units]

    def restore(self, state: Sequence[Any], now_ms: int) -> None:
        """Take over what another process wrote."""
        _, tries, seen_units = state[:3]
        self.tries, self.seen_units = self.tries and bool(tries), float(seen_units)


def key_of(dimension: Dimension, span_ms: int) -> str:
    """A meter's key in its gate.

    >>> key_of(Dimension.REQUESTS, MINUTE_MS), key_of(Dimension.REQUESTS, DAY_MS)
    ('requests', 'requests a day')
    """
    return str(dimension) if span_ms == MINUTE_MS else f"{dimension} a {span_name(span_ms)}"


def span_name(span_ms: int) -> str:
    """What people call a span of time."""
    names = [name for name, known_ms in SPANS_MS.items() if known_ms == span_ms]
    return names[0] if names else f"{span_ms / SECOND_MS:g} s"


def span_of(seen: Seen, counting: Counting) -> int:
    """Over which time a limit told in headers holds.

    A bucket of a minute is full again within a minute. One that says it takes longer is
    one of an hour or a day: limit / span = (limit − remaining) / time until full.
    """
    known = seen.span_ms or counting.spans_ms.get(seen.dimension)
    if known is not None:
        return known
    full_in_ms, used = seen.full_in_ms, seen.limit - seen.remaining
    if full_in_ms is None or used <= 0 or full_in_ms <= MINUTE_MS * SLACK:
        return MINUTE_MS
    told_ms = seen.limit * full_in_ms / used
    spans = (MINUTE_MS, HOUR_MS, DAY_MS)
    nearest = min(spans, key=lambda span_ms: abs(math.log(told_ms / span_ms)))
    if abs(math.log(told_ms / nearest)) <= math.log(LIKELY):
        return nearest
    # No bucket takes that long: it is the end of a window.
    return next((span_ms for span_ms in spans if full_in_ms <= span_ms * SLACK), DAY_MS)


def is_window(seen: Seen, span_ms: int, counting: Counting) -> bool:
    """Whether a limit is kept over fixed windows: it says to be full again when no bucket would be.

    A bucket is full after used / limit of its span, a window when it ends, however much is used.
    """
    if seen.is_window is not None or counting.is_fixed:
        return bool(seen.is_window) or counting.is_fixed
    if seen.full_in_ms is None or not counting.trusts_headers:
        return False
    full_after_ms = (seen.limit - seen.remaining) * span_ms / seen.limit
    return seen.full_in_ms > full_after_ms + LATER * span_ms
