"""Upper bounds on tokens, without a tokenizer.

Byte-level vocabularies (all of OpenAI's since GPT-2, Llama's, Mistral's, Qwen's)
have a token for every byte and merge from there, so

    tokens ≤ bytes of the UTF-8 text

holds for any text. Ordinary English has a quarter of that; only random or control
characters come near. Vocabularies that normalise the text first (Claude's, Gemini's)
can make it longer, so for these the longer of the text and its NFKC form is counted.
What the provider adds around messages and tools is not published; the margins here
are several times what has been observed.

Not bounded, and said so: images of models other than those named here, audio, files,
stored conversations and caches, tools that the provider runs itself, and models that
search or choose another model on their own. For these there is an estimate, `media`
has how.

>>> bound_input_tokens("/v1/embeddings", {"model": "m", "input": "grüezi"})
TokenBound(tokens=39, is_bound=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scheduler.errors import ConfigError
from scheduler.prices.counting import (
    LOW_DETAIL_IMAGE,
    OTHER_IMAGE,
    PER_CONVERSATION,
    PER_MESSAGE,
    PER_REQUEST,
    PER_TOOL,
    PER_TOOLS,
    TILED_IMAGE,
    USUAL_TOOL_CALLS,
    Counter,
    Input,
    bare_name,
    traits_of,
)
from scheduler.prices.counting_google import GoogleCounter
from scheduler.prices.media import LEAST_SOUND, MEDIA_BYTES_PER_TOKEN, TOKENS_A_PAGE
from scheduler.request import (
    CHAT,
    COMPLETIONS,
    EMBED_CONTENT,
    EMBEDDINGS,
    GEMINI,
    MODERATIONS,
    RESPONSES,
)

__all__ = [
    "LEAST_SOUND", "LOW_DETAIL_IMAGE", "MEDIA_BYTES_PER_TOKEN", "OTHER_IMAGE", "PER_CONVERSATION",
    "PER_MESSAGE", "PER_REQUEST", "PER_TOOL", "PER_TOOLS", "TILED_IMAGE", "TOKENS_A_PAGE", "Input",
    "TokenBound", "bare_name", "bound_input_tokens", "count_input",
]  # fmt: skip

_NOT_SENT = frozenset({
    "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p",
    "n", "seed", "stream", "service_tier", "store", "metadata", "user",
})  # fmt: skip
# Fields that add what the body does not show: stored turns, searches, other models, output
# beside the answer (rejected predictions are billed as output).
_UNBOUNDED = frozenset({
    "conversation", "previous_response_id", "prompt", "web_search_options", "search_parameters",
    "audio", "prediction", "plugins", "mcp_servers", "container",
})  # fmt: skip


class TokenBound(NamedTuple):
    """Most tokens something can be; a mere estimate if not `is_bound`."""

    tokens: int
    is_bound: bool = True


def bound_input_tokens(url: str, body: Mapping[str, Any]) -> TokenBound:
    """Most tokens the input of a request can be.

    Raises:
        ConfigError: The body has no form in JSON: nested too deep, or within itself.
    """
    found = count_input(url, body)
    return TokenBound(found.tokens, not found.why_unbound)


def count_input(url: str, body: Mapping[str, Any]) -> Input:
    """What goes in with a request, at most. Raises as `bound_input_tokens`."""
    try:
        return _count_input(url, body)
    except (RecursionError, ValueError, TypeError) as exc:
        raise ConfigError("request", f"has no form in JSON: {exc}; nothing was sent") from None


def _count_input(url: str, body: Mapping[str, Any]) -> Input:
    model = body.get("model")
    traits = traits_of(model if isinstance(model, str) else "")
    if url in GEMINI:
        google = GoogleCounter(traits._replace(normalises=True))
        fixed = PER_REQUEST if url == EMBED_CONTENT else PER_CONVERSATION
        google.google(body)
        return google.sum(fixed)
    counter = Counter(traits)
    if url in (EMBEDDINGS, MODERATIONS, COMPLETIONS):
        counter.plain(body.get("prompt" if url == COMPLETIONS else "input"))
        counter.json(body.get("suffix"))
        return counter.sum(PER_REQUEST)
    if traits.acts and (url == CHAT or traits.is_online):
        counter.asks(web_searches=1)
    turns = "input" if url == RESPONSES else "messages"
    counter.conversation(body.get(turns))
    for name, value in body.items():
        if name == turns or name in _NOT_SENT or value is None:
            continue
        if name in ("tools", "functions"):
            counter.tools(value, body.get("max_tool_calls"))
            continue
        counter.json(value)
        if name in _UNBOUNDED:
            counter.unbind(f"{name} adds what the request does not show")
        if name == "web_search_options":
            counter.asks(web_searches=1)
        if name == "plugins" or name == "search_parameters":
            counter.asks(web_searches=USUAL_TOOL_CALLS)
        if name in ("modalities", "audio"):
            counter.makes(value if name == "modalities" else "audio")
    return counter.sum(PER_CONVERSATION)
