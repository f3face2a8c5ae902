"""Batch files: lines in, result lines out.

In, one JSON object a line, in any of these forms:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    {"model": "gpt-4o-mini", "messages": […]}          a raw body, with or without "custom_id"
    {"prompt": "Say hello"}                             one user message

Out, OpenAI Batch result lines, in the order of completion, matched by ``custom_id``.
What this package adds is under the one key ``scheduler``. A line without an id gets
``line-N``, so that a rerun knows it again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from scheduler.errors import ConfigError, InputError
from scheduler.money import decimal_usd
from scheduler.request import (
    CHAT,
    EMBEDDINGS,
    ENDPOINTS,
    RESPONSES,
    Priority,
    Request,
    Response,
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


# Lines out


def line_id(request_id: int) -> str:
    """What a request is called in result files."""
    return f"batch_req_{request_id}"


def result_line(request_id: int, key: str | None, response: Response) -> dict[str, Any]:
    """A success as an OpenAI Batch result line."""
    return {
        "id": line_id(request_id),
        "custom_id": key,
        "response": {
            "status_code": response.status_code,
            "request_id": response.request_id,
            "body": response.body,
        },
        "error": None,
        "scheduler": {
            "cost_usd": decimal_usd(response.cost_nusd),
            "is_estimated": response.is_estimated,
            "input_tokens": None if response.usage is None else response.usage.input_tokens,
            "output_tokens": None if response.usage is None else response.usage.output_tokens,
            "attempts": response.attempts,
            "parked_seconds": response.parked_ms / 1000,
            **({} if response.instead_of is None else {"instead_of": dict(response.instead_of)}),
        },
    }


def error_line(
    request_id: int | None,
    key: str | None,
    error: Mapping[str, Any],
    cost_nusd: int = 0,
    attempts: int = 0,
) -> dict[str, Any]:
    """A failure as an OpenAI Batch result line; `error` as the store keeps it."""
    status, body = error.get("status"), error.get("body")
    answered = None
    if status is not None:
        answered = {"status_code": status, "request_id": None, "body": body}
    return {
        "id": None if request_id is None else line_id(request_id),
        "custom_id": key,
        "response": answered,
        "error": {"code": error.get("code"), "message": error.get("message")},
        "scheduler": {"cost_usd": decimal_usd(cost_nusd), "attempts": attempts},
    }


def input_line(request: Request) -> dict[str, Any]:
    """A request as a line of batch input."""
    return {"custom_id": request.key, "method": "POST", "url": request.url, "body": request.body}


class LineFile:
    """A JSONL file that is appended to, safely.

    Opening makes it if need be (mode 0600) and cuts a last line that was torn by a
    crash. `append` returns when the lines are on the disk.

    Raises:
        ConfigError: It cannot be written, or holds something else than JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.was_torn = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise ConfigError("output", f"cannot write {path}: {exc.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            # It could not be read again to resume, and must not be removed when it is empty.
            os.close(self._fd)
            raise ConfigError("output", f"{path} is no regular file; '-' writes to stdout")
        try:
            self._cut_torn_line()
        except ConfigError:
            os.close(self._fd)
            raise

    def _cut_torn_line(self) -> None:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65_536)
            os.lseek(self._fd, start, os.SEEK_SET)
            block = os.read(self._fd, end - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        # Whatever else it is (a database, somebody's notes), it must stay as it is.
        begins = os.pread(self._fd, 1, 0) + os.pread(self._fd, 1, end)
        if begins.strip(b"{\0"):  # zeros are what a file system leaves after a power cut
            problem = f"{self.path} holds something else than lines of JSON, and was left as it is"
            raise ConfigError("output", f"{problem}; name another file")
        if end != size:
            os.ftruncate(self._fd, end)
            self.was_torn = True
        os.lseek(self._fd, 0, os.SEEK_END)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write whole lines and wait until they are on the disk; all of them or none.

        Raises:
            OSError: The disk is full, or worse; the file ends with a whole line.
        """
        data = "".join(
            json.dumps(line, separators=(",", ":"), default=str) + "\n" for line in lines
        )
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            view = memoryview(data.encode())
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, end)
            raise

    def ends(self) -> Iterator[tuple[str, str | None]]:
        """The ``id`` and ``custom_id`` of every line that ends a request.

        Both, since bad lines have a ``custom_id`` only, and another store counts its
        requests from 1 again.
        """
        with self.path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    name, key = line.get("id"), line.get("custom_id")
                except (ValueError, AttributeError):
                    continue
                if isinstance(name, str):
                    yield name, key

    @property
    def is_empty(self) -> bool:
        """Whether there is no line yet."""
        return os.fstat(self._fd).st_size == 0

    def clear(self) -> None:
        """Remove all lines."""
        os.ftruncate(self._fd, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):  # removed by somebody meanwhile
            if error is None and self.path.stat().st_size == 0:
                self.path.unlink()
