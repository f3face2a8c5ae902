"""Every command on terminals of several widths: no line is too long, and no amount is broken."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.cells import cell_len

from scheduler.cli.adopting import TABLE

LINES = {row.line for row in TABLE}
LONG = "budget-of-the-team-in-日本-and-its-😀-friends-in-Rotterdam"
ALL = """
import json, sys
from scheduler.cli.app import app
for words in json.loads(sys.argv[1]):
    print("##", *words)
    try:
        app(words, prog_name="scheduler")
    except SystemExit:
        pass
"""
COMMANDS = (
    ("budget", "set", LONG, "$12345.678901/month @America/Argentina/ComodRivadavia", "--create"),
    ("budget", "list"), ("status",), ("queue",), ("queue", "--state", "suspense"), ("spend",), ("audit",),
    ("prices", "set", "a-model-with-quite-a-long-name-2026-11-28", "--in", "0.10", "--out", "12.345678"),
    ("prices", "show"), ("doctor",), ("quote", "p.jsonl", "--base-url", "sim:"),
    ("budget", "explain", "--model", "gpt-4o"), ("budget", "explain", "$5/hour,$50/day"),
)  # fmt: skip


def on_terminal(program, words, width, place, **env):
    """What a program writes where it finds a terminal of that width."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, *program, *words], stdin=its, stdout=its, stderr=its, cwd=place,
        env={**kept, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **env},
    )  # fmt: skip
    os.close(its)
    told = b""
    try:
        while part := os.read(ours, 65_536):
            told += part
    except OSError:  # the terminal is gone with the last who had it
        pass
    os.close(ours)
    assert child.wait(60) in (0, 75)
    return told.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [40, 80])
def test_every_command_fits_the_terminal(filled, tmp_path, width):
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    (tmp_path / "p.jsonl").write_text(json.dumps({"custom_id": LONG, "body": body}) + "\n")

    told = on_terminal(["-c", ALL], [json.dumps(COMMANDS)], width, tmp_path)

    prose = [line for line in told.splitlines() if not _is_to_be_copied(line)]
    assert not [line for line in prose if cell_len(line) > width]
    assert "Traceback" not in told
    for amount in ("$12345.678901", "$0.80", "$0.30", "$0.05", "12.345678"):
        assert re.search(rf"(?<![\d.$]){re.escape(amount)}(?![\d.])", told), amount


def _is_to_be_copied(line):
    """Commands and lines of code are whole, whatever the width."""
    return line.startswith(("##", "scheduler ")) or line.strip() in LINES


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_a_run_fits_the_terminal(tmp_path, width):
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    lines = (json.dumps({"custom_id": f"r{number}", "body": body}) for number in range(30))
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    words = ["run", "p.jsonl", "--base-url", "sim:", "--budget", "$0.00005/day", "--on-exhausted",
             "stop", "-c", "4"]  # fmt: skip

    told = on_terminal(["-m", "scheduler"], words, width, tmp_path)

    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "\n", told).replace("\r", "\n").splitlines()
    prose = [line for line in shown if not _is_to_be_copied(line)]
    assert not [line for line in prose if cell_len(line) > width]
    assert any(re.search(r"\$0\.0000\d+ (\+ \S+ |spent \+ \S+ reserved )?of \$0\.00005", line)
               for line in shown), shown  # fmt: skip
