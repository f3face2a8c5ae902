"""Prometheus: what a scheduler tells of itself, as text, on a page of its own, or in a registry of yours.

    async with Scheduler("sqlite:///scheduler.db", budgets="$10/day") as s:
        server = prometheus.start(s, token="…")     # http://127.0.0.1:9464/metrics

    app.mount("/metrics", s.metrics().app)          # in an ASGI app
    REGISTRY.register(s.metrics())                  # beside metrics of your own
    text = await s.metrics().text()                 # or anywhere else

`scheduler.telemetry.families` has the metrics. Budgets and queue come from the store, so all processes on it
tell the same of them; it is looked at when somebody asks, at most once a second.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import ThreadingWSGIServer

from scheduler.errors import ConfigError, SchedulerClosed, SchedulerError
from scheduler.guards.plain import logger_of
from scheduler.telemetry import families
from scheduler.telemetry.picture import Picture, look
from scheduler.telemetry.price_data import price_data_age_s
from scheduler.telemetry.tallies import Tallies

if TYPE_CHECKING:
    from scheduler.core.shell import Shell
    from scheduler.scheduler import Scheduler

logger = logger_of("scheduler.telemetry")

LOOK_EVERY_S = 1.0
LOOK_WITHIN_S = 5.0  # then the last picture is told once more
TOKEN = "SCHEDULER_METRICS_TOKEN"
PORT = 9464
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Metrics:
    """The metrics of one scheduler; it counts from when it is made. A collector for registries.

    Args:
        s: The scheduler.

    Attributes:
        content_type: Of its text, for the header of that name.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, s: Shell) -> None:
        self._s = s
        self.tallies = Tallies(s)
        self._picture: Picture | None = None
        self._is_up = False
        self._looked_s = -LOOK_EVERY_S
        self._looking: asyncio.Task[None] | None = None

    # As text

    async def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        if self._s.is_closed or asyncio.get_running_loop() is self._s.loop:
            await self.refresh()
        else:
            await asyncio.to_thread(self.refresh_from_here)
        return self._rendered()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI app that answers any GET with them; who may ask is for whoever mounts it."""
        if scope["type"] == "lifespan":
            while True:
                said = (await receive())["type"]
                await send({"type": f"{said}.complete"})
                if said == "lifespan.shutdown":
                    return
        assert scope["type"] == "http"
        if scope["method"] not in ("GET", "HEAD"):
            status, body = 405, b""
        else:
            status, body = 200, await self.text()
        headers = [
            (b"content-type", CONTENT_TYPE_LATEST.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    def _rendered(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Taken(self))
        return generate_latest(registry)

    # As a collector, in whatever thread

    def collect(self) -> Iterator[Metric]:
        """For registries; in another thread than the scheduler's it looks at the store first.

        In the scheduler's own it cannot wait: it tells what was seen last, and has it looked at.
        """
        self.refresh_from_here()
        yield from self.taken()

    def describe(self) -> Iterable[Metric]:
        """Which metrics there are; looks at nothing."""
        return list(families.of_process(self.tallies, 0))

    def taken(self) -> Iterator[Metric]:
        """As seen last."""
        age_s = price_data_age_s(time.time_ns() // 1_000_000)
        yield from families.of_process(self.tallies, self._s.running, age_s)
        yield from families.of_store(self._picture, self._is_up)

    def refresh_from_here(self) -> None:
        """Look at the store, from any thread."""
        try:
            loop = self._s.loop
        except SchedulerClosed:
            self._is_up = False
            return
        try:
            is_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            is_here = False
        if is_here:
            self._begin_look()
            return
        done = asyncio.run_coroutine_threadsafe(self.refresh(), loop)
        try:
            done.result(2 * LOOK_WITHIN_S)
        except concurrent.futures.TimeoutError:  # its loop is busy, or has ended
            done.cancel()
            self._is_up = False
        except concurrent.futures.CancelledError:
            self._is_up = False

    async def refresh(self) -> None:
        """Look at the store, unless that was done within the last second; fails never."""
        if self._s.is_closed:
            self._is_up = False
            return
        looking = self._begin_look()
        if looking is not None:
            await asyncio.wait([looking], timeout=LOOK_WITHIN_S)
            if not looking.done():
                self._is_up = False

    def _begin_look(self) -> asyncio.Task[None] | None:
        """The look that is under way, begun if the last was long enough ago; None: it was not."""
        loop = asyncio.get_running_loop()
        if self._looking is not None and not self._looking.done():
            return self._looking
        if loop.time() < self._looked_s + LOOK_EVERY_S:
            return None
        self._looked_s = loop.time()
        self._looking = loop.create_task(self._look(), name="scheduler metrics")
        return self._looking

    async def _look(self) -> None:
        try:
            self._picture = await look(self._s.store, "", self._s.now_ms(), spend=())
            self._is_up = True
        except SchedulerError as exc:
            self._is_up = False
            logger.debug("metrics: the store cannot be looked at: %s", exc)

    def close(self) -> None:
        """Count nothing more."""
        self.tallies.close()


class _Taken:
    """The same collector, without a look."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.taken()


