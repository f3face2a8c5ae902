"""OpenAI's, Anthropic's and Groq's clients, which are built alike, with another HTTP client.

What is given back is the same in all else: its class, what it was told when it was made, its
parts, and whatever somebody set on it. A client is copied, not made anew, since only its own class
knows how that is done. One whose methods were replaced (by a tracing library) is changed itself:
what replaced them holds on to it.

Some of a copy's methods are its own: they note what is asked, for `renewal`, and hand on what a
retry is called here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import FunctionType, MethodType, NoneType
from typing import Any, NamedTuple, cast

from scheduler.adapters.dialects import asks, decoded
from scheduler.adapters.http import Door
from scheduler.adapters.renewal import Asking, asked_now, asking
from scheduler.adapters.shadow import Alike, Budgeted, shadow, through, unwrapped
from scheduler.errors import ConfigError

NEEDED = ("_client", "request", "_prepare_options", "_build_request", "_process_response")
_SENDING = ("_send_request", "_attempt_request")  # by one of these, of some, all is sent
_USUAL_RETRIES = 2
_AMAZONS = "anthropic.lib.bedrock"  # whose streams come in a form that cannot be followed
_HOOKED = "_scheduler_hooked"  # where a client keeps what its own methods stand for
_PLAIN = (str, int, float, bool, NoneType)


def link(client: Any, door: Door, is_said: bool = False) -> Any:
    """A client like this one whose calls go through a door.

    Args:
        client: Stays as it is, if it can be copied.
        door: What its calls go through.
        is_said: As for `_hook`.

    Raises:
        ConfigError: It is wrapped already.
    """
    inner, made = client._client, client
    _unhook(client)
    shadowed = _counted(client, shadow(unwrapped(inner), door))
    if not isinstance(getattr(type(client), "_client", None), property) and not _is_patched(client):
        made = _copy(client, inner, shadowed)
    made._client = shadowed
    _hook(made, door, is_said)
    return made


def _counted(client: Any, shadowed: Any) -> Any:
    """The HTTP client that a client of ours has; if its identity sends by another one, its own."""
    return shadowed.original if _sends_elsewhere(client) else shadowed


# The copy


def _copy(client: Any, inner: Any, shadowed: Any) -> Any:
    """The same client, whose parts are its own."""
    made = object.__new__(type(client))
    _fill(made, client, inner, shadowed)
    return made


def _fill(made: Any, client: Any, inner: Any, shadowed: Any) -> None:
    """Give an empty client what another one has."""
    for name, value in vars(client).items():
        part = _part(client, made, name, value)
        if part is not _DERIVED:
            made.__dict__[name] = _with_inner(part, inner, shadowed)
    if getattr(client, "_middleware_chain", None) is not None:
        made._middleware_chain = made._build_middleware_chain()


_DERIVED = object()  # what a class makes of the rest when it is asked for


def _part(client: Any, made: Any, name: str, value: Any) -> Any:
    """Something that a client, or a part of it, holds, as its copy has it."""
    if isinstance(value, MethodType) and value.__self__ is client:
        return MethodType(value.__func__, made)
    if _is_part(client, value):
        part = object.__new__(type(value))
        part.__dict__.update(
            (each, found)
            for each, held in vars(value).items()
            if (found := _part(client, made, each, held)) is not _DERIVED
        )
        part._client = made
        return part
    is_sdks = type(value).__module__.partition(".")[0] in _roots(client)
    return _DERIVED if is_sdks and _holds(value, client) else value


def _is_part(client: Any, value: Any) -> bool:
    return getattr(value, "__dict__", {}).get("_client") is client


def _holds(value: Any, client: Any) -> bool:
    """Whether one of the SDK's own objects has been made of this client or a part of it."""
    held = getattr(value, "__dict__", {}).values()
    return any(each is client or _is_part(client, each) for each in held)


def _with_inner(value: Any, inner: Any, shadowed: Any) -> Any:
    """What sends by the HTTP client itself, by the other one."""
    held = getattr(value, "__dict__", None)
    if not held or isinstance(value, type) or not any(each is inner for each in held.values()):
        return value
    made = copy.copy(value)
    made.__dict__.update((name, shadowed) for name, each in held.items() if each is inner)
    return made


# What was replaced


def _is_patched(client: Any) -> bool:
    """Whether somebody has replaced methods or parts of a client, which lead back to it."""
    return any(_are_patched(client, each) for each in (client, *_parts(client, client)))


