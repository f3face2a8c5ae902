"""How the tests of one run ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended; where its teardown failed it failed, whatever was before.

    Attributes:
        word: ``"passed"``, ``"failed"`` or ``"skipped"``.
        error: What it failed by, whole.
        text: And where, as pytest tells it.
    """

    word: str
    error: str = ""
    text: str = ""

    @property
    def last_line(self) -> str:
        """What it failed by, in one line."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[0][:300] if lines else "no error was told"


@dataclass(slots=True)
class Results:
    """How the tests of one run ended, by id.

    Attributes:
        broken: What could not even be collected, with its error.
        refused: Clients that `wrap` would not take, which stayed as they were.
    """

    tests: dict[str, Outcome] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> set[str]:
        """Who passed."""
        return {name for name, outcome in self.tests.items() if outcome.word == "passed"}


def read(lines: Iterable[str]) -> Results:
    """Read what the plugin wrote."""
    results = Results()
    for text in lines:
        if not text.strip():
            continue
        line = json.loads(text)
        if "refused" in line:
            results.refused[f"{line['refused']}: {line['error']}"] += 1
            continue
        outcome = Outcome(line["outcome"], line["error"], line["text"])
        if line["when"] == "collect":
            results.broken[line["id"]] = outcome.text
        elif line["id"] not in results.tests or outcome.word == "failed":
            results.tests[line["id"]] = outcome
    return results
