"""What gates hear, what they are told beforehand, and what they tell people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from scheduler.limits import Limits, Seen

PROBE_LEASE_MS = 900_000  # whoever probes may die of it: another one tries then


class Heard(StrEnum):
    """What came back from one attempt, as far as the gate is concerned."""

    ANSWERED = "answered"
    LIMITED = "limited"  # too many requests or tokens, or too busy
    NO_CREDIT = "no_credit"
    BUSY = "busy"  # too much for it now, of anybody's; it did no work
    DOWN = "down"  # no answer, or an error of the server
    OTHER = "other"  # refused for its own sake
    UNSENT = "unsent"


@dataclass(slots=True)
class Report:
    """What one attempt told about its provider.

    Attributes:
        at_ms: When it was heard.
        usage: Input and output tokens used, input read from a cache; None: not told.
        words: The provider's own, where it refused.
    """

    request_id: int
    provider: str
    model: str
    heard: Heard
    at_ms: int
    usage: tuple[int, int, int] | None = None
    seen: tuple[Seen, ...] = ()
    retry_after_ms: int | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """What is known of a provider before anything is sent.

    Attributes:
        limits: For all its models together.
        model_limits: For single models.
        counting: A name in `limits.COUNTING`.
        concurrency: Most calls under way at once.
    """

    limits: Limits = field(default_factory=Limits)
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    counting: str = "default"
    concurrency: int = 64


@dataclass(slots=True)
class Closed:
    """Nothing goes but a probe.

    Attributes:
        reason: ``"provider_credit"`` or ``"provider_down"``, as in `ParkReason`.
        words: The provider's own.
        probe_at_ms: When one request may try.
        pause_ms: The time between probes, which widens.
        probing: The request that tries now; None: nobody.
    """

    reason: str
    words: str
    since_ms: int
    probe_at_ms: int
    pause_ms: int
    probing: int | None = None
    probing_since_ms: int = 0

    def next_at_ms(self, now_ms: int) -> int:
        """When somebody may try next."""
        if self.probing is None:
            return self.probe_at_ms
        return max(now_ms + 1, self.probing_since_ms + PROBE_LEASE_MS)

    def hurry(self) -> None:
        """Let somebody try now."""
        self.probe_at_ms, self.probing = 0, None

    def may_probe(self, now_ms: int) -> bool:
        """Whether a request may try now."""
        if self.probing is not None:
            return now_ms - self.probing_since_ms >= PROBE_LEASE_MS
        return now_ms >= self.probe_at_ms


class GateStatus(NamedTuple):
    """What a gate holds back now, for people.

    `until_ms` None: until calls under way end, or somebody acts.
    """

    provider: str
    model: str
    why: str
    until_ms: int | None
    is_closed: bool = False

    @property
    def sentence(self) -> str:
        """One line: which model of which provider, and why."""
        return f"{self.provider}{' ' * bool(self.model)}{self.model}: {self.why}"
