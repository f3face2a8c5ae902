"""``scheduler run``: a batch file within its budget, to the end or to be resumed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.batch.input import MAX_LINE_BYTES, LineOptions
from scheduler.cli.choices import (
    OnExhaustedOption,
    ProgressOption,
    check_on_exhausted,
    check_progress,
)
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, store_option
from scheduler.cli.options import (
    FILES,
    KEEPING,
    MONEY,
    SENDING,
    TELLING,
    BaseUrlOption,
    BudgetOption,
    CapOutputOption,
    ConcurrencyOption,
    FairByOption,
    GraceOption,
    IdColumnOption,
    KeptStoreOption,
    LimitOption,
    MaxAttemptsOption,
    MaxCostOption,
    MaxLineBytesOption,
    MaxPromptOption,
    MaxWaitOption,
    ModelOption,
    OnUnknownOption,
    OutputOption,
    PatienceOption,
    PriceOption,
    RequestsOption,
    RetryFailedOption,
    RiskOption,
    StrictOption,
    TagOption,
    TimeoutOption,
    TokensOption,
    WeightOption,
    config_option,
)
from scheduler.errors import ConfigError
from scheduler.guards.plain import logger_of

if TYPE_CHECKING:
    from scheduler.batch.source import Source
    from scheduler.budget import Budget
    from scheduler.cli.delivery import Files
    from scheduler.cli.outcome import Outcome, RunOptions
    from scheduler.cli.progress import Progress

EXAMPLES = """\
scheduler run prompts.jsonl -o results.jsonl --budget '$10/day'
scheduler run prompts.jsonl --budget '$10/day' --on-exhausted stop
scheduler run prompts.jsonl --base-url sim: --budget '$1'   # no key, no cost"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("run", cls=Command, epilog=EXAMPLES)(run)


def run(
    input_file: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help="JSON lines or an array, also gzipped; - is stdin."),
    ],
    output: OutputOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    id_column: IdColumnOption = None,
    max_line_bytes: MaxLineBytesOption = MAX_LINE_BYTES,
    strict: StrictOption = False,
    retry_failed: RetryFailedOption = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Forget earlier outcomes, send all again.", rich_help_panel=FILES
        ),
    ] = False,
    budget: BudgetOption = None,
    risk: RiskOption = None,
    on_exhausted: OnExhaustedOption = "wait",
    max_cost: MaxCostOption = None,
    cap_output: CapOutputOption = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Ask it for what does not fit; repeatable.",
            rich_help_panel=MONEY,
        ),
    ] = None,
    price: PriceOption = None,
    on_unknown: OnUnknownOption = None,
    base_url: BaseUrlOption = None,
    config: Annotated[str | None, config_option(SENDING)] = None,
    concurrency: ConcurrencyOption = 64,
    tag: TagOption = None,
    fair_by: FairByOption = None,
    weight: WeightOption = None,
    max_requests_per_minute: RequestsOption = None,
    max_tokens_per_minute: TokensOption = None,
    max_prompt_tokens: MaxPromptOption = None,
    max_attempts: MaxAttemptsOption = None,
    patience: PatienceOption = None,
    timeout: TimeoutOption = None,
    max_wait: MaxWaitOption = None,
    grace: GraceOption = "30s",
    store: KeptStoreOption = DEFAULT_STORE,
    store_prompts: Annotated[
        str,
        typer.Option(
            metavar="full|hash|none",
            help="What of a prompt is kept on the disk.",
            rich_help_panel=KEEPING,
        ),
    ] = "full",
    progress: ProgressOption = "auto",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a summary as JSON to stdout.", rich_help_panel=TELLING),
    ] = False,
) -> None:
    """Run a batch file. Run the same command again to go on where it stopped.

    PROMPTS holds lines of OpenAI's or Anthropic's batches, raw bodies, objects with "messages"
    or with "prompt".
    """
    from scheduler.cli.options import (
        Sending,
        budgets_of,
        check_store,
        open_input,
        parse_prices,
        parse_tags,
    )
    from scheduler.cli.outcome import RunOptions
    from scheduler.cli.progress import progress as make_progress
    from scheduler.cli.summary import tell
    from scheduler.duration import parse_duration_ms
    from scheduler.limits.retry import BATCH_ATTEMPTS

    check_on_exhausted(on_exhausted)
    check_progress(progress)
    with open_input(input_file) as source:
        files = files_of(input_file, source, output)
        check_store(store)
        options = RunOptions(
            LineOptions(
                model=model,
                limit=limit,
                max_line_bytes=max_line_bytes,
                id_column=id_column,
                tags=parse_tags(tag or ()),
            ),
            stops=on_exhausted == "stop",
            max_wait_ms=None if max_wait is None else parse_duration_ms(max_wait, "--max-wait"),
            retry_failed=retry_failed,
            is_strict=strict,
            is_fresh=fresh,
            grace_s=parse_duration_ms(grace, "--grace") / 1000,
            store_option=store_option(store),
        )
        sending = Sending(
            config, base_url, timeout, max_requests_per_minute, max_tokens_per_minute,
            max_prompt_tokens, max_cost, cap_output, fallback or (), max_attempts, patience, fair_by,
            weight or (),
        ).settings()  # fmt: skip
        if on_unknown is not None:
            for provider in sending["providers"]:
                provider.on_unknown = on_unknown
        settings = {
            "max_attempts": BATCH_ATTEMPTS,
            **sending,
            "store": store,
            "store_prompts": store_prompts,
            "prices": parse_prices(price or ()),
            "concurrency": concurrency,
        }
        budgets = budgets_of(budget, risk, config)
        shown = make_progress(progress)
        outcome = asyncio.run(_run(settings, budgets, source, files, options, shown))
    tell(outcome, files, as_json)
    raise typer.Exit(outcome.exit)


