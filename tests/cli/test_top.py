"""`scheduler top`: one picture for people and programs, and a live one on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pyte
import pytest
from rich.cells import cell_len

from scheduler.budget import Budget
from scheduler.cli.look import with_store
from scheduler.cli.screen import Speed, plain, screen
from scheduler.stats import Counts, SpendRow, UnknownSum
from scheduler.telemetry.picture import Lately, look


def test_one_picture_tells_budgets_queue_unknown_and_spend(cli, filled):
    done = cli("top", "--once", "--store", filled)

    assert done.exit_code == 0, done.output
    assert "3 done · 1 failed · 0 running · 0 queued · 3 parked" in done.stdout
    assert re.search(r"default +\$1.00/day .* 85 % +\$0.80 +\$0.05 +\$0.15 ", done.stdout)
    assert re.search(r"parked +\S+ +window spent +default +3 ", done.stdout)
    assert "unknown: 1 outcome holds $0.05" in done.stdout
    assert re.search(r"labels +\$0.80 +4", done.stdout) or re.search(r"labels +\$0.80", done.stdout)
    assert "q quits" not in done.stdout


def test_a_picture_for_programs_has_what_status_has_and_more(cli, filled):
    top = json.loads(cli("top", "--json", "--store", filled).stdout)
    status = json.loads(cli("status", "--json", "--store", filled).stdout)

    assert status.keys() - {"finish", "burning"} <= top.keys()  # these take longer
    assert top["requests"] == status["requests"]
    assert top["parked"] == status["parked"]
    (parked,) = top["queue"]
    assert (parked["state"], parked["reason"], parked["of"], parked["requests"]) == (
        "parked", "window_spent", "default", 3,
    )  # fmt: skip
    assert top["unknown"]["held_usd"] == "0.05"
    assert [each["name"] for each in top["lately"]["models"]] == ["sim-small", "sim-large"]
    assert top["budgets"][0].keys() >= {"per_hour_usd", "spent_at", "available_usd"}


def test_looking_leaves_the_store_as_it_was(cli, filled):
    before = filled.read_bytes()

    assert cli("top", "--once", "--store", filled).exit_code == 0

    assert filled.read_bytes() == before


def _crowded(filled):
    """A picture of much more than any terminal shows, with names of all kinds."""
    at_ms = time.time_ns() // 1_000_000

    async def read(store):
        names = [f"team-{n}-with-quite-a-long-name-日本-😀" for n in range(30)]
        await store.define([Budget(n, "$12345.678901/month,2M tokens/24h") for n in names], at_ms)
        return await look(store, str(filled), at_ms)

    picture = with_store(str(filled), read)
    rows = tuple(SpendRow(f"model-{'x' * n}", n, n * 10**8, 0, 0, n * 1000) for n in range(40))
    return replace(
        picture, counts=Counts(10**6, 5 * 10**5, 64, 10**7, 123, 4, 5),
        unknown=UnknownSum(1234, 10**12, at_ms - 10**9), lately=Lately(at_ms - 10**6, rows, rows),
    )  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 50), (60, 20), (40, 12), (24, 8)])
def test_it_fits_whatever_there_is_to_tell(filled, width, height):
    lines = plain(screen(_crowded(filled), Speed(1000, 3), width, height, is_live=True)).split("\n")

    assert len(lines) <= height
    assert not [line for line in lines if cell_len(line) > width]
    assert any("parked" in line for line in lines)
    if height >= 20:
        assert {"BUDGET", "QUEUE", "MODEL", "JOB"} <= {line.partition(" ")[0] for line in lines}
        assert any(re.match(r"and \d+ more$", line) for line in lines)


def test_the_fullest_budget_stands_first_and_amounts_stay_whole(filled):
    lines = plain(screen(_crowded(filled), Speed(), 80, 24)).split("\n")

    at = next(n for n, line in enumerate(lines) if line.startswith("BUDGET"))
    assert lines[at + 1].startswith("default")
    assert "85 %" in lines[at + 1]
    assert "…" not in lines[at + 1]


class Terminal:
    """`scheduler top` on a terminal of its own, and what is to be seen there."""

    def __init__(self, path, width=80, height=24, **env):
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(its)
        self._its = its
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "scheduler", "top", "--store", str(path)],
            stdin=its, stdout=its, stderr=its, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
            env={**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **env},
        )  # fmt: skip
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.told = b""

    def shows(self, *words):
        """Wait until all of these are to be seen."""
        while not all(word in "\n".join(self.screen.display) for word in words):
            assert select.select([self._ours], [], [], 30)[0], "\n".join(self.screen.display)
            self.told += (part := os.read(self._ours, 65_536))
            self._stream.feed(part)

    def ends(self, keys):
        """Type, and give back how it ended."""
        os.write(self._ours, keys)
        while self._child.poll() is None:
            if select.select([self._ours], [], [], 0.1)[0]:
                self.told += os.read(self._ours, 65_536)
        after = termios.tcgetattr(self._its)
        os.close(self._its)
        os.close(self._ours)
        return self._child.wait(), after == self.before


def test_a_live_picture_follows_the_store_and_ends_at_q(cli, filled):
    terminal = Terminal(filled)
    terminal.shows("q quits", "3 parked", "default")

    assert cli("budget", "set", "default", "$4", "--store", filled).exit_code == 0
    terminal.shows("$4.00/day")

    assert terminal.ends(b"q") == (0, True)
    assert terminal.told.endswith(b"\x1b[?25h") or b"\x1b[?1049l" in terminal.told


def test_a_live_picture_ends_at_ctrl_c_too(filled):
    terminal = Terminal(filled, 50, 20)
    terminal.shows("parked")

    assert terminal.ends(b"\x03") == (0, True)


def colours(told):
    """Colours that were asked for, as terminals are."""
    codes = re.findall(rb"\x1b\[([\d;]*)m", told)
    return {c for code in codes for c in code.split(b";") if re.fullmatch(rb"[349]\d|10\d", c)}


def test_colours_are_there_and_no_color_takes_them_away(filled):
    plain_one, coloured = Terminal(filled, NO_COLOR="1"), Terminal(filled)
    for terminal in (plain_one, coloured):
        terminal.shows("85 %")
        assert terminal.ends(b"q")[0] == 0

    assert not colours(plain_one.told)
    assert colours(coloured.told)
