"""Files, batches and their results as OpenAI's and Anthropic's clients read them; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from scheduler.adapters.dialects import Dialect, refusal_body
from scheduler.batch.results import error_line, result_line
from scheduler.money import decimal_usd
from scheduler.request import RequestState
from scheduler.server.batches.record import Batch, Phase
from scheduler.server.batches.shelf import File
from scheduler.stats import Counts
from scheduler.stores.base import Finished

CANCELLED = "batch_cancelled"
NEVER = "9999-12-31T23:59:59Z"  # Anthropic's clients take no null there
UNSENT = {
    RequestState.CANCELLED: (
        CANCELLED, "the batch was cancelled before this request was sent; it cost nothing"
    ),
    RequestState.EXPIRED: (
        "batch_expired", "the batch's time was over before this request was sent; it cost nothing"
    ),
}  # fmt: skip


def file_object(file: File) -> dict[str, Any]:
    """OpenAI's file."""
    return {
        "id": file.id, "object": "file", "bytes": file.bytes, "created_at": file.made_ms // 1000,
        "filename": file.filename, "purpose": file.purpose, "status": "processed",
        "expires_at": _seconds(file.expires_ms), "status_details": None,
    }  # fmt: skip


def listed(rows: Iterable[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list, of rows of which one more than asked for was looked for."""
    found = list(rows)
    data = found[:limit]
    return {
        "object": "list", "data": data, "has_more": len(found) > limit,
        "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None,
    }  # fmt: skip


# OpenAI's batches


def batch_object(batch: Batch, counts: Counts | None, waits: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's batch.

    Args:
        batch: What is known of it.
        counts: How its requests are doing. None: as it says itself.
        waits: Why it waits, for whoever looks; empty: it does not.
    """
    status = _status(batch)
    ended = batch.ended_ms
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint, "model": batch.model,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_id, "completion_window": batch.window, "status": status,
        "output_file_id": batch.files.get("output"), "error_file_id": batch.files.get("errors"),
        "created_at": batch.made_ms // 1000, "in_progress_at": _seconds(batch.begun_ms),
        "expires_at": _seconds(batch.deadline_ms), "finalizing_at": _seconds(batch.finalizing_ms),
        "completed_at": _seconds(ended if status == "completed" else None),
        "failed_at": _seconds(ended if status == "failed" else None),
        "expired_at": _seconds(ended if status == "expired" else None),
        "cancelling_at": _seconds(batch.cancelled_ms),
        "cancelled_at": _seconds(ended if status == "cancelled" else None),
        "request_counts": _counted(batch, counts),
        "usage": _usage(batch.usage), "metadata": batch.metadata,
        "scheduler": {**_cost(batch), **waits},
    }  # fmt: skip


def _status(batch: Batch) -> str:
    if batch.phase == Phase.FAILED:
        return "failed"
    if batch.phase != Phase.ENDED:
        return "cancelling" if batch.cancelled_ms is not None else str(batch.phase)
    if batch.cancelled_ms is not None:
        return "cancelled"
    return "expired" if batch.ended.get("expired") else "completed"


def _counted(batch: Batch, counts: Counts | None) -> dict[str, int]:
    done = batch.ended if counts is None else _ended(counts)
    failed = sum(each for name, each in done.items() if name != "succeeded")
    return {
        "total": batch.total, "completed": done.get("succeeded", 0),
        "failed": failed + batch.refused + batch.dropped,
    }  # fmt: skip


def _ended(counts: Counts) -> dict[str, int]:
    return {
        "succeeded": counts.succeeded, "failed": counts.failed, "cancelled": counts.cancelled,
        "expired": counts.expired,
    }  # fmt: skip


def _usage(usage: Mapping[str, int]) -> dict[str, Any] | None:
    if not usage:
        return None
    return {
        "input_tokens": usage["input"], "output_tokens": usage["output"],
        "input_tokens_details": {"cached_tokens": usage["cached"]},
        "output_tokens_details": {"reasoning_tokens": usage["reasoning"]},
        "total_tokens": usage["input"] + usage["output"],
    }  # fmt: skip


def _cost(batch: Batch) -> dict[str, Any]:
    return {"cost_usd": decimal_usd(batch.cost_nusd)} if batch.phase == Phase.ENDED else {}


def is_in(part: str, finished: Finished) -> bool:
    """Whether a request's end stands in that file of its batch."""
    return (finished.state is RequestState.SUCCEEDED) == (part == "output")


def result(finished: Finished) -> dict[str, Any]:
    """A line of OpenAI's output or error file."""
    if finished.response is not None and finished.state is RequestState.SUCCEEDED:
        return result_line(finished.id, finished.key, finished.response)
    error: Mapping[str, Any] = finished.error or {}
    if finished.state in UNSENT and not finished.cost_nusd:
        code, message = UNSENT[finished.state]
        error = {"code": code, "message": message}
    return error_line(finished.id, finished.key, error, finished.cost_nusd, finished.attempts)


def refused_line(key: str, code: str, problem: str) -> dict[str, Any]:
    """The same of a request that could not be queued."""
    return error_line(None, key, {"code": code, "message": problem})


# Anthropic's


def message_batch(
    batch: Batch, counts: Counts | None, waits: Mapping[str, Any], base: str
) -> dict[str, Any]:
    """Anthropic's batch; `base` is where this gateway is, as its client calls it."""
    is_over = batch.is_over
    status = "ended" if is_over else "in_progress"
    if not is_over and batch.cancelled_ms is not None:
        status = "canceling"
    return {
        "id": batch.id, "type": "message_batch", "processing_status": status,
        "request_counts": _as_told(batch, counts), "created_at": _instant(batch.made_ms),
        "expires_at": _instant(batch.deadline_ms) or NEVER, "ended_at": _instant(batch.ended_ms),
        "cancel_initiated_at": _instant(batch.cancelled_ms), "archived_at": None,
        "results_url": f"{base}/v1/messages/batches/{batch.id}/results" if is_over else None,
        "scheduler": {**_cost(batch), **waits},
    }  # fmt: skip


def _as_told(batch: Batch, counts: Counts | None) -> dict[str, int]:
    done = batch.ended if counts is None else _ended(counts)
    told = {
        "succeeded": done.get("succeeded", 0), "errored": done.get("failed", 0) + batch.refused,
        "canceled": done.get("cancelled", 0) + batch.dropped, "expired": done.get("expired", 0),
    }  # fmt: skip
    return {"processing": max(0, batch.total - sum(told.values())), **told}


def message_result(finished: Finished) -> dict[str, Any]:
    """A line of Anthropic's results."""
    return {"custom_id": finished.key, "result": _of_message(finished)}


def refused_message(key: str, code: str, problem: str) -> dict[str, Any]:
    """The same of a request that could not be queued."""
    if code == CANCELLED:
        return {"custom_id": key, "result": {"type": "canceled"}}
    error = refusal_body(Dialect.ANTHROPIC, 400, code, problem)
    return {"custom_id": key, "result": {"type": "errored", "error": error}}


def _of_message(finished: Finished) -> dict[str, Any]:
    if finished.response is not None and finished.state is RequestState.SUCCEEDED:
        return {"type": "succeeded", "message": finished.response.body}
    if finished.state in UNSENT and not finished.cost_nusd:
        is_late = finished.state is RequestState.EXPIRED
        return {"type": "expired" if is_late else "canceled"}
    error: Mapping[str, Any] = finished.error or {}
    body = error.get("body")
    if not (isinstance(body, Mapping) and isinstance(body.get("error"), Mapping)):
        status = error.get("status") or 500
        body = refusal_body(
            Dialect.ANTHROPIC, int(status), str(error.get("code")), str(error.get("message"))
        )
    return {"type": "errored", "error": {"type": "error", **body}}


def _seconds(instant_ms: int | None) -> int | None:
    return None if instant_ms is None else instant_ms // 1000


def _instant(instant_ms: int | None) -> str | None:
    if instant_ms is None:
        return None
    told = datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")