def lasting(given: str) -> Path | None:
    """The file that the command line names; None: something that passes, as stdin does.

    What is under /dev and /proc has another name in each run, and no place beside it.
    """
    place = Path(given).absolute()
    is_passing = any(place.is_relative_to(each) for each in ("/dev", "/proc"))
    return None if given == "-" or is_passing else Path(given)


def files_of(given: str, source: Source, output: str | None) -> Files:
    """Where to read and write. Raises a usage error for what cannot be."""
    from scheduler.cli.delivery import Files, stem_of

    path = lasting(given)
    base = Path("stdin.jsonl") if path is None else path
    # Only an ordinary ending is left out: what differs in any other way stays apart.
    stem = stem_of(path, None)
    ordinary = Path(f"{stem}.jsonl")
    if output in (None, "-") and ordinary != base and ordinary.is_file():
        raise typer.BadParameter(
            f"what is made of {base} would be taken for what is made of {ordinary}; name them with -o",
            param_hint="--output-file",
        )
    results = Path(f"{stem}.results.jsonl") if output is None else Path(output)
    stem = stem_of(path, None if output == "-" else results)
    files = Files(
        path,
        None if output == "-" else results,
        Path(f"{stem}.errors.jsonl"),
        Path(f"{stem}.parked.jsonl"),
    )
    check_outputs(files, source)
    return files


def check_outputs(files: Files, source: Source | None = None) -> None:
    """Nothing may be written over the input, which may be an earlier run's parked file."""
    from scheduler.batch.files import check_lines

    for path in filter(None, (files.results, files.errors, files.parked)):
        problem = None
        if path.is_dir():
            problem = f"{path} is a folder"
        elif path.exists() and not path.is_file():
            raise ConfigError("output", f"{path} is no regular file; '-' writes to stdout")
        elif source is not None and source.is_file(path):
            problem = f"{path} would be written, and is the input file itself; name another output"
        if problem is not None:
            raise typer.BadParameter(problem, param_hint="--output-file")
    check_lines(files.parked)  # it is replaced; the others are only added to


async def _run(
    settings: dict[str, object],
    budgets: Sequence[Budget],
    source: Source,
    files: Files,
    options: RunOptions,
    shown: Progress,
) -> Outcome:
    from scheduler.batch.pen import Pen
    from scheduler.cli.look import store_named
    from scheduler.cli.runner import BatchRun
    from scheduler.scheduler import Scheduler

    # What two processes cannot both work on is not begun twice.
    work = {"job": files.job, "store": store_named(str(settings["store"]))}
    work["asks"] = settings["providers"][0].service or ""  # type: ignore[index]
    is_whole = settings["store_prompts"] == "full" and bool(work["asks"])
    joins = is_whole and not options.is_fresh and files.results is not None
    pen = Pen(files.outputs, work, shown.say, joins=joins)
    # The outputs are locked before anything is touched.
    with not_told_twice(), pen:
        async with Scheduler(**settings, budgets=budgets) as s:  # type: ignore[arg-type]
            return await BatchRun(s, source, files, options, shown, pen).run()


@contextlib.contextmanager
def not_told_twice() -> Iterator[None]:
    """Who is parked is told by a run itself, and not on the logger as well."""
    logger = logger_of("scheduler.parked")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
