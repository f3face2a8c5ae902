"""What a store keeps of longer texts for others of this package: files, and records of work in progress.

A paper is a record with an owner; its text may be long, and is then kept in pages, which are written
and read one at a time, so that nobody has to hold all of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple


class Paper(NamedTuple):
    """One of them.

    Attributes:
        kind: What it is; names of different kinds do not meet.
        name: Unlike all others of that kind.
        owner: Who may see it, as whoever keeps it here says.
        text: What it says, as JSON; its pages are not in it.
        made_at_ms: Since when it is there.
        is_open: Somebody has work to do with it.
    """

    kind: str
    name: str
    owner: str
    text: str
    made_at_ms: int
    is_open: bool = False


class Papers(ABC):
    """Part of `Store`."""

    @abstractmethod
    async def add_paper(self, paper: Paper) -> bool:
        """Keep a new one; False: there is one of that name, which stays as it is."""

    @abstractmethod
    async def paper(self, kind: str, name: str) -> Paper | None:
        """One of them; None: there is none of that name."""

    @abstractmethod
    async def change_paper(self, before: Paper, text: str, is_open: bool) -> bool:
        """Have it say something else; False: it is not what it was any more, and stays as it is."""

    @abstractmethod
    async def papers(
        self, kind: str, owner: str, *, limit: int, after: str | None = None,
        newest_first: bool = True,
    ) -> list[Paper]:  # fmt: skip
        """Those of an owner in the order in which they were made, from behind the one named `after`.

        None are behind one that there is not.
        """

    @abstractmethod
    async def open_papers(self, kind: str) -> list[Paper]:
        """Those with which somebody has work to do, oldest first, whoever owns them."""

    @abstractmethod
    async def remove_paper(self, kind: str, name: str) -> bool:
        """Forget it with its pages; whether it was there."""

    @abstractmethod
    async def write_page(self, kind: str, name: str, number: int, text: str) -> None:
        """Write one of its pages, in place of what was there; there may be no paper yet."""

    @abstractmethod
    async def pages(
        self, kind: str, name: str, *, first: int = 0, limit: int = 1
    ) -> Sequence[tuple[int, str]]:
        """Its pages from a number on, in order; empty: there are no more."""
