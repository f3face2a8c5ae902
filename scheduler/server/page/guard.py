"""Who may see the page: whoever came by the link that was printed, from this machine, under its name.

A link holds a token that is good once: it is exchanged for a cookie that only this page is sent, so
that the token is in no history that would still open anything. The name a browser asks for is checked,
so that no other site's name can be pointed here; what changes something must come from the page itself.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "scheduler_page"
MOST_SESSIONS = 20
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Keys:
    """Links and cookies that are good now; only their hashes are kept.

    Args:
        used: Called when a link was used, so that another one can be shown.
    """

    def __init__(self, used: Callable[[], None] = lambda: None) -> None:
        self._links: list[bytes] = []
        self._sessions: list[bytes] = []
        self._used = used

    def link(self) -> str:
        """A new token, good once."""
        token = secrets.token_urlsafe(32)
        self._links = [*self._links, _hash(token)][-MOST_SESSIONS:]
        return token

    def exchange(self, token: str) -> str | None:
        """A cookie for a token; None: it is none, or was used."""
        known = _find(self._links, token)
        if known is None:
            return None
        self._links.remove(known)
        session = secrets.token_urlsafe(32)
        self._sessions = [*self._sessions, _hash(session)][-MOST_SESSIONS:]
        self._used()
        return session

    def knows(self, session: str) -> bool:
        """Whether a cookie is good."""
        return _find(self._sessions, session) is not None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _find(kept: Collection[bytes], secret: str) -> bytes | None:
    wanted = _hash(secret)
    return next((each for each in kept if hmac.compare_digest(each, wanted)), None)


class Guard:
    """Lets in who has a cookie, or brings a link; see the module.

    Args:
        app: What is behind it.
        keys: What is good.
        hosts: Names by which it may be asked for, besides loopback's.
        prefix: Where it is mounted.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, hosts: Collection[str] = (), prefix: str = ""
    ) -> None:
        self._app, self._keys, self._prefix = app, keys, prefix
        self._hosts = {each.lower() for each in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refuse(Request(scope))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._app if answer is None else answer)(scope, receive, with_headers)

    def _refuse(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if host.rpartition(":")[0].lower() not in self._hosts and host.lower() not in self._hosts:
            return PlainTextResponse("this page is not served under that name\n", 421)
        if request.method not in ("GET", "HEAD") and not _is_own(request, host):
            return PlainTextResponse("changes are taken from this page only\n", 403)
        if self._keys.knows(request.cookies.get(COOKIE, "")):
            if "token" in request.query_params:  # keep it out of the address bar
                return RedirectResponse(f"{self._prefix}/", 303)
            return None
        session = self._keys.exchange(request.query_params.get("token", ""))
        if session is None:
            return PlainTextResponse(
                "This needs the link that was printed where the page was started; a link is good for "
                "one browser, and another one is printed when it has been used.\n", 403,
            )  # fmt: skip
        answer = RedirectResponse(f"{self._prefix}/", 303)
        answer.set_cookie(
            COOKIE, session, httponly=True, samesite="strict", path=f"{self._prefix}/"
        )
        return answer


def _is_own(request: Request, host: str) -> bool:
    """Whether a browser says that it is the page itself that asks."""
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() == host.lower()
