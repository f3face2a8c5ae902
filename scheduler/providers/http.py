"""What services that are called over HTTP have in common.

What an answer means for the ledger is decided in `scheduler.providers.answers`, what a broken
connection means in `scheduler.providers.engines`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_core import PydanticSerializationError, to_json

from scheduler.answer import Answer
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError, CredentialsRefused, ProviderRefused
from scheduler.providers.address import Address, read_address
from scheduler.providers.assembly import needs_asking
from scheduler.providers.base import Emit, Provider
from scheduler.providers.engines import Engine, Head, Reply, Take, make_engine
from scheduler.providers.hidden import Headers, Secrets, check_key, is_panic, sealed
from scheduler.providers.known import asks_usage_at, refuses_field
from scheduler.providers.streaming import nobody_reads, read_stream, read_whole, streamed_body
from scheduler.request import Duration, Request, StreamEvent

if TYPE_CHECKING:
    import httpx

MAX_BODY_BYTES = 64 * 1024 * 1024
SILENCE_TIMEOUT = "5m"
CREDENTIAL_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
PLAIN_HEADERS = frozenset({
    "accept", "accept-encoding", "accept-language", "connection", "content-type", "host",
    "user-agent",
})  # fmt: skip

_MAX_KNOWN_PATHS = 1000


class HttpProvider(Provider):
    """What services behind HTTP have in common: a key, a base URL, an engine, secrets to hide.

    Nothing is read but the environment, and no connection is made, before the first `send`.
    """

    key_variable = ""
    """The environment variable that has the key."""

    extra_body: Mapping[str, Any] = {}
    """Written into every body that does not say otherwise."""

    asks_usage: bool | None = None
    """Whether its streams are asked for their usage; None: not known yet, so that is tried."""

    name = base_url = ""  # so that a `repr` says something even while it is being made
    _key = SecretStr("")

    def __init__(
        self,
        name: str,
        key: SecretStr,
        base_url: SecretStr,
        client: httpx.AsyncClient | None,
        timeout: Duration,
        headers: Headers,
        max_body_bytes: int,
        on_unknown: str,
        silence_timeout: Duration | None = SILENCE_TIMEOUT,
    ) -> None:
        self.name, self.on_unknown = name, on_unknown
        self._key = check_key(key, self.key_variable)
        self._own_headers = headers.check()
        self._address = _address_of(base_url, self.key_variable)
        self.base_url = self.price_source = self._address.base
        self.host = urlsplit(self.base_url).hostname or ""
        self._is_local = is_loopback(self.host)
        self._client, self._max_body_bytes = client, max_body_bytes
        self.service = self.base_url if client is None else None
        self._timeout_s = parse_duration_ms(timeout, "timeout") / 1000
        if not self._timeout_s:
            raise ConfigError("timeout", "0 leaves no time for an answer")
        self._silence_s = (
            None if silence_timeout is None
            else parse_duration_ms(silence_timeout, "silence_timeout") / 1000
        )  # fmt: skip
        if self._silence_s == 0:
            raise ConfigError("silence_timeout", "0 leaves no time for an event; None is no limit")
        self.asks_usage = asks_usage_at(self.host)
        self._engine: Engine | None = None
        self._has_panicked = False
        self._urls: dict[tuple[str, str], str] = {}
        self._sets: frozenset[str] | None = None
        self._secrets = Secrets(self._all_secrets())

    def __repr__(self) -> str:
        key = "set" if self._key.get_secret_value() else "not set"
        kind = type(self).__name__
        return f"{kind}({self.name!r}, base_url={self.base_url!r}, api_key=<{key}>)"

    @property
    def has_credentials(self) -> bool:
        """Whether there is something to authenticate with, or nothing is needed."""
        if self._key.get_secret_value() or self._is_local:
            return True
        if any(name in self._own_headers for name in CREDENTIAL_HEADERS):
            return True
        client = self._client
        return client is not None and (
            client.auth is not None or any(name in client.headers for name in CREDENTIAL_HEADERS)
        )

    @property
    def lacks(self) -> str:
        """The variable that would hold its key; empty: it has one, or needs none."""
        return "" if self.has_credentials else self.key_variable

    def require_key(self) -> None:
        """Make sure there is a key, before anything is sent.

        Raises:
            ConfigError: There is none, and the server is not on this machine.
        """
        if not self.has_credentials:
            raise ConfigError(
                self.key_variable,
                f"is not set, and {self.base_url} needs a key; nothing was sent",
            )

    async def send(self, request: Request) -> Answer:
        """Make one attempt."""
        if request.body.get("stream"):
            return await self.stream(request, nobody_reads)
        return await sealed(self._post(request), self._secrets)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Make one attempt whose answer comes in pieces."""
        raised: list[BaseException] = []  # by the reader, whose business it is

        async def hand_over(event: StreamEvent) -> None:
            try:
                await emit(event)
            except BaseException as exc:
                raised.append(exc)
                raise

        return await sealed(
            self._post_stream(request, hand_over), self._secrets, lambda exc: exc in raised
        )

    async def _post(self, request: Request) -> Answer:
        url = self._url_of(request)
        content = self._content(request.body)
        engine = self._engine or self._make_engine()
        with self._noticing_panics():
            status, headers, body = await engine.post(url, content)
        return read_whole(request, status, headers, body, self._secrets)

    async def _post_stream(self, request: Request, emit: Emit) -> Answer:
        asks = self.asks_usage is not False and needs_asking(request)
        try:
            return await self._stream(request, emit, asks)
        except ProviderRefused as error:
            words = f"{error.message} {error.body}"
            if not asks or not refuses_field(error.status, words, "stream_options"):
                raise
        # It did nothing but refuse what was added here, not asked for; the same attempt goes on.
        self.asks_usage = False
        return await self._stream(request, emit, asks=False)

    async def _stream(self, request: Request, emit: Emit, asks: bool) -> Answer:
        url = self._url_of(request)
        content = self._content(streamed_body(request, asks))
        engine = self._engine or self._make_engine()
        post = partial(engine.stream, url, content)
        with self._noticing_panics():
            return await read_stream(request, post, emit, self._secrets, asked_for_usage=asks)

    async def pass_on(
        self, url: str, content: bytes, more: Mapping[str, str], *, method: str = "POST",
        take: Take | None = None, head: Head | None = None,
    ) -> Reply:  # fmt: skip
        """Send somebody's own bytes with this provider's key; give back what came, unread.

        Args:
            url: One of `url_for`.
            content: The body.
            more: Headers of theirs, without any that this provider sends by itself.
            method: What is done there.
            take: Takes the bytes of an event stream as they come; None: it is read as a whole.
            head: Told of such a stream before.

        Raises:
            CallFailed: Nothing, or not all, came back; a status is never an error.
        """
        return await sealed(self._pass_on(url, content, more, method, take, head), self._secrets)

    async def _pass_on(
        self, url: str, content: bytes, more: Mapping[str, str], method: str,
        take: Take | None, head: Head | None,
    ) -> Reply:  # fmt: skip
        engine = self._engine or self._make_engine()
        try:
            if take is None:
                return await engine.post(url, content, more, method)
            return await engine.stream(url, content, take, more, head)
        except BaseException as exc:
            self._notice_panic(exc)
            raise

    def url_for(self, path: str, model: str) -> str:
        """The whole URL of an endpoint, which may have a query.

        Raises:
            ProviderRefused: It would not be below the base URL.
        """
        return self._joined(path, model)

    @property
    def secrets(self) -> Secrets:
        """What must not appear in anything that is shown."""
        return self._secrets

    @property
    def sets_headers(self) -> frozenset[str]:
        """Names of headers, in lower case, that say who calls, or were configured."""
        if self._sets is None:
            names = {*self._credentials(), *self._own_headers}
            self._sets = frozenset(names - {"anthropic-version"})
        return self._sets

    @contextmanager
    def _noticing_panics(self) -> Iterator[None]:
        """An engine that panicked is not asked again: the next call goes by httpx."""
        try:
            yield
        except BaseException as exc:
            self._notice_panic(exc)
            raise

    def _notice_panic(self, exc: BaseException) -> None:
        if is_panic(exc):
            self._engine, self._has_panicked = None, True

    async def aclose(self) -> None:
        """Drop all connections, but leave a client that was handed in open."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.aclose()

    def _url_of(self, request: Request) -> str:
        """Where a request goes. Raises `ProviderRefused` if that is not below the base URL."""
        return self._joined(request.url, request.model)

    def _joined(self, path: str, model: str) -> str:
        place = (path, model if self._address.takes_deployment else "")
        url = self._urls.get(place)
        if url is None:
            url = self._address.join(*place)
            if len(self._urls) < _MAX_KNOWN_PATHS:
                self._urls[place] = url
        return url

    def _content(self, body: Mapping[str, Any]) -> bytes:
        """What is sent for a body. Raises `ProviderRefused` if it cannot be written."""
        return encode({**self.extra_body, **body} if self.extra_body else body)

    def _make_engine(self) -> Engine:
        if not self.has_credentials:
            raise CredentialsRefused(
                401,
                f"{self.key_variable} is not set, and {self.base_url} needs a key; nothing was sent",
                "api_key_missing",
            )
        self._engine = make_engine(
            self._headers(), self._timeout_s, self._max_body_bytes, self._client,
            use_proxies=not self._is_local, is_quick=not self._has_panicked,
            silence_s=self._silence_s,
        )  # fmt: skip
        return self._engine

    def _headers(self) -> Headers:
        from scheduler import __version__

        headers = Headers({
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"llm-budget-scheduler/{__version__}",
        })  # fmt: skip
        return headers.with_more(self._credentials()).with_more(self._own_headers).check()

    def _credentials(self) -> Mapping[str, str | SecretStr]:
        """Headers that say who calls."""
        key = self._key.get_secret_value()
        return {"authorization": SecretStr(f"Bearer {key}")} if key else {}

    def _all_secrets(self) -> Iterator[str]:
        yield self._key.get_secret_value()
        yield from self._address.hidden
        for name, text in self._own_headers.items():
            if name not in PLAIN_HEADERS:
                yield text.get_secret_value()
        if self._client is not None:
            yield from _secrets_of(self._client)


def _secrets_of(client: httpx.AsyncClient) -> Iterator[str]:
    """What a client of the user's own may send that nobody else is to see."""
    for name, value in client.headers.items():
        if name not in PLAIN_HEADERS:
            yield value
    for _, value in client.params.multi_items():
        yield value
    yield client.base_url.password or ""
    yield getattr(client.auth, "_auth_header", "")  # of `httpx.BasicAuth`


def encode(body: Mapping[str, Any]) -> bytes:
    """A body as JSON. Raises `ProviderRefused` if it cannot be written."""
    try:
        return to_json(body)
    except (PydanticSerializationError, ValueError, UnicodeError):
        # What the quick encoder refuses, such as half a surrogate pair, has a form in JSON.
        try:
            return json.dumps(body, separators=(",", ":")).encode("ascii")
        except (TypeError, ValueError, RecursionError) as exc:
            raise ProviderRefused(
                400, f"the body cannot be written as JSON: {exc}; nothing was sent", "invalid_body"
            ) from None


def _address_of(url: SecretStr, variable: str) -> Address:
    """The base URL, understood. Raises `ConfigError` from a frame that does not hold it."""
    try:
        return read_address(url.get_secret_value(), variable)
    except ConfigError as exc:
        problem = exc.problem
    raise ConfigError("base_url", problem)


def is_loopback(host: str) -> bool:
    """Whether a host name can only be this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost")
    (True, True, True)
    >>> is_loopback("localhost.example.com"), is_loopback("10.0.0.1")
    (False, False)
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
