"""``scheduler submit``: a batch file into a shared queue, for workers to send."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.batch.input import MAX_LINE_BYTES, LineOptions
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, store_option
from scheduler.cli.options import (
    FILES,
    SENDING,
    TELLING,
    BaseUrlOption,
    BudgetOption,
    CapOutputOption,
    FairByOption,
    IdColumnOption,
    KeptStoreOption,
    LimitOption,
    MaxCostOption,
    MaxLineBytesOption,
    MaxPromptOption,
    ModelOption,
    PriceOption,
    RetryFailedOption,
    RiskOption,
    StrictOption,
    TagOption,
    WeightOption,
    config_option,
)
from scheduler.cli.output import say

if TYPE_CHECKING:
    from scheduler.cli.submitting import Submission

EXAMPLES = """\
scheduler submit prompts.jsonl --job nightly --budget '$10/day'
scheduler worker -c 32
scheduler collect --job nightly -o results.jsonl --wait"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("submit", cls=Command, epilog=EXAMPLES)(submit)


def submit(
    input_file: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help="JSON lines or an array, also gzipped; - is stdin."),
    ],
    job: Annotated[
        str,
        typer.Option(
            "--job",
            "-j",
            metavar="NAME",
            help="What its results are collected by.",
            rich_help_panel=FILES,
        ),
    ],
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors-file",
            metavar="FILE",
            help="Lines that are refused; default PROMPTS.errors.jsonl.",
            rich_help_panel=FILES,
        ),
    ] = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    id_column: IdColumnOption = None,
    max_line_bytes: MaxLineBytesOption = MAX_LINE_BYTES,
    strict: StrictOption = False,
    retry_failed: RetryFailedOption = False,
    priority: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="interactive, normal, batch, idle, or a number; less goes first.",
            rich_help_panel=SENDING,
        ),
    ] = "batch",
    budget: BudgetOption = None,
    risk: RiskOption = None,
    max_cost: MaxCostOption = None,
    cap_output: CapOutputOption = None,
    price: PriceOption = None,
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    tag: TagOption = None,
    fair_by: FairByOption = None,
    weight: WeightOption = None,
    max_prompt_tokens: MaxPromptOption = None,
    store: KeptStoreOption = DEFAULT_STORE,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a summary as JSON to stdout.", rich_help_panel=TELLING),
    ] = False,
) -> None:
    """Put a batch file in the queue of a store, and end; workers send it.

    The lines and checks are those of 'run'. The same command again adds only what is new. No key
    is needed here: each request names its provider, and the workers have the keys.
    """
    from scheduler.cli.options import (
        Sending,
        budgets_of,
        check_job,
        check_store,
        open_input,
        parse_prices,
        parse_tags,
    )
    from scheduler.cli.submitting import Submitting, beside, name_of
    from scheduler.request import Priority
    from scheduler.scheduler import Scheduler

    check_job(job)
    with open_input(input_file) as source:
        check_store(store)
        sending = Sending(
            config, base_url, max_prompt_tokens=max_prompt_tokens, max_cost=max_cost,
            cap_output=cap_output, fair_by=fair_by, weight=weight or (),
        ).settings(needs_key=False, by_others=True)  # fmt: skip
        if sending["on_exceeded"] != "wait":
            say(f"on_exceeded = {sending['on_exceeded']!r} of the configuration is for 'run': what is "
                "submitted waits")  # fmt: skip
        settings = {
            **sending,
            "on_exceeded": "wait",
            "fallback": (),
            "store": store,
            "prices": parse_prices(price or ()),
        }
        options = LineOptions(
            job=job, model=model, priority=int(Priority.parse(_number(priority))), limit=limit,
            max_line_bytes=max_line_bytes, id_column=id_column, tags=parse_tags(tag or ()),
        )  # fmt: skip
        budgets = budgets_of(budget, risk, config)
        place = errors or beside(input_file)

        async def run() -> Submission:
            async with Scheduler(**settings, budgets=budgets, role="client") as s:
                return await Submitting(
                    s, source, options, place, say, store_option(store), name=name_of(input_file),
                    retry_failed=retry_failed, is_strict=strict,
                ).run()  # fmt: skip

        outcome = asyncio.run(run())
    _tell(outcome, place)
    if as_json:
        from scheduler.cli.output import emit_json

        emit_json(outcome.as_json(job, place))
    raise typer.Exit(outcome.exit)


def _number(word: str) -> str | int:
    return int(word) if word.removeprefix("-").isdecimal() else word


def _tell(outcome: Submission, errors: Path | None) -> None:
    say(outcome.as_line())
    if outcome.refused and errors is not None and errors.exists():
        say(f"errors: {errors}")
