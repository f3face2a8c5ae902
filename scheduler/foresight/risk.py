"""How sure one wants to be that a budget holds while calls count at less than their ceilings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Risk:
    """One preset.

    Attributes:
        sigmas: So many standard deviations are kept beyond what is expected; more, where sums are
            skewed.
        pad: And so much of the largest gap between a ceiling and what is expected.
        stretch: At most so many times what is left may be promised in full.
        warm: So many calls have to have ended before less than the ceiling counts.
    """

    name: str
    sigmas: float
    pad: float
    stretch: int
    warm: int = 50


PRESETS = {
    "low": Risk("low", 4, 1.0, 8),
    "default": Risk("default", 3, 0.5, 24),
    "high": Risk("high", 2, 0.0, 48),
}
"""By name; with ``"none"`` ceilings count."""
