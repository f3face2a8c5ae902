"""``scheduler prices``: what does a model cost, and where does the price come from?"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, store_path, with_store
from scheduler.cli.output import emit_json, say, table

if TYPE_CHECKING:
    from scheduler.stores.base import Store

Model = Annotated[str, typer.Argument(help="Model, as requests name it.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the group of commands to the root."""
    group = typer.Typer(
        help="Show prices; set your own, which come before the catalogue's.", no_args_is_help=True
    )
    group.command("show")(show)
    group.command("set")(set_price)
    group.command("remove")(remove)
    app.add_typer(group, name="prices")


def show(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models; none: the prices you have set.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Provider or base URL to look at, such as openai."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show prices in USD per million tokens. A store is not needed."""
    from scheduler.pricing import PriceBook

    own = _own(store)
    book = PriceBook(own)
    names = models or list(own)
    rows = [_row(book, name, source) for name in names]
    if as_json:
        emit_json(rows)
    elif rows:
        columns = ("model", "in", "out", "cached", "source")
        lines = [
            (r["model"], r["in_usd"], r["out_usd"], r["cached_usd"], r["source"]) for r in rows
        ]
        print(table(columns, lines, right="in out cached"))
        say("USD per million tokens")
    else:
        say("you have set no prices; to see the catalogue's: scheduler prices show MODEL")


def set_price(
    model: Model,
    price_in: Annotated[str, typer.Option("--in", help="USD per million input tokens.")],
    price_out: Annotated[str, typer.Option("--out", help="USD per million output tokens.")],
    cached: Annotated[
        str | None, typer.Option("--cached", help="USD per million cached input tokens.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Keep a price of your own in the store; it comes before the catalogue's."""
    from scheduler.pricing import PriceBook

    rates = [_rate(price_in, "--in"), _rate(price_out, "--out")]
    rates += [] if cached is None else [_rate(cached, "--cached")]
    price = "/".join(rates)
    PriceBook({model: price})  # says what is wrong with it before it is stored
    path = store_path(store)
    if path is not None and not path.exists():
        say(f"making the store {path}")

    async def write(opened: Store) -> str | None:
        old = (await opened.prices()).get(model)
        await opened.set_price(model, price)
        return old

    old = with_store(store, write, create=True)
    print(f"{model}: {old or 'no price of your own'} → {price} USD per million tokens in/out")


def remove(model: Model, store: StoreOption = DEFAULT_STORE) -> None:
    """Forget a price of your own; the catalogue's holds again."""
    from scheduler.errors import ConfigError

    async def forget(opened: Store) -> bool:
        known = await opened.prices()
        await opened.set_price(model, None)
        return model in known

    if not with_store(store, forget):
        raise ConfigError("prices", f"you have set no price for {model!r}")
    print(f"{model}: removed")


def _own(store: str) -> dict[str, str]:
    """Prices kept in a store; none if there is no store yet."""
    path = store_path(store)
    if path is None or not path.is_file():
        return {}

    async def read(opened: Store) -> dict[str, str]:
        return await opened.prices()

    return with_store(store, read)


def _rate(text: str, option: str) -> str:
    """A price without its dollar sign, checked."""
    from scheduler.errors import ConfigError

    bare = text.strip().removeprefix("$")
    try:
        value = Decimal(bare)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise ConfigError(option, f"{text!r} is not a price in USD per million tokens")
    return bare


def _row(book: Any, model: str, source: str | None) -> dict[str, Any]:
    found = book.describe(model, source)
    return {"model": model, "found": str(found)}
