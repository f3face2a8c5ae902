"""``scheduler ray``: workers on a Ray cluster."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.choices import OnExhaustedOption, ServeOption, UntilIdleOption
from scheduler.cli.helping import Command, Group
from scheduler.cli.look import DEFAULT_STORE, store_path
from scheduler.cli.options import (
    SENDING,
    TELLING,
    BaseUrlOption,
    ConcurrencyOption,
    GraceOption,
    KeptStoreOption,
    MaxAttemptsOption,
    MaxWaitOption,
    OnUnknownOption,
    PatienceOption,
    PriceOption,
    RequestsOption,
    TimeoutOption,
    TokensOption,
    config_option,
)

if TYPE_CHECKING:
    from scheduler.adapters.ray.fleet import Fleet
    from scheduler.cli.raying import Sent
    from scheduler.cli.working import Orders

EXAMPLES = """\
scheduler ray up --workers 8 --address auto
scheduler ray up --workers 8 -c 32 --until-idle
scheduler ray up --address local --env OPENAI_API_KEY"""
PLACING = "Placing"
PLAIN_VARIABLES = "env_vars"  # of a runtime environment, which Ray's dashboard shows


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How many workers are wanted, and where."""

    address: str
    workers: int | None
    cpus: float
    when_room: bool
    every_s: float
    runtime_env: dict[str, Any] | None = field(repr=False)


def register(app: typer.Typer) -> None:
    """Add the group of commands to the root."""
    group = typer.Typer(cls=Group, help="Run workers on a Ray cluster.", no_args_is_help=True)
    group.callback()(_only_below)
    group.command("up", cls=Command, epilog=EXAMPLES)(up)
    app.add_typer(group, name="ray")


def _only_below() -> None:
    """Run workers on a Ray cluster."""


def up(
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            metavar="N",
            rich_help_panel=PLACING,
            help="How many; default one for each node.",
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            rich_help_panel=PLACING,
            help="The cluster: auto (the one that runs here, or RAY_ADDRESS), HOST:PORT, "
            "ray://HOST:PORT, or local: one in this machine, for this command alone.",
        ),
    ] = "auto",
    cpus: Annotated[
        float,
        typer.Option(
            min=0, metavar="N", help="CPUs that Ray sets aside for each.", rich_help_panel=PLACING
        ),
    ] = 0.25,
    when_room: Annotated[
        bool,
        typer.Option(
            "--when-room",
            rich_help_panel=PLACING,
            help="Start what fits, and the rest as soon as there is room: where nodes come as needed.",
        ),
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PLACING,
            help="Give them this variable of here, such as a key, shown to nobody; repeatable. "
            "Default: they have their keys from their nodes.",
        ),
    ] = None,
    runtime_env: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PLACING,
            help="Ray's runtime environment for them, in JSON or YAML; its dashboard shows it.",
        ),
    ] = None,
    provider: ServeOption = None,
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    concurrency: ConcurrencyOption = 64,
    max_requests_per_minute: RequestsOption = None,
    max_tokens_per_minute: TokensOption = None,
    max_attempts: MaxAttemptsOption = None,
    patience: PatienceOption = None,
    timeout: TimeoutOption = None,
    price: PriceOption = None,
    on_unknown: OnUnknownOption = None,
    on_exhausted: OnExhaustedOption = "wait",
    until_idle: UntilIdleOption = False,
    max_wait: MaxWaitOption = None,
    grace: GraceOption = "30s",
    store: KeptStoreOption = DEFAULT_STORE,
    every: Annotated[
        str,
        typer.Option(
            metavar="SPAN", help="So often it is told how they are.", rich_help_panel=TELLING
        ),
    ] = "30s",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a summary as JSON to stdout.", rich_help_panel=TELLING),
    ] = False,
) -> None:
    """Run workers as actors on a Ray cluster, until told to stop.

    Each of them does what 'scheduler worker' does, with its options. Ray starts those again whose
    process or node is gone. Ctrl-C or SIGTERM: they claim nothing new, and it ends with 0 when what
    runs has finished. A second one: what runs is cancelled, and keeps counting.
    """
    from scheduler.cli.output import emit_json, say
    from scheduler.cli.raying import read_environment, sent, summary
    from scheduler.cli.working import Orders
    from scheduler.duration import format_duration, parse_duration_ms

    orders = Orders(
        store, provider or (), base_url, config, concurrency, max_requests_per_minute,
        max_tokens_per_minute, max_attempts, patience, timeout, price or (), on_unknown,
        on_exhausted, until_idle, max_wait, grace,
    )  # fmt: skip
    orders.check()
    wishes = _Wishes(address, workers, cpus, when_room, parse_duration_ms(every, "--every") / 1000,
                     read_environment(runtime_env))  # fmt: skip
    if PLAIN_VARIABLES in (wishes.runtime_env or {}):
        say(
            "note: Ray's dashboard shows env_vars of a runtime environment; --env NAME is not shown"
        )
    began_s = time.monotonic()
    fleet = _launch(sent(_with_whole_path(orders), env or ()), wishes)
    seconds = time.monotonic() - began_s
    say(fleet.as_sum(format_duration(int(seconds * 1000))))
    if as_json:
        emit_json(summary(fleet, seconds))
    raise typer.Exit(fleet.exit)


def _with_whole_path(orders: Orders) -> Orders:
    """A file is the same one from wherever a worker is."""
    path = store_path(orders.store)
    return orders if path is None else replace(orders, store=str(path.resolve()))


def _launch(work: Sent, wishes: _Wishes) -> Fleet:
    """Run them, to their end. Raises `ConfigError` where that cannot be done."""
    from scheduler.adapters.ray.joining import joined, seen
    from scheduler.adapters.ray.launcher import Launcher, Plan
    from scheduler.cli.output import say

    store = store_path(work.orders.store)
    with joined(wishes.address) as ray:
        cluster = seen(ray)
        if store is not None:
            cluster.require_shared(str(store), socket.gethostname())
        workers = wishes.workers or cluster.one_each(wishes.cpus)
        if not wishes.when_room:
            cluster.require_room(workers, wishes.cpus)
        plan = Plan(
            workers, wishes.cpus, work.orders.grace_s, wishes.every_s, wishes.runtime_env,
            cluster.nodes[0].id if store is not None else "",
        )  # fmt: skip
        return asyncio.run(Launcher(ray, work, plan, say).run())
