"""Hears when other processes notify, on a connection of its own. A hint: who hears nothing looks."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from scheduler.errors import StoreError
from scheduler.guards.plain import logger_of
from scheduler.stores.postgres.address import Address
from scheduler.stores.postgres.link import Link, connect

logger = logger_of("scheduler.stores.postgres")

ROUND_S = 30.0  # how often it looks whether its connection still is one
PAUSE_S = 2.0  # before it connects again
GAP_S = 0.02  # between two times that it wakes anybody, whatever is said meanwhile


class Ears:
    """See the module.

    Args:
        address: The database.
        channel: What to listen to.
    """

    def __init__(
        self, address: Address, channel: str, connects: Callable[[Address], Link] = connect
    ) -> None:
        self._address, self._channel, self._connects = address, channel, connects
        self._loop = asyncio.get_running_loop()
        self._heard = asyncio.Event()
        self._stopped = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._live, name="scheduler ears", daemon=True)
        self._thread.start()

    async def wait(self, seconds: float) -> None:
        """Until somebody notifies, or that long."""
        # Not `asyncio.wait_for`, which may take a cancellation for a timeout that was late.
        timer = self._loop.call_later(seconds, self._heard.set)
        try:
            await self._heard.wait()
            if self._loop.time() < timer.when():
                await asyncio.sleep(GAP_S)
        finally:
            timer.cancel()
        self._heard.clear()

    def end(self) -> None:
        """Hear nothing more."""
        self._stopped.set()
        self._wake.close()
        self._thread.join(5)
        self._woken.close()

    def _live(self) -> None:
        while not self._stopped.is_set():
            try:
                link = self._connects(self._address)
                with link:
                    link.execute(f"LISTEN {self._channel}".encode())
                    self._tell()  # what was said before is to be looked at, too
                    while not self._stopped.is_set():
                        self._listen(link)
            except (psycopg.Error, StoreError, OSError, ValueError) as exc:
                if self._stopped.wait(PAUSE_S):
                    return
                logger.debug("listening failed, and begins again: %s", exc)

    def _listen(self, link: Link) -> None:
        mine = self._woken.fileno()
        ready, _, _ = select.select([link.fileno(), mine], [], [], ROUND_S)
        if mine in ready:
            return
        if not ready:
            link.execute("SELECT 1")  # or it would never be seen that nobody is there any more
        link.pgconn.consume_input()
        is_any = False
        while link.pgconn.notifies() is not None:
            is_any = True
        if is_any:
            self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._heard.set)
