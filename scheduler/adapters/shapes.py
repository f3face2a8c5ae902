"""Answers in the types of the ``openai`` package where it is installed, else in some like them.

>>> thing = Thing({"choices": [{"message": {"content": "yes"}}]})
>>> thing.choices[0].message.content, thing["choices"][0]["message"]["content"]
('yes', 'yes')
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

from scheduler.money import decimal_usd
from scheduler.request import Response, StreamEvent


class Shape(Enum):
    """What is answered: the type of an answer in ``openai.types``, and that of its chunks."""

    CHAT = ("chat.ChatCompletion", "chat.ChatCompletionChunk")
    RESPONSES = ("responses.Response", "responses.ResponseStreamEvent")
    EMBEDDINGS = ("CreateEmbeddingResponse", "")


class Thing(dict[str, Any]):
    """A JSON object whose members are attributes, too; those it does not have are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return as_thing(self.get(name))

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The JSON object; for those who treat it as one of OpenAI's types."""
        return dict(self)


def as_thing(value: Any) -> Any:
    """A JSON value with attributes."""
    if isinstance(value, dict):
        return Thing(value)
    return [as_thing(each) for each in value] if isinstance(value, list) else value


def as_plain(value: Any) -> Any:
    """An argument as JSON has it: messages may be objects that were given back before."""
    if isinstance(value, Mapping):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(each) for each in value]
    dump = getattr(value, "model_dump", None)
    return dump(exclude_none=True) if callable(dump) else value


def result_of(response: Response, shape: Shape) -> Any:
    """An answer, with what it cost."""
    told = {
        "cost_usd": decimal_usd(response.cost_nusd), "attempts": response.attempts,
        "parked_ms": response.parked_ms, "waited_ms": response.waited_ms,
    }  # fmt: skip
    body = {**response.body, "scheduler": told}
    if shape is Shape.RESPONSES and _type(shape.value[0])[0] is None:
        body["output_text"] = response.text  # which OpenAI's type has as a property
    return _build(shape.value[0], body)


def chunk_of(event: StreamEvent, shape: Shape) -> Any:
    """One event of a stream."""
    return _build(shape.value[1], event.json())


def _build(name: str, body: Any) -> Any:
    kind, construct = _type(name)
    if kind is None or not isinstance(body, dict):
        return as_thing(body)
    return construct(type_=kind, value=body)


@cache
def _type(name: str) -> tuple[Any, Any]:
    """A type of OpenAI's, and how its SDK makes one of an answer: as it comes, unchecked."""
    place, _, last = name.rpartition(".")
    try:
        module = importlib.import_module(f"openai.types.{place}".rstrip("."))
        return getattr(module, last), importlib.import_module("openai._models").construct_type
    except (ImportError, AttributeError):
        return None, None
