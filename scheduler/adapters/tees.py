"""Streams on their way to a reader, while it is followed what they amount to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from scheduler.errors import CallFailed
from scheduler.providers.base import Answer
from scheduler.providers.engines import call_id
from scheduler.providers.streaming import DONE, Transcript
from scheduler.request import StreamEvent

if TYPE_CHECKING:
    from scheduler.adapters.http import HttpVisit


def show(transcript: Transcript, chunk: bytes) -> bytes:
    """Some bytes of a stream as their reader sees them; the transcript takes them down."""
    assembly = transcript.assembly
    was_done = assembly.is_done
    events = transcript.feed(chunk)
    if not assembly.hides_usage:
        return chunk
    shown = b"".join(map(_encode, events))
    return shown + _encode(StreamEvent(DONE)) if assembly.is_done > was_done else shown


class Tee:
    """The bytes of a stream on their way to its reader, while it is followed what they amount to.

    Attributes:
        ended: What it amounts to; in the scheduler's loop.
        is_over: There are no more.
        is_told: The scheduler has heard of its end.
    """

    def __init__(self, visit: HttpVisit, response: Any, transcript: Transcript) -> None:
        self.transcript, self.is_over = transcript, False
        self.ended: asyncio.Future[Answer] = visit.loop.create_future()
        self._visit, self._response = visit, response
        self._first: list[bytes] = []
        self.is_told = False

    def read_first(self) -> Any:
        """Read until there is an event, or no more; async for async responses."""
        raise NotImplementedError

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
        if error is None and not self.is_over and not self.transcript.assembly.is_complete:
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


_TEES: dict[tuple[str, bool], type[Tee]] = {}


def _encode(event: StreamEvent) -> bytes:
    name = "" if event.event == "message" else f"event: {event.event}\n"
    lines = "\n".join(f"data: {line}" for line in event.data.split("\n"))
    return f"{name}{lines}\n\n".encode()


def async_tee(family: Any) -> type[Tee]:
    """The tee for a family's async responses."""
    known: type[Tee] | None = _TEES.get((family.__name__, False))
    if known is not None:
        return known

    class AsyncTee(Tee, family.AsyncByteStream):  # type: ignore[misc]
        async def read_first(self) -> None:
            self._chunks = self._response.aiter_bytes()
            while not self.transcript.assembly.events:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self.is_over = True
                    return
                self._first.append(show(self.transcript, chunk))

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                for chunk in self._first:
                    yield chunk
                async for chunk in self._chunks:
                    shown = show(self.transcript, chunk)
                    if shown:
                        yield shown
            except Exception as exc:
                self.end(exc)
                raise
            self.is_over = True
            self.end()
            await self._visit.settled()

        async def aclose(self) -> None:
            try:
                await self._response.aclose()
            finally:
                self.end()
            await self._visit.settled()

    _TEES[family.__name__, False] = AsyncTee
    return AsyncTee


def sync_tee(family: Any) -> type[Tee]:
    """The tee for a family's sync responses."""
    known: type[Tee] | None = _TEES.get((family.__name__, True))
    if known is not None:
        return known

    class SyncTee(Tee, family.SyncByteStream):  # type: ignore[misc]
        def read_first(self) -> None:
            self._chunks = self._response.iter_bytes()
            while not self.transcript.assembly.events:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self.is_over = True
                    return
                self._first.append(show(self.transcript, chunk))

        def __iter__(self) -> Iterator[bytes]:
            try:
                for chunk in self._first:
                    yield chunk
                for chunk in self._chunks:
                    shown = show(self.transcript, chunk)
                    if shown:
                        yield shown
            except Exception as exc:
                self.end(exc)
                raise
            self.is_over = True
            self.end()
            self._visit.settled_sync()

        def close(self) -> None:
            try:
                self._response.close()
            finally:
                self.end()
            self._visit.settled_sync()

    _TEES[family.__name__, True] = SyncTee
    return SyncTee
