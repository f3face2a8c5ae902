"""All gates of one process, by provider and model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from scheduler.limits.front import Front
from scheduler.limits.gate import Gate
from scheduler.limits.meter import COUNTING, Limits
from scheduler.limits.metered import Metered
from scheduler.limits.words import Closed, GateStatus, ProviderRules, Report

Pair = tuple[Front, Gate] | tuple[()]


class Gates:
    """All gates of one process. A provider without rules has none, and nothing waits for it."""

    def __init__(self, rules: Mapping[str, ProviderRules] | None = None) -> None:
        self._rules = dict(rules or {})
        self._fronts: dict[str, Front] = {}
        self._hurried: set[str] = set()  # to be tried at once
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._me, self._company = 0, frozenset[int]()
        self._held: set[Gate] = set()  # where more would go, as of the last turn
        self._held_now: set[Gate] = set()
        self._dirty: list[Metered] = []  # those that differ from what processes have in common

    def add(self, rules: Mapping[str, ProviderRules]) -> None:
        """There are more providers."""
        self._rules |= rules

    @property
    def has_rules(self) -> bool:
        """Whether there are any gates at all."""
        return bool(self._rules)

    def __iter__(self) -> Iterator[Front | Gate]:
        yield from self._fronts.values()
        for pair in self._pairs.values():
            yield from pair[1:]

    def of(self, provider: str, model: str) -> Pair:
        """The gates before a model: its provider's, and its own; none without rules."""
        pair = self._pairs.get((provider, model))
        if pair is None and provider in self._rules:
            pair = self._pairs[provider, model] = self._make(provider, model)
        return pair or ()

    def _make(self, provider: str, model: str) -> Pair:
        rules = self._rules[provider]
        counting = COUNTING.get(rules.counting, COUNTING["default"])
        front = self.front(provider)
        assert front is not None
        is_known = bool(front.meters)
        limits = rules.model_limits.get(model, Limits())
        gate = Gate(provider, model, counting, limits, rules.concurrency, is_known)
        gate.noted, gate.held = self._dirty.append, self._held_now.add
        gate.meet(self._me, self._company)
        return front, gate

    def meet(self, me: int, company: Collection[int]) -> None:
        """These processes work on the same store now, and this is one of them."""
        if (me, company) == (self._me, self._company):
            return
        self._me, self._company = me, frozenset(company)
        for pair in self._pairs.values():
            for gate in pair[1:]:
                gate.meet(me, self._company)

    def front(self, provider: str) -> Front | None:
        """What stands before a provider; None: there are no rules for it."""
        front = self._fronts.get(provider)
        if front is None and provider in self._rules:
            rules = self._rules[provider]
            counting = COUNTING.get(rules.counting, COUNTING["default"])
            front = self._fronts[provider] = Front(provider, counting, rules.limits)
            front.noted = self._dirty.append
        return front

    def take_dirty(self) -> list[Metered]:
        """Gates that changed since the last call, to be told to other processes."""
        # Said when it begins and when it ends, so that those who wait do not wake each other.
        for held in self._held ^ self._held_now:
            held.waits, held.is_dirty = held in self._held_now, True
        self._held = set(self._held_now)
        self._held_now.clear()
        # One by one: an answer that begins meanwhile may note another.
        dirty = [self._dirty.pop() for _ in range(len(self._dirty))]
        for gate in dirty:
            gate.is_dirty = False
        return dirty

    def find(self, provider: str, model: str, is_front: bool) -> Front | Gate | None:
        """The gate of that name; None: there are no rules for it."""
        if is_front and provider in self._fronts:
            return self._fronts[provider]
        pair = self.of(provider, model)
        return pair[0 if is_front else 1] if pair else None

    def hear(self, reports: Iterable[Report]) -> set[str]:
        """Take in what came back; returns the closed providers of which there is news.

        They are open again, or it is another time at which somebody may try.
        """
        news, self._hurried = self._hurried, set()
        for provider in news:
            front = self._fronts.get(provider)
            if front is not None and front.closed is not None:
                front.closed.hurry()
                front.is_dirty = True
        for report in reports:
            pair = self.of(report.provider, report.model)
            if not pair:
                continue
            closed = pair[0].closed
            if closed is None:
                for gate in pair:
                    gate.hear(report)
                continue
            allowed, is_probe = closed.allowed, closed.probing == report.request_id
            for gate in pair:
                gate.hear(report)
            now = pair[0].closed
            if is_probe or now is None or now.allowed > allowed:
                news.add(report.provider)
        return news

    def closed(self) -> dict[str, Closed]:
        """What closes providers that let through a probe only, and what there is credit for."""
        return {name: each.closed for name, each in self._fronts.items() if each.closed is not None}

    def is_closed(self, provider: str) -> bool:
        """Whether a provider lets through a probe only, and what there is credit for."""
        front = self._fronts.get(provider)
        return front is not None and front.closed is not None

    def is_shut(self, provider: str) -> bool:
        """Whether nothing but a probe goes to a provider."""
        closed = self._fronts[provider].closed if provider in self._fronts else None
        return closed is not None and not closed.is_ajar

    def closed_since(self, provider: str) -> int | None:
        """Since when nothing but a probe goes to a provider, in Unix milliseconds; None: it is open."""
        front = self._fronts.get(provider)
        return None if front is None or front.closed is None else front.closed.since_ms

    def probing(self, provider: str) -> int | None:
        """The request that tries a closed provider now; None: none does, or it is open."""
        front = self._fronts.get(provider)
        return None if front is None or front.closed is None else front.closed.probing

    def probe(self, provider: str) -> bool:
        """Let one request try in the next turn, where nothing else goes; whether there is need."""
        if not self.is_closed(provider):
            return False
        self._hurried.add(provider)
        return True

    def statuses(self, now_ms: int) -> list[GateStatus]:
        """What gates hold back now."""
        return [status for gate in self if (status := gate.status(now_ms)) is not None]

    def known(self) -> dict[tuple[str, str], Limits]:
        """The limits that were told or met, by provider and model; of a front without a model."""
        return {(gate.provider, gate.model): gate.limits for gate in self if gate.meters}

    def why_held(self, provider: str, model: str, now_ms: int) -> str | None:
        """Why requests for a model wait now; None: no gate holds them back."""
        held = (each for each in self.statuses(now_ms) if each.provider == provider)
        return next((each.sentence for each in held if each.model in ("", model)), None)
