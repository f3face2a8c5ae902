"""What the arguments of a function tell: which model, what it may cost, under which name.

>>> request = read_arguments(print, partial(print, model="m", prompt="Hi", api_key="secret"))
>>> request.url, sorted(request.body), request.provider
('/v1/completions', ['model', 'prompt'], 'builtins/m')
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from scheduler.adapters.shadow import Budgeted
from scheduler.errors import ConfigError, ProviderRefused
from scheduler.guards.hooks import bare
from scheduler.request import CHAT, COMPLETIONS, EMBEDDINGS, GENERATE, RESPONSES, Request

_PROMPTS = ("messages", "prompt", "contents", "input")
# Arguments that tell what a call may cost. No others are kept: there may be keys among them.
TELLING = (
    "model", *_PROMPTS, "system", "instructions", "suffix", "tools", "functions", "tool_choice",
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "response_format",
    "reasoning_effort", "service_tier", "stream", "modalities", "audio", "prediction",
    "web_search_options", "max_tool_calls", "dimensions", "num_completions", "thinking",
    "thinking_budget", "speed", "inference_geo", "models", "route", "preset", "plugins",
    "context_management",
)  # fmt: skip
# Told in a body only: as arguments libraries give these names a meaning of their own.
_IN_BODIES = (*TELLING, "fallbacks", "provider")
_GOOGLE_CONFIG = (
    "maxOutputTokens", "candidateCount", "systemInstruction", "tools", "responseModalities",
)  # fmt: skip
_TOLD = frozenset({*TELLING, "extra_body", "config"})
_PLAIN = (str, int, float, bool, type(None))
_WITHOUT_RETRIES = {"num_retries": 0, "max_retries": 0}


class Arguments(partial[Any]):
    """A call with its arguments, which it does not show: there may be keys among them."""

    def __repr__(self) -> str:
        return f"<call of {name_of(self.func)}>"


def read_arguments(function: Callable[..., Any], call: partial[Any]) -> Request:
    """The request that a call of a function amounts to.

    Raises:
        ConfigError: Its arguments name no model, or no prompt.
    """
    said = {name: value for name, value in _by_name(call).items() if name in _TOLD}
    body = {name: _plain(said[name]) for name in TELLING if said.get(name) is not None}
    model, name = body.get("model"), name_of(function)
    if not isinstance(model, str) or not model or not any(each in body for each in _PROMPTS):
        lacks = "model=…" if not model else f"any of {', '.join(_PROMPTS)}"
        raise ConfigError(
            "call",
            f"{name} was called without {lacks}, so nobody knows what it may cost; it was not "
            "called. Name it, or use s.budgeted(quote=…)",
        )
    extra = said.get("extra_body")
    if isinstance(extra, Mapping):
        body |= {each: _plain(extra[each]) for each in _IN_BODIES if each in extra}
    if "contents" in body:
        body |= _google_config(said.get("config"))
    package = name.partition(".")[0]
    return Request(body, url=_url_of(name, body), provider=f"{package}/{model}")


def _google_config(config: Any) -> dict[str, Any]:
    """What Google's ``config`` says of the cost, as its API has it."""
    said = _plain(as_json(config))
    if not isinstance(said, dict):
        return {}
    found = {name: said.get(_snake(name), said.get(name)) for name in _GOOGLE_CONFIG}
    outer = {name: found.pop(name) for name in ("systemInstruction", "tools")}
    outer["generationConfig"] = found
    return {name: value for name, value in outer.items() if value is not None}


def _snake(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name)


def with_arguments(call: partial[Any], changed: Mapping[str, Any]) -> Arguments:
    """A call with other arguments, wherever these stand.

    Raises:
        ProviderRefused: The function does not take them.
    """
    found = _with_arguments(call, changed)
    if found is None:
        names = ", ".join(changed)
        raise ProviderRefused(
            400, f"{name_of(call.func)} does not take {names}; it was not called", "no_argument"
        )
    return found


def _with_arguments(call: partial[Any], changed: Mapping[str, Any]) -> Arguments | None:
    try:
        signature = inspect.signature(call.func)
        bound = signature.bind_partial(*call.args, **call.keywords)
        stands = {name: value for name, value in changed.items() if name in bound.arguments}
        bound.arguments.update(stands)
        more = {name: value for name, value in changed.items() if name not in stands}
        signature.bind_partial(*bound.args, **bound.kwargs | more)
    except (TypeError, ValueError):
        return None
    return Arguments(call.func, *bound.args, **bound.kwargs | more)


def _by_name(call: partial[Any]) -> dict[str, Any]:
    """All arguments by their names, as far as the function tells them."""
    try:
        bound = inspect.signature(call.func).bind_partial(*call.args, **call.keywords)
    except (TypeError, ValueError):
        return call.keywords
    return {**bound.arguments, **call.keywords}


def _url_of(name: str, body: Mapping[str, Any]) -> str:
    if "messages" in body:
        return CHAT
    if "prompt" in body:
        return COMPLETIONS
    if "contents" in body:
        return GENERATE
    return EMBEDDINGS if "embed" in name.lower() else RESPONSES


def _plain(value: Any) -> Any:
    """An argument as JSON has it; what has no form there as text, for its length."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    dumped = as_json(value)
    return str(value) if dumped is value else _plain(dumped)


def name_of(function: Callable[..., Any]) -> str:
    """Its module and name, whatever it is wrapped in."""
    function = bare(function)
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{name}"


def once(function: Callable[..., Any], call: partial[Any]) -> partial[Any]:
    """The call without retries of its own, of which nobody would hear here.

    Raises:
        ConfigError: It is a method of an SDK's client that tries again by itself.
    """
    if name_of(function).startswith("litellm."):
        return Arguments(call.func, *call.args, **_WITHOUT_RETRIES | call.keywords)
    client = getattr(getattr(bare(function), "__self__", None), "_client", None)
    retries = getattr(client, "max_retries", 0)
    is_wrapped = isinstance(getattr(client, "_client", None), Budgeted)  # tries once by itself
    if isinstance(retries, int) and retries and not is_wrapped:
        raise ConfigError(
            "call",
            f"the client of {name_of(function)} tries again up to {retries} times by itself, which "
            "nobody would count; nothing was sent. Use s.wrap(client), or give it max_retries=0",
        )
    return call


def member(thing: Any, name: str) -> Any:
    """A member of an object, or of a mapping; None: it has none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def as_json(thing: Any) -> Any:
    """A pydantic model as the mapping it stands for; all else as it is."""
    dump = getattr(thing, "model_dump", None)
    return dump(exclude_none=True) if callable(dump) else thing


def require_async(function: Callable[..., Any]) -> None:
    """Raise `ConfigError` for a function that would block the event loop."""
    function = bare(function)
    if inspect.isfunction(function) and not inspect.iscoroutinefunction(function):
        raise ConfigError(
            "call",
            f"{name_of(function)} is not async and would block everything; give its async "
            "counterpart, or use scheduler.open() and call it there",
        )
