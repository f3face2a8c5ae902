"""Why some tests differ by nature: kept in `by_nature.toml`, a pattern of ids and a reason each."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property

MODES = ("wrapped", "instrumented")


@dataclass(frozen=True)
class Reason:
    """Why the tests of a pattern differ.

    Attributes:
        pattern: Of their ids; ``*`` is any text, all else is itself.
        mode: The way of adoption in which they do; None: both.
    """

    suite: str
    pattern: str
    text: str
    mode: str | None = None

    @cached_property
    def _found(self) -> re.Pattern[str]:
        return re.compile(".*".join(map(re.escape, self.pattern.split("*"))), re.DOTALL)

    def is_for(self, suite: str, mode: str) -> bool:
        """Whether it speaks of that suite, adopted that way."""
        return self.suite == suite and self.mode in (None, mode)

    def meets(self, test: str) -> bool:
        """Whether it speaks of that test."""
        return self._found.fullmatch(test) is not None


def read(text: str) -> list[Reason]:
    """Read `by_nature.toml`.

    Raises:
        ValueError: Something in it is not what it should be.
    """
    reasons = []
    for number, entry in enumerate(tomllib.loads(text).get("test", ()), 1):
        unknown = set(entry) - {"suite", "ids", "mode", "reason"}
        lacking = {"suite", "ids", "reason"} - set(entry)
        if unknown or lacking:
            raise ValueError(f"entry {number} has {sorted(unknown)}, and lacks {sorted(lacking)}")
        mode = entry.get("mode")
        if mode not in (None, *MODES):
            raise ValueError(f"entry {number}: {mode!r} is not one of {', '.join(MODES)}")
        if not entry["reason"].strip() or not entry["ids"]:
            raise ValueError(f"entry {number} gives no reason, or no ids")
        why = entry["reason"].strip()
        reasons += [Reason(entry["suite"], pattern, why, mode) for pattern in entry["ids"]]
    return reasons
