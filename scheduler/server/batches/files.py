"""OpenAI's ``/v1/files``, as far as batches need them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.routing import BaseRoute

from scheduler.adapters.dialects import Dialect
from scheduler.batch.results import line_text
from scheduler.guards.plain import logger_of
from scheduler.server.batches import door, forms, record
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.shelf import MAX_BYTES, File, Shelf, new_file
from scheduler.server.gateway import Gateway
from scheduler.server.line import HungUp, Line
from scheduler.server.refusals import Unserved, Whole
from scheduler.server.tokens import Token

PIECE = 256 * 1024
MAX_NAME_CHARS = 255
MOST = 10_000  # files of a list
_JSONL = b"application/jsonl"
_LONGEST_S = 30 * 86_400  # as OpenAI has it
# What is wrong with a form is its client's business, and told there.
logger_of("python_multipart").addHandler(logging.NullHandler())


class Files:
    """See the module."""

    def __init__(self, gateway: Gateway, shelf: Shelf, keeper: Keeper) -> None:
        self._gateway, self._shelf, self._keeper = gateway, shelf, keeper
        self._s = gateway.scheduler

    def routes(self) -> list[BaseRoute]:
        """What is served."""
        served: list[tuple[str, str, door.Answer]] = [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._list),
            ("GET", "/v1/files/{id}", self._retrieve),
            ("DELETE", "/v1/files/{id}", self._delete),
            ("GET", "/v1/files/{id}/content", self._content),
        ]
        return door.routes(self._gateway, Dialect.OPENAI, served)

    async def _upload(self, line: Line, token: Token) -> Whole:
        refuse_unkept(self._gateway)
        form = await _form(line)
        try:
            upload, purpose = form.get("file"), form.get("purpose")
            if purpose != "batch":
                raise door.wrong(
                    f"the purpose is {purpose!r:.50}; this gateway keeps files for batches only "
                    "(purpose 'batch'). Upload others to their provider"
                )
            if not isinstance(upload, UploadFile):
                raise door.wrong("there is no 'file'")
            name = os.path.basename((upload.filename or "batch.jsonl").replace("\\", "/"))
            now_ms = self._s.now_ms()
            file = new_file(
                token.name, name[:MAX_NAME_CHARS], "batch", now_ms, expires_ms=_expiry(form, now_ms)
            )
            whole = await self._shelf.take(file, _pieces(upload))
        finally:
            await form.close()
        return door.said(forms.file_object(whole))

    async def _list(self, line: Line, token: Token) -> Whole:
        asked = door.query(line)
        limit = door.page_of(asked, MOST, MOST)
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise door.wrong(f"order is {order[:20]!r}, not 'asc' or 'desc'")
        found = await self._shelf.listed(
            token.name, limit + 1, asked.get("after"), order == "desc", asked.get("purpose")
        )
        return door.said(forms.listed(map(forms.file_object, found), limit))

    async def _retrieve(self, line: Line, token: Token) -> Whole:
        return door.said(forms.file_object(await self._find(line, token)))

    async def _delete(self, line: Line, token: Token) -> Whole:
        file = await self._find(line, token)
        for batch in await record.open_ones(self._s.store):
            if batch.input_id == file.id:
                raise Unserved(409, "file_in_use", f"{file.id} is read by the batch {batch.id}, which "
                               "has not ended; cancel that first")  # fmt: skip
        whose = await record.find(self._s.store, file.batch) if file.batch else None
        if whose is not None:
            await self._keeper.let_go(whose, file.part)
        await self._shelf.remove(file.id)
        return door.said({"id": file.id, "object": "file", "deleted": True})

    async def _content(self, line: Line, token: Token) -> None:
        file = await self._find(line, token)
        ids: list[int] = []
        if await door.streamed(line, _JSONL, self._read(file, ids)):
            await self._keeper.delivered(ids)

    async def _read(self, file: File, ids: list[int]) -> AsyncIterator[bytes]:
        if not file.batch:
            async for page in self._shelf.pages(file.id):
                yield page.encode()
            return
        batch = await record.find(self._s.store, file.batch)
        if batch is None:
            return
        async for each in self._keeper.results(batch):
            if forms.is_in(file.part, each):
                ids.append(each.id)
                yield line_text(forms.result(each)).encode() + b"\n"
        if file.part == "errors":
            async for refused in self._keeper.reader.refused(batch):
                yield line_text(forms.refused_line(*refused)).encode() + b"\n"

    async def _find(self, line: Line, token: Token) -> File:
        file = await self._shelf.find(door.named(line), token.name, self._s.now_ms())
        if file is None:
            raise door.missing("file", door.named(line))
        return file


def refuse_unkept(gateway: Gateway) -> None:
    """Refuse what would have to be kept where no prompts are. Raises `Unserved`."""
    store = gateway.scheduler.store
    if store.is_shared and not store.keeps_whole:
        raise Unserved(
            409, "prompts_not_kept", "this gateway's store keeps no prompts (store_prompts), and what "
            "nobody waits for has to be kept; nothing was sent",
        )  # fmt: skip


async def _form(line: Line) -> FormData:
    """A body of several parts. Raises `Unserved`."""
    if not line.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise door.wrong("a file comes as multipart/form-data, with 'file' and 'purpose'")
    headers = Headers(raw=line.scope["headers"])
    try:
        return await MultiPartParser(headers, _body(line), max_files=1, max_fields=20).parse()
    except MultiPartException as exc:
        raise door.wrong(f"the form cannot be read: {exc.message}") from None


async def _body(line: Line) -> AsyncGenerator[bytes, None]:
    size = 0
    while True:
        message = await line.receive()
        if message["type"] != "http.request":
            raise HungUp
        piece = message.get("body", b"")
        size += len(piece)
        if size > MAX_BYTES + PIECE:
            raise Unserved(413, "file_too_large", f"a file has at most {MAX_BYTES:,} bytes; nothing "
                           "was kept", (b"connection", b"close"))  # fmt: skip
        yield piece
        if not message.get("more_body"):
            return


async def _pieces(upload: UploadFile) -> AsyncIterator[bytes]:
    while piece := await upload.read(PIECE):
        yield piece


def _expiry(form: FormData, now_ms: int) -> int | None:
    stays_s = stays_for(form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
    return None if stays_s is None else now_ms + stays_s * 1000


def stays_for(anchor: object, seconds: object) -> int | None:
    """How long a file is to stay, in seconds; None: it stays. Raises `Unserved`."""
    if seconds is None:
        return None
    text = str(seconds)
    is_span = text.isascii() and text.isdecimal() and 3_600 <= int(text[:9]) <= _LONGEST_S
    if anchor not in (None, "created_at") or not is_span:
        raise door.wrong(
            f"expires_after needs the anchor 'created_at' and 3600 to {_LONGEST_S} seconds"
        )
    return int(text)
