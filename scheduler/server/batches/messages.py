"""Anthropic's message batches: requests in one body, and results as a stream of lines.

There is no file for what comes in; it is kept as one all the same, under the batch's own name. Nothing
expires after a day: what does not fit a budget waits until it does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json
from starlette.routing import BaseRoute

from scheduler.adapters.dialects import Dialect
from scheduler.batch.results import line_text
from scheduler.request import MESSAGES
from scheduler.server.asked import named_in
from scheduler.server.batches import door, forms, record
from scheduler.server.batches.files import refuse_unkept
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.lines import written
from scheduler.server.batches.members import members
from scheduler.server.batches.record import Batch
from scheduler.server.batches.said import digest_of, made_before, said_of, waits_of
from scheduler.server.batches.shelf import Shelf, new_file
from scheduler.server.gateway import Gateway
from scheduler.server.line import Line, wanted_at
from scheduler.server.refusals import Unserved, Whole
from scheduler.server.tokens import Token

PATH = "/v1/messages/batches"
MAX_REQUESTS = 100_000
MOST = 1_000
PIECE = 16 * 1024  # of a body that is looked at before others get their turn
BETA, OWN_BETA = "anthropic-beta", "message-batches"
_KEY = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LINES = b"application/x-jsonl"


class Messages:
    """See the module."""

    def __init__(self, gateway: Gateway, shelf: Shelf, keeper: Keeper) -> None:
        self._gateway, self._shelf, self._keeper = gateway, shelf, keeper
        self._s = gateway.scheduler

    def routes(self) -> list[BaseRoute]:
        """What is served."""
        served: list[tuple[str, str, door.Answer]] = [
            ("POST", PATH, self._create),
            ("GET", PATH, self._list),
            ("GET", PATH + "/{id}", self._retrieve),
            ("DELETE", PATH + "/{id}", self._delete),
            ("POST", PATH + "/{id}/cancel", self._cancel),
            ("GET", PATH + "/{id}/results", self._results),
        ]
        return door.routes(self._gateway, Dialect.ANTHROPIC, served)

    async def _create(self, line: Line, token: Token) -> Whole:
        refuse_unkept(self._gateway)
        _refuse_betas(line)
        content, now_ms = await line.body(), self._s.now_ms()
        said, deadline_ms = said_of(line, token, now_ms)
        await self._s.learn_budgets(named_in(said))
        digest = await asyncio.to_thread(digest_of, line, content)
        before = await made_before(self._s.store, line, token, digest, now_ms, is_messages=True)
        if before is not None:
            return door.said(await self._told(before.id, line))
        name = record.new_batch_id(is_messages=True)
        # Nobody's: it is told as results alone, and goes with the batch.
        file = new_file("", f"{name}.jsonl", "message_batch", now_ms)
        keys = set[str]()
        file = await self._shelf.take(file, _as_lines(content, keys), is_whole=False)
        batch = Batch(
            name, token.name, True, MESSAGES, file.id, "", now_ms, deadline_ms, wanted_at(line),
            said, digest=digest, total=len(keys),
        )  # fmt: skip
        await record.keep(self._s.store, batch)
        await self._shelf.settle(file)
        self._keeper.take_up(name)
        return door.said(forms.message_batch(batch, None, {}, base_of(line)))

    async def _list(self, line: Line, token: Token) -> Whole:
        asked = door.query(line)
        limit = door.page_of(asked, most=MOST)
        before = asked.get("before_id")
        found = await record.listed(
            self._s.store, token.name, limit + 1, before or asked.get("after_id"),
            is_messages=True, newest_first=before is None,
        )  # fmt: skip
        rows = [
            forms.message_batch(each, None, {}, base_of(line)) if each.is_over
            else await self._told(each.id, line)
            for each in found[:limit]
        ]  # fmt: skip
        if before is not None:
            rows.reverse()
        told = forms.listed(rows, limit)
        return door.said({**told, "object": None, "has_more": len(found) > limit})

    async def _retrieve(self, line: Line, token: Token) -> Whole:
        return door.said(await self._told((await self._find(line, token)).id, line))

    async def _cancel(self, line: Line, token: Token) -> Whole:
        batch = await self._find(line, token)
        await self._keeper.cancel(batch.id)
        return door.said(await self._told(batch.id, line))

    async def _delete(self, line: Line, token: Token) -> Whole:
        batch = await self._find(line, token)
        if not batch.is_over:
            raise door.wrong(f"{batch.id} has not ended; cancel it first", "batch_not_ended")
        await self._keeper.forget(batch)
        return door.said({"id": batch.id, "type": "message_batch_deleted"})

    async def _results(self, line: Line, token: Token) -> None:
        batch = await self._find(line, token)
        if not batch.is_over:
            raise door.wrong(f"{batch.id} has not ended, so it has no results", "batch_not_ended")
        ids: list[int] = []
        if await door.streamed(line, _LINES, self._read(batch, ids)):
            await self._keeper.delivered(ids)

    async def _read(self, batch: Batch, ids: list[int]) -> AsyncIterator[bytes]:
        async for each in self._keeper.results(batch):
            ids.append(each.id)
            yield line_text(forms.message_result(each)).encode() + b"\n"
        async for refused in self._keeper.reader.refused(batch):
            yield line_text(forms.refused_message(*refused)).encode() + b"\n"

    async def _told(self, name: str, line: Line) -> dict[str, Any]:
        batch, counts = await self._keeper.look(name)
        if batch is None:
            raise door.missing("message batch", name)
        waits = await waits_of(self._keeper, batch, counts, self._s.now_ms())
        return forms.message_batch(batch, counts, waits, base_of(line))

    async def _find(self, line: Line, token: Token) -> Batch:
        batch = await record.find(self._s.store, door.named(line))
        if batch is None or batch.owner != token.name or not batch.is_messages:
            raise door.missing("message batch", door.named(line))
        return batch


def base_of(line: Line) -> str:
    """Where this gateway is, as its client calls it."""
    base = line.scope["path"].partition(PATH)[0]
    scheme = line.headers.get("x-forwarded-proto", "")  # of a proxy that speaks TLS
    scheme = scheme if scheme in ("http", "https") else line.scope["scheme"]
    return f"{scheme}://{line.headers.get('host', '')}{base}"


def _refuse_betas(line: Line) -> None:
    """Refuse headers that each request would need again. Raises `Unserved`."""
    named = [each.strip() for each in line.headers.get(BETA, "").split(",")]
    others = [each for each in named if each and not each.startswith(OWN_BETA)]
    if others:
        raise door.wrong(
            f"{BETA}: {others[0][:100]} is not kept with a batch; set it for the provider, under "
            "'headers' in scheduler.toml"
        )


async def _as_lines(content: bytes, seen: set[str]) -> AsyncIterator[bytes]:
    """The requests of a body as lines of a file; their ids are added to `seen`. Raises `Unserved`."""
    piece = bytearray()
    try:
        for each in members(content.decode(), "requests"):
            piece += _checked(each, seen)
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
                await asyncio.sleep(0)  # others get their turn
    except (ValueError, RecursionError):
        raise door.wrong("the body is no JSON object") from None
    if not seen:
        raise door.wrong("requests is no list with something in it")
    yield bytes(piece)


def _checked(request: object, seen: set[str]) -> bytes:
    """A request as a line. Raises `Unserved`."""
    number = len(seen)
    key = request.get("custom_id") if isinstance(request, dict) else None
    if not isinstance(request, dict) or not isinstance(key, str) or not _KEY.fullmatch(key):
        raise door.wrong(
            f"requests.{number}.custom_id is {key!r:.100}, not 1 to 64 letters, digits, _ and -"
        )
    if key in seen:
        raise door.wrong(f"requests.{number}.custom_id {key!r} stands before, too")
    if number >= MAX_REQUESTS:
        raise Unserved(413, "too_many_requests", f"there are more than {MAX_REQUESTS:,} requests; "
                       "nothing was sent")  # fmt: skip
    params = request.get("params")
    if not isinstance(params, dict):
        raise door.wrong(f"requests.{number}.params is no object")
    seen.add(key)
    try:
        return written(key, MESSAGES, params).encode()
    except ValueError:
        return to_json({"custom_id": key}) + b"\n"
