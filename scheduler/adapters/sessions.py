"""Calls of the sessions of `requests` through a door, which knows httpx: there and back.

What its caller gets is the library's own response, or its own exception. Loaded where it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import requests

from scheduler.adapters.dialects import HEADER_PREFIX, is_endpoint
from scheduler.adapters.http import OF_WIRE, Door, raise_own

CAME = "scheduler.came"  # where a response of httpx's keeps the one it stands for
_NEVER_SENT = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "SSLCertVerificationError",
)  # fmt: skip
_WRONG = (
    requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema, requests.exceptions.InvalidHeader,
    requests.exceptions.ConnectTimeout,
)  # fmt: skip


def send(door: Door, post: Callable[..., Any], prepared: Any, options: dict[str, Any]) -> Any:
    """Send a prepared request when there is money for it, if it is a call to a model.

    Args:
        door: What calls go through.
        post: The session's own `send`.
        prepared: What is asked.
        options: Of its `send`.
    """
    asked = _as_httpx(prepared)
    if asked is None:
        return post(prepared, **options)
    exchange = _Exchange(post, prepared, options, asked)
    try:
        answer = door.send_sync(exchange, asked, {"stream": True}, exchange.post)
    except httpx.RequestError as exc:
        raise_own(exc)
    response = exchange.own(answer)
    if not options.get("stream"):
        _ = response.content  # read, as always
    return response


def place_of(prepared: Any) -> tuple[str, str]:
    """Host and path of a prepared request; empty: it has none that can be read."""
    try:
        url = urlsplit(str(prepared.url))
        return url.hostname or "", url.path
    except ValueError:
        return "", ""


def _as_httpx(prepared: Any) -> httpx.Request | None:
    """The request as httpx has it; None: it is no call, or one that nobody can send."""
    if str(prepared.method).upper() != "POST" or not is_endpoint(place_of(prepared)[1]):
        return None
    body = prepared.body
    if isinstance(body, str):
        body = body.encode()
    body = bytes(body or b"") if body is None or isinstance(body, bytes | bytearray) else _unread()
    headers = [(name, _text(value)) for name, value in prepared.headers.items()]
    try:
        return httpx.Request("POST", prepared.url, headers=headers, content=body)
    except (TypeError, ValueError, httpx.InvalidURL):
        return None  # it says itself what is wrong


def _unread() -> Iterator[bytes]:
    """A body that only its owner may read."""
    raise httpx.StreamConsumed
    yield b""


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _Exchange:
    """One prepared request, sent as often as it is admitted."""

    is_closed = False  # a session that was closed opens again

    def __init__(
        self, post: Callable[..., Any], prepared: Any, options: dict[str, Any], asked: httpx.Request
    ) -> None:
        self._post, self._options, self._asked = post, options | {"stream": True}, asked
        self._prepared = prepared
        if any(name.startswith(HEADER_PREFIX) for name in asked.headers):
            self._prepared = prepared.copy()
            for name in list(prepared.headers):
                if name.lower().startswith(HEADER_PREFIX):
                    del self._prepared.headers[name]

    def post(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """Send it as it was, or with another body."""
        prepared = self._prepared
        if request is not self._asked:
            prepared = prepared.copy()
            prepared.url = str(request.url)
            prepared.prepare_body(request.content, None)
        try:
            came = self._post(prepared, **self._options)
        except requests.RequestException as exc:
            if exc.response is not None:
                raise
            raise _translated(exc, request) from exc
        headers = [
            (name, value) for name, value in came.headers.items() if name.lower() not in OF_WIRE
        ]
        return httpx.Response(
            came.status_code, headers=headers, stream=_Body(came, request), request=request,
            extensions={CAME: came},
        )  # fmt: skip

    def own(self, answer: httpx.Response) -> Any:
        """The answer as the library has it: the one that came, with what is to be read of it."""
        came: Any = answer.extensions.get(CAME)
        if isinstance(answer.stream, _Body) and not answer.is_stream_consumed:
            return came  # it passed, and nobody has looked into it
        if came is None:
            shown: Any = requests.Response()
            shown.status_code, shown.url = answer.status_code, str(answer.request.url)
            shown.request, shown.reason = self._prepared, _reason(answer)
            shown.headers.update(answer.headers)
            shown.encoding = "utf-8"
        else:  # another object, which nobody holds but its caller: dropped, it is gone
            shown = object.__new__(type(came))
            shown.__dict__.update(came.__dict__, headers=came.headers.copy())
        for name, value in answer.headers.items():
            if name.startswith(HEADER_PREFIX) or name == "x-should-retry":
                shown.headers[name] = value
        shown.extensions = {"scheduler.error": answer.extensions.get("scheduler.error")}
        shown.raw, shown._content, shown._content_consumed = _Raw(answer), False, False
        return shown


def _reason(answer: httpx.Response) -> str:
    error = answer.extensions.get("scheduler.error")
    return answer.reason_phrase if error is None else str(error)


def _translated(exc: BaseException, request: httpx.Request) -> httpx.RequestError:
    """What an exception means, in httpx's words."""
    said = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, _WRONG) or any(type(each).__name__ in _NEVER_SENT for each in _within(exc)):
        return httpx.ConnectError(said, request=request)
    if isinstance(exc, requests.exceptions.Timeout):
        return httpx.ReadTimeout(said, request=request)
    return httpx.ReadError(said, request=request)


