"""How many searches of the web are billed for a call, and at what price; pure."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from scheduler.prices.billing import YOCTO_PER_NANO, YOCTO_PER_USD, Asked, Rates
from scheduler.prices.counting import bare_name
from scheduler.prices.lenient import count_of
from scheduler.prices.outputs import REASONING
from scheduler.request import CHAT, Request, Usage

_MANY = 10**6  # searches: as many as there are
_ALWAYS_SEARCH = ("search-preview", "search-api", ":online")  # for every call, without saying so
# OpenAI's pages on pricing (November 2026): a search of the preview tool, by a model that does
# not reason, costs $25 a thousand; the catalogue has the newer tool's price.
_PREVIEW_SEARCH = YOCTO_PER_USD * 25 // 1000
# OpenRouter's announcement of January 2025, its newest word that was found: $4 for a thousand
# results, five of them where nobody says how many, before every call of an ":online" model or with the plugin.
_GATEWAYS_RESULT, _USUAL_RESULTS = YOCTO_PER_USD * 4 // 1000, 5
_FOR_A_PROMPT = ("gemini-1", "gemini-2")  # billed for searching at all, newer ones by the query

_Counted = TypeVar("_Counted", Usage, Asked)


@lru_cache(1024)
def _billed_searches(model: str) -> tuple[int, int]:
    """The fewest and the most searches that are billed for a call of a model."""
    name = bare_name(model)
    least = any(word in name for word in _ALWAYS_SEARCH)
    return int(least), 1 if name.startswith(_FOR_A_PROMPT) else _MANY


def as_billed(request: Request, counted: _Counted) -> _Counted:
    """The same with as many searches as are billed."""
    least, most = _billed_searches(request.model)
    searches = counted.web_searches
    if "plugins" in request.body and _searches_first(request.body["plugins"]):
        least = 1
    elif least and request.url != CHAT and ":online" not in request.model:
        least = 0
    billed = min(max(least, searches), most)
    if billed == searches:
        return counted
    if isinstance(counted, Usage):
        return replace(counted, web_searches=billed)
    return counted._replace(web_searches=billed)


def _searches_first(plugins: Any) -> bool:
    """Whether a gateway's plugin searches the web before the model is asked, each time."""
    return isinstance(plugins, list) and any(
        isinstance(each, dict) and each.get("id") == "web" and each.get("enabled") is not False
        for each in plugins
    )


def dear_searches_nusd(request: Request, candidates: tuple[Rates, ...], searches: int) -> int:
    """What searches cost beyond their listed price, in nano-dollars."""
    price = max(_preview_price(request), _gateways_price(request))
    more = max(0, price - min(each.web_search for each in candidates)) if price else 0
    return -(-more * searches // YOCTO_PER_NANO)


def _preview_price(request: Request) -> int:
    name = bare_name(request.model)
    tools = request.body.get("tools")
    is_preview = "search-preview" in name or any(
        isinstance(tool, dict) and str(tool.get("type")).startswith("web_search_preview")
        for tool in (tools if isinstance(tools, list) else ())
    )
    is_dear = is_preview and "gpt" in name and not name.startswith(REASONING)
    return _PREVIEW_SEARCH if is_dear else 0


def _gateways_price(request: Request) -> int:
    plugins = request.body.get("plugins")
    if not (":online" in request.model or _searches_first(plugins)):
        return 0
    asked = [
        count_of(each.get("max_results")) or 0
        for each in (plugins if isinstance(plugins, list) else ()) if isinstance(each, dict)
    ]  # fmt: skip
    return _GATEWAYS_RESULT * min(max([_USUAL_RESULTS, *asked]), _MANY)
