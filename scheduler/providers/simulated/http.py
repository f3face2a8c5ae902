"""How an HTTP server answers for a simulated provider: one connection's life.

Just enough of HTTP/1.1, quickly: keep-alive, one request at a time in order, bodies with a
length, everything limited in size. What is broken is refused, and the connection dropped
where its state is in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

from scheduler.providers.simulated.events import STREAMED, error_event, make_events
from scheduler.providers.simulated.faults import error_body
from scheduler.providers.simulated.gemini import read_path
from scheduler.providers.simulated.provider import Fault, Reply
from scheduler.request import ENDPOINTS, RESPONSES

if TYPE_CHECKING:
    from scheduler.providers.simulated.server import Service

MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024

_PHRASES = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
    405: "Method Not Allowed", 411: "Length Required", 413: "Content Too Large",
    429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_DEPLOYMENT = re.compile(r"^/deployments/[^/]+/")
_OURS = b"x-scheduler-"  # how headers begin that no provider should ever see
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class Refused(Exception):
    """The request is not served: status, what is wrong, and whether the connection is lost."""

    def __init__(self, status: int, problem: str, is_fatal: bool = False) -> None:
        super().__init__(status, problem, is_fatal)
        self.status, self.problem, self.is_fatal = status, problem, is_fatal


class Call(NamedTuple):
    """One request, as it is answered and billed."""

    url: str
    body: dict[str, Any]
    caller: str
    headers: dict[str, str]  # only those that it should not have
    is_mistral: bool = False  # it was asked by their client


class Connection(asyncio.Protocol):
    """One client's connection: reads requests, answers them in order."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._is_busy = False  # a request is being answered
        self._is_full = False  # the client does not take what is written
        self._is_last = False  # close after this answer
        self._was_continued = False
        self._url = ""  # of the request that is being served, for errors in its API's form
        self._timer: asyncio.TimerHandle | None = None
        self._reply: Reply | None = None  # what is being answered
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what was being answered is given up."""
        self._service.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._end_reply()

    def _end_reply(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            self._service.provider.finish(reply)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        self._buffer += data
        self._go_on()
        if len(self._buffer) > MAX_HEADER_BYTES + MAX_BODY_BYTES:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client does not take what is written: serve nothing more for now."""
        self._is_full = True

    def resume_writing(self) -> None:
        """The client takes answers again."""
        self._is_full = False
        self._go_on()

    def close(self) -> None:
        """Drop the connection, whatever it is doing."""
        self._transport.abort()

    # Requests

    def _go_on(self) -> None:
        """Serve what has arrived whole, until an answer takes its time."""
        while not (self._is_busy or self._is_full or self._transport.is_closing()):
            try:
                served = self._serve_one()
            except Refused as exc:
                self._is_last = self._is_last or exc.is_fatal
                code = "invalid_api_key" if exc.status == 401 else None
                wrong = error_body(self._url, exc.status, exc.problem, code=code)
                self._write(exc.status, {}, _json(wrong))
                served = True
            if not served:
                break
        self._transport.resume_reading()

    def _serve_one(self) -> bool:
        """Serve one request; returns whether there was a whole one."""
        self._url = ""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEADER_BYTES:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise Refused(431, "The header is too large.", is_fatal=True)
            return False
        method, target, headers = _parse_head(bytes(self._buffer[:end]))
        length = _content_length(headers)
        if len(self._buffer) < end + 4 + length:
            if headers.get(b"expect", b"").lower() == b"100-continue" and not self._was_continued:
                self._was_continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        content = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        self._was_continued = False
        self._is_last = headers.get(b"connection", b"").lower() == b"close"
        path, _, query = target.partition("?")
        path = path.removeprefix("/openai")  # as at Groq
        path = _DEPLOYMENT.sub("/v1/", path)  # as at Azure
        self._url, said = read_path(path) or (path, {})
        caller = ""
        if path.startswith(("/v1/", "/v1beta/")):
            key = headers.get(b"x-api-key") or headers.get(b"x-goog-api-key")
            key = key or headers.get(b"api-key")  # Azure's
            token = headers.get(b"authorization", b"") if key is None else b"Bearer " + key
            caller = self._service.admit(token)
        if method == b"GET":
            self._write(200, {}, _json(self._service.read(path, query)))
        elif method != b"POST":
            raise Refused(405, f"{method.decode()} is not served.")
        elif path not in ENDPOINTS and not said:
            raise Refused(404, f"Unknown request URL: POST {path}")
        elif "stream" in said and "alt=sse" not in query.split("&"):
            raise Refused(400, "Streams are served with alt=sse only.")
        else:
            ours = {name.decode("latin-1"): value.decode("latin-1")
                    for name, value in headers.items() if name.startswith(_OURS)}  # fmt: skip
            body = _parse_body(content)
            if said:
                body.pop("stream", None)  # here the path tells
            is_mistral = headers.get(b"user-agent", b"").startswith(b"mistral")
            self._answer(Call(self._url, body | said, caller, ours, is_mistral))
        return True

    def _answer(self, call: Call) -> None:
        """Have the provider decide, bill, and answer when it is time."""
        url, body = call.url, call.body
        is_streamed = bool(body.get("stream"))
        if is_streamed and url not in STREAMED:
            raise Refused(400, f"{url} does not stream.")
        provider = self._service.provider
        reply = self._reply = provider.reply(url, body)
        if provider.bill_cancelled:
            self._settle(reply, call)
        if is_streamed and reply.status == 200 and reply.body is not None and not _is_silent(reply):
            options = body.get("stream_options")
            with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            events = make_events(
                url, reply.body, with_usage or url == RESPONSES, is_mistral=call.is_mistral
            )
            self._start_stream(reply, events, call)
        elif reply.wait_s > 0:
            self._is_busy = True
            self._timer = self._loop.call_later(reply.wait_s, self._finish_later, reply, call)
        else:
            self._finish(reply, call)

    def _settle(self, reply: Reply, call: Call) -> None:
        provider = self._service.provider
        provider.settle(reply, call.url, call.body, caller=call.caller, headers=call.headers)

    def _finish_later(self, reply: Reply, call: Call) -> None:
        self._timer = None
        self._is_busy = False
        self._finish(reply, call)
        self._go_on()

    def _finish(self, reply: Reply, call: Call) -> None:
        self._end_reply()
        if not self._service.provider.bill_cancelled:
            self._settle(reply, call)
        if reply.fault is Fault.TIMEOUT:
            self._is_busy = True  # until the client has had enough
        elif reply.fault is Fault.RESET:
            self._reset()
        else:
            is_page = reply.fault is Fault.HTML
            kind = "text/html" if is_page else "application/json"
            self._write(reply.status, reply.headers, reply.encoded(), kind)

    def _reset(self) -> None:
        raw = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    # Answers

    def _write(
        self,
        status: int,
        headers: Mapping[str, str],
        content: bytes,
        kind: str = "application/json",
    ) -> None:
        head = _head(status, headers, f"{kind}\r\ncontent-length: {len(content)}", self._is_last)
        self._transport.write(head + content)
        if self._is_last:
            self._transport.close()

    def _start_stream(self, reply: Reply, events: list[bytes], call: Call) -> None:
        kind = "text/event-stream\r\ntransfer-encoding: chunked"
        self._is_busy = True
        self._transport.write(_head(200, reply.headers, kind, self._is_last))
        pause_s = reply.wait_s / len(events)
        self._timer = self._loop.call_later(pause_s, self._stream, reply, events, 0, pause_s, call)

    def _stream(
        self, reply: Reply, events: list[bytes], place: int, pause_s: float, call: Call
    ) -> None:
        """Send one event and see to the next."""
        self._timer = None
        if self._transport.is_closing():
            return
        if place == len(events) // 2 and reply.fault is Fault.STREAM_CUT:
            self._reset()
            return
        if place == len(events) // 2 and reply.fault is Fault.STREAM_ERROR:
            events[place:] = [error_event(call.url)]
        self._transport.write(b"%x\r\n%s\r\n" % (len(events[place]), events[place]))
        if place + 1 < len(events):
            self._timer = self._loop.call_later(
                pause_s, self._stream, reply, events, place + 1, pause_s, call
            )
            return
        self._end_reply()
        if not self._service.provider.bill_cancelled:
            self._settle(reply, call)
        self._transport.write(b"0\r\n\r\n")
        self._is_busy = False
        if self._is_last:
            self._transport.close()
        self._go_on()


