"""Batch files, written: OpenAI Batch result lines, matched by ``custom_id``.

They come in the order of completion. What this package adds is under the one key ``scheduler``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from scheduler.money import decimal_usd
from scheduler.request import Request, Response

MAX_BITS = 10_000  # of an integer; Python itself writes and reads none of many more digits


def line_id(request_id: int) -> str:
    """What a request is called in result files."""
    return f"batch_req_{request_id}"


def result_line(
    request_id: int, key: str | None, response: Response, digest: str = ""
) -> dict[str, Any]:
    """A success as an OpenAI Batch result line.

    `digest`, the fingerprint of what was asked, says which request it answers whatever becomes of
    the store.
    """
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
            **_digest(digest),
        },
    }


def error_line(
    request_id: int | None,
    key: str | None,
    error: Mapping[str, Any],
    cost_nusd: int = 0,
    attempts: int = 0,
    digest: str = "",
    place: tuple[str, int] | None = None,
) -> dict[str, Any]:
    """A failure as an OpenAI Batch result line; `error` as the store keeps it.

    `place` is the input and the number of the line, for lines that are no requests.
    """
    status, body = error.get("status"), error.get("body")
    answered = None
    if status is not None:
        answered = {"status_code": status, "request_id": None, "body": body}
    return {
        "id": None if request_id is None else line_id(request_id),
        "custom_id": key,
        "response": answered,
        "error": {"code": error.get("code"), "message": error.get("message")},
        "scheduler": {
            "cost_usd": decimal_usd(cost_nusd),
            "attempts": attempts,
            **_digest(digest),
            **({} if place is None else {"input": place[0], "line": place[1]}),
        },
    }


def _digest(digest: str) -> dict[str, str]:
    return {"digest": digest} if digest else {}


def input_line(request: Request, provider: str | None = None) -> dict[str, Any]:
    """A request as a line of batch input, with the model as it was first asked for.

    `provider` is written before it, where the model alone would not lead there.
    """
    body, first = request.body, request.instead_of
    if first is not None:
        body, provider = {**body, "model": first["model"]}, first["provider"] or None
    if provider is not None:
        body = {**body, "model": f"{provider}:{body['model']}"}
    return {"custom_id": request.key, "method": "POST", "url": request.url, "body": body}


def line_text(line: Mapping[str, Any]) -> str:
    """A line as JSON that every reader takes, whatever the answer held.

    Numbers that JSON does not have (NaN, infinity, and what was too large to be read, such as
    1e999) become null, and lone surrogates, which are no text, U+FFFD. Objects of a provider's
    own become their text.
    """
    try:
        text = _encode(line)
    except (TypeError, ValueError):
        return _encode(plain(line))
    # An escaped surrogate is either half of a character, or lone.
    return _encode(plain(line)) if "\\ud" in text else text


def plain(value: Any) -> Any:
    """A value as `line_text` writes it."""
    if isinstance(value, str):
        if value.isascii():
            return str(value)
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_BITS else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return plain(str(value))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
