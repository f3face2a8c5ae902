"""The server below the gateway: uvicorn, with the limits that it does not set itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from scheduler.errors import ConfigError
from scheduler.guards.plain import logger_of
from scheduler.providers import descriptors
from scheduler.server import NEEDS
from scheduler.server.refusals import Whole

try:
    import httptools
    import uvicorn
    from starlette.types import ASGIApp, Send
    from uvicorn.protocols.http.httptools_impl import (
        STATUS_LINE,
        HttpToolsProtocol,
        RequestResponseCycle,
    )
except ImportError as exc:
    raise ConfigError("serve", f"{NEEDS} ({exc})") from None

MAX_HEAD_BYTES, MAX_HEADERS = 64 * 1024, 200
HEAD_S = 30.0  # from the first byte of a request to the last of its headers
BODY_SILENCE_S = 30.0  # so long nothing of a body may come
UNREAD_S = 300.0  # so long a client may take nothing of what it is told
LOOK_S = 5.0
KEEP_ALIVE_S = 75.0  # clients let go of idle connections earlier, so that none is dropped in use
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
# An upgrade is not taken, so the request is read as if nobody had asked for one (Java's client does).
_OF_UPGRADES = (b"upgrade", b"http2-settings")
_NO_BODY = frozenset({204, 205, 304})
_OF_CONNECTION = frozenset({b"connection", b"transfer-encoding", b"content-length"})
_ONE_PIECE_BYTES = 64 * 1024
_NOT_ENDED = "returned without completing response"  # on purpose: nobody is to take it for one


class Limited(HttpToolsProtocol):
    """One connection, whose headers are bounded in size and in time.

    Attributes:
        most_clients: So many may be connected. None: any number.
    """

    most_clients: int | None = None
    _size = _count = _unread = 0
    _unread_since_s = 0.0
    _is_too_large = _is_upgrade = False
    _is_in_head = True
    _since_s: float | None = None  # since when more of a request has to come; None: it has not to
    _most_s = HEAD_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        if self.most_clients is not None and len(self.connections) > self.most_clients:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._since_s, self._most_s = self.loop.time(), HEAD_S
        self._timer = self.loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._read_again(data[exc.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _read_again(self, rest: bytes) -> None:
        """Read what asks for another protocol without that."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("Invalid HTTP request received.")
            return
        version = self.parser.get_http_version().encode()
        head = [method, b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                left = [each.strip() for each in value.split(b",")]
                value = b", ".join(each for each in left if each.lower() not in _OF_UPGRADES)
            if value and name not in _OF_UPGRADES:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def on_headers_complete(self) -> None:
        """Its headers have all come."""
        self._is_in_head = False
        self._is_upgrade = self.parser.should_upgrade()
        if not self._is_upgrade:
            super().on_headers_complete()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._size = self._count = 0
        self._since_s, self._most_s = self.loop.time(), HEAD_S

    def on_url(self, url: bytes) -> None:
        """A part of its first line."""
        self._size += len(url)
        if self._size > MAX_HEAD_BYTES:
            self._refuse()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers."""
        self._count += 1
        self._size += len(name) + len(value)
        if self._size > MAX_HEAD_BYTES or self._count > MAX_HEADERS:
            self._refuse()
        if self._is_in_head:  # what stands behind a body is not said of it
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if not self.cycle.response_complete:  # one that was refused need not go on for ever
            self._since_s, self._most_s = self.loop.time(), BODY_SILENCE_S
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it: from now on it is this side's turn."""
        if self._is_upgrade:
            return
        self._since_s = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        if self._is_too_large:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self._is_too_large = True
        raise ValueError("too many headers")

    def _look(self) -> None:
        """Now and then: has a client begun to ask, and stopped in the middle? Does it not listen?"""
        since_s, now_s = self._since_s, self.loop.time()
        if since_s is not None and not self._is_our_turn and now_s - since_s >= self._most_s:
            if self.cycle is not None and not self.cycle.response_started:
                self.transport.write(_TOO_SLOW)
            self.transport.close()
        elif self._listens(now_s):
            self._timer = self.loop.call_later(LOOK_S, self._look)
        else:
            self.transport.abort()  # what it was told is read to its end all the same

    @property
    def _is_our_turn(self) -> bool:
        """Whether it was asked something that is not answered: what else it says may wait."""
        cycle = self.cycle
        if self.pipeline:
            return True
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    def _listens(self, now_s: float) -> bool:
        """Whether it takes what it is told, however slowly: a call waits for that with its place."""
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        if not unread or unread != self._unread:
            self._unread, self._unread_since_s = unread, now_s
        return now_s - self._unread_since_s < UNREAD_S or not unread


def answer_at_once(send: Send, whole: Whole) -> bool:
    """Answer a request in one piece; False: it is not as usual, nothing was written.

    The same bytes as by two messages to `send`, for a third of what these take.
    """
    cycle = getattr(send, "__self__", None)
    status, fields, content = whole
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started or cycle.disconnected or not cycle.keep_alive
        or cycle.flow.write_paused or cycle.default_headers or cycle.scope["method"] == "HEAD"
        or status < 200 or status in _NO_BODY
    ):  # fmt: skip
        return False
    lines = [b"%b: %b\r\n" % field for field in fields]
    length = b"content-length: %d\r\n\r\n" % len(content)
    head = b"".join([STATUS_LINE[status], *lines, length])
    ends = len(lines) + 3
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        return False  # it says which header is none
    if any(name in _OF_CONNECTION for name, _ in fields):
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    if len(content) < _ONE_PIECE_BYTES:
        cycle.transport.write(head + content)
    else:
        cycle.transport.write(head)
        cycle.transport.write(content)
    cycle.message_event.set()
    cycle.on_response()
    return True


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _NOT_ENDED not in str(record.msg)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere yet.

    Args:
        host: A name or an address.
        port: 0: any that is free.

    Raises:
        ConfigError: It cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, proto)
    except OSError as exc:
        raise ConfigError(
            "host", f"{host!r} is no address of this machine: {exc.strerror}"
        ) from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as exc:
        made.close()
        raise ConfigError("port", f"cannot listen at {host}:{port}: {exc.strerror}") from None
    return made


def url_at(listening: socket.socket) -> str:
    """Where a socket is reached, without a path."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, at: socket.socket, grace_s: int = 5) -> AsyncIterator[None]:
    """Answer by an app what comes to a socket, while the block lasts, and `grace_s` after it."""
    quiet, logger = _Quiet(), logger_of("uvicorn.error")
    logger.addFilter(quiet)
    level = logger.level
    logger.setLevel(logging.ERROR)

    class Bounded(Limited):
        most_clients = descriptors.most_clients()

    server = _Server(uvicorn.Config(
        app, http=Bounded, loop="none", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, date_header=False, proxy_headers=False,
        timeout_keep_alive=int(KEEP_ALIVE_S), timeout_graceful_shutdown=grace_s, backlog=2048,
    ))  # fmt: skip
    serving = asyncio.create_task(server.serve(sockets=[at]), name="gateway")
    try:
        while not server.started:
            if serving.done():
                serving.result()
                raise ConfigError("serve", "the server did not begin")
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await serving
        logger.setLevel(level)
        logger.removeFilter(quiet)


def settle_down() -> None:
    """Let the garbage collector leave alone what is there for good, and come by less often.

    A gateway makes hundreds of objects for each call, and hardly any in circles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(3_000, 20, 50)


def make_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the quickest event loop there is; None: the usual one."""
    try:
        import uvloop
    except ImportError:  # there is none on Windows
        return None
    return uvloop.new_event_loop