def _within(exc: BaseException) -> Iterator[BaseException]:
    """What urllib3 put into it."""
    found: Any = exc
    for _ in range(5):
        found = getattr(found, "reason", None) or next(
            (each for each in getattr(found, "args", ()) if isinstance(each, BaseException)), None
        )
        if not isinstance(found, BaseException):
            return
        yield found


class _Body(httpx.SyncByteStream):
    """What comes of a response, piece by piece."""

    def __init__(self, came: Any, request: httpx.Request) -> None:
        # What it is read from is another, soon, for its caller.
        self._raw, self._request = came.raw, request
        self._pieces = _pieces(came)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except requests.RequestException as exc:
            raise _translated(exc, self._request) from exc

    def close(self) -> None:
        """Let go of the connection."""
        self._raw.close()
        if hasattr(self._raw, "release_conn"):
            self._raw.release_conn()


def _pieces(came: Any) -> Iterator[bytes]:
    """The content as it arrives, decoded."""
    is_chunked = getattr(came.raw, "chunked", True) or not hasattr(came.raw, "read1")
    is_events = came.headers.get("content-type", "").startswith("text/event-stream")
    is_told = "content-length" in came.headers and not is_events
    # Else `iter_content(None)` waits for the end: a byte is there as soon as it is. An answer whose
    # length was told is no live one, and may be large.
    return iter(came.iter_content(None if is_chunked or is_told else 1))


class _Raw(io.RawIOBase):
    """What a counted response is read from."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self._answer, self._left = answer, b""
        self._pieces = answer.iter_bytes()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what is there."""
        piece = self._some(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def read(self, amt: int | None = None, decode_content: bool | None = None, **_: Any) -> bytes:
        """Some bytes, or all; as urllib3's."""
        if amt is None or amt < 0:
            return b"".join(self.stream(None))
        return self._some(amt)

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """All of it, in pieces of at most so many bytes; as urllib3's."""
        while piece := self._some(amt):
            yield piece

    def _some(self, most: int | None) -> bytes:
        try:
            while not self._left:
                self._left = next(self._pieces)
        except StopIteration:
            return b""
        except httpx.RequestError as exc:
            raise_own(exc)
        size = len(self._left) if most is None else most
        piece, self._left = self._left[:size], self._left[size:]
        return piece

    def close(self) -> None:
        """Let go of it; half-way it is left."""
        if not self.closed:
            super().close()
            self._answer.close()

    def release_conn(self) -> None:
        """Likewise; the one that it came by is let go when all of it was read."""
