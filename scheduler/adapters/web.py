"""For web apps on Starlette or FastAPI: a lifespan, a dependency, error handlers, middleware.

app = FastAPI(lifespan=lifespan(lambda: Scheduler("sqlite:///app.db"), ensure="$50/day"))
app.add_middleware(TagMiddleware, tag=lambda http: {"tags": {"page": http.url.path}})
app.add_middleware(HangUpMiddleware)
add_error_handlers(app)

@app.get("/ask")
async def ask(q: str, s: Annotated[Scheduler, Depends(get_scheduler)]): ...

What is said of requests may as well come from a dependency, once it is known who asks:

async def pays(user: Annotated[str, Depends(who)], s: Annotated[Scheduler, Depends(get_scheduler)]):
    await s.ensure(Budget(user, "$1/day", parent="app"))
    with s.tag(budget=user):
        yield  # holds for the endpoint, its thread, and (from FastAPI 0.118 on) its stream

Three things to know of endpoints that wait for money:

- One that waits in a thread (a ``def`` with a sync client) keeps one of the app's forty threads
  and cannot be cancelled: give it a ``max_wait``, or ``on_exceeded="raise"``. Stream from an
  ``async def``: nobody ends the stream of a thread when its client is gone but the next garbage
  collection.
- uvicorn waits for all of them before it ends: start it with ``--timeout-graceful-shutdown 10``.
- Whoever hangs up is not noticed, and what they asked is paid for: see `HangUpMiddleware`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from scheduler.adapters.dialects import http_status
from scheduler.adapters.exceptions import refusal_of
from scheduler.budget import Budget
from scheduler.clock import SystemClock
from scheduler.core.marks import Marks
from scheduler.core.stream import ResponseStream
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError, RequestRejected, SchedulerError, StoreError
from scheduler.guards.plain import logger_of
from scheduler.ledger.matching import DEFAULT
from scheduler.request import Duration, StreamEvent
from scheduler.scheduler import Scheduler

Tag = Callable[[HTTPConnection], Marks | Awaitable[Marks | None] | None]

logger = logger_of("scheduler.web")

_PUBLIC = {
    400: "this cannot be asked",
    402: "this cannot be paid from the budget it belongs to",
    409: "this was asked before in other words",
    429: "this has to wait: try again later",
    503: "this cannot be answered now",
}
_CONNECTIONS = ("http", "websocket")
_GONE = ("http.disconnect", "websocket.disconnect")
_TRY_AGAIN_LATER, _AGAINST_POLICY, _MAX_REASON_BYTES = 1013, 1008, 123  # of closing websockets


# A scheduler for an app


def lifespan(
    make: Callable[[], Scheduler],
    *,
    ensure: Iterable[Budget] | Budget | str | int | float | Decimal = (),
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """A lifespan in which there is an open scheduler, as ``app.state.scheduler``.

    An app with a lifespan of its own enters this one within it:
    ``async with lifespan(make)(app) as state: … yield state``.

    Args:
        make: Makes the scheduler; called once for each life, in the app's own process.
        ensure: Budgets to make where there are none by these names. Unlike budgets given to the
            scheduler itself, a worker that starts with them undoes no limit that somebody
            raised. A bare limit such as ``"$50/day"`` is that of a budget named ``default``.
    """
    if isinstance(ensure, str | int | float | Decimal):
        ensure = Budget(DEFAULT, ensure)
    budgets = (ensure,) if isinstance(ensure, Budget) else tuple(ensure)

    @asynccontextmanager
    async def live(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with make() as scheduler:
            await scheduler.ensure(*budgets)
            app.state.scheduler = scheduler
            yield {"scheduler": scheduler}

    return live


def scheduler_of(http: HTTPConnection) -> Scheduler:
    """The scheduler of the app that answers a request; for handlers and middleware.

    Also in an app that is mounted in another one, which has it.

    Raises:
        ConfigError: The app has none.
    """
    app = http.scope.get("app")
    found = getattr(getattr(app, "state", None), "scheduler", None)
    if not isinstance(found, Scheduler):
        found = http.scope.get("state", {}).get("scheduler")
    if not isinstance(found, Scheduler):
        raise ConfigError(
            "app",
            "has no scheduler: give it lifespan=lifespan(…). If it has that, its life has not begun: "
            "httpx's ASGITransport begins none, TestClient only in a with block",
        )
    return found


async def get_scheduler(http: HTTPConnection) -> Scheduler:
    """The app's scheduler, for FastAPI's ``Depends``; elsewhere see `scheduler_of`.

    It is async since FastAPI calls plain functions in threads, which may all be waiting.

    Raises:
        ConfigError: The app has none.
    """
    return scheduler_of(http)


async def begin(stream: ResponseStream) -> AsyncIterator[StreamEvent]:
    """Wait until a stream has begun: what is refused is refused while there is still a status.

    ``return StreamingResponse(text_of(await begin(s.stream(request))))``

    Returns:
        All of its events. Left early it ends the call, as the stream itself does.

    Raises:
        RequestRejected: It will not begin.
        CallFailed: Likewise.
    """
    try:
        first = await anext(stream, None)
    except BaseException:
        await stream.aclose()
        raise
    return _go_on(first, stream)


async def _go_on(first: StreamEvent | None, stream: ResponseStream) -> AsyncIterator[StreamEvent]:
    async with stream:
        if first is not None:
            yield first
        async for event in stream:
            yield event


# Refusals as answers


def add_error_handlers(
    app: Any, *, also: Iterable[type[Exception]] = (), details: bool = False
) -> None:
    """Answer what is refused with 402 (not as it is) or 429 (later), and ``Retry-After``.

    That header is there when it is known when. A store that fails gives 503. Websockets are
    closed with 1008 or 1013 in place of 402 or 429. The reason goes to the log,
    ``scheduler.web``. Calls that failed at their provider stay the app's own business.

    Args:
        app: Of Starlette or FastAPI.
        also: Errors by which a wrapped SDK tells of refusals, such as ``openai.APIStatusError``.
        details: Tell clients which budget it is, its amounts, and what it would have cost.
    """

    async def answer(http: HTTPConnection, exc: Exception) -> Response | None:
        error = exc if isinstance(exc, SchedulerError) else refusal_of(exc)
        if error is None:
            raise exc  # the provider's own
        level = logging.ERROR if isinstance(error, StoreError) else logging.INFO
        logger.log(level, "%r: %s", http.scope["path"], error)
        status, code, retry_after_s = http_status(error, _now_ms(http))
        message = str(error) if details else _PUBLIC[status]
        if isinstance(http, WebSocket) and not _takes_answers(http):
            await _close(http, status, message)
            return None
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers)

    for kind in (RequestRejected, StoreError, *also):
        app.add_exception_handler(kind, answer)


def _now_ms(http: HTTPConnection) -> int:
    try:
        return scheduler_of(http).now_ms()
    except ConfigError:  # a scheduler of the app's own making
        return SystemClock().now_ms()


def _takes_answers(http: WebSocket) -> bool:
    """Whether it is not a websocket yet, and its server can say no in the form of an answer."""
    is_new = http.application_state is WebSocketState.CONNECTING
    return is_new and "websocket.http.response" in (http.scope.get("extensions") or {})


async def _close(http: WebSocket, status: int, message: str) -> None:
    if http.application_state not in (WebSocketState.CONNECTING, WebSocketState.CONNECTED):
        return
    code = _TRY_AGAIN_LATER if status in (429, 503) else _AGAINST_POLICY
    reason = message.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    await http.close(code, reason)


# Middleware


class TagMiddleware:
    """Tags all that is asked while a request of the app is answered, as `Scheduler.tag` does.

    Streams, background tasks and threads of the endpoint included. What the function raises is
    answered as if an endpoint had raised it.

    Args:
        app: The app within.
        tag: From a connection to what is said of its requests, or None. Called in the event
            loop; async, if it looks a user up, or makes sure of their budget
            (`Scheduler.ensure`).
    """

    def __init__(self, app: ASGIApp, tag: Tag) -> None:
        self.app, self._tag = app, tag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in _CONNECTIONS:
            await self.app(scope, receive, send)
            return
        http = HTTPConnection(scope)
        scheduler = scheduler_of(http)
        try:
            marks = self._tag(http)
            if inspect.isawaitable(marks):
                marks = await marks
        except Exception as exc:
            await _raising(exc, scope)(scope, receive, send)
            return
        with scheduler.tag(**(marks or {})):
            await self.app(scope, receive, send)


def _raising(exc: Exception, scope: Scope) -> ASGIApp:
    """An app whose endpoint raises this: an app's handlers are deeper than its middleware."""

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        raise exc

    handlers = getattr(scope.get("app"), "exception_handlers", {})
    inner = {kind: handler for kind, handler in handlers.items() if kind not in (500, Exception)}
    return ExceptionMiddleware(endpoint, inner)


