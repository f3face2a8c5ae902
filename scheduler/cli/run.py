"""``scheduler run``: a batch file within its budget, to the end or to be resumed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.batch.input import MAX_LINE_BYTES, LineOptions
from scheduler.cli.exits import Exit
from scheduler.cli.look import DEFAULT_STORE, JsonOption, store_option
from scheduler.cli.options import ConfigOption
from scheduler.cli.output import say
from scheduler.errors import ConfigError
from scheduler.plain import command, logger_of, without_password

if TYPE_CHECKING:
    from scheduler.batch.source import Source
    from scheduler.cli.delivery import Files
    from scheduler.cli.outcome import Outcome, RunOptions
    from scheduler.cli.progress import Progress

MODES = ("auto", "bar", "plain", "json", "none")


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("run")(run)


def run(
    input_file: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS", help="JSON lines or an array, also gzipped; - for stdin."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output-file", "-o", help="Results; default PROMPTS.results.jsonl, - is stdout."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Defines or changes the budget 'default', e.g. '$10/day'; keeps what is spent."
        ),
    ] = None,
    store: Annotated[
        str, typer.Option(envvar="SCHEDULER_STORE", metavar="URL", help="Queue and ledger.")
    ] = DEFAULT_STORE,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible API; default OPENAI_BASE_URL. 'sim:' needs no server."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="For lines that name none.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Most calls at once.")
    ] = 64,
    on_exhausted: Annotated[
        str, typer.Option(metavar="wait|stop", help="When the money is spent: wait, or exit 75.")
    ] = "wait",
    max_wait: Annotated[
        str | None, typer.Option(help="Wait at most so long (2h), whatever for, then exit 75.")
    ] = None,
    grace: Annotated[
        str, typer.Option(help="How long running calls may take after Ctrl-C or SIGTERM.")
    ] = "30s",
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=IN/OUT", help="USD per million tokens; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N lines.")] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The field that names a line; default custom_id, then id."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option(help="Forget earlier outcomes, send everything again.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Send again what failed before.")] = False,
    strict: Annotated[bool, typer.Option(help="Send nothing if any line is bad.")] = False,
    max_line_bytes: Annotated[
        int, typer.Option(min=1, help="Longer lines are errors, and not kept in memory.")
    ] = MAX_LINE_BYTES,
    cap_output: Annotated[
        int | None, typer.Option(min=1, help="Output cap for bodies that have none.")
    ] = None,
    config: ConfigOption = None,
    max_requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Of the default provider, over all models.")
    ] = None,
    max_tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="As the provider counts them.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer prompts are refused, by an estimate.")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Requests that may cost more are refused.")
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Ask it for what does not fit; may be repeated."),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(min=1, help="Most attempts of a line that may cost something; default 6."),
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="How long failures that cost nothing use up no attempt of a line; default 2m.",
        ),
    ] = None,
    on_unknown: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="What a call costs that nobody heard back from: charge (all it reserved), "
            "input_only, 'release after 1h'. Default: the configuration's, else charge.",
        ),
    ] = None,
    store_prompts: Annotated[
        str,
        typer.Option(
            metavar="full|hash|none", help="What of a prompt is kept on the disk; see the docs."
        ),
    ] = "full",
    timeout: Annotated[str | None, typer.Option(help="For one attempt, e.g. 5m.")] = None,
    as_json: JsonOption = False,
    progress: Annotated[str, typer.Option(metavar="|".join(MODES), help="How to tell.")] = "auto",
) -> None:
    """Run a batch file. Run the same command again to go on where it stopped.

    PROMPTS holds lines of OpenAI's or Anthropic's batches, raw bodies, {"messages": …} or
    {"prompt": …}.
    """
    from scheduler.cli.options import Sending, check_store, open_input, parse_prices
    from scheduler.cli.outcome import RunOptions
    from scheduler.cli.progress import progress as make_progress
    from scheduler.duration import parse_duration_ms
    from scheduler.retry import BATCH_ATTEMPTS

    _check_words(on_exhausted, progress)
    with open_input(input_file) as source:
        files = files_of(input_file, source, output)
        check_store(store)
        options = RunOptions(
            LineOptions(
                model=model, limit=limit, max_line_bytes=max_line_bytes, id_column=id_column
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
            max_prompt_tokens, max_cost, cap_output, fallback or (), max_attempts, patience,
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
        shown = make_progress(progress)
        outcome = asyncio.run(_run(settings, budget, source, files, options, shown))
    _tell(outcome, files, as_json)
    raise typer.Exit(outcome.exit)


def _check_words(on_exhausted: str, progress: str) -> None:
    if on_exhausted not in ("wait", "stop"):
        raise typer.BadParameter(
            f"{on_exhausted!r} is neither 'wait' nor 'stop'", param_hint="--on-exhausted"
        )
    if progress not in MODES:
        raise typer.BadParameter(
            f"{progress!r} is not one of {', '.join(MODES)}", param_hint="--progress"
        )


def files_of(given: str, source: Source, output: str | None) -> Files:
    """Where to read and write. Raises a usage error for what cannot be."""
    from scheduler.cli.delivery import Files, stem_of

    # What is under /dev and /proc has another name in each run, and no place beside it.
    place = Path(given).absolute()
    is_passing = any(place.is_relative_to(each) for each in ("/dev", "/proc"))
    path = None if given == "-" or is_passing else Path(given)
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
    _check_outputs(files, source)
    return files


def _check_outputs(files: Files, source: Source) -> None:
    """Nothing may be written over the input, which may be an earlier run's parked file."""
    from scheduler.batch.files import check_lines

    for path in filter(None, (files.results, files.errors, files.parked)):
        problem = None
        if path.is_dir():
            problem = f"{path} is a folder"
        elif path.exists() and not path.is_file():
            raise ConfigError("output", f"{path} is no regular file; '-' writes to stdout")
        elif source.is_file(path):
            problem = f"{path} would be written, and is the input file itself; name another output"
        if problem is not None:
            raise typer.BadParameter(problem, param_hint="--output-file")
    check_lines(files.parked)  # it is replaced; the others are only added to


