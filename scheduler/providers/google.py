"""Google's own API, which has the model in its path: Gemini, asked in the form of its SDK."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import SecretStr

from scheduler.errors import ConfigError
from scheduler.providers.hidden import Headers, seal
from scheduler.providers.http import MAX_BODY_BYTES, SILENCE_TIMEOUT, HttpProvider, encode
from scheduler.request import EMBED_CONTENT, GEMINI, Duration, Request

if TYPE_CHECKING:
    import httpx

GOOGLE_URL = "https://generativelanguage.googleapis.com"
_IN_PATH = ("model", "stream")


class Google(HttpProvider):
    """Sends requests to Google's own API, in its own form only.

    Args:
        name: What `Request.provider` refers to.
        api_key: Default: ``GEMINI_API_KEY``, else ``GOOGLE_API_KEY``.
        base_url: Default: ``GOOGLE_GEMINI_BASE_URL``, else Google's. Without ``/v1beta``.
        client: Your own client; see `OpenAI`.
        timeout: For one attempt, from connecting to the last byte; in seconds, or ``"5m"``.
        silence_timeout: Between two events of a stream. None: no limit.
        headers: Sent with every request.
        max_body_bytes: Longer answers are refused.
        on_unknown: What a call costs that nobody heard back from; see `Provider.on_unknown`.

    Raises:
        ConfigError: A base URL or a key that cannot be used.
    """

    key_variable = "GEMINI_API_KEY"

    def __init__(
        self,
        name: str = "google",
        *,
        api_key: str | SecretStr | None = None,
        base_url: str | SecretStr | None = None,
        client: httpx.AsyncClient | None = None,
        timeout: Duration = 600,
        silence_timeout: Duration | None = SILENCE_TIMEOUT,
        headers: Mapping[str, str | SecretStr] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        on_unknown: str = "charge",
    ) -> None:
        # First of all, so that no frame of a refusal has them in the open.
        if api_key is None:
            api_key = os.environ.get(self.key_variable) or os.environ.get("GOOGLE_API_KEY")
        api_key = seal(api_key)
        hidden, headers = Headers(headers), None
        url = seal(base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL") or GOOGLE_URL)
        base_url = None
        super().__init__(
            name,
            api_key,
            SecretStr(url.get_secret_value().rstrip("/").removesuffix("/v1beta")),
            client,
            timeout,
            hidden,
            max_body_bytes,
            on_unknown,
            silence_timeout,
        )
        if self.base_url == GOOGLE_URL:
            self.price_source = "google"

    def _credentials(self) -> Mapping[str, str | SecretStr]:
        return {"x-goog-api-key": self._key} if self._key.get_secret_value() else {}

    def check(self, request: Request) -> None:
        """Refuse what Google's own API does not have."""
        if request.url not in GEMINI:
            raise ConfigError(
                "request", f"Google's own API has no {request.url}; nothing was sent. Name the model "
                "as gemini:MODEL, which asks Google in OpenAI's form",
            )  # fmt: skip

    def _content(self, body: Mapping[str, Any]) -> bytes:
        return encode({name: body[name] for name in body if name not in _IN_PATH})

    def _url_of(self, request: Request) -> str:
        stream = bool(request.body.get("stream"))
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
        if request.url == EMBED_CONTENT:
            verb = "batchEmbedContents" if "requests" in request.body else "embedContent"
        model = quote(request.model, safe="")
        return self.url_for(f"/v1beta/models/{model}:{verb}", request.model)
