"""Services that are known by name: where they are, where their key is, how they count.

From their own documentation in November 2026. All but Anthropic speak OpenAI's API.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Known:
    """One service.

    Attributes:
        base_url: Where it is; None: it must be given.
        key_variables: Environment variables that may have the key, in this order. Empty: none
            is needed.
        price_source: Its id in the catalogue of prices; None: by its URL, or by the model alone.
        counting: How it counts against limits, a name in `limits.COUNTING`.
        key_header: The header for the key, where it is not a bearer token.
        body: Written into every body that does not say otherwise.
    """

    base_url: str | None
    key_variables: tuple[str, ...] = ()
    price_source: str | None = None
    counting: str = "default"
    key_header: str | None = None
    body: tuple[tuple[str, object], ...] = ()


# What may be added to a stream's body, by service, with where and when that was read. A service
# that is not here is asked with the field, and once more without it if it refuses that by name
# (400 or 422); from then on without. So is one that has changed its mind since.
STREAM_OPTIONS = {
    "openai": (True, "2026-11, api-reference/chat/streaming: usage in a last chunk"),
    "anthropic": (
        False,
        "2026-11, api/messages-streaming: told in message_start and message_delta",
    ),
    "azure": (None, "2026-11, API versions before 2024-09-01-preview refuse it"),
    "gemini": (True, "2026-11, gemini-api/docs/openai"),
    "google": (False, "2026-11, api/generate-content: usageMetadata in each chunk"),
    "openrouter": (True, "2026-11, use-cases/usage-accounting: a last chunk, with the cost"),
    "groq": (True, "2026-11, api-reference: stream_options.include_usage"),
    "mistral": (False, "2025-03, anon-kode#53: 422 extra_forbidden; told unasked with the end"),
    "together": (True, "2026-11, docs/chat-overview; told unasked, too"),
    "deepseek": (True, "2026-11, api/create-chat-completion: stream_options.include_usage"),
    "xai": (True, "2026-11, docs/guides/streaming-response; told unasked, too"),
    "vllm": (True, "2026-11, serving/openai_compatible_server"),
    "ollama": (True, "2026-11, docs/openai: stream_options.include_usage"),
}

KNOWN = {
    "openai": Known("https://api.openai.com/v1", ("OPENAI_API_KEY",), "openai", "openai"),
    "anthropic": Known(
        "https://api.anthropic.com", ("ANTHROPIC_API_KEY",), "anthropic", "anthropic"
    ),
    # Its own API; `gemini` is the same models in OpenAI's form.
    "google": Known(
        "https://generativelanguage.googleapis.com", ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "google"
    ),
    # https://RESOURCE.openai.azure.com/openai/v1
    "azure": Known(None, ("AZURE_OPENAI_API_KEY",), "azure", "azure", key_header="api-key"),
    "gemini": Known(
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "google",
    ),
    # It reports what a call cost, which is preferred to our own arithmetic.
    "openrouter": Known(
        "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",), "openrouter", "window",
        body=(("usage", {"include": True}),),
    ),
    "groq": Known("https://api.groq.com/openai/v1", ("GROQ_API_KEY",), "groq", "groq"),
    "mistral": Known("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), "mistral"),
    "together": Known("https://api.together.xyz/v1", ("TOGETHER_API_KEY",), "together"),
    "deepseek": Known("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",), "deepseek"),
    "xai": Known("https://api.x.ai/v1", ("XAI_API_KEY",), "x-ai"),
    "vllm": Known("http://127.0.0.1:8000/v1"),
    "ollama": Known("http://127.0.0.1:11434/v1"),
}  # fmt: skip

_BY_HOST = {
    urlsplit(known.base_url).hostname: kind for kind, known in KNOWN.items() if known.base_url
}
_LOCAL = ("127.0.0.1", "localhost", "::1")
_UNWELCOME = re.compile(
    r"extra_forbidden|extra inputs|not permitted|unrecognized|unknown|unsupported|not supported|"
    r"not allowed|unexpected|invalid|additional propert|only (?:be )?(?:set|allowed)|does not support",
    re.I,
)


def kind_at(host: str | None) -> str | None:
    """The service at a host, as `KNOWN` has it; None: none that is known by its address."""
    return None if host in _LOCAL else _BY_HOST.get(host)


def asks_usage_at(host: str | None, kind: str | None = None) -> bool | None:
    """Whether a service is asked for the usage of its streams; None: that is tried."""
    return STREAM_OPTIONS.get(kind or kind_at(host) or "", (None, ""))[0]


def refuses_field(status: int, words: str, field: str) -> bool:
    """Whether an error says that a field of the body is not one that it takes.

    >>> refuses_field(422, '{"type": "extra_forbidden", "loc": ["body", "n"]}', "n")
    True
    """
    return status in (400, 422) and field in words and _UNWELCOME.search(words) is not None
