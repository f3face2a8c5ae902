"""``scheduler resolve``: what did a call cost that nobody heard back from?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, with_store
from scheduler.cli.output import amount, emit_json, iso, plural, say, table, tell
from scheduler.money import decimal_usd

if TYPE_CHECKING:
    from scheduler.stores.base import Store, Unknown

PAGE = 1000
EXAMPLES = """\
scheduler resolve r17 --charge '$0.02'
scheduler resolve --all --job nightly --void"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("resolve", cls=Command, epilog=EXAMPLES)(resolve)


def resolve(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="The request's key, its custom_id.", show_default=False),
    ] = None,
    charge: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="It cost this much, e.g. '$0.03'.")
    ] = None,
    void: Annotated[bool, typer.Option("--void", help="It cost nothing.")] = False,
    attempt: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="Only this attempt, by its id; repeatable."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All unknown outcomes (of --job), each alike.")
    ] = False,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="Only of this job.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Say what an unknown outcome cost, so that what it reserved counts no longer.

    'scheduler queue --state suspense' lists them. Look into the provider's own records
    first: what you say is believed, until the call's own answer comes after all.
    """
    from scheduler.errors import ConfigError
    from scheduler.money import parse_usd
    from scheduler.stats import Counts

    if (charge is None) == (not void):
        raise typer.BadParameter("say either --charge AMOUNT or --void")
    if sum((key is not None, bool(attempt), everything)) != 1:
        raise typer.BadParameter("name one of: KEY, --attempt ID, --all")
    nusd = 0 if charge is None else parse_usd(charge, "--charge")

    async def change(opened: Store) -> list[Unknown]:
        found = await _find(opened, key, attempt or (), job)
        if job is not None and not found and (await opened.counts(job)) == Counts():
            raise ConfigError("--job", f"there is no job {job!r}; nothing was changed")
        _check(found, key, attempt or (), is_charge=not void, everything=everything)
        return await _settle(opened, found, nusd)

    _tell(with_store(store, change), nusd, as_json)


async def _find(
    store: Store, key: str | None, attempts: Sequence[int], job: str | None
) -> list[Unknown]:
    found: list[Unknown] = []
    after_id = 0
    while page := await store.suspended(job=job, limit=PAGE, after_id=after_id):
        after_id = page[-1].id
        found += [
            each
            for each in page
            if (key is None or each.key == key) and (not attempts or each.id in attempts)
        ]
    return found


def _check(
    found: Sequence[Unknown], key: str | None, attempts: Sequence[int], *, is_charge: bool,
    everything: bool,
) -> None:  # fmt: skip
    """Refuse what is not clear."""
    from scheduler.errors import ConfigError

    missing = sorted(set(attempts) - {each.id for each in found})
    if missing:
        raise ConfigError("--attempt", f"{missing[0]} is no unknown outcome; nothing was changed")
    if not found and not everything:
        raise ConfigError(
            "resolve", f"no outcome is unknown for the key {key!r}; nothing was changed. "
            "'scheduler queue --state suspense' lists them",
        )  # fmt: skip
    if key is not None and is_charge and len(found) > 1:
        ids = ", ".join(str(each.id) for each in found)
        raise ConfigError(
            "resolve", f"the key {key!r} has {len(found)} attempts nobody heard back from ({ids}); "
            "nothing was changed. Charge them one by one with --attempt ID",
        )  # fmt: skip


async def _settle(store: Store, found: Sequence[Unknown], nusd: int) -> list[Unknown]:
    from scheduler.stores import acts
    from scheduler.stores.views import resolved_by_hand

    settlements = [resolved_by_hand(each, nusd, "resolved by hand") for each in found]
    done = await store.resolve(settlements, now_ms())
    resolved = [each for each, is_new in zip(found, done, strict=True) if is_new]
    who, at_ms = acts.here("resolve"), now_ms()
    await acts.note(store, *[acts.resolved(at_ms, who, each, nusd) for each in resolved])
    return resolved


def _tell(resolved: Sequence[Unknown], nusd: int, as_json: bool) -> None:
    freed_nusd = sum(each.ceiling_nusd for each in resolved) - nusd * len(resolved)
    if as_json:
        emit_json(
            {
                "resolved": [unknown_row(each) for each in resolved],
                "charged_usd": decimal_usd(nusd * len(resolved)),
                "freed_usd": decimal_usd(freed_nusd),
            }
        )
    elif not resolved:
        say("no outcome is unknown")
    else:
        each = f"{amount(nusd, 'usd')} charged" if nusd else "nothing charged"
        more = " each" if nusd and len(resolved) > 1 else ""
        now = f"{amount(freed_nusd, 'usd')} counts no longer"
        if freed_nusd < 0:
            now = f"{amount(-freed_nusd, 'usd')} more than was reserved, which counts from now on"
        tell(f"{plural(len(resolved), 'attempt')} resolved: {each}{more}; {now}")


# What an unknown outcome looks like, to programs and to people


def unknown_row(unknown: Unknown) -> dict[str, Any]:
    """One unknown outcome for programs."""
    return {
        "attempt": unknown.id,
        "id": unknown.request_id,
        "key": unknown.key,
        "job": unknown.job,
        "state": "suspense",
        "model": unknown.model,
        "provider": unknown.provider,
        "sent_at": iso(unknown.made_at_ms),
        "unknown_since": iso(unknown.suspended_at_ms),
        "ceiling_usd": decimal_usd(unknown.ceiling_nusd),
        "provider_id": unknown.provider_id,
        "why": unknown.why,
    }


def unknown_table(unknowns: Sequence[Unknown], at_ms: int) -> str:
    """Unknown outcomes for people."""
    from scheduler.duration import format_duration

    rows = [
        (
            each.id, each.key, each.model, each.provider, amount(each.ceiling_nusd, "usd"),
            format_duration(max(0, at_ms - each.made_at_ms)), each.provider_id, each.why,
        )
        for each in unknowns
    ]  # fmt: skip
    columns = ("attempt", "key", "model", "provider", "counts", "age", "provider's id", "why")
    return table(columns, rows, right="attempt counts age")
