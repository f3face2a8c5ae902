"""A router's alias, such as ``"fast"``: which models it may reach, and what they cost at most.

LiteLLM's Router keeps a list of deployments under names of its caller's choosing, and falls back
from one name to others. Nobody knows which will answer, so the dearest is put aside for.

>>> class Router:
...     model_list = [{"model_name": "fast", "litellm_params": {"model": "groq/llama"}}]
...     fallbacks = [{"fast": ["big"]}]
...     def completion(self, model): ...
>>> reach(Router().completion, "fast")
(Deployment(model='groq/llama', price=None),)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from scheduler.adapters.arguments import member
from scheduler.answer import Answer
from scheduler.errors import PriceUnknown
from scheduler.prices.book import PriceBook
from scheduler.prices.tariff import Tariff
from scheduler.request import Quote, Request

MOST_NAMES = 1_000  # that are followed from one alias
MOST_SHOWN_CHARS = 80
_COSTS = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


class Deployment(NamedTuple):
    """One model that an alias may reach.

    Attributes:
        price: What the router's list says it costs, as `PriceBook` takes it; None: nothing.
    """

    model: str
    price: str | None = None


def reach(
    function: Callable[..., Any], model: str, fallbacks: object = None
) -> tuple[Deployment, ...]:
    """The deployments that a call of a router's method may reach; none: it is no router's.

    Args:
        function: What is called.
        model: The alias.
        fallbacks: Those of this call alone.
    """
    router = _owner(function)
    listed, aliases, settings = _lists(router)
    if not listed:
        return ()
    found: dict[Deployment, None] = {}
    names, seen = [model], set[str]()
    while names and len(seen) < MOST_NAMES:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        alias = aliases.get(name)
        alias = alias.get("model") if isinstance(alias, Mapping) else alias
        if isinstance(alias, str):
            names.append(alias)
        for each in _of_name(listed, name):
            found[each] = None
        for each_list in (*(member(settings, one) for one in _FALLBACKS), fallbacks):
            names += _next(each_list, name)
    return tuple(found)


def named_with(model: str, keywords: Mapping[str, Any]) -> tuple[Deployment, ...]:
    """The models that a call may ask by its own arguments, as LiteLLM's functions take them; none:
    only the one it names.

    >>> [each.model for each in named_with("small", {"fallbacks": ["big", {"model": "huge"}]})]
    ['small', 'big', 'huge']
    """  # noqa: D205
    longer = keywords.get("context_window_fallback_dict")
    after = longer.get(model) if isinstance(longer, Mapping) else None
    names = [*_next(keywords.get("fallbacks"), model), *([after] if isinstance(after, str) else [])]
    return tuple([Deployment(each) for each in dict.fromkeys((model, *names))]) if names else ()


def _owner(function: Callable[..., Any]) -> Any:
    """The object whose method it is, whatever it is wrapped in."""
    inner: Any = function
    while inner is not None:
        owner = getattr(inner, "__self__", None)
        if owner is not None:
            return owner
        inner = inner.func if isinstance(inner, partial) else getattr(inner, "__wrapped__", None)
    return None


def _lists(router: Any) -> tuple[list[Any], Mapping[str, Any], Any]:
    """Deployments, aliases, and what has the fallbacks, in LiteLLM's newer form or its older."""
    try:
        if callable(getattr(router, "registry", None)):
            registry, settings = router.registry(), router.settings()
            listed, aliases = registry.all(), registry.aliases()
        else:
            listed, settings = getattr(router, "model_list", None), router
            aliases = getattr(router, "model_group_alias", None)
        kept = [each for each in listed or () if member(each, "model_name")]
    except Exception:  # somebody's own object, with other ideas of these names
        return [], {}, None
    return kept, aliases if isinstance(aliases, Mapping) else {}, settings


