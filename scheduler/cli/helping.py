"""How a command's help looks: plain text in two columns, grouped, as wide as the terminal.

Names of options and defaults are never cut: where the columns are too narrow, what an option does
stands below its name. Typer's own help is drawn by rich, whose columns cut names at 80 cells, and
which takes longer to load than all else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from scheduler.cli.exits import CODES
from scheduler.cli.widths import ASIDE, cells, columns_of, columns_said, hung, wrapped

WIDEST = 100  # longer lines are hard to read
NARROWEST = 30
INDENT = "  "
MOST_NAMES = 28  # cells of the first column; longer names get a line of their own
LEAST_TEXT = 30  # fewer cells beside the names are too few to read
OPTIONS = "Options"
TIED = "\xa0"  # a blank at which no line is broken

Section = tuple[str, list[tuple[str, str]]]


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write it."""
        _write(self, ctx, formatter, [])


class Group(TyperGroup):
    """A group of commands with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write it."""
        _write(self, ctx, formatter, self.one_liners(ctx))

    def one_liners(self, ctx: Any) -> list[tuple[str, str]]:
        """Its commands, and what each does in a few words."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        return [(name, _first_line(each.help)) for name, each in found if each is not None]


def _write(command: Any, ctx: Any, formatter: Any, commands: list[tuple[str, str]]) -> None:
    is_coloured = _is_coloured()
    ctx.color = is_coloured  # else typer takes the colours off again where it knows no terminal
    width = min(columns_of(sys.stdout) or columns_said() or ASIDE, WIDEST)
    lines = help_lines(command, ctx, commands, max(width, NARROWEST), is_coloured=is_coloured)
    formatter.write("\n".join(lines).replace(TIED, " ") + "\n")


def _is_coloured() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def help_lines(
    command: Any, ctx: Any, commands: list[tuple[str, str]], width: int, *, is_coloured: bool
) -> list[str]:
    """The help of a command, in lines of at most `width` cells.

    Args:
        command: Of typer's.
        ctx: Where it was asked for.
        commands: Those below it, and what each does.
        width: Cells.
        is_coloured: Whether headings and names stand out.
    """
    sections = [*_sections(command, ctx), *([("Commands", commands)] if commands else [])]
    about, *more = _paragraphs(command.help)
    lines = wrapped(about, width)
    lines += ["", *hung("Usage: ", _usage(command, ctx), width, folds=False)]
    for paragraph in more:
        lines += ["", *wrapped(paragraph, width)]
    names = min(max(cells(name) for _, rows in sections for name, _ in rows), MOST_NAMES)
    for title, rows in sections:
        lines += ["", _styled(f"{title}:", is_coloured, bold=True)]
        for name, text in rows:
            lines += _entry(name, text, names, width, is_coloured)
    if command.epilog:
        lines += ["", _styled("Examples:", is_coloured, bold=True)]
        lines += [f"{INDENT}{each}" for each in command.epilog.splitlines()]
    lines += ["", _styled("Exit codes:", is_coloured, bold=True)]
    for code, meaning in CODES.items():
        lines += hung(f"{INDENT}{code.value:<5}", meaning, width)
    return lines


def _paragraphs(text: str | None) -> Iterator[str]:
    for paragraph in (text or "").split("\n\n"):
        yield " ".join(paragraph.split())


def _first_line(text: str | None) -> str:
    return next(_paragraphs(text))


def _usage(command: Any, ctx: Any) -> str:
    words = [ctx.command_path, "[OPTIONS]"]
    for param in command.params:
        if param.param_type_name == "argument":
            name = _metavar(param) + ("..." if param.nargs == -1 else "")
            words.append(name if param.required else f"[{name}]")
    return " ".join([*words, *(["COMMAND"] if isinstance(command, TyperGroup) else [])])


def _sections(command: Any, ctx: Any) -> list[Section]:
    """Arguments, then options by their panel, in the order in which they are declared."""
    found: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if param.param_type_name == "argument":
            found.setdefault("Arguments", []).append((_metavar(param), _text(param)))
    options = [p for p in command.get_params(ctx) if p.param_type_name == "option"]
    for param in options:
        if not param.hidden:
            panel = getattr(param, "rich_help_panel", None) or OPTIONS
            found.setdefault(panel, []).append((_names(param), _text(param)))
    if len(found) > 1 and OPTIONS in found:  # those that say nothing of what the command is for
        found[OPTIONS] = found.pop(OPTIONS)
    return list(found.items())


def _names(param: Any) -> str:
    """``-o, --output-file FILE``; long names stand below each other."""
    names = sorted(param.opts, key=len)
    start = "" if len(names[0]) == 2 else "    "
    value = "" if param.is_flag else f" {_metavar(param)}"
    return f"{start}{', '.join(names)}{value}"


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _text(param: Any) -> str:
    """What an option does, then its default and the variable that sets it."""
    more = []
    if param.param_type_name == "option" and not param.is_flag:
        default = param.default.value if isinstance(param.default, Enum) else param.default
        if param.show_default and isinstance(default, str | int | float):
            more.append(f"[default:{TIED}{default}]")
        if param.envvar:
            more.append(f"[env:{TIED}{param.envvar}]")
        if param.required:
            more.append("[required]")
    return " ".join([param.help or "", *more])


def _entry(name: str, text: str, names: int, width: int, is_coloured: bool) -> Iterable[str]:
    """A name and what it does: beside it, or below it where there is too little room."""
    shown = _styled(name, is_coloured, fg=typer.colors.CYAN)
    column = len(INDENT) + names + 2
    if width - column < LEAST_TEXT:
        return [f"{INDENT}{shown}", *hung(INDENT * 4, text, width, folds=False)]
    lines: Sequence[str] = hung(" " * column, text, width, folds=False)
    if cells(name) > names:
        return [f"{INDENT}{shown}", *lines]
    blank = " " * (column - len(INDENT) - cells(name))
    return [f"{INDENT}{shown}{blank}{lines[0][column:]}", *lines[1:]]


def _styled(text: str, is_coloured: bool, **style: Any) -> str:
    return typer.style(text, **style) if is_coloured else text
