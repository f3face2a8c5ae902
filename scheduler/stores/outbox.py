"""What is to be told to hooks, kept by the store until it was: each once, whoever of several tells it.

A piece of news has a topic, by which a hook is told it once, however many processes notice it. What one
process took to deliver is another's again after a while, should it not be told what became of it: so
news is delivered at least once.

Whatever may end, such as a job, is *armed* while it is under way, and *fired* by the first that sees it
ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple


class News(NamedTuple):
    """One thing to be told to one hook.

    Attributes:
        hook: Its name.
        topic: What it is about; it is told once.
        event: What is told, as JSON.
        id: Given by the store.
        tries: How often it was taken, this time too.
        made_at_ms: Since when it is to be told.
    """

    hook: str
    topic: str
    event: str
    id: int = 0
    tries: int = 0
    made_at_ms: int = 0


class Outbox(ABC):
    """Part of `Store`."""

    @abstractmethod
    async def announce(self, news: Sequence[News], now_ms: int) -> None:
        """Have these told, but for those whose topics were before."""

    @abstractmethod
    async def take_news(
        self, hooks: Collection[str], now_ms: int, *, lease_ms: int, limit: int = 16
    ) -> list[News]:
        """What is to be told to these now, oldest first; for so long it is nobody else's."""

    @abstractmethod
    async def told_news(self, id: int, now_ms: int, again_at_ms: int | None) -> None:
        """What became of it: it was told, or given up (None), or is to be tried again then."""

    @abstractmethod
    async def arm(self, topics: Collection[str], now_ms: int) -> None:
        """Note that these are under way; those that are noted are left as they are."""

    @abstractmethod
    async def armed(self) -> set[str]:
        """The topics that are noted."""

    @abstractmethod
    async def fire(self, topic: str, news: Sequence[News], now_ms: int) -> bool:
        """It has ended: have these told, if it was noted; whether it was."""
