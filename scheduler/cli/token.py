"""``scheduler token``: who may use the gateway, and what may they spend?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command, Group
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, with_store
from scheduler.cli.output import emit_json, iso, plural, say, table

if TYPE_CHECKING:
    from scheduler.server.tokens import Token
    from scheduler.stores.base import Store

EXAMPLES = """\
scheduler token create ann --budget team --tag user=ann --expires 30d
scheduler token revoke ann"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the group of commands to the root."""
    group = typer.Typer(
        cls=Group, help="Make, list and revoke tokens for clients of the gateway.",
        no_args_is_help=True,
    )  # fmt: skip
    group.command("create", cls=Command, epilog=EXAMPLES)(create)
    group.command("list", cls=Command)(list_tokens)
    group.command("revoke", cls=Command)(revoke)
    app.add_typer(group, name="token")


def create(
    name: Name,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What its calls draw on, always; repeatable."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of all its calls; repeatable."),
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="WORD", help="Its calls are no more urgent.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Such as 30d; not given: never.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is shown once, and kept as a hash only."""
    from scheduler.duration import parse_duration_ms
    from scheduler.errors import BudgetUnknown, ConfigError
    from scheduler.server.tokens import keep, make_token, read_tags

    at_ms = now_ms()
    until_ms = None if expires is None else at_ms + parse_duration_ms(expires, "--expires")
    token, secret = make_token(
        name, budgets=budget or (), tags=read_tags(",".join(tag or ())), priority=priority,
        now_ms=at_ms, expires_at_ms=until_ms,
    )  # fmt: skip

    async def make(opened: Store) -> None:
        known = {each.name for _, each in await opened.defined(token.budgets)}
        for each in token.budgets:
            if each not in known:
                names = tuple(status.budget.name for status in await opened.budgets(at_ms))
                raise BudgetUnknown(each, names)
        if not await keep(opened, token):
            raise ConfigError(
                "token",
                f"there is one named {name!r}; revoke it first: scheduler token revoke {name}",
            )

    with_store(store, make, create=True)
    if as_json:
        emit_json({**_row(token, at_ms), "token": secret})
    else:
        print(secret)
        say(f"token of {name!r}: {_bounds(token)}. It is not shown again")


def list_tokens(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show whose tokens there are, and what they are bound to; never the tokens themselves."""
    from scheduler.server.tokens import kept

    found, at_ms = with_store(store, kept), now_ms()
    if as_json:
        emit_json([_row(each, at_ms) for each in found])
    elif found:
        rows = [
            [each.name, _bounds(each), "-" if each.expires_at_ms is None
             else ("expired" if each.is_over(at_ms) else iso(each.expires_at_ms) or "")]
            for each in found
        ]  # fmt: skip
        print(table(["name", "bound to", "expires"], rows))
    else:
        say("there is no token: 'scheduler serve' makes one for itself")


def revoke(
    name: Name,
    cancel_batches: Annotated[
        bool,
        typer.Option(
            "--cancel-batches",
            help="End the batches and the responses in the background that it made, too.",
        ),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Take a token no more, at every gateway of the store, within a second.

    Batches and responses in the background that it made go on; whoever gets a token of that name
    sees them.
    """
    from scheduler.errors import ConfigError
    from scheduler.server.batches import theirs
    from scheduler.server.tokens import revoke as take_back

    async def end(opened: Store) -> tuple[bool, int, int, int]:
        was_there = await take_back(opened, name)  # first, so that nothing comes after
        batches, responses = (
            await theirs.batches(opened, name),
            await theirs.responses(opened, name),
        )
        cancelled = 0
        if cancel_batches:
            await theirs.end_batches(opened, batches, now_ms())
            cancelled = await theirs.end_responses(opened, responses, now_ms())
        return was_there, len(batches), len(responses), cancelled

    was_there, batches, responses, cancelled = with_store(store, end)
    if not was_there and not (cancel_batches and (batches or responses)):
        raise ConfigError("token", f"there is none named {name!r}")
    say(f"revoked {name!r}")
    for line in _left(name, batches, responses, cancelled if cancel_batches else None):
        say(line)


def _left(name: str, batches: int, responses: int, cancelled: int | None) -> Iterator[str]:
    """What becomes of what a token made; `cancelled`: so many responses were. None: nothing was."""
    of_batches = f"{batches:,} batch{'es' * (batches != 1)}"
    if cancelled is None:
        made = [of_batches] if batches else []
        made += [f"{plural(responses, 'response')} in the background"] if responses else []
        if made:
            end = f"to end what waits of that, too: scheduler token revoke {name} --cancel-batches"
            yield f"{' and '.join(made)} of it not ended; {end}"
        return
    if batches:
        yield f"cancelled {of_batches}: what waits ends within a minute, if a gateway runs"
    if cancelled:
        yield f"cancelled {plural(cancelled, 'response')} in the background; nothing was sent"
    if responses > cancelled:
        running = plural(responses - cancelled, "response")
        yield f"{running} in the background under way: it is let finish, and paid"


def _bounds(token: Token) -> str:
    parts = [*token.budgets, *(f"{tag}={value}" for tag, value in token.tags.items())]
    parts += [token.priority] if token.priority else []
    return ", ".join(parts) or "nothing: its calls name their budgets"


def _row(token: Token, at_ms: int) -> dict[str, Any]:
    return {
        "name": token.name, "budgets": list(token.budgets), "tags": dict(token.tags),
        "priority": token.priority, "made_at": iso(token.made_at_ms),
        "expires_at": None if token.expires_at_ms is None else iso(token.expires_at_ms),
        "is_expired": token.is_over(at_ms),
    }  # fmt: skip
