"""Services that are known by name: where they are, where their key is, how they count.

From their own documentation in November 2026. All but Anthropic speak OpenAI's API.
"""

from __future__ import annotations

from dataclasses import dataclass


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


KNOWN = {
    "openai": Known("https://api.openai.com/v1", ("OPENAI_API_KEY",), "openai", "openai"),
    "anthropic": Known(
        "https://api.anthropic.com", ("ANTHROPIC_API_KEY",), "anthropic", "anthropic"
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
