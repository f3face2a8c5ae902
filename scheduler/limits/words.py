"""What gates hear, what they are told beforehand, and what they tell people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from scheduler.limits.meter import Limits, Seen

PROBE_LEASE_MS = 900_000  # whoever probes may die of it: another one tries then
NOTHING = -1  # no size is as small
MOST_TRIED = 8
MOST_MODELS = 64


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
        size: What was asked for, as `size_of` tells it.
        affords: What size there is credit for, where a refusal says so; None: it does not.
        is_free: Whether it provably cost nothing.
        is_timed: Whether it took as long as the provider did; False: it waited for others, too.
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
    size: int = 0
    affords: int | None = None
    is_free: bool = False
    is_timed: bool = True


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


def size_of(nusd: int, tokens: int) -> int:
    """How much a request asks of its provider's credit: its most in money, else in tokens.

    >>> size_of(1_000, 50), size_of(0, 50)
    (1000, 50)
    """
    return nusd or tokens


Rank = tuple[int, ...]


@dataclass(slots=True)
class Closed:
    """Nothing goes but a probe, and what there is credit for.

    Of a provider without credit it notes which sizes were refused, and which answered. What is
    as small as is said, or twice as large as was shown, goes; the rest waits, and the smallest of
    it tries. A model may be refused for itself, such as by a key of its own: what another model
    was answered says so.

    Attributes:
        reason: ``"provider_credit"`` or ``"provider_down"``, as in `ParkReason`.
        words: The provider's own.
        probe_at_ms: When one request may try.
        pause_ms: The time between probes, which widens.
        probing: The request that tries now; None: nobody.
        allowed: What is no larger goes, unless it was refused.
        refused: By model, the smallest size that was refused; the latest last.
        seen: By model, the largest size that was answered since.
        tried: Requests that were refused, or fail again and again, the latest last.
        in_vain: Probes in a row that were.
    """

    reason: str
    words: str
    since_ms: int
    probe_at_ms: int
    pause_ms: int
    probing: int | None = None
    probing_since_ms: int = 0
    allowed: int = NOTHING
    refused: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    tried: list[int] = field(default_factory=list)
    in_vain: int = 0

    @classmethod
    def read(cls, fields: Sequence[Any]) -> Closed:
        """What was stored. Raises `ValueError` and kin for nonsense; older rows say less."""
        closed = cls(*fields)
        if not (isinstance(closed.refused, dict) and isinstance(closed.seen, dict)):
            raise TypeError("what was refused is told by model")
        closed.allowed, closed.in_vain = int(closed.allowed), int(closed.in_vain)
        closed.refused = {str(name): int(size) for name, size in closed.refused.items()}
        closed.seen = {str(name): int(size) for name, size in closed.seen.items()}
        closed.tried = [int(each) for each in closed.tried]
        return closed

    @property
    def is_of_credit(self) -> bool:
        """Whether it is for want of credit, so that sizes matter."""
        return self.reason == "provider_credit"

    @property
    def is_ajar(self) -> bool:
        """Whether others than a probe go, as long as they are small enough."""
        return self.allowed >= 0

    def shut(self, probe_at_ms: int) -> None:
        """Let nothing go but a probe, after all."""
        self.allowed, self.probe_at_ms = NOTHING, max(self.probe_at_ms, probe_at_ms)
        self.seen.clear()

    def reach(self, model: str) -> int:
        """The largest size of that model that goes without being a probe."""
        refused = self.refused.get(model)
        return self.allowed if refused is None else min(self.allowed, refused - 1)

    def rank(self, model: str, priority: int, request_id: int, size: int) -> Rank:
        """Who is to try: the lowest.

        Of a provider without credit the smallest, but every other time one that was not tried
        lately, of another model if there is one: it may be a matter of one request, or of one
        model. Of one that does not answer the first in line that does not fail again and again.
        """
        was_tried = self.tried.index(request_id) if request_id in self.tried else -1
        if not self.is_of_credit:
            return was_tried, priority, request_id
        refused = self.refused.get(model)
        if self.in_vain % 2:
            turn = NOTHING if refused is None else list(self.refused).index(model)
            return turn, was_tried, size, request_id
        is_known = refused is not None and size >= refused and not self.in_vain
        return is_known, size, request_id

    def note_tried(self, request_id: int) -> None:
        """A request was refused, or fails again and again."""
        self.tried = [*(each for each in self.tried if each != request_id), request_id]
        del self.tried[:-MOST_TRIED]

    def refuse(self, model: str, size: int, affords: int | None) -> None:
        """There was no credit for a request of that size."""
        least = self.refused.pop(model, size)
        self.refused[model] = min(least, size)  # the latest last
        if len(self.refused) > MOST_MODELS:
            del self.refused[next(iter(self.refused))]
        dearest = max(self.seen.values(), default=NOTHING)
        if affords is not None and affords >= size:
            affords = None
        if model not in self.seen and size <= dearest:
            # Others were answered as much: it is a matter of this model.
            self.refused[model] = 0 if affords is None else min(least, affords + 1)
        elif affords is not None:
            self.allowed = affords
            self.seen.clear()
        elif size <= (self.seen.get(model, NOTHING) if self.seen else self.allowed):
            self.allowed = NOTHING  # there was more of it before
            self.seen.clear()

    def answered(self, model: str, size: int) -> bool:
        """A probe was answered; whether nothing is known any more that holds anybody back."""
        self.in_vain = 0
        self.grow(model, size)
        if self.refused.get(model, size + 1) <= size:
            del self.refused[model]
        return not self.refused

    def grow(self, model: str, size: int) -> bool:
        """A request was answered that came after it was closed; whether that says anything new."""
        if size <= self.seen.get(model, NOTHING):
            return False
        self.seen[model] = size
        if len(self.seen) > MOST_MODELS:
            del self.seen[next(iter(self.seen))]
        self.allowed = max(self.allowed, 2 * size)
        return True

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
