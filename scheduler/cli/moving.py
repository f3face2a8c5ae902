"""Lines at the bottom of a terminal that change, while others stay above them.

Terminals wrap what stands on them anew when they become narrower, so what was drawn may take more
rows than when it was drawn: these are wiped before anything else is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TextIO

from scheduler.cli.widths import cells, told


class Moving:
    """Lines that are redrawn. Close it, or the cursor stays hidden.

    Args:
        out: The terminal.
        transient: Whether they are gone in the end.
    """

    def __init__(self, out: TextIO, *, transient: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=transient)
        self._live.start()
        self._drawn: list[str] = []
        self._drawn_width = self.width

    @property
    def width(self) -> int:
        """Cells of a line at this moment."""
        return self._console.width

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of those before; each has to fit."""
        self._fit()
        if list(lines) != self._drawn:
            self._drawn = list(lines)
            self._live.update(_text(lines), refresh=True)

    def say(self, text: str, start: str = "") -> None:
        """Say something above them that stays: a plain line, and what stands before it."""
        self._fit()
        self._console.print(_text(told(text, self.width, start)), soft_wrap=True)

    def close(self) -> None:
        """Draw no more."""
        self._live.stop()

    def _fit(self) -> None:
        width, before = self.width, self._drawn_width
        if width == before:
            return
        self._drawn_width = width
        if width < before and _reflows():
            for _ in range(sum(-(-cells(each) // width) - 1 for each in self._drawn if each)):
                self._erase_row()
        self._drawn = []

    def _erase_row(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        self._console.control(Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)))


def _text(lines: Sequence[str]) -> Any:
    from rich.text import Text  # which takes nothing in a name for markup or an emoji

    return Text("\n".join(lines), no_wrap=True)


def _reflows() -> bool:
    """Whether the terminal wraps lines anew when it changes its width; most do."""
    return "XTERM_VERSION" not in os.environ and "STY" not in os.environ
