"""The table of frameworks in the page on adoption: what is written there is what is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "adoption.md"
HEADER = "| you use | the line | parks and goes on | streams | ledger = bill | cannot |"
YES, NO, MORE = "✓", "–", "≥"


@dataclass(frozen=True)
class Row:
    """One framework.

    Attributes:
        name: As it is called.
        code: The line that adopts it, as Python.
        parks: Whether a call waits for money, and then ends with its answer.
        streams: Whether one does that comes in pieces; None: it has none that are tried.
        is_exact: Whether the ledger has the provider's bill; else it has at least that.
        cannot: What else there is to know.
    """

    name: str
    code: str
    parks: bool
    streams: bool | None
    is_exact: bool
    cannot: str

    @property
    def test(self) -> str:
        """The name of the test that runs it."""
        return "test_" + re.sub(r"\W+", "_", self.name.lower()).strip("_")


def read_rows(page: str | None = None) -> dict[str, Row]:
    """The rows by name."""
    _, _, rest = (page or PAGE.read_text()).partition(HEADER)
    lines = rest.split("\n\n", 1)[0].splitlines()[2:]
    rows = [_read(line) for line in lines]
    return {row.name: row for row in rows}


def _read(line: str) -> Row:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
    name, code, parks, streams, exact, cannot = cells
    assert parks in (YES, NO), line
    assert streams in (YES, NO, ""), line
    assert exact in (YES, MORE), line
    return Row(
        name.partition(" (")[0].strip("`"),
        "\n".join(re.findall(r"`([^`]+)`", code)),
        parks == YES,
        {YES: True, NO: False, "": None}[streams],
        exact == YES,
        cannot,
    )
