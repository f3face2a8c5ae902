"""A scheduler for code without an event loop: scripts, threads, notebooks.

It runs in an event loop of its own, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from scheduler.adoption import Family
from scheduler.budget import Budget
from scheduler.errors import SchedulerClosed, SchedulerError
from scheduler.intake import OnExceeded
from scheduler.marks import Marks
from scheduler.request import Quote, Request, Response, StreamEvent
from scheduler.scheduler import Scheduler
from scheduler.stats import Stats
from scheduler.stores.base import Unknown

if TYPE_CHECKING:
    from scheduler import events
    from scheduler.stream import ResponseStream

C_ = TypeVar("C_")
T_ = TypeVar("T_")
E_ = TypeVar("E_", bound="events.Event")


def open(*args: Any, **options: Any) -> BlockingScheduler:
    """Open a scheduler for code that blocks; it takes what `Scheduler` takes.

    Use it in ``with``, or `BlockingScheduler.close` it; at the latest it is closed when the
    program ends.

    >>> from scheduler import Request, Simulated
    >>> with open(budgets="$1/day", providers=Simulated()) as s:
    ...     s.run(Request.chat("sim-small", "Say hello", max_tokens=20)).usage.output_tokens <= 20
    True
    """
    return BlockingScheduler(Scheduler(*args, **options))


class BlockingScheduler:
    """A scheduler whose methods block; they may be called from any thread.

    Ctrl-C ends what is waited for: what has not been sent costs nothing, what has keeps counting.

    Args:
        scheduler: One that was not opened yet; it is opened here, and closed with this.

    Attributes:
        scheduler: The scheduler; to be used in its own loop only.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._tasks: dict[Future[Any], asyncio.Task[Any]] = {}  # what is waited for
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        # A daemon, so that a program that forgets to close it can end.
        self._thread = threading.Thread(
            target=self._serve, args=(started,), name="scheduler", daemon=True
        )
        self._thread.start()
        self._loop, self._stop = started.result()
        self._is_closed, self._process_id = False, os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, *, drain: bool = False) -> None:
        """End everything, as `Scheduler.aclose` does; more than once is once."""
        if self._is_closed or os.getpid() != self._process_id:
            return
        self._refuse_to_wait()
        self._is_closed = True
        atexit.unregister(self.close)
        closing = self.scheduler.aclose(drain=drain)
        try:
            asyncio.run_coroutine_threadsafe(closing, self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have it done in the loop, and wait; what is waited for ends with whoever waits."""
        self._refuse_to_wait()
        future: Future[Any] = Future()
        try:
            self._begin(future, function, *args)
            _wait(future)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _begin(self, future: Future[Any], function: Callable[..., Any], *args: Any) -> None:
        """Have it done in the loop; cancelling `future`, now or later, cancels it.

        Ctrl-C may come at any step: whoever is to cancel it has the future before it begins.
        """
        self._refuse_if_closed()
        try:
            self._loop.call_soon_threadsafe(self._start, future, function, args)
        except RuntimeError:  # closed in this very moment
            raise SchedulerClosed from None

    # In its own thread

    def _serve(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def serve() -> None:
            async with self.scheduler:
                stop = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), stop))
                await stop.wait()
            if self._tasks:
                await asyncio.wait(self._tasks.values())  # they have been told that it is over

        try:
            asyncio.run(serve())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    def _start(
        self, future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if future.cancelled() or self.scheduler.is_closed:
            _end(future, error=SchedulerClosed())
            return
        # Kept in this thread only: where the last reference to a task is dropped, Python runs
        # code in which Ctrl-C is lost.
        task = self._tasks[future] = asyncio.create_task(function(*args))
        task.add_done_callback(partial(self._ended, future))
        future.add_done_callback(self._given_up)

    def _ended(self, future: Future[Any], task: asyncio.Task[Any]) -> None:
        del self._tasks[future]
        if task.cancelled():
            future.cancel()
            _end(future)
        elif (error := task.exception()) is not None:
            _end(future, error=error)
        else:
            _end(future, task.result())

    def _given_up(self, future: Future[Any]) -> None:
        """A future is done, in whatever thread: cancelled by who waited, or since its task is."""
        if future.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop is no more
                self._loop.call_soon_threadsafe(self._cancel, future)

    def _cancel(self, future: Future[Any]) -> None:
        task = self._tasks.get(future)
        if task is not None:
            task.cancel()

    # Requests

    def run(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> Response:
        """Answer one request, however long it has to wait; raises as `Scheduler.run`."""
        response: Response = self._do(_run, self.scheduler, request, on_exceeded)
        return response

    def submit(
        self, request: Request, *, on_exceeded: OnExceeded | None = None
    ) -> Future[Response]:
        """Put a request in the queue; what `Scheduler.submit` raises comes in the future, too."""
        future: Future[Response] = Future()
        self._begin(future, _run, self.scheduler, request, on_exceeded)
        return future

    def stream(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> BlockingStream:
        """Answer one request in pieces, as `Scheduler.stream` does."""
        stream = BlockingStream(self)

        async def begin() -> None:
            stream._stream = self.scheduler.stream(request, on_exceeded=on_exceeded)

        self._do(begin)
        return stream

    def map(
        self,
        requests: Iterable[Request],
        *,
        ordered: bool = False,
        window: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Response]:
        """Answer requests as they complete, taking in only a few ahead; as `Scheduler.map`."""
        self._refuse_to_wait()
        size = window or 4 * self.scheduler.concurrency
        source, index, is_over = iter(requests), 0, False
        done: SimpleQueue[Future[Response]] = SimpleQueue()
        taken: dict[Future[Response], tuple[int, Request]] = {}
        try:
            while True:
                while not is_over and len(taken) < size:
                    try:
                        request = next(source)
                    except StopIteration:
                        is_over = True
                        break
                    future: Future[Response] = Future()
                    taken[future], index = (index, request), index + 1
                    if not ordered:
                        future.add_done_callback(done.put)
                    self._begin(future, _run, self.scheduler, request, None)
                if not taken:
                    return
                future = next(iter(taken)) if ordered else done.get()
                if ordered:
                    _wait(future)  # it stays among those that end if this does
                yield _outcome(future, *taken.pop(future), return_exceptions)
        finally:
            for future in taken:
                future.cancel()

    def call(
        self, function: Callable[..., T_], /, *args: Any, on_exceeded: OnExceeded | None = None,
        **kwargs: Any,
    ) -> T_:  # fmt: skip
        """Call a function such as ``litellm.completion`` in this thread, when there is money.

        As `Scheduler.call`, for functions that block.
        """
        from scheduler.adapters.functions import call_in_thread

        self._refuse_if_closed()
        result: T_ = call_in_thread(self.scheduler, function, args, kwargs, on_exceeded)
        return result

    def quote(self, request: Request) -> Quote:
        """What one attempt of a request may cost; raises `PriceUnknown`."""
        return self.scheduler.quote(request)

    # Code that is there already

    def wrap(
        self, client: C_, *, on_exceeded: OnExceeded | None = None, **marks: Unpack[Marks]
    ) -> C_:
        """Let the calls of an SDK's client wait for money here; see `Scheduler.wrap`."""
        return self.scheduler.wrap(client, on_exceeded=on_exceeded, **marks)

    def http_client(
        self,
        family: Family = "auto",
        *,
        sync: bool = True,
        on_exceeded: OnExceeded | None = None,
        **options: Any,
    ) -> Any:
        """An HTTP client whose calls wait for money here; see `Scheduler.http_client`."""
        return self.scheduler.http_client(family, sync=sync, on_exceeded=on_exceeded, **options)

    def tag(self, **marks: Unpack[Marks]) -> AbstractContextManager[None]:
        """Say things of all requests made within a block; see `Scheduler.tag`."""
        return self.scheduler.tag(**marks)

    # Budgets, and looking

    def set_limit(self, name: str, limit: str | int | float | Decimal | None) -> None:
        """Change a budget's limit; see `Scheduler.set_limit`."""
        self._do(self.scheduler.set_limit, name, limit)

    def define(self, *budgets: Budget) -> None:
        """Create budgets, or change them; see `Scheduler.define`."""
        self._do(self.scheduler.define, *budgets)

    def pause(self, name: str) -> None:
        """Admit nothing on a budget until `resume`."""
        self._do(self.scheduler.pause, name)

    def resume(self, name: str) -> None:
        """Admit on a paused budget again."""
        self._do(self.scheduler.resume, name)

    def suspended(self) -> Sequence[Unknown]:
        """Attempts whose outcome nobody knows; see `Scheduler.suspended`."""
        found: Sequence[Unknown] = self._do(self.scheduler.suspended)
        return found

    def stats(self) -> Stats:
        """A picture of the scheduler now."""

        async def stats() -> Stats:
            return self.scheduler.stats()

        picture: Stats = self._do(stats)
        return picture

    def on(self, kind: type[E_], callback: Callable[[E_], None]) -> Callable[[], None]:
        """Call `callback` with every event of a kind, in the scheduler's thread; see `events`."""
        return self.scheduler.on(kind, callback)

    def _refuse_to_wait(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("this would wait for itself: it is the scheduler's own thread")

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise SchedulerClosed
        if os.getpid() != self._process_id:  # its thread is not here, so nobody would answer
            raise SchedulerClosed(
                "the scheduler was opened in the process that this one was forked from; nothing "
                "was sent. Open one in this process"
            )

    def __repr__(self) -> str:
        return f"<BlockingScheduler of {self.scheduler!r}>"


class BlockingStream:
    """The events of one answer as they come; see `ResponseStream`."""

    _stream: ResponseStream  # from its beginning on

    def __init__(self, scheduler: BlockingScheduler) -> None:
        self._scheduler, self._do = scheduler, scheduler._do

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        try:
            event: StreamEvent | None = self._do(_next, self._stream)
        except KeyboardInterrupt:
            self.close()  # the call ends, too, not only the wait for its next event
            raise
        if event is None:
            raise StopIteration
        return event

    def response(self) -> Response:
        """The whole answer; events not read yet are skipped."""
        response: Response = self._do(self._stream.response)
        return response

    def close(self) -> None:
        """End the call, if it is still under way or waits."""
        self._do(self._stream.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Nobody reads on. The stream would notice, but has to in its own thread.
        stream = getattr(self, "_stream", None)
        if stream is not None:
            with contextlib.suppress(SchedulerClosed):
                self._scheduler._begin(Future(), stream.aclose)


async def _next(stream: ResponseStream) -> StreamEvent | None:
    return await anext(stream, None)


async def _run(scheduler: Scheduler, request: Request, on_exceeded: OnExceeded | None) -> Response:
    return await scheduler.run(request, on_exceeded=on_exceeded)


def _wait(future: Future[Any]) -> None:
    """Wait for a future. Its own way to wait may answer Ctrl-C with an error of its lock."""
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    future.add_done_callback(done.put)
    done.get()


def _end(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if not future.set_running_or_notify_cancel():
        return  # nobody waits for it any more
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _outcome(
    future: Future[Response], index: int, request: Request, return_exceptions: bool
) -> Response:
    error = future.exception()
    if error is None:
        # A copy: requests with the same key share one response.
        return replace(future.result(), index=index)
    if not return_exceptions or not isinstance(error, SchedulerError):
        raise error
    error.index, error.key = index, request.key  # type: ignore[attr-defined]
    return error  # type: ignore[return-value]
