"""``scheduler status``: what waits, why, until when, and what was spent?"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.budget import budget_rows, budget_table
from scheduler.cli.fleet import unserved_row, unserved_sentence, worker_row, worker_table
from scheduler.cli.helping import Command
from scheduler.cli.look import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    now_ms,
    opened,
    store_option,
    with_store,
)
from scheduler.cli.moving import Moving
from scheduler.cli.output import amount, amounts, emit_json, facts, iso, local, plural, until
from scheduler.cli.progress import provider_sentence
from scheduler.guards.plain import about, plain_line, without_password
from scheduler.money import decimal_usd, format_usd

if TYPE_CHECKING:
    from scheduler.limits import GateStatus
    from scheduler.shortfall import Shortfall
    from scheduler.stats import (
        BudgetStatus,
        Counts,
        SpendRow,
        TenantStatus,
        Unserved,
        WorkerStatus,
    )
    from scheduler.stores.base import Store

MOST_TENANTS = 8  # told one by one
SAMPLE = 200  # parked requests looked at to tell why they wait
REFRESH_S = 1.0
SPEND_EVERY = 10  # refreshes; summing the spend reads every reservation


@dataclass(frozen=True, slots=True)
class Picture:
    """A store at one instant."""

    store: str
    at_ms: int
    counts: Counts
    shortfalls: tuple[Shortfall, ...]
    limited: tuple[GateStatus, ...]
    budgets: tuple[BudgetStatus, ...]
    spend: tuple[SpendRow, ...]
    workers: tuple[WorkerStatus, ...] = ()
    unserved: tuple[Unserved, ...] = ()
    tenants: tuple[TenantStatus, ...] = ()


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("status", cls=Command)(status)


def status(
    store: StoreOption = DEFAULT_STORE,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="Count only this job's.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh every second until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what waits and why, what runs, the budgets, what was spent, and who sends."""
    if watch:
        _watch(store, job, as_json)
        return

    async def read(opened_store: Store) -> Picture:
        return await look(opened_store, store, job)

    picture = with_store(store, read)
    if as_json:
        emit_json(status_row(picture))
    else:
        print(describe(picture), flush=True)


async def look(
    store: Store, url: str, job: str | None = None, spend: Sequence[SpendRow] | None = None
) -> Picture:
    """Take a picture of an open store; `spend` None: sum that, too."""
    from scheduler.request import RequestState

    at_ms = now_ms()
    counts = await store.counts(job)
    shortfalls: dict[tuple[str, str], Shortfall] = {}
    if counts.parked:
        for row in await store.queue([RequestState.PARKED], at_ms, job=job, limit=SAMPLE):
            lack = row.shortfall
            if lack is not None:
                shortfalls.setdefault((lack.reason, lack.budget), lack)
    return Picture(
        store=without_password(url),
        at_ms=at_ms,
        counts=counts,
        shortfalls=tuple(shortfalls.values()),
        limited=tuple(await store.limited(at_ms)),
        budgets=tuple(await store.budgets(at_ms)),
        spend=tuple(await store.spend("model") if spend is None else spend),
        workers=tuple(await store.workers(at_ms)),
        unserved=tuple(await store.unserved(at_ms, job)),
        tenants=tuple(await store.tenants(at_ms)),
    )


