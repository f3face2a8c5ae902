"""What makes a call dearer than the price of the model asked: where it runs, who else answers; pure.

    Anthropic   inference_geo "us"      + 10 %   platform.claude.com, manage-claude/data-residency: Opus 4.6,
                                                 Sonnet 4.6 and later; told in usage.inference_geo
    OpenAI      eu., us., … .api.openai.com
                                        + 10 %   developers.openai.com, guides/data-residency: models
                                                 released on or after 5 March 2026
    xAI         us.api.x.ai             + 10 %   docs.x.ai, advanced-api-usage/regions
    Together    us-api., ca-api.        + 25 %   docs.together.ai, serverless/geo-specific-inference
    Vertex      a region's host         + 10 %   docs.claude.com, claude-on-vertex-ai: Sonnet 4.5 and
                                                 later; taken for newer models of others, too
    Bedrock     by the model's id                in the catalogue, both ways

    OpenRouter  models, fallbacks                openrouter.ai/docs, guides/routing/model-fallbacks: at
                                                 the price of the model that answered, told in `model`
                preset                           guides/features/presets: may name models of its own
    Anthropic   fallbacks                        build-with-claude/refusals-and-fallback: each attempt
                                                 at its own model's price, told in usage.iterations
    Anthropic, OpenAI  context_management        build-with-claude/compaction: a pass of its own over
                                                 the context, told in usage.iterations

All read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from scheduler.prices.counting import bare_name, listed
from scheduler.request import Quote

RAISING = frozenset({
    "context_management", "inference_geo", "models", "fallbacks", "route", "provider", "preset",
})  # fmt: skip
"""Fields of a body that may make the call dearer than its model's price."""

_EVERYWHERE = (None, "", "global", "not_available")
_GEO_PERCENT = {"us": 10}
_DEAREST_GEO = max(_GEO_PERCENT.values())
_MOST_SHOWN = 60  # characters of a name from a body


@dataclass(frozen=True, slots=True)
class Region:
    """A service's hosts that keep a call within one region.

    Attributes:
        price_source: The catalogue's id of the service.
        percent: What it costs more there.
        exempt: Matches the models that cost the same everywhere.
    """

    price_source: str
    percent: int
    exempt: re.Pattern[str] | None = None

    def percent_of(self, model: str) -> int:
        """What a model costs more there, in percent."""
        is_exempt = self.exempt is not None and self.exempt.match(bare_name(model))
        return 0 if is_exempt else self.percent


_REGIONS = (
    (
        re.compile(r"[a-z0-9-]+\.api\.openai\.com"),
        Region("openai", 10, re.compile(
            r"gpt-3|gpt-4|chatgpt-4|o[134](?:-|$)|gpt-5(?:-|$|\.[1-3](?:-|$))|text-embedding-"
        )),
    ),
    (re.compile(r"[a-z]{2}\.api\.x\.ai"), Region("x-ai", 10)),
    (re.compile(r"[a-z]{2}-api\.together\.(?:ai|xyz)"), Region("together", 25)),
    (
        re.compile(r"(?:[a-z0-9-]+-aiplatform|aiplatform\.[a-z0-9-]+\.rep)\.googleapis\.com"),
        Region("google", 10, re.compile(
            r"gemini-[12]|claude-3|claude-(?:opus|sonnet)-4(?:@|-2025|$)|claude-opus-4-1|"
            r"claude-4-(?:opus|sonnet)"
        )),
    ),
)  # fmt: skip


def region_of(url: str | None) -> Region | None:
    """The region that an address keeps its calls in; None: none that costs more.

    >>> region_of("https://eu.api.openai.com/v1").percent_of("gpt-6-sol")
    10
    >>> region_of("https://api.openai.com/v1") is None
    True
    """
    host = (urlsplit(url).hostname or "") if url and "://" in url else ""
    return next((region for pattern, region in _REGIONS if pattern.fullmatch(host)), None)


def geo_percent(geo: object) -> int:
    """What it costs more to be answered in a geography, in percent; of one not known the most."""
    if not isinstance(geo, str):
        return 0 if geo is None else _DEAREST_GEO
    geo = geo.lower()
    return 0 if geo in _EVERYWHERE else _GEO_PERCENT.get(geo, _DEAREST_GEO)


def is_elsewhere(usage: Mapping[str, Any]) -> bool:
    """Whether usage says that it ran where it is dearer, or of what it is the sum."""
    return bool(usage.get("iterations")) or usage.get("inference_geo") not in _EVERYWHERE


class Others(NamedTuple):
    """Which models a body lets answer in place of the one asked.

    Attributes:
        names: Of the models.
        is_each_billed: Each that was tried may be billed, and not only who answered.
        why_unbound: Why these may not be all; empty: they are.
    """

    names: tuple[str, ...] = ()
    is_each_billed: bool = False
    why_unbound: str = ""


_NO_OTHERS = Others()


