"""Where a service is: a base URL as people have it, and the whole URL of each endpoint below it.

    https://HOST/v1                                             OpenAI's, and all that follow it
    https://RESOURCE.openai.azure.com/openai/v1                 Azure's
    https://RESOURCE.openai.azure.com/openai/deployments/NAME?api-version=V
                                                                Azure's older form: one deployment
    https://RESOURCE.openai.azure.com/openai?api-version=V      the same, the request's model is
                                                                the deployment
    https://RESOURCE.services.ai.azure.com/models?api-version=V Azure AI Foundry

A query is put on every call. What looks like a key in one is refused, since whole URLs are
logged by clients, proxies and servers; no value of a query is ever shown.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit

from scheduler.errors import ConfigError, ProviderRefused

_PATH = re.compile(r"/[\w\-./:~%]*(\?[\w\-.=&%]*)?", re.ASCII)
_QUERY = re.compile(r"[\w\-.~=&%+:,/]*", re.ASCII)
_SECRET = re.compile(
    r"key|sig|token|secret|passw|pwd|auth|credential|jwt|sas|^code$|session|bearer", re.I
)
_KEY = re.compile(r"(sk|pk|gsk|xai|hf|ghp|Bearer)[-_ ]|AIza|eyJ")  # how keys and tokens begin
_ENDPOINTS = (
    "/chat/completions", "/completions", "/responses", "/embeddings", "/moderations", "/messages",
)  # fmt: skip
# What Azure serves below a deployment; everything else is beside it.
_OF_A_DEPLOYMENT = ("/chat/completions", "/completions", "/embeddings", "/audio/", "/images/")
_CLOUDS = ("azure.com", "azure.us", "azure.cn")
_AZURE_HOSTS = (
    *(f".openai.{cloud}" for cloud in _CLOUDS),
    *(f".cognitiveservices.{cloud}" for cloud in _CLOUDS),
    *(f".services.ai.{cloud}" for cloud in _CLOUDS),
    ".api.cognitive.microsoft.com",
)
_VERSION = "api-version"
# What may be shown of what is no URL: it is often a key that was put into the wrong variable.
_HARMLESS = re.compile(
    r"\w{1,12}|([a-z]{1,8}:)?(//)?[a-z.]{1,40}(:\d{0,6})?(/[a-z\d]{0,8})*", re.ASCII
)
_LONG = 16  # characters of a value that might be a secret
_VERSION_VARIABLE = "OPENAI_API_VERSION"  # where Azure's own clients look for it


def is_azure_host(host: str) -> bool:
    """Whether a host is one of Azure's that serve models with its own header for the key.

    >>> is_azure_host("r.openai.azure.com"), is_azure_host("r.services.ai.azure.com")
    (True, True)
    >>> is_azure_host("r.openai.azure.com.evil.example"), is_azure_host("api.openai.com")
    (False, False)
    """
    return host.lower().rstrip(".").endswith(_AZURE_HOSTS)


def is_azure_url(url: str) -> bool:
    """Whether a base URL is one of Azure's, or in its form; False for what is no URL."""
    try:
        parts = urlsplit(url.strip())
        return _is_azure(parts.hostname or "", parts.path, parts.query)
    except ValueError:
        return False


def _is_azure(host: str, path: str, query: str) -> bool:
    return is_azure_host(host) or _says_version(query) or "/openai/deployments/" in path


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, understood.

    Attributes:
        base: Scheme, host and path, without the query: what may be shown.
        query: What is put on every call; never shown.
        is_azure: It is Azure's, or a gateway's in Azure's form.
        is_bare: No path was given, so endpoints keep their ``/v1``.
        beside: Where endpoints go that are not below a deployment; "": there is no difference.
        takes_deployment: The request's model is the deployment, a part of the path.
    """

    base: str
    query: str = field(default="", repr=False)
    is_azure: bool = False
    is_bare: bool = False
    beside: str = ""
    takes_deployment: bool = False

    @property
    def hidden(self) -> list[str]:
        """What of the query no error may repeat: nobody knows what it is."""
        named = parse_qsl(self.query)
        return [value for name, value in named if name != _VERSION and len(value) >= _LONG]

    @property
    def deployment(self) -> str | None:
        """The one deployment that all calls go to; None: it depends on the request."""
        found = re.search(r"/deployments/([^/]+)", self.base)
        return found and found[1]

    def join(self, path: str, model: str) -> str:
        """The full URL for an endpoint such as ``/v1/chat/completions``.

        Only a path below the base URL is taken: a request file must not be able to send the
        key somewhere else. Raises `ProviderRefused`.
        """
        if not _PATH.fullmatch(path) or path.startswith("//") or ".." in path:
            raise ProviderRefused(
                400, f"{path!r} is not an endpoint such as '/v1/responses'; nothing was sent",
                "invalid_url",
            )  # fmt: skip
        path, _, own_query = path.partition("?")
        start, of_v1 = self.base, path == "/v1" or path.startswith("/v1/")
        if of_v1 and not self.is_bare:
            path = path.removeprefix("/v1")
        if self.is_azure and path.startswith("/openai/"):  # as Azure's own samples name it
            start = start.partition("/openai")[0]
        elif self.beside and not path.startswith(_OF_A_DEPLOYMENT):
            start = self.beside
        elif self.takes_deployment and path.startswith(_OF_A_DEPLOYMENT):
            start += f"/deployments/{_segment(model)}"
        query = _merged(own_query, self.query)
        return f"{start}{path}?{query}" if query else f"{start}{path}"


def _segment(model: str) -> str:
    """A deployment's name as a part of a path."""
    if not model.strip(". "):
        raise ProviderRefused(
            400, f"the model {model!r} is not the name of a deployment; nothing was sent",
            "invalid_deployment",
        )  # fmt: skip
    return quote(model, safe="")