def status_row(picture: Picture) -> dict[str, Any]:
    """A picture for programs."""
    counts = picture.counts
    return {
        "store": picture.store,
        "at": iso(picture.at_ms),
        "requests": {
            "queued": counts.queued,
            "parked": counts.parked,
            "running": counts.running,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
            "total": counts.total,
        },
        "parked": [
            {
                "reason": reason,
                "requests": count,
                "shortfalls": [shortfall_row(s) for s in picture.shortfalls if s.reason == reason],
            }
            for reason, count in counts.parked_by_reason.items()
        ],
        "limited": [
            {
                "provider": each.provider,
                "model": each.model or None,
                "why": each.why,
                "until": iso(each.until_ms, "UTC"),
            }
            for each in picture.limited
        ],
        "workers": [worker_row(each) for each in picture.workers],
        "unserved": [unserved_row(each) for each in picture.unserved],
        "tenants": [
            {
                "tenant": each.tenant,
                "waiting": each.waiting,
                "served_usd": decimal_usd(each.served_nusd),
            }
            for each in picture.tenants
        ],
        "budgets": [row for budget in picture.budgets for row in budget_rows(budget)],
        "spend": {
            "attempts": sum(row.attempts for row in picture.spend),
            "posted_usd": decimal_usd(sum(row.posted_nusd for row in picture.spend)),
            "reserved_usd": decimal_usd(sum(row.reserved_nusd for row in picture.spend)),
            "suspense_usd": decimal_usd(sum(row.suspense_nusd for row in picture.spend)),
        },
    }


def shortfall_row(lack: Shortfall) -> dict[str, Any]:
    """Why something waits, for programs."""
    return {
        "reason": lack.reason.value,
        "budget": None if lack.is_of_provider else lack.budget,
        "unit": lack.unit.value,
        **amounts(
            lack.unit.value,
            limit=lack.limit,
            posted=lack.posted,
            reserved=lack.reserved,
            needed=lack.needed,
            missing=lack.missing,
        ),
        "window": lack.window,
        "provider": lack.budget if lack.is_of_provider else None,
        "words": lack.words,
        "resumes_at": iso(lack.resumes_at_ms, lack.zone),
    }


def sentence(lack: Shortfall, at_ms: int, store: str = "") -> str:
    """Why something waits, how much is missing and until when, for people; `store` as `store_option` has it."""
    unit, name = lack.unit.value, repr(lack.budget)
    missing = f"{amount(lack.missing, unit)} missing of the {amount(lack.needed, unit)} it may need"
    spent = f"{amount(lack.posted, unit)} of {amount(lack.limit, unit)} spent"
    if lack.is_of_provider:
        return provider_sentence(lack, at_ms)
    match lack.reason.value:
        case "paused":
            return f"budget {name} is paused: scheduler budget resume {about(lack.budget, store)}"
        case "larger_than_limit":
            return (
                f"the next request may need {amount(lack.needed, unit)}, more than budget {name} "
                f"ever allows ({amount(lack.limit, unit)}); only a raise helps"
            )
        case "window_spent":
            return (
                f"budget {name}: {spent}, {missing}; "
                f"resumes {until(lack.resumes_at_ms, lack.zone, at_ms)}"
            )
        case "paced":
            share = amount(lack.allowed or 0, unit)
            return (
                f"budget {name}: {spent}, {share} of it allowed by now, {missing}; "
                f"resumes {until(lack.resumes_at_ms, lack.zone, at_ms)}"
            )
    return f"budget {name}: {spent}, {missing}; resumes when running calls settle"


_RAISED = ("window_spent", "paced", "larger_than_limit")  # where a raise lets them go on


