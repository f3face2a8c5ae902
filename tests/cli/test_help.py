"""Help as a person reads it: every name and default whole, at every width, in columns or below."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from scheduler.cli import app as root
from scheduler.cli.exits import CODES
from scheduler.cli.widths import cells

WIDTHS = (40, 60, 80, 100, 130)


def commands(command=None, words=()):
    """Each command with the words that name it, those below groups too."""
    command = command or typer.main.get_command(root.app)
    yield words, command
    if hasattr(command, "list_commands"):
        ctx = typer.Context(command)
        for name in command.list_commands(ctx):
            yield from commands(command.get_command(ctx, name), (*words, name))


COMMANDS = {" ".join(words): command for words, command in commands()}


def helped(words, width, **env):
    env = {"COLUMNS": str(width) if width else None, "TERM": "xterm", **env}
    done = CliRunner().invoke(root.app, [*words.split(), "--help"], env=env)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("width", [*WIDTHS, None])
@pytest.mark.parametrize("words", COMMANDS)
def test_no_name_and_no_default_is_cut(words, width):
    text = helped(words, width)
    told = text.split()

    assert "…" not in text
    examples = (COMMANDS[words].epilog or "").splitlines()  # are whole, to be copied
    lines = [line for line in text.splitlines() if line.strip() not in examples]
    assert max(map(cells, lines)) <= min(width or 80, 100)
    assert all(f"  {each}\n" in text for each in examples)
    for param in COMMANDS[words].params:
        names = param.opts if param.param_type_name == "option" else [param.metavar]
        for name in names:
            assert any(name == each.strip("[].,") for each in told), name
        default = getattr(param.default, "value", param.default)
        if isinstance(default, str | int | float) and not getattr(param, "is_flag", False):
            assert f"[default: {default}]" in text
        for word in (param.help or "").split():
            assert word in text  # none is broken
    for code, meaning in CODES.items():
        assert f"{code.value:<5}{meaning.split()[0]}" in text


@pytest.mark.parametrize("words", [words for words in COMMANDS if words])
def test_what_a_value_is_called_says_what_it_is(words):
    for param in COMMANDS[words].params:
        is_flag = getattr(param, "is_flag", False)
        assert is_flag or param.metavar, f"{param.name} would be shown as its variable is called"


def test_the_columns_of_the_longest_help_are_readable():
    lines = helped("run", 80).splitlines()

    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Arguments:", "Lines and results:", "Money:", "Sending:", "Waiting and ending:", "Keeping:",
        "Telling:", "Options:", "Examples:", "Exit codes:",
    ]  # fmt: skip
    assert "      --max-cost USD            Refuse requests that may cost more." in lines
    at = lines.index("      --max-requests-per-minute N")  # too long to stand beside
    assert lines[at + 1] == " " * 32 + "Of the default provider, over all models."
    assert "  scheduler run prompts.jsonl -o results.jsonl --budget '$10/day'" in lines


def test_where_two_columns_have_no_room_they_stand_below_each_other():
    lines = helped("run", 50).splitlines()

    at = lines.index("      --budget LIMIT")
    assert lines[at + 1].startswith(" " * 8 + "Sets the budget 'default'")


def test_commands_are_told_in_one_line_each():
    lines = helped("", 80).splitlines()

    for name, words in root.COMMANDS.items():
        assert any(line.split() == [name, *words.split()] for line in lines), name


def test_a_command_that_is_mistyped_is_guessed():
    done = CliRunner().invoke(root.app, ["bugdet"])

    assert done.exit_code == 2
    assert "'budget'" in done.stderr


@pytest.mark.parametrize(
    ("env", "is_coloured"),
    [
        ({}, False),  # not a terminal
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
@pytest.mark.parametrize("words", ["", "run", "budget set"])
def test_colours_only_where_they_are_wanted(words, env, is_coloured):
    text = helped(words, 80, **{"NO_COLOR": None, "FORCE_COLOR": None, **env})

    assert ("\x1b[" in text) is is_coloured
    assert all("…" not in line for line in text.splitlines())


def loaded(*words: str) -> set[str]:
    """Modules that are loaded in the end."""
    program = (
        "import sys\nfrom scheduler.cli.app import app\n"
        f"try: app({list(words)!r}, prog_name='scheduler')\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_what_needs_no_command_loads_none(words):
    heavy = {
        "rich",
        "asyncio",
        "pydantic",
        "httpx",
        "scheduler.scheduler",
        "scheduler.cli.run",
    }

    assert not loaded(*words) & heavy


def test_help_of_a_command_loads_only_that_one():
    modules = loaded("spend", "--help")

    assert "scheduler.cli.spend" in modules
    assert not modules & {"rich.console", "httpx", "scheduler.scheduler", "scheduler.cli.run"}
