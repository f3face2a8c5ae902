"""Calls of aiohttp's sessions through a door, which knows httpx: translated there and back.

What its caller gets is aiohttp's own response, or its own exception. Loaded where aiohttp is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from inspect import signature
from types import MappingProxyType, SimpleNamespace
from typing import Any

import aiohttp
import httpx
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from scheduler.adapters.dialects import HEADER_PREFIX, is_endpoint
from scheduler.adapters.http import OF_WIRE, Door, raise_own
from scheduler.adapters.tees import Tee
from scheduler.errors import SchedulerError

CAME = "scheduler.came"  # where a response of httpx's keeps the one it stands for
_ALLOWS = "authorization"
_NEVER_SENT = (
    aiohttp.ClientConnectorError, aiohttp.ServerFingerprintMismatch, aiohttp.InvalidURL,
    getattr(aiohttp, "ConnectionTimeoutError", aiohttp.InvalidURL),
)  # fmt: skip


class Counted:
    """A session whose calls go through a door, all else of which is the session's own.

    Args:
        session: Whoever made it may send by it past the door.
        door: What calls go through.
    """

    def __init__(self, session: Any, door: Door) -> None:
        self._session, self._door = session, door

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def request(self, method: str, url: Any, **options: Any) -> Any:
        """As the session's own, to be awaited."""
        return await send(self._door, self._session, self._post, method, url, options)

    async def _post(self, method: str, url: Any, **options: Any) -> Any:
        return await self._session.request(method=method, url=url, **options)


async def send(
    door: Door,
    session: Any,
    post: Callable[..., Any],
    method: str,
    url: Any,
    options: dict[str, Any],
) -> Any:
    """Send a request of a session when there is money for it, if it is a call to a model.

    Args:
        door: What calls go through.
        session: Whose it is.
        post: The session's own `_request`, or what comes to that.
        method: As it was asked.
        url: Likewise.
        options: Likewise.
    """
    asked = _as_httpx(session, method, url, options)
    if asked is None:
        return await post(method, url, **options)
    exchange = _Exchange(session, post, method, url, options, asked)
    try:
        answer = await door.send(exchange, asked, {"stream": True}, exchange.post)
    except httpx.RequestError as exc:
        raise_own(exc)
    response = await exchange.own(answer)
    wanted = options.get("raise_for_status")
    wanted = session.raise_for_status if wanted is None else wanted
    try:
        if callable(wanted):
            await wanted(response)
        elif wanted:
            response.raise_for_status()
    except BaseException:
        response.close()
        raise
    return response


def whole_url(session: Any, url: Any) -> URL | None:
    """Where a request goes; None: nowhere."""
    try:
        whole = session._build_url(url)
    except (TypeError, ValueError, AssertionError):
        return None
    return whole if isinstance(whole, URL) else None


def _as_httpx(session: Any, method: str, url: Any, options: dict[str, Any]) -> Any:
    """The request as httpx has it; None: it is no call, or one that aiohttp will not send."""
    whole = whole_url(session, url)
    if method.upper() != "POST" or whole is None or not is_endpoint(whole.path):
        return None
    try:
        headers = session._prepare_headers(options.get("headers"))
        content = _content(session, options)
        asked = httpx.Request("POST", str(whole), headers=list(headers.items()), content=content)
        if options.get("params"):
            asked.url = asked.url.copy_merge_params(
                dict(URL("/").update_query(options["params"]).query)
            )
    except (TypeError, ValueError, AttributeError, httpx.InvalidURL):
        return None  # it says itself what is wrong
    return asked


def _content(session: Any, options: dict[str, Any]) -> Any:
    """The whole body, or what makes it as it goes."""
    data, said = options.get("data"), options.get("json")
    if said is not None and data is None:
        as_bytes = getattr(session, "_json_serialize_bytes", None)
        data = session.json_serialize(said) if as_bytes is None else as_bytes(said)
    if isinstance(data, aiohttp.payload.BytesPayload):  # text and JSON, too
        data = data._value
    if isinstance(data, str):
        return data.encode()
    if data is None or isinstance(data, bytes | bytearray | memoryview):
        return bytes(data or b"")
    return _unread()


async def _unread() -> AsyncIterator[bytes]:
    """A body that only its owner may read."""
    raise httpx.StreamConsumed
    yield b""


