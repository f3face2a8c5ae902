"""What a store tells of calls that were answered, so that others like them can be judged."""

from __future__ import annotations

from scheduler.stats import Past


class History:
    """Tells nothing; stores on a disk do."""

    async def past(self, job: str | None = None, limit: int = 1000) -> list[Past]:
        """The last requests that were answered, newest first; of one job, or of all.

        Only those whose provider told their tokens, and whose answer is kept.
        """
        return []
