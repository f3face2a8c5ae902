"""``scheduler budget``: which limits are there, and how does one change them from outside?

What these commands write, a running ``scheduler run`` on the same store notices
within its poll interval: a raise lets parked requests go on, a lower limit cancels
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli import changes
from scheduler.cli.helping import Command, Group
from scheduler.cli.look import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    now_ms,
    store_path,
    with_store,
)
from scheduler.cli.options import ConfigOption
from scheduler.cli.output import (
    amount,
    amounts,
    bar,
    emit_json,
    facts,
    iso,
    plural,
    say,
    table,
    tell,
    until,
)
from scheduler.guards.plain import one_line, without_password

if TYPE_CHECKING:
    from scheduler.budget import Budget, Cap
    from scheduler.stats import BudgetStatus, CapStatus, QueueRow
    from scheduler.stores.base import Store

SET_EXAMPLES = """\
scheduler budget set default '$20'
scheduler budget set team '$100/month @Europe/Athens' --create"""
EXPLAIN_EXAMPLES = """\
scheduler budget explain '$5/hour,$50/day'
scheduler budget explain --model openrouter:openai/gpt-4o --tag team=a"""
SAMPLE = 1000  # parked requests looked at to count those of one budget

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the budget.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the group of commands to the root."""
    group = typer.Typer(
        cls=Group,
        help="List budgets; change, pause, remove and explain them; who did.",
        no_args_is_help=True,
    )
    group.command("list", cls=Command)(list_budgets)
    group.command("set", cls=Command, epilog=SET_EXAMPLES)(set_limit)
    group.command("pause", cls=Command)(pause)
    group.command("resume", cls=Command)(resume)
    group.command("remove", cls=Command)(remove)
    group.command("log", cls=Command)(changes.log)
    group.command("explain", cls=Command, epilog=EXPLAIN_EXAMPLES)(explain)
    app.add_typer(group, name="budget")


