"""The bytes of a stream without the one chunk that was asked for in its reader's stead; pure.

Who is asked for the usage of a stream, as OpenAI's API has it, tells it in a chunk of its own, after
the last choice has ended, and puts ``"usage": null`` into all others. These are cut out. Every other
byte is left as it came: comments, fields of events, line ends, how the JSON is written; and
usage that is told in any other form, since that would have been told unasked.

>>> without_null(b'data: {"id": "1", "usage": null, "choices": [{"usage": null}]}')
b'data: {"id": "1", "choices": [{"usage": null}]}'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from scheduler.answer import Answer
from scheduler.errors import CallFailed, words_of
from scheduler.providers.sse import MAX_EVENT_BYTES
from scheduler.providers.streaming import Transcript

_END = re.compile(rb"\r\n|\r|\n")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.S)
_USAGE = b'"usage"'
_OF_EVENT = (b"data", b"event", b"id")
_BOM = b"\xef\xbb\xbf"


class Cutter:
    """Takes bytes as they come, gives those that are the reader's business.

    Args:
        transcript: Takes down the same bytes, and says what they are.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._transcript, self._assembly = transcript, transcript.assembly
        self._rest: list[bytes] = []  # of a line that has not ended
        self._left = 0  # how much that is
        self._event: list[bytes] = []  # lines of an event that has not ended
        self._size = 0  # of these
        self._shown: list[bytes] = []
        self._usage: list[bytes] = []  # lines of one, until it is known whether it is the last word
        self._later: list[bytes] = []  # what came after it
        self._is_cut = False  # what was asked for has come
        # Where the last line went, if it ended in CR: a LF may be the other half of its end.
        self._went: list[bytes] | None = None

    def feed(self, chunk: bytes) -> bytes:
        """What of these bytes, and of those before them, can be shown now.

        Raises:
            ValueError: They cannot be read.
        """
        if self._went is not None and chunk:
            if chunk[:1] == b"\n":
                self._went.append(b"\n")
                chunk = chunk[1:]
            self._went = None
        start = 0
        for found in _END.finditer(chunk):
            text = b"".join([*self._rest, chunk[start : found.start()]])
            self._rest.clear()
            self._left, start = 0, found.end()
            try:
                went = self._line(text + found[0], text)
            except Exception:  # nobody can read on, and nothing is to be lost
                self._rest.append(chunk[start:])
                raise
            if found[0] == b"\r" and start == len(chunk):
                self._went = went
        self._rest.append(chunk[start:])
        self._left += len(chunk) - start
        if self._left + self._size > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES:,} bytes")
        return self._take()

    def close(self) -> bytes:
        """What is left to show, now that no more comes."""
        if self._left or self._event:
            self._event.append(b"".join(self._rest))
            self._rest.clear()
            self._end(is_last=True)
        self._release(is_last_word=True)
        return self._take()

    def all_left(self) -> bytes:
        """All that was not shown yet, as it came: nobody can tell what it is."""
        self._release(is_last_word=False)
        self._shown += [*self._event, *self._rest]
        self._event, self._rest = [], []
        return self._take()

    def _take(self) -> bytes:
        shown = b"".join(self._shown)
        self._shown.clear()
        return shown

    def _line(self, line: bytes, text: bytes) -> list[bytes]:
        """One more line, without its end the text; gives where it went."""
        name = text.removeprefix(_BOM).partition(b":")[0]
        if self._event or name in _OF_EVENT:
            self._event.append(line)
            self._size += len(line)
            return self._event if text else self._end()
        went = self._later if self._usage else self._shown
        went.append(line)  # a comment, or a blank line: it is not kept waiting
        self._transcript.feed(line)
        return went

    def _end(self, *, is_last: bool = False) -> list[bytes]:
        """An event is complete: show it, or do not; gives where its last line went."""
        lines = self._event
        before, had_ended = self._assembly.events, self._assembly.has_ended
        was_done = self._assembly.is_done
        self._transcript.feed(b"".join(lines))
        if is_last:
            self._transcript.end()
        self._event, self._size = [], 0
        self._release(is_last_word=self._assembly.is_done and not was_done)
        if self._assembly.events == before or self._transcript.is_refused:
            self._shown += lines
            return self._shown
        if self._assembly.is_usage_alone and not self._is_cut:
            if had_ended or was_done or is_last:
                self._is_cut = True
                self._usage = lines
                self._release(is_last_word=True)
                return []
            self._usage = lines
            return self._usage
        self._shown += _without_null(lines)
        return self._shown

    def _release(self, *, is_last_word: bool) -> None:
        """What is held is nobody's business if it was the last word, else it is shown."""
        if is_last_word and self._usage:
            self._is_cut = True
            self._shown += [line for line in self._usage if not _is_of_event(line)]
        else:
            self._shown += self._usage
        self._shown += self._later
        self._usage, self._later = [], []


