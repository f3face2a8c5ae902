"""Streamed answers: what to ask for, what its reader sees, and what comes of it.

An answer put together here looks like the one the same call gives without a stream, and is judged
by the same rules (`scheduler.providers.meaning`). What misses anything is a `StreamBroken`:

    an error as the first event             as an error inside an answer; nobody has seen a part
    an error, or an event that cannot be    broken; posted by the usage told with it or after it,
      read, in the middle                   else unknown
    broken off, or no reason for its end    broken; unknown, so what was reserved keeps counting,
                                            or more, if more input was told than was reserved for
    an end without usage                    an answer, posted at its ceiling
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from scheduler.answer import Answer
from scheduler.errors import CallFailed, StreamBroken
from scheduler.providers.answers import (
    Secrets,
    answer_of,
    call_id,
    clean_id,
    read_answer,
    read_problem,
    tell,
)
from scheduler.providers.assembly import DONE, Assembly, needs_asking, wants_usage
from scheduler.providers.base import Emit
from scheduler.providers.engines import Reply, Take
from scheduler.providers.masks import hide
from scheduler.providers.meaning import SERVER_ERROR, Problem, error_in
from scheduler.providers.sse import EventParser
from scheduler.request import Request, StreamEvent

__all__ = ["DONE", "Assembly", "Transcript", "nobody_reads", "read_stream", "streamed_body",
           "wants_usage"]  # fmt: skip

MAX_UNREAD_BYTES = 1024 * 1024  # of a body that has no events


def streamed_body(request: Request, asks: bool = True) -> dict[str, Any]:
    """The body to send: streamed, and with the usage at the end where that has to be asked for.

    Args:
        request: What is asked.
        asks: Whether to ask for the usage; some services refuse that.
    """
    body = request.body | {"stream": True}
    if asks and needs_asking(request):
        options = body.get("stream_options")
        body["stream_options"] = {**(options if isinstance(options, dict) else {}),
                                  "include_usage": True}  # fmt: skip
    return body


Post = Callable[[Take], Awaitable[Reply]]


async def read_stream(
    request: Request, post: Post, emit: Emit, secrets: Secrets = (), *, asked_for_usage: bool = True
) -> Answer:
    """Send, hand over events as they come, give back the whole answer.

    Args:
        request: What is asked.
        post: Sends it; hands the bytes of a stream over as they come.
        emit: Takes the events that are the reader's business.
        secrets: Keys that must not appear in an error.
        asked_for_usage: As `Transcript` takes it.

    Raises:
        StreamBroken: It ended before its end.
        CallFailed: As without a stream, before the first event.
    """
    transcript = Transcript(request, secrets, asked_for_usage=asked_for_usage)

    async def take(chunk: bytes) -> bool:
        before = transcript.assembly.events
        for event in transcript.feed(chunk):
            await emit(event)
        return transcript.assembly.events > before

    try:
        status, headers, content = await post(take)
        if looks_like_events(status, content):  # under another content type
            await take(content)
            content = b""
        for event in transcript.end():
            await emit(event)
    except CallFailed as error:
        return transcript.after(error)
    return transcript.answer(status, headers, content)


def read_whole(
    request: Request, status: int, headers: Mapping[str, str], content: bytes, secrets: Secrets = ()
) -> Answer:
    """An answer that was not asked for as a stream, and may come as one all the same."""
    if not looks_like_events(status, content):
        return read_answer(status, headers, content, secrets)
    transcript = Transcript(request, secrets, asked_for_usage=False)
    transcript.feed(content)
    answer = transcript.answer(status, headers)
    answer.first_s = None  # it came as a whole
    return answer


def looks_like_events(status: int, content: bytes) -> bool:
    """Whether a body is an event stream, whatever its content type says."""
    start = content[:20].lstrip()
    return 200 <= status < 300 and start.startswith((b"data:", b"event:", b": "))


class Transcript:
    """Takes the bytes of one stream as they come; in the end, what they amount to.

    Args:
        request: What was asked.
        secrets: Keys that must not appear in an error.
        asked_for_usage: Whether usage was asked for in the reader's stead, if they did not.

    Attributes:
        assembly: The answer so far.
    """

    def __init__(
        self, request: Request, secrets: Secrets = (), *, asked_for_usage: bool = True
    ) -> None:
        self.assembly = Assembly(request, asked_for_usage)
        self._parser, self._secrets = EventParser(), secrets
        self._unread = bytearray()  # of a body that has had no events yet
        self._first_s: float | None = None  # when the first event came

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take some bytes; gives the events that are the reader's business."""
        if not self.assembly.events and len(self._unread) + len(chunk) <= MAX_UNREAD_BYTES:
            self._unread += chunk
        return self._take(self._parser.feed(chunk))

    def end(self) -> list[StreamEvent]:
        """There are no more bytes; gives what was left of events."""
        return self._take(self._parser.close())

    def _take(self, events: list[StreamEvent]) -> list[StreamEvent]:
        shown = [self.assembly.take(event) for event in events]
        if self.is_refused:
            return []  # nothing of an answer: judged at the end, like an error status
        if self._first_s is None and self.assembly.events:
            self._first_s = time.monotonic()
        return [event for event in shown if event is not None]

    @property
    def is_refused(self) -> bool:
        """Whether it consists of an error."""
        return self.assembly.error_at == 1

    def after(self, error: CallFailed) -> Answer:
        """What it amounts to when it broke off like this: the answer, if that was complete.

        Raises:
            StreamBroken: It was not.
            CallFailed: The error, if nothing had come.
        """
        if not self.assembly.events:
            raise error
        if not (self.assembly.is_complete or self.is_refused):
            raise self._broken(error.message, error.request_id) from error
        return self.answer(200, {})

    def answer(self, status: int, headers: Mapping[str, str], content: bytes = b"") -> Answer:
        """What it amounts to, now that it has ended.

        Args:
            status: The HTTP status.
            headers: Found by names in lower case.
            content: The body, if it was no stream.

        Raises:
            StreamBroken: It ended before its end.
            CallFailed: It consists of an error.
        """
        self.end()
        assembly = self.assembly
        if not assembly.events and not assembly.is_done:
            unread = content or bytes(self._unread)
            if not self._parser.is_begun or unread.lstrip()[:1] in (b"{", b"[", b"<"):
                return read_answer(status, headers, unread, self._secrets)
        told_id = call_id(headers)
        if assembly.error is not None:
            if self.is_refused:
                raise self._refused_at_once(headers)
            said = hide(assembly.error, self._secrets)
            problem = f"the provider ended the stream with an error ({said})"
            raise self._broken(problem, told_id, assembly.knows_usage)
        if not assembly.has_ended:
            problem = "the stream ended before its end"
            raise self._broken(problem, told_id, assembly.has_whole_usage)
        body = assembly.whole()
        try:
            answer = answer_of(body, status, headers, self._secrets)
        except CallFailed as error:
            if assembly.events == 1:
                raise
            broken = self._broken(error.message, told_id)
            broken.used, broken.is_billed = error.used, error.is_billed
            raise broken from error
        answer.has_all_usage = assembly.knows_usage  # what was told before the end is not all
        answer.first_s = self._first_s
        return answer

    def _refused_at_once(self, headers: Mapping[str, str]) -> CallFailed:
        """The error that a stream consists of, as one inside an answer."""
        assembly = self.assembly
        error = assembly.error_value
        body = error if isinstance(error, dict) and error_in(error) is error else {"error": error}
        whole = {**assembly.whole(), **body}
        return read_problem(Problem(error, "", SERVER_ERROR), whole, 200, headers, self._secrets)

    def _broken(
        self, problem: str, request_id: str | None, is_whole_bill: bool = False
    ) -> StreamBroken:
        """The error, with the usage told so far; of what broke off the bill may go on."""
        broken = StreamBroken(hide(problem, self._secrets), self.assembly.events)
        broken.request_id = clean_id(request_id, self._secrets)
        tell(broken, self.assembly.whole(), self._secrets, is_final=is_whole_bill)
        return broken


async def nobody_reads(event: StreamEvent) -> None:
    """An `Emit` for streams that are wanted as a whole."""
