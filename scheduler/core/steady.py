"""A task that nobody can tear away in the middle of what it does.

The usual shutdown of a program cancels every task it can find, ``asyncio.run`` does so when it
ends. A ledger must not stop like that: what it was writing would be half known, and whoever
waits for it would wait for ever. So cancelling such a task asks it to come to an end instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class Steady(asyncio.Task[None]):
    """A task whose cancellation is a request; it runs in an empty context, being nobody's in particular.

    What it awaits must not rely on cancelling the task it runs in, as ``asyncio.timeout`` does.

    Args:
        work: What it does; it has to end some time after it was asked to.
        on_cancel: Called, from anywhere in the loop, when somebody cancels it.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, None],
        on_cancel: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        name: str,
    ) -> None:
        self._on_cancel = on_cancel
        super().__init__(work, loop=loop, name=name, context=Context())

    def cancel(self, msg: Any | None = None) -> bool:
        """Ask it to come to an end."""
        if self.done():
            return False
        self._on_cancel()
        return True

    def tear(self) -> None:
        """Cancel it indeed, where it stands."""
        super().cancel()


def is_running(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task is the one that runs, and not one that is thrown away."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def raise_in(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Have the loop itself raise an error that ends programs, as if its own code had raised it."""

    def strike() -> None:
        raise error

    loop.call_soon(strike)
