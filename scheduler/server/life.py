"""A gateway from its first breath to its last: what ``serve`` and ``run --`` have in common."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute

from scheduler.errors import ConfigError
from scheduler.providers.base import Provider
from scheduler.providers.http import is_loopback
from scheduler.scheduler import Scheduler
from scheduler.server.front import Front
from scheduler.server.gateway import Gateway
from scheduler.server.listen import bind, listening, url_at
from scheduler.server.tokens import Token, Tokens, kept, make_token

Part = Callable[[Gateway], Iterable[BaseRoute]]
"""Something that is served: its routes, of which each asks by itself who comes."""

PARTS: tuple[Part, ...] = (Gateway.routes,)
"""All that is served; routes of the first come first."""

ONE_TIME = "one-time"  # the name of a token that ends with its gateway


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
    """

    host: str = "127.0.0.1"
    port: int = 0
    max_hold_ms: int = 600_000
    hosts: Sequence[str] = ()
    at_last: frozenset[str] = frozenset()
    is_meant: bool = False
    own: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """A gateway that listens.

    Attributes:
        url: Where, without a path.
        secret: Its own token. None: it has none.
    """

    gateway: Gateway
    url: str
    secret: str | None


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
    gateway = Gateway(
        scheduler, list(providers), Tokens(scheduler.store, own), max_hold_ms=settings.max_hold_ms,
        at_last=settings.at_last, is_meant=settings.is_meant,
    )  # fmt: skip
    front = Front(
        [route for part in PARTS for route in part(gateway)], gateway.quick(), _names(settings),
        any_address=not is_loopback(settings.host),
    )  # fmt: skip
    async with listening(front, at):
        yield Open(gateway, url_at(at), secret)


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
