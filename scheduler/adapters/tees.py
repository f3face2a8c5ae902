"""Streams on their way to a reader, while it is followed what they amount to."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

from scheduler.adapters.cuts import Cutter, Scribe
from scheduler.answer import Answer
from scheduler.core.nested.pace import Pace
from scheduler.errors import CallFailed, words_of
from scheduler.providers.answers import call_id
from scheduler.providers.streaming import Transcript

if TYPE_CHECKING:
    from scheduler.adapters.http import HttpVisit

_OF_WIRE = ("content-encoding", "content-length")


class Tee:
    """The bytes of one stream as they come over the wire, in place of its response's own stream.

    Where the usage was asked for in the reader's stead, the chunk that tells it is left out;
    what comes compressed is not compressed any more then, and the response's headers say so.

    Attributes:
        ended: What it amounts to; in the scheduler's loop.
        is_over: There are no more.
        is_told: The scheduler has heard of its end.
        pieces: How many were handed over.
        first: Those that came before anybody read.
    """

    # Its response holds it, and not the other way: so it is noticed when that is dropped.

    def __init__(self, visit: HttpVisit, response: Any, transcript: Transcript) -> None:
        self.transcript, self.is_over, self.is_told, self.pieces = transcript, False, False, 0
        self.ended: asyncio.Future[Answer] = visit.loop.create_future()
        self.pace = Pace(visit.tell, visit.loop.time)
        self._visit, self._stream, self._request = visit, response.stream, response.request
        self._status, self._headers = response.status_code, response.headers
        self._response = ref(response)
        self.first: list[bytes] = []
        self._chunks: Any = None
        self._scribe = Scribe(transcript, *_decoder_of(visit.family, response))
        if self._scribe.cuts:
            for name in _OF_WIRE:
                response.headers.pop(name, None)
        response.stream = self

    @property
    def elapsed(self) -> Any:
        """As the response's own stream tells it, in httpx2."""
        return getattr(self._stream, "elapsed", None)

    @property
    def has_begun(self) -> bool:
        """Whether there was an event, or there are no more."""
        return self.is_over or self.transcript.assembly.events > 0

    def shown(self, chunk: bytes) -> bytes:
        """Some bytes as their reader sees them; the transcript takes them down."""
        return self._scribe.shown(chunk)

    def rest(self) -> bytes:
        """What is left to show, now that there are no more."""
        self.is_over = True
        return self._scribe.rest()

    def named(self, exc: BaseException) -> None:
        """An exception of the stream says of which request, as its response would have it."""
        if isinstance(exc, self._visit.family.RequestError):
            exc.request = self._request

    def _closed(self) -> None:
        response = self._response()
        if response is not None:
            response.is_closed = True

    def judge(self, error: Exception | None = None) -> Answer:
        """What it amounts to, now that it has ended, or broken off. Raises `CallFailed`."""
        if error is None:
            return self._scribe.answer(self._status, self._headers)
        explained = self._visit.understood(error)
        explained.request_id = call_id(self._headers)
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
            problem = CallFailed(f"the stream could not be read: {words_of(exc)}")
            self._visit.judged(self.ended, None, problem)
        else:
            self._visit.judged(self.ended, answer, None)

    def __del__(self) -> None:
        # Nobody reads on, and nobody closed it: without this its money is held for ever.
        if hasattr(self, "_scribe"):
            self.end()


