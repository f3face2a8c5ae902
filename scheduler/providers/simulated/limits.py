"""How a simulated provider limits rates, and how it tells: in the style of a real one.

    plain               requests and used tokens, buckets of a minute, OpenAI's headers; what is
                        refused does not count
    openai              tokens: the larger of the cap and the input; refused requests count
    openai-per-second   the same, but enforced over seconds, whatever the headers say
    azure               tokens: input and cap, released at the end; requests over ten seconds;
                        headers tell what remains, but of how much only people know; and the time to wait
    anthropic           input corrected, output as it is produced; its own headers
    groq                headers tell requests a day and tokens a minute; refusals say which
                        limit it was, and what of it was used
    openrouter          requests a day until midnight UTC; what is told stands in the body
    gemini              requests a day until midnight in California; no headers, and a time to wait
                        that does not hold for the day
    window              fixed windows of a minute
    silent              a bucket of a second, and not a word about it
    silent-minute       a bucket of a minute, likewise
    concurrent          so many calls at once, and not a word

Numbers and words are those of the real headers: ``x-ratelimit-{limit,remaining,reset}-…`` with
resets as Go writes durations, ``anthropic-ratelimit-…`` with resets in RFC 3339.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

from scheduler.errors import ConfigError

MINUTE_S = 60.0
DAY_S = 86_400.0


class Bucket:
    """A rate limit: a bucket that holds some seconds' worth and fills steadily.

    Attributes:
        unit: ``"requests"``, ``"tokens"``, ``"input-tokens"`` or ``"output-tokens"``.
        holds: How much it holds.
        level: What is left.
    """

    def __init__(self, unit: str, per_minute: int, hold_s: float = MINUTE_S) -> None:
        if per_minute < 1:
            raise ConfigError("rpm" if unit == "requests" else "tpm", f"{per_minute} is below 1")
        self.unit = unit
        self.per_minute: float = per_minute
        self.holds = max(1.0, per_minute * hold_s / MINUTE_S)
        self.level = self.holds
        self.filled_at_s: float | None = None

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until `amount` is there; more than the bucket holds waits until it is full."""
        if self.filled_at_s is not None:
            passed_s = max(0.0, now_s - self.filled_at_s)
            self.level = min(self.holds, self.level + passed_s * self.per_minute / MINUTE_S)
        self.filled_at_s = now_s
        # A hair less than whole: adding up fractions never quite gets there.
        missing = min(amount, self.holds) - self.level - 1e-6
        return missing * MINUTE_S / self.per_minute

    def take(self, amount: float) -> None:
        """Use it; `wait_s` said that it is there."""
        self.level -= amount

    def told(self) -> tuple[int, int, float]:
        """Limit, remaining, and time until full, as of a bucket of a minute."""
        missing = self.holds - self.level
        left = max(0, math.floor(self.per_minute - missing + 1e-6))
        return int(self.per_minute), left, missing * MINUTE_S / self.per_minute


class Window(Bucket):
    """A rate limit over fixed spans of time, each with its whole amount."""

    def __init__(self, unit: str, per_minute: int, hold_s: float = MINUTE_S) -> None:
        super().__init__(unit, per_minute, hold_s)
        self.span_s, self._ends_at_s, self._now_s = hold_s, 0.0, 0.0

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until the next window, if this one has not enough left."""
        self._now_s = now_s
        if now_s >= self._ends_at_s:
            self.level, self._ends_at_s = self.holds, now_s + self.span_s
        return 0.0 if min(amount, self.holds) <= self.level else self._ends_at_s - now_s

    def told(self) -> tuple[int, int, float]:
        """Limit, remaining, and time until the window ends."""
        return int(self.holds), max(0, int(self.level)), self._ends_at_s - self._now_s


class DayBucket(Bucket):
    """So many requests a day, from a bucket that holds them all and fills steadily."""

    def __init__(self, per_day: int) -> None:
        super().__init__("requests", per_day, DAY_S)
        self.per_minute, self.holds = per_day * MINUTE_S / DAY_S, float(per_day)
        self.level = self.holds

    def told(self) -> tuple[int, int, float]:
        """Limit, remaining, and time until full."""
        missing = self.holds - self.level
        return int(self.holds), max(0, math.floor(self.level + 1e-6)), missing * DAY_S / self.holds


class Day(DayBucket):
    """So many requests a day, all given back at midnight."""

    def __init__(self, per_day: int, zone: tzinfo) -> None:
        super().__init__(per_day)
        self._zone, self._ends_at_s, self._now_s = zone, 0.0, 0.0

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until midnight, if nothing is left of this day."""
        self._now_s = now_s
        if now_s >= self._ends_at_s:
            now = datetime.now(self._zone)
            day = datetime(now.year, now.month, now.day, tzinfo=self._zone) + timedelta(days=1)
            is_first = not self._ends_at_s
            left_s = day.timestamp() - now.timestamp() if is_first else DAY_S
            self._ends_at_s = (now_s if is_first else self._ends_at_s) + left_s
            self.level = self.holds
        return 0.0 if amount <= self.level else self._ends_at_s - now_s

    def told(self) -> tuple[int, int, float]:
        """Limit, remaining, and time until midnight."""
        return int(self.holds), max(0, int(self.level)), self._ends_at_s - self._now_s


