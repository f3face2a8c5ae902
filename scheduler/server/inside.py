"""Calls that go to a provider in this process, such as the simulated one: there is no HTTP to pass on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic_core import to_json

from scheduler.adapters.dialects import Dialect
from scheduler.answer import Answer
from scheduler.providers.base import Provider
from scheduler.request import CHAT, COMPLETIONS, Request, StreamEvent
from scheduler.server.line import EVENTS
from scheduler.server.refusals import JSON, Whole

if TYPE_CHECKING:
    from scheduler.server.exchange import Exchange

DONE = b"data: [DONE]\n\n"


async def attempt(exchange: Exchange, provider: Provider, request: Request) -> Answer:
    """One attempt, and what its client is to see of it."""
    if not request.body.get("stream"):
        answer = await provider.send(request)
        exchange.came(Whole(answer.status_code, [JSON], _written(answer.body)))
        return answer

    async def emit(event: StreamEvent) -> None:
        await exchange.pass_event(_as_bytes(event), [EVENTS])

    answer = await provider.stream(request, emit)
    if request.url in (CHAT, COMPLETIONS) and exchange.dialect is Dialect.OPENAI:
        await exchange.pass_event(DONE, [EVENTS])
    return answer


def _as_bytes(event: StreamEvent) -> bytes:
    name = b"" if event.event == "message" else b"event: %s\n" % event.event.encode()
    lines = event.data.encode("utf-8", "backslashreplace").split(b"\n")
    return name + b"".join(b"data: %s\n" % line for line in lines) + b"\n"


def _written(body: object) -> bytes:
    try:
        return to_json(body)
    except ValueError:  # half a surrogate pair
        return json.dumps(body).encode()
