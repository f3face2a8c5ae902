"""An answer of the type that an SDK expects, for tests that need a server and no particular answer.

Suites made by a generator test every endpoint against a server that answers by the API's schema.
The types of the SDK say the same, so the request carries its answer along, in a header, and the
server gives it back.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
import types
import typing
from typing import Any

import pydantic

ANSWER, KIND = "X-Suites-Answer", "X-Suites-Kind"
_DEEPEST = 12
_PLAIN: dict[Any, Any] = {
    str: "string", int: 1, float: 1.0, bool: True, bytes: "", type(None): None,
    datetime.datetime: "2019-12-27T18:11:19.117Z", datetime.date: "2019-12-27",
}  # fmt: skip


def example(kind: Any, depth: int = 0) -> Any:
    """The least JSON that is of a type: required fields only, the first of several kinds.

    Raises:
        ValueError: It has no end.
    """
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if kind in _PLAIN:
        return _PLAIN[kind]
    if hasattr(kind, "__value__"):  # a type alias
        return example(kind.__value__, depth)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return example(args[0], depth)
    if origin is typing.Literal:
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in args else _first(args, depth)
    if isinstance(origin or kind, type):
        if issubclass(origin or kind, pydantic.BaseModel):
            return {
                field.alias or name: example(field.annotation, depth + 1)
                for name, field in kind.model_fields.items()
                if field.is_required()
            }
        if issubclass(origin or kind, list | tuple | set):
            return []
    return {}


def _first(kinds: tuple[Any, ...], depth: int) -> Any:
    for kind in kinds:
        try:
            return example(kind, depth + 1)
        except ValueError:
            continue
    raise ValueError("too deep")


def bring_answers(kind: type, served: tuple[str, ...]) -> None:
    """Have the requests of a client's class carry their answers, in the tests of those places."""
    original: Any = kind.request  # type: ignore[attr-defined]

    @functools.wraps(original)
    def request(self: Any, cast_to: Any, options: Any, **more: Any) -> Any:
        if os.environ.get("PYTEST_CURRENT_TEST", "").startswith(served):
            options = options.model_copy()
            said = "stream" if more.get("stream") else "text" if cast_to is str else "json"
            body = json.dumps(example(cast_to)).encode()
            own = options.headers if isinstance(options.headers, dict) else {}
            headers = {ANSWER: base64.b64encode(body).decode(), KIND: said}
            options.headers = {**own, **headers}
        return original(self, cast_to, options, **more)

    kind.request = request  # type: ignore[attr-defined]
