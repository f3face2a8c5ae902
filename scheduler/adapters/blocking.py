"""A scheduler for code without an event loop: scripts, threads, notebooks.

It runs in an event loop of its own, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, cast

from scheduler.adapters.blocking_governing import BlockingGoverning
from scheduler.core.intake import OnExceeded
from scheduler.core.marks import NO_MARKS, Marks, merge
from scheduler.core.shell import FORKED
from scheduler.errors import CallInterrupted, SchedulerClosed, SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.request import Quote, Request, Response, StreamEvent
from scheduler.scheduler import Family, Scheduler
from scheduler.stores.base import Submitted

if TYPE_CHECKING:
    from scheduler import events
    from scheduler.core.stream import ResponseStream
    from scheduler.providers.function import Dollars

logger = logger_of("scheduler.blocking")

C_ = TypeVar("C_")
T_ = TypeVar("T_")
P_ = ParamSpec("P_")
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


@dataclass(slots=True, eq=False)
class _Call:
    """Something done in the loop for somebody in another thread.

    There is no lock in it: one that Ctrl-C strikes inside, as it may in a `Future`, stays shut,
    and the loop would wait at it for ever.
    """

    begin: Callable[[], Coroutine[Any, Any, Any]]
    on_end: Callable[[_Call], None]
    result: Any = None
    error: BaseException | None = None

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """It has ended; more than once is once."""
        if not hasattr(self, "on_end"):
            return
        self.result, self.error = result, error
        on_end = self.on_end
        del self.begin, self.on_end  # and what they hold on to
        on_end(self)

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class BlockingScheduler(BlockingGoverning):
    """A scheduler whose methods block; they may be called from any thread.

    Ctrl-C ends what is waited for: what has not been sent costs nothing, what has keeps counting.

    Args:
        scheduler: One that was not opened yet; it is opened here, and closed with this.

    Attributes:
        scheduler: The scheduler; to be used in its own loop only.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._tasks: dict[_Call, asyncio.Task[Any]] = {}
        self._asked: set[_Call] = set()  # whose end somebody waits for
        self._is_over = False  # the loop takes nothing more in
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
        done: SimpleQueue[_Call] = SimpleQueue()
        closing = _Call(partial(self.scheduler.aclose, drain=drain), done.put)
        try:
            with contextlib.suppress(SchedulerClosed):  # by somebody in its loop, or it has ended
                self._ask(closing)
                done.get()
                closing.outcome()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is no more
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have it done in the loop, and wait; what is waited for ends with whoever waits."""
        self._refuse_to_wait()
        done: SimpleQueue[_Call] = SimpleQueue()
        call = _Call(partial(function, *args), done.put)
        try:
            self._begin(call)
            done.get()
        except BaseException:
            self._give_up(call)
            raise
        return call.outcome()

    def _begin(self, call: _Call) -> None:
        self._refuse_if_closed()
        self._ask(call)

    def _ask(self, call: _Call) -> None:
        self._asked.add(call)
        try:
            if self._is_over:
                raise SchedulerClosed
            self._loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:  # closed in this very moment
            raise SchedulerClosed from None

    def _give_up(self, *calls: _Call) -> None:
        """End them, whether they have begun or not; Ctrl-C may come while they begin.

        In one step, so that there is little time for a second Ctrl-C to come between.
        """
        with contextlib.suppress(RuntimeError):  # the loop is no more
            self._loop.call_soon_threadsafe(self._cancel, calls)

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
            if started.done():  # a thread's SystemExit ends nothing but the thread
                logger.error("the scheduler was closed, since its loop ended by %r", exc)
            else:
                started.set_exception(exc)
        finally:
            self._is_over = True
            while self._asked:  # what was asked for too late, and is not taken in any more
                self._asked.pop().end(error=SchedulerClosed())

    def _start(self, call: _Call) -> None:
        if self.scheduler.is_closed:
            self._asked.discard(call)
            call.end(error=SchedulerClosed())
            return
        # Kept in this thread only: where the last reference to a task is dropped, Python runs
        # code in which Ctrl-C is lost.
        task = self._tasks[call] = asyncio.create_task(call.begin())
        task.add_done_callback(partial(self._ended, call))

    def _ended(self, call: _Call, task: asyncio.Task[Any]) -> None:
        del self._tasks[call]
        self._asked.discard(call)
        if task.cancelled():
            call.end(error=SchedulerClosed())
        elif (error := task.exception()) is not None:
            call.end(error=error)
        else:
            call.end(task.result())

    def _cancel(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            task = self._tasks.get(call)
            if task is not None:
                task.cancel()

    # Requests

    def run(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> Response:
        """Answer one request, however long it has to wait; raises as `Scheduler.run`."""
        response: Response = self._do(_run, self.scheduler, request, on_exceeded)
        return response

    def submit(
        self, request: Request, *, on_exceeded: OnExceeded | None = None,
        retry_failed: bool = False,
    ) -> Future[Response]:  # fmt: skip
        """Put a request in the queue; what `Scheduler.submit` raises comes in the future, too."""
        future: Future[Response] = Future()
        asking = partial(_run, self.scheduler, request, on_exceeded, retry_failed)
        call = _Call(asking, partial(_settle, future))

        def ended(future: Future[Response]) -> None:
            if future.cancelled():
                self._give_up(call)

        future.add_done_callback(ended)
        self._begin(call)
        return future

    def stream(self, request: Request, *, on_exceeded: OnExceeded | None = None) -> BlockingStream:
        """Answer one request in pieces, as `Scheduler.stream` does."""
        stream = BlockingStream(self)

        async def begin() -> None:
            stream._begun.append(self.scheduler.stream(request, on_exceeded=on_exceeded))

        try:
            self._do(begin)
        except BaseException:
            stream._drop()  # Ctrl-C may come when it has begun
            raise
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
        done: SimpleQueue[_Call] = SimpleQueue()
        taken: dict[_Call, tuple[int, Request, SimpleQueue[_Call]]] = {}
        try:
            while True:
                while not is_over and len(taken) < size:
                    try:
                        request = next(source)
                    except StopIteration:
                        is_over = True
                        break
                    queue: SimpleQueue[_Call] = SimpleQueue() if ordered else done
                    call = _Call(partial(_run, self.scheduler, request, None), queue.put)
                    taken[call], index = (index, request, queue), index + 1
                    self._begin(call)
                if not taken:
                    return
                # Until it is done, it stays among those that end if this does.
                call = next(iter(taken.values()))[2].get() if ordered else done.get()
                position, request, _ = taken.pop(call)
                yield _outcome(call, position, request, return_exceptions)
        finally:
            self._give_up(*taken)

    def call(
        self, function: Callable[..., T_], /, *args: Any, on_exceeded: OnExceeded | None = None,
        **kwargs: Any,
    ) -> T_:  # fmt: skip
        """Call a function such as ``litellm.completion`` in this thread, when there is money.

        As `Scheduler.call`, for functions that block.
        """
        from scheduler.adapters.arguments import Arguments
        from scheduler.adapters.functions import call_in_thread

        self._refuse_if_closed()
        single = Arguments(function, *args, **kwargs)
        args, kwargs = (), {}  # no frame of a refusal shows them: there may be keys among them
        result: T_ = call_in_thread(self.scheduler, single, on_exceeded)
        return result

    def enqueue(
        self, requests: Sequence[Request], *, retry_failed: bool = False, for_others: bool = False
    ) -> list[Submitted]:
        """Put many requests in the queue, without futures; as `Scheduler.enqueue`."""
        enqueue = partial(self.scheduler.enqueue, retry_failed=retry_failed, for_others=for_others)
        found: list[Submitted] = self._do(enqueue, requests)
        return found

    def learn_budgets(self, names: Iterable[str]) -> None:
        """Know budgets that others made a moment ago; as `Scheduler.learn_budgets`."""
        self._do(self.scheduler.learn_budgets, list(names))

    def withdraw(self, ids: Iterable[int]) -> None:
        """Cancel requests by their ids in the store; as `Scheduler.withdraw`."""
        self._do(self.scheduler.withdraw, list(ids))

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

    def budgeted(
        self,
        *,
        quote: Dollars | Callable[..., Dollars],
        cost: Dollars | Callable[[Any], Dollars | None] | None = None,
        on_exceeded: OnExceeded | None = None,
        **marks: Unpack[Marks],
    ) -> Callable[[Callable[P_, T_]], Callable[P_, T_]]:
        """Decorate a function that blocks: it is called, in its thread, when there is money for it.

        For what cannot be wrapped, such as boto3's. An async function may be decorated, too, and
        called in any event loop. For all else see `Scheduler.budgeted`.
        """
        from scheduler.adapters.functions import Budgeted

        merged = merge(NO_MARKS, marks)
        decorate = Budgeted(self.scheduler, quote, cost, on_exceeded, merged).in_threads
        return cast("Callable[[Callable[P_, T_]], Callable[P_, T_]]", decorate)

    def _refuse_to_wait(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("this would wait for itself: it is the scheduler's own thread")

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise SchedulerClosed
        if os.getpid() != self._process_id:  # its thread is not here, so nobody would answer
            raise SchedulerClosed(FORKED)

    def __repr__(self) -> str:
        return f"<BlockingScheduler of {self.scheduler!r}>"


class BlockingStream:
    """The events of one answer as they come; see `ResponseStream`."""

    def __init__(self, scheduler: BlockingScheduler) -> None:
        self._scheduler = scheduler
        self._begun: list[ResponseStream] = []  # the one, once it has begun

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        try:
            event: StreamEvent | None = self._scheduler._do(_next, self._begun[0])
        except KeyboardInterrupt:
            self.close()  # the call ends, too, not only the wait for its next event
            raise
        if event is None:
            raise StopIteration
        return event

    def response(self) -> Response:
        """The whole answer; events not read yet are skipped."""
        response: Response = self._scheduler._do(self._begun[0].response)
        return response

    def close(self) -> None:
        """End the call, if it is still under way or waits."""
        self._scheduler._do(self._begun[0].aclose)

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
        if hasattr(self, "_begun"):
            self._drop()

    def _drop(self) -> None:
        """Nobody reads on. The stream would notice, but has to in its own thread."""
        with contextlib.suppress(SchedulerClosed):
            self._scheduler._begin(_Call(partial(_leave, self._begun), _forget))


async def _leave(streams: list[ResponseStream]) -> None:
    for stream in streams:
        await stream.aclose()


async def _next(stream: ResponseStream) -> StreamEvent | None:
    return await anext(stream, None)


async def _run(
    scheduler: Scheduler,
    request: Request,
    on_exceeded: OnExceeded | None,
    retry_failed: bool = False,
) -> Response:
    future = scheduler.submit(request, on_exceeded=on_exceeded, retry_failed=retry_failed)
    try:
        return await future
    except asyncio.CancelledError as exc:
        if future.is_running:  # whether by whoever asked, or because the loop ends
            raise CallInterrupted(
                "it was ended while the call was under way; it may be billed, and what it reserved "
                "keeps counting"
            ) from exc
        raise


def _settle(future: Future[Any], call: _Call) -> None:
    if not future.set_running_or_notify_cancel():
        return  # nobody waits for it any more
    if call.error is not None:
        future.set_exception(call.error)
    else:
        future.set_result(call.result)


def _forget(call: _Call) -> None:
    pass


def _outcome(call: _Call, index: int, request: Request, return_exceptions: bool) -> Response:
    error = call.error
    if error is None:
        # A copy: requests with the same key share one response.
        response: Response = replace(call.result, index=index)
        return response
    if not return_exceptions or not isinstance(error, SchedulerError):
        raise error
    error.index, error.key = index, request.key  # type: ignore[attr-defined]
    return error  # type: ignore[return-value]
