"""Anthropic's Messages API, asked in its own form or in the form of OpenAI's chat.

A body for ``/v1/messages`` is sent as it is. One for ``/v1/chat/completions`` is translated,
and so is its answer, so that one batch may mix providers; what has no exact translation is
refused by name, never dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import SecretStr

from scheduler.answer import Answer
from scheduler.errors import ConfigError, ProviderRefused
from scheduler.providers.anthropic_chat import Untranslatable, to_chat, to_messages
from scheduler.providers.base import Emit
from scheduler.providers.hidden import Headers, seal
from scheduler.providers.http import MAX_BODY_BYTES, SILENCE_TIMEOUT, HttpProvider
from scheduler.request import CHAT, ENDPOINTS, MESSAGES, Duration, Request

if TYPE_CHECKING:
    import httpx

ANTHROPIC_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


class Anthropic(HttpProvider):
    """Sends requests to Anthropic's Messages API.

    Args:
        name: What `Request.provider` refers to.
        api_key: Default: ``ANTHROPIC_API_KEY``. Not needed if the server is on this machine.
        base_url: Default: ``ANTHROPIC_BASE_URL``, else Anthropic's. Without ``/v1``.
        client: Your own client; see `OpenAI`.
        timeout: For one attempt, from connecting to the last byte, streams too; in seconds, or
            ``"5m"``. Time that a stream's reader takes does not count.
        silence_timeout: Between two events of a stream; comments and stray bytes are silence.
            None: no limit.
        headers: Sent with every request, such as ``anthropic-beta``.
        max_body_bytes: Longer answers are refused.
        on_unknown: What a call costs that nobody heard back from; see `Provider.on_unknown`.

    Raises:
        ConfigError: A base URL or a key that cannot be used.
    """

    key_variable = "ANTHROPIC_API_KEY"
    counting = "anthropic"

    def __init__(
        self,
        name: str = "anthropic",
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
        api_key = seal(os.environ.get(self.key_variable) if api_key is None else api_key)
        hidden, headers = Headers(headers), None
        url = seal(base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL)
        base_url = None
        super().__init__(
            name,
            api_key,
            SecretStr(url.get_secret_value().rstrip("/").removesuffix("/v1")),
            client,
            timeout,
            hidden,
            max_body_bytes,
            on_unknown,
            silence_timeout,
        )
        if self.host == "api.anthropic.com":
            self.price_source = "anthropic"

    def _credentials(self) -> Mapping[str, str | SecretStr]:
        key = {"x-api-key": self._key} if self._key.get_secret_value() else {}
        return {"anthropic-version": VERSION, **key}

    def check(self, request: Request) -> None:
        """Refuse what has no translation, and endpoints that Anthropic does not have."""
        try:
            if request.url == CHAT:
                self._translated(request)
        except ProviderRefused as exc:
            raise ConfigError("request", exc.message) from None
        if request.url in ENDPOINTS and request.url not in (CHAT, MESSAGES):
            raise ConfigError(
                "request", f"Anthropic has no {request.url}, only {MESSAGES} and, translated, "
                f"{CHAT}; nothing was sent",
            )  # fmt: skip

    async def send(self, request: Request) -> Answer:
        """Make one attempt."""
        if request.url != CHAT:
            return await super().send(request)
        answer = await super().send(self._translated(request))
        return replace(answer, body=to_chat(answer.body))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Make one attempt whose answer comes in pieces; in Anthropic's own form only."""
        if request.url == CHAT:
            raise ProviderRefused(
                400, "Anthropic's events are not translated: stream with Request.messages; nothing "
                "was sent", "stream_unsupported",
            )  # fmt: skip
        return await super().stream(request, emit)

    def _translated(self, request: Request) -> Request:
        try:
            body = to_messages(request.body)
        except Untranslatable as exc:
            raise ProviderRefused(
                400, f"{exc} for Anthropic's Messages API; nothing was sent", "untranslatable"
            ) from None
        except (AttributeError, LookupError, TypeError, ValueError) as exc:
            problem = f"its messages or tools have not the form that OpenAI's have ({exc})"
            raise ProviderRefused(400, f"{problem}; nothing was sent", "untranslatable") from None
        return replace(request, url=MESSAGES, body=body)