@dataclass(frozen=True, slots=True)
class Style:
    """How one provider limits.

    Attributes:
        tokens: What counts against the limit of tokens when a request arrives.
        corrects: Whether that is replaced by what was used when the answer is there.
        counts_refused: Whether refused requests count as requests.
        hold_s: How many seconds' worth may be used at once.
        request_hold_s: The same for requests; None: as `hold_s`.
        kind: What limits: buckets that fill steadily, or fixed windows.
        headers: Whose headers it sends.
        says_when: Whether a refusal tells how long to wait.
        midnight: Where a day ends; None: requests of a day come back steadily.
        words: In whose words it refuses.
    """

    tokens: Literal["used", "max", "sum", "input"] = "used"
    corrects: bool = False
    counts_refused: bool = True
    hold_s: float = MINUTE_S
    request_hold_s: float | None = None
    kind: type[Bucket] = Bucket
    request_kind: type[Bucket] = Bucket
    headers: Literal["openai", "anthropic", "azure", "groq", "none"] = "openai"
    says_when: bool = True
    midnight: str | None = None
    words: Literal["plain", "groq", "openrouter", "gemini"] = "plain"


STYLES = {
    "plain": Style(counts_refused=False),
    "openai": Style(tokens="max"),
    "openai-per-second": Style(tokens="max", hold_s=1.0),
    "azure": Style(
        tokens="sum", corrects=True, request_hold_s=10.0, request_kind=Window, headers="azure"
    ),
    "anthropic": Style(tokens="input", corrects=True, headers="anthropic"),
    "groq": Style(headers="groq", words="groq"),
    "openrouter": Style(headers="none", says_when=False, midnight="UTC", words="openrouter"),
    "gemini": Style(
        headers="none", says_when=False, midnight="America/Los_Angeles", words="gemini"
    ),
    "window": Style(kind=Window, request_kind=Window),
    "silent": Style(hold_s=1.0, headers="none", says_when=False),
    "silent-minute": Style(headers="none", says_when=False),
    "concurrent": Style(headers="none", says_when=False),
}


@dataclass(slots=True)
class Charge:
    """What one request took from the limits, to be corrected at its end."""

    input: int
    cap: int
    output: int
    tokens: float = 0.0


