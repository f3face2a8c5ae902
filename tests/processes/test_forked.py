"""One file on both sides of a fork: SQLite keeps its locks by process, and a fork does not know that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = """
import os, signal, sys, traceback
import scheduler
from scheduler import Request, SchedulerError, Simulated

if sys.argv[1] == "newest":
    from tests.stores import newest
    newest.install()
signal.alarm(60)

def made(path="s.db"):
    return scheduler.open(f"sqlite:///{path}", budgets="$1", providers=Simulated())

def ask(s, key):
    return s.run(Request.chat("sim-small", "Hi", max_tokens=5, key=key))

def forked(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def refused():
    try:
        made()
    except SchedulerError as error:
        print(type(error).__name__, error, flush=True)
    else:
        raise AssertionError("it was opened")

def used(path="s.db", key="child"):
    with made(path) as s:
        ask(s, key)
"""


def run(program, folder, sqlite):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program, sqlite], capture_output=True, text=True, timeout=90,
        check=False, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.parametrize("sqlite", ["this", "newest"]),
]
WHY = " was open when this process was forked"
WHAT = "Nothing was sent. Open it in each process after the fork, and not before it"


@pytest.mark.parametrize(
    "way",
    ["forked(refused)", "forked(lambda: forked(refused))", "os.symlink('s.db', 'l.db'); forked(linked)"],
    ids=["a child", "its child", "by another name"],
)  # fmt: skip
def test_a_file_that_was_open_at_the_fork_is_not_opened_in_it(tmp_path, sqlite, way):
    told = run(
        f"""
def linked():
    global made
    opened, made = made, lambda: opened("l.db")
    refused()

s = made()
ask(s, "parent")
{way}
ask(s, "parent again")
print(s.stats().succeeded)
""",
        tmp_path,
        sqlite,
    )

    error, succeeded = told.splitlines()
    assert error.startswith("StoreError ")
    assert ("l.db" if "linked" in way else "s.db") + WHY in error
    assert WHAT in error
    assert succeeded == "2"


def test_one_that_was_closed_before_it_or_is_another_is_opened(tmp_path, sqlite):
    told = run(
        """
used(key="parent")
forked(used)
s = made("other.db")
ask(s, "parent")
forked(lambda: used(key="child of one that has another open"))
s.close()
forked(lambda: used("other.db"))
with made() as s:
    print(s.stats().budgets[0].caps[0].posted > 0, s.stats().succeeded)
""",
        tmp_path,
        sqlite,
    )

    assert told == "True 0\n"
