"""How does what is told fit the terminal it is told on?

Counted in cells, of which a Chinese character or an emoji takes two. What is not told on a
terminal has no width, and is never wrapped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

GAP = 2  # cells between columns
ASIDE = 80  # columns where nobody says how many
LONG_WORD = 16  # longer words of names may be broken where there is no room
_SEPARATOR = " · "
_COMMAND = ": scheduler "  # what begins a command in a sentence


def cells(text: str) -> int:
    """How many cells a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # not where it is not needed: help has to be there at once

    return cell_len(text)


def columns_of(stream: Any) -> int | None:
    """How wide a terminal is, as ``COLUMNS`` or the terminal itself says; None: it is none."""
    try:
        if not stream.isatty():
            return None
        return columns_said() or _asked(stream)
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return None


def columns_said() -> int:
    """What ``COLUMNS`` says; 0: nothing that makes sense."""
    said = os.environ.get("COLUMNS", "")
    return int(said) if said.isdecimal() else 0


def _asked(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or ASIDE
    except OSError:
        return ASIDE


def head(text: str, most: int) -> str:
    """The beginning of a text, at most so many cells of it."""
    if cells(text) <= most:
        return text
    taken = used = 0
    for taken, char in enumerate(text):  # noqa: B007 - used after the loop
        used += cells(char)
        if used > most:
            break
    return text[:taken]


def middle(text: str, most: int) -> str:
    """A text in at most so many cells: what is left out is in the middle.

    >>> middle("team-alpha-europe", 9), middle("short", 9)
    ('team…rope', 'short')
    """
    if cells(text) <= most:
        return text
    start = head(text, most // 2)
    end = head(text[::-1], max(0, most - 1 - cells(start)))[::-1]
    return f"{start}…{end}"


def wrapped(text: str, width: int, *, folds: bool = True) -> list[str]:
    """A text in lines of at most so many cells, broken at blanks.

    Args:
        text: In one line.
        width: Cells of a line.
        folds: Whether long words of names may be broken; numbers and amounts never are.
    """
    if cells(text) <= width:
        return [text]
    lines: list[str] = []
    for word in filter(None, text.split(" ")):
        for piece in _pieces(word, max(1, width)) if folds else [word]:
            longer = f"{lines[-1]} {piece}" if lines else piece
            lines[-1:] = [longer] if cells(longer) <= width or not lines else [lines[-1], piece]
    return lines or [""]


def hung(start: str, text: str, width: int, *, folds: bool = True) -> list[str]:
    """A text behind a label, and what does not fit below itself."""
    first, *rest = wrapped(text, max(1, width - cells(start)), folds=folds)
    blank = " " * cells(start)
    return [f"{start}{first}", *(f"{blank}{line}" for line in rest)]


def told(text: str, width: int | None, start: str = "") -> list[str]:
    """Lines of a sentence as a person reads it on a terminal; None: it is none, and one line.

    Words and amounts stay whole. A command at its end gets a line of its own, which only the
    terminal wraps, so that it can be copied.

    Args:
        text: The sentence.
        width: Cells of a line.
        start: What stands before the first line; the others begin below its end.
    """
    if width is None or cells(start + text) <= width:
        return [start + text]
    bare = text.lstrip(" ")
    start += text[: len(text) - len(bare)]
    words, found, command = bare.partition(_COMMAND)
    lines = hung(start, words + ":" * bool(found), width)
    return [*lines, _COMMAND.removeprefix(": ") + command] if found else lines


def _pieces(word: str, width: int) -> list[str]:
    """A word in pieces that fit; what is a number stays whole."""
    if not _may_break(word):
        return [word]
    found = []
    while cells(word) > width:
        piece = head(word, width) or word[0]
        found.append(piece)
        word = word[len(piece) :]
    return [*found, word]


def _may_break(word: str) -> bool:
    is_number = "$" in word or word.lstrip("('\"-−+")[:1].isdecimal()
    return cells(word) > LONG_WORD and not is_number


def fitted(forms: Mapping[str, Sequence[str]], order: Sequence[str], width: int | None) -> str:
    """Parts of a line in forms so long that all of them fit; dots stand between them.

    Args:
        forms: Of each part, from the longest to the shortest; an empty one leaves it out.
        order: Names of parts: each time one is named it takes its next shorter form. What
            matters least stands first.
        width: Cells; None: there is room for everything. Where even the shortest forms do not
            fit the line goes on below, between two parts.
    """
    chosen = dict.fromkeys(forms, 0)
    for name in ("", *order):
        if name and chosen[name] < len(forms[name]) - 1:
            chosen[name] += 1
        text = _SEPARATOR.join(_parts(forms, chosen))
        if width is None or cells(text) <= width:
            return text
    assert width is not None
    lines = _folded(forms, chosen, width)
    for name in reversed(order):  # what there is room for after all
        if chosen[name]:
            longer = _folded(forms, {**chosen, name: chosen[name] - 1}, width)
            if len(longer) == len(lines) and max(map(cells, longer)) <= width:
                chosen[name] -= 1
                lines = longer
    return "\n".join(lines)


def _parts(forms: Mapping[str, Sequence[str]], chosen: Mapping[str, int]) -> list[str]:
    return [part for name, at in chosen.items() if (part := forms[name][at])]


def _folded(forms: Mapping[str, Sequence[str]], chosen: Mapping[str, int], width: int) -> list[str]:
    """Parts in as few lines as they take."""
    first, *rest = _parts(forms, chosen)
    lines = [first]
    for part in rest:
        longer = f"{lines[-1]}{_SEPARATOR}{part}"
        lines[-1:] = [longer] if cells(longer) <= width else [lines[-1], part]
    return lines


def laid_out(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], width: int | None
) -> list[str]:
    """Lines of a table: as it is if it fits, else with texts wrapped, else a block for each row.

    Args:
        columns: Headings.
        rows: Cells, each in one plain line.
        right: Headings of columns with numbers, which are never broken.
        width: Cells of a line; None: as many as it takes.
    """
    lines = [[column.upper() for column in columns], *rows]
    taken = [max(cells(line[i]) for line in lines) for i in range(len(columns))]
    if width is not None:
        least = [
            natural if column in right else min(natural, _least([line[i] for line in lines]))
            for i, (column, natural) in enumerate(zip(columns, taken, strict=True))
        ]
        room = width - GAP * (len(columns) - 1)
        if sum(least) > room:
            return _blocks(columns, rows, width)
        while sum(taken) > room:
            _, widest = max((now, i) for i, now in enumerate(taken) if now > least[i])
            taken[widest] -= 1
    is_right = [column in right for column in columns]
    return [text for line in lines for text in _row(line, taken, is_right)]


def _least(texts: Sequence[str]) -> int:
    """The fewest cells in which texts can be told without breaking what has to stay whole."""
    words = [word for text in texts for word in text.split()]
    return max((LONG_WORD if _may_break(word) else cells(word) for word in words), default=0)


def _row(line: Sequence[str], taken: Sequence[int], is_right: Sequence[bool]) -> list[str]:
    """A row of a table, in as many lines as its longest text takes."""
    texts = [wrapped(cell, width) for cell, width in zip(line, taken, strict=True)]
    found = []
    for number in range(max(map(len, texts))):
        parts = []
        for text, width, right in zip(texts, taken, is_right, strict=True):
            part = text[number] if number < len(text) else ""
            blank = " " * (width - cells(part))
            parts.append(blank + part if right else part + blank)
        found.append((" " * GAP).join(parts).rstrip())
    return found


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A block for each row: a line for each of its columns."""
    label = max(map(cells, columns)) + GAP
    found: list[str] = []
    for row in rows:
        found += [""] if found else []
        for column, cell in zip(columns, row, strict=True):
            found += hung(column + " " * (label - cells(column)), cell, width)
    return [line.rstrip() for line in found]
