"""The root of the command line: which commands there are, and how failures end."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from scheduler import __version__
from scheduler.cli.exits import Exit, envelope, exit_for, report
from scheduler.cli.helping import Group
from scheduler.cli.output import fit_streams, say
from scheduler.cli.streams import give_up_stdout, is_of_stdout, take_streams
from scheduler.errors import SchedulerError
from scheduler.guards.plain import one_line

UsageError: Any = typer.BadParameter.__mro__[1]  # not exported under its own name
# Each is loaded when it is asked for: what it needs takes longer than telling what there is.
COMMANDS = {
    "demo": "See all of it work, with no key and no cost.",
    "run": "Run a batch file within a budget; run it again to go on.",
    "serve": "Serve your clients' APIs within budgets, as a gateway.",
    "token": "Make, list and revoke tokens for clients of the gateway.",
    "submit": "Put a batch file in a shared queue, for workers to send.",
    "worker": "Send what others submit to a store, until told to stop.",
    "ray": "Run workers on a Ray cluster.",
    "collect": "Write the results of a job that workers send.",
    "quote": "Say what a batch will cost before it runs; sends nothing.",
    "status": "Show what waits and why, what runs, and what was spent.",
    "dashboard": "Open a page to watch a store on.",
    "top": "Watch budgets, queue, speed and spend in a terminal.",
    "queue": "List requests, with why they wait and until when.",
    "resolve": "Say what a call cost that nobody heard back from.",
    "budget": "List budgets; change, pause, remove and explain them.",
    "spend": "Sum what was spent by model, job or budget.",
    "audit": "Recompute every balance from the reservations.",
    "prune": "Forget old requests and their answers; no balance changes.",
    "move": "Go on with a file's budgets, spend and queue in PostgreSQL.",
    "prices": "Show prices; set your own, which come first.",
    "doctor": "Check what a run needs, and say how to adopt your SDKs.",
    "simulate": "Serve a simulated provider, to try any client against.",
}
# What names a file may be any bytes, where the system's names are bytes.
PLACES = ("store", "input_file", "output", "config")


class Root(Group):
    """Loads commands when they are named; turns errors into one clear line and an exit code."""

    as_json = False

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Run a command line; `args` None: that of the process."""
        take_streams()
        fit_streams()
        self.as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **options)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def one_liners(self, ctx: Any) -> list[tuple[str, str]]:
        """What each command does, without loading it."""
        return list(COMMANDS.items())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, loaded; None: there is none."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(_load(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant, or an error that suggests one."""
        if args and args[0] not in COMMANDS:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            if ctx.obj is not None:
                ctx.obj()
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Exit.INTERRUPTED) from None
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


def _load(name: str) -> Any:
    """A command, by the module of its name."""
    part = typer.Typer(rich_markup_mode=None)
    importlib.import_module(f"scheduler.cli.{name}").register(part)
    command = typer.main.get_group(part).commands[name]
    _take_text_only(command)
    return command


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


EXAMPLES = """\
scheduler demo
scheduler run prompts.jsonl -o results.jsonl --budget '$10/day'
scheduler status --watch
scheduler budget set default '$20'"""

app = typer.Typer(
    cls=Root,
    name="scheduler",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,
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
    """Run LLM requests within a budget: what does not fit waits, nothing is overspent."""


def main(on_begin: Callable[[], None] | None = None) -> None:
    """Run the command line of this process.

    Args:
        on_begin: Called before the command that was named begins.
    """
    try:
        app(prog_name="scheduler", obj=on_begin)
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