def describe(picture: Picture, width: int | None = None) -> str:
    """A picture for people, in lines of at most `width` cells; None: as stdout has."""
    counts, store = picture.counts, store_option(picture.store)
    parts = [
        f"{counts.succeeded:,} done",
        f"{counts.failed:,} failed",
        *(f"{n:,} {word}" for n, word in _odd_ends(counts)),
        f"{counts.running:,} running",
        f"{counts.queued:,} queued",
        f"{counts.parked:,} parked",
    ]
    lines = [
        f"store     {picture.store}, at {local(picture.at_ms, 'UTC'):%Y-%m-%d %H:%M:%S} UTC",
        f"requests  {', '.join(parts)}",
        f"spend     {_spend_line(picture.spend)}",
    ]
    for reason, count in counts.parked_by_reason.items():
        lines.append(f"parked    {plural(count, 'request')} ({reason})")
        whys = [s for s in picture.shortfalls if s.reason == reason]
        lines += [f"          {sentence(s, picture.at_ms, store)}" for s in whys]
    for each in picture.limited:
        if not each.is_closed:
            again = until(each.until_ms, "UTC", picture.at_ms) if each.until_ms else "calls end"
            lines.append(f"limited   {each.sentence}; goes on {again}")
    if name := next((s.budget for s in picture.shortfalls if s.reason in _RAISED), None):
        what = about(name, store, " 'MORE'")
        lines.append(f"          to go on now, raise it: scheduler budget set {what}")
    lines += [f"unserved  {unserved_sentence(each, store)}" for each in picture.unserved]
    lines += _tenant_lines(picture.tenants)
    if picture.budgets:
        table = ["", *budget_table(picture.budgets, picture.at_ms).split("\n")]
    else:
        table = ["budgets   none: spend is tracked, not limited"]
    if picture.workers:
        table += ["", *worker_table(picture.workers, picture.at_ms).split("\n")]
    return "\n".join([*facts(lines, width), *map(plain_line, table)])


def _tenant_lines(tenants: Sequence[TenantStatus]) -> list[str]:
    """What each was served in this hour and the one before, and how many wait."""
    told = [
        f"{each.tenant or '(no tag)'} {format_usd(each.served_nusd)}"
        + (f" ({each.waiting:,} waiting)" if each.waiting else "")
        for each in tenants[:MOST_TENANTS]
    ]
    if len(tenants) > MOST_TENANTS:
        rest = tenants[MOST_TENANTS:]
        waiting = sum(each.waiting for each in rest)
        told.append(
            f"{len(rest):,} more {format_usd(sum(each.served_nusd for each in rest))}"
            + (f" ({waiting:,} waiting)" if waiting else "")
        )
    return [f"tenants   {', '.join(told)}, since an hour or two"] if told else []


def _odd_ends(counts: Counts) -> list[tuple[int, str]]:
    ends = [(counts.cancelled, "cancelled"), (counts.expired, "expired")]
    return [end for end in ends if end[0]]


def _spend_line(spend: Sequence[SpendRow]) -> str:
    posted, reserved, suspense = (
        sum(getattr(row, name) for row in spend)
        for name in ("posted_nusd", "reserved_nusd", "suspense_nusd")
    )
    line = f"{format_usd(posted)} spent, {format_usd(reserved)} reserved"
    return (
        f"{line} ({format_usd(suspense)} of it for calls with unknown outcome)"
        if suspense
        else line
    )


def _watch(url: str, job: str | None, as_json: bool) -> None:
    """Look once a second; Ctrl-C is the way to end it, and no failure.

    A terminal is redrawn; a pipe gets one picture after the other, JSON as a line each.
    """
    if as_json:
        show: Callable[[Picture], None] | None = _print_json
    elif sys.stdout.isatty():
        show = None
    else:
        show = _print_plain

    async def look_on() -> None:
        async with opened(url) as store:
            if show is not None:
                async for picture in _pictures(store, url, job):
                    show(picture)
            else:
                await _redraw(_pictures(store, url, job))

    try:
        asyncio.run(look_on())
    except KeyboardInterrupt:
        return


async def _pictures(store: Store, url: str, job: str | None) -> AsyncIterator[Picture]:
    """A picture a second."""
    spend: Sequence[SpendRow] | None = None
    for turn in itertools.count():
        picture = await look(store, url, job, spend if turn % SPEND_EVERY else None)
        spend = picture.spend
        yield picture
        await asyncio.sleep(REFRESH_S)


def _print_json(picture: Picture) -> None:
    emit_json(status_row(picture), indent=None)


def _print_plain(picture: Picture) -> None:
    print(describe(picture), end="\n\n", flush=True)


async def _redraw(pictures: AsyncIterator[Picture]) -> None:
    moving = Moving(sys.stdout)
    try:
        async for picture in pictures:
            moving.draw(describe(picture, moving.width - 1).split("\n"))
    finally:
        moving.close()
