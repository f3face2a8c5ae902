"""Which tests end otherwise where their clients are adopted, and whether that is ours to mend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.suites.reasons import Reason
from tests.suites.results import Outcome, Results

ABSENT = Outcome("absent", "it was not run, or its process died")


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that passes bare, and does not where its clients are adopted.

    Attributes:
        mode: How they were adopted.
        reason: Why that is in the nature of things; None: it is ours to mend.
    """

    test: str
    mode: str
    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a suite says.

    Attributes:
        tests: How many ran bare.
        bare: How many passed bare.
        adopted: How many of these passed by each way of adoption.
        refused: Clients that `wrap` would not take.
    """

    suite: str
    version: str
    tests: int
    bare: int
    adopted: Mapping[str, int]
    differences: Sequence[Difference]
    refused: Mapping[str, int]

    @property
    def ours(self) -> set[str]:
        """Tests that differ and have no reason."""
        return {found.test for found in self.differences if found.reason is None}

    @property
    def by_nature(self) -> set[str]:
        """Tests that differ only by nature."""
        return {found.test for found in self.differences} - self.ours


def candidates(bare: Results, adopted: Results) -> set[str]:
    """Tests that passed bare and did not pass otherwise; some may be fickle."""
    return bare.passed - adopted.passed


def settled(found: Iterable[str], bare: Results, adopted: Results) -> dict[str, Outcome]:
    """Of those candidates, which differ in a second pair of runs as well, and how.

    Args:
        found: Candidates.
        bare: Their second run, bare.
        adopted: And adopted.
    """
    return {
        test: adopted.tests.get(test, ABSENT)
        for test in sorted(found)
        if test in bare.passed and test not in adopted.passed
    }


def judge(
    suite: str, mode: str, outcomes: Mapping[str, Outcome], reasons: Iterable[Reason]
) -> list[Difference]:
    """Give each difference its reason, where there is one."""
    known = [reason for reason in reasons if reason.is_for(suite, mode)]
    return [
        Difference(test, mode, outcome, next((r.text for r in known if r.meets(test)), None))
        for test, outcome in outcomes.items()
    ]


def stale(suite: str, found: Iterable[Difference], reasons: Iterable[Reason]) -> list[Reason]:
    """Reasons that no difference needs any more."""
    met = list(found)
    return [
        reason
        for reason in reasons
        if reason.suite == suite
        and not any(reason.is_for(suite, one.mode) and reason.meets(one.test) for one in met)
    ]
