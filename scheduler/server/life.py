"""A gateway from its first breath to its last: what ``serve`` and ``run --`` have in common."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from scheduler.errors import ConfigError
from scheduler.providers.base import Provider
from scheduler.providers.http import is_loopback
from scheduler.scheduler import Scheduler
from scheduler.server.batches.background import Background
from scheduler.server.batches.batches import Batches
from scheduler.server.batches.files import Files
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.messages import Messages
from scheduler.server.batches.reader import Reader
from scheduler.server.batches.shelf import Shelf
from scheduler.server.front import Front
from scheduler.server.gateway import Gateway
from scheduler.server.listen import bind, listening, url_at
from scheduler.server.page import PREFIX, Desk, Keys, page_routes
from scheduler.server.tokens import ONE_TIME, Token, Tokens, kept, make_token


@dataclass(frozen=True, slots=True)
class Settings:
    """How a gateway is to be.

    Attributes:
        host: Where it listens.
        port: 0: any that is free.
        max_hold_ms: So long a call may wait that does not say otherwise.
        hosts: Names by which it may be called besides.
        at_last: As `Gateway` takes it.
        is_meant: Likewise.
        own: What the token of this gateway alone says of its calls. None: it has one only if no
            other was made.
        page: What the page that shows its store calls that. Empty: there is no page.
        may_change: Whether that page changes limits, too.
        metrics: Whether Prometheus is told at ``/metrics``, if it has a token.
        on_link: Told another link to the page when one was used.
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_hold_ms: int = 600_000
    hosts: Sequence[str] = ()
    at_last: frozenset[str] = frozenset()
    is_meant: bool = False
    own: Mapping[str, Any] | None = None
    page: str = ""
    may_change: bool = False
    metrics: bool = False
    on_link: Callable[[str], None] = lambda link: None


@dataclass(frozen=True, slots=True)
class Open:
    """A gateway that listens.

    Attributes:
        url: Where, without a path.
        secret: Its own token. None: it has none.
        link: To the page on which it is watched, good for one browser; empty: there is none.
    """

    gateway: Gateway
    url: str
    secret: str | None
    link: str = ""


@contextlib.asynccontextmanager
async def open_gateway(
    scheduler: Scheduler, providers: Iterable[Provider], settings: Settings
) -> AsyncIterator[Open]:
    """Listen while the block lasts.

    Args:
        scheduler: Open, in this event loop.
        providers: Its own, the default first.
        settings: How it is to be.

    Raises:
        ConfigError: It cannot listen there, or must not.
    """
    own, secret = await _own(scheduler, settings)
    at = bind(settings.host, settings.port)
    tokens = Tokens(scheduler.store, own)
    gateway = Gateway(
        scheduler, list(providers), tokens, max_hold_ms=settings.max_hold_ms,
        at_last=settings.at_last, is_meant=settings.is_meant,
    )  # fmt: skip
    keys = Keys(lambda: settings.on_link(_link(at, keys)))
    shelf = Shelf(scheduler.store)
    reader = Reader(scheduler, shelf, gateway.named, gateway.provider)
    keeper = Keeper(scheduler, shelf, reader, gateway.noted)
    front = Front(
        [
            *served(gateway, shelf, keeper), *_page(scheduler, settings, keys),
            *_metrics(scheduler, settings, tokens),
        ],
        gateway.quick(), _names(settings),
        any_address=not is_loopback(settings.host),
    )  # fmt: skip
    async with keeper.working(), listening(front, at):
        yield Open(gateway, url_at(at), secret, _link(at, keys) if settings.page else "")


def served(gateway: Gateway, shelf: Shelf, keeper: Keeper) -> list[BaseRoute]:
    """The APIs of providers."""
    return [
        *gateway.routes(), *Files(gateway, shelf, keeper).routes(),
        *Batches(gateway, shelf, keeper).routes(), *Messages(gateway, shelf, keeper).routes(),
        *Background(gateway).routes(),
    ]  # fmt: skip


def _page(scheduler: Scheduler, settings: Settings, keys: Keys) -> list[BaseRoute]:
    if not settings.page:
        return []
    desk = Desk(
        scheduler.store, settings.page, may_change=settings.may_change, now_ms=scheduler.now_ms
    )
    return page_routes(desk, keys, _names(settings))


def _metrics(scheduler: Scheduler, settings: Settings, tokens: Tokens) -> list[BaseRoute]:
    if not settings.metrics:
        return []
    metrics = scheduler.metrics()

    async def answer(request: Request) -> Response:
        how, _, secret = request.headers.get("authorization", "").partition(" ")
        found = await tokens.find(secret, scheduler.now_ms(), time.monotonic())
        if how.lower() != "bearer" or found is None:
            said = "this needs a token of the gateway (scheduler token create prometheus)\n"
            return PlainTextResponse(said, 401, {"www-authenticate": "Bearer"})
        if found.budgets:
            said = f"the token {found.name!r} is bound to budgets, and this tells of all of them\n"
            return PlainTextResponse(said, 403)
        return Response(await metrics.text(), media_type=metrics.content_type)

    return [Route("/metrics", answer)]


def _link(at: socket.socket, keys: Keys) -> str:
    return f"{url_at(at)}{PREFIX}/?token={keys.link()}"


async def _own(scheduler: Scheduler, settings: Settings) -> tuple[Token | None, str | None]:
    """The token of this gateway alone, if it has one."""
    if settings.own is not None:
        return make_token(ONE_TIME, **settings.own)
    now_ms = scheduler.now_ms()
    if any(not each.is_over(now_ms) for each in await kept(scheduler.store)):
        return None, None
    if not is_loopback(settings.host):
        raise ConfigError(
            "--host", f"{settings.host!r} is reached from elsewhere, and there is no token yet; make "
            "one for each client first: scheduler token create NAME --budget BUDGET",
        )  # fmt: skip
    return make_token(ONE_TIME)


def _names(settings: Settings) -> list[str]:
    names = list(settings.hosts)
    if settings.host not in ("0.0.0.0", "::"):
        names.append(settings.host)
    elif socket.gethostname():
        names.append(socket.gethostname())
    return names
