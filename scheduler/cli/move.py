"""``scheduler move``: how does one go on with a file's budgets, spend and queue in PostgreSQL?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.exits import Exit
from scheduler.cli.helping import Command
from scheduler.cli.look import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    hide_password,
    now_ms,
    opened,
    store_option,
    store_path,
    with_store,
)
from scheduler.cli.output import emit_json, plural, say, tell
from scheduler.errors import ConfigError
from scheduler.guards.plain import without_password

if TYPE_CHECKING:
    from scheduler.stats import Audit
    from scheduler.stores.base import Store

EXAMPLES = "scheduler move --to postgresql://db.example.com/llm"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("move", cls=Command, epilog=EXAMPLES)(move)


def move(
    to: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="SCHEDULER_MOVE_TO",
            help="A database without a store: postgresql://HOST/DB.",
            callback=hide_password,
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Move a file's budgets, spend, queue and answers into PostgreSQL.

    The file is put aside as FILE.moved, so that nobody spends the same money there.
    """
    path = store_path(store)
    if path is None:
        raise ConfigError("--store", f"{without_password(store)} is not a file; a file is moved")
    if not to.startswith(("postgresql://", "postgres://")):
        raise ConfigError("--to", f"{without_password(to)!r} is not a postgresql:// URL")
    from scheduler.stores import open_store

    open_store(to)  # or it says what is to be installed
    from scheduler.stores.postgres.mover import move as move_all

    asyncio.run(_settle(store))
    moved = move_all(path, to)
    found = with_store(to, _audit)
    if as_json:
        emit_json({"rows": moved.rows, "was_there": moved.was_there, "kept": str(moved.kept),
                   "clean": not found.discrepancies})  # fmt: skip
    else:
        rows = moved.rows
        tell(f"moved {plural(rows['budgets'], 'budget')}, {plural(rows['requests'], 'request')} and "
             f"{plural(rows['reservations'], 'reservation')} to {without_password(to)}")  # fmt: skip
        say(f"{path.name} is {moved.kept.name} now; go on with{store_option(to)}")
        if found.discrepancies:
            say(f"OFF: {plural(len(found.discrepancies), 'balance')} differ; see 'scheduler audit'")
    if found.discrepancies:
        raise typer.Exit(Exit.FAILED)


async def _settle(url: str) -> None:
    """Have what dead processes left be as it is after any next run, and an older file brought up."""
    from scheduler.stores.base import Turn

    async with opened(url) as store:
        await store.turn(Turn(now_ms()))


async def _audit(store: Store) -> Audit:
    return await store.audit(now_ms())
