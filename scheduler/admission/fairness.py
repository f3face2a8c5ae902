"""Sharing between tenants in dollars: whose turn it is, by start-time fair queueing.

A *tenant* is what requests have in common that carry the same value of one tag (``user``, say). At a
provider and within a priority each has a virtual time, which grows by what is reserved for it, divided
by its weight, and falls by what a call turns out to cost less. Whoever has the earliest *start* goes
first, so of those who always wait each gets money in proportion to its weight, however many requests
it has, and however dear they are.

Each place (a provider and a priority) has a *clock*: the latest start of those who went in turn. Nobody
starts before it, but by what was given back to them: so one who had nothing to ask, or nothing that
might go, has saved nothing up, and is served at once. What is given back to a tenant that waits for
nothing only takes it back to the clock (`Tenant.rise`).

    start    max(its time, the clock) − what was given back
    admit    its time += ceiling / weight; what was given back is used up first
    settle   what was given back += (ceiling − cost) / weight; what cost more is added to its time

Where calls cost no money, tokens stand for it, or one for each. All is integer: virtual units are
nano-dollars × `SCALE` / weight.

>>> clock = Clock()
>>> ann, bob = Tenant(clock, SCALE), Tenant(clock, SCALE // 2)
>>> ann.admit(100), bob.admit(100), ann.start // SCALE, bob.start // SCALE
(None, None, 100, 50)
>>> ann.settle(100, 30), ann.start // SCALE
(None, 30)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.admission.lane import LaneKey
    from scheduler.ledger.account import Needs

SCALE = 1 << 20
LEAST_WEIGHT, MOST_WEIGHT = 1e-3, 1e6
MOST_NAME = 200  # of a tenant: longer ones are told by their beginning and a fingerprint
SPAN_MS = 3_600_000  # of what is told of a tenant lately: this hour and the one before
ALL = ""  # all providers together
FEWEST_KEPT = 1_000  # tenants of whom nothing waits, before any are forgotten


class TenantKey(NamedTuple):
    """A tenant at one provider, in one priority."""

    provider: str
    priority: int
    tenant: str


Place = tuple[str, int]  # a provider and a priority


class Fairness:
    """Who shares with whom.

    Args:
        by: The tag whose values tell tenants apart; requests without it are one tenant more, ``""``.
        weights: Of tenants that are to get more, or less, than the others, which weigh 1.

    Raises:
        ConfigError: No tag, or a weight that makes no sense.
    """

    def __init__(self, by: str, weights: Mapping[str, float] | None = None) -> None:
        if not isinstance(by, str) or not by:
            raise ConfigError("fair_by", f"{by!r} is not the name of a tag, as 'user'")
        self.by = by
        self._units: dict[str, int] = {}
        for name, weight in (weights or {}).items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and math.isfinite(weight) and LEAST_WEIGHT <= weight <= MOST_WEIGHT):
                least, most = f"{LEAST_WEIGHT:g}", f"{MOST_WEIGHT:,.0f}"
                raise ConfigError(
                    "weights", f"{weight!r} of {name!r} is not a number between {least} and {most}"
                )
            self._units[named(name)] = max(1, round(SCALE / weight))

    def tenant_of(self, tags: Mapping[str, str]) -> str:
        """The tenant of a request with these tags."""
        return named(tags.get(self.by, ""))

    def units(self, tenant: str) -> int:
        """How far a tenant's time goes for each nano-dollar."""
        return self._units.get(tenant, SCALE)

    def weight(self, tenant: str) -> float:
        """What a tenant weighs, as it is told."""
        return weight_of(self.units(tenant))


def fairness_of(by: str | None, weights: Mapping[str, float] | None) -> Fairness | None:
    """Who shares with whom, as it was said; None: nobody does. Raises `ConfigError`."""
    if by is None and weights:
        raise ConfigError(
            "weights", "say nothing without fair_by: the tag that tells tenants apart"
        )
    return None if by is None else Fairness(by, weights)


def weight_of(units: int) -> float:
    """The weight of a tenant whose time goes so far for each nano-dollar.

    >>> weight_of(round(SCALE / 3)), weight_of(SCALE)
    (3.0, 1.0)
    """
    return float(f"{SCALE / units:.4g}")


def named(value: object) -> str:
    r"""A tag's value, so that it can be stored and found again.

    >>> named("ann"), named(7), named("a\0b"), len(named("x" * 5_000))
    ('ann', '7', 'a\\x00b', 200)
    """
    text = value if isinstance(value, str) else str(value)
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if len(text) > MOST_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        text = f"{text[: MOST_NAME - len(digest) - 1]}…{digest}"
    return text


def size_for(needs: Needs) -> int:
    """What a request counts in its tenant's time: money, else tokens, else one."""
    return needs[0] or needs[1] or 1


def cost_for(needs: Needs, nusd: int, tokens: int) -> int:
    """What an attempt took that was posted, in what `size_for` counted of it."""
    if needs[0]:
        return nusd
    return tokens if needs[1] else 1


class Clock:
    """The virtual time at one provider, in one priority.

    Attributes:
        whole: Of all providers together, in that priority: it goes on with each of theirs. It
            makes turns comparable of those who wait for the same money at several providers.
    """

    __slots__ = ("is_changed", "now", "whole")

    def __init__(self, whole: Clock | None = None) -> None:
        self.now = 0
        self.whole = whole
        self.is_changed = False

    def go_on(self, now: int) -> None:
        """It is later."""
        if self.whole is not None:
            self.whole.go_on(self.whole.now + now - self.now)
        self.now, self.is_changed = now, True


