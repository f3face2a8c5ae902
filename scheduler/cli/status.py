"""``scheduler status``: what waits, why, until when, and what was spent?"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli import burning, dates
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
from scheduler.guards.plain import about, plain_line
from scheduler.money import decimal_usd, format_usd
from scheduler.telemetry.picture import Picture, look

if TYPE_CHECKING:
    from scheduler.rehearsal import Finish
    from scheduler.shortfall import Shortfall
    from scheduler.stats import Counts, SpendRow, TenantStatus
    from scheduler.stores.base import Store

MOST_TENANTS = 8  # told one by one
REFRESH_S = 1.0
LONG_EVERY = 30  # refreshes; summing the spend reads every reservation


@dataclass(frozen=True, slots=True)
class Seen(Picture):
    """A picture, with what takes longer to find out.

    Attributes:
        finish: When all that waits will be done; None: nothing does.
        burning: Budgets that are being used up fast.
    """

    finish: Finish | None = None
    burning: tuple[burning.Rate, ...] = ()


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

    async def read(opened_store: Store) -> Seen:
        return await see(opened_store, store, job)

    picture = with_store(store, read)
    if as_json:
        emit_json(status_row(picture))
    else:
        print(describe(picture), flush=True)


async def see(store: Store, url: str, job: str | None = None, last: Seen | None = None) -> Seen:
    """Look at an open store; what takes long is taken over from the last time, if that is given."""
    at_ms = now_ms()
    picture = await look(store, url, at_ms, job=job, spend=None if last is None else last.spend)
    if last is not None:
        finish, rates = last.finish, last.burning
    else:
        finish = await _finish(store, at_ms, picture.counts)
        rates = tuple(await burning.rates(store, picture.budgets, at_ms))
    found = {each.name: getattr(picture, each.name) for each in fields(picture)}
    return Seen(**found, finish=finish, burning=rates)


async def _finish(store: Store, at_ms: int, counts: Counts) -> Finish | None:
    """When all that waits will be done; None: nothing waits."""
    if not counts.waiting:
        return None
    from scheduler.rehearsal import FEW, finish
    from scheduler.rehearsal.remaining import remaining

    scene = await remaining(store, at_ms)
    return await asyncio.to_thread(finish, scene, most=FEW)


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
        **_seen_row(picture),
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
                "weight": each.weight,
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


def _seen_row(picture: Picture) -> dict[str, Any]:
    if not isinstance(picture, Seen):
        return {}
    finish = None if picture.finish is None else dates.row(picture.finish, _zone(picture))
    return {"finish": finish, "burning": [burning.row(each) for each in picture.burning]}


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
        case "kept":
            return (
                f"budget {name}: {spent}, the rest is kept for {lack.words} requests, {missing}; "
                f"resumes {until(lack.resumes_at_ms, lack.zone, at_ms)}"
            )
        case "paced":
            share = amount(lack.allowed or 0, unit)
            return (
                f"budget {name}: {spent}, {share} of it allowed by now, {missing}; "
                f"resumes {until(lack.resumes_at_ms, lack.zone, at_ms)}"
            )
    return f"budget {name}: {spent}, {missing}; resumes when running calls settle"


_RAISED = ("window_spent", "kept", "paced", "larger_than_limit")  # where a raise lets them go on


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
    if isinstance(picture, Seen):
        lines += _seen_lines(picture)
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


def _seen_lines(picture: Seen) -> list[str]:
    lines = []
    if picture.finish is not None:
        when = dates.sentence(picture.finish, _zone(picture), picture.at_ms)
        lines.append(f"finish    {when}; {dates.basis(picture.finish)}")
    return lines + [
        f"burning   {burning.sentence(each, picture.at_ms)}" for each in picture.burning
    ]


def _zone(picture: Picture) -> str:
    """The zone in which those who look at its budgets live."""
    return next((c.cap.window.zone for each in picture.budgets for c in each.caps), "UTC")


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
        show: Callable[[Seen], None] | None = _print_json
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


async def _pictures(store: Store, url: str, job: str | None) -> AsyncIterator[Seen]:
    """A picture a second."""
    picture: Seen | None = None
    for turn in itertools.count():
        picture = await see(store, url, job, picture if turn % LONG_EVERY else None)
        yield picture
        await asyncio.sleep(REFRESH_S)


def _print_json(picture: Seen) -> None:
    emit_json(status_row(picture), indent=None)


def _print_plain(picture: Seen) -> None:
    print(describe(picture), end="\n\n", flush=True)


async def _redraw(pictures: AsyncIterator[Seen]) -> None:
    moving = Moving(sys.stdout)
    try:
        async for picture in pictures:
            moving.draw(describe(picture, moving.width - 1).split("\n"))
    finally:
        moving.close()
