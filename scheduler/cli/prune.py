"""``scheduler prune``: how does one keep the file small?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.helping import Command
from scheduler.cli.look import DEFAULT_STORE, JsonOption, StoreOption, now_ms, with_store
from scheduler.cli.output import emit_json, plural, tell

if TYPE_CHECKING:
    from scheduler.stores.base import Archive, Finished, Store


EXAMPLES = "scheduler prune --before 30d --archive old.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("prune", cls=Command, epilog=EXAMPLES)(prune)


def prune(
    before: Annotated[
        str, typer.Option(metavar="SPAN", help="Forget what ended longer ago than this, e.g. 30d.")
    ],
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append what is forgotten to it, as result lines."),
    ] = None,
    undelivered: Annotated[
        bool, typer.Option("--undelivered", help="Also answers that never reached a results file.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Forget old requests and their answers; no balance changes, and no total of 'spend'.

    Their keys become free: a batch file that is run again after that is paid for again, but for
    lines whose answer stands in its results file. What is waiting, running, or of unknown outcome stays. The file does not shrink, it is filled again.
    """
    from scheduler.duration import parse_duration_ms

    before_ms = now_ms() - parse_duration_ms(before, "--before")

    async def change(opened: Store) -> int:
        count = 0
        with _writer(archive) as write:
            while page := await opened.prune(
                before_ms, now_ms(), undelivered=undelivered, archive=write
            ):
                count += len(page)
        return count

    count = with_store(store, change)
    if as_json:
        emit_json({"pruned": count, "archive": None if archive is None else str(archive)})
    else:
        said = "" if archive is None or not count else f"; they are in {archive}"
        tell(f"{plural(count, 'request')} forgotten{said}")


@contextlib.contextmanager
def _writer(path: Path | None) -> Iterator[Archive | None]:
    """What writes a page to the file, and waits for the disk."""
    from scheduler.batch.files import LineFile
    from scheduler.batch.lock import OutputLock
    from scheduler.batch.results import error_line, result_line

    if path is None:
        yield None
        return

    def line(each: Finished) -> dict[str, Any]:
        if each.response is not None:
            return result_line(each.id, each.key, each.response, each.digest)
        error = each.error or {"code": each.state.value, "message": f"it was {each.state.value}"}
        return error_line(each.id, each.key, error, each.cost_nusd, each.attempts, each.digest)

    with OutputLock([path]), LineFile(path) as file:
        yield lambda page: file.append(line(each) for each in page)
