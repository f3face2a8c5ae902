"""Any service that speaks OpenAI's HTTP API: OpenAI, gateways, proxies, local servers.

Chat completions, responses, embeddings, completions and moderations are sent as they are
and their answers are given back as they came.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import SecretStr

from scheduler.errors import ConfigError
from scheduler.providers.address import is_azure_url
from scheduler.providers.hidden import Headers, seal
from scheduler.providers.http import MAX_BODY_BYTES, SILENCE_TIMEOUT, HttpProvider, is_loopback
from scheduler.request import MESSAGES, Duration, Request

if TYPE_CHECKING:
    import httpx

__all__ = ["OPENAI_URL", "OpenAI", "is_loopback"]

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY, AZURE_KEY = "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"
_TOKEN = re.compile(r"eyJ[\w\-]+\.[\w\-]+\.[\w\-]*", re.ASCII)  # of Entra: goes as a bearer token


class OpenAI(HttpProvider):
    """Sends requests to an OpenAI-compatible HTTP API.

    Nothing is read but the environment, and no connection is made, before the first `send`.

    Args:
        name: What `Request.provider` refers to.
        api_key: Default: what is in `key_variable`. Not needed if the server is on this machine.
        base_url: Default: ``OPENAI_BASE_URL``, else OpenAI's. It includes ``/v1``, or
            whatever path the service has in its place; without any path ``/v1`` is added.
            Azure's older forms are understood, too: see `scheduler.providers.address`.
        organization: Default: ``OPENAI_ORG_ID``.
        project: Default: ``OPENAI_PROJECT_ID``.
        client: Your own client, with your proxies, certificates, hooks and timeout. It is
            not closed here. Default: an engine that is about thirty times quicker.
        timeout: For one attempt, from connecting to the last byte, streams too; in seconds, or
            ``"5m"``. Time that a stream's reader takes does not count.
        silence_timeout: Between two events of a stream; comments and stray bytes are silence.
            None: no limit.
        headers: Sent with every request, besides the usual ones.
        max_body_bytes: Longer answers are refused.
        key_variable: The environment variable that has the key. Default: ``OPENAI_API_KEY``;
            for Azure ``AZURE_OPENAI_API_KEY``, if that is set.
        on_unknown: What a call costs that nobody heard back from; see `Provider.on_unknown`.

    Raises:
        ConfigError: A base URL or a key that cannot be used.
    """

    key_header: str | None = None
    """The header for the key, where it is not a bearer token."""

    def __init__(
        self,
        name: str = "openai",
        *,
        api_key: str | SecretStr | None = None,
        base_url: str | SecretStr | None = None,
        organization: str | None = None,
        project: str | None = None,
        client: httpx.AsyncClient | None = None,
        timeout: Duration = 600,
        silence_timeout: Duration | None = SILENCE_TIMEOUT,
        headers: Mapping[str, str | SecretStr] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        on_unknown: str = "charge",
        key_variable: str | None = None,
    ) -> None:
        # First of all, so that no frame of a refusal has them in the open.
        api_key = None if api_key is None else seal(api_key)
        hidden, headers = Headers(headers), None
        if base_url is None and client is not None and str(client.base_url):
            base_url = str(client.base_url)
        url = seal(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
        base_url = None
        if key_variable is None:
            is_azure = is_azure_url(url.get_secret_value()) and (
                bool(os.environ.get(AZURE_KEY)) or not os.environ.get(OPENAI_KEY)
            )
            key_variable = AZURE_KEY if is_azure else OPENAI_KEY
        self.key_variable = key_variable
        self._account = Headers({
            "openai-organization": seal(organization or os.environ.get("OPENAI_ORG_ID")),
            "openai-project": seal(project or os.environ.get("OPENAI_PROJECT_ID")),
        })  # fmt: skip
        organization = project = None
        self._account.check("organization, project")
        super().__init__(
            name,
            seal(os.environ.get(key_variable)) if api_key is None else api_key,
            url,
            client,
            timeout,
            hidden,
            max_body_bytes,
            on_unknown,
            silence_timeout,
        )
        if self.host == "api.openai.com" or self.host.endswith(".api.openai.com"):
            self.price_source = self.counting = "openai"
        elif self._address.is_azure:
            self.price_source = self.counting = "azure"
            self.key_header, self.deployment = "api-key", self._address.deployment

    def check(self, request: Request) -> None:
        """Refuse Anthropic's endpoint where it is known not to be."""
        if request.url == MESSAGES and self.price_source == "openai":
            raise ConfigError(
                "request", f"{self.host} has no {MESSAGES}, which is Anthropic's; nothing was sent. "
                "Name the model as anthropic:MODEL, or give a base URL that has it",
            )  # fmt: skip

    def _credentials(self) -> Mapping[str, str | SecretStr]:
        headers, key = super()._credentials(), self._key
        is_token = _TOKEN.fullmatch(key.get_secret_value()) is not None
        if self.key_header is not None and key.get_secret_value() and not is_token:
            headers = {self.key_header: key}
        return {**headers, **{n: t for n, t in self._account.items() if t.get_secret_value()}}
