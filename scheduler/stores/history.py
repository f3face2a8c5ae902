"""What a store tells at a glance: how things stand, and what became of calls that were answered."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from scheduler.limits import Gates, Limits
from scheduler.stats import Past, Queued, SpendRow, Standing, Took, UnknownSum
from scheduler.stores.course import CourseRow, TookRow


class AttemptRow(NamedTuple):
    """One try at sending a request, with its money.

    Attributes:
        state: Of its reservation: ``pending``, ``posted``, ``voided`` or ``suspense``.
        settled_at_ms: When that was last said; None: it has not been.
        nusd: What it cost, once it is posted.
        is_assumed: Somebody else than the call itself said so.
        why: What is known of an outcome that is, or was, unknown.
    """

    id: int
    state: str
    made_at_ms: int
    settled_at_ms: int | None
    ceiling_nusd: int
    nusd: int
    tokens: int
    is_assumed: bool
    why: str | None


class History:
    """Part of `Store`: what is only looked at. None of it reads requests one by one."""

    gates: Gates

    async def rates(self, now_ms: int) -> dict[tuple[str, str], Limits]:
        """What is known of providers' limits, by provider and model; without one, of all models."""
        return self.gates.known()

    async def past(self, job: str | None = None, limit: int = 1000) -> list[Past]:
        """The last requests that were answered, newest first; of one job, or of all.

        Only those whose provider told their tokens, and whose answer is kept; a store in memory
        keeps none.
        """
        return []

    async def standing(self, now_ms: int) -> list[Standing]:
        """Live requests by state, priority, and why they are parked; costs what the lanes do."""
        raise NotImplementedError

    async def unknown_sum(self) -> UnknownSum:
        """What all attempts hold together whose outcome nobody knows."""
        raise NotImplementedError

    async def live_by_job(self) -> dict[str, int]:
        """How many requests wait or run, by job; jobs without any are left out."""
        raise NotImplementedError

    async def spend(self, by: str, since_ms: int = 0) -> list[SpendRow]:
        """Money by ``model``, ``job``, ``budget`` or ``tag`` for attempts begun since then.

        ``tag:NAME`` is told by the values of one tag, ``tag`` by ``NAME=VALUE`` of all. Both begin with
        the quarter of an hour in which that instant is; see `tagged` for how many values there are.

        Raises:
            ConfigError: It is summed by nothing of that name.
        """
        raise NotImplementedError

    async def course(self, budgets: Collection[int], since_ms: int) -> list[CourseRow]:
        """What was posted on these budgets, by the quarter of an hour in which attempts began.

        Args:
            budgets: Their ids.
            since_ms: From the quarter of that instant on.
        """
        raise NotImplementedError

    async def durations(self, since_ms: int) -> list[TookRow]:
        """How long answered attempts took, by model and the quarter of an hour in which they ended.

        Args:
            since_ms: From the quarter of that instant on.
        """
        raise NotImplementedError

    async def attempts(self, request_id: int) -> list[AttemptRow]:
        """All tries at sending a request, in order; a store in memory keeps those that are open."""
        raise NotImplementedError

    async def took(self, limit: int = 1000) -> list[Took]:
        """How the last calls went that were answered, newest first."""
        return []

    async def queued(self, most: int = 2000) -> list[Queued]:
        """Who waits or runs, lane by lane, with about so many of them; costs no more if more wait."""
        return []
