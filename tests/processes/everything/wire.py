"""One call as the bad server sees it: what was asked, what it costs, and how bytes leave.

Nothing here comes from the scheduler: prices, tokens and answers are this file's own, so that the
bill is another arithmetic than the ledger's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import zlib
from dataclasses import dataclass
from typing import Any

IN_NUSD, OUT_NUSD = 1_000, 4_000  # a token: $1 and $4 a million
PRICE = "1/4"
KEY = "sk-everything-c0ffee-Zm9vYmFyYmF6cXV4"


def answer_text(name: str) -> str:
    """The one right answer to a prompt."""
    return f"the answer to {name} is {zlib.crc32(name.encode()) % 10_000}"


@dataclass
class Call:
    """A request that has been read, and the connection to answer on.

    Attributes:
        prompt: The last message; it names the line.
        tries: How often this prompt has been asked before.
    """

    path: str
    body: dict[str, Any]
    tries: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "omni-moderation-latest")

    @property
    def prompt(self) -> str:
        messages = self.body.get("messages") or [{"content": self.body.get("input", "")}]
        return str(messages[-1]["content"])

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def input_tokens(self) -> int:
        return 9 + len(self.prompt.encode("utf-8", "replace")) // 4

    @property
    def most_output_tokens(self) -> int:
        return int(float(self.body.get("max_tokens", 1)))

    @property
    def output_tokens(self) -> int:
        return 1 + zlib.crc32(self.prompt.encode("utf-8", "replace")) % self.most_output_tokens

    def price_nusd(self, output_tokens: int | None = None) -> int:
        """What it costs; without a number, as much as it can."""
        out = self.most_output_tokens if output_tokens is None else output_tokens
        return self.input_tokens * IN_NUSD + out * OUT_NUSD

    # What it says

    @property
    def usage(self) -> dict[str, int]:
        into, out = self.input_tokens, self.output_tokens
        return {"prompt_tokens": into, "completion_tokens": out, "total_tokens": into + out}

    def whole(self, text: str | None = None, **more: Any) -> dict[str, Any]:
        """A whole answer."""
        if self.path.endswith("/moderations"):
            return {"id": "modr-1", "model": self.model, "results": [{"flagged": False}]}
        message = {
            "role": "assistant",
            "content": answer_text(self.prompt) if text is None else text,
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.model,
            "choices": [choice], "usage": self.usage,
        } | more  # fmt: skip

    def pieces(self) -> list[str]:
        """The same as events of a stream, up to the finish reason."""
        words = answer_text(self.prompt).split(" ")
        texts = [word if not n else f" {word}" for n, word in enumerate(words)]
        return [self.chunk({"content": text}) for text in texts] + [self.chunk({}, "stop")]

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({"id": "c1", "object": "chat.completion.chunk", "created": 1,
                      "model": self.model, "choices": [choice]})  # fmt: skip

    def usage_chunk(self, usage: dict[str, int] | None = None) -> str:
        return event({"id": "c1", "object": "chat.completion.chunk", "created": 1,
                      "model": self.model, "choices": [], "usage": usage or self.usage})  # fmt: skip

    @property
    def asks_for_usage(self) -> bool:
        options = self.body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    # How it leaves

    async def good(self) -> None:
        """What a server that works answers."""
        if self.is_stream:
            usage = [self.usage_chunk()] if self.asks_for_usage else []
            await self.events(*self.pieces(), *usage, DONE)
        else:
            await self.reply(200, self.whole())

    async def events(self, *texts: str) -> None:
        """A stream of these, ended as HTTP ends one."""
        await self.begin_stream()
        for text in texts:
            await self.piece(text)
        await self.raw(b"0\r\n\r\n")

    async def begin_stream(self) -> None:
        await self.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def piece(self, text: str) -> None:
        data = text.encode()
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def reply(
        self, status: int, body: Any = b"", headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:  # fmt: skip
        """A status with a body: bytes as they are, text as HTML, all else as JSON."""
        if isinstance(body, bytes):
            kind, content = "application/json", body
        elif isinstance(body, str):
            kind, content = "text/html", body.encode()
        else:
            kind, content = "application/json", json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {kind}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines.append(f"content-length: {len(content) if length is None else length}")
        # Latin-1, so that headers may have any byte.
        await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + content)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the connection as a machine that dies does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Hang up after what was written."""
        self.writer.close()

    async def dawdle(self, data: bytes, seconds: float, filler: bytes = b"") -> None:
        """A piece of it now and then: never silent for long, and far from done in time.

        Should anybody wait for so long all the same, they get the rest.
        """
        step_s = 0.25
        with contextlib.suppress(ConnectionError):
            for n in range(int(seconds / step_s)):
                await self.raw(filler or data[n : n + 1])
                await asyncio.sleep(step_s)
            await self.raw(data if filler else data[int(seconds / step_s) :])


DONE = "data: [DONE]\n\n"


def event(data: Any) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(data)}\n\n"
