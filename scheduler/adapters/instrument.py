"""For code whose clients are out of reach: all HTTP clients of the process, until it is undone."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Self

from scheduler.adapters.http import Door
from scheduler.adapters.wrap import make_door
from scheduler.errors import ConfigError
from scheduler.intake import OnExceeded
from scheduler.marks import NO_MARKS, Marks, merge

if TYPE_CHECKING:
    from typing import Unpack

    from scheduler.scheduler import Scheduler

_now: list[Instrumented] = []  # at most one


class Instrumented:
    """What `instrument` did; call it, or leave its block, to undo it."""

    def __init__(self, door: Door) -> None:
        self._originals: list[tuple[type, Any]] = []
        for name in ("httpx", "httpx2"):
            if name not in sys.modules and importlib.util.find_spec(name) is None:
                continue
            module = importlib.import_module(name)
            for kind, is_async in ((module.AsyncClient, True), (module.Client, False)):
                self._originals.append((kind, kind.send))
                kind.send = _patched(door, kind.send, is_async)

    def __call__(self) -> None:
        """Undo it; calls under way finish as they began."""
        for kind, original in self._originals:
            kind.send = original  # type: ignore[attr-defined]
        self._originals.clear()
        if self in _now:
            _now.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self()


def _patched(door: Door, original: Any, is_async: bool) -> Any:
    async def send(self: Any, request: Any, **options: Any) -> Any:
        return await door.send(self, request, options, original.__get__(self))

    def send_sync(self: Any, request: Any, **options: Any) -> Any:
        return door.send_sync(self, request, options, original.__get__(self))

    patched = send if is_async else send_sync
    patched.__doc__ = original.__doc__
    return patched


def instrument(
    scheduler: Scheduler, *, on_exceeded: OnExceeded | None = None, **marks: Unpack[Marks]
) -> Instrumented:
    """Let the calls to models of every HTTP client in this process wait for money.

    For code that makes its clients itself, where they cannot be wrapped. Clients of httpx and
    httpx2 are reached, also those that exist already, and so is every SDK that uses one. Only
    what is unmistakably a call to a model (its path and its body say so) is taken for one.
    Answers, streams and refusals are as for `Scheduler.wrap`; but the SDK's own retries of broken
    connections stay, each a call of its own.

    Args:
        scheduler: Who says when.
        on_exceeded: As on the scheduler, for these calls.
        marks: As for `Scheduler.tag`.

    Returns:
        A way to undo it: call it, or use it in ``with``.

    Raises:
        ConfigError: It was done already, and not undone.
        SchedulerClosed: After `Scheduler.aclose`.
    """
    if _now:
        raise ConfigError(
            "instrument", "was done already; undo that first: it is one for a process"
        )
    door = make_door(scheduler, on_exceeded, merge(NO_MARKS, marks))
    door.is_strict = True
    _now.append(Instrumented(door))
    return _now[0]