def others_of(body: Mapping[str, Any]) -> Others:
    """Which models a body lets answer in place of the one asked."""
    if RAISING.isdisjoint(body):
        return _NO_OTHERS
    names: dict[str, None] = {}
    why = ""
    for field in ("models", "fallbacks"):
        value = body.get(field)
        for each in () if value is None else listed(value):
            name = each.get("model") if isinstance(each, Mapping) else each
            if isinstance(name, str) and name:
                names[name] = None
            else:
                why = f"{field} names models in a way that is not known"
    names.pop(str(body.get("model")), None)
    if body.get("route") is not None and not names:
        why = why or "route lets models answer that it does not name"
    if body.get("preset"):
        why = why or "a preset may name other models, which this body does not"
    if body.get("provider"):
        why = why or "provider chooses among those who serve the model, at different prices"
    return Others(tuple(names), bool(body.get("fallbacks")), why)


def raised(body: Mapping[str, Any], quote: Quote) -> Quote:
    """A quote with what fields of the body may add to it: see `RAISING`."""
    geo = body.get("inference_geo")
    percent = geo_percent(geo)
    if percent:
        quote = dearer(quote, percent)
        if not isinstance(geo, str) or geo.lower() not in _GEO_PERCENT:
            quote = unbound(quote, f"no price is known for inference_geo {_shown(geo)}")
    if _compacts(body.get("context_management")):
        quote = unbound(
            replace(
                quote,
                ceiling_nusd=2 * quote.ceiling_nusd,
                ceiling_tokens=2 * quote.ceiling_tokens,
            ),
            "compaction is a pass of its own over the context, and billed",
        )
    return quote


def _compacts(management: Any) -> bool:
    """Whether a body has its context edited by a model, and not only shortened."""
    edits = management.get("edits") if isinstance(management, Mapping) else management
    return any(
        not str(edit.get("type") if isinstance(edit, Mapping) else edit).startswith("clear_")
        for edit in (() if not edits else listed(edits))
    )


def dearer(quote: Quote, percent: int) -> Quote:
    """The same for so many percent more."""
    if not percent:
        return quote
    amounts = (quote.ceiling_nusd, quote.expected_nusd, quote.least_nusd)
    ceiling, expected, least = (-(-each * (100 + percent) // 100) for each in amounts)
    return replace(quote, ceiling_nusd=ceiling, expected_nusd=expected, least_nusd=least)


def unbound(quote: Quote, why: str) -> Quote:
    """The same as no bound; the first reason is kept."""
    return replace(quote, is_bound=False, why_unbound=quote.why_unbound or why)


def together(quotes: list[Quote], others: Others, unpriced: str) -> Quote:
    """One quote for several models of which any may answer; the first is the one asked.

    Args:
        quotes: Of those that have a price.
        others: Who may answer.
        unpriced: One that has none; empty: all have one.
    """
    add = sum if others.is_each_billed else max
    found = replace(
        quotes[0],
        ceiling_nusd=add(each.ceiling_nusd for each in quotes),
        ceiling_tokens=add(each.ceiling_tokens for each in quotes),
        least_nusd=min(each.least_nusd for each in quotes),
    )
    why = next((each.why_unbound for each in quotes if not each.is_bound), "")
    if unpriced:
        why = why or f"no price is known for {_shown(unpriced)}, which may answer, too"
    why = why or others.why_unbound
    return unbound(found, why) if why else found


def _shown(value: object) -> str:
    return repr(str(value)[:_MOST_SHOWN])


# Variants of a model, which gateways name by what stands behind its name


class Variant(NamedTuple):
    """A model's name without what a gateway puts behind it.

    Attributes:
        is_bounded: It costs no more per token than the model itself.
    """

    model: str
    is_bounded: bool


# OpenRouter's (openrouter.ai/docs, guides/routing/model-variants, November 2026). The cheapest who
# serves a model costs no more than what is listed for it, nor does who serves it for nothing; others
# choose among all who serve it by speed or quality, or think longer or have more context, at prices
# that are listed under the whole name or nowhere.
_VARIANTS = {
    ":floor": True, ":free": True, ":online": True,
    ":nitro": False, ":exacto": False, ":extended": False, ":thinking": False,
}  # fmt: skip


@lru_cache(1024)
def variant_of(model: str) -> Variant | None:
    """The model that a gateway's variant is one of; None: it is none.

    >>> variant_of("openai/gpt-oss-20b:free:online")
    Variant(model='openai/gpt-oss-20b', is_bounded=True)
    >>> variant_of("mistral:latest") is None
    True
    """
    base, is_bounded, is_one = model, True, False
    while (ending := next((e for e in _VARIANTS if base.lower().endswith(e)), None)) is not None:
        base, is_one = base[: -len(ending)], True
        is_bounded = is_bounded and _VARIANTS[ending]
    return Variant(base, is_bounded) if is_one and base else None
