"""What runs in an actor: one worker, whose work was sent to it."""

from __future__ import annotations

import os
import uuid
from typing import Protocol

from scheduler.adapters.ray.fleet import Counts, Ended, Told


class Working(Protocol):
    """Work that has begun."""

    async def run(self) -> Ended:
        """Do it, to its end."""

    def stop(self) -> None:
        """End it: what runs may finish. Told again: at once."""

    def counts(self) -> Counts:
        """How far it is."""

    def said(self, heard: int) -> tuple[tuple[str, ...], int]:
        """What it said after so much had been heard of it, and how much it has said in all."""


class Work(Protocol):
    """What a worker is to do; it can be pickled, and its `repr` shows no secret."""

    def begin(self) -> Working:
        """Make ready for it, on the machine where it is done."""


class SchedulerWorker:
    """An actor's instance. Each process is a life of its own: a new one begins with nothing."""

    def __init__(self) -> None:
        self._life = uuid.uuid4().hex
        self._working: Working | None = None
        self._is_stopped = False

    async def run(self, work: Work) -> Ended:
        """Do it, to its end. Ray calls this again when the process was started again."""
        if self._is_stopped:
            return Ended(0)
        self._working = work.begin()
        return await self._working.run()

    async def told(self, heard: int, life: str) -> Told:
        """How it is doing, and what it said since this `life` was heard last."""
        counts, count = Counts(), 0
        said: tuple[str, ...] = ()
        if self._working is not None:
            counts = self._working.counts()
            said, count = self._working.said(heard if life == self._life else 0)
        return Told(self._life, _node_id(), os.getpid(), counts, said, count)

    async def stop(self) -> None:
        """Claim nothing new, and end when what runs has finished. Told again: at once."""
        self._is_stopped = True
        if self._working is not None:
            self._working.stop()


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