def _parts(client: Any, holder: Any) -> Iterable[Any]:
    for value in vars(holder).values():
        if _is_part(client, value):
            yield value
            yield from _parts(client, value)


def _are_patched(client: Any, holder: Any) -> bool:
    for name, value in vars(holder).items():
        usual = inspect.getattr_static(type(holder), name, None)
        if isinstance(usual, FunctionType | staticmethod | classmethod):
            return True  # a method, for this object alone
        is_foreign = type(value).__module__.partition(".")[0] not in _roots(client)
        if isinstance(usual, cached_property) and is_foreign and not isinstance(value, _PLAIN):
            return True  # a part of it
    return False


def _roots(client: Any) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(client).__mro__} - {"builtins"}


# Its own methods


class _Hooked(NamedTuple):
    """What a client's own method works with.

    Attributes:
        usual: The method in whose place it is.
        door: Of the client's copies.
        is_said: Whether how often it tries again is its caller's word, whatever number it is.
    """

    client: Any
    usual: Any
    door: Door
    is_said: bool


class _Own(functools.partial[Any]):
    """A client's own method: the same as that of any client, as a class's would be."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Own) and self.func is other.func

    def __hash__(self) -> int:
        return hash(self.func)


def _hook(client: Any, door: Door, is_said: bool) -> None:
    """Have a client, whose HTTP client goes through the door, note what it asks."""
    is_async = inspect.iscoroutinefunction(client._prepare_options)
    setattr(client, _HOOKED, (door, {name: vars(client).get(name) for name in _OWN}))
    for name, functions in _OWN.items():
        usual = getattr(client, name, None)
        if usual is not None:
            own = _Own(functions[is_async], _Hooked(client, usual, door, is_said))
            setattr(client, name, functools.wraps(usual)(own))


def _unhook(client: Any) -> None:
    """Let a client that was wrapped for another scheduler, which is closed, be as it was.

    Raises:
        ConfigError: That one is not.
    """
    door, usual = vars(client).get(_HOOKED, (None, {}))
    if door is not None and not door.scheduler.is_closed:
        raise ConfigError("client", "is wrapped already; use it as it is")
    vars(client).pop(_HOOKED, None)
    for name, value in usual.items():
        if value is None:
            vars(client).pop(name, None)
        else:
            setattr(client, name, value)


async def _request_async(own: _Hooked, cast_to: Any, options: Any, **more: Any) -> Any:
    call, options = begin(own.client, options, is_said=own.is_said)
    with asking(call):
        return await own.usual(cast_to, options, **more)


def _request(own: _Hooked, cast_to: Any, options: Any, **more: Any) -> Any:
    call, options = begin(own.client, options, is_said=own.is_said)
    with asking(call):
        return own.usual(cast_to, options, **more)


def _attempt_request(own: _Hooked, options: Any, **more: Any) -> Any:
    with attempting(own.client, options, more.get("call")):
        return _attempt_of(own, is_async=False)(options, **more)


async def _attempt_request_async(own: _Hooked, options: Any, **more: Any) -> Any:
    with attempting(own.client, options, more.get("call")):
        return await _attempt_of(own, is_async=True)(options, **more)


def _attempt_of(own: _Hooked, *, is_async: bool) -> Any:
    """How a client makes an attempt: all that is sent is sent right there."""
    if _is_counted_below(own.client):
        return own.usual
    counted = through(own.client._client, own.door, is_async)
    return MethodType(own.usual.__func__, Alike(own.client, {"_client": counted}))


def _send_request(own: _Hooked, request: Any, **options: Any) -> Any:
    if _is_counted_below(own.client):
        return own.usual(request, **options)
    return own.door.send_sync(own.client._client, request, options, own.usual)


async def _send_request_async(own: _Hooked, request: Any, **options: Any) -> Any:
    if _is_counted_below(own.client):
        return await own.usual(request, **options)
    return await own.door.send(own.client._client, request, options, own.usual)


def _is_counted_below(client: Any) -> bool:
    """Whether what a client sends goes through the door by its HTTP client."""
    return isinstance(client._client, Budgeted) and not _sends_elsewhere(client)


def _sends_elsewhere(client: Any) -> bool:
    """Whether a client sends by an HTTP client of its identity's own: X.509."""
    return hasattr(getattr(client, "_workload_identity_auth", None), "send_api_request")


def _prepare_options(own: _Hooked, options: Any) -> Any:
    note(own.client, options)
    return own.usual(options)


