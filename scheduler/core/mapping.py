"""Many requests, only a few of them taken in ahead of their answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

from scheduler.core.future import RequestFuture, explain
from scheduler.errors import SchedulerClosed, SchedulerError, WrongLoop
from scheduler.request import Request, Response

Submit = Callable[[Request], RequestFuture]


async def answered(
    submit: Submit,
    requests: Iterable[Request] | AsyncIterator[Request],
    size: int,
    *,
    is_ordered: bool,
    returns_errors: bool,
) -> AsyncIterator[Response]:
    """What `Scheduler.map` does; `size`: most requests taken in and not given back yet."""
    source = _aiter(requests)
    taken: deque[RequestFuture] = deque()
    done: asyncio.Queue[RequestFuture] = asyncio.Queue()
    positions: dict[RequestFuture, int] = {}
    exhausted, index = False, 0
    try:
        while True:
            while not exhausted and len(positions) < size:
                try:
                    request = await anext(source)
                except StopAsyncIteration:
                    exhausted = True
                    break
                future = _submit_or_fail(submit, request)
                positions[future], index = index, index + 1
                if is_ordered:
                    taken.append(future)
                else:
                    future.add_done_callback(done.put_nowait)
            if not positions:
                return
            future = taken.popleft() if is_ordered else await done.get()
            if is_ordered:
                await asyncio.wait([future])
            yield _outcome(future, positions.pop(future), returns_errors)
    except asyncio.CancelledError as exc:
        explain(exc, next((each for each in positions if each.parked is not None), None))
        raise
    finally:
        for future in positions:
            future.cancel()


def _submit_or_fail(submit: Submit, request: Request) -> RequestFuture:
    """As `submit`, but a rejection becomes the future's."""
    try:
        return submit(request)
    except (SchedulerClosed, WrongLoop):
        raise
    except SchedulerError as error:
        future = RequestFuture(request, None, None, asyncio.get_running_loop())
        future.set_exception(error)
        return future


async def _aiter(requests: Iterable[Request] | AsyncIterator[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterator):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


def _outcome(future: RequestFuture, index: int, returns_errors: bool) -> Response:
    error = future.exception()
    if error is None:
        # A copy: requests with the same key share one response.
        return replace(future.result(), index=index)
    if not returns_errors:
        raise error
    error.index, error.key = index, future.request.key  # type: ignore[attr-defined]
    return error  # type: ignore[return-value]