class Limiter:
    """All limits of one simulated provider.

    Args:
        style: One of `STYLES`.
        rpm: Requests a minute; None: no limit, as for the others.
        tpm: Tokens a minute.
        itpm: Input tokens a minute.
        otpm: Output tokens a minute.
        concurrent: Calls at once.
        rpd: Requests a day.

    Attributes:
        refused: How many requests were refused.
        full: What the last of them were refused for.
    """

    def __init__(
        self, style: str = "plain", *, rpm: int | None = None, tpm: int | None = None,
        itpm: int | None = None, otpm: int | None = None, concurrent: int | None = None,
        rpd: int | None = None,
    ) -> None:  # fmt: skip
        if style not in STYLES:
            raise ConfigError("limits", f"{style!r} is not one of {', '.join(STYLES)}")
        self.style = rule = STYLES[style]
        hold_s = rule.hold_s if rule.request_hold_s is None else rule.request_hold_s
        made = rule.request_kind if rule.request_hold_s is not None else rule.kind
        self._requests = made("requests", rpm, hold_s) if rpm is not None else None
        self._tokens, self._input, self._output = (
            rule.kind(unit, limit, rule.hold_s) if limit is not None else None
            for unit, limit in (("tokens", tpm), ("input-tokens", itpm), ("output-tokens", otpm))
        )
        self._concurrent, self.running, self.refused = concurrent, 0, 0
        self._day: DayBucket | None = None
        if rpd is not None:
            zone = rule.midnight
            self._day = DayBucket(rpd) if zone is None else Day(rpd, ZoneInfo(zone))
        self.full: Bucket | None = None

    @property
    def buckets(self) -> list[Bucket]:
        """Those that there are."""
        found = (self._requests, self._tokens, self._input, self._output, self._day)
        return [bucket for bucket in found if bucket is not None]

    def admit(self, charge: Charge, now_s: float, headers: dict[str, str]) -> float | None:
        """Count a request, or refuse it; the headers tell either way.

        Returns:
            None if it is admitted, else how long to wait.
        """
        charge.tokens = {
            "used": charge.input + charge.output,
            "max": max(charge.input, charge.cap),
            "sum": charge.input + charge.cap,
            "input": charge.input,
        }[self.style.tokens]
        wanted = ((self._requests, 1), (self._tokens, charge.tokens), (self._input, charge.input),
                  (self._output, 0), (self._day, 1))  # fmt: skip
        taken = [(bucket, amount) for bucket, amount in wanted if bucket is not None]
        waits_s = [bucket.wait_s(amount, now_s) for bucket, amount in taken]
        is_full = self._concurrent is not None and self.running >= self._concurrent
        longest_s = max(waits_s, default=0.0)
        is_refused = longest_s > 0 or is_full
        if is_refused:
            self.refused += 1
            self.full = taken[waits_s.index(longest_s)][0] if longest_s > 0 else None
            if self.style.counts_refused and self._requests is not None:
                self._requests.level = max(0.0, self._requests.level - 1)
        else:
            self.running += 1
            for bucket, amount in taken:
                bucket.take(amount)
        self._tell(headers)
        return longest_s if is_refused else None

    def finish(self, charge: Charge) -> None:
        """The call has ended: count what it used, where that is what counts."""
        self.running -= 1
        if self._output is not None:
            self._output.take(charge.output)
        if self.style.corrects and self._tokens is not None:
            used = charge.input + charge.output
            self._tokens.level = min(self._tokens.holds, self._tokens.level + charge.tokens - used)

    def _tell(self, headers: dict[str, str]) -> None:
        if self.style.headers == "none":
            return
        for bucket in self.buckets:
            limit, left, full_in_s = bucket.told()
            if self.style.headers == "azure":
                headers[f"x-ratelimit-remaining-{bucket.unit}"] = str(left)
                continue
            if self.style.headers == "anthropic":
                start = f"anthropic-ratelimit-{bucket.unit}-"
                at = datetime.fromtimestamp(math.ceil(time.time() + full_in_s), UTC)
                headers[start + "limit"], headers[start + "remaining"] = str(limit), str(left)
                headers[start + "reset"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
                continue
            if self._day is not None and bucket is self._requests:
                continue  # headers have room for one of them
            if self.style.headers == "groq" and bucket is self._requests:
                used, limit = limit - left, int(limit * DAY_S / MINUTE_S)
                left, full_in_s = limit - used, used * DAY_S / limit
            headers[f"x-ratelimit-limit-{bucket.unit}"] = str(limit)
            headers[f"x-ratelimit-remaining-{bucket.unit}"] = str(left)
            headers[f"x-ratelimit-reset-{bucket.unit}"] = go_duration(full_in_s)

    def words(self, wait_s: float) -> tuple[str, dict[str, Any]]:
        """What a refusal says, and what else its error has in it; for a limit of a day only."""
        day = self._day
        if day is None or self.full is not day:
            return "", {}
        limit, left, full_in_s = day.told()
        if self.style.words == "groq":
            return (
                "Rate limit reached for model `sim` in organization `org_sim` on requests per day "
                f"(RPD): Limit {limit}, Used {limit - left}, Requested 1. Please try again in "
                f"{go_duration(wait_s)}.", {},
            )  # fmt: skip
        if self.style.words == "openrouter":
            at_ms = round((time.time() + full_in_s) * 1000)
            told = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(left),
                    "X-RateLimit-Reset": str(at_ms)}  # fmt: skip
            return "Rate limit exceeded: free-models-per-day", {"metadata": {"headers": told}}
        if self.style.words == "gemini":
            quota = {"quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
                     "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
                     "quotaValue": str(limit)}  # fmt: skip
            start = "type.googleapis.com/google.rpc."
            details = [{"@type": f"{start}QuotaFailure", "violations": [quota]},
                       {"@type": f"{start}RetryInfo", "retryDelay": "5s"}]  # fmt: skip
            return "You exceeded your current quota, please check your plan", {"details": details}
        return "", {}


def go_duration(seconds: float) -> str:
    """A span of time as Go prints it.

    >>> go_duration(0.012), go_duration(1.5), go_duration(360), go_duration(3723)
    ('12ms', '1.5s', '6m0s', '1h2m3s')
    """
    ms = max(0, math.ceil(seconds * 1000 - 1e-6))
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
