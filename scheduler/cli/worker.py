"""``scheduler worker``: sends what others submit to a store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.choices import (
    OnExhaustedOption,
    ProgressOption,
    check_on_exhausted,
    check_progress,
)
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, store_option
from scheduler.cli.options import (
    ENDING,
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
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.cli.progress import Progress
    from scheduler.cli.serving import Served

EXAMPLES = """\
scheduler worker -c 32
scheduler worker --provider openai --provider groq
scheduler worker --until-idle --on-exhausted stop"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("worker", cls=Command, epilog=EXAMPLES)(worker)


def worker(
    provider: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Serve only this one; repeatable. Default: all that have their key here.",
            rich_help_panel=SENDING,
        ),
    ] = None,
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
    until_idle: Annotated[
        bool,
        typer.Option(
            "--until-idle",
            help="End when nothing waits that it serves; 75 if the money or --max-wait ended it.",
            rich_help_panel=ENDING,
        ),
    ] = False,
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
    from scheduler.cli.options import Sending, check_store, parse_prices
    from scheduler.cli.output import say
    from scheduler.cli.progress import progress as make_progress
    from scheduler.cli.serving import able
    from scheduler.duration import parse_duration_ms
    from scheduler.limits.retry import BATCH_ATTEMPTS

    check_progress(progress)
    check_on_exhausted(on_exhausted)
    if not until_idle and (max_wait is not None or on_exhausted != "wait"):
        raise typer.BadParameter(
            "is of use with --until-idle only", param_hint="--max-wait, --on-exhausted"
        )
    check_store(store)
    if store == "memory://":
        raise ConfigError(
            "--store", "memory:// is of one process; a worker needs one that others share"
        )
    sending = Sending(
        config, base_url, timeout, max_requests_per_minute, max_tokens_per_minute,
        max_attempts=max_attempts, patience=patience,
    ).settings(needs_key=False)  # fmt: skip
    sending["providers"] = able(sending["providers"], provider or ())
    sending["routes"] = {}  # what is submitted names its provider
    for each in sending["providers"] if on_unknown is not None else ():
        each.on_unknown = on_unknown
    settings = {
        "max_attempts": BATCH_ATTEMPTS,
        **sending,
        "store": store,
        "prices": parse_prices(price or ()),
        "concurrency": concurrency,
    }
    ending: dict[str, object] = {
        "grace_s": parse_duration_ms(grace, "--grace") / 1000,
        "until_idle": until_idle,
        "stops": on_exhausted == "stop",
        "max_wait_ms": None if max_wait is None else parse_duration_ms(max_wait, "--max-wait"),
    }
    outcome = asyncio.run(_serve(settings, ending, make_progress(progress)))
    say(outcome.as_line())
    if as_json:
        from scheduler.cli.output import emit_json

        emit_json(outcome.as_json())
    raise typer.Exit(outcome.exit)


async def _serve(settings: dict[str, object], ending: dict[str, object], shown: Progress) -> Served:
    from scheduler.cli.run import not_told_twice
    from scheduler.cli.serving import Serving
    from scheduler.guards.plain import without_password
    from scheduler.scheduler import Scheduler

    store = str(settings["store"])
    with not_told_twice():
        async with Scheduler(**settings, role="worker") as s:  # type: ignore[arg-type]
            serving = Serving(s, shown, without_password(store), store_option(store), **ending)  # type: ignore[arg-type]
            return await serving.run(settings["providers"])  # type: ignore[arg-type]
