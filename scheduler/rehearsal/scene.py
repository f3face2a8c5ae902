"""What is rehearsed: who waits, for whose money, and who answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from scheduler.limits import Limits
from scheduler.rehearsal.lore import Lore
from scheduler.stats import CapStatus

if TYPE_CHECKING:
    from random import Random

MOST_ASKS = 2_000  # of a group that are remembered
AT_ONCE = 64  # calls, of who does not say


class Ask(NamedTuple):
    """What one request may come to, and what is expected of it; `output` is the cap in its body."""

    ceiling_nusd: int
    ceiling_tokens: int = 0
    expected_nusd: int = 0
    input: int = 0
    output: int = 0


@dataclass(slots=True)
class Group:
    """Requests that wait in one lane.

    Attributes:
        budgets: The names of those that they draw on.
        count: How many they are.
        asks: Some of them, evenly drawn; all, where they are few.
        told: How many were looked at; of all these it is known what is expected of them together.
    """

    provider: str
    model: str
    priority: int
    budgets: tuple[str, ...]
    count: int = 0
    asks: list[Ask] = field(default_factory=list)
    told: int = 0
    _expected_nusd: int = 0
    _input: int = 0

    @property
    def is_sampled(self) -> bool:
        """Whether of some of them nothing is known but that others of them were drawn by chance."""
        return self.told < self.count

    def lacks(self, asks: Sequence[Ask]) -> tuple[float, float]:
        """How much more is expected of one of all that were told than of these; and of its input."""
        if not (self.told and asks):
            return 0.0, 0.0
        nusd = sum(each.expected_nusd for each in asks) / len(asks)
        tokens = sum(each.input for each in asks) / len(asks)
        return self._expected_nusd / self.told - nusd, self._input / self.told - tokens

    def add(self, ask: Ask, rng: Random) -> None:
        """Count one more, and remember it as likely as any other."""
        self.count += 1
        self.told += 1
        self._expected_nusd += ask.expected_nusd
        self._input += ask.input
        if len(self.asks) < MOST_ASKS:
            self.asks.append(ask)
        elif (place := rng.randrange(self.told)) < MOST_ASKS:
            self.asks[place] = ask


@dataclass(frozen=True, slots=True)
class Purse:
    """A budget, with the balances of its caps."""

    name: str
    caps: tuple[CapStatus, ...]
    risk: str = "none"
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Desk:
    """A provider: how many calls at once, and what is known of its limits."""

    name: str
    at_once: int = AT_ONCE
    limits: Limits = field(default_factory=Limits)
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    counting: str = "default"


@dataclass(slots=True)
class Scene:
    """All that is needed to say when it will be done.

    Attributes:
        desks: Providers by name; one that is not among them takes 64 calls at once.
        lore: What is known of calls like these.
        begins: Whether a run of it is to begin: where a provider's limits are not known it starts
            with few calls at once.
    """

    now_ms: int
    groups: Sequence[Group]
    purses: Sequence[Purse] = ()
    desks: Mapping[str, Desk] = field(default_factory=dict)
    lore: Lore = field(default_factory=Lore)
    begins: bool = False

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(each.count for each in self.groups)

    def desk(self, name: str) -> Desk:
        """A provider."""
        return self.desks.get(name) or Desk(name)
