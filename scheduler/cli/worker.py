"""``scheduler worker``: sends what others submit to a store."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from scheduler.cli.choices import (
    OnExhaustedOption,
    ProgressOption,
    ServeOption,
    UntilIdleOption,
    check_progress,
)
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE
from scheduler.cli.options import (
    SENDING,
    TELLING,
    BaseUrlOption,
    ConcurrencyOption,
    FairByOption,
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
    WeightOption,
    config_option,
)

EXAMPLES = """\
scheduler worker -c 32
scheduler worker --provider openai --provider groq
scheduler worker --until-idle --on-exhausted stop"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("worker", cls=Command, epilog=EXAMPLES)(worker)


def worker(
    provider: ServeOption = None,
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    concurrency: ConcurrencyOption = 64,
    fair_by: FairByOption = None,
    weight: WeightOption = None,
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
    progress: ProgressOption = "auto",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a summary as JSON to stdout.", rich_help_panel=TELLING),
    ] = False,
) -> None:
    """Send what others submit to a store, until it is told to stop.

    It serves the providers whose keys it has. Ctrl-C or SIGTERM: it claims nothing new, and ends
    with 0 when what runs has finished. A second one: what runs is cancelled, and keeps counting.
    """
    from scheduler.cli.output import say
    from scheduler.cli.progress import progress as make_progress
    from scheduler.cli.working import Orders

    check_progress(progress)
    orders = Orders(
        store, provider or (), base_url, config, concurrency, max_requests_per_minute,
        max_tokens_per_minute, max_attempts, patience, timeout, price or (), on_unknown,
        on_exhausted, until_idle, max_wait, grace, fair_by, weight or (),
    )  # fmt: skip
    orders.check()
    outcome = asyncio.run(orders.carry_out(make_progress(progress)))
    say(outcome.as_line())
    if as_json:
        from scheduler.cli.output import emit_json

        emit_json(outcome.as_json())
    raise typer.Exit(outcome.exit)
