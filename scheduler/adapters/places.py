"""Where a caller is: in the scheduler's event loop, in another one, or in a thread.

The scheduler says when, in its own loop. What is sent is sent where its caller is: clients
belong to the loop or thread that uses them, and so do context variables and cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Protocol

from scheduler.errors import ConfigError


class Thrown(Exception):
    """Carries an exception through a coroutine, or a future, that could not raise it itself."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def thrown(exc: BaseException) -> BaseException:
    """What was raised where the caller is: the very object."""
    return exc.error if isinstance(exc, Thrown) else exc


class Place(Protocol):
    """Where a caller is."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function there, and wait for it; to be awaited in the scheduler's loop.

        It is async for callers in a loop, and blocks for those in a thread. What it raises is
        raised here, whatever it is; see `thrown`.
        """

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the scheduler's loop, from there."""

    def wake(self) -> None:
        """Let the caller go on; from the scheduler's loop. More than once is once."""


class AsyncPlace(Place, Protocol):
    """Where a coroutine is."""

    async def wait(self, start: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Have `start` called in the scheduler's loop, then wait for `wake`.

        If the caller is cancelled meanwhile, `give_up` is called there.
        """


class Here:
    """In the scheduler's own loop."""

    def __init__(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._woken = self._loop.create_future()

    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await it, in the task of the call."""
        try:
            return await function(*args)
        except StopIteration as exc:  # called, rather than awaited
            raise Thrown(exc) from None

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it; soon, if the garbage collector tells it, which runs in any thread."""
        if threading.get_ident() == self._thread:
            function(*args)
        else:
            self._loop.call_soon_threadsafe(function, *args)

    def wake(self) -> None:
        """Let the caller go on."""
        if not self._woken.done():
            self._woken.set_result(None)

    async def wait(self, start: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Start, and wait for `wake`."""
        start()
        try:
            await self._woken
        except asyncio.CancelledError:
            give_up()
            raise


class OtherLoop:
    """In an event loop that is not the scheduler's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._here = loop, asyncio.get_running_loop()
        self._place = Here()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Await it in a task of the caller's loop, with the context of the call."""
        done = asyncio.run_coroutine_threadsafe(_outcome(function, args), self._here)
        return _raised(*await asyncio.wrap_future(done))

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it soon."""
        self._loop.call_soon_threadsafe(function, *args)

    def wake(self) -> None:
        """Let the caller go on."""
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended, and they with it
            self._here.call_soon_threadsafe(self._place.wake)

    async def wait(self, start: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Start in the scheduler's loop, and wait for `wake` in this one."""
        await self._place.wait(lambda: self.tell(start), lambda: self.tell(give_up))


class Thread:
    """In a thread, which lends itself to the call while it waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it in the thread, with the context of the call."""
        done, context = self._loop.create_future(), copy_context()

        def job() -> None:
            result, error = None, None
            try:
                result = context.run(function, *args)
            except Exception as exc:
                error = exc  # others end the waiting, and are raised right here
            with contextlib.suppress(RuntimeError):  # the scheduler was closed meanwhile
                self.tell(_end, done, result, error)

        self._jobs.put(job)
        return _raised(*await done)

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it soon."""
        self._loop.call_soon_threadsafe(function, *args)

    def wake(self) -> None:
        """Let the caller go on."""
        self._jobs.put(None)

    def wait(self, start: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Start in the scheduler's loop; do what is asked of this thread until `wake`."""
        try:
            self.tell(start)
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException:  # Ctrl-C: while it waited, or while it was sending
            with contextlib.suppress(RuntimeError):
                self.tell(give_up)
            raise


async def _outcome(
    function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> tuple[Any, BaseException | None]:
    """What it gives, or raises: between two loops some exceptions become others."""
    try:
        return await function(*args), None
    except BaseException as exc:
        return None, exc


def _end(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if not done.done():  # else nobody waits for it any more
        done.set_result((result, error))


def _raised(result: Any, error: BaseException | None) -> Any:
    if error is None:
        return result
    raise Thrown(error) if isinstance(error, StopIteration) else error


def place_of_coroutine(loop: asyncio.AbstractEventLoop) -> AsyncPlace:
    """Where the running coroutine is, as seen from a scheduler's loop."""
    return Here() if asyncio.get_running_loop() is loop else OtherLoop(loop)


def place_of_thread(loop: asyncio.AbstractEventLoop) -> Thread:
    """Where the running thread is, as seen from a scheduler's loop.

    Raises:
        ConfigError: It is the one that loop runs in, which must not be blocked.
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return Thread(loop)
    if running is loop:
        raise ConfigError(
            "client",
            "a sync call was made inside the scheduler's own event loop, which could never answer "
            "it; nothing was sent. Use the async client, or asyncio.to_thread",
        )
    return Thread(loop)