class AsyncTee(Tee):
    """Of an async response."""

    async def read_first(self) -> None:
        """Read until there is an event, or no more."""
        self._chunks = aiter(self._stream)
        try:
            while not self.has_begun:
                self.first.append(await self._next())
        except BaseException as exc:
            self.named(exc)
            await self.let_go()
            raise

    async def _next(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return self.rest()
        return self.shown(chunk)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        shown = b""
        while self.first and not shown:
            shown = self.first.pop(0)
        if not shown and not self.is_over:
            self.pace.asked()
            try:
                while not shown and not self.is_over:
                    shown = await self._next()
            except BaseException as exc:
                self.end(exc if isinstance(exc, Exception) else None)
                raise
            self.pieces += 1
            self.pace.given()
        if self.is_over and not self.first:
            self.end()
        if not shown:
            raise StopAsyncIteration  # the response closes itself then, and with it this
        return shown

    async def let_go(self) -> None:
        """Let go of the connection."""
        if inspect.isasyncgen(self._chunks) and not self._chunks.ag_running:
            await self._chunks.aclose()
        await self._stream.aclose()
        self._closed()

    async def aclose(self) -> None:
        """Let go of the connection; half-way it is left."""
        try:
            await self.let_go()
        finally:
            self.end()
        await self._visit.settled()


class SyncTee(Tee):
    """Of a sync response."""

    def read_first(self) -> None:
        """Read until there is an event, or no more."""
        self._chunks = iter(self._stream)
        try:
            while not self.has_begun:
                self.first.append(self._next())
        except BaseException as exc:
            self.named(exc)
            self.let_go()
            raise

    def _next(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            return self.rest()
        return self.shown(chunk)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        shown = b""
        while self.first and not shown:
            shown = self.first.pop(0)
        if not shown and not self.is_over:
            self.pace.asked()
            try:
                while not shown and not self.is_over:
                    shown = self._next()
            except BaseException as exc:
                self.end(exc if isinstance(exc, Exception) else None)
                raise
            self.pieces += 1
            self.pace.given()
        if self.is_over and not self.first:
            self.end()
        if not shown:
            raise StopIteration
        return shown

    def let_go(self) -> None:
        """Let go of the connection."""
        if inspect.isgenerator(self._chunks) and not self._chunks.gi_running:
            self._chunks.close()
        self._stream.close()
        self._closed()

    def close(self) -> None:
        """Let go of the connection; half-way it is left."""
        try:
            self.let_go()
        finally:
            self.end()
        self._visit.settled_sync()


class Replay:
    """Bytes that came and were looked at, to be read by whoever wanted to.

    Args:
        error: What came after them.

    Attributes:
        elapsed: As a response's own stream tells it, in httpx2.
    """

    def __init__(
        self, pieces: Sequence[bytes], elapsed: timedelta | None = None,
        error: Exception | None = None,
    ) -> None:  # fmt: skip
        self._pieces, self.elapsed, self._error = pieces, elapsed, error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in iter(self):
            yield each

    def close(self) -> None:
        """It has been."""

    async def aclose(self) -> None:
        """It has been."""


def put_back(family: Any, response: Any, pieces: Sequence[bytes]) -> bytes:
    """Let a response be read whose stream was read to its end; gives what it says."""
    kind = of_family(family, Replay)
    response.stream = kind(pieces, getattr(response.stream, "elapsed", None))
    copy = family.Response(response.status_code, headers=response.headers.raw, stream=kind(pieces))
    content: bytes = copy.read()
    return content


def put_back_broken(family: Any, response: Any, pieces: Sequence[bytes], error: Exception) -> None:
    """Let a response be read as far as it came, and then raise what its reader would have met."""
    elapsed = getattr(response.stream, "elapsed", None)
    response.stream = of_family(family, Replay)(pieces, elapsed, error)
    response.is_closed = False


def unread(family: Any, response: Any, took: timedelta) -> None:
    """Let a response be read in every way that was read already, as by a hook.

    Args:
        family: Whose it is.
        response: It has its content.
        took: What it says of the time, if it does not know.
    """
    content = response.content
    if "content-encoding" in response.headers:  # the bytes that came over the wire are gone
        for name in _OF_WIRE:
            response.headers.pop(name, None)
    vars(response).pop("_decoder", None)
    response.is_closed = response.is_stream_consumed = False
    elapsed = getattr(response.stream, "elapsed", None) or took
    response.stream = of_family(family, Replay)([content], elapsed)


def cut_whole(transcript: Transcript, content: bytes) -> bytes:
    """A stream that is there as a whole as its reader sees it; the transcript takes it down."""
    if not transcript.assembly.hides_usage:
        transcript.feed(content)
        return content
    cutter = Cutter(transcript)
    return cutter.feed(content) + cutter.close()


def _decoder_of(family: Any, response: Any) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """What a response's own decoder does, apart from it; and what that gives at the end."""
    if "content-encoding" not in response.headers:
        return (lambda chunk: chunk), bytes
    copy = family.Response(200, headers=response.headers.raw, stream=family.ByteStream(b""))
    decoder = copy._get_content_decoder()

    def whole(decoded: Any) -> bytes:  # in pieces in httpx2
        return decoded if isinstance(decoded, bytes) else b"".join(decoded)

    return (lambda chunk: whole(decoder.decode(chunk))), (lambda: whole(decoder.flush()))


_KINDS: dict[tuple[str, type], Any] = {}


def of_family(family: Any, kind: type) -> Any:
    """The class of streams that a family's responses take for one of theirs."""
    found = _KINDS.get((family.__name__, kind))
    if found is None:
        bases = [base for base, way in ((family.AsyncByteStream, "__aiter__"),
                                        (family.SyncByteStream, "__iter__"))
                 if hasattr(kind, way)]  # fmt: skip
        found = _KINDS[family.__name__, kind] = type(kind.__name__, (kind, *bases), {})
    return found
