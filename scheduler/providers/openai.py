"""Any service that speaks OpenAI's HTTP API: OpenAI, gateways, proxies, local servers.

Chat completions, responses, embeddings, completions and moderations are sent as they are
and their answers are given back as they came. What an answer means for the ledger is decided
in `scheduler.providers.answers`, what a broken connection means in `scheduler.providers.engines`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_core import PydanticSerializationError, to_json

from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError, CredentialsRefused, ProviderRefused
from scheduler.providers.answers import read_answer
from scheduler.providers.base import Answer, Emit, Provider
from scheduler.providers.engines import Engine, HttpxEngine, QuickEngine
from scheduler.providers.streaming import nobody_reads, read_stream, streamed_body
from scheduler.request import Duration, Request

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"
MAX_BODY_BYTES = 64 * 1024 * 1024
CREDENTIAL_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
PLAIN_HEADERS = frozenset({
    "accept", "accept-encoding", "accept-language", "connection", "content-type", "host",
    "user-agent",
})  # fmt: skip

_PATH = re.compile(r"/[\w\-./:~%]*(\?[\w\-.=&%]*)?", re.ASCII)
_MAX_KNOWN_PATHS = 1000


class OpenAI(Provider):
    """Sends requests to an OpenAI-compatible HTTP API.

    Nothing is read but the environment, and no connection is made, before the first `send`.

    Args:
        name: What `Request.provider` refers to.
        api_key: Default: ``OPENAI_API_KEY``. Not needed if the server is on this machine.
        base_url: Default: ``OPENAI_BASE_URL``, else OpenAI's. It includes ``/v1``, or
            whatever path the service has in its place; without any path ``/v1`` is added.
        organization: Default: ``OPENAI_ORG_ID``.
        project: Default: ``OPENAI_PROJECT_ID``.
        client: Your own client, with your proxies, certificates, hooks and timeout. It is
            not closed here. Default: an engine that is about thirty times quicker.
        timeout: For one attempt, from connecting to the last byte; in seconds, or ``"5m"``.
        headers: Sent with every request, besides the usual ones.
        max_body_bytes: Longer answers are refused.
        on_unknown: What a call costs that nobody heard back from; see `Provider.on_unknown`.

    Raises:
        ConfigError: A base URL or a key that cannot be used.
    """

    def __init__(
        self,
        name: str = "openai",
        *,
        api_key: str | SecretStr | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        client: httpx.AsyncClient | None = None,
        timeout: Duration = 600,
        headers: Mapping[str, str] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        on_unknown: str = "charge",
    ) -> None:
        self.name, self.on_unknown = name, on_unknown
        given = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        self._key = SecretStr(_clean_key(given or os.environ.get("OPENAI_API_KEY", "")))
        if base_url is None and client is not None and str(client.base_url):
            base_url = str(client.base_url)
        self.base_url = _clean_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        is_openai = host == "api.openai.com" or host.endswith(".api.openai.com")
        self.price_source = "openai" if is_openai else self.base_url
        self.counting = "openai" if is_openai else "default"
        self._is_local = is_loopback(host)
        self._has_path = bool(parts.path)
        self._organization = organization or os.environ.get("OPENAI_ORG_ID")
        self._project = project or os.environ.get("OPENAI_PROJECT_ID")
        self._own_headers = {key.lower(): SecretStr(text) for key, text in (headers or {}).items()}
        self._client, self._max_body_bytes = client, max_body_bytes
        self._timeout_s = parse_duration_ms(timeout, "timeout") / 1000
        if not self._timeout_s:
            raise ConfigError("timeout", "0 leaves no time for an answer")
        self._engine: Engine | None = None
        self._urls: dict[str, str] = {}
        self._secrets = _Hidden(self._all_secrets())

    def __repr__(self) -> str:
        key = "set" if self._key.get_secret_value() else "not set"
        return f"OpenAI({self.name!r}, base_url={self.base_url!r}, api_key=<{key}>)"

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
                "OPENAI_API_KEY", f"is not set, and {self.base_url} needs a key; nothing was sent"
            )

    async def send(self, request: Request) -> Answer:
        """Make one attempt."""
        if request.body.get("stream"):
            return await self.stream(request, nobody_reads)
        url = self._urls.get(request.url) or self._join(request.url)
        content = _encode(request.body)
        if self._engine is None:
            self._engine = self._make_engine()
        status, headers, body = await self._engine.post(url, content)
        return read_answer(status, headers, body, self._secrets.texts)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Make one attempt whose answer comes in pieces."""
        url = self._urls.get(request.url) or self._join(request.url)
        content = _encode(streamed_body(request))
        if self._engine is None:
            self._engine = self._make_engine()
        post = partial(self._engine.stream, url, content)
        return await read_stream(request, post, emit, self._secrets.texts)

    async def aclose(self) -> None:
        """Drop all connections, but leave a client that was handed in open."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.aclose()

    def _join(self, path: str) -> str:
        """The full URL for an endpoint such as ``/v1/chat/completions``.

        Only a path below the base URL is taken: a request file must not be able to send the
        key somewhere else.
        """
        if not _PATH.fullmatch(path) or path.startswith("//") or ".." in path:
            raise ProviderRefused(
                400, f"{path!r} is not an endpoint such as '/v1/responses'; nothing was sent",
                "invalid_url",
            )  # fmt: skip
        if self._has_path and (path == "/v1" or path.startswith("/v1/")):
            url = self.base_url + path.removeprefix("/v1")
        else:
            url = self.base_url + path
        if len(self._urls) < _MAX_KNOWN_PATHS:
            self._urls[path] = url
        return url

    def _make_engine(self) -> Engine:
        if not self.has_credentials:
            raise CredentialsRefused(
                401,
                f"OPENAI_API_KEY is not set, and {self.base_url} needs a key; nothing was sent",
                "api_key_missing",
            )
        headers = self._headers()
        if self._client is not None:
            return HttpxEngine(self._client, headers, self._timeout_s, self._max_body_bytes)
        try:
            return QuickEngine(
                headers, self._timeout_s, self._max_body_bytes, use_proxies=not self._is_local
            )
        except ImportError:  # there is no build of it for every platform
            return self._make_httpx_engine(headers)

    def _make_httpx_engine(self, headers: Mapping[str, str]) -> Engine:
        import httpx

        client = httpx.AsyncClient(
            trust_env=not self._is_local,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return HttpxEngine(client, headers, self._timeout_s, self._max_body_bytes, is_owned=True)

    def _headers(self) -> dict[str, str]:
        from scheduler import __version__

        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"llm-budget-scheduler/{__version__}",
        }
        key = self._key.get_secret_value()
        if key:
            headers["authorization"] = f"Bearer {key}"
        if self._organization:
            headers["openai-organization"] = self._organization
        if self._project:
            headers["openai-project"] = self._project
        own = {name: text.get_secret_value() for name, text in self._own_headers.items()}
        return {**headers, **own}

    def _all_secrets(self) -> list[str]:
        found = [self._key.get_secret_value()]
        headers = {} if self._client is None else dict(self._client.headers)
        headers |= {name: text.get_secret_value() for name, text in self._own_headers.items()}
        for name in headers.keys() - PLAIN_HEADERS:
            found += [headers[name], headers[name].split(" ")[-1]]
        # Placeholders such as "EMPTY" are no secrets, and hiding them would garble errors.
        return sorted({text for text in found if len(text) >= 8}, key=len, reverse=True)


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


def _clean_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("OPENAI_API_KEY", "has characters in it that no key has")
    return key


def _clean_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if "@" in url:  # even where it is no URL: what is wrong with it must not show the password
        raise ConfigError(
            "base_url", "has a password or an '@' in it; use OPENAI_API_KEY or headers"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise ConfigError("base_url", f"{url!r} is not a URL such as {OPENAI_URL!r}")
    if parts.query or parts.fragment:
        shown = url.partition("?")[0].partition("#")[0]
        raise ConfigError("base_url", f"{shown!r} has more behind its path, which would be lost")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


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
