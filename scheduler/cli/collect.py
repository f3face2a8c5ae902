"""``scheduler collect``: the results of a job that workers send, into files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.choices import ProgressOption, check_progress
from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, opened, store_option
from scheduler.cli.options import (
    ENDING,
    FILES,
    TELLING,
    KeptStoreOption,
)

if TYPE_CHECKING:
    from scheduler.cli.collecting import CollectOptions
    from scheduler.cli.delivery import Files
    from scheduler.cli.outcome import Outcome
    from scheduler.cli.progress import Progress

EXAMPLES = """\
scheduler collect --job nightly -o results.jsonl
scheduler collect --job nightly -o results.jsonl --wait --max-wait 2h"""


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("collect", cls=Command, epilog=EXAMPLES)(collect)


def collect(
    job: Annotated[
        str,
        typer.Option(
            "--job", "-j", metavar="NAME", help="As it was submitted.", rich_help_panel=FILES
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output-file",
            "-o",
            metavar="FILE",
            help="Results, - is stdout.",
            rich_help_panel=FILES,
        ),
    ],
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Until nothing of the job waits or runs.", rich_help_panel=ENDING
        ),
    ] = False,
    max_wait: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="With --wait: no longer than this, then exit 75.",
            rich_help_panel=ENDING,
        ),
    ] = None,
    store: KeptStoreOption = DEFAULT_STORE,
    progress: ProgressOption = "auto",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a summary as JSON to stdout.", rich_help_panel=TELLING),
    ] = False,
) -> None:
    """Write the results of a job, each once; the same command adds what has come since.

    The files are those of 'run': results, errors, and what has no outcome yet. Exit 0: all are
    done; 1: some failed; 75: some still wait or run.
    """
    from scheduler.cli.collecting import CollectOptions
    from scheduler.cli.options import check_job
    from scheduler.cli.progress import progress as make_progress
    from scheduler.cli.summary import tell
    from scheduler.duration import parse_duration_ms

    check_progress(progress)
    check_job(job)
    if max_wait is not None and not wait:
        raise typer.BadParameter("is of use with --wait only", param_hint="--max-wait")
    files = _files(job, output)
    options = CollectOptions(
        wait,
        None if max_wait is None else parse_duration_ms(max_wait, "--max-wait"),
        store_option(store),
    )
    shown = make_progress(progress)
    outcome = asyncio.run(_collect(store, files, options, shown))
    tell(outcome, files, as_json)
    raise typer.Exit(outcome.exit)


def _files(job: str, output: str) -> Files:
    """Where to write. Raises a usage error for what cannot be."""
    from scheduler.cli.delivery import Files, stem_of
    from scheduler.cli.run import check_outputs

    results = None if output == "-" else Path(output)
    # Of a job that goes to stdout the name may hold anything.
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in job)[:100]
    stem = stem_of(Path(plain), results)
    files = Files(
        None, results, Path(f"{stem}.errors.jsonl"), Path(f"{stem}.parked.jsonl"), named=job
    )
    check_outputs(files)
    return files


async def _collect(store: str, files: Files, options: CollectOptions, shown: Progress) -> Outcome:
    from scheduler.cli.collecting import Collecting

    async with opened(store) as looked:
        return await Collecting(looked, files, options, shown).run()
