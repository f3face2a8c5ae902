"""How an application is served: by uvicorn, on a socket that is bound before anything is told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from scheduler.errors import ConfigError
from scheduler.guards.signals import signals_to


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `ConfigError` if somebody else has the port."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as exc:
        made.close()
        reason = exc.strerror or str(exc)
        raise ConfigError("--port", f"{host}:{port}: {reason}; 0 takes any free one") from exc
    made.listen(2_048)
    return made


class _Server(uvicorn.Server):
    """One that tells when it can be reached, and leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """See `uvicorn.Server`."""
        yield


async def serve_until_signal(
    app: ASGIApp, bound: socket.socket, ready: Callable[[], None], *, grace_s: int = 1
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT, at a second one without waiting for answers.

    Args:
        app: What is served.
        bound: Where.
        ready: Called when it can be reached.
        grace_s: For answers that are on their way when it is told to stop, in seconds.
    """
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=grace_s,
    )  # fmt: skip
    server = _Server(config, ready)

    def stop(number: int) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    with signals_to(stop):
        await server.serve(sockets=[bound])
