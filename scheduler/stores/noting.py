"""What a store keeps for others of this package: short texts under names, of kinds that do not meet."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Noting(ABC):
    """The part of a store that is about neither queue nor ledger."""

    @abstractmethod
    async def notes(self, kind: str) -> dict[str, str]:
        """All that is noted of a kind, by name."""

    @abstractmethod
    async def note(self, kind: str, name: str, text: str | None, *, only_new: bool = False) -> bool:
        """Keep a text under a name; it is seen by every process once this returns.

        Args:
            kind: Whose it is.
            name: Unlike all others of that kind.
            text: In place of what was there. None: nothing is there any more.
            only_new: Leave what is there already as it is.

        Returns:
            Whether anything was changed.
        """
