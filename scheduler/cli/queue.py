"""``scheduler queue``: which requests wait, one by one, and why?"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.fleet import is_unserved, worker_row, worker_table
from scheduler.cli.helping import Command
from scheduler.cli.look import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    now_ms,
    store_option,
    with_store,
)
from scheduler.cli.output import amount, emit_json, iso, say, table
from scheduler.cli.resolve import unknown_row, unknown_table
from scheduler.cli.status import sentence, shortfall_row
from scheduler.guards.plain import without_password
from scheduler.money import decimal_usd
from scheduler.request import RequestState

if TYPE_CHECKING:
    from scheduler.stats import QueueRow, Unserved, WorkerStatus
    from scheduler.stores.base import Store, Unknown

SUSPENSE = "suspense"  # a state of attempts, whatever became of their requests
_NAMES = [*((each.name, each.value) for each in RequestState), ("SUSPENSE", SUSPENSE)]
State = StrEnum("State", _NAMES)  # type: ignore[misc]
LIVE = (RequestState.QUEUED, RequestState.PARKED, RequestState.RUNNING)


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("queue", cls=Command)(queue)


def queue(
    state: Annotated[
        list[State] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help=f"Only these; repeatable: {', '.join(State)}. Default: live ones.",
        ),
    ] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="Only this job's.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="Most rows.")
    ] = 100,
    workers: Annotated[
        bool, typer.Option("--workers", help="List those who send requests instead.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List requests, oldest first, with why they wait and until when.

    In the state 'suspense' are attempts whose outcome nobody knows: they keep counting.
    """
    if workers:
        _list_workers(store, as_json)
        return
    words = [each.value for each in state or LIVE]
    states = [RequestState(word) for word in words if word != SUSPENSE]

    async def read(opened: Store) -> tuple[list[QueueRow], list[Unknown], list[Unserved]]:
        # One more than shown tells whether there are more.
        rows = await opened.queue(states, now_ms(), job=job, limit=limit + 1) if states else []
        unknowns = []
        if SUSPENSE in words:
            unknowns = await opened.suspended(job=job, limit=limit + 1)
        return rows, unknowns, await opened.unserved(now_ms(), job)

    rows, unknowns, unserved = with_store(store, read)
    if as_json:
        shown = [queue_row(row, unserved) for row in rows[:limit]]
        emit_json(shown + [unknown_row(each) for each in unknowns[:limit]])
    else:
        if rows:
            print(queue_table(rows[:limit], now_ms(), store_option(store), unserved))
        if unknowns:
            print(unknown_table(unknowns[:limit], now_ms()))
            say("'scheduler resolve' says what one cost, once you have looked it up")
        if not rows and not unknowns:
            say("no request is " + " or ".join(words))
    if max(len(rows), len(unknowns)) > limit:
        say(f"… and more; --limit {limit * 10} shows more of them")


def _list_workers(store: str, as_json: bool) -> None:
    """Who sends what others submit: what they serve, since when, and when they were seen."""

    async def read(opened: Store) -> list[WorkerStatus]:
        return await opened.workers(now_ms())

    found = with_store(store, read)
    if as_json:
        emit_json([worker_row(each) for each in found])
    elif found:
        print(worker_table(found, now_ms()))
    else:
        say("no worker serves this store")


def queue_row(row: QueueRow, unserved: Sequence[Unserved] = ()) -> dict[str, Any]:
    """One request for programs."""
    return {
        "id": row.id,
        "key": row.key,
        "job": row.job,
        "state": row.state.value,
        "model": row.model,
        "provider": row.provider,
        "served": not is_unserved(row, unserved),
        "priority": row.priority,
        "tenant": row.tenant,
        "deadline": iso(row.due_at_ms),
        "submitted_at": iso(row.submitted_at_ms),
        "attempts": row.attempts,
        "ceiling_usd": decimal_usd(row.ceiling_nusd),
        "cost_usd": decimal_usd(row.cost_nusd),
        "parked_seconds": row.parked_ms / 1000,
        "shortfall": None if row.shortfall is None else shortfall_row(row.shortfall),
        "error": None if row.error is None else dict(row.error),
    }


def queue_table(
    rows: Sequence[QueueRow], at_ms: int, store: str = "", unserved: Sequence[Unserved] = ()
) -> str:
    """Requests for people; the reason is told once, where it changes."""
    from scheduler.duration import format_duration

    # What hardly anybody uses has a column where somebody does.
    has_tenants, has_dates = any(each.tenant for each in rows), any(each.due_at_ms for each in rows)
    lines, told = [], ""
    for row in rows:
        why = _why(row, at_ms, store, unserved)
        left_ms = None if row.due_at_ms is None else max(0, row.due_at_ms - at_ms)
        lines.append(
            (
                row.id,
                row.key,
                row.state.value,
                row.model,
                row.priority,
                *((row.tenant,) if has_tenants else ()),
                *((left_ms and format_duration(left_ms),) if has_dates else ()),
                row.attempts,
                amount(row.ceiling_nusd, "usd"),
                format_duration(max(0, at_ms - row.submitted_at_ms)),
                '"' if why and why == told else why,
            )
        )
        told = why
    more = [*(["tenant"] if has_tenants else []), *(["due in"] if has_dates else [])]
    columns = (
        "id", "key", "state", "model", "priority", *more, "attempts", "at most", "age", "why"
    )  # fmt: skip
    return table(columns, lines, right="id priority attempts age")


def _why(row: QueueRow, at_ms: int, store: str, unserved: Sequence[Unserved]) -> str:
    if row.shortfall is not None:
        return sentence(row.shortfall, at_ms, store)
    if is_unserved(row, unserved):
        return f"no live worker serves {row.provider!r} ({without_password(row.service)})"
    return str(row.error.get("message", "")) if row.error is not None else ""
