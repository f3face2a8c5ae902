"""How bytes get to a server and back, and what it means for money when they do not.

The seam is one method: post some bytes, get status, headers and body. There are two
engines. `QuickEngine` (pyreqwest, which is Rust's reqwest) takes 0.12 to 0.25 ms of
processor time per request when 256 are under way; `HttpxEngine` runs on any
`httpx.AsyncClient`, which with httpx's own transport takes 4 to 7 ms there, and is for a
client of the user's own.

Whatever goes wrong becomes one of ours, with one question answered: can the request have
reached the server? Only if certainly not is ``is_billed`` False.

Neither engine follows redirects or tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from scheduler.errors import BadAnswer, CallFailed, CallTimeout, TransportFailed
from scheduler.guards.plain import logger_of
from scheduler.providers.answers import call_id
from scheduler.providers.hidden import Headers, is_panic, never_sent
from scheduler.providers.patience import Patience

if TYPE_CHECKING:
    import httpx
    from pyreqwest.client import Client
    from pyreqwest.http import HeaderMap
    from pyreqwest.response import Response

logger = logger_of("scheduler.providers")

CONNECT_TIMEOUT_S = 10.0
# Servers drop idle connections after 5 s and more. To send on one that is just being dropped
# is a loss with an unknown outcome, so ours are dropped first.
IDLE_CONNECTION_S = 4.5
TCP_KEEPALIVE_S = 60.0
CHUNK_BYTES = 65_536

# What reqwest says when, and only when, no connection was made. Its other words for a failure
# ("connection error", "connection timeout") also cover what breaks after sending.
_NEVER_CONNECTED = "client error (Connect)"

Reply = tuple[int, Mapping[str, str], bytes]  # status, headers in lower case, body
# Of a stream's status and headers, before its first bytes.
Head = Callable[[int, Mapping[str, str]], Awaitable[None]]
# Of a stream's bytes; the next are read when it is done. Says whether there was an event in them.
Take = Callable[[bytes], Awaitable[bool]]


def make_engine(
    headers: Headers,
    timeout_s: float,
    max_body_bytes: int,
    client: httpx.AsyncClient | None,
    *,
    use_proxies: bool,
    is_quick: bool = True,
    silence_s: float | None = None,
) -> Engine:
    """The engine for a client of the user's own, or the quickest that works here.

    Raises:
        TransportFailed: None can be made; nothing was sent.
    """
    if client is not None:
        return HttpxEngine(client, headers, timeout_s, max_body_bytes, silence_s=silence_s)
    try:
        if is_quick:
            return QuickEngine(headers, timeout_s, max_body_bytes, use_proxies, silence_s)
    except ImportError:  # there is no build of it for every platform
        pass
    except BaseException as exc:
        if not isinstance(exc, Exception) and not is_panic(exc):
            raise
        # Not its words: they may quote a header.
        kind = type(exc).__name__
        logger.warning("pyreqwest does not work here (%s); httpx is used, which is slower", kind)
    try:
        import httpx

        owned = httpx.AsyncClient(
            trust_env=use_proxies,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
    except Exception as exc:  # such as certificates that are not there
        raise never_sent(exc) from exc
    return HttpxEngine(owned, headers, timeout_s, max_body_bytes, True, silence_s)


class Engine(Protocol):
    """Posts bytes."""

    async def post(
        self, url: str, content: bytes, more: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """Send once, read the whole answer. Raises `CallFailed`; a status is never an error.

        Args:
            url: Where to.
            content: The body.
            more: Headers of this call, which come before those that are always sent.
            method: What is done there.
        """

    async def stream(
        self, url: str, content: bytes, take: Take, more: Mapping[str, str] | None = None,
        head: Head | None = None,
    ) -> Reply:  # fmt: skip
        """As `post`, but hand over the body of an event stream as it comes; then none is returned.

        The timeout bounds all of it, but for the time that its reader takes; and the silence
        between two of its events is bounded too.
        """

    async def aclose(self) -> None:
        """Drop all connections."""


class QuickEngine:
    """Posts with pyreqwest.

    Proxies are taken from the environment, trusted roots from the system. A call that is
    cancelled is given up at once here, but its connection stays open until the server
    answers or the timeout passes: pyreqwest cannot abort it. To have it closed at once,
    hand in an `httpx.AsyncClient`.

    Args:
        headers: Sent with every request.
        timeout_s: For one request, from connecting to the last byte.
        max_body_bytes: Longer answers are refused.
        use_proxies: Whether to heed proxies in the environment.
        silence_s: Between two events of a stream; None: no limit.
    """

    def __init__(
        self,
        headers: Headers,
        timeout_s: float,
        max_body_bytes: int,
        use_proxies: bool,
        silence_s: float | None = None,
    ) -> None:
        # Both now: where no file can be opened any more, to load one is the end of the process.
        from pyreqwest import exceptions  # noqa: F401
        from pyreqwest.client import ClientBuilder

        def builder() -> ClientBuilder:
            made = (
                ClientBuilder()
                .default_headers(headers.reveal())
                .follow_redirects(False)
                .referer(False)
                .connect_timeout(timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout_s)))
                .pool_idle_timeout(timedelta(seconds=IDLE_CONNECTION_S))
                .tcp_keepalive(timedelta(seconds=TCP_KEEPALIVE_S))
            )
            return made if use_proxies else made.no_proxy()

        timeout = timedelta(seconds=timeout_s)
        self._client: Client = builder().timeout(timeout).build()
        # What a stream's reader takes of its time does not count, so another clock has the total.
        self._patient_builder = builder().read_timeout(timeout)
        self._patient: Client | None = None
        self._timeout_s, self._max_body_bytes = timeout_s, max_body_bytes
        self._silence_s = silence_s

    async def post(
        self, url: str, content: bytes, more: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """Send once, read the whole answer."""
        try:
            builder = self._client.request(method, url).body_bytes(content)
            if more:
                builder = builder.headers(more)
            # So that headers are there before the body.
            request = builder.streamed_read_buffer_limit(0).build_streamed()
        except ValueError as exc:
            raise never_sent(exc) from exc
        headers: Mapping[str, str] = {}
        try:
            async with request as response:
                headers = readable(response.headers)
                return response.status, headers, await self._read(response, headers)
        except Exception as exc:
            explained = explain_quick(exc, self._timeout_s)
            if explained is None:
                raise
            raise _of_call(explained, headers) from exc

    async def stream(
        self, url: str, content: bytes, take: Take, more: Mapping[str, str] | None = None,
        head: Head | None = None,
    ) -> Reply:  # fmt: skip
        """Send once, hand over events as they come."""
        headers: Mapping[str, str] = {}
        if self._patient is None:
            self._patient = self._patient_builder.build()
        try:
            builder = self._patient.post(url).body_bytes(content)
            if more:
                builder = builder.headers(more)
            request = builder.streamed_read_buffer_limit(0).build_streamed()
        except ValueError as exc:
            raise never_sent(exc) from exc
        patience = Patience(self._timeout_s, self._silence_s)
        try:
            async with patience, request as response:
                headers = readable(response.headers)
                if not is_stream(response.status, headers):
                    return response.status, headers, await self._read(response, headers)
                size = 0
                if head is not None:
                    await head(response.status, headers)
                patience.begin()
                while True:
                    # `read` waits for all it is given
                    chunk = await response.body_reader.read_chunk()
                    if chunk is None:
                        return response.status, headers, b""
                    size += len(chunk)
                    if size > self._max_body_bytes:
                        raise too_long(response.status, self._max_body_bytes)
                    patience.pause()
                    patience.resume(await take(chunk.to_bytes()))
        except Exception as exc:
            if isinstance(exc, TimeoutError) and patience.has_ended:
                raise _of_call(patience.error(), headers) from exc
            explained = explain_quick(exc, self._timeout_s)
            if explained is None:
                raise  # its reader's own, a timeout perhaps
            raise _of_call(explained, headers) from exc

    async def _read(self, response: Response, headers: Mapping[str, str]) -> bytes:
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            if int(length) > self._max_body_bytes:
                raise too_long(response.status, self._max_body_bytes)
            return (await response.bytes()).to_bytes()
        body = bytearray()
        while (chunk := await response.body_reader.read(CHUNK_BYTES)) is not None:
            body += chunk.to_bytes()
            if len(body) > self._max_body_bytes:
                raise too_long(response.status, self._max_body_bytes)
        return bytes(body)

    async def aclose(self) -> None:
        """Drop idle connections."""
        await self._client.close()
        if self._patient is not None:
            await self._patient.close()


def explain_quick(exc: BaseException, timeout_s: float) -> CallFailed | None:
    """What an exception of pyreqwest's means; None: it is none."""
    from pyreqwest import exceptions

    details = getattr(exc, "details", None) or {}
    causes = [cause["message"] for cause in details.get("causes") or ()]
    # The first names the URL, which says nothing new.
    said = "; ".join(causes[1:] or [str(exc)])
    if isinstance(exc, exceptions.PoolTimeoutError | exceptions.BuilderError):
        return TransportFailed(f"could not be sent: {said}", False)
    if _NEVER_CONNECTED in causes:
        return TransportFailed(f"could not connect: {said}", False)
    if isinstance(exc, exceptions.RequestTimeoutError):
        return CallTimeout(f"no answer within {timeout_s:g} s")
    if isinstance(exc, exceptions.PyreqwestError):
        return TransportFailed(f"the connection broke off: {said}")
    return None