class Tenant:
    """How far one tenant is, in one place.

    Attributes:
        at: Its virtual time, as if all calls cost what was reserved but for what it has used up of...
        back: ...what was given back to it, which it has not used yet.
        units: How far its time goes for each nano-dollar.
        served: By hour, for the newest two: nano-dollars (or tokens) reserved and spent.
    """

    __slots__ = ("at", "back", "clock", "hour_ms", "is_changed", "served", "units")

    def __init__(self, clock: Clock, units: int) -> None:
        self.clock, self.units = clock, units
        self.at = self.back = 0
        self.hour_ms, self.served = 0, (0, 0)
        self.is_changed = False

    @property
    def start(self) -> int:
        """Where it would start now: whoever starts first goes first."""
        at, now = self.at, self.clock.now
        return (at if at > now else now) - self.back

    @property
    def lead(self) -> int:
        """How far it is ahead of its place's clock: among providers, the least goes first."""
        return self.start - self.clock.now

    @property
    def turn(self) -> int:
        """When its turn is, by the clock of all providers."""
        whole = self.clock.whole
        return self.lead + (0 if whole is None else whole.now)

    def admit(self, size: int, now_ms: int = 0, *, is_in_turn: bool = True) -> None:
        """So much is reserved for it.

        Args:
            size: See `size_for`.
            now_ms: The time.
            is_in_turn: It is its turn. False: it went before others for another reason than that.
        """
        start, amount, clock = self.start, size * self.units, self.clock
        self.at = max(self.at, clock.now)
        used = min(self.back, amount)
        self.back -= used
        self.at += amount - used
        if is_in_turn and start > clock.now:
            clock.go_on(start)
        self._serve(size, now_ms)

    def settle(self, size: int, cost: int, now_ms: int = 0) -> None:
        """What was reserved for it has cost so much."""
        self.back += (size - cost) * self.units
        if self.back < 0:
            self.at, self.back = self.at - self.back, 0
        self._serve(cost - size, now_ms)

    def rise(self) -> None:
        """It has something to ask again, after it had nothing: it has saved nothing up."""
        self.at, self.back = max(self.at - self.back, self.clock.now), 0
        self.is_changed = True

    def _serve(self, size: int, now_ms: int) -> None:
        this, before = self.lately(now_ms)
        self.hour_ms, self.served = now_ms // SPAN_MS * SPAN_MS, (this + size, before)
        self.is_changed = True

    def lately(self, now_ms: int) -> tuple[int, int]:
        """What was served in this hour, and in the one before."""
        hours = (now_ms // SPAN_MS * SPAN_MS - self.hour_ms) // SPAN_MS
        if hours <= 0:
            return self.served
        return (0, self.served[0] if hours == 1 else 0)

    def is_forgotten(self, now_ms: int) -> bool:
        """Whether it makes no difference any more that it was ever here, if it asks nothing now."""
        return self.at - self.back <= self.clock.now or not any(self.lately(now_ms))


class Shares:
    """What is known of tenants: in memory all there is, of a database what was read last.

    Attributes:
        fairness: Who shares with whom; None: there are no tenants, and all start alike.
    """

    def __init__(self) -> None:
        self.fairness: Fairness | None = None
        self.tenants: dict[TenantKey, Tenant] = {}
        self.clocks: dict[Place, Clock] = {}
        self._most = FEWEST_KEPT

    def of(self, key: TenantKey) -> Tenant:
        """One tenant."""
        tenant = self.tenants.get(key)
        if tenant is None:
            assert self.fairness is not None
            units = self.fairness.units(key.tenant)
            tenant = self.tenants[key] = Tenant(self.clock(key.provider, key.priority), units)
        return tenant

    def clock(self, provider: str, priority: int) -> Clock:
        """The clock of one place."""
        place = (provider, priority)
        clock = self.clocks.get(place)
        if clock is None:
            clock = self.clocks[place] = Clock(self.clock(ALL, priority) if provider else None)
        return clock

    def start(self, provider: str, priority: int, tenant: str) -> int:
        """Where a tenant would start now; one that is not known, at the clock."""
        if self.fairness is None:
            return 0
        known = self.tenants.get(TenantKey(provider, priority, tenant))
        if known is not None:
            return known.start
        clock = self.clocks.get((provider, priority))
        return 0 if clock is None else clock.now

    def forget(self, active: Iterable[TenantKey], now_ms: int) -> None:
        """Forget those of whom nothing waits and of whom nothing matters, once there are many."""
        if len(self.tenants) <= self._most:
            return
        kept = set(active)
        for key in [each for each in self.tenants if each not in kept]:
            if self.tenants[key].is_forgotten(now_ms):
                del self.tenants[key]
        self._most = max(FEWEST_KEPT, 2 * len(self.tenants))

    def clear(self) -> None:
        """Nothing is known any more."""
        self.tenants.clear()
        self.clocks.clear()


def tenant_key(key: LaneKey) -> TenantKey:
    """The tenant whose requests are in a lane."""
    return TenantKey(key.provider, key.priority, key.tenant)
