"""The report, for a terminal, for the page about adoption and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from tests.suites.difference import Difference, Verdict
from tests.suites.results import Outcome

BEGIN, END = "<!-- suites: made by `make suites` -->", "<!-- /suites -->"
HEAD = ("suite", "version", "tests", "bare", "wrapped", "instrumented", "ours", "by nature")


def rows(verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """A row of text for each suite."""
    return [
        (
            verdict.suite, verdict.version, f"{verdict.tests:,}", f"{verdict.bare:,}",
            *(f"{verdict.adopted[mode]:,}" for mode in ("wrapped", "instrumented")),
            str(len(verdict.ours)), str(len(verdict.by_nature)),
        )
        for verdict in verdicts
    ]  # fmt: skip


def table(verdicts: Sequence[Verdict]) -> str:
    """For a terminal."""
    lines = [HEAD, *rows(verdicts)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(verdicts: Sequence[Verdict]) -> str:
    """For a page: the table, and why tests differ by nature."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * (len(HEAD) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(verdicts)]
    reasons: dict[str, set[str]] = {}
    for verdict in verdicts:
        for found in verdict.differences:
            if found.reason is not None and found.test not in verdict.ours:
                reasons.setdefault(found.reason, set()).add(f"{verdict.suite} {found.test}")
    if reasons:
        lines += ["", "By nature:", ""]
        lines += [
            f"- {reason} ({len(tests)})"
            for reason, tests in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
    return "\n".join(lines)


def spliced(page: str, made: str) -> str:
    """The page with the report between its markers.

    Raises:
        ValueError: It has no markers.
    """
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def listing(differences: Iterable[Difference]) -> str:
    """Those that are ours, each with what it failed by."""
    return "\n".join(
        f"  {found.mode:<12}  {found.test}\n                {found.outcome.last_line}"
        for found in differences
        if found.reason is None
    )


def as_data(verdict: Verdict) -> dict[str, Any]:
    """For programs."""
    return {**asdict(verdict), "ours": sorted(verdict.ours), "by_nature": sorted(verdict.by_nature)}


def from_data(data: Mapping[str, Any]) -> Verdict:
    """What `as_data` made."""
    known = {field.name: data[field.name] for field in fields(Verdict)}
    differences = [
        Difference(**{**found, "outcome": Outcome(**found["outcome"])})
        for found in data["differences"]
    ]
    return Verdict(**{**known, "differences": differences})
