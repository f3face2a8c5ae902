"""OpenAI's ``/v1/batches``: a file of requests, answered as money and limits allow.

The window of 24 hours, which its clients cannot but ask for, drops nothing here: what does not fit a
budget waits until it does. Any other window is meant: what was not sent by then has expired.
"""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from scheduler.adapters.dialects import Dialect
from scheduler.duration import parse_duration_ms
from scheduler.errors import ConfigError
from scheduler.request import ENDPOINTS
from scheduler.server.asked import named_in
from scheduler.server.batches import door, forms, record
from scheduler.server.batches.files import refuse_unkept, stays_for
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.record import Batch
from scheduler.server.batches.said import digest_of, made_before, said_of, waits_of
from scheduler.server.batches.shelf import Shelf
from scheduler.server.gateway import Gateway
from scheduler.server.line import Line, wanted_at
from scheduler.server.refusals import Whole
from scheduler.server.tokens import Token

USUAL_WINDOW = "24h"
MAX_BODY_BYTES = 1024 * 1024
MAX_PAIRS, MAX_NAME_CHARS, MAX_VALUE_CHARS = 16, 64, 512  # of metadata, as OpenAI has it


class Batches:
    """See the module."""

    def __init__(self, gateway: Gateway, shelf: Shelf, keeper: Keeper) -> None:
        self._gateway, self._shelf, self._keeper = gateway, shelf, keeper
        self._s = gateway.scheduler

    def routes(self) -> list[BaseRoute]:
        """What is served."""
        served: list[tuple[str, str, door.Answer]] = [
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._retrieve),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]
        return door.routes(self._gateway, Dialect.OPENAI, served)

    async def _create(self, line: Line, token: Token) -> Whole:
        refuse_unkept(self._gateway)
        content = await line.body(MAX_BODY_BYTES)
        body, now_ms = door.asked(content), self._s.now_ms()
        endpoint, window = body.get("endpoint"), body.get("completion_window", USUAL_WINDOW)
        if endpoint not in ENDPOINTS:
            raise door.wrong(f"endpoint is {endpoint!r:.100}, not one of {', '.join(ENDPOINTS)}")
        input_id = body.get("input_file_id")
        file = None
        if isinstance(input_id, str):
            file = await self._shelf.find(input_id, token.name, now_ms)
        if file is None or file.purpose != "batch":
            raise door.missing("input file", str(input_id))
        said, deadline_ms = said_of(line, token, now_ms)
        await self._s.learn_budgets(named_in(said))
        if window != USUAL_WINDOW:
            window_ms = now_ms + _span_ms(window)
            deadline_ms = window_ms if deadline_ms is None else min(deadline_ms, window_ms)
        digest = digest_of(line, content)
        before = await made_before(self._s.store, line, token, digest, now_ms, is_messages=False)
        if before is not None:
            return door.said(await self._told(before.id))
        batch = Batch(
            record.new_batch_id(is_messages=False), token.name, False, endpoint, file.id,
            str(window), now_ms, deadline_ms, wanted_at(line), said,
            _metadata(body.get("metadata")), _stays(body.get("output_expires_after")), digest,
        )  # fmt: skip
        await record.keep(self._s.store, batch)
        self._keeper.take_up(batch.id)
        return door.said(forms.batch_object(batch, None, {}))

    async def _list(self, line: Line, token: Token) -> Whole:
        asked = door.query(line)
        limit = door.page_of(asked)
        found = await record.listed(
            self._s.store, token.name, limit + 1, asked.get("after"), is_messages=False
        )
        rows = [
            forms.batch_object(each, None, {}) if each.is_over else await self._told(each.id)
            for each in found
        ]
        return door.said(forms.listed(rows, limit))

    async def _retrieve(self, line: Line, token: Token) -> Whole:
        return door.said(await self._told((await self._find(line, token)).id))

    async def _cancel(self, line: Line, token: Token) -> Whole:
        batch = await self._find(line, token)
        await self._keeper.cancel(batch.id)
        return door.said(await self._told(batch.id))

    async def _told(self, name: str) -> dict[str, Any]:
        batch, counts = await self._keeper.look(name)
        if batch is None:
            raise door.missing("batch", name)
        waits = await waits_of(self._keeper, batch, counts, self._s.now_ms())
        return forms.batch_object(batch, counts, waits)

    async def _find(self, line: Line, token: Token) -> Batch:
        batch = await record.find(self._s.store, door.named(line))
        if batch is None or batch.owner != token.name or batch.is_messages:
            raise door.missing("batch", door.named(line))
        return batch


def _span_ms(window: object) -> int:
    if not isinstance(window, str):
        raise door.wrong(f"completion_window is {window!r:.50}, not a span such as '24h' or '3d'")
    try:
        return parse_duration_ms(window, "completion_window")
    except ConfigError as exc:
        raise door.wrong(str(exc)) from None


def _stays(given: object) -> int | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise door.wrong("output_expires_after is no object")
    return stays_for(given.get("anchor"), given.get("seconds", ""))


def _metadata(given: object) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > MAX_PAIRS:
        raise door.wrong(f"metadata is an object of at most {MAX_PAIRS} texts")
    for name, value in given.items():
        if not isinstance(value, str) or len(name) > MAX_NAME_CHARS or len(value) > MAX_VALUE_CHARS:
            raise door.wrong(
                f"metadata {name[:MAX_NAME_CHARS]!r} needs a name of up to {MAX_NAME_CHARS} and a text "
                f"of up to {MAX_VALUE_CHARS} characters"
            )
    return dict(given)