def list_budgets(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show every budget: limit, spent, reserved, available, and when it resets."""

    async def read(opened: Store) -> list[BudgetStatus]:
        return await opened.budgets(now_ms())

    found = with_store(store, read)
    if as_json:
        emit_json([row for status in found for row in budget_rows(status)])
    elif found:
        print(budget_table(found, now_ms()))
    else:
        say("there is no budget: spend is tracked, not limited")


def set_limit(
    name: Name,
    spec: Annotated[
        str,
        typer.Argument(
            metavar="LIMIT",
            help="'$20' keeps the window, '$20/day' replaces it, 'none' is no limit.",
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    create: Annotated[
        bool, typer.Option("--create", help="Make the budget if it does not exist.")
    ] = False,
    risk: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="none, low, default or high; not given: as it is."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a limit; what is parked and fits goes on at once, nothing is cancelled."""

    async def change(opened: Store) -> dict[str, Any]:
        from scheduler.budget import Budget, split_risk
        from scheduler.errors import BudgetUnknown, ConfigError
        from scheduler.stores import acts

        known = {status.budget.name: status.budget for status in await opened.budgets(now_ms())}
        old = known.get(name)
        limit, said = split_risk(spec)
        if None not in (risk, said) and risk != said:
            raise ConfigError("--risk", f"is {risk!r}, and the limit says {said!r}")
        chosen = risk or said
        told = limit if chosen is None else f"{limit} risk {chosen}"
        if old is not None:
            new = old.with_limit(told)
        elif create:
            new = Budget(name, told)
        elif known:
            raise BudgetUnknown(name, tuple(known))
        else:
            raise ConfigError(
                "budget", f"there is none named {name!r}, nor any other; --create makes it"
            )
        waiting = await _waiting(opened, name)
        await opened.define([new], now_ms())
        before = {} if old is None else {name: old}
        await acts.note(opened, *acts.limits(now_ms(), acts.here("budget set"), before, [new]))
        status = next(s for s in await opened.budgets(now_ms()) if s.budget.name == name)
        return {
            "name": name,
            "old": None if old is None else old.text,
            "new": new.text,
            "waiting": waiting,
            "caps": budget_rows(status),
        }

    _tell_change(with_store(store, change, create=create), as_json)


def pause(name: Name, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Let nothing more start on a budget; what runs goes on."""
    _pause(name, True, store, as_json)


def resume(name: Name, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Let a paused budget go on."""
    _pause(name, False, store, as_json)


def remove(name: Name, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Have a budget bind nobody any more; what it spent stays in spend and audit."""

    async def change(opened: Store) -> tuple[BudgetStatus | None, int | None]:
        from scheduler.stores import acts

        status = next((s for s in await opened.budgets(now_ms()) if s.budget.name == name), None)
        waiting = await _waiting(opened, name)
        await opened.remove(name, now_ms())
        if status is not None:
            act = acts.removed(now_ms(), acts.here("budget remove"), status.budget)
            await acts.note(opened, act)
        return status, waiting

    status, waiting = with_store(store, change)
    assert status is not None  # else it could not be removed
    if as_json:
        emit_json({"name": name, "removed": True, "waiting": waiting, "caps": budget_rows(status)})
        return
    spent = ", ".join(cap.cap.format_amount(cap.posted) for cap in status.caps)
    tell(f"{name}: removed; {spent} spent stays on record{_waiting_note(waiting)}")


def explain(
    spec: Annotated[
        str | None, typer.Argument(metavar="LIMIT", help="Such as '$100/month @Asia/Tokyo'.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Which rules a request for this model meets."
        ),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="NAME=VALUE", help="A tag it has; repeatable."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a limit means, or under which names budgets see a model, and whose rules match."""
    from scheduler.budget import parse_caps
    from scheduler.errors import ConfigError

    if (spec is None) == (model is None):
        raise ConfigError("explain", "takes a limit such as '$10/day', or --model NAME, not both")
    if model is not None:
        _explain_model(model, tags or (), store, config, as_json)
        return
    assert spec is not None
    at_ms = now_ms()
    caps = parse_caps(spec)
    if as_json:
        emit_json([explained(cap, at_ms) for cap in caps])
    else:
        told = (facts(explanation(cap, at_ms).split("\n")) for cap in caps)
        print("\n\n".join("\n".join(lines) for lines in told))


def _explain_model(
    model: str, tags: Sequence[str], store: str, config: str | None, as_json: bool
) -> None:
    from scheduler.cli.options import make_intake
    from scheduler.request import Request

    intake = make_intake(config)
    statuses = _stored(store)
    intake.book.update((status.id, status.budget) for status in statuses)
    labels = {name: value for name, _, value in (each.partition("=") for each in tags)}
    found = intake.explain(Request({"model": model, "messages": []}, tags=labels, budget=()))
    ruled = [status.budget for status in statuses if status.budget.has_rules]
    if as_json:
        emit_json({
            "model": found.model, "provider": found.provider, "names": list(found.names),
            "rules": [_rule_row(budget, budget.name in found.rules) for budget in ruled],
            "draws_on": list(found.budgets),
        })  # fmt: skip
        return
    lines = [one_line(model), f"  asked   {one_line(f'{found.model} at {found.provider}')}"]
    for number, each in enumerate(found.names):
        lines.append(f"  {'' if number else 'names':<7} {one_line(each)}")
    print("\n".join(facts(lines)))
    if ruled:
        rows = [(b.name, "yes" if b.name in found.rules else "no", _rule_text(b)) for b in ruled]
        print(f"\n{table(('budget', 'matches', 'rules'), rows)}")
    else:
        print("\n  no budget has rules")
    drawn = one_line(", ".join(found.budgets)) or "none"
    print()
    tell(f"  draws on {drawn}, besides the budgets it names or gets by default")


def _stored(store: str) -> list[BudgetStatus]:
    """What budgets a store has; none where there is no store yet."""
    path = store_path(store)
    if store == "memory://" or (path is not None and not path.exists()):
        say(f"there is no store at {without_password(store)} yet, so no budget has rules")
        return []
    return with_store(store, lambda opened: opened.budgets(now_ms()))


def _rule_row(budget: Budget, is_met: bool) -> dict[str, Any]:
    models, tags = list(budget.models), budget.tags
    return {"budget": budget.name, "models": models, "tags": tags, "matches": is_met}


def _rule_text(budget: Budget) -> str:
    tags = (f"{name}={value}" for name, value in budget.tags.items())
    return ", ".join((*budget.models, *tags))


def _pause(name: str, paused: bool, store: str, as_json: bool) -> None:
    async def change(opened: Store) -> int | None:
        from scheduler.stores import acts

        was = any(s.paused for s in await opened.budgets(now_ms()) if s.budget.name == name)
        await opened.pause(name, paused, now_ms())
        who = acts.here(f"budget {'pause' if paused else 'resume'}")
        await acts.note(opened, acts.paused(now_ms(), who, name, was=was, is_now=paused))
        return await _waiting(opened, name)

    waiting = with_store(store, change)
    if as_json:
        emit_json({"name": name, "paused": paused, "waiting": waiting})
        return
    tell(f"{name}: {'paused' if paused else 'goes on'}{_waiting_note(waiting)}")


async def _waiting(store: Store, name: str) -> int | None:
    """How many requests are parked for want of a budget; None: more than were looked at."""
    from scheduler.request import RequestState

    rows = await store.queue([RequestState.PARKED], now_ms(), limit=SAMPLE)
    if len(rows) == SAMPLE:
        return None
    return sum(_waits_for(row, name) for row in rows)


def _waits_for(row: QueueRow, name: str) -> bool:
    lack = row.shortfall
    return lack is not None and lack.budget == name and not lack.is_of_provider


def _waiting_note(waiting: int | None) -> str:
    if waiting is None:
        return f"; more than {SAMPLE:,} requests are parked"
    return f"; {plural(waiting, 'request')} parked on it" if waiting else ""


def _tell_change(change: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(change)
        return
    old, new = change["old"], change["new"]
    if old is None:
        tell(f"{change['name']}: made, {new}")
    else:
        same = " (unchanged)" if old == new else ""
        tell(f"{change['name']}: {old} → {new}{same}{_waiting_note(change['waiting'])}")
    for cap in change["caps"]:
        if str(cap["available_usd"] or cap["available"] or "").startswith("-"):
            say(
                f"more than {cap['cap']} is spent or reserved already; nothing is cancelled, "
                "what comes next waits"
            )


# What a budget looks like, to programs and to people


def budget_rows(status: BudgetStatus) -> list[dict[str, Any]]:
    """One object per cap of a budget, as ``budget list --json`` prints them."""
    return [_cap_row(status, cap) for cap in status.caps]


def _cap_row(status: BudgetStatus, cap: CapStatus) -> dict[str, Any]:
    window = cap.cap.window
    starts = cap.window_start_ms if window.kind.value == "calendar" else None
    return {
        "name": status.budget.name,
        "cap": str(cap.cap),
        "unit": cap.cap.unit.value,
        "kind": window.kind.value,
        **amounts(
            cap.cap.unit.value,
            limit=cap.limit,
            posted=cap.posted,
            reserved=cap.reserved,
            suspense=cap.suspense,
            available=cap.available,
            overrun=cap.overrun,
            **({} if cap.allowed is None else {"allowed": cap.allowed}),
            kept=cap.kept,
        ),
        "risk": status.budget.risk,
        "calls_beyond_ceilings": cap.more_calls,
        "window": window.describe(),
        "window_starts_at": iso(starts, window.zone),
        "resets_at": iso(cap.resets_at_ms, window.zone),
        "paused": status.paused,
    }


def budget_table(found: Sequence[BudgetStatus], at_ms: int) -> str:
    """Budgets for people, a line per cap."""
    rows = []
    has_unknown = any(cap.suspense for status in found for cap in status.caps)
    for status in found:
        for cap in status.caps:
            unit = cap.cap.unit.value
            used = None if cap.limit is None else bar(cap.counted, cap.limit)
            rows.append(
                (
                    status.budget.name + (" (paused)" if status.paused else ""),
                    str(cap.cap),
                    used,
                    amount(cap.posted, unit),
                    amount(cap.reserved, unit),
                    *([amount(cap.suspense, unit)] if has_unknown else []),
                    amount(cap.available, unit),
                    resets(cap, at_ms),
                )
            )
    unknown = ("unknown",) if has_unknown else ()  # the part of what is reserved
    columns = ("budget", "limit", "used", "spent", "reserved", *unknown, "available", "window")
    shown = table(columns, rows, right="spent reserved unknown available")
    return "\n".join((shown, *_risks(found)))


def _risks(found: Sequence[BudgetStatus]) -> list[str]:
    """Which budgets take a risk, and what that brings now."""
    lines = []
    for status in found:
        if status.budget.risk == "none":
            continue
        told = ["calls under way count at their ceilings, which fit"]
        for cap in status.caps:
            if cap.kept is not None and cap.calls:
                unit = cap.cap.unit.value
                held = amount(cap.reserved - cap.suspense, unit)
                more = f"; {cap.more_calls:,} of them would wait" if cap.more_calls else ""
                told = [
                    *told[1:],
                    f"{plural(cap.calls, 'call')} under way count at {amount(cap.kept, unit)} of "
                    f"{held}{more}",
                ]
        lines.append(
            f"{one_line(status.budget.name)}: risk {status.budget.risk}; {', '.join(told)}"
        )
    return lines


def resets(cap: CapStatus, at_ms: int) -> str:
    """A cap's kind of window, and when money comes back."""
    window = cap.cap.window
    if cap.resets_at_ms is None:
        return window.describe()
    verb = "frees money" if window.kind.value == "rolling" else "resets"
    share = ""
    if cap.allowed is not None:
        share = f"; {cap.cap.pace}: {amount(cap.allowed, cap.cap.unit.value)} allowed by now"
    return f"{window.describe()}{share}; {verb} {until(cap.resets_at_ms, window.zone, at_ms)}"


def explained(cap: Cap, at_ms: int) -> dict[str, Any]:
    """What a cap means, for programs."""
    window, kind = cap.window, cap.window.kind.value
    starts = window.slot_start_ms(at_ms) if kind == "calendar" else None
    resets_ms = window.next_resets_ms(at_ms, 3) if kind == "calendar" else []
    return {
        "cap": str(cap),
        "unit": cap.unit.value,
        **amounts(cap.unit.value, limit=cap.limit),
        "kind": kind,
        "window": window.describe(),
        "zone": window.zone if kind == "calendar" else None,
        "window_starts_at": iso(starts, window.zone),
        "window_ends_at": iso(resets_ms[0], window.zone) if resets_ms else None,
        "next_resets": [iso(each, window.zone) for each in resets_ms],
    }


def explanation(cap: Cap, at_ms: int) -> str:
    """What a cap means, for people."""
    from scheduler.duration import format_duration

    window, kind = cap.window, cap.window.kind.value
    limit = (
        "no limit, only counted"
        if cap.limit is None
        else f"at most {amount(cap.limit, cap.unit.value)}"
    )
    lines = [str(cap), f"  limit   {limit}", f"  window  {window.describe()}"]
    if cap.pace is not None and cap.limit is not None:
        share = amount(cap.pace.allowed(cap.limit, window, at_ms), cap.unit.value)
        lines.append(
            f"  pace    {cap.pace.text or 'evenly'}: {share} of it allowed by now, the rest bit by bit"
        )
    if kind == "calendar":
        start_ms, resets_ms = window.slot_start_ms(at_ms), window.next_resets_ms(at_ms, 3)
        lines.append(
            f"  now     {_stamp(start_ms, window.zone)} to {_stamp(resets_ms[0], window.zone)}"
        )
        lines += [
            f"  {'resets' if position == 0 else '':<6}  {_stamp(each, window.zone)}"
            for position, each in enumerate(resets_ms)
        ]
    elif kind == "rolling":
        span = format_duration(window.span_ms)
        lines.append(
            f"  resets  never all at once: each amount counts for {span} and up to 1/60 more"
        )
    else:
        lines.append("  resets  never: counts everything ever spent; only a raise helps")
    return "\n".join(lines)


def _stamp(at_ms: int, zone: str) -> str:
    return (iso(at_ms, zone) or "").replace("T", " ") + f" {zone}"
