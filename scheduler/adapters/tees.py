"""Streams on their way to a reader, while it is followed what they amount to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from scheduler.errors import CallFailed
from scheduler.pace import Pace
from scheduler.providers.answers import call_id
from scheduler.providers.base import Answer
from scheduler.providers.streaming import DONE, Transcript
from scheduler.request import StreamEvent

if TYPE_CHECKING:
    from scheduler.adapters.http import HttpVisit


def show(transcript: Transcript, chunk: bytes) -> bytes:
    """Some bytes of a stream as their reader sees them; the transcript takes them down."""
    assembly = transcript.assembly
    was_done = assembly.is_done
    events = transcript.feed(chunk)
    if not assembly.hides_usage or transcript.is_refused:
        return chunk
    shown = b"".join(map(_encode, events))
    return shown + _encode(StreamEvent(DONE)) if assembly.is_done > was_done else shown


def _encode(event: StreamEvent) -> bytes:
    name = "" if event.event == "message" else f"event: {event.event}\n"
    lines = "\n".join(f"data: {line}" for line in event.data.split("\n"))
    return f"{name}{lines}\n\n".encode()


class Tee:
    """The bytes of one stream.

    Attributes:
        ended: What it amounts to; in the scheduler's loop.
        is_over: There are no more.
        is_told: The scheduler has heard of its end.
        pieces: How many were handed over.
    """

    def __init__(self, visit: HttpVisit, response: Any, transcript: Transcript) -> None:
        self.transcript, self.is_over, self.is_told, self.pieces = transcript, False, False, 0
        self.ended: asyncio.Future[Answer] = visit.loop.create_future()
        self.pace = Pace(visit.tell, visit.loop.time)
        self._visit, self._response = visit, response
        self._first: list[bytes] = []
        self._chunks: Any = None

    def judge(self, error: Exception | None = None) -> Answer:
        """What it amounts to, now that it has ended, or broken off. Raises `CallFailed`."""
        headers = self._response.headers
        if error is None:
            return self.transcript.answer(self._response.status_code, headers)
        explained = self._visit.explain(error)
        explained.request_id = call_id(headers)
        return self.transcript.after(explained)

    def end(self, error: Exception | None = None) -> None:
        """Tell, once, what it amounts to; without an error it may have been left half-way."""
        if self.is_told:
            return
        self.is_told = True
        assembly = self.transcript.assembly
        has_ended = self.is_over or assembly.is_complete or assembly.error is not None
        if error is None and not has_ended:
            self._visit.judged(self.ended, None, None)
            return
        try:
            answer = self.judge(error)
        except CallFailed as exc:
            self._visit.judged(self.ended, None, exc)
        except Exception as exc:
            self._visit.judged(self.ended, None, CallFailed(f"the stream could not be read: {exc}"))
        else:
            self._visit.judged(self.ended, answer, None)

    def __del__(self) -> None:
        # Nobody reads on, and nobody closed it: without this its money is held for ever.
        self.end()


class AsyncTee(Tee):
    """Of an async response."""

    async def read_first(self) -> None:
        """Read until there is an event, or no more."""
        self._chunks = self._response.aiter_bytes()
        async for chunk in self._chunks:
            self._first.append(show(self.transcript, chunk))
            if self.transcript.assembly.events:
                return
        self.is_over = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            return self._first.pop(0)
        self.pace.asked()
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.is_over = True
            self.end()
            raise  # the response closes itself then, and with it this
        except Exception as exc:
            self.end(exc)
            raise
        self.pieces += 1
        self.pace.given()
        return show(self.transcript, chunk)

    async def let_go(self) -> None:
        """Let go of the connection of one that nobody was given."""
        await self._chunks.aclose()
        await self._response.aclose()

    async def aclose(self) -> None:
        """Let go of the connection; half-way it is left."""
        try:
            await self._response.aclose()
        finally:
            self.end()
        await self._visit.settled()


class SyncTee(Tee):
    """Of a sync response."""

    def read_first(self) -> None:
        """Read until there is an event, or no more."""
        self._chunks = self._response.iter_bytes()
        for chunk in self._chunks:
            self._first.append(show(self.transcript, chunk))
            if self.transcript.assembly.events:
                return
        self.is_over = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._first:
            return self._first.pop(0)
        self.pace.asked()
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self.is_over = True
            self.end()
            raise
        except Exception as exc:
            self.end(exc)
            raise
        self.pieces += 1
        self.pace.given()
        return show(self.transcript, chunk)

    def let_go(self) -> None:
        """Let go of the connection of one that nobody was given."""
        self._chunks.close()
        self._response.close()

    def close(self) -> None:
        """Let go of the connection; half-way it is left."""
        try:
            self._response.close()
        finally:
            self.end()
        self._visit.settled_sync()


_KINDS: dict[tuple[str, type[Tee]], Any] = {}


def tee_of(family: Any, kind: type[Tee]) -> Any:
    """The class of tees that a family's responses take for a stream of theirs."""
    found = _KINDS.get((family.__name__, kind))
    if found is None:
        base = family.AsyncByteStream if kind is AsyncTee else family.SyncByteStream
        found = _KINDS[family.__name__, kind] = type(kind.__name__, (kind, base), {})
    return found
