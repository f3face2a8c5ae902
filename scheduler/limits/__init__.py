"""May a request go to its provider now? What holds it back that is not money; pure.

A *gate* stands before a provider, and one before each of its models. It is shut for

    a limit      of requests or tokens a minute, given or learned from headers: `meter`, `windows`
    a pause      the provider said when to come back
    no credit    the provider says its own account is empty, or not enough for what was asked:
                 what is known to be small enough goes, else one probe on a widening timer
    down         it does not answer at all: likewise

Where no limit is known, the number of calls under way adapts: it grows by what succeeds and
shrinks when the provider refuses by surprise, and calls start evenly spaced.

Gates are part of what a store decides on: a claim takes from them in the same transaction
that reserves the money, so processes that share a store share a provider's limits. They are
advice, not law: the provider corrects them, nothing but time is lost by an error.
"""

from scheduler.limits.front import DOWN_AFTER, FIRST_PROBE_MS, LONGEST_PROBE_MS, Front
from scheduler.limits.gate import FIRST_WINDOW, MARGIN_MS, NEVER, Gate
from scheduler.limits.meter import Limits
from scheduler.limits.metered import Metered
from scheduler.limits.registry import Gates, Pair
from scheduler.limits.words import (
    MOST_TRIED,
    NOTHING,
    PROBE_LEASE_MS,
    Closed,
    GateStatus,
    Heard,
    ProviderRules,
    Rank,
    Report,
    size_of,
)

__all__ = [
    "DOWN_AFTER", "FIRST_PROBE_MS", "FIRST_WINDOW", "LONGEST_PROBE_MS", "MARGIN_MS", "MOST_TRIED",
    "NEVER", "NOTHING", "PROBE_LEASE_MS", "Closed", "Front", "Gate", "GateStatus", "Gates", "Heard",
    "Limits", "Metered", "Pair", "ProviderRules", "Rank", "Report", "size_of",
]  # fmt: skip
