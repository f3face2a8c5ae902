"""Files of clients: what they upload, and what comes back for it.

What was uploaded is kept as pages of whole lines. A result file is no text: it is what the store has
of a batch's requests, told anew each time somebody reads it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Collection
from dataclasses import asdict, dataclass
from typing import Any

from scheduler.server.batches.lines import MAX_LINE_CHARS, Cutter
from scheduler.server.batches.record import is_id, new_id
from scheduler.server.refusals import Unserved
from scheduler.stores.base import Store
from scheduler.stores.papers import Paper

KIND = "file"
ENDING = "file-ending"  # papers of files that expire, in the order in which they do
MAX_BYTES = 512 * 1024 * 1024
HALF_DONE_MS = 86_400_000  # what began to be uploaded before then, and is not whole, never will be
LOOKED_AT = 4  # pages that are read at once


@dataclass(frozen=True, slots=True)
class File:
    """What is known of a file.

    Attributes:
        filename: As its client calls it.
        purpose: What it is for.
        expires_ms: From then on it is not there any more. None: it stays.
        batch: The batch whose results it has; empty: it was uploaded.
        part: Which of them: ``"output"`` or ``"errors"``.
    """

    id: str
    owner: str
    made_ms: int
    filename: str
    purpose: str
    bytes: int = 0
    expires_ms: int | None = None
    batch: str = ""
    part: str = ""

    def as_paper(self, *, is_open: bool = False) -> Paper:
        """As it is kept."""
        said = {name: each for name, each in asdict(self).items() if name not in _OF_PAPER}
        return Paper(KIND, self.id, self.owner, json.dumps(said), self.made_ms, is_open)

    @classmethod
    def read(cls, paper: Paper) -> File:
        """The other way."""
        said: dict[str, Any] = json.loads(paper.text)
        return cls(paper.name, paper.owner, paper.made_at_ms, **said)


_OF_PAPER = frozenset({"id", "owner", "made_ms"})


class Shelf:
    """The files of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, name: str, owner: str, now_ms: int) -> File | None:
        """One of an owner's; None: there is none of that name."""
        paper = await self._store.paper(KIND, name) if is_id(name) else None
        if paper is None or paper.owner != owner or paper.is_open:
            return None
        file = File.read(paper)
        if file.expires_ms is not None and file.expires_ms <= now_ms:
            return None  # `tidy` removes it, when nobody needs it any more
        return file

    async def listed(
        self, owner: str, limit: int, after: str | None, newest_first: bool, purpose: str | None
    ) -> list[File]:
        """So many of an owner's, from behind one of them."""
        found: list[File] = []
        if after is not None and not is_id(after):
            return found
        while len(found) < limit:
            papers = await self._store.papers(
                KIND, owner, limit=limit, after=after, newest_first=newest_first
            )
            files = [File.read(each) for each in papers if not each.is_open]
            found += [each for each in files if purpose in (None, each.purpose)]
            if len(papers) < limit:
                break
            after = papers[-1].name
        return found[:limit]

    async def take(
        self, file: File, pieces: AsyncIterable[bytes], *, is_whole: bool = True
    ) -> File:
        """Keep what comes, under a new name.

        Args:
            file: What is known of it.
            pieces: What it says.
            is_whole: Else it goes after a day, unless `settle` says that it stays.

        Raises:
            Unserved: It is no text, or too long; nothing of it is kept.
        """
        begun = file.as_paper(is_open=True)
        await self._store.add_paper(begun)
        await self._note_end(file)
        try:
            size = await self._write(file.id, pieces)
            whole = File(**{**asdict(file), "bytes": size})
            await self._store.change_paper(begun, whole.as_paper().text, is_open=not is_whole)
        except BaseException:
            await self._store.remove_paper(KIND, file.id)
            raise
        return whole

    async def settle(self, file: File) -> None:
        """Have one stay that was taken in as if more was to come."""
        paper = file.as_paper(is_open=True)
        await self._store.change_paper(paper, paper.text, is_open=False)

    async def _write(self, name: str, pieces: AsyncIterable[bytes]) -> int:
        cutter, size, number = Cutter(), 0, 0
        try:
            async for piece in pieces:
                size += len(piece)
                if b"\0" in piece:  # in no line of JSON, and not every store could give it back
                    raise Unserved(400, "invalid_file", "the file is no text (it has a NUL); nothing "
                                   "was kept")  # fmt: skip
                if size > MAX_BYTES:
                    raise Unserved(413, "file_too_large", f"a file has at most {MAX_BYTES:,} bytes; "
                                   "nothing was kept")  # fmt: skip
                for page in cutter.take(piece):
                    await self._store.write_page(KIND, name, number, page)
                    number += 1
                if cutter.is_stuck:
                    raise Unserved(413, "line_too_long", f"a line has more than {MAX_LINE_CHARS:,} "
                                   "characters; nothing was kept")  # fmt: skip
            if rest := cutter.rest():
                await self._store.write_page(KIND, name, number, rest)
        except UnicodeDecodeError as exc:
            raise Unserved(400, "invalid_file", f"the file is no UTF-8 text ({exc.reason}); nothing "
                           "was kept") from None  # fmt: skip
        return size

    async def keep(self, file: File) -> None:
        """Keep one that has no pages."""
        if await self._store.add_paper(file.as_paper()):
            await self._note_end(file)

    async def _note_end(self, file: File) -> None:
        if file.expires_ms is not None:
            await self._store.add_paper(Paper(ENDING, file.id, "", "", file.expires_ms))

    async def remove(self, name: str) -> None:
        """Forget one."""
        await self._store.remove_paper(KIND, name)
        await self._store.remove_paper(ENDING, name)

    async def pages(self, name: str) -> AsyncIterator[str]:
        """What was uploaded, a page at a time."""
        first = 0
        while found := await self._store.pages(KIND, name, first=first, limit=LOOKED_AT):
            for number, text in found:
                yield text
                first = number + 1

    async def lines(self, name: str) -> AsyncIterator[tuple[int, str]]:
        """The same by lines that say something, with their numbers."""
        number, is_first = 0, True
        async for page in self.pages(name):
            for text in page.split("\n")[: -1 if page.endswith("\n") else None]:
                number += 1
                if is_first:
                    text, is_first = text.removeprefix("\ufeff"), False
                if text.strip():
                    yield number, text
            await asyncio.sleep(0)  # others get their turn, if it is all blank

    async def tidy(self, now_ms: int, needed: Collection[str] = ()) -> None:
        """Forget what has expired, and what was half uploaded when a gateway died.

        Args:
            now_ms: The time.
            needed: Those stay: who reads them may have to do so again.
        """
        for paper in await self._store.open_papers(KIND):
            if paper.made_at_ms < now_ms - HALF_DONE_MS and paper.name not in needed:
                await self.remove(paper.name)
        while ending := await self._store.papers(ENDING, "", limit=100, newest_first=False):
            expired = [each.name for each in ending if each.made_at_ms <= now_ms]
            over = [each for each in expired if each not in needed]
            for name in over:
                await self.remove(name)
            if len(over) < len(ending):
                return


def new_file(owner: str, filename: str, purpose: str, now_ms: int, **more: Any) -> File:
    """A file that is to be kept."""
    return File(**{"id": new_id("file-"), "owner": owner, "made_ms": now_ms, "filename": filename,
                   "purpose": purpose, **more})  # fmt: skip
