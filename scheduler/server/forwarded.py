"""What of a client's request goes on to its provider, and of the answer back; pure.

All but what is between two machines that are neighbours, what is about this gateway, and keys.

>>> headers({"host": "x", "authorization": "Bearer sched-1", "x-title": "app", "connection": "x-hop",
...          "x-hop": "1", "x-scheduler-job": "j"}, frozenset())
{'x-title': 'app'}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote_plus

from scheduler.adapters.dialects import HEADER_PREFIX, Call, Dialect
from scheduler.errors import ProviderRefused
from scheduler.providers.google import Google
from scheduler.providers.http import HttpProvider
from scheduler.server.refusals import Fields

KEYS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
KEY_PARAM = "key"
_NEVER = frozenset({
    *KEYS, "host", "content-length", "connection", "keep-alive", "proxy-authenticate",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "expect", "accept-encoding", "cookie", "origin", "referer", "forwarded", "x-forwarded-for",
    "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via",
})  # fmt: skip
_NOT_BACK = frozenset({
    "content-length", "content-encoding", "connection", "keep-alive", "proxy-authenticate", "trailer",
    "transfer-encoding", "upgrade", "set-cookie", "alt-svc", "strict-transport-security", "date",
    "server", "x-should-retry",
})  # fmt: skip
_OURS = (HEADER_PREFIX, "sec-")
_USUAL = ("", "keep-alive", "close")
_AT = re.compile(r"^/at/[^/]+(?=/)")
_V1 = re.compile(r"^(?:/openai)?(?=/v1)")


def headers(own: Mapping[str, str], set_by_provider: frozenset[str]) -> dict[str, str]:
    """The client's headers that its provider is to see.

    Args:
        own: By names in lower case.
        set_by_provider: What the provider's configuration says itself.
    """
    hops = own.get("connection", "")
    named = () if hops in _USUAL else {each.strip().lower() for each in hops.split(",")}
    return {
        name: value for name, value in own.items()
        if name not in _NEVER and name not in set_by_provider and name not in named
        and not name.startswith(_OURS)
    }  # fmt: skip


def fields(own: Mapping[str, str]) -> Fields:
    """The provider's headers that its client is to see."""
    return [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in own.items()
        if name not in _NOT_BACK and not name.startswith(HEADER_PREFIX)
    ]  # fmt: skip


@lru_cache(maxsize=200)
def path_of(path: str) -> str:
    """A path without what names the provider.

    >>> path_of("/at/groq/openai/v1/chat/completions"), path_of("/v1/messages")
    ('/v1/chat/completions', '/v1/messages')
    """
    return _V1.sub("", _AT.sub("", path, count=1))


@lru_cache(maxsize=200)
def dialect_of(path: str) -> Dialect:
    """Whose API a path belongs to, whatever stands before it.

    >>> dialect_of("/at/x/v1/messages/count_tokens").value, dialect_of("/v1beta/models").value
    ('anthropic', 'google')
    """
    path = path_of(path)
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.GOOGLE if path.startswith("/v1beta/") else Dialect.of(path)


def query_of(query: bytes) -> str:
    """A query without the client's key, however that is spelt.

    >>> query_of(b"a=1&key=sched-1&%6bey=sched-1"), query_of(b"")
    ('a=1', '')
    """
    if not query:
        return ""
    parts = query.decode("latin-1").split("&")
    return "&".join(
        each for each in parts if each and unquote_plus(each.partition("=")[0]) != KEY_PARAM
    )


def url(
    provider: HttpProvider, call: Call, scope: Mapping[str, Any], body: Mapping[str, Any]
) -> str:
    """Where a call goes.

    Raises:
        ProviderRefused: That would not be below the provider's base URL.
    """
    query = query_of(scope["query_string"])
    path, model = call.url, str(body.get("model", ""))
    if call.dialect is Dialect.GOOGLE:
        verb = scope["path"].rpartition(":")[2]
        path = f"/v1beta/models/{quote(model, safe='')}:{verb}"
        if not isinstance(provider, Google):
            return f"{root_of(provider.base_url)}{path}{query and '?' + query}"
    return provider.url_for(f"{path}?{query}" if query else path, model)


def root_of(base_url: str) -> str:
    """A base URL without what OpenAI's API has there.

    >>> root_of("http://127.0.0.1:8080/v1"), root_of("https://host/api")
    ('http://127.0.0.1:8080', 'https://host/api')
    """
    return base_url.removesuffix("/openai").removesuffix("/v1beta").removesuffix("/v1")


def check_query(call: Call, query: bytes) -> None:
    """Refuse what nobody could follow. Raises `ProviderRefused`."""
    is_stream = call.dialect is Dialect.GOOGLE and call.body.get("stream")
    if is_stream and "alt=sse" not in query.decode("latin-1").split("&"):
        raise ProviderRefused(
            400, "streamGenerateContent is served with ?alt=sse only; nothing was sent",
            "stream_unsupported",
        )  # fmt: skip
