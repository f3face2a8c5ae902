"""What becomes of a call nobody heard back from: pure rules.

Its reservation keeps counting until somebody knows more, in this order:

    1. the provider, if it can be asked (`Provider.look_up`)
    2. the policy of its provider, once its time has come
    3. a person (`scheduler resolve`, `Scheduler.resolve`)
    4. the call's own answer, should it come late

Whoever of the first three comes first is believed, until the answer itself comes: a provider
that is asked while the call is still under way may not know of it yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.duration import format_duration, parse_duration_ms
from scheduler.errors import ConfigError

FIRST_LOOK_MS = 2_000  # the provider may need a moment before it knows
LONGEST_LOOK_MS = 600_000
GIVE_UP_LOOKING_MS = 86_400_000


class Assumption(StrEnum):
    """What is assumed of a call whose outcome nobody knows."""

    CHARGE = "charge"  # it cost all that was reserved
    INPUT_ONLY = "input_only"  # its prompt was read, nothing was written
    RELEASE = "release"  # it cost nothing


@dataclass(frozen=True, slots=True)
class UnknownPolicy:
    """When to assume what; `after_ms` is counted from when the outcome became unknown."""

    assumption: Assumption = Assumption.CHARGE
    after_ms: int = 0

    def __str__(self) -> str:
        after = f" after {format_duration(self.after_ms)}" if self.after_ms else ""
        return f"{self.assumption}{after}"

    def is_due(self, suspended_at_ms: int, now_ms: int) -> bool:
        """Whether to assume it now. To charge means to leave the reservation as it is."""
        return (
            self.assumption is not Assumption.CHARGE and now_ms >= suspended_at_ms + self.after_ms
        )


def parse_policy(text: str) -> UnknownPolicy:
    """``charge``, ``input_only``, ``input_only after 10m``, or ``release after 1h``.

    Raises:
        ConfigError: Anything else. To release at once is refused: what was just sent is
            often answered, and billed, a moment later.

    >>> str(parse_policy("release after 1h")), str(parse_policy("charge"))
    ('release after 1h', 'charge')
    """
    word, is_later, duration = text.strip().partition(" after ")
    try:
        assumption = Assumption(word.strip())
    except ValueError:
        raise ConfigError(
            "on_unknown",
            f"{text!r} is not 'charge', 'input_only', 'input_only after 10m' or 'release after 1h'",
        ) from None
    after_ms = parse_duration_ms(duration.strip(), "on_unknown") if is_later else 0
    if assumption is Assumption.CHARGE and is_later:
        raise ConfigError("on_unknown", f"{text!r}: 'charge' needs no time, it counts all along")
    if assumption is Assumption.RELEASE and not after_ms:
        raise ConfigError("on_unknown", f"{text!r} needs a time, as in 'release after 1h'")
    return UnknownPolicy(assumption, after_ms)


def next_look_ms(suspended_at_ms: int, now_ms: int) -> int | None:
    """When to ask the provider again, on a widening timer; None: no more."""
    age_ms = max(0, now_ms - suspended_at_ms)
    if age_ms > GIVE_UP_LOOKING_MS:
        return None
    return now_ms + min(LONGEST_LOOK_MS, max(FIRST_LOOK_MS, age_ms))
