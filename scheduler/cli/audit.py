"""``scheduler audit``: do the balances agree with the reservations they come from?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from scheduler.cli.exits import Exit
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, with_store
from scheduler.cli.output import amount, amounts, emit_json, iso, plural, say, table, tell

if TYPE_CHECKING:
    from scheduler.stats import Audit, Discrepancy
    from scheduler.stores.base import Store


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("audit", cls=Command)(audit)


def audit(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Recompute every balance, and what was spent by what, from the reservations; exit 1 if one is off."""

    async def read(opened: Store) -> Audit:
        return await opened.audit(now_ms())

    found = with_store(store, read)
    if as_json:
        emit_json(audit_row(found))
    else:
        _tell(found)
    if found.discrepancies:
        raise typer.Exit(Exit.FAILED)


def audit_row(found: Audit) -> dict[str, Any]:
    """An audit for programs."""
    return {
        "clean": not found.discrepancies,
        "balances": found.balances,
        "reservations": found.reservations,
        "overruns": found.overruns,
        "discrepancies": [_row(each) for each in found.discrepancies],
    }


def _row(off: Discrepancy) -> dict[str, Any]:
    return {
        "budget": off.budget,
        "cap": off.cap,
        "unit": off.unit.value,
        "window_start": iso(off.window_start_ms),
        "what": off.what,
        **amounts(off.unit.value, stored=off.stored, recomputed=off.recomputed),
    }


def _tell(found: Audit) -> None:
    checked = (
        f"{plural(found.balances, 'balance')} from {plural(found.reservations, 'reservation')}"
    )
    overruns = (
        f"; {plural(found.overruns, 'call')} cost more than reserved" if found.overruns else ""
    )
    if not found.discrepancies:
        tell(f"clean: recomputed {checked}, all equal{overruns}")
        return
    columns = ("budget", "limit", "window start", "what", "stored", "recomputed")
    rows = [
        (
            off.budget,
            off.cap,
            iso(off.window_start_ms) if off.window_start_ms else None,
            off.what,
            amount(off.stored, off.unit.value),
            amount(off.recomputed, off.unit.value),
        )
        for off in found.discrepancies
    ]
    print(table(columns, rows, right="stored recomputed"))
    say(f"OFF: {plural(len(found.discrepancies), 'balance')} differ, of {checked}{overruns}")