class HangUpMiddleware:
    """Gives up what is asked for clients that have hung up.

    Without it nobody notices: an endpoint that waits for money waits on, and pays in the end for
    an answer that nobody reads. (Only ``StreamingResponse`` notices.) With it the endpoint is
    cancelled: what waits is given up, and costs nothing; what is under way is broken off, and
    all that it reserved keeps counting.

    Args:
        app: The app within.
        grace: How long an endpoint may go on without its client: long enough for most answers,
            so that what has been sent is settled at what it cost. 0: not at all.
    """

    def __init__(self, app: ASGIApp, grace: Duration = "30s") -> None:
        self.app, self._grace_s = app, parse_duration_ms(grace, "grace") / 1000

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in _CONNECTIONS:
            await self.app(scope, receive, send)
            return
        with anyio.CancelScope() as scope_of_app:
            line = _Line(receive, send, scope_of_app, self._grace_s)
            listening = asyncio.create_task(line.listen(), name="scheduler hang-up")
            try:
                await self.app(scope, line.receive, line.send)
            finally:
                listening.cancel()


class _Line:
    """A connection, read just so far ahead that it is heard when its client hangs up."""

    def __init__(
        self, receive: Receive, send: Send, scope: anyio.CancelScope, grace_s: float
    ) -> None:
        self._receive, self._send, self._scope, self._grace_s = receive, send, scope, grace_s
        self._ahead: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._is_answered = False

    async def listen(self) -> None:
        """Read until the client hangs up; then the app's time begins to run."""
        try:
            while (message := await self._receive())["type"] not in _GONE:
                self._ahead.put_nowait(message)
                if message["type"] != "http.request" or message.get("more_body"):
                    await self._ahead.join()  # never two ahead: how fast is the app's to say
        except Exception as exc:
            self._ahead.put_nowait(exc)  # such as a body too large: the app's to hear
            return
        self._ahead.put_nowait(message)
        if not self._is_answered:
            self._scope.deadline = anyio.current_time() + self._grace_s

    async def receive(self) -> Message:
        """The app's `receive`."""
        message = await self._ahead.get()
        self._ahead.task_done()
        if isinstance(message, Exception):
            raise message
        if message["type"] in _GONE:
            self._ahead.put_nowait(message)  # may be asked for again
        return message

    async def send(self, message: Message) -> None:
        """The app's `send`. What it does after its answer is not its client's any more."""
        await self._send(message)
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last or message["type"] == "websocket.close":
            self._is_answered, self._scope.deadline = True, math.inf