class Scribe:
    """Takes down a stream while it passes, and says of its bytes what its reader is to see.

    What cannot be read is passed on as it came: its reader finds out by themselves.

    Args:
        transcript: Takes down what it amounts to.
        decode: Undoes a compression; what is cut is shown without it.
        flush: Gives what that still has at the end.

    Attributes:
        cuts: Whether the usage was asked for in the reader's stead, and is cut out.
    """

    def __init__(
        self, transcript: Transcript, decode: Callable[[bytes], bytes] | None = None,
        flush: Callable[[], bytes] = bytes,
    ) -> None:  # fmt: skip
        self._transcript, self._decode, self._flush = transcript, decode, flush
        self.cuts = transcript.assembly.hides_usage
        self._cutter = Cutter(transcript) if self.cuts else None
        self._problem: Exception | None = None  # why it is only passed on

    def shown(self, chunk: bytes) -> bytes:
        """Some bytes as their reader sees them."""
        if self._cutter is not None:
            return self._cut(chunk if self._decode is None else self._decode(chunk), self._cutter)
        if self._problem is None:
            try:
                self._transcript.feed(chunk if self._decode is None else self._decode(chunk))
            except Exception as exc:
                self._problem = exc
        return chunk

    def _cut(self, chunk: bytes, cutter: Cutter) -> bytes:
        if self._problem is not None:
            return chunk
        try:
            return cutter.feed(chunk)
        except Exception as exc:
            self._problem = exc
            return cutter.all_left()

    def rest(self) -> bytes:
        """What is left to show, now that there are no more."""
        if self._cutter is None:
            return b""
        left = self._cut(self._flush(), self._cutter)
        return left if self._problem is not None else left + self._cutter.close()

    def answer(self, status: int, headers: Mapping[str, str]) -> Answer:
        """What it amounts to, now that it has ended. Raises `CallFailed`."""
        if self._problem is None:
            return self._transcript.answer(status, headers)
        problem = f"the stream could not be read: {words_of(self._problem)}"
        return self._transcript.after(CallFailed(problem))


def _is_of_event(line: bytes) -> bool:
    """Whether it is an event's own, rather than one that merely stands within it."""
    name = line.removeprefix(_BOM).partition(b":")[0].rstrip(b"\r\n")
    return (not name and not line.startswith(b":")) or name in _OF_EVENT


def _without_null(lines: list[bytes]) -> list[bytes]:
    return [without_null(line) if line.startswith(b"data") and _USAGE in line else line
            for line in lines]  # fmt: skip


def without_null(line: bytes) -> bytes:
    """A line of an event without a usage of null in its object, and with all else as it is."""
    depth, before, key, told = 0, b"", b"", None
    begins = comma = 0  # of the member; of what stands before it, if that is a comma
    for found in _TOKEN.finditer(line, max(0, line.find(b"{"))):
        token = found[0]
        if told is not None:  # this is what follows it
            end = _next_word(line, found.end()) if comma == 0 and token == b"," else told
            return line[: comma or begins] + line[end:]
        if depth == 1 and token == b":" and not key:
            key = before
        elif depth == 1 and token == b"null" and key == _USAGE:
            told = found.end()
        elif depth == 1 and token == b",":
            key, comma = b"", found.start()
        elif depth == 1 and not key:
            begins = found.start()
        depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
        before = token
    return line


def _next_word(line: bytes, start: int) -> int:
    while line[start : start + 1] in (b" ", b"\t"):
        start += 1
    return start
