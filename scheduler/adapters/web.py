"""For web apps on Starlette or FastAPI: a lifespan, a dependency, error handlers, a middleware.

app = FastAPI(lifespan=lifespan(lambda: Scheduler("sqlite:///app.db", budgets="$50/day")))
app.add_middleware(TagMiddleware, tag=lambda http: {"tags": {"user": http.headers["x-user"]}})
add_error_handlers(app)

@app.get("/ask")
async def ask(q: str, s: Annotated[Scheduler, Depends(get_scheduler)]): ...
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.adapters.dialects import http_status
from scheduler.errors import ConfigError, RequestRejected, SchedulerError, StoreError
from scheduler.marks import Marks
from scheduler.scheduler import Scheduler

Tag = Callable[[HTTPConnection], Marks | Awaitable[Marks | None] | None]

_PUBLIC = {
    402: "this cannot be paid from the budget it belongs to",
    429: "there is no money for this now",
    400: "this cannot be asked",
    409: "this was asked before in other words",
    503: "this cannot be answered now",
}


def lifespan(
    make: Callable[[], Scheduler],
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """A lifespan in which there is an open scheduler, as ``app.state.scheduler``.

    An app with a lifespan of its own enters this one within it:
    ``async with lifespan(make)(app): …``.

    Args:
        make: Makes the scheduler; called once for each life, in the app's own process.
    """

    @contextlib.asynccontextmanager
    async def live(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with make() as scheduler:
            app.state.scheduler = scheduler
            yield {"scheduler": scheduler}

    return live


def get_scheduler(http: HTTPConnection) -> Scheduler:
    """The app's scheduler; for FastAPI's ``Depends``, and for handlers.

    Raises:
        ConfigError: The app has none.
    """
    found = getattr(http.app.state, "scheduler", None)
    if not isinstance(found, Scheduler):
        raise ConfigError("app", "has no scheduler: give it lifespan=lifespan(...)")
    return found


def refusal_of(exc: BaseException) -> SchedulerError | None:
    """Why a call of a wrapped SDK client was refused here; None: its provider refused it."""
    extensions = getattr(getattr(exc, "response", None), "extensions", None) or {}
    error = extensions.get("scheduler.error")
    return error if isinstance(error, SchedulerError) else None


def add_error_handlers(
    app: Any, *, also: Iterable[type[Exception]] = (), details: bool = False
) -> None:
    """Answer refused requests with 402 (not as it is) or 429 (later), and ``Retry-After``.

    Args:
        app: Of Starlette or FastAPI.
        also: Errors by which a wrapped SDK tells of refusals, such as ``openai.APIStatusError``.
        details: Tell clients which budget it is, its amounts, and what it would have cost.
    """

    async def answer(http: Request, exc: Exception) -> Response:
        error = exc if isinstance(exc, SchedulerError) else refusal_of(exc)
        if error is None:
            raise exc  # the provider's own
        return _answer(error, get_scheduler(http).now_ms(), details)

    for kind in (RequestRejected, StoreError, *also):
        app.add_exception_handler(kind, answer)


def _answer(error: SchedulerError, now_ms: int, details: bool) -> Response:
    status, code, retry_after_s = http_status(error, now_ms)
    said = {"code": code, "message": str(error) if details else _PUBLIC[status]}
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": said}, status, headers)


class TagMiddleware:
    """Tags all that is asked while a request of the app is answered, as `Scheduler.tag` does.

    Args:
        app: The app within.
        tag: From a connection to what is said of its requests, or None; may be async, to look
            a user up, or to make sure of their budget (`Scheduler.ensure`).
    """

    def __init__(self, app: ASGIApp, tag: Tag) -> None:
        self.app, self._tag = app, tag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        http = HTTPConnection(scope)
        marks = self._tag(http)
        if inspect.isawaitable(marks):
            marks = await marks
        with get_scheduler(http).tag(**(marks or {})):
            await self.app(scope, receive, send)
