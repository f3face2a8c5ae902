"""The line to one client: what it asks, and what it is told, in pieces or as a whole.

A client that waits hears a beat now and then (`beats` has its words). With the first of them the
status is 200 for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from scheduler.server.bodies import FREE_BYTES, Bodies
from scheduler.server.listen import answer_at_once
from scheduler.server.refusals import Fields, Unserved, Whole

MAX_BODY_BYTES = 64 * 1024 * 1024
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_BEGUN_JSON: Fields = [(b"content-type", b"application/json")]
_BEGUN_EVENTS: Fields = [EVENTS, (b"cache-control", b"no-cache")]


class HungUp(Exception):
    """The client has gone before it had asked."""


class Line:
    """See the module.

    Args:
        scope: Of ASGI.
        receive: Likewise.
        send: Likewise.
        bodies: What those of all calls may take at once; `let_go` gives back what this one's does.

    Attributes:
        headers: By names in lower case; several of one name are one.
        has_begun: The status was told.
        is_over: All was told.
        beats: How many were heard.
        lock: Held while something is told.
    """

    __slots__ = (
        "_bodies", "_send", "_taken", "beats", "has_begun", "headers", "is_over", "lock", "receive",
        "scope",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, bodies: Bodies | None = None
    ) -> None:
        self._bodies, self._taken = bodies, 0
        self.scope, self.receive, self._send = scope, receive, send
        self.headers = headers_of(scope["headers"])
        self.has_begun = self.is_over = False
        self.beats = 0
        self.lock = asyncio.Lock()  # beats come from elsewhere than answers

    async def body(self, most_bytes: int = MAX_BODY_BYTES) -> bytes:
        """All of the body.

        Raises:
            Unserved: It is too long, or those of all calls are.
            HungUp: Its client has, or said nothing for too long (see `listen`).
        """
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most_bytes:
            raise _too_long(most_bytes)
        if length.isdecimal():
            await self._take(int(length))
        pieces, size = list[bytes](), 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise HungUp
            piece = message.get("body", b"")
            if not message.get("more_body") and not pieces:
                return bytes(piece)
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise _too_long(most_bytes)
            if size > self._taken and size > FREE_BYTES:  # who knows how long it becomes
                await self._take(most_bytes)
            if not message.get("more_body"):
                self._keep(size)
                return b"".join(pieces)

    async def _take(self, size: int) -> None:
        if self._bodies is None or size <= FREE_BYTES:
            return
        try:
            await self._bodies.take(size)
        except Unserved:
            await self._pass_over()
            raise
        self._taken = size

    async def _pass_over(self) -> None:
        """Read the rest of a body and keep nothing of it: most clients hear no answer before."""
        if "expect" in self.headers:  # it asks first
            return
        more = True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise HungUp
            more = message.get("more_body", False)

    def _keep(self, size: int) -> None:
        """It has become that long; no longer than was taken for it."""
        if self._bodies is not None and size < self._taken:
            self._bodies.shrink(self._taken, size)
            self._taken = size if size > FREE_BYTES else 0

    def let_go(self) -> None:
        """It is answered: what its body took is others' to take."""
        if self._bodies is not None and self._taken:
            self._bodies.give_back(self._taken)
            self._taken = 0

    async def begin(self, status: int, headers: Fields) -> None:
        """Tell the status; once."""
        async with self.lock:
            if not self.has_begun:
                self.has_begun = True
                await self._start(status, headers)

    async def beat(self, word: bytes, is_stream: bool, headers: Fields) -> None:
        """Say that it goes on."""
        async with self.lock:
            if self.is_over:
                return
            if not self.has_begun:
                self.has_begun = True
                await self._start(200, [*(_BEGUN_EVENTS if is_stream else _BEGUN_JSON), *headers])
            self.beats += 1
            await self._write(word)

    async def write(self, piece: bytes) -> None:
        """Tell a part; returns when there is room for the next."""
        async with self.lock:
            await self._write(piece)

    async def end(self, piece: bytes = b"") -> None:
        """Tell the last part."""
        async with self.lock:
            self.is_over = True
            await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def answer(self, whole: Whole) -> None:
        """Tell all at once, where nothing was told yet."""
        if not self.lock.locked() and answer_at_once(self._send, whole):
            self.has_begun = self.is_over = True
            return
        async with self.lock:
            self.has_begun = self.is_over = True
            length = (b"content-length", str(len(whole.content)).encode())
            await self._start(whole.status, [*whole.headers, length])
            await self._send({"type": "http.response.body", "body": whole.content})

    async def _start(self, status: int, headers: Fields) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})


def wanted_at(line: Line) -> str:
    """The provider that a path names; empty: none."""
    return str(line.scope.get("path_params", {}).get("provider", ""))


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as a mapping, as HTTP puts several of one name together."""
    found: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def fields_of(headers: Mapping[str, Any]) -> Fields:
    """Headers as they go over the wire."""
    return [(name.encode("latin-1"), str(value).encode("latin-1", "replace"))
            for name, value in headers.items()]  # fmt: skip


def _too_long(most_bytes: int) -> Unserved:
    return Unserved(
        413, "body_too_large", f"a body has at most {most_bytes:,} bytes; nothing was sent",
        (b"connection", b"close"),
    )  # fmt: skip