async def _prepare_options_async(own: _Hooked, options: Any) -> Any:
    return await _prepare_options(own, options)


def _process_response(own: _Hooked, *, retries_taken: int = 0, **more: Any) -> Any:
    return own.usual(retries_taken=retries_told(retries_taken), **more)


async def _process_response_async(own: _Hooked, **more: Any) -> Any:
    return await _process_response(own, **more)


def _copied(own: _Hooked, *args: Any, **options: Any) -> Any:
    made, told = own.usual(*args, **options), own.is_said or "max_retries" in options
    inner = getattr(made, "_client", None)
    if isinstance(inner, Budgeted):
        made._client = _counted(made, inner)
    elif not any(isinstance(getattr(made, name, None), MethodType) for name in _SENDING):
        return link(made, own.door, told)  # its HTTP client, of its own, is all that can be counted
    _hook(made, own.door, told)
    return made


# Of sync clients, and of async ones.
_OWN: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "request": (_request, _request_async),
    "_attempt_request": (_attempt_request, _attempt_request_async),
    "_send_request": (_send_request, _send_request_async),
    "_prepare_options": (_prepare_options, _prepare_options_async),
    "_process_response": (_process_response, _process_response_async),
    "copy": (_copied, _copied),
    "with_options": (_copied, _copied),
}


def begin(
    client: Any, options: Any, *, is_said: bool = False, is_strict: bool = False
) -> tuple[Asking | None, Any]:
    """A call as it is noted, and as the SDK's own loop makes it: once, unless somebody looks on.

    Args:
        client: The SDK's.
        options: What is asked, and how.
        is_said: Whether how often the client tries again is its caller's word.
        is_strict: Only what is unmistakably a call is one.
    """
    body = _body(options)
    if options.method.lower() != "post" or not asks(options.url, body):
        return None, options
    if is_strict and not _is_sure(client, body):
        return None, options
    if getattr(client, "_middleware", None):  # it is to see each attempt, and may change the next
        return Asking(client, client._client, 0, is_looped=True), options
    told = options.max_retries
    if isinstance(told, int):
        most: int | None = told
    else:
        is_usual = client.max_retries == _usual_retries(client)
        most = client.max_retries if is_said or not is_usual else None
    once = copy.copy(options)
    once.max_retries = 0
    return Asking(client, client._client, most), once


def _is_sure(client: Any, body: Any) -> bool:
    """Whether a call is counted also where nobody wrapped its client."""
    is_named = isinstance(body, dict) and isinstance(body.get("model"), str)
    is_amazons = any(kind.__module__.startswith(_AMAZONS) for kind in type(client).__mro__)
    return is_named and not (is_amazons and body.get("stream"))


def note(client: Any, options: Any) -> None:
    """A client prepares what it is about to ask."""
    call = asked_now()
    if call is not None and call.inner is client._client and call.options is None:
        call.options = copy.copy(options)


@contextlib.contextmanager
def attempting(client: Any, options: Any, span: Any) -> Iterator[None]:
    """A client makes an attempt, maybe one that it tells a tracer of.

    Middleware also makes some while a stream is read, when the call itself has come back.
    """
    call = asked_now()
    if call is None or call.inner is not client._client:
        call = begin(client, options)[0] if getattr(client, "_middleware", None) else call
    else:
        call.span = span
    with asking(call):
        yield


def is_linked(client: Any) -> bool:
    """Whether a client has methods of its own that note what is asked."""
    return _HOOKED in vars(client)


def retries_told(retries_taken: int) -> int:
    """How often a call was sent again, which the SDK's own loop does not know."""
    call = asked_now()
    return retries_taken if call is None or call.is_looped else call.retries_taken


def _body(options: Any) -> Any:
    """What is asked; some write it down themselves."""
    body, more = options.json_data, getattr(options, "extra_json", None)
    if body is None:
        body = getattr(options, "content", None)
    if isinstance(body, bytes | bytearray):
        return decoded(bytes(body))
    return {**body, **more} if isinstance(body, dict) and isinstance(more, dict) else body


def _usual_retries(client: Any) -> int:
    """How often an SDK tries again if nobody says so."""
    for root in _roots(client):
        with contextlib.suppress(AttributeError, KeyError):
            return cast(int, sys.modules[f"{root}._base_client"].DEFAULT_MAX_RETRIES)
    return _USUAL_RETRIES