# A page of its own


class Server:
    """A page with the metrics, in a thread of its own.

    Attributes:
        url: Where it is.
        token: What whoever asks has to show, as ``Authorization: Bearer …``; None: nothing.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, token: str | None) -> None:
        self.metrics, self.token = metrics, token
        self._server = make_server(host, port, self._answer, ThreadingWSGIServer, _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="scheduler metrics", daemon=True
        )

    def begin(self) -> None:
        """Serve, once."""
        if not self._thread.ident:
            self._thread.start()

    async def aclose(self) -> None:
        """Serve no more; the scheduler calls it when it ends."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Serve no more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> list[bytes]:
        status, body, kind = "200 OK", b"", CONTENT_TYPE_LATEST
        if self.token is None and not _is_local(environ.get("HTTP_HOST", "")):
            status, body = "421 Misdirected Request", b"not by that name\n"
        elif self.token is not None and not self._is_shown(environ):
            status, body = "401 Unauthorized", b"a token is needed\n"
        elif environ["REQUEST_METHOD"] != "GET":
            status = "405 Method Not Allowed"
        elif environ.get("PATH_INFO", "") not in ("/metrics", "/"):
            status = "404 Not Found"
        else:
            self.metrics.refresh_from_here()
            body = self.metrics._rendered()
        kind = kind if status.startswith("200") else "text/plain; charset=utf-8"
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    def _is_shown(self, environ: dict[str, Any]) -> bool:
        scheme, _, shown = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        assert self.token is not None
        is_right = hmac.compare_digest(shown.strip().encode(), self.token.encode())
        return is_right and scheme.lower() == "bearer"


class _Handler(WSGIRequestHandler):
    timeout = 10  # for whoever connects and says nothing

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""


def start(
    s: Scheduler, port: int = PORT, *, host: str = "127.0.0.1", token: str | bool | None = None
) -> Server:
    """Serve a scheduler's metrics over HTTP until it is closed; it need not be open yet.

    Args:
        s: The scheduler; of a `BlockingScheduler` the one within.
        port: 0: any that is free; see `Server.url`.
        host: Where it listens.
        token: What Prometheus has to show (``authorization: {credentials: …}``). None: what
            ``SCHEDULER_METRICS_TOKEN`` says, else one is made, see `Server.token`. False: whoever
            is on this machine may read it.

    Raises:
        ConfigError: Without a token it listens on this machine only.
        OSError: The port is taken.
    """
    if token is False:
        if host not in LOOPBACK:
            raise ConfigError("token", f"is needed, since {host} can be reached from elsewhere")
        wanted = None
    elif isinstance(token, str) and token:
        wanted = token
    else:
        wanted = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    server = Server(s.metrics(), host, port, wanted)
    s.accompany(server)
    return server


def _is_local(host: str) -> bool:
    """Whether a page is asked for by this machine's name: others may point here from a browser."""
    return (urlsplit(f"//{host}").hostname or "") in LOOPBACK
