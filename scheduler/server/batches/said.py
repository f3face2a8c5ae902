"""What is said of the requests of a batch besides their bodies, and why they wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from scheduler.admission.notices import sentence
from scheduler.duration import parse_duration_ms
from scheduler.server.asked import read_asked
from scheduler.server.batches import door
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.record import Batch
from scheduler.server.line import Line
from scheduler.server.tokens import Token
from scheduler.stats import Counts


def said_of(line: Line, token: Token, now_ms: int) -> tuple[dict[str, Any], int | None]:
    """Fields of `Request` that headers and token say, as JSON; and the deadline among them.

    Raises:
        ConfigError, Unserved: Headers say what makes no sense, or more than the token allows.
    """
    marks = dict(read_asked(line.headers, token, now_ms).marks)
    if marks.pop("job", None):
        raise door.wrong(
            "the job of these requests is the id that they get; leave X-Scheduler-Job out"
        )
    deadline = marks.pop("deadline", None)
    said = {name: value for name, value in marks.items() if value is not None}
    said.setdefault("priority", "batch")
    if deadline is None:
        return said, None
    if isinstance(deadline, datetime):
        return said, int(deadline.timestamp() * 1000)
    return said, now_ms + parse_duration_ms(deadline, "X-Scheduler-Deadline")


async def waits_of(
    keeper: Keeper, batch: Batch, counts: Counts | None, now_ms: int
) -> Mapping[str, Any]:
    """Why a batch waits, and until when, for people and for programs; empty: it does not."""
    lack = None if counts is None else await keeper.lacks(batch, counts)
    if counts is None or lack is None:
        return {}
    resumes_ms = lack.resumes_at_ms
    return {
        "parked": counts.parked, "reason": str(lack.reason), "budget": lack.budget,
        "resumes_at": None if resumes_ms is None else resumes_ms // 1000,
        "message": sentence(lack, now_ms),
    }  # fmt: skip
