"""``scheduler budget log``: who changed what?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, with_store
from scheduler.cli.output import emit_json, iso, say, table

if TYPE_CHECKING:
    from scheduler.stores.acts import Act
    from scheduler.stores.base import Store


def log(
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, help="So many, the newest.")
    ] = 50,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what: limits, pauses, removals, and what unknown outcomes cost."""

    async def read(opened: Store) -> list[Act]:
        from scheduler.stores.acts import noted

        return (await noted(opened))[:limit]

    found = with_store(store, read)
    if as_json:
        emit_json([{"at": iso(act.at_ms, "UTC"), **_row(act)} for act in found])
    elif found:
        rows = [(iso(act.at_ms, "UTC"), *_row(act).values()) for act in found]
        print(table(("when", "who", "what", "of", "from", "to"), rows))
    else:
        say("nothing was changed yet")


def _row(act: Act) -> dict[str, str]:
    return {
        "who": act.who, "what": act.what, "name": act.name, "before": act.before, "after": act.after,
    }  # fmt: skip
