"""What is told fits the terminal: numbers are never broken, names by rule, wide characters count twice."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from scheduler.cli import output
from scheduler.cli.moving import Moving
from scheduler.cli.widths import cells, columns_of, fitted, hung, middle, told, wrapped

LETTERS = st.characters(exclude_categories=("C", "Z", "M"), exclude_characters="$")
NAMES = st.text("abc-_/ " + "日本語😀é", min_size=1, max_size=60).filter(str.strip)
AMOUNTS = st.integers(0, 10**15).map(lambda n: f"${n:,}.25")
COMMAND = "scheduler budget set 'a long name' 'MORE' --store somewhere/else.db"


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("team-alpha-europe", 9, "team…rope"),
        ("short", 9, "short"),
        ("日本語の予算です", 9, "日本…です"),
        ("😀😀😀😀", 5, "😀…😀"),
        ("ab", 1, "…"),
        ("", 0, ""),
    ],
)
def test_a_long_name_is_shortened_in_its_middle(text, most, short):
    assert middle(text, most) == short
    assert cell_len(short) <= most


@given(NAMES, st.integers(1, 70))
def test_a_shortened_name_keeps_both_its_ends(text, most):
    short = middle(text, most)

    assert cell_len(short) <= most
    assert short == text or (
        text.startswith(short.partition("…")[0]) and text.endswith(short.rpartition("…")[2])
    )


@given(NAMES, st.integers(16, 90))
def test_wrapping_loses_nothing_and_fits(text, width):
    lines = wrapped(text, width)

    assert "".join("".join(lines).split()) == "".join(text.split())
    assert max(map(cell_len, lines)) <= width


def test_amounts_and_times_are_never_broken():
    text = "spent $1,234,567,890.12345678 at 2026-11-28T00:00:00+02:00 of a-budget-with-a-long-name"

    lines = wrapped(text, 12)

    assert "$1,234,567,890.12345678" in lines
    assert "2026-11-28T00:00:00+02:00" in lines
    assert "a-budget-wit" in lines


@given(
    st.lists(st.tuples(NAMES, AMOUNTS, NAMES, AMOUNTS), min_size=1, max_size=4),
    st.integers(40, 140),
)
def test_a_table_fits_any_terminal_and_breaks_no_number(rows, width):
    text = output.table(("name", "spent", "why", "left"), rows, right="spent left", width=width)

    shown = [output.one_line(each) for row in rows for each in (row[0], row[2])]
    assert max(map(cell_len, text.splitlines())) <= width
    for row in rows:
        for amount in (row[1], row[3]):
            assert re.search(rf"(^|\s){re.escape(amount)}($|\s)", text, re.MULTILINE)
    # And no character is lost.
    assert sorted("".join(text.split())) == sorted("".join("".join(
        [*shown, *(each for row in rows for each in (row[1], row[3])),
         *(["NAMESPENTWHYLEFT"] if text.startswith("NAME") else ["namespentwhyleft"] * len(rows))]
    ).split()))  # fmt: skip


def test_a_table_has_three_ways_and_a_pipe_gets_the_widest(monkeypatch):
    rows = [("team", "$1.25", "a reason of several words")]
    columns = ("budget", "spent", "why")

    wide = output.table(columns, rows, "spent")
    fits = output.table(columns, rows, "spent", width=28)
    narrow = output.table(columns, rows, "spent", width=18)

    assert wide == "BUDGET  SPENT  WHY\nteam    $1.25  a reason of several words"
    assert fits == "BUDGET  SPENT  WHY\nteam    $1.25  a reason of\n               several words"
    assert (
        narrow == "budget  team\nspent   $1.25\nwhy     a reason\n        of several\n        words"
    )


def test_the_columns_of_wide_characters_stand_below_each_other():
    lines = output.table(("name", "n"), [("日本", "1"), ("ab", "2"), ("😀", "3")], "n").split("\n")

    assert {cell_len(line) for line in lines} == {7}


FORMS = {"a": ["long words", "short"], "b": ["10 of 20"], "c": ["left out", ""]}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (None, "long words · 10 of 20 · left out"),
        (32, "long words · 10 of 20 · left out"),
        (31, "long words · 10 of 20"),
        (20, "short · 10 of 20"),
        (15, "long words\n10 of 20"),
        (1, "short\n10 of 20"),
    ],
)
def test_what_matters_least_gives_way_first(width, line):
    assert fitted(FORMS, ("c", "a"), width) == line


def test_a_label_stands_once_before_what_it_names():
    assert hung("why  ", "one two three", 12) == ["why  one two", "     three"]


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_command_that_is_told_stays_whole(width):
    lines = told(f"budget 'x' is spent ($1.25 of $1.25). To go on: {COMMAND}", width)

    assert lines[-1] == COMMAND
    assert max(map(cells, lines[:-1])) <= width
    assert told(f"To go on: {COMMAND}", None) == [f"To go on: {COMMAND}"]
    assert told("short", 80) == ["short"]
    assert told("  one two", 6, "> ") == [">   one", "    two"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "told_columns", "width"),
    [
        (Terminal(), "77", 77),
        (Terminal(), "wide", 80),
        (Terminal(), "0", 80),
        (io.StringIO(), "77", None),
        (None, "77", None),
    ],
)
def test_only_a_terminal_has_a_width(monkeypatch, stream, told_columns, width):
    monkeypatch.setenv("COLUMNS", told_columns)

    assert columns_of(stream) == width


def screen(written: str, width: int) -> list[str]:
    """What stands on a terminal that wraps: a few of the sequences it knows."""
    rows, y, x = [[]], 0, 0
    for token in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|.", written):
        if token == "\r":
            x = 0
        elif token == "\n":
            y, x = y + 1, 0
            rows.extend([] for _ in range(y + 1 - len(rows)))
        elif token.startswith("\x1b["):
            if token.endswith("A"):
                y = max(0, y - int(token[2:-1] or 1))
            elif token == "\x1b[2K":
                rows[y] = []
        else:
            if x >= width:
                y, x = y + 1, 0
                rows.extend([] for _ in range(y + 1 - len(rows)))
            rows[y] += [" "] * (x + 1 - len(rows[y]))
            rows[y][x] = token
            x += 1
    return ["".join(row).rstrip() for row in rows]


@pytest.mark.parametrize("name", ["XTERM_VERSION", None])
def test_what_was_drawn_is_wiped_when_the_terminal_became_narrower(monkeypatch, name):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    for each in ("XTERM_VERSION", "STY"):
        monkeypatch.delenv(each, raising=False)
    if name:
        monkeypatch.setenv(name, "1")  # does not wrap anew
    out = Terminal()
    moving = Moving(out)
    moving.say("kept")
    moving.draw(["x" * 50])
    moving._console.size = (30, 20)
    moving.draw(["y" * 20])
    moving.close()

    # A terminal that wraps anew looks by then as if it had been so narrow when that was drawn.
    seen = [row for row in screen(out.getvalue(), 60 if name else 30) if row]
    assert seen == ["kept", "y" * 20]