def _merged(own: str, common: str) -> str:
    """A request's own query, and what of the base URL's it does not say."""
    if not own:
        return common
    named = {part.partition("=")[0] for part in own.split("&")}
    rest = [part for part in common.split("&") if part and part.partition("=")[0] not in named]
    return "&".join([own, *rest])


def read_address(url: str, variable: str) -> Address:
    """Understand a base URL.

    Args:
        url: As somebody gave it.
        variable: The environment variable that has the key, for errors.

    Raises:
        ConfigError: It cannot be used; what it says shows no secret.
    """
    try:
        parts = urlsplit(url.strip())
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    shown = url.strip().partition("?")[0].partition("#")[0]
    if "@" in url:  # even where it is no URL: what is wrong with it must not show the password
        raise ConfigError("base_url", f"has a password or an '@' in it; use {variable} or headers")
    host = parts.hostname or ""
    is_plain = host.isprintable() and parts.path.isprintable() and " " not in parts.netloc
    if parts.scheme not in ("http", "https") or not host or not port_is_fine or not is_plain:
        told = f"{shown!r} " if _HARMLESS.fullmatch(shown) else ""
        raise ConfigError("base_url", f"{told}is not a URL such as 'https://api.openai.com/v1'")
    if parts.fragment:
        raise ConfigError("base_url", f"{shown!r} has more behind its path, which would be lost")
    query = _clean_query(parts.query, shown, variable)
    root, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    ends = next((end for end in _ENDPOINTS if path.endswith(end)), "")
    at_root, path = not path, path.removesuffix(ends).rstrip("/")
    if _is_azure(host, path, query):
        return _azure(root, path, ends, query, is_azure_host(host))
    return Address(root + path, query, is_bare=at_root)


def _azure(root: str, path: str, ends: str, query: str, is_its_host: bool) -> Address:
    """In which of Azure's forms a URL is."""
    if path in ("", "/openai") and is_its_host and not ends:
        path = "/openai" if _says_version(query) else "/openai/v1"
    start, found, rest = path.partition("/deployments/")
    takes_deployment = not found and path.endswith("/openai")
    if is_its_host and (found or takes_deployment) and not _says_version(query):
        version = os.environ.get(_VERSION_VARIABLE, "").strip()
        if not re.fullmatch(r"[\w\-.]+", version, re.ASCII):
            raise ConfigError(
                "base_url", f"'{root}{path}' needs the version of Azure's API: add "
                f"?{_VERSION}=2024-10-21 to it, or set {_VERSION_VARIABLE}; or use "
                f"'{root}/openai/v1', which needs none",
            )  # fmt: skip
        query = "&".join(filter(None, (query, f"{_VERSION}={version}")))
    if found and not rest.strip("/."):
        raise ConfigError("base_url", f"'{root}{path}' names no deployment behind /deployments/")
    return Address(
        root + path, query, is_azure=True, beside=root + start if found else "",
        takes_deployment=takes_deployment,
    )  # fmt: skip


def _says_version(query: str) -> bool:
    return any(part.startswith(f"{_VERSION}=") for part in query.split("&"))


def _clean_query(query: str, shown: str, variable: str) -> str:
    """The query as it is put on every call; one that may have a key in it is refused."""
    query = query.strip("&")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if _SECRET.search(name) or _KEY.match(value):
            raise ConfigError(
                "base_url", f"{shown!r} has what looks like a key behind its '?' ({name[:40]!r}), and "
                f"URLs end up in logs; use {variable} or headers. Nothing was sent",
            )  # fmt: skip
    if not _QUERY.fullmatch(query):
        raise ConfigError(
            "base_url", f"{shown!r} has characters behind its '?' that no query has; write them as %XX"
        )  # fmt: skip
    return query
