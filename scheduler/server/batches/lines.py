"""What the lines of a batch ask; pure.

>>> read_line(1, '{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", '
...              '"body": {"model": "m", "input": "x"}}', "/v1/embeddings")
Line(number=1, key='a', url='/v1/embeddings', body={'model': 'm', 'input': 'x'})
>>> read_line(2, '{"custom_id": "a"}', "/v1/embeddings")
Wrong(number=2, key='a', code='invalid_method', problem="the method is None, not 'POST'", param='method')
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from scheduler.adapters.dialects import decoded

MAX_KEY_CHARS = 512
MAX_LINE_CHARS = 64 * 1024 * 1024


class Line(NamedTuple):
    """One request of a batch.

    Attributes:
        number: Of the line, from 1.
        key: Its ``custom_id``.
        url: The endpoint.
        body: What is asked there.
    """

    number: int
    key: str
    url: str
    body: dict[str, Any]


class Wrong(NamedTuple):
    """A line that is none.

    Attributes:
        key: Its ``custom_id``, as far as it could be read.
        code: For programs.
        problem: For people.
        param: Which member is wrong; empty: all of it.
    """

    number: int
    key: str
    code: str
    problem: str
    param: str = ""


def read_line(number: int, text: str, endpoint: str) -> Line | Wrong:
    """One line of an input file; all of them ask the same endpoint."""
    said = decoded(text.encode("utf-8", "surrogatepass"))
    if said is None:
        return Wrong(number, "", "invalid_json_line", "this line is no JSON object")
    key, url, body = said.get("custom_id"), said.get("url"), said.get("body")
    if not isinstance(key, str) or not key or len(key) > MAX_KEY_CHARS:
        problem = f"it needs a custom_id: a text of 1 to {MAX_KEY_CHARS} characters"
        return Wrong(number, "", "invalid_custom_id", problem, "custom_id")
    if said.get("method") != "POST":
        problem = f"the method is {said.get('method')!r:.50}, not 'POST'"
        return Wrong(number, key, "invalid_method", problem, "method")
    if url != endpoint:
        problem = f"the url is {url!r:.100}, but the batch was made for {endpoint!r}"
        return Wrong(number, key, "mismatched_url", problem, "url")
    if not isinstance(body, dict):
        return Wrong(number, key, "invalid_body", "its body is no JSON object", "body")
    return _with_body(number, key, endpoint, body)


def _with_body(number: int, key: str, url: str, body: dict[str, Any]) -> Line | Wrong:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return Wrong(number, key, "missing_model", "its body names no model", "body.model")
    if body.get("stream"):
        problem = "it asks for a stream, which nobody would read; leave 'stream' out"
        return Wrong(number, key, "stream_unsupported", problem, "body.stream")
    return Line(number, key, url, body)


def written(key: str, url: str, body: Any) -> str:
    """A line of an input file."""
    line = {"custom_id": key, "method": "POST", "url": url, "body": body}
    return json.dumps(line, separators=(",", ":")) + "\n"


class Cutter:
    r"""Cuts a text that comes in pieces into pages of whole lines.

    >>> cutter = Cutter(8)
    >>> list(cutter.take(b"one\ntw")), list(cutter.take(b"o\nthree\nf")), cutter.rest()
    ([], ['one\ntwo\n'], 'three\nf')

    Args:
        size: Of a page, about.
    """

    def __init__(self, size: int = 256 * 1024) -> None:
        self._size, self._held, self._sought = size, bytearray(), 0

    def take(self, piece: bytes) -> Iterator[str]:
        """Pages that are complete. Raises `UnicodeDecodeError` for what is no UTF-8."""
        held = self._held
        held += piece
        while len(held) >= self._size:
            at = held.find(b"\n", max(self._sought, self._size - 1))
            if at < 0:
                self._sought = len(held)  # of a long line each piece is looked through once
                return
            page, self._sought = held[: at + 1].decode(), 0
            del held[: at + 1]
            yield page

    @property
    def is_stuck(self) -> bool:
        """Whether it holds a line that is too long to be one."""
        return len(self._held) > MAX_LINE_CHARS

    def rest(self) -> str:
        """What is left at the end."""
        return self._held.decode()
