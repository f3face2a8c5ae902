r"""Server-sent events from bytes, however these are cut; by the rules of the HTML standard.

Lines end in CR, LF or both. An event is dispatched by an empty line; what of one that was not
ended when the bytes end, `EventParser.close` tells.

>>> parser = EventParser()
>>> parser.feed(b"data: {}\n"), parser.feed(b"\nevent: ping\r\ndata: 1\r\ndata: 2\r\n\r\n")
([], [StreamEvent(data='{}', event='message'), StreamEvent(data='1\n2', event='ping')])
"""

from __future__ import annotations

import re

from scheduler.request import StreamEvent

MAX_EVENT_BYTES = 16 * 1024 * 1024

_END = re.compile(rb"[\r\n]")
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Takes bytes as they come, gives events."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of a line that has not ended
        self._searched = 0  # how much of it has no end in it
        self._skip_lf = False  # the last line ended in CR: an LF belongs to it
        self._is_start = True
        self._data: list[str] = []
        self._size = 0
        self._event = ""

    @property
    def is_begun(self) -> bool:
        """Whether any bytes have come."""
        return not self._is_start or bool(self._rest)

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """The events that these bytes complete.

        Raises:
            ValueError: An event is larger than any that makes sense.
        """
        events: list[StreamEvent] = []
        self._rest += chunk
        rest, start = self._rest, 0
        while True:
            if self._skip_lf and start < len(rest):
                start += rest[start] == 0x0A
                self._skip_lf = False
            found = _END.search(rest, max(start, self._searched))
            if found is None:
                break
            self._line(bytes(rest[start : found.start()]), events)
            self._skip_lf = found[0] == b"\r"
            start = self._searched = found.end()
        del rest[:start]
        self._searched = len(rest)
        if len(rest) + self._size > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES:,} bytes")
        return events

    def close(self) -> list[StreamEvent]:
        """There are no more bytes: what is still open, as some servers leave out the last line."""
        return self.feed(b"\n\n") if self._rest or self._data else []

    def _line(self, line: bytes, events: list[StreamEvent]) -> None:
        if self._is_start:
            self._is_start, line = False, line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(StreamEvent("\n".join(self._data), self._event or "message"))
            self._data, self._event, self._size = [], "", 0
            return
        name, _, value = line.partition(b":")  # a comment has an empty name
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value.decode("utf-8", "replace"))
            self._size += len(value) + 1
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
