"""The same questions, asked with each vendor's own SDK, in whatever version is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

TIMEOUT_S = 1.0  # of SDKs that are to be parked for longer; others are patient
PATIENT_S = 60.0
MODEL = "sim-small"


@dataclass(frozen=True)
class Kit:
    """One SDK.

    Attributes:
        package: As pip names it.
        client: From URL (without ``/v1``), whether it is sync, and its timeout, to a client.
        ask: From client, prompt and headers to an answer, or what to await for it.
        stream: Likewise to chunks.
        text: Of an answer.
        tokens: Of an answer: in and out.
        chunk_text: Of a chunk.
        error: What it raises for a refusal.
        status: Of such an error.
        models: Asks for something that is no call to a model.
    """

    package: str
    client: Callable[..., Any]
    ask: Callable[..., Any]
    stream: Callable[..., Any]
    text: Callable[[Any], str]
    tokens: Callable[[Any], tuple[int, int]]
    chunk_text: Callable[[Any], str]
    error: Callable[[], type[Exception]]
    status: Callable[[Any], int]
    models: Callable[[Any], Any]

    def __str__(self) -> str:
        return self.package

    @property
    def version(self) -> str:
        return version(self.package)


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def options(url: str, timeout_s: float) -> dict[str, Any]:
    return {"api_key": "sk-test-0123456789", "base_url": url, "timeout": timeout_s}


# OpenAI and its like


def chat(client: Any, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=said(prompt), max_tokens=30, extra_headers=headers, **more
    )


def chat_tokens(answer: Any) -> tuple[int, int]:
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


def openai_client(url: str, sync: bool, timeout_s: float = PATIENT_S) -> Any:
    import openai

    return (openai.OpenAI if sync else openai.AsyncOpenAI)(**options(f"{url}/v1", timeout_s))


def groq_client(url: str, sync: bool, timeout_s: float = PATIENT_S) -> Any:
    import groq

    return (groq.Groq if sync else groq.AsyncGroq)(**options(url, timeout_s))


OPENAI = Kit(
    "openai",
    openai_client,
    chat,
    lambda *args, **more: chat(*args, stream=True, **more),
    lambda answer: answer.choices[0].message.content,
    chat_tokens,
    lambda chunk: chunk.choices[0].delta.content or "",
    lambda: importlib.import_module("openai").APIStatusError,
    lambda error: error.status_code,
    lambda client: client.models.list(),
)
GROQ = Kit(
    "groq",
    groq_client,
    OPENAI.ask,
    OPENAI.stream,
    OPENAI.text,
    OPENAI.tokens,
    OPENAI.chunk_text,
    lambda: importlib.import_module("groq").APIStatusError,
    OPENAI.status,
    OPENAI.models,
)

# OpenAI's other API


def respond(client: Any, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return client.responses.create(
        model=MODEL, input=prompt, max_output_tokens=30, extra_headers=headers, **more
    )


RESPONSES = Kit(
    "openai",
    openai_client,
    respond,
    lambda *args, **more: respond(*args, stream=True, **more),
    lambda answer: answer.output_text,
    lambda answer: (answer.usage.input_tokens, answer.usage.output_tokens),
    lambda event: event.delta if event.type == "response.output_text.delta" else "",
    OPENAI.error,
    OPENAI.status,
    OPENAI.models,
)

# Anthropic


def anthropic_client(url: str, sync: bool, timeout_s: float = PATIENT_S) -> Any:
    import anthropic

    return (anthropic.Anthropic if sync else anthropic.AsyncAnthropic)(**options(url, timeout_s))


def message(client: Any, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return client.messages.create(
        model=MODEL, messages=said(prompt), max_tokens=30, extra_headers=headers, **more
    )


ANTHROPIC = Kit(
    "anthropic",
    anthropic_client,
    message,
    lambda *args, **more: message(*args, stream=True, **more),
    lambda answer: answer.content[0].text,
    lambda answer: (answer.usage.input_tokens, answer.usage.output_tokens),
    lambda event: getattr(getattr(event, "delta", None), "text", None) or "",
    lambda: importlib.import_module("anthropic").APIStatusError,
    OPENAI.status,
    OPENAI.models,
)

# Mistral: one client for both, with methods of its own for async


def mistral_client(url: str, sync: bool, timeout_s: float = PATIENT_S) -> Any:
    from mistralai.client import Mistral

    return Mistral(api_key="sk-test-0123456789", server_url=url, timeout_ms=int(timeout_s * 1000))


def mistral(name: str) -> Callable[..., Any]:
    def ask(client: Any, prompt: str, headers: dict[str, str] | None = None, sync: bool = False):
        method = getattr(client.chat, name if sync else f"{name}_async")
        return method(
            model=MODEL, messages=said(prompt), max_tokens=30, http_headers=headers,
        )  # fmt: skip

    return ask


def mistral_error() -> type[Exception]:
    return importlib.import_module("mistralai.client.errors").SDKError


MISTRAL = Kit(
    "mistralai",
    mistral_client,
    mistral("complete"),
    mistral("stream"),
    OPENAI.text,
    chat_tokens,
    lambda event: event.data.choices[0].delta.content or "",
    mistral_error,
    lambda error: error.status_code,
    lambda client: client.models.list_async(),
)

# Google: one client for both, with a part of its own for async


def google_client(url: str, sync: bool, timeout_s: float = PATIENT_S) -> Any:
    from google import genai

    return genai.Client(
        api_key="sk-test-0123456789",
        http_options={"base_url": url, "timeout": int(timeout_s * 1000)},
    )


def google(name: str) -> Callable[..., Any]:
    def ask(client: Any, prompt: str, headers: dict[str, str] | None = None, sync: bool = False):
        models = client.models if sync else client.aio.models
        config: dict[str, Any] = {"max_output_tokens": 30}
        if headers:
            config["http_options"] = {"headers": headers}
        return getattr(models, name)(model=MODEL, contents=prompt, config=config)

    return ask


GOOGLE = Kit(
    "google-genai",
    google_client,
    google("generate_content"),
    google("generate_content_stream"),
    lambda answer: answer.text,
    lambda answer: (
        answer.usage_metadata.prompt_token_count, answer.usage_metadata.candidates_token_count
    ),
    lambda chunk: chunk.text or "",
    lambda: importlib.import_module("google.genai.errors").APIError,
    lambda error: error.code,
    lambda client: client.aio.models.list(),
)  # fmt: skip

KITS = (OPENAI, RESPONSES, ANTHROPIC, GROQ, MISTRAL, GOOGLE)
NAMES = ("openai", "openai responses", "anthropic", "groq", "mistralai", "google-genai")
TWO_IN_ONE = (MISTRAL, GOOGLE)  # one client for both ways


def ask_sync(kit: Kit, client: Any, prompt: str, headers: dict[str, str] | None = None) -> Any:
    more = {"sync": True} if kit in TWO_IN_ONE else {}
    return kit.ask(client, prompt, headers, **more)


def stream_sync(kit: Kit, client: Any, prompt: str) -> Any:
    more = {"sync": True} if kit in TWO_IN_ONE else {}
    return kit.stream(client, prompt, **more)


def inner_clients(client: Any) -> list[Any]:
    """The HTTP clients in an SDK's client."""
    holders = (
        (client, "_client"),
        (getattr(client, "sdk_configuration", None), "client"),
        (getattr(client, "sdk_configuration", None), "async_client"),
        (getattr(client, "_api_client", None), "_httpx_client"),
        (getattr(client, "_api_client", None), "_async_httpx_client"),
    )
    return [getattr(holder, name) for holder, name in holders if hasattr(holder, name)]


async def close(client: Any) -> None:
    """Let go of its connections."""
    if hasattr(client, "_api_client"):
        await client.aio.aclose()  # aiohttp's sessions, too
    for inner in inner_clients(client):
        if hasattr(inner, "aclose"):
            await inner.aclose()
        else:
            inner.close()


# What has to be installed, so that nothing is skipped unnoticed
NEWEST = {"openai": "3", "anthropic": "2", "mistralai": "3", "google-genai": "3", "groq": "1"}
PREVIOUS = {"openai": "2", "anthropic": "0", "mistralai": "2", "google-genai": "2", "groq": "1"}
IS_NEWEST = version("openai").startswith("3.")
EXPECTED = NEWEST if IS_NEWEST else PREVIOUS
FAMILY = "httpx2" if IS_NEWEST else "httpx"
