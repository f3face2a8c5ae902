"""Ctrl-C while a command is being loaded: one plain line and 130, never a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Sends the signal to itself where a module begins to load, or where a command is about to end.
PROGRAM = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, {handler})
import scheduler
real, at = builtins.__import__, {at!r}
def import_(name, *rest, **more):
    if name == at:
        builtins.__import__ = real
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest, **more)
sys.argv = ["scheduler", *{words!r}]
from scheduler.cli.entry import main
builtins.__import__ = import_
main()
"""


def interrupted(at: str, *words: str, handler: str = "signal.default_int_handler"):
    program = PROGRAM.format(at=at, words=list(words), handler=handler)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("scheduler.cli.app", ["--help"]),
        ("typer", ["status"]),
        ("scheduler.errors", ["run", "x.jsonl"]),
        ("scheduler.cli.exits", ["--version"]),
        # Within a command, while it loads what it needs
        ("scheduler.stores", ["doctor", "--store", "/nowhere/x.db"]),
        ("scheduler.cli.forecast", ["quote", "x.jsonl"]),
        ("scheduler.prices.book", ["prices", "show", "gpt-4o"]),
    ],
)
def test_an_interrupt_while_modules_are_loaded_is_one_plain_line(at, words):
    done = interrupted(at, *words)

    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_whoever_had_interrupts_ignored_is_not_interrupted():
    done = interrupted("typer", "--version", handler="signal.SIG_IGN")

    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_loads_none_of_its_modules():
    program = "import sys, scheduler; print([n for n in sys.modules if n.startswith('scheduler.')])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
