"""Whether the reader of a stream waits for it, or is busy with what it was given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

SLOW = 0.1  # of its time a reader may be busy before how long it took says little of the provider


class Pace:
    """Kept by a stream where its reader is; looked at in the scheduler's loop, see `resting`.

    Args:
        tell: Calls a function in the scheduler's loop.
        time: Of that loop.

    Attributes:
        busy_since_s: Since when its reader is busy; None: it waits for more.
        back: Takes back the place that was lent; None: it was not.
        noticed: Called once, when its reader gets busy; None: nobody wants to know.
    """

    __slots__ = ("_began_s", "_busy_s", "_tell", "_time", "back", "busy_since_s", "noticed")

    def __init__(self, tell: Callable[..., Any], time: Callable[[], float]) -> None:
        self._tell, self._time = tell, time
        self._began_s, self._busy_s = time(), 0.0
        self.busy_since_s: float | None = self._began_s
        self.back: Callable[[], None] | None = None
        self.noticed: Callable[[], None] | None = None

    def asked(self) -> None:
        """Its reader wants more."""
        since_s, self.busy_since_s = self.busy_since_s, None
        if since_s is not None:
            self._busy_s += self._time() - since_s
        back, self.back = self.back, None
        self._call(back)

    def given(self) -> None:
        """Its reader has got something."""
        self.busy_since_s = self._time()
        noticed, self.noticed = self.noticed, None
        self._call(noticed)

    @property
    def is_slow(self) -> bool:
        """Whether it is its reader rather than its provider that takes time."""
        now_s, since_s = self._time(), self.busy_since_s
        busy_s = self._busy_s + (0.0 if since_s is None else now_s - since_s)
        return busy_s > SLOW * (now_s - self._began_s)

    def _call(self, function: Callable[[], None] | None) -> None:
        if function is not None:
            with contextlib.suppress(RuntimeError):  # the scheduler's loop is no more
                self._tell(function)
