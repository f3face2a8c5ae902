"""Whether the reader of a stream waits for it, or is busy with what it was given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


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

    __slots__ = ("_tell", "_time", "back", "busy_since_s", "noticed")

    def __init__(self, tell: Callable[..., Any], time: Callable[[], float]) -> None:
        self._tell, self._time = tell, time
        self.busy_since_s: float | None = time()
        self.back: Callable[[], None] | None = None
        self.noticed: Callable[[], None] | None = None

    def asked(self) -> None:
        """Its reader wants more."""
        self.busy_since_s = None
        back, self.back = self.back, None
        self._call(back)

    def given(self) -> None:
        """Its reader has got something."""
        self.busy_since_s = self._time()
        noticed, self.noticed = self.noticed, None
        self._call(noticed)

    def _call(self, function: Callable[[], None] | None) -> None:
        if function is not None:
            with contextlib.suppress(RuntimeError):  # the scheduler's loop is no more
                self._tell(function)