def _of_name(listed: Iterable[Any], name: str) -> Iterable[Deployment]:
    """Deployments of a name; those of patterns only where none has it exactly."""
    exact = [each for each in listed if member(each, "model_name") == name]
    fits = exact or [each for each in listed if _is_pattern_of(member(each, "model_name"), name)]
    for each in fits:
        params, info = member(each, "litellm_params"), member(each, "model_info")
        asked = member(params, "model")
        if not isinstance(asked, str):
            continue
        if "*" in asked:  # stands for what the pattern's star stands for
            pattern = str(member(each, "model_name"))
            asked = asked.replace("*", name[len(pattern.partition("*")[0]) :])
        base = member(info, "base_model") or member(params, "base_model")
        yield Deployment(base if isinstance(base, str) else asked, _price(params, info))


def _is_pattern_of(pattern: object, name: str) -> bool:
    return isinstance(pattern, str) and "*" in pattern and fnmatchcase(name, pattern)


def _price(params: Any, info: Any) -> str | None:
    """What the list itself says a deployment costs."""
    found = []
    for name in _COSTS:
        told = member(params, name)
        told = member(info, name) if told is None else told
        try:
            found.append(None if told is None else Decimal(str(told)) * 1_000_000)
        except InvalidOperation:
            found.append(None)
    into, out, cached = found
    if into is None or out is None:
        return None
    return "/".join(f"{each:f}" for each in (into, out, cached) if each is not None)


def _next(fallbacks: object, name: str) -> Iterable[str]:
    """Names that are tried after one; an entry is such a name, or names by what they follow."""
    for entry in fallbacks if isinstance(fallbacks, list | tuple) else ():
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, Mapping):
            if isinstance(entry.get("model"), str):  # with other parameters
                yield entry["model"]
            for key in (name, "*"):
                yield from _next(entry.get(key), name)


def place_of(name: str, reached: tuple[Deployment, ...]) -> str:
    """A provider's name for an alias: two routers may use the same one for other models."""
    whole = ", ".join(f"{each.model}@{each.price}" if each.price else each.model
                      for each in reached)  # fmt: skip
    if len(whole) > MOST_SHOWN_CHARS:
        whole = f"{whole[:MOST_SHOWN_CHARS]}… {sha256(whole.encode()).hexdigest()[:8]}"
    return f"{name} ({whole})"


class ByReach:
    """Prices calls of an alias as the dearest that it may reach.

    Args:
        book: The user's prices, and the catalogue's.
        by_model: Prices calls by the model they name.
        reached: What `reach` found.
    """

    def __init__(self, book: PriceBook, by_model: Tariff, reached: tuple[Deployment, ...]) -> None:
        self._book, self._by_model, self._reached = book, by_model, reached

    def quote(self, request: Request) -> Quote:
        """Most and likely cost of one attempt, whoever answers."""
        quotes = []
        for tariff, read in self._readings(request):
            try:
                quotes.append(tariff.quote(read))
            except PriceUnknown as unknown:
                hint = f"{request.model!r} may reach it, by its router or its fallbacks"
                hint += f"; {unknown.hint}" if unknown.hint else ""
                raise PriceUnknown(unknown.model, unknown.provider, hint) from None
        dearest = max(quotes, key=lambda each: each.ceiling_nusd)
        return replace(
            dearest,
            expected_nusd=max(each.expected_nusd for each in quotes),
            ceiling_tokens=max(each.ceiling_tokens for each in quotes),
            least_nusd=min(each.least_nusd for each in quotes),
            is_bound=all(each.is_bound for each in quotes),
            why_unbound=next((each.why_unbound for each in quotes if not each.is_bound), ""),
        )

    def cost_nusd(self, request: Request, answer: Answer) -> int | None:
        """What the answer cost: as reported, else at the dearest that may have given it."""
        costs = [tariff.cost_nusd(read, answer) for tariff, read in self._readings(request)]
        return max([each for each in costs if each is not None], default=None)

    def _readings(self, request: Request) -> Iterable[tuple[Tariff, Request]]:
        for model, price in self._reached:
            named = replace(request, body={**request.body, "model": model})
            brought = None if price is None else self._book.tariff(None, {"*": price})
            yield brought or self._by_model, named
