"""Batch files, written: OpenAI Batch result lines, matched by ``custom_id``.

They come in the order of completion. What this package adds is under the one key ``scheduler``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.money import decimal_usd
from scheduler.request import Request, Response


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
