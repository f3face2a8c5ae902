"""How does a command open the store of a process that may be running?

Looking creates nothing and holds nothing for long. A store that does not exist is
an error that says where it was looked for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from scheduler.cli.output import say
from scheduler.errors import ConfigError
from scheduler.guards.plain import shell_word, without_password

if TYPE_CHECKING:
    from scheduler.stores.base import Store

DEFAULT_STORE = "./scheduler.db"
DEFAULT_FILE = "scheduler.toml"  # as in `config`, which takes longer to load than all of this

T = TypeVar("T")


def which_store(ctx: Any, value: str) -> str:
    """The store that is meant: that of ``scheduler.toml``, if nothing else was said.

    A password that stands on the command line is hidden there.
    """
    source = ctx.get_parameter_source("store").name
    if source == "DEFAULT":
        return _configured(ctx.params.get("config")) or value
    if source == "COMMANDLINE":
        hide_password(value)
    return value


def hide_password(url: str) -> str:
    """Hide a password in the URL, if it stands on the command line."""
    from scheduler.cli.concealing import conceal

    if conceal(url):
        say(
            "note: who listed processes could see the password in the URL. Put the URL into "
            "SCHEDULER_STORE, or the password into PGPASSWORD or ~/.pgpass"
        )
    return url


def _configured(config: object) -> str | None:
    chosen = config or os.environ.get("SCHEDULER_CONFIG")
    if chosen is None and not Path(DEFAULT_FILE).is_file():
        return None  # nothing is loaded for it
    from scheduler.config import load_config

    return load_config(str(chosen) if chosen else None).store_url()


STORE_HELP = "Queue and ledger: a path, sqlite:///FILE.db or postgresql://HOST/DB."
StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="SCHEDULER_STORE", metavar="URL", help=STORE_HELP, callback=which_store
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def store_path(url: str) -> Path | None:
    """The file a store URL names; None if it names no file."""
    from scheduler.stores import file_of

    return file_of(url)


def store_named(url: str) -> str:
    """A store's name, the same from every folder."""
    path = store_path(url)
    return without_password(url) if path is None else str(path.resolve())


def store_option(url: str) -> str:
    """How a command that is shown to people names the store; without its password."""
    return "" if url == DEFAULT_STORE else f" --store {shell_word(without_password(url))}"


def check_exists(url: str) -> None:
    """Refuse a store that is not there. Raises `ConfigError`."""
    if url == "memory://":
        raise ConfigError(
            "--store", "memory:// lives and dies with one process; there is nothing to look at"
        )
    path = store_path(url)
    if path is None or path.is_file():
        return
    if path.exists():
        raise ConfigError("--store", f"{path} is not a file")
    raise ConfigError(
        "--store",
        f"there is no store at {without_password(path.absolute())}. Name one with --store or SCHEDULER_STORE; "
        "'scheduler run' makes it",
    )


@asynccontextmanager
async def opened(url: str, *, create: bool = False) -> AsyncIterator[Store]:
    """A store, open.

    Args:
        url: What ``--store`` says.
        create: Whether it may be made; commands that only look never do.

    Raises:
        ConfigError: It is not there, or no such kind of store.
        StoreError: It cannot be opened.
    """
    from scheduler.stores import open_store

    if not create:
        check_exists(url)
    store = open_store(url, create=create)
    await store.open(now_ms())
    try:
        yield store
    finally:
        await store.aclose()


def with_store(url: str, use: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Open a store, do something with it, close it, and return what came of it."""

    async def run() -> T:
        async with opened(url, create=create) as store:
            return await use(store)

    return asyncio.run(run())
