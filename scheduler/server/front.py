"""Who may come in at all, and which part serves what.

A page of a stranger's, open in the browser of whoever runs the gateway, can send requests to this
machine. So the name by which it is called is checked (a stranger's name may be made to point here),
and so is the page a request comes from. Who comes is asked by each part itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.adapters.dialects import Dialect
from scheduler.providers.http import is_loopback
from scheduler.server.forwarded import dialect_of
from scheduler.server.line import Line
from scheduler.server.refusals import Unserved, Whole

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Front:
    """The app: checks who comes, and hands over.

    Args:
        routes: Of all parts, those of the first come first.
        quick: Apps by method and path, looked at before the routes.
        hosts: Names by which it may be called, besides those of this machine alone.
        any_address: Whether any IP address will do: nobody's name points there.
    """

    def __init__(
        self, routes: Iterable[BaseRoute], quick: Mapping[tuple[str, str], ASGIApp],
        hosts: Iterable[str] = (), any_address: bool = False,
    ) -> None:  # fmt: skip
        self._quick = dict(quick)
        self._hosts = {each.lower() for each in hosts}
        self._any_address = any_address
        self._known: set[bytes] = set()  # hosts that were found to be fine
        self._app = Starlette(routes=list(routes), exception_handlers={HTTPException: _told})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        problem = self._problem(scope["headers"])
        if problem is not None:
            wrong = Unserved(403, "forbidden", f"{problem}; nothing was sent")
            answer = wrong.as_answer(dialect_of(scope["path"]))
            await Line(scope, receive, send).answer(answer)
            return
        app = self._quick.get((scope["method"], scope["path"]))
        if app is None and not scope["path"].isprintable():  # a line break would end a pattern
            wrong = Unserved(404, "not_found", "there is no such path; nothing was sent")
            is_google = scope["method"] == "POST" and "/models/" in scope["path"]
            dialect = Dialect.GOOGLE if is_google else dialect_of(scope["path"])
            await Line(scope, receive, send).answer(wrong.as_answer(dialect))
            return
        await (app or self._app)(scope, receive, send)

    def _problem(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request is not even looked at; None: it is."""
        host = origin = site = b""
        for name, value in headers:
            if name == b"host":
                if host:
                    return "there are two Host headers"
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if host not in self._known:
            if not self._is_ours(host.decode("latin-1")):
                return (
                    f"this gateway is not called {host.decode('latin-1')[:100]!r}; say --allow-host "
                    "for a name of its own"
                )
            if len(self._known) < 1_000 and len(host) < 300:
                self._known.add(host)
        if origin and origin.lower().partition(b"://")[2] != host.lower():
            return f"the page at {origin.decode('latin-1')[:100]!r} may not ask here"
        if site == b"cross-site":
            return "another site's page may not ask here"
        return None

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower()
        bare = name.strip("[]")
        if is_loopback(bare) or name in self._hosts or bare in self._hosts:
            return True
        return self._any_address and _is_address(bare)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _told(request: Request, exc: Exception) -> Response:
    """What no part serves, in the form of the API that was asked."""
    assert isinstance(exc, HTTPException)
    path, method = request.url.path[:200], request.method
    code = "not_found" if exc.status_code == 404 else "method_not_allowed"
    problem = f"{method} {path!r} is not served here; nothing was sent"
    wrong = Unserved(exc.status_code, code, problem)
    whole: Whole = wrong.as_answer(dialect_of(request.url.path))
    headers = {name.decode(): value.decode() for name, value in whole.headers}
    return Response(whole.content, whole.status, {**(exc.headers or {}), **headers})
