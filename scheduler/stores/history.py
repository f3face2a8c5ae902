"""What a store tells of calls that were answered, and of those that wait, so that these can be judged."""

from __future__ import annotations

from scheduler.limits import Gates, Limits
from scheduler.stats import Past, Queued, Took


class History:
    """Tells nothing but limits."""

    gates: Gates

    async def rates(self, now_ms: int) -> dict[tuple[str, str], Limits]:
        """What is known of providers' limits, by provider and model; without one, of all models."""
        return self.gates.known()

    async def past(self, job: str | None = None, limit: int = 1000) -> list[Past]:
        """The last requests that were answered, newest first; of one job, or of all.

        Only those whose provider told their tokens, and whose answer is kept.
        """
        return []

    async def took(self, limit: int = 1000) -> list[Took]:
        """How the last calls went that were answered, newest first."""
        return []

    async def queued(self, most: int = 2000) -> list[Queued]:
        """Who waits or runs, lane by lane, with about so many of them; costs no more if more wait."""
        return []
