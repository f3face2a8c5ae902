"""What services that are called over HTTP have in common.

What an answer means for the ledger is decided in `scheduler.providers.answers`, what a broken
connection means in `scheduler.providers.engines`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_core import PydanticSerializationError, to_json

from scheduler.duration import parse_duration_ms
from scheduler.errors import CallFailed, ConfigError, CredentialsRefused, ProviderRefused
from scheduler.providers.address import read_address
from scheduler.providers.answers import clean_id, hide
from scheduler.providers.assembly import needs_asking
from scheduler.providers.base import Answer, Emit, Provider
from scheduler.providers.engines import Engine, HttpxEngine, QuickEngine, Reply, Take
from scheduler.providers.known import asks_usage_at, refuses_field
from scheduler.providers.streaming import nobody_reads, read_stream, read_whole, streamed_body
from scheduler.request import Duration, Request

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

    def __init__(
        self,
        name: str,
        key: str,
        base_url: str,
        client: httpx.AsyncClient | None,
        timeout: Duration,
        headers: Mapping[str, str] | None,
        max_body_bytes: int,
        on_unknown: str,
        silence_timeout: Duration | None = SILENCE_TIMEOUT,
    ) -> None:
        self.name, self.on_unknown = name, on_unknown
        self._key = SecretStr(_clean_key(key, self.key_variable))
        self._address = read_address(base_url, self.key_variable)
        self.base_url = self.price_source = self._address.base
        self.host = urlsplit(self.base_url).hostname or ""
        self._is_local = is_loopback(self.host)
        self._own_headers = {key.lower(): SecretStr(text) for key, text in (headers or {}).items()}
        self._client, self._max_body_bytes = client, max_body_bytes
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
        self._urls: dict[tuple[str, str], str] = {}
        self._secrets = _Hidden(self._all_secrets())

    def __repr__(self) -> str:
        key = "set" if self._key.get_secret_value() else "not set"
        kind = type(self).__name__
        return f"{kind}({self.name!r}, base_url={self.base_url!r}, api_key=<{key}>)"

    @property
    def has_credentials(self) -> bool:
        """Whether there is something to authenticate with, or nothing is needed."""
        if self._key.get_secret_value() or self._is_local:
            return True
        if CREDENTIAL_HEADERS & self._own_headers.keys():
            return True
        client = self._client
        return client is not None and (
            client.auth is not None or any(name in client.headers for name in CREDENTIAL_HEADERS)
        )

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
        url = self._url_of(request)
        content = _encode({**self.extra_body, **request.body} if self.extra_body else request.body)
        if self._engine is None:
            self._engine = self._make_engine()
        secrets = self._secrets.texts
        try:
            status, headers, body = await self._engine.post(url, content)
        except CallFailed as error:
            raise _masked(error, secrets) from error.__cause__
        return read_whole(request, status, headers, body, secrets)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Make one attempt whose answer comes in pieces."""
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
        content = _encode({**self.extra_body, **streamed_body(request, asks)})
        if self._engine is None:
            self._engine = self._make_engine()
        secrets = self._secrets.texts

        async def post(take: Take) -> Reply:
            assert self._engine is not None
            try:
                return await self._engine.stream(url, content, take)
            except CallFailed as error:
                raise _masked(error, secrets) from error.__cause__

        return await read_stream(request, post, emit, secrets, asked_for_usage=asks)

    async def aclose(self) -> None:
        """Drop all connections, but leave a client that was handed in open."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.aclose()

    def _url_of(self, request: Request) -> str:
        """Where a request goes. Raises `ProviderRefused` if that is not below the base URL."""
        place = (request.url, request.model if self._address.takes_deployment else "")
        url = self._urls.get(place)
        if url is None:
            url = self._address.join(*place)
            if len(self._urls) < _MAX_KNOWN_PATHS:
                self._urls[place] = url
        return url

    def _make_engine(self) -> Engine:
        if not self.has_credentials:
            raise CredentialsRefused(
                401,
                f"{self.key_variable} is not set, and {self.base_url} needs a key; nothing was sent",
                "api_key_missing",
            )
        headers = self._headers()
        if self._client is not None:
            return HttpxEngine(
                self._client, headers, self._timeout_s, self._max_body_bytes,
                silence_s=self._silence_s,
            )  # fmt: skip
        try:
            return QuickEngine(
                headers, self._timeout_s, self._max_body_bytes, not self._is_local, self._silence_s
            )
        except ImportError:  # there is no build of it for every platform
            return self._make_httpx_engine(headers)

    def _make_httpx_engine(self, headers: Mapping[str, str]) -> Engine:
        import httpx

        client = httpx.AsyncClient(
            trust_env=not self._is_local,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return HttpxEngine(
            client, headers, self._timeout_s, self._max_body_bytes, True, self._silence_s
        )

    def _headers(self) -> dict[str, str]:
        from scheduler import __version__

        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"llm-budget-scheduler/{__version__}",
        }
        own = {name: text.get_secret_value() for name, text in self._own_headers.items()}
        return {**headers, **self._credentials(self._key.get_secret_value()), **own}

    def _credentials(self, key: str) -> dict[str, str]:
        """Headers that say who calls."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def _all_secrets(self) -> list[str]:
        found = [self._key.get_secret_value(), *self._address.hidden]
        headers = {} if self._client is None else dict(self._client.headers)
        headers |= {name: text.get_secret_value() for name, text in self._own_headers.items()}
        for name in headers.keys() - PLAIN_HEADERS:
            found += [headers[name], headers[name].split(" ")[-1]]
        # Placeholders such as "EMPTY" are no secrets, and hiding them would garble errors.
        return sorted({text for text in found if len(text) >= 8}, key=len, reverse=True)


def _masked(error: CallFailed, secrets: list[str]) -> CallFailed:
    """An engine's error without the keys that the other side may have repeated."""
    error.message = hide(error.message, secrets)
    error.args = (error.message, *error.args[1:])
    error.request_id = clean_id(error.request_id, secrets)
    return error


class _Hidden:
    """Texts that a debugger or a traceback with variables must not show."""

    __slots__ = ("texts",)

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __repr__(self) -> str:
        return "<hidden>"


def _encode(body: Mapping[str, Any]) -> bytes:
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


def _clean_key(key: str, variable: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(variable, "has characters in it that no key has")
    return key


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