def _is_silent(reply: Reply) -> bool:
    return reply.fault in (Fault.TIMEOUT, Fault.RESET)


def _json(body: Mapping[str, Any]) -> bytes:
    return to_json(body)


def _head(status: int, headers: Mapping[str, str], kind: str, is_last: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Error')}\r\ncontent-type: {kind}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    lines.append("connection: close\r\n\r\n" if is_last else "\r\n")
    return "".join(lines).encode("latin-1")


def _parse_head(head: bytes) -> tuple[bytes, str, dict[bytes, bytes]]:
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[1].startswith(b"/"):
        raise Refused(400, "This is not HTTP/1.1.", is_fatal=True)
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise Refused(400, "A header line is broken.", is_fatal=True)
        if name == b"content-length" and name in headers:
            raise Refused(400, "There are two lengths.", is_fatal=True)
        headers[name] = value.strip()
    if words[2] == b"HTTP/1.0":
        headers[b"connection"] = b"close"
    return words[0], words[1].decode("latin-1"), headers


def _content_length(headers: Mapping[bytes, bytes]) -> int:
    if b"transfer-encoding" in headers:
        raise Refused(411, "Only bodies with a content-length are read.", is_fatal=True)
    text = headers.get(b"content-length", b"0")
    if not text.isdigit():
        raise Refused(400, "The content-length is no number.", is_fatal=True)
    if len(text) > 12 or int(text) > MAX_BODY_BYTES:
        raise Refused(413, f"A body has at most {MAX_BODY_BYTES:,} bytes.", is_fatal=True)
    return int(text)


def _parse_body(content: bytes) -> dict[str, Any]:
    try:
        body = from_json(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "We could not parse the JSON body of your request.")
    return body
