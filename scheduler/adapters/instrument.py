"""For code whose clients are out of reach: all HTTP clients of the process, until it is undone."""

from __future__ import annotations

import asyncio
import atexit
import http.client
import importlib
import importlib.util
import socket
import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, Self

from scheduler.adapters.blocking import BlockingScheduler
from scheduler.adapters.dialects import is_endpoint
from scheduler.adapters.http import Door
from scheduler.adapters.sdks import Sdks
from scheduler.adapters.sightings import Sightings, may_cost
from scheduler.adapters.wrap import make_door
from scheduler.core.intake import OnExceeded
from scheduler.core.marks import NO_MARKS, Marks, merge
from scheduler.core.nested.parts import noted_here
from scheduler.errors import ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    from scheduler.scheduler import Scheduler

_now: list[Instrumented] = []  # at most one


class _StrictDoor(Door):
    """Takes for a call only what is unmistakably one, and notes what is not, but may be one."""

    __slots__ = ("sightings",)
    sightings: Sightings

    def read(self, request: Any) -> Any:
        """The call that a request makes; None: it is about something else."""
        call = super().read(request)
        is_on_its_own = noted_here(self.scheduler.store) == (None, False)
        if call is None and request.method == "POST" and is_on_its_own:
            self.sightings.passed(request.url.host, request.url.path)
        return call

    def may_cost(self, request: Any) -> bool:
        """Whether it goes to a model's service, whatever it asks there."""
        url = request.url
        return bool(request.method == "POST" and may_cost(url.host, url.path))

    def passed(self, host: str, path: str | None) -> None:
        """Something goes out that is not counted: below a call, for a function, or past all."""
        tab, is_covered = noted_here(self.scheduler.store)
        if tab is None and not is_covered:
            if path is None:
                self.sightings.looked_up(host)
            else:
                self.sightings.passed(host, path)
            return
        is_reached = path is None and self.sightings.reaches(host)
        if tab is not None and not is_reached and may_cost(host, path):
            tab.misses()


