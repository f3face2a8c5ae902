"""Much work in small steps: between them the event loop does everything else."""

from __future__ import annotations

STEP = 250  # pieces of work, each of some microseconds


class Steps:
    """Counts what is done in one step of the event loop.

    >>> steps = Steps()
    >>> [steps.is_long() for _ in range(STEP)].count(True)
    1
    """

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = 0

    def is_long(self) -> bool:
        """One piece more is done; whether it is time to let others go on."""
        self._done += 1
        return self._done % STEP == 0
