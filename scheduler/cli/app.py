"""The root of the command line: which commands there are, and how failures end."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scheduler import __version__
from scheduler.cli.exits import EPILOG, Exit, envelope, exit_for, report
from scheduler.cli.output import fit_streams
from scheduler.cli.streams import give_up_stdout, is_of_stdout, take_streams
from scheduler.errors import SchedulerError
from scheduler.plain import one_line

UsageError: Any = typer.BadParameter.__mro__[1]  # not exported under its own name
COMMANDS = (
    "demo", "run", "quote", "status", "queue", "resolve", "budget", "spend", "audit", "prune", "prices",
    "doctor", "simulate",
)  # fmt: skip
# What names a file may be any bytes, where the system's names are bytes.
PLACES = ("store", "input_file", "output", "config")


class Root(TyperGroup):
    """Turns this package's errors into one clear line and an exit code."""

    as_json = False

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Run a command line; `args` None: that of the process."""
        take_streams()
        fit_streams()
        self.as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **options)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name."""
        command = super().get_command(ctx, cmd_name)
        _take_text_only(command)
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except SchedulerError as error:
            report(error, self.as_json)
            raise typer.Exit(exit_for(error)) from None
        except UsageError as error:  # typer tells it
            error.message = one_line(error.message)
            if self.as_json:
                print(envelope("UsageError", error.format_message()))
            raise
        except (OSError, UnicodeError) as error:  # a file's name that the system's encoding has not
            if isinstance(error, BrokenPipeError):
                raise
            report(error, self.as_json)
            if is_of_stdout(error):
                give_up_stdout()
            raise typer.Exit(Exit.FAILED) from None


def _take_text_only(command: Any) -> None:
    """Have a command and those below it refuse arguments that are no text."""
    for each in getattr(command, "commands", {}).values():
        _take_text_only(each)
    for param in getattr(command, "params", ()):
        if param.callback is None and param.name not in PLACES:
            param.callback = _text_only


def _text_only(ctx: Any, param: Any, value: Any) -> Any:
    for each in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(each, str):
            continue  # paths are whatever they are
        try:
            each.encode()
        except UnicodeEncodeError:
            shown = each.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise typer.BadParameter(f"'{shown}' is not valid UTF-8", ctx, param) from None
    return value


app = typer.Typer(
    cls=Root,
    name="scheduler",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so keys
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"scheduler {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run LLM requests within a budget: what does not fit waits, nothing is overspent.

    Start with 'scheduler demo', which needs no key, or 'scheduler run prompts.jsonl'.
    """


for _name in COMMANDS:
    importlib.import_module(f"scheduler.cli.{_name}").register(app)


def main() -> None:
    """Entry point of the command ``scheduler``."""
    try:
        app(prog_name="scheduler")
    except OSError as error:  # of stdout, outside any command: its help, or what ended it
        give_up_stdout()
        report(error)
        raise SystemExit(Exit.FAILED) from None
    finally:
        _flush()


def _flush() -> None:
    """Write out what is left; a reader that has gone away (``| head``) is no error."""
    try:
        sys.stdout.flush()
    except OSError as error:
        give_up_stdout()
        if not isinstance(error, BrokenPipeError):
            report(error)
            raise SystemExit(Exit.FAILED) from None
