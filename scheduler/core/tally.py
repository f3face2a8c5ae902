"""Sums of one process."""

from __future__ import annotations

from collections import Counter

from scheduler.request import RequestState


class Tally:
    """Sums of this process since it opened."""

    __slots__ = (
        "ended",
        "overruns",
        "posted_nusd",
        "reserved_nusd",
        "suspended",
        "suspense_nusd",
        "turns",
        "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.waiting = self.posted_nusd = self.reserved_nusd = self.suspense_nusd = 0
        self.overruns = self.turns = 0
        self.suspended: dict[int, int] = {}  # reservations of unknown outcome → what they hold
        self.ended: Counter[RequestState] = Counter()

    def end_waiting(self, state: RequestState) -> None:
        """A request that waited has ended unsent."""
        self.waiting -= 1
        self.ended[state] += 1
