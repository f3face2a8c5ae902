"""``scheduler prices``: what does a model cost, and where does the price come from?"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command, Group
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, store_path, with_store
from scheduler.cli.output import emit_json, say, table, tell

if TYPE_CHECKING:
    from scheduler.prices.book import PriceInfo
    from scheduler.stores.base import Store

EXAMPLES = "scheduler prices set my-model --in 0.10 --out 0.20"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="As requests name it.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the group of commands to the root."""
    group = typer.Typer(
        cls=Group,
        help="Show prices; set your own, which come before the catalogue's.",
        no_args_is_help=True,
    )
    group.command("show", cls=Command)(show)
    group.command("set", cls=Command, epilog=EXAMPLES)(set_price)
    group.command("remove", cls=Command)(remove)
    app.add_typer(group, name="prices")


def show(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models; none: the prices you have set."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="NAME", help="Provider or base URL to look at, such as openai."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show prices in USD per million tokens. A store is not needed."""
    from scheduler.prices.book import PriceBook

    own = _own(store)
    book = PriceBook(own)
    names = models or list(own)
    infos = [book.describe(name, source) for name in names]
    if as_json:
        emit_json([price_row(info) for info in infos])
    elif infos:
        print(price_table(infos))
        say("USD per million tokens")
    else:
        say("you have set no prices; to see the catalogue's: scheduler prices show MODEL")


def set_price(
    model: Model,
    price_in: Annotated[str, typer.Option("--in", metavar="USD", help="Per million input tokens.")],
    price_out: Annotated[
        str, typer.Option("--out", metavar="USD", help="Per million output tokens.")
    ],
    cached: Annotated[
        str | None, typer.Option("--cached", metavar="USD", help="Per million cached input tokens.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Keep a price of your own in the store; it comes before the catalogue's."""
    from scheduler.prices.book import PriceBook

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
    tell(f"{model}: {old or 'no price of your own'} → {price} USD per million tokens in/out")


def remove(model: Model, store: StoreOption = DEFAULT_STORE) -> None:
    """Forget a price of your own; the catalogue's holds again."""
    from scheduler.errors import ConfigError

    async def forget(opened: Store) -> bool:
        known = await opened.prices()
        await opened.set_price(model, None)
        return model in known

    if not with_store(store, forget):
        raise ConfigError("prices", f"you have set no price for {model!r}")
    tell(f"{model}: removed")


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


def price_row(info: PriceInfo) -> dict[str, Any]:
    """A model's price for programs: exact decimals in USD per million tokens."""
    return {
        "model": info.model,
        "source": info.source,
        "in_usd": _decimal(info.input),
        "out_usd": _decimal(info.output),
        "cached_usd": _decimal(info.cached),
        "cache_write_usd": _decimal(info.cache_write),
        "has_steps": info.has_steps,
        "max_output_tokens": info.max_output_tokens,
        "context_tokens": info.context_tokens,
    }


def _decimal(value: Decimal | None) -> str | None:
    """A number with at least two decimals, never as a power of ten."""
    if value is None:
        return None
    whole, _, rest = f"{value.normalize():f}".partition(".")
    return f"{whole}.{rest.ljust(2, '0')}"


def price_table(infos: Sequence[PriceInfo]) -> str:
    """Prices for people."""
    lines = []
    for info in infos:
        source = "your own" if info.source == "own" else info.source
        steps = " (more above some length)" if info.has_steps else ""
        lines.append(
            (
                info.model,
                _decimal(info.input),
                _decimal(info.output),
                _decimal(info.cached),
                _decimal(info.cache_write),
                source + steps,
            )
        )
    columns = ("model", "in", "out", "cached", "cache-write", "source")
    return table(columns, lines, right="in out cached cache-write")
