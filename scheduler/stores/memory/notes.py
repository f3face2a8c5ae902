"""What is noted in memory, for the one process that there is."""

from __future__ import annotations

from scheduler.guards.texts import words
from scheduler.stores.noting import Noting


class Notes(Noting):
    """See `Noting`."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: dict[str, dict[str, str]] = {}

    async def notes(self, kind: str) -> dict[str, str]:
        """See `Noting.notes`."""
        return dict(sorted(self._noted.get(kind, {}).items()))

    async def note(self, kind: str, name: str, text: str | None, *, only_new: bool = False) -> bool:
        """See `Noting.note`."""
        kept = self._noted.setdefault(kind, {})
        before = kept.get(name)
        if text is None:
            kept.pop(name, None)
            return before is not None
        if before is not None and only_new:
            return False
        kept[name] = words(text) or ""
        return kept[name] != before
