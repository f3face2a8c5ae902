"""Who looks after calls that are not answered at once: one timer for all of them."""

from __future__ import annotations

import asyncio
from typing import Protocol

LOOK_S = 0.025  # so often it is looked after those that are due


class Patient(Protocol):
    """A call, from when it was asked until it is known how it goes on.

    Attributes:
        look_at_s: When somebody is to look after it, on the loop's clock.
    """

    look_at_s: float

    def glance(self) -> bool:
        """Look after it; whether it needs nobody any more."""


class Nurse:
    """See the module. Most calls are answered before it comes by.

    Args:
        loop: Whose clock is meant.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._patients: dict[Patient, None] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None

    def take(self, patient: Patient) -> None:
        """Look after one more."""
        self._patients[patient] = None
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._round)

    def leave(self, patient: Patient) -> None:
        """It is answered, or gone."""
        self._patients.pop(patient, None)

    def _round(self) -> None:
        now_s = self._loop.time()
        for patient in list(self._patients):
            if patient.look_at_s <= now_s and patient.glance():
                self.leave(patient)
        # Not while there is nobody: waiting costs nothing.
        self._timer = self._loop.call_later(LOOK_S, self._round) if self._patients else None
