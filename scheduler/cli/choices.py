"""Options whose value is one of a few words, and what each refuses."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.options import ENDING, MONEY, SENDING, TELLING

OnExhaustedOption = Annotated[
    str,
    typer.Option(metavar="wait|stop", help="When the money is spent.", rich_help_panel=MONEY),
]
MODES = ("auto", "bar", "plain", "json", "none")
ProgressOption = Annotated[
    str,
    typer.Option(
        metavar="HOW", help=f"{', '.join(MODES[:-1])} or {MODES[-1]}.", rich_help_panel=TELLING
    ),
]
ServeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        help="Serve only this one; repeatable. Default: all that have their key there.",
        rich_help_panel=SENDING,
    ),
]
UntilIdleOption = Annotated[
    bool,
    typer.Option(
        "--until-idle",
        help="End when nothing waits that it serves; 75 if the money or --max-wait ended it.",
        rich_help_panel=ENDING,
    ),
]


def check_on_exhausted(word: str) -> None:
    """Refuse what is nothing to do when the money is spent."""
    if word not in ("wait", "stop"):
        raise typer.BadParameter(
            f"{word!r} is neither 'wait' nor 'stop'", param_hint="--on-exhausted"
        )


def check_progress(mode: str) -> None:
    """Refuse what is no way to show progress."""
    if mode not in MODES:
        raise typer.BadParameter(
            f"{mode!r} is not one of {', '.join(MODES)}", param_hint="--progress"
        )
