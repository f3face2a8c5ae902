"""What a client's request has to pass before it is served, and how it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pydantic_core import to_json
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from scheduler.adapters.dialects import Dialect, decoded
from scheduler.batch.results import line_text
from scheduler.errors import SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.server.line import HungUp, Line
from scheduler.server.refusals import JSON, Unserved, Whole, refused
from scheduler.server.tokens import Token

if TYPE_CHECKING:
    from scheduler.server.gateway import Gateway

logger = logger_of("scheduler.server")

BASES = ("", "/openai", "/at/{provider}", "/at/{provider}/openai")
MOST_LISTED = 100


class Door:
    """An ASGI app that answers one method at one path.

    Args:
        gateway: Knows who may come in.
        answer: What is told; None: it has told it itself.
        dialect: In whose form it is refused.
    """

    def __init__(
        self, gateway: Gateway, answer: Callable[[Line, Token], Awaitable[Whole | None]],
        dialect: Dialect,
    ) -> None:  # fmt: skip
        self._gateway, self._answer, self._dialect = gateway, answer, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        line = Line(scope, receive, send, self._gateway.bodies)
        try:
            await self._serve(line, scope)
        finally:
            line.let_go()

    async def _serve(self, line: Line, scope: Scope) -> None:
        try:
            whole = await self._answer(line, await self._gateway.token_of(line))
        except HungUp:
            return
        except Unserved as wrong:
            whole = wrong.as_answer(self._dialect)
        except Exception as error:
            if line.has_begun:
                raise  # the connection is closed without an end, so that nobody takes it for one
            if not isinstance(error, SchedulerError):
                logger.error("%s failed in a way that it should not", scope["path"], exc_info=error)
            whole = refused(error, self._dialect, self._gateway.scheduler.now_ms())
        if whole is not None and not line.has_begun:
            await line.answer(whole)


Answer = Callable[[Line, Token], Awaitable[Whole | None]]


def routes(
    gateway: Gateway, dialect: Dialect, served: Iterable[tuple[str, str, Answer]]
) -> list[BaseRoute]:
    """Doors for methods and paths, below every base."""
    at: dict[str, dict[str, Door]] = {}
    for method, path, answer in served:
        at.setdefault(path, {})[method] = Door(gateway, answer, dialect)
    return [
        Route(f"{base}{path}", _ByMethod(doors), methods=list(doors))  # so that all are told of
        for base in BASES for path, doors in at.items()
    ]  # fmt: skip


class _ByMethod:
    """The doors at one path."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self._doors = {**doors, "HEAD": doors["GET"]} if "GET" in doors else dict(doors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._doors[scope["method"]](scope, receive, send)


def said(body: Mapping[str, Any], status: int = 200) -> Whole:
    """An object as an answer; what of its texts is none becomes U+FFFD, as in results."""
    try:
        content = to_json(body)
    except ValueError:
        content = line_text(body).encode()
    return Whole(status, [JSON], content)


async def streamed(line: Line, kind: bytes, pieces: AsyncIterator[bytes]) -> bool:
    """Tell pieces as they come; whether its client was there to the end."""
    await line.begin(200, [(b"content-type", kind)])
    gone = asyncio.create_task(_until_gone(line))
    try:
        async for piece in pieces:
            if gone.done():
                return False
            await line.write(piece)
        if gone.done():
            return False
        await line.end()
        return True
    finally:
        gone.cancel()


async def _until_gone(line: Line) -> None:
    while (await line.receive())["type"] != "http.disconnect":
        pass


def asked(content: bytes) -> dict[str, Any]:
    """The JSON object that a client sends. Raises `Unserved`."""
    body = decoded(content) if content else {}
    if body is None:
        raise wrong("the body is no JSON object")
    return body


def query(line: Line) -> dict[str, str]:
    """The parameters of a URL; the last one of a name counts."""
    text = line.scope["query_string"].decode("latin-1")
    return {name: values[-1] for name, values in parse_qs(text).items()}


def page_of(asked: Mapping[str, str], usual: int = 20, most: int = MOST_LISTED) -> int:
    """How many rows are asked for. Raises `Unserved`."""
    text = asked.get("limit", str(usual))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise wrong(f"limit is {text[:20]!r}, not a number from 1 to {most:,}")
    return int(text)


def named(line: Line) -> str:
    """What a path names."""
    return str(line.scope["path_params"]["id"])


def wrong(problem: str, code: str = "invalid_request") -> Unserved:
    """What is asked makes no sense."""
    return Unserved(400, code, f"{problem}; nothing was sent")


def missing(what: str, name: str) -> Unserved:
    """There is nothing of that name, or it is another client's."""
    return Unserved(404, "not_found", f"there is no {what} {name[:100]!r} that belongs to this token (ask "
                    "for a list; what another token made is not shown); nothing was sent")  # fmt: skip
