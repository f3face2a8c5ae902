"""What costs nothing is passed on as it is: lists of models, and counts of tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic_core import from_json, to_json

from scheduler.adapters.dialects import Dialect
from scheduler.errors import CallFailed
from scheduler.providers.google import Google
from scheduler.providers.http import HttpProvider
from scheduler.server import forwarded
from scheduler.server.line import Line, wanted_at
from scheduler.server.refusals import JSON, Unserved, Whole, refused

if TYPE_CHECKING:
    from scheduler.providers.base import Provider
    from scheduler.server.gateway import Gateway

_SAFE = re.compile(r"/(v1|v1beta)/(models|messages)(/[\w\-:@][\w.\-:@]*)*", re.ASCII)


async def pass_on(
    gateway: Gateway, line: Line, dialect: Dialect, path: str, content: bytes
) -> None:
    """Ask the maker of an API what is free there.

    Raises:
        ConfigError: There is nobody to ask.
        Unserved: It is something else.
    """
    if not _SAFE.fullmatch(path):
        raise Unserved(404, "not_found", f"{path[:200]!r} is not served; nothing was sent")
    method = line.scope["method"]
    name, content = _chosen(gateway, line, dialect, content)
    provider = gateway.provider(name)
    if not isinstance(provider, HttpProvider):
        await line.answer(_listed(provider, method, path))
        return
    more = forwarded.headers(line.headers, provider.sets_headers)
    query = forwarded.query_of(line.scope["query_string"])
    try:
        url = _url(provider, dialect, path, query)
        status, headers, said = await provider.pass_on(url, content, more, method=method)
    except CallFailed as error:
        await line.answer(refused(error, dialect, gateway.scheduler.now_ms()))
        return
    await line.answer(Whole(status, forwarded.fields(headers), said))


def _url(provider: HttpProvider, dialect: Dialect, path: str, query: str) -> str:
    path = f"{path}?{query}" if query else path
    if dialect is Dialect.GOOGLE and not isinstance(provider, Google):
        return forwarded.root_of(provider.base_url) + quote(path, safe="/:?=&%")
    return provider.url_for(path, "")


def _chosen(gateway: Gateway, line: Line, dialect: Dialect, content: bytes) -> tuple[str, bytes]:
    """Who is asked, and what: with the model's name there."""
    try:
        body = from_json(content) if content else None
    except ValueError:
        body = None
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(model, str):
        return gateway.choose(dialect, "", line), content
    name, there = gateway.named(dialect, model, wanted_at(line))
    return name, content if there == model else to_json({**body, "model": there})


def _listed(provider: Provider, method: str, path: str) -> Whole:
    """The models of a provider in this process, or one of them."""
    if method == "POST":
        raise Unserved(404, "not_found", f"{provider.name} does not count tokens; nothing was sent")
    data = [{"id": name, "object": "model", "created": 0, "owned_by": provider.name}
            for name in provider.prices or ()]  # fmt: skip
    _, _, name = path.partition("/models/")
    if not name:
        return Whole(200, [JSON], to_json({"object": "list", "data": data}))
    for model in data:
        if model["id"] == name:
            return Whole(200, [JSON], to_json(model))
    raise Unserved(404, "model_not_found", f"there is no model {name[:200]!r} here")
