"""What a gateway is measured with: a provider that answers at once, clients that ask without pause.

Both are raw protocols in one process, so that they take little of the machine that the gateway is
measured on; the gateways are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

BODY = json.dumps({
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Say hello, in as few words as you can."}],
    "max_tokens": 50,
}).encode()  # fmt: skip
ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there."},
                 "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 18, "completion_tokens": 4, "total_tokens": 22},
}).encode()  # fmt: skip
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_ANSWERED = _HEAD % len(ANSWER) + ANSWER


class Canned(asyncio.Protocol):
    """Answers whatever is asked, as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._buffer = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(_ANSWERED)


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: From the first question to the last answer.
        took_s: Of each answer, in no order.
        bad: Answers with another status than 200.
    """

    seconds: float = 0.0
    took_s: list[float] = field(default_factory=list)
    bad: int = 0

    @property
    def rate(self) -> float:
        return len(self.took_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.took_s)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Asking(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, or when it is time."""

    def __init__(self, question: bytes, load: Load, until_s: float, pause_s: float) -> None:
        self._question, self._load, self._until_s, self._pause_s = question, load, until_s, pause_s
        self._loop = asyncio.get_running_loop()
        self.over = self._loop.create_future()
        self._buffer, self._need, self._asked_s, self._next_s = b"", -1, 0.0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class

    def begin(self, after_s: float) -> None:
        self._next_s = time.perf_counter() + after_s
        self._loop.call_later(after_s, self._ask)

    def _ask(self) -> None:
        self._asked_s = time.perf_counter()
        self._transport.write(self._question)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._need < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
            self._need = end + 4 + length
        if len(self._buffer) < self._need:
            return
        now_s = time.perf_counter()
        self._load.bad += not self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer, self._need = self._buffer[self._need :], -1
        self._load.took_s.append(now_s - self._asked_s)
        if now_s > self._until_s:
            self._transport.close()
            self.over.set_result(None)
        elif not self._pause_s:
            self._ask()
        else:
            self._next_s += self._pause_s
            self._loop.call_later(max(0.0, self._next_s - now_s), self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self._load.bad += 1
            self.over.set_result(None)


async def ask(
    port: int, path: str, headers: Sequence[str], connections: int, seconds: float,
    rate: float | None = None,
) -> Load:  # fmt: skip
    """Ask over so many connections for so long; at a rate over all of them, or as fast as it goes."""
    lines = [f"POST {path} HTTP/1.1", f"host: 127.0.0.1:{port}", "content-type: application/json",
             f"content-length: {len(BODY)}", *headers]  # fmt: skip
    question = ("\r\n".join(lines) + "\r\n\r\n").encode() + BODY
    load, loop = Load(), asyncio.get_running_loop()
    began_s = time.perf_counter()
    pause_s = 0.0 if rate is None else connections / rate
    made = [
        (await loop.create_connection(
            lambda: Asking(question, load, began_s + seconds, pause_s), "127.0.0.1", port
        ))[1]
        for _ in range(connections)
    ]  # fmt: skip
    for number, each in enumerate(made):
        each.begin(pause_s * number / connections)
    await asyncio.gather(*(each.over for each in made))
    load.seconds = time.perf_counter() - began_s
    return load
