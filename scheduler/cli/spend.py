"""``scheduler spend``: where did the money go?"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, with_store
from scheduler.cli.output import amount, emit_json, say, table
from scheduler.guards.plain import one_line
from scheduler.money import decimal_usd

if TYPE_CHECKING:
    from scheduler.stats import SpendRow
    from scheduler.stores.base import Store


HEADINGS = "model|job|budget|tag|tag:NAME"
OVERLAP = ("budget", "tag")  # an attempt may be under several of them


def by_of(text: str) -> str:
    """A heading to sum under. Raises `typer.BadParameter`."""
    if text in HEADINGS.split("|")[:4] or (text.startswith("tag:") and len(text) > 4):
        return text
    raise typer.BadParameter(f"{text!r} is not one of {', '.join(HEADINGS.split('|'))}")


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("spend", cls=Command, epilog="scheduler spend --by model --since 7d")(spend)


def spend(
    by: Annotated[
        str, typer.Option("--by", metavar=HEADINGS, parser=by_of, help="What to sum by.")
    ] = "model",
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="How far back: 7d, 12h, or a date such as 2026-11-01 (UTC).",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Sum what was spent by model, job, budget or tag; by tags in whole quarters of an hour."""
    since_ms = 0 if since is None else since_instant(since, now_ms())

    async def read(opened: Store) -> list[SpendRow]:
        return await opened.spend(by, since_ms)

    rows = with_store(store, read)
    if as_json:
        emit_json([spend_row(row, by) for row in rows])
    elif as_csv:
        _write_csv([spend_row(row, by) for row in rows], by.partition(":")[0])
    elif rows:
        print(spend_table(rows, by))
    else:
        say("nothing was spent" + ("" if since is None else f" since {since}"))


def since_instant(text: str, at_ms: int) -> int:
    """The instant ``--since`` means, in Unix milliseconds.

    Raises:
        ConfigError: Neither a duration nor a date.
    """
    from datetime import UTC, datetime

    from scheduler.duration import parse_duration_ms
    from scheduler.errors import ConfigError

    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return int(date.timestamp() * 1000)
    try:
        return max(0, at_ms - parse_duration_ms(text, "--since"))
    except ConfigError:
        raise ConfigError(
            "--since", f"{text!r} is neither a duration such as 7d nor a date such as 2026-11-01"
        ) from None


def spend_row(row: SpendRow, by: str) -> dict[str, Any]:
    """One heading for programs; `suspense_usd` is the part of `reserved_usd` nobody knows."""
    return {
        by.partition(":")[0]: row.name,
        "attempts": row.attempts,
        "spent_usd": decimal_usd(row.posted_nusd),
        "reserved_usd": decimal_usd(row.reserved_nusd),
        "suspense_usd": decimal_usd(row.suspense_nusd),
        "tokens": row.tokens,
    }


def spend_table(rows: Sequence[SpendRow], by: str) -> str:
    """Headings for people; no total of those under several of which an attempt may be."""
    lines: list[tuple[object, ...]] = [
        (
            row.name or "(none)",
            f"{row.attempts:,}",
            f"{row.tokens:,}",
            amount(row.posted_nusd, "usd"),
            amount(row.reserved_nusd, "usd"),
            amount(row.suspense_nusd, "usd"),
        )
        for row in rows
    ]
    if by not in OVERLAP and len(rows) > 1:
        lines.append(
            (
                "total",
                f"{sum(row.attempts for row in rows):,}",
                f"{sum(row.tokens for row in rows):,}",
                amount(sum(row.posted_nusd for row in rows), "usd"),
                amount(sum(row.reserved_nusd for row in rows), "usd"),
                amount(sum(row.suspense_nusd for row in rows), "usd"),
            )
        )
    columns = (by.partition(":")[2] or by, "attempts", "tokens", "spent", "reserved", "unknown")
    return table(columns, lines, right="attempts tokens spent reserved unknown")


def _write_csv(rows: list[dict[str, Any]], by: str) -> None:
    columns = (by, "attempts", "spent_usd", "reserved_usd", "suspense_usd", "tokens")
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, by: _inert(row[by])})


def _inert(name: str) -> str:
    """A name in one plain line, that a spreadsheet does not take for a formula."""
    name = one_line(name)
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") else name