class HttpxEngine:
    """Posts with httpx.

    Args:
        client: Used as it is; a timeout of its own is kept.
        headers: Sent with every request, besides the client's own.
        timeout_s: For one request, from connecting to the last byte.
        max_body_bytes: Longer answers are refused.
        is_owned: Whether to close the client in the end.
        silence_s: Between two events of a stream; None: no limit.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        headers: Headers,
        timeout_s: float,
        max_body_bytes: int,
        is_owned: bool = False,
        silence_s: float | None = None,
    ) -> None:
        import httpx

        self._client, self._headers, self._is_owned = client, headers, is_owned
        self._timeout_s, self._max_body_bytes = timeout_s, max_body_bytes
        self._silence_s = silence_s
        # Five seconds, httpx's default, is hardly anybody's wish for a model's answer.
        is_default = client.timeout == httpx.Timeout(5.0)
        self._timeout: Any = (
            httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
            if is_default
            else client.timeout
        )

    async def post(
        self, url: str, content: bytes, more: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """Send once, read the whole answer."""
        import httpx

        headers: Mapping[str, str] = {}
        request = self._request(url, content, more, method)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True, follow_redirects=False)
                headers = response.headers
                try:
                    body = await self._read(response)
                finally:
                    await response.aclose()
            return response.status_code, response.headers, body
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as exc:
            explained = explain_httpx(exc, self._timeout_s)
            raise _of_call(explained, headers) from exc

    async def stream(
        self, url: str, content: bytes, take: Take, more: Mapping[str, str] | None = None,
        head: Head | None = None,
    ) -> Reply:  # fmt: skip
        """Send once, hand over events as they come."""
        import httpx

        headers: Mapping[str, str] = {}
        patience = Patience(self._timeout_s, self._silence_s)
        request = self._request(url, content, more)
        try:
            async with patience:
                response = await self._client.send(request, stream=True, follow_redirects=False)
                headers = response.headers
                try:
                    if not is_stream(response.status_code, headers):
                        return response.status_code, headers, await self._read(response)
                    size = 0
                    if head is not None:
                        await head(response.status_code, headers)
                    patience.begin()
                    async for chunk in response.aiter_bytes():
                        size += len(chunk)
                        if size > self._max_body_bytes:
                            raise too_long(response.status_code, self._max_body_bytes)
                        patience.pause()
                        patience.resume(await take(chunk))
                    return response.status_code, headers, b""
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as exc:
            if isinstance(exc, TimeoutError):
                if not patience.has_ended:
                    raise  # its reader's own
                raise _of_call(patience.error(), headers) from exc
            raise _of_call(explain_httpx(exc, self._timeout_s), headers) from exc

    def _request(
        self, url: str, content: bytes, more: Mapping[str, str] | None, method: str = "POST"
    ) -> httpx.Request:
        try:
            return self._client.build_request(
                method, url, content=content, timeout=self._timeout,
                headers={**self._headers.reveal(), **(more or {})},
            )  # fmt: skip
        except Exception as exc:
            raise never_sent(exc) from exc

    async def _read(self, response: httpx.Response) -> bytes:
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_body_bytes:
            raise too_long(response.status_code, self._max_body_bytes)
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise too_long(response.status_code, self._max_body_bytes)
        return bytes(body)

    async def aclose(self) -> None:
        """Close the client if it is ours."""
        if self._is_owned:
            await self._client.aclose()


def explain_httpx(exc: BaseException, timeout_s: float, family: Any = None) -> CallFailed:
    """What an exception of httpx's means, or of its continuation httpx2, given as `family`."""
    if family is None:
        import httpx as family
    httpx = family
    if exc.__cause__ is not None and type(exc.__cause__).__module__.startswith("pyreqwest"):
        # Its httpx transport says ConnectError for what broke after sending, too.
        explained = explain_quick(exc.__cause__, timeout_s)
        if explained is not None:
            return explained
    said = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    never_tried = (
        httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError,
    )  # fmt: skip
    never_sent = (*never_tried, httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
    if isinstance(exc, never_sent):
        error = TransportFailed(f"could not connect: {said}", False)
        error.is_unsent = isinstance(exc, never_tried)
        return error
    if isinstance(exc, TimeoutError | httpx.TimeoutException):
        return CallTimeout(f"no answer in time: {said}")
    return TransportFailed(f"the connection broke off: {said}")


def readable(headers: HeaderMap) -> dict[str, str]:
    """Headers as they can be read: one that is no ASCII text is left out, an answer is not."""
    try:
        return dict(headers.items())
    except ValueError:  # pyreqwest's, of any of them
        pass
    found: dict[str, str] = {}
    for name in set(headers.keys()):
        with contextlib.suppress(ValueError):
            found[name] = headers.getall(name)[-1]
    return found


def is_stream(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the body is an event stream."""
    kind = headers.get("content-type", "")
    return 200 <= status < 300 and kind.lower().lstrip().startswith("text/event-stream")


def _of_call(error: CallFailed, headers: Mapping[str, str]) -> CallFailed:
    """The error with what the head of an answer told, if that has come."""
    error.request_id = call_id(headers)
    error.has_spoken = error.has_spoken or bool(headers)
    return error


def too_long(status: int, max_body_bytes: int) -> BadAnswer:
    """The error for an answer that is not read to its end."""
    return BadAnswer(f"an answer longer than {max_body_bytes:,} bytes, which was not read", status)
