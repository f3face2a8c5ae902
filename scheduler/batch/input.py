"""Batch files, read: JSON lines become requests, or errors of lines.

One JSON object a line, in any of these forms:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    {"model": "gpt-4o-mini", "messages": […]}          a raw body, with or without "custom_id"
    {"prompt": "Say hello"}                             one user message

A line without an id gets ``line-N``, so that a rerun knows it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scheduler.errors import ConfigError, InputError
from scheduler.request import (
    CHAT,
    EMBEDDINGS,
    ENDPOINTS,
    RESPONSES,
    Priority,
    Request,
)

MAX_LINE_BYTES = 16 * 1024 * 1024  # unless told otherwise
MAX_KEY = 500


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line that can be sent."""

    number: int
    request: Request


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot; `key` is its ``custom_id``, as far as it could be read."""

    error: InputError
    key: str


@dataclass(frozen=True, slots=True)
class LineOptions:
    """How lines become requests.

    Attributes:
        model: For lines that name none; None: such a line is an error.
        limit: Read only so many lines; None: all.
        max_line_bytes: Longer lines are errors, and are not kept in memory.
    """

    job: str = ""
    model: str | None = None
    priority: int = Priority.BATCH
    limit: int | None = None
    max_line_bytes: int = MAX_LINE_BYTES


def check_input(path: Path) -> None:
    """Refuse what cannot be a batch file, before anything is done.

    Raises:
        ConfigError: Missing, a folder, empty, unreadable, or binary.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as exc:
        raise ConfigError("input", f"cannot read {path}: {exc.strerror}") from None
    if not head.strip():
        raise ConfigError("input", f"{path} is empty; give it one JSON object a line")
    if b"\0" in head:
        raise ConfigError("input", f"{path} is not text: it holds NUL bytes")


def read_lines(file: BinaryIO, name: str, options: LineOptions) -> Iterator[BatchLine | BadLine]:
    """Read a batch file line by line; memory does not grow with it. Blank lines are skipped."""
    most = options.max_line_bytes
    for number, text in enumerate(_raw_lines(file, most), 1):
        if options.limit is not None and number > options.limit:
            return
        if isinstance(text, int):
            problem = f"{text:,} bytes and more; the longest line allowed has {most:,}"
            yield BadLine(InputError(name, number, problem), f"line-{number}")
        elif text.strip():
            yield _parse(text, number, name, options)


def _raw_lines(file: BinaryIO, most: int) -> Iterator[bytes | int]:
    """Lines, or the size of one that is too long."""
    while line := file.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line
            continue
        yield len(line)
        while rest := file.readline(most):
            if rest.endswith(b"\n"):
                break


def _parse(text: bytes, number: int, name: str, options: LineOptions) -> BatchLine | BadLine:
    key = f"line-{number}"
    try:
        fields = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if not isinstance(fields, dict):
            raise ValueError(f"not a JSON object but {type(fields).__name__}")
        key = _key(fields, key)
        request = _request(fields, options)
    except json.JSONDecodeError as exc:
        problem = f"not JSON: {exc.msg} at column {exc.colno}"
    except UnicodeDecodeError:
        problem = "not UTF-8 text"
    except RecursionError:
        problem = "nested too deep"
    except ValueError as exc:
        problem = str(exc)
    else:
        request.key, request.job, request.priority = key, options.job, options.priority
        return BatchLine(number, request)
    return BadLine(InputError(name, number, problem), key)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text[:20])


def _key(fields: dict[str, Any], default: str) -> str:
    key = fields.pop("custom_id", None)
    if key is None:
        return default
    if not isinstance(key, str) or not key or len(key) > MAX_KEY:
        raise ValueError(f"custom_id {key!r:.60} is not a text of 1 to {MAX_KEY} characters")
    key.encode()  # a lone surrogate is no text
    return key


def _request(fields: dict[str, Any], options: LineOptions) -> Request:
    if "body" in fields:
        method, url, body = fields.get("method", "POST"), fields.get("url", CHAT), fields["body"]
        if method != "POST":
            raise ValueError(f"method {method!r:.20} is not 'POST'")
        if url not in ENDPOINTS:
            raise ValueError(f"url {url!r:.60} is not one of {', '.join(ENDPOINTS)}")
        if not isinstance(body, dict):
            raise ValueError(f"body is not an object but {type(body).__name__}")
    else:
        url, body = _raw_body(fields)
    if not body.get("model") and options.model is not None:
        body["model"] = options.model
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ValueError("names no model; add one, or give -m MODEL for lines without")
    body["model"].encode()  # a lone surrogate is no text
    if url == CHAT and not isinstance(body.get("messages"), list):
        raise ValueError("messages is not a list")
    return Request(body, url=url)


def _raw_body(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "messages" in fields:
        return CHAT, fields
    if "input" in fields:
        is_embedding = "embed" in str(fields.get("model", ""))
        return (EMBEDDINGS if is_embedding else RESPONSES), fields
    if "prompt" in fields:
        prompt = fields.pop("prompt")
        if not isinstance(prompt, str):
            raise ValueError(f"prompt is not a text but {type(prompt).__name__}")
        return CHAT, {**fields, "messages": [{"role": "user", "content": prompt}]}
    raise ValueError("has none of body, messages, input or prompt")