async def _run(
    settings: dict[str, object],
    budget: str | None,
    source: Source,
    files: Files,
    options: RunOptions,
    shown: Progress,
) -> Outcome:
    from scheduler.batch.lock import OutputLock
    from scheduler.budget import Budget
    from scheduler.cli.runner import BatchRun
    from scheduler.scheduler import Scheduler

    budgets = [] if budget is None else [Budget("default", budget)]
    # The outputs are locked before anything is touched.
    with _not_told_twice(), OutputLock(files.outputs, shown.say):
        async with Scheduler(**settings, budgets=budgets) as s:  # type: ignore[arg-type]
            return await BatchRun(s, source, files, options, shown).run()


@contextlib.contextmanager
def _not_told_twice() -> Iterator[None]:
    """Who is parked is told by a run itself, and not on the logger as well."""
    logger = logger_of("scheduler.parked")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tell(outcome: Outcome, files: Files, as_json: bool) -> None:
    from scheduler.cli.output import emit_json, plural
    from scheduler.duration import format_duration
    from scheduler.money import format_usd

    parts = [f"{outcome.succeeded + outcome.known:,} succeeded"]
    if outcome.known:
        parts[0] += f" ({outcome.known:,} of them before)"
    if outcome.failed:
        parts.append(f"{outcome.failed:,} failed")
    if outcome.known_failed:
        parts.append(f"{outcome.known_failed:,} failed before (--retry-failed sends them again)")
    if outcome.bad:
        parts.append(plural(outcome.bad, "bad line"))
    if outcome.left:
        parts.append(f"{outcome.left:,} left")
    parts.append(f"{format_usd(outcome.cost_nusd)} spent")
    if outcome.reserved_nusd:
        parts.append(
            f"{format_usd(outcome.reserved_nusd)} kept reserved (outcome unknown: "
            "'scheduler queue --state suspense')"
        )
    if outcome.overruns:
        parts.append(f"{plural(outcome.overruns, 'call')} above their ceiling")
    parts.append(f"in {format_duration(int(outcome.seconds * 1000))}")
    say(" · ".join(parts))
    if files.results is not None and files.results.exists():
        say(f"results: {files.results}")
    if files.has_errors:
        say(f"errors: {files.errors}")
    if outcome.left or outcome.exit in (Exit.PARKED, Exit.INTERRUPTED, Exit.CREDENTIALS):
        if files.parked.exists():
            say(f"not done yet: {files.parked}")
        say(f"resume: {_resume_command()}")
    if as_json:
        emit_json(outcome.as_json(files))


def _resume_command() -> str:
    words = [word for word in sys.argv[1:] if word not in ("--fresh", "--retry-failed")]
    return command("scheduler", *map(without_password, words))