class _Exchange:
    """One request of a session, sent as often as it is admitted."""

    def __init__(
        self, session: Any, post: Callable[..., Any], method: str, url: Any,
        options: dict[str, Any], asked: httpx.Request,
    ) -> None:  # fmt: skip
        self._session, self._post, self._method, self._url = session, post, method, url
        # Who asked is told of a bad status at the end, when the bad answer has been read.
        self._options = options | {"raise_for_status": False}
        self._asked, self._allowed = asked, asked.headers.get(_ALLOWS)
        taken = [name for name in asked.headers if name.startswith(HEADER_PREFIX)]
        if taken:  # a session's own cannot be left out, so they are emptied
            self._options["headers"] = _without(options.get("headers"), HEADER_PREFIX) | {
                name: "" for name in taken if name in session.headers
            }

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return bool(self._session.closed)

    async def post(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """Send it as it was, or with another body."""
        url, options = self._url, self._options
        if request is not self._asked:
            options = options | {"json": None, "data": request.content}
            options["headers"] = _without(options.get("headers"), "content-length") | {
                "Content-Type": request.headers.get("content-type", "application/json")
            }
            if request.url != self._asked.url:
                url, options = URL(str(request.url), encoded=True), options | {"params": None}
        if request.headers.get(_ALLOWS) != self._allowed:  # it was renewed
            kept = _without(options.get("headers"), _ALLOWS)
            options = options | {"headers": kept | {_ALLOWS: request.headers[_ALLOWS]}}
        try:
            came = await self._post(self._method, url, **options)
        except (aiohttp.ClientError, OSError) as exc:
            raise _translated(exc, request) from exc
        decodes = options.get("auto_decompress")
        is_encoded = not (self._session.auto_decompress if decodes is None else decodes)
        headers = [
            (name, value) for name, value in came.raw_headers
            if is_encoded or name.lower().decode("latin-1") not in OF_WIRE
        ]  # fmt: skip
        return httpx.Response(
            came.status, headers=headers, stream=_Body(came, request), request=request,
            extensions={CAME: (came, is_encoded)},
        )  # fmt: skip

    async def own(self, answer: httpx.Response) -> Any:
        """The answer as aiohttp has it: like the one that came, with what is to be read of it."""
        came, is_encoded = answer.extensions.get(CAME, (None, False))
        if isinstance(answer.stream, _Body) and not answer.is_stream_consumed:
            return came  # it passed, and nobody has looked into it
        if came is None:
            shown = _made_up(self._session, answer)
        else:  # another object, which nobody holds but its caller: dropped, it is gone
            shown = object.__new__(_counted(type(came)))
            shown.__dict__.update(came.__dict__, _cache={}, _connection=None)
        shown._closed = shown._released = False
        _tell_headers(shown, answer, is_encoded)
        shown.extensions = {"scheduler.error": answer.extensions.get("scheduler.error")}
        shown.content = Reader(answer, came, asyncio.get_running_loop())
        if not isinstance(answer.stream, Tee):
            shown.content.feed_all(await answer.aread())
        return shown


def _tell_headers(shown: Any, answer: httpx.Response, is_encoded: bool) -> None:
    """Have what was said of it among its headers."""
    headers = CIMultiDict(shown._headers or answer.headers)
    if is_encoded:
        headers.popall("content-encoding", None)
    for name, value in answer.headers.items():
        if name.startswith(HEADER_PREFIX) or name == "x-should-retry":
            headers[name] = value
    shown._headers = CIMultiDictProxy(headers)


def _without(headers: Any, start: str) -> dict[str, Any]:
    found = CIMultiDict(headers or {})
    return {name: value for name, value in found.items() if not name.lower().startswith(start)}


def _translated(exc: BaseException, request: httpx.Request) -> httpx.RequestError:
    """What an exception means, in httpx's words."""
    said = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, _NEVER_SENT):
        return httpx.ConnectError(said, request=request)
    if isinstance(exc, TimeoutError):
        return httpx.ReadTimeout(said, request=request)
    return httpx.ReadError(said, request=request)


