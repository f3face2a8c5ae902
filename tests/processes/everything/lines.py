"""The bad lines of a batch: a table of what stands in the file and how that line must end.

`batch` mixes them among good ones, and those that meet a fault of the server's, into one file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.processes.everything.faults import Fault

Ends = Literal["answered", "failed", "bad", "either"]

MAX_LINE_BYTES = 200_000
PLAIN = "plain"  # a model that always answers
FIRST_GOOD = 40  # lines at the beginning, so that nobody takes the file for something else
LINES_PER_KIND, LINES_PER_FAULT, SLOW_LINES = 3, 8, 3


@dataclass(frozen=True)
class Kind:
    """One way for a line to be bad, or to look it.

    Attributes:
        name: For people.
        make: The line, without its end; is given an id of its own.
        ends: "bad" lines are explained, in the errors file alone; of "either" only one outcome,
            wherever, is asked.
        readable: The id can be read from it, and stands in its error; None: perhaps.
    """

    name: str
    make: Callable[[str], bytes]
    ends: Ends = "bad"
    readable: bool | None = True


@dataclass
class Line:
    """A line of the file, and what must become of it.

    Attributes:
        kind: The name of its `Kind` or `Fault`; "plain": nothing is wrong.
        key: Its ``custom_id``, or what it is called without one.
        keys: What its error may be called.
        prompt: What the server is asked; None: it is not to be asked, or is not asked in words.
    """

    number: int
    kind: str
    key: str
    text: bytes
    ends: Ends
    keys: frozenset[str]
    prompt: str | None


def _dump(fields: Any) -> bytes:
    return json.dumps(fields).encode()


def body_of(name: str, model: str = PLAIN, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": name}]
    return {"model": model, "max_tokens": 40, "messages": messages} | more


def _raw(**more: Any) -> Callable[[str], bytes]:
    """A body with its id beside its fields; None takes a field away."""

    def make(name: str) -> bytes:
        fields = {"custom_id": name, **body_of(name), **more}
        return _dump({key: value for key, value in fields.items() if value is not None})

    return make


def _envelope(**more: Any) -> Callable[[str], bytes]:
    def make(name: str) -> bytes:
        fields = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
                  "body": body_of(name)}  # fmt: skip
        return _dump(fields | more)

    return make


def _constant(data: bytes) -> Callable[[str], bytes]:
    return lambda _: data


def _written(field: str, literal: bytes) -> Callable[[str], bytes]:
    """A body with a field that Python's JSON would not write so."""

    def make(name: str) -> bytes:
        return _dump({"custom_id": name, **body_of(name), field: "@"}).replace(b'"@"', literal)

    return make


def _without_id(fields: dict[str, Any]) -> Callable[[str], bytes]:
    return _constant(_dump(fields))


def _numbered(name: str) -> bytes:
    """An id that is a number; `batch` knows it as text."""
    return _dump({"custom_id": int(name.rpartition("#")[2]), **body_of(name)})


