"""What of a budget is kept for more urgent requests, and how it is released. Pure.

Of a calendar window, at a share F of its time (or of its pace), the last

    kept(F) = share · limit · (1 − F)        in sixty steps, of which the last is nothing

is kept for requests at least as urgent as said: what they may be expected to still ask for. So nothing is
left unused at the reset. In rolling windows and totals nobody knows how far one is: there it is constant.

>>> keep = Keep.parse("20% for interactive")
>>> str(keep), keep.share_from(0), keep.share_from(20)
('keep 20% for interactive', 0.0, 0.2)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.errors import ConfigError

STEPS = 60  # in which it is released
WORDS = {"interactive": 0, "normal": 10, "batch": 20, "idle": 30}  # as `request.Priority`
_ONE = re.compile(r"(\d{1,3}(?:\.\d+)?)\s*%\s*for\s+(\w+)", re.IGNORECASE)
_FORM = "as in 'keep 20% for interactive', or 'keep 20% for interactive and 10% for normal'"


@dataclass(frozen=True, slots=True)
class Keep:
    """Shares of a limit, each for requests of a priority or more urgent ones.

    Attributes:
        parts: Priority and share in ten-thousandths, the most urgent first.
    """

    parts: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Make it from the grammar's words behind ``keep``. Raises `ConfigError`."""
        found = {}
        for each in re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE):
            match = _ONE.fullmatch(each.strip())
            if match is None:
                raise ConfigError("keep", f"{text!r} does not say how much for whom, {_FORM}")
            found[match[2]] = float(match[1]) / 100
        return cls.of(found)

    @classmethod
    def of(cls, shares: Mapping[str, float]) -> Keep:
        """Make it from shares between 0 and 1, by a word for a priority or a number as text."""
        parts = {}
        for word, share in shares.items():
            name = str(word).lower()
            if name not in WORDS and not (name.isdigit() and int(name) < 99):
                raise ConfigError("keep", f"{word!r} is not one of {', '.join(WORDS)}")
            if isinstance(share, bool) or not 0 < share < 1:
                raise ConfigError(
                    "keep", f"{share!r} for {word!r} is no share between 0 and 1, {_FORM}"
                )
            parts[WORDS.get(name, int(name) if name.isdigit() else 0)] = round(share * 10_000)
        if not parts or sum(parts.values()) >= 10_000:
            raise ConfigError("keep", f"leaves nothing for anybody else, or keeps nothing, {_FORM}")
        return cls(tuple(sorted(parts.items())))

    def __str__(self) -> str:
        return "keep " + " and ".join(
            f"{share / 100:g}% for {word_of(priority)}" for priority, share in self.parts
        )

    def share_from(self, priority: int) -> float:
        """Which share is kept from requests of a priority."""
        return self._from(priority) / 10_000

    def _from(self, priority: int) -> int:
        return sum(share for urgent, share in self.parts if urgent < priority)

    def amount(self, limit: int, priority: int, step: int) -> int:
        """What is kept from requests of a priority, in a step: from 0 to `STEPS` - 1."""
        return limit * self._from(priority) * (STEPS - 1 - step) // (10_000 * (STEPS - 1))

    def kept_for(self, priority: int) -> str:
        """For whom it is kept from requests of a priority, in words."""
        return " and ".join(word_of(urgent) for urgent, _ in self.parts if urgent < priority)


def word_of(priority: int) -> str:
    """A priority in a word, or as a number."""
    return next((word for word, its in WORDS.items() if its == priority), str(priority))
