"""Papers in memory, for the one process that there is."""

from __future__ import annotations

from scheduler.guards.texts import words
from scheduler.stores.papers import Paper, Papers


class Folder(Papers):
    """See `Papers`."""

    def __init__(self) -> None:
        super().__init__()
        self._papers: dict[tuple[str, str], Paper] = {}
        self._texts: dict[tuple[str, str], dict[int, str]] = {}

    async def add_paper(self, paper: Paper) -> bool:
        """See `Papers.add_paper`."""
        if (paper.kind, paper.name) in self._papers:
            return False
        self._papers[paper.kind, paper.name] = paper._replace(text=words(paper.text) or "")
        return True

    async def paper(self, kind: str, name: str) -> Paper | None:
        """See `Papers.paper`."""
        return self._papers.get((kind, name))

    async def change_paper(self, before: Paper, text: str, is_open: bool) -> bool:
        """See `Papers.change_paper`."""
        now = self._papers.get((before.kind, before.name))
        if now is None or (now.text, now.is_open) != (before.text, before.is_open):
            return False
        changed = now._replace(text=words(text) or "", is_open=is_open)
        self._papers[before.kind, before.name] = changed
        return True

    async def papers(
        self, kind: str, owner: str, *, limit: int, after: str | None = None,
        newest_first: bool = True,
    ) -> list[Paper]:  # fmt: skip
        """See `Papers.papers`."""
        found = self._of(kind, newest_first)
        if after is not None:
            names = [each.name for each in found]
            found = found[names.index(after) + 1 :] if after in names else []
        return [each for each in found if each.owner == owner][:limit]

    async def open_papers(self, kind: str) -> list[Paper]:
        """See `Papers.open_papers`."""
        return [each for each in self._of(kind, newest_first=False) if each.is_open]

    async def remove_paper(self, kind: str, name: str) -> bool:
        """See `Papers.remove_paper`."""
        self._texts.pop((kind, name), None)
        return self._papers.pop((kind, name), None) is not None

    async def write_page(self, kind: str, name: str, number: int, text: str) -> None:
        """See `Papers.write_page`."""
        self._texts.setdefault((kind, name), {})[number] = words(text) or ""

    async def pages(
        self, kind: str, name: str, *, first: int = 0, limit: int = 1
    ) -> list[tuple[int, str]]:
        """See `Papers.pages`."""
        pages = self._texts.get((kind, name), {})
        return sorted(each for each in pages.items() if each[0] >= first)[:limit]

    def _of(self, kind: str, newest_first: bool) -> list[Paper]:
        found = [each for each in self._papers.values() if each.kind == kind]
        return sorted(found, key=lambda each: (each.made_at_ms, each.name), reverse=newest_first)
