"""How a simulated provider limits rates, and how it tells.

One bucket per limit. Both numbers and words are those of OpenAI's headers:
``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, the reset as Go writes durations.
"""

from __future__ import annotations

import math

from scheduler.errors import ConfigError


class Bucket:
    """A rate limit: a bucket that holds one minute's worth and fills steadily.

    Attributes:
        unit: ``"requests"`` or ``"tokens"``.
        level: What is left.
    """

    def __init__(self, unit: str, per_minute: int) -> None:
        if per_minute < 1:
            raise ConfigError("rpm" if unit == "requests" else "tpm", f"{per_minute} is below 1")
        self.unit, self.per_minute = unit, per_minute
        self.level = float(per_minute)
        self.filled_at_s: float | None = None

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until `amount` is there; more than the bucket holds waits until it is full."""
        if self.filled_at_s is not None:
            passed_s = max(0.0, now_s - self.filled_at_s)
            self.level = min(self.per_minute, self.level + passed_s * self.per_minute / 60)
        self.filled_at_s = now_s
        # A hair less than whole: adding up fractions never quite gets there.
        missing = min(amount, self.per_minute) - self.level - 1e-6
        return missing * 60 / self.per_minute

    def take(self, amount: int) -> None:
        """Use it; `wait_s` said that it is there."""
        self.level -= amount

    def tell(self, headers: dict[str, str]) -> None:
        """Write limit, remaining and time until full, as OpenAI does."""
        full_in_s = (self.per_minute - self.level) * 60 / self.per_minute
        headers[f"x-ratelimit-limit-{self.unit}"] = str(self.per_minute)
        headers[f"x-ratelimit-remaining-{self.unit}"] = str(max(0, math.floor(self.level + 1e-6)))
        headers[f"x-ratelimit-reset-{self.unit}"] = go_duration(full_in_s)


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