ASK = [{"role": "user", "content": "hello"}]
KINDS = (
    # No JSON, or not of this kind
    Kind("words", _constant(b"hello, this is no JSON"), readable=False),
    Kind("cut", lambda name: _raw()(name)[:-9], readable=None),
    Kind("not-utf-8", lambda name: _raw()(name).replace(b'"user"', b'"us\xff\xfer"'),
         readable=None),
    Kind("raw-nul", lambda name: _raw()(name).replace(b'"user"', b'"us\0er"'), readable=None),
    Kind("two-at-once", lambda name: _raw()(name) + _raw()(name), readable=None),
    Kind("comma", lambda name: _raw()(name) + b",", "either", readable=None),
    Kind("single-quotes", lambda name: _raw()(name).replace(b'"', b"'"), readable=None),
    Kind("empty-object", _constant(b"{}"), readable=False),
    Kind("array", lambda name: b"[" + _raw()(name) + b"]", readable=None),
    Kind("text", _constant(b'"just a text"'), readable=False),
    Kind("number", _constant(b"42"), readable=False),
    Kind("null", _constant(b"null"), readable=False),
    Kind("csv", _constant(b"id,prompt,category"), readable=False),
    Kind("nan", _written("temperature", b"NaN")),
    Kind("infinity", _written("temperature", b"-Infinity")),
    Kind("too-large-float", _written("temperature", b"1e999")),
    Kind("nested", _written("metadata", b"[" * 90_000 + b"]" * 90_000), readable=None),
    Kind("long", lambda name: _dump({"custom_id": name, **body_of(name), "x": "y" * 250_000}),
         readable=None),
    # Ids
    Kind("id-empty", lambda name: _dump({**body_of(name), "custom_id": ""}), readable=False),
    Kind("id-long", lambda name: _dump({**body_of(name), "custom_id": "k" * 501}), readable=False),
    Kind("id-list", lambda name: _dump({**body_of(name), "custom_id": [name]}), readable=False),
    Kind("id-true", lambda name: _dump({**body_of(name), "custom_id": True}), readable=False),
    Kind("id-half-pair", lambda name: _dump({**body_of(name), "custom_id": "\ud83d"}),
         readable=False),
    Kind("id-nul", lambda name: _dump({**body_of(name), "custom_id": f"{name}\0"}), "either"),
    Kind("id-near-miss", lambda name: _dump({**body_of(name), "customId": name}), "either"),
    Kind("id-number", _numbered, "answered"),
    # Envelopes
    Kind("url-unknown", _envelope(url="/v1/teapots")),
    Kind("url-list", _envelope(url=["/v1/chat/completions"])),
    Kind("url-short", _envelope(url="/chat/completions"), "answered"),
    Kind("url-slash", _envelope(url="/v1/chat/completions/"), "answered"),
    Kind("method-get", _envelope(method="GET")),
    Kind("method-lower", _envelope(method="post"), "answered"),
    Kind("body-text", _envelope(body="hello")),
    Kind("body-null", _envelope(body=None)),
    Kind("vertex", _without_id({"request": {"contents": [{"role": "user", "parts": []}]}}),
         readable=False),
    Kind("bedrock", _without_id({"recordId": "r", "modelInput": {"messages": ASK}}),
         "either", readable=False),
    Kind("instruction", _without_id({"model": PLAIN, "instruction": "Translate",
                                     "input": "good day", "output": "bonjour"}), readable=False),
    Kind("evaluation", _without_id({"model": PLAIN, "input": ASK, "ideal": "hi"}), readable=False),
    # Bodies
    Kind("no-model", _raw(model=None)),
    Kind("model-number", _raw(model=5)),
    Kind("model-half-pair", _raw(model="\ud83d")),
    Kind("model-unpriced", _raw(model="nobody-knows-this-one")),
    Kind("provider-without-key", _raw(model="anthropic:claude-haiku-4-5")),
    Kind("messages-text", _raw(messages="hello")),
    Kind("prompt-list", lambda name: _dump({"custom_id": name, "model": PLAIN, "prompt": [1]})),
    Kind("nothing-to-ask", lambda name: _dump({"custom_id": name, "model": PLAIN})),
    Kind("n-huge", _written("n", b"1" + b"0" * 20)),
    Kind("max-tokens-huge", _written("max_tokens", b"9" * 4_000)),
    Kind("n-text", _raw(n="2"), "either"),
    Kind("n-float", _raw(n=2.0), "either"),
    Kind("half-pair", lambda name: _raw(user="\ud83d")(name), "answered"),
    Kind("moderation", lambda name: _dump({"custom_id": name, "method": "POST",
                                           "url": "/v1/moderations", "body": {"input": name}}),
         "answered"),
)  # fmt: skip
UNSURE = frozenset(kind.name for kind in KINDS if kind.readable is None)
TWICE, CONFLICT = "twice", "conflict"


def batch(
    kinds: Sequence[Kind], faults: Sequence[Fault], size: int, with_twice: bool = True
) -> list[Line]:
    """The lines of one file, always the same ones; blank lines are counted, but not among them."""
    rng = random.Random(7)
    waiting = [*_bad(kinds), *_faulty(faults)]
    if with_twice:
        waiting += _again(LINES_PER_KIND)
    waiting += [None] * 20  # blank lines
    waiting += [_plain(f"plain-{n}") for n in range(FIRST_GOOD, size - len(waiting))]
    rng.shuffle(waiting)
    first = [_plain(f"plain-{n}") for n in range(FIRST_GOOD)]
    made = []
    for number, line in enumerate([*first, *waiting, _plain("the-last-one")], 1):
        if line is not None:
            line.number = number
            if not line.key:
                line.key = f"line-{number}"
            if not line.keys or line.kind in UNSURE:
                line.keys |= {f"line-{number}"}
            made.append(line)
    return made


def write(lines: Sequence[Line]) -> bytes:
    """The file: blank lines where there is none, and none at the end of the last."""
    by_number = {line.number: line for line in lines}
    last = lines[-1].number
    texts = [by_number[n].text if n in by_number else b"" for n in range(1, last + 1)]
    return b"\n".join(texts)


def _plain(name: str) -> Line:
    return Line(0, PLAIN, name, _raw()(name), "answered", frozenset(), name)


def _bad(kinds: Sequence[Kind]) -> Iterator[Line]:
    for kind in kinds:
        for n in range(LINES_PER_KIND):
            name = f"{kind.name}#{n}"
            key = str(n) if kind.name == "id-number" else "" if kind.readable is False else name
            keys = frozenset() if kind.readable is False else frozenset({name})
            asked = name if kind.ends == "answered" else None
            yield Line(0, kind.name, key, kind.make(name), kind.ends, keys, asked)


def _faulty(faults: Sequence[Fault]) -> Iterator[Line]:
    for fault in faults:
        is_slow = fault.name in ("trickle", "stream-only-comments")
        for n in range(SLOW_LINES if is_slow else LINES_PER_FAULT):
            name = f"{fault.name}#{n}"
            model = f"other:{fault.name}" if fault.wants_credit else fault.name
            more = {"stream": True} if fault.is_stream else {}
            text = _dump({"custom_id": name, **body_of(name, model, **more)})
            yield Line(0, fault.name, name, text, fault.ends, frozenset({name}), name)


def _again(count: int) -> Iterator[Line]:
    """Ids of lines at the beginning once more: with the same body, and with another."""
    for n in range(count):
        same, other = f"plain-{n}", f"plain-{count + n}"
        yield Line(0, TWICE, same, _raw()(same), "bad", frozenset({same}), None)
        yield Line(0, CONFLICT, other, _raw(seed=5)(other), "bad", frozenset({other}), None)
