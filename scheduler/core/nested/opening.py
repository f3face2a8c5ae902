"""What may still be started: anything, what calls under way wait for, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scheduler.core.nested.nesting import InnerFuture


class Opening:
    """Says what a process may start, from its beginning to its end. Used by `Pump` alone.

    Attributes:
        admits: Anything is started.
        lets_finish: What calls under way wait for is, whatever else: they may finish.
        gives_back: All else that is claimed goes back to the queue.
        stopped: Providers to which nothing more goes.
    """

    def __init__(self, *, sends: bool = True) -> None:
        self._sends = sends  # else it starts nothing at all
        self.admits = self.lets_finish = True
        self.gives_back = self._is_out_of_line = False
        self.stopped: set[str] = set()

    def close(self, *, lets_finish: bool) -> None:
        """Start nothing more, and give back what is claimed; for calls under way see the class."""
        self.admits, self.gives_back = False, True
        self.lets_finish = self.lets_finish and lets_finish

    def room(self, slots: Mapping[str, int], is_nested: bool) -> Mapping[str, int] | None:
        """Free places by provider; None: nothing is to be started.

        Args:
            slots: The places that are free.
            is_nested: Whether calls under way wait for others.
        """
        if not self._sends:
            return None
        if self.stopped:
            slots = {name: free for name, free in slots.items() if name not in self.stopped}
        if self.admits:
            return slots
        if not self.lets_finish or not is_nested:
            return None
        if not self._is_out_of_line:
            self._is_out_of_line = True
            return None  # who starts nothing by itself any more is in nobody's way
        return dict.fromkeys(slots, 0)  # there are lent places only

    def takes(self, futures: Iterable[object]) -> bool:
        """Whether what was claimed for these futures is sent all the same: calls wait for it."""
        return self.lets_finish and any(isinstance(each, InnerFuture) for each in futures)
