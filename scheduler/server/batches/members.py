"""A long list in a body of JSON, read one member at a time, so that others get their turn meanwhile; pure.

>>> list(members('{"a": [9], "b": [1, {"c": [2]}] , "d": 0}', "b"))
[1, {'c': [2]}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_decode = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")


def members(text: str, name: str) -> Iterator[Any]:
    """What stands in a list that is a member of an object; nothing, if that is none, or not there.

    What is wrong with the text behind a member is found out when that was told.

    Raises:
        ValueError, RecursionError: It is no JSON object, or has two such lists.
    """
    at, is_found = _behind(text, 0, "{"), False
    while not text.startswith("}", at):
        key, at = _decode(text, at)
        if not isinstance(key, str):
            raise ValueError("the name of a member is no text")
        at = _behind(text, at, ":")
        if key == name and text.startswith("[", at):
            if is_found:
                raise ValueError(f"{name!r} is there twice")
            is_found = True
            at = _behind(text, at, "[")
            while not text.startswith("]", at):
                value, at = _decode(text, at)
                yield value
                at = _next(text, at, "]")
            at += 1
        else:
            _, at = _decode(text, at)
        at = _next(text, at, "}")
    if _skip(text, at + 1) != len(text):
        raise ValueError("there is something behind it")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _behind(text: str, at: int, mark: str) -> int:
    """What comes next behind a mark that has to be there."""
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"{mark} is missing at {at}")
    return _skip(text, at + 1)


def _next(text: str, at: int, end: str) -> int:
    """Where the next of several stands, or the end of them."""
    at = _skip(text, at)
    if text.startswith(end, at):
        return at
    at = _behind(text, at, ",")
    if text.startswith(end, at):
        raise ValueError(f"a comma stands before {end}")
    return at
