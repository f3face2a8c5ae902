"""The application behind the page: its files, what it reads, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from functools import wraps
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from scheduler.errors import ConfigError, SchedulerError
from scheduler.request import RequestState
from scheduler.server.page.desk import Desk, NotFound
from scheduler.server.page.feed import Feed
from scheduler.server.page.guard import Guard, Keys

PREFIX = "/dashboard"
MOST_BYTES = 10_000  # of a change
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = ("page.html", "page.css", "page.js", "chart.js", "icon.svg")

Answer = Callable[[Request], Awaitable[Any]]


def page_app(desk: Desk, keys: Keys, *, hosts: Collection[str] = (), prefix: str = "") -> ASGIApp:
    """The page of a store, guarded.

    Args:
        desk: Reads the store, and changes it.
        keys: Whom it lets in.
        hosts: Names by which it may be asked for, besides loopback's.
        prefix: Where it is mounted; empty: at the root.
    """
    feed, site = Feed(desk), _Site(desk)

    async def events(request: Request) -> Response:
        return StreamingResponse(feed.events(), media_type="text/event-stream")

    routes = [
        *(Route("/" if name == "page.html" else f"/{name}", _file(name)) for name in _FILES),
        Route("/events", events),
        Route("/api/picture", _json(site.picture)),
        Route("/api/burn/{budget:int}/{cap:int}", _json(site.burn)),
        Route("/api/requests", _json(site.requests)),
        Route("/api/requests/{id:int}", _json(site.request)),
        Route("/api/unknown", _json(site.unknown)),
        Route("/api/acts", _json(site.acts)),
        Route("/api/budgets/{budget:int}", _json(site.change), methods=["POST"]),
        Route("/api/unknown/{attempt:int}", _json(site.resolve), methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), keys, hosts, prefix)


def page_routes(desk: Desk, keys: Keys, hosts: Collection[str] = ()) -> list[BaseRoute]:
    """The same as part of another application, below `PREFIX`."""
    return [Mount(PREFIX, page_app(desk, keys, hosts=hosts, prefix=PREFIX))]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    body = files("scheduler.server.page").joinpath("static", name).read_bytes()
    kind = _KINDS[name.rpartition(".")[2]]

    async def answer(request: Request) -> Response:
        return Response(body, media_type=kind)

    return answer


def _json(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    """What it returns as JSON, and what it raises as a sentence."""

    @wraps(answer)
    async def respond(request: Request) -> Response:
        try:
            return JSONResponse(await answer(request))
        except NotFound:
            return JSONResponse({"said": "it is not there any more"}, 404)
        except (ConfigError, ValueError) as exc:
            return JSONResponse({"said": str(exc)}, 400)
        except SchedulerError as exc:
            return JSONResponse({"said": str(exc)}, 503)

    return respond


class _Site:
    """Reads what is asked, and answers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def picture(self, request: Request) -> Any:
        return await self._desk.picture()

    async def burn(self, request: Request) -> Any:
        return await self._desk.burn(request.path_params["budget"], request.path_params["cap"])

    async def requests(self, request: Request) -> Any:
        words = request.query_params.get("state", "").split(",")
        states = [RequestState(word) for word in words if word] or list(RequestState)
        return await self._desk.requests(states, _number(request, "after"))

    async def request(self, request: Request) -> Any:
        return await self._desk.request(request.path_params["id"])

    async def unknown(self, request: Request) -> Any:
        return {"unknown": await self._desk.unknown()}

    async def acts(self, request: Request) -> Any:
        return {"acts": await self._desk.acts()}

    async def change(self, request: Request) -> Any:
        budget, who, asked = request.path_params["budget"], _who(request), await _body(request)
        match asked:
            case {"limit": str(text)}:
                return {"limit": await self._desk.set_limit(budget, text, who)}
            case {"paused": bool(paused)}:
                await self._desk.pause(budget, paused, who)
                return {"paused": paused}
        raise ConfigError(
            "change", 'is {"limit": "$20/day"} or {"paused": true}; nothing was changed'
        )

    async def resolve(self, request: Request) -> Any:
        attempt, who, asked = request.path_params["attempt"], _who(request), await _body(request)
        match asked:
            case {"charge": str() | None as charge}:
                return {"freed": await self._desk.resolve(attempt, charge, who)}
        raise ConfigError(
            "change", 'is {"charge": "$0.01"} or {"charge": null}; nothing was changed'
        )


def _number(request: Request, name: str) -> int:
    return int(request.query_params.get(name) or 0)


def _who(request: Request) -> str:
    host = request.client.host if request.client is not None else "?"
    return f"page, {host}"


async def _body(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ConfigError("change", "is larger than any change; nothing was changed")
    try:
        return json.loads(body)
    except RecursionError:
        raise ConfigError("change", "is nested too deeply; nothing was changed") from None
