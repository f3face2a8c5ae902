"""Places that are free, and gates where somebody waits already, within one turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scheduler.admission.lane import NEVER, Candidate, LaneKey

if TYPE_CHECKING:
    from scheduler.limits import Metered


class Places:
    """How many may still start at each provider, and where nobody may for now.

    Attributes:
        free: Free places by provider; lent ones are none of these.
        opens_at_ms: When the first gate opens that holds somebody back; `NEVER`: none, or
            only when calls under way end.
    """

    def __init__(self, slots: Mapping[str, int]) -> None:
        self.free = dict(slots)
        self.opens_at_ms = NEVER
        # Gate where somebody waits → until when; None: the one before all models of a provider.
        self._held: dict[tuple[str, str | None], float] = {}

    def has_one(self, key: LaneKey) -> bool:
        """Whether one of that lane has a place: a free one, or a lent one."""
        return self.free.get(key.provider, 0) > 0 or (key.is_lent and key.provider in self.free)

    def take(self, key: LaneKey) -> None:
        """One of that lane starts."""
        self.free[key.provider] -= 1

    def is_held(self, provider: str, model: str) -> bool:
        """Whether somebody waits at a gate that all of that model have to pass."""
        held = self._held
        return bool(held) and ((provider, model) in held or (provider, None) in held)

    def hold_back(
        self, gates: Sequence[Metered], key: LaneKey, candidate: Candidate, now_ms: int
    ) -> bool:
        """Whether a gate is shut for the candidate, or for somebody before it.

        With a lent place it passes whoever waits for a place.
        """
        opens_at_ms = 0.0
        for gate in gates:
            name = gate.provider, None if gate.is_front else gate.model
            if self._held:
                until_ms = self._held.get(name)
                if until_ms is not None and not (key.is_lent and until_ms == NEVER):
                    return True
            at_ms = gate.opens_at_ms(candidate.tokens, now_ms, key.is_lent)
            if at_ms > now_ms:
                self._held[name] = at_ms
                opens_at_ms = max(opens_at_ms, at_ms)
        if not opens_at_ms:
            return False
        self.opens_at_ms = min(self.opens_at_ms, opens_at_ms)
        return True
