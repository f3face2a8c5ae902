"""Which provider answers for a model? By a prefix of its name, or by a table.

>>> router = Router(["openai", "anthropic", "groq"], {"claude-*": "anthropic", "fast": "groq:llama"})
>>> router.find("anthropic:claude-haiku-4-5"), router.find("fast"), router.find("claude-x")
(('anthropic', 'claude-haiku-4-5'), ('groq', 'llama'), ('anthropic', 'claude-x'))
>>> router.find("gpt-4o"), router.find("llama3:8b")  # no provider's name: the model's own
((None, 'gpt-4o'), (None, 'llama3:8b'))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from scheduler.errors import ConfigError
from scheduler.request import Request

UNMISTAKABLE = frozenset({
    "openai", "anthropic", "azure", "gemini", "openrouter", "groq", "together", "xai",
})  # fmt: skip
"""Prefixes that are nobody's model: one that is not configured was forgotten."""


class Router:
    """Finds the provider of a model.

    Args:
        providers: Their names.
        routes: From a model, or a pattern with ``*``, to a provider, or to
            ``"provider:model"`` to ask for another model there. An exact name comes before a
            pattern, the longest pattern before shorter ones.
        is_of: Whether what follows a provider's name is a model of that provider; else the
            whole is a name of somebody else's, such as ``mistral:latest`` at a local server.
            None: a provider's name is always one.

    Raises:
        ConfigError: A route leads to a provider that is not there.
    """

    def __init__(
        self,
        providers: Collection[str],
        routes: Mapping[str, str] | None = None,
        is_of: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._providers, self._routes = providers, dict(routes or {})
        self._is_of = is_of or (lambda provider, model: True)
        self._patterns = sorted(
            (each for each in self._routes if "*" in each), key=len, reverse=True
        )
        for pattern, target in self._routes.items():
            if target.partition(":")[0] not in providers:
                known = ", ".join(map(repr, providers))
                raise ConfigError(
                    f"route.{pattern}", f"leads to {target!r}, but the providers are: {known}"
                )

    def find(self, model: str) -> tuple[str | None, str]:
        """The provider for a model, None if nothing says, and the model to ask for there."""
        target = self._routes.get(model)
        if target is None:
            provider, colon, rest = model.partition(":")
            is_prefix = bool(colon and rest) and (
                provider in self._providers or provider in UNMISTAKABLE
            )
            if is_prefix and not self._is_of(provider, rest):
                is_prefix = False
            if is_prefix and provider in self._providers:
                return provider, rest
            if is_prefix or (colon and not rest and provider in UNMISTAKABLE):
                raise ConfigError(
                    "model", f"{model!r}: no provider is named {provider!r}; add [provider.{provider}] "
                    "to the configuration, or its key to the environment. Nothing was sent",
                )  # fmt: skip
            pattern = next((each for each in self._patterns if fnmatchcase(model, each)), None)
            if pattern is None:
                return None, model
            target = self._routes[pattern]
        provider, _, renamed = target.partition(":")
        return provider, renamed or model

    def led_by(self, provider: str, model: str) -> tuple[str, ...]:
        """Names of routes to one model of a provider; patterns are none."""
        return tuple(
            name for name, target in self._routes.items()
            if "*" not in name and target == f"{provider}:{model}"
        )  # fmt: skip

    def route(self, request: Request) -> Request:
        """The request for the provider that its model belongs to; as it is if it names one."""
        if request.provider is not None or not (self._routes or ":" in request.model):
            return request
        provider, model = self.find(request.model)
        if provider is None:
            return request
        body = request.body if model == request.model else request.body | {"model": model}
        return replace(request, provider=provider, body=body)