class Instrumented:
    """What `instrument` did; call it, or leave its block, to undo it."""

    def __init__(self, door: _StrictDoor, sightings: Sightings) -> None:
        self._door, self._sightings, self._is_over = door, sightings, False
        self._undo: list[Callable[[], None]] = []
        self._sdks = Sdks(self._patch)
        for name in ("httpx", "httpx2"):
            module = _found(name)
            if module is not None:
                self._patch(module.AsyncClient, "send", self._send)
                self._patch(module.Client, "send", self._send_sync)
                self._patch(module.AsyncClient, "__init__", self._make)
                self._patch(module.Client, "__init__", self._make)
        if (module := _found("aiohttp")) is not None:
            self._patch(module.ClientSession, "_request", self._send_aiohttp)
        if (module := _found("requests")) is not None:
            self._patch(module.Session, "send", self._send_requests)
        self._patch(http.client.HTTPConnection, "putrequest", self._notice)
        self._patch(socket, "getaddrinfo", self._notice_host)
        self._patch(asyncio.BaseEventLoop, "getaddrinfo", self._in_context)
        atexit.register(self._at_exit)

    def _patch(self, holder: Any, name: str, replacement: Callable[[Any], Any]) -> None:
        original = getattr(holder, name)
        patched = wraps(original)(replacement(original))
        setattr(holder, name, patched)

        def undo() -> None:
            # Whoever patched it after this keeps what they did: it leads nowhere but there.
            if getattr(holder, name) is patched:
                setattr(holder, name, original)

        self._undo.append(undo)

    @property
    def is_for_nothing(self) -> bool:
        """Whether its scheduler is closed, so that all it does is to refuse."""
        return self._door.scheduler.is_closed

    def __call__(self) -> None:
        """Undo it; calls under way finish as they began. Warns if it has seen no call at all."""
        if self._end():
            self._sightings.ended()

    def _end(self) -> bool:
        was_over, self._is_over = self._is_over, True
        self._sdks.is_over = True
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        atexit.unregister(self._at_exit)
        if self in _now:
            _now.remove(self)
        return not was_over

    def _at_exit(self) -> None:
        if not self._is_over:
            self._sightings.ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self()
        else:  # which may well be why nothing was called
            self._end()

    def _make(self, original: Any) -> Any:
        """An SDK makes its HTTP clients when it has been imported, and before it asks anything."""

        def __init__(client: Any, *args: Any, **options: Any) -> None:
            if not self._is_over:
                self._sdks.reach()
            original(client, *args, **options)

        return __init__

    # What is called in place of what clients send by

    def _send(self, original: Any) -> Any:
        async def send(client: Any, request: Any, **options: Any) -> Any:
            if self._is_over:
                return await original(client, request, **options)
            self._sightings.sent(request.method, request.url.host, request.url.path)
            return await self._door.send(client, request, options, original.__get__(client))

        return send

    def _send_sync(self, original: Any) -> Any:
        def send(client: Any, request: Any, **options: Any) -> Any:
            if self._is_over:
                return original(client, request, **options)
            self._sightings.sent(request.method, request.url.host, request.url.path)
            return self._door.send_sync(client, request, options, original.__get__(client))

        return send

    def _send_aiohttp(self, original: Any) -> Any:
        from scheduler.adapters import aio

        async def _request(session: Any, method: str, str_or_url: Any, **options: Any) -> Any:
            post = original.__get__(session)
            if self._is_over:
                return await post(method, str_or_url, **options)
            url = aio.whole_url(session, str_or_url)
            if url is not None:
                self._look(method, url.host or "", url.path)
            return await aio.send(self._door, session, post, method, str_or_url, options)

        return _request

    def _send_requests(self, original: Any) -> Any:
        from scheduler.adapters import sessions

        def send(session: Any, request: Any, **options: Any) -> Any:
            post = original.__get__(session)
            if self._is_over:
                return post(request, **options)
            host, path = sessions.place_of(request)
            self._look(str(request.method), host, path)
            return sessions.send(self._door, post, request, options)

        return send

    def _look(self, method: str, host: str, path: str) -> None:
        """A request of a client that goes to the door only if its path is an endpoint."""
        self._sightings.sent(method, host, path)
        if method.upper() == "POST" and not is_endpoint(path):
            self._door.passed(host, path)

    def _notice(self, original: Any) -> Any:
        """What goes out by Python's own client, and by urllib3 and botocore, which build on it."""

        def putrequest(connection: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
            if method == "POST" and not self._is_over:
                self._door.passed(connection.host, url.partition("?")[0])
            return original(connection, method, url, *args, **options)

        return putrequest

    def _notice_host(self, original: Any) -> Any:
        """What goes out by sockets of a library's own."""

        def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
            if not self._is_over and host:
                text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
                self._door.passed(text, None)
            return original(host, *args, **options)

        return getaddrinfo

    def _in_context(self, original: Any) -> Any:
        """What a loop looks up, in a thread, is looked up for whoever asked it."""

        async def getaddrinfo(loop: Any, host: Any, port: Any, **options: int) -> Any:
            if self._is_over:
                return await original(loop, host, port, **options)
            look = loop._getaddrinfo_debug if loop.get_debug() else socket.getaddrinfo
            numbers = (options.get(name, 0) for name in ("family", "type", "proto", "flags"))
            there = copy_context().run
            return await loop.run_in_executor(None, there, look, host, port, *numbers)

        return getaddrinfo


def _found(name: str) -> Any:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


def instrument(
    scheduler: Scheduler | BlockingScheduler,
    *,
    on_exceeded: OnExceeded | None = None,
    **marks: Unpack[Marks],
) -> Instrumented:
    """Let the calls to models of every HTTP client in this process wait for money.

    For code that makes its clients itself, where they cannot be wrapped. Clients of httpx, httpx2,
    aiohttp and requests are reached, also those that exist already, and so is every SDK that uses
    one. Only what is unmistakably a call to a model (its path and its body say so) is taken for
    one. Answers, streams and refusals are as for `Scheduler.wrap`, and so are retries by clients of
    OpenAI, Anthropic and Groq; those of others for broken connections stay, each a call of its own.

    What it sees go out past it gives an `UncountedCalls` warning, once for each host: calls by
    other means (boto3's to Bedrock, urllib, sockets of a library's own) or to other paths. So does
    its end, if it has seen no call at all.

    Args:
        scheduler: Who says when.
        on_exceeded: As on the scheduler, for these calls.
        marks: As for `Scheduler.tag`.

    Returns:
        A way to undo it: call it, or use it in ``with``.

    Raises:
        ConfigError: It was done already, and neither undone nor for a scheduler that is closed.
        SchedulerClosed: After `Scheduler.aclose`.
    """
    if _now and _now[0].is_for_nothing:
        _now[0]._end()
    if _now:
        raise ConfigError(
            "instrument", "was done already; undo that first: it is one for a process"
        )
    if isinstance(scheduler, BlockingScheduler):
        scheduler = scheduler.scheduler
    made = make_door(scheduler, on_exceeded, merge(NO_MARKS, marks))
    door = _StrictDoor(made.scheduler, made.on_exceeded, made.marks, is_strict=True)
    door.sightings = Sightings()
    _now.append(Instrumented(door, door.sightings))
    return _now[0]
