"""Clients of httpx and httpx2 whose calls go through a door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from scheduler.adapters.http import Door, family_of
from scheduler.errors import ConfigError

_KINDS: dict[type, Any] = {}


class Budgeted:
    """A client whose calls go through a door; see `shadow`.

    Its state is that of the client it was made from, but for these two:

    Attributes:
        door: What its calls go through.
        original: The client it was made from; some close themselves when they are dropped.
    """

    __slots__ = ("door", "original")
    door: Door
    original: Any


class Alike:
    """Another object but for some of its members; what is set on it is set on that.

    Args:
        original: The other one.
        instead: Members, by name.
    """

    __slots__ = ("_instead", "_original")

    def __init__(self, original: Any, instead: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_instead", instead)

    def __getattr__(self, name: str) -> Any:
        instead = self._instead
        return instead[name] if name in instead else getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._original, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._original)


def through(client: Any, door: Door, is_async: bool) -> Any:
    """What sends as an HTTP client does, by that very client, but through a door."""

    async def send(request: Any, **options: Any) -> Any:
        return await door.send(client, request, options, client.send)

    def send_sync(request: Any, **options: Any) -> Any:
        return door.send_sync(client, request, options, client.send)

    return Alike(client, {"send": send if is_async else send_sync})


def shadow(client: Any, door: Door) -> Any:
    """A client that is the same but for its calls, which go through a door.

    It shares everything with the client it was made from, pool and settings: closing one
    closes both.

    Raises:
        ConfigError: It goes through a door already, or is no client of httpx or httpx2.
    """
    client = unwrapped(client)
    family = family_of(client)
    if family is None:
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError("client", f"a {kind} is no client of httpx or httpx2")
    is_async = isinstance(client, cast(Any, family).AsyncClient)
    made = object.__new__(_budgeted(type(client), is_async))
    made.__dict__ = client.__dict__
    made.door, made.original = door, client
    return made


def unwrapped(client: Any) -> Any:
    """A client as it was, if it was wrapped for a scheduler that is closed.

    Raises:
        ConfigError: That one is not.
    """
    while isinstance(client, Budgeted):
        if not client.door.scheduler.is_closed:
            raise ConfigError("client", "is wrapped already; use it as it is")
        client = client.original
    return client


def _budgeted(kind: type, is_async: bool) -> Any:
    """The class like `kind` whose calls go through a door."""
    known = _KINDS.get(kind)
    if known is not None:
        return known

    async def send(self: Any, request: Any, **options: Any) -> Any:
        return await self.door.send(self, request, options, super(made, self).send)

    def send_sync(self: Any, request: Any, **options: Any) -> Any:
        return self.door.send_sync(self, request, options, super(made, self).send)

    body = {
        "send": send if is_async else send_sync,
        "__doc__": kind.__doc__,
        "__del__": lambda self: None,  # to close is for the one it was made from
    }
    made: Any = type(kind.__name__, (Budgeted, kind), body)
    _KINDS[kind] = made
    return made
