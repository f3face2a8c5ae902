"""What hooks are to be told, in memory: gone with the process, as all else here."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from scheduler.stores.outbox import News, Outbox


class MemoryOutbox(Outbox):
    """Part of `MemoryStore`."""

    def __init__(self) -> None:
        super().__init__()
        self._news: dict[int, tuple[int, News]] = {}  # not told yet, with when it is due
        self._topics: set[tuple[str, str]] = set()
        self._armed: set[str] = set()
        self._news_ids = itertools.count(1)

    async def announce(self, news: Sequence[News], now_ms: int) -> None:
        """See `Outbox.announce`."""
        for each in news:
            if (each.hook, each.topic) not in self._topics:
                self._topics.add((each.hook, each.topic))
                number = next(self._news_ids)
                self._news[number] = now_ms, each._replace(id=number, made_at_ms=now_ms)

    async def take_news(
        self, hooks: Collection[str], now_ms: int, *, lease_ms: int, limit: int = 16
    ) -> list[News]:
        """See `Outbox.take_news`."""
        due = [(at_ms, n) for n, (at_ms, each) in self._news.items()
               if at_ms <= now_ms and each.hook in hooks]  # fmt: skip
        taken = []
        for _, number in sorted(due)[:limit]:
            news = self._news[number][1]
            news = news._replace(tries=news.tries + 1)
            self._news[number] = now_ms + lease_ms, news
            taken.append(news)
        return taken

    async def told_news(self, id: int, now_ms: int, again_at_ms: int | None) -> None:
        """See `Outbox.told_news`."""
        if id in self._news:
            if again_at_ms is None:
                del self._news[id]
            else:
                self._news[id] = again_at_ms, self._news[id][1]

    async def arm(self, topics: Collection[str], now_ms: int) -> None:
        """See `Outbox.arm`."""
        self._armed.update(topics)

    async def armed(self) -> set[str]:
        """See `Outbox.armed`."""
        return set(self._armed)

    async def fire(self, topic: str, news: Sequence[News], now_ms: int) -> bool:
        """See `Outbox.fire`."""
        if topic not in self._armed:
            return False
        self._armed.discard(topic)
        await self.announce(news, now_ms)
        return True