class _Body(httpx.AsyncByteStream):
    """What comes of a response, piece by piece."""

    def __init__(self, came: Any, request: httpx.Request) -> None:
        self._came, self._content, self._request = came, came.content, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError) as exc:
            raise _translated(exc, self._request) from exc

    async def aclose(self) -> None:
        """Let go of the connection; of one that was read to its end there is none."""
        if not self._content.at_eof():
            self._came.close()


class _NoFlow:
    """Stands for a connection that needs no holding back: nothing comes that was not asked for."""

    _reading_paused, connected = False, True

    def pause_reading(self) -> None: ...
    def resume_reading(self, *args: Any, **options: Any) -> None: ...


class Reader(aiohttp.StreamReader):
    """What a response is read from: it asks for a piece when its reader does."""

    def __init__(self, answer: httpx.Response, came: Any, loop: asyncio.AbstractEventLoop) -> None:
        flow: Any = _NoFlow()
        super().__init__(flow, 2**16, loop=loop)
        self._answer, self._came = answer, came
        self._pieces = answer.aiter_bytes() if isinstance(answer.stream, Tee) else None

    def feed_all(self, content: bytes) -> None:
        """There is this, and no more."""
        if content:
            self.feed_data(content)
        self.feed_eof()

    async def _wait(self, func_name: str) -> None:
        if self._pieces is None:
            raise aiohttp.ClientConnectionError("Connection closed")
        try:
            self.feed_data(await anext(self._pieces))
        except StopAsyncIteration:
            self.feed_eof()
        except httpx.RequestError as exc:
            own = exc.__cause__ or exc
            self.set_exception(own)
            raise own from own.__cause__
        except BaseException:  # it was given up: what comes next would not be the next of it
            self.set_exception(aiohttp.ClientConnectionError("reading it was given up"))
            self.left()
            raise

    def left(self) -> None:
        """Nobody reads on."""
        if isinstance(self._answer.stream, Tee):
            self._answer.stream.end()
            if not self.at_eof():
                self._came.close()

    async def closed(self) -> None:
        """Wait until the ledger has what came of it."""
        await self._answer.aclose()


class _Counted:
    """What a response has more, once it was counted."""

    content: Reader
    extensions: Mapping[str, Any] = MappingProxyType({})

    def close(self) -> None:
        """Let go of it; half-way it is left."""
        self._leave()
        super().close()  # type: ignore[misc]

    def release(self) -> Any:
        """Likewise."""
        self._leave()
        return super().release()  # type: ignore[misc]

    async def wait_for_close(self) -> None:
        """Wait until it is closed, and in the ledger."""
        await super().wait_for_close()  # type: ignore[misc]
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
            await self.content.closed()

    def raise_for_status(self) -> None:
        """As always; a refusal has the scheduler's own error as its cause."""
        error = self.extensions.get("scheduler.error")
        try:
            super().raise_for_status()  # type: ignore[misc]
        except aiohttp.ClientResponseError as exc:
            if isinstance(error, SchedulerError):
                raise exc from error
            raise

    def _leave(self) -> None:
        self.content.left()


_KINDS: dict[type, Any] = {}


def _counted(kind: type) -> Any:
    """The class like `kind` that tells when it is left."""
    if issubclass(kind, _Counted):
        return kind
    if kind not in _KINDS:
        _KINDS[kind] = type(kind.__name__, (_Counted, kind), {"__doc__": kind.__doc__})
    return _KINDS[kind]


def _made_up(session: Any, answer: httpx.Response) -> Any:
    """A response for an answer that no server gave."""
    url, loop = URL(str(answer.request.url), encoded=True), asyncio.get_running_loop()
    headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())  # no keys
    said = {
        "writer": None, "continue100": None, "timer": None, "traces": [], "loop": loop,
        "session": session, "stream_writer": SimpleNamespace(output_size=0),
        "request_info": aiohttp.RequestInfo(url, "POST", headers, url),
    }  # fmt: skip
    kind = _counted(session._response_class)
    known = signature(aiohttp.ClientResponse.__init__).parameters
    made = kind("POST", url, **{name: each for name, each in said.items() if name in known})
    error = answer.extensions.get("scheduler.error")
    made.status = answer.status_code
    made.reason = HTTPStatus(answer.status_code).phrase if error is None else str(error)
    made._raw_headers = tuple(answer.headers.raw)
    return made
