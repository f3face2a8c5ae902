"""What is said of the requests of a batch besides their bodies, whether it was made before, and why it
waits.
"""  # noqa: D205

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from scheduler.admission.notices import sentence
from scheduler.duration import parse_duration_ms
from scheduler.guards.plain import without_password
from scheduler.request import Priority
from scheduler.server.asked import read_asked
from scheduler.server.batches import record
from scheduler.server.batches.keeper import Keeper
from scheduler.server.batches.record import Batch
from scheduler.server.line import Line
from scheduler.server.tokens import Token
from scheduler.stats import Counts, Unserved
from scheduler.stores.base import Store

PRIORITY, RETRY = "x-scheduler-priority", "x-stainless-retry-count"
UNSERVED = "unserved"  # why something waits, beside the reasons of money
AGAIN_MS = 600_000  # a client that asks again by itself does so within that time
LOOKED_AT = 20


def said_of(line: Line, token: Token, now_ms: int) -> tuple[dict[str, Any], int | None]:
    """Fields of `Request` that headers and token say, as JSON; and the deadline among them.

    Raises:
        ConfigError: Headers say what makes no sense, or more than the token allows.
    """
    marks = dict(read_asked(line.headers, token, now_ms).marks)
    marks.pop("job", None)  # it is the batch
    deadline = marks.pop("deadline", None)
    said = {name: value for name, value in marks.items() if value is not None}
    if PRIORITY not in line.headers:  # nobody waits for it, so it is as urgent as a batch, at most
        said["priority"] = max(Priority.parse(said.get("priority", 0)), int(Priority.BATCH))
    if deadline is None:
        return said, None
    if isinstance(deadline, datetime):
        return said, int(deadline.timestamp() * 1000)
    return said, now_ms + parse_duration_ms(deadline, "X-Scheduler-Deadline")


def digest_of(line: Line, content: bytes) -> str:
    """By which it is known whether a batch is asked for that was made already."""
    return hashlib.sha256(line.scope["path"].encode() + b"\0" + content).hexdigest()


def is_again(line: Line) -> bool:
    """Whether an SDK asks once more by itself."""
    return line.headers.get(RETRY, "0") != "0"


async def made_before(
    store: Store, line: Line, token: Token, digest: str, now_ms: int, *, is_messages: bool
) -> Batch | None:
    """The batch that this client made a moment ago, if it asks again since it did not hear of it.

    An SDK does so by itself when a connection breaks; all of it would be paid twice.
    """
    if not is_again(line):
        return None
    found = await record.listed(store, token.name, LOOKED_AT, is_messages=is_messages)
    return next(
        (each for each in found if each.digest == digest and each.made_ms > now_ms - AGAIN_MS), None
    )


async def waits_of(
    keeper: Keeper, batch: Batch, counts: Counts | None, now_ms: int
) -> Mapping[str, Any]:
    """Why a batch waits, and until when, for people and for programs; empty: it does not."""
    if counts is None:
        return {}
    told = unserved(await keeper.unserved(batch, counts))
    lack = await keeper.lacks(batch, counts)
    if lack is None:
        return told
    resumes_ms = lack.resumes_at_ms
    return told | {
        "parked": counts.parked, "reason": str(lack.reason), "budget": lack.budget,
        "resumes_at": None if resumes_ms is None else resumes_ms // 1000,
        "message": sentence(lack, now_ms),
    }  # fmt: skip


def unserved(found: Sequence[tuple[Unserved, str]]) -> dict[str, Any]:
    """That nobody at work has the key for some of its requests; empty: somebody has for each.

    Args:
        found: What waits, by provider, and the variable that this gateway lacks; empty: none.
    """
    if not found:
        return {}
    rows = [
        {"provider": each.provider, "requests": each.waiting, "lacks": lacks or None,
         "message": _unserved(each, lacks)}
        for each, lacks in found
    ]  # fmt: skip
    return {
        "reason": UNSERVED,
        "unserved": rows,
        "message": " ".join(f"{row['message']}." for row in rows),
    }


def _unserved(each: Unserved, lacks: str) -> str:
    wait = "1 request waits" if each.waiting == 1 else f"{each.waiting:,} requests wait"
    at = f"provider {each.provider!r} ({without_password(each.service)})"
    if not lacks:
        return f"{wait} for {at}, which no live process serves; nothing of it was sent. Start one that has its key: scheduler worker"
    return (
        f"{wait} for {at}: {lacks} is not set where this gateway runs, and no live worker has that "
        "key; nothing of it was sent. Start one that has (scheduler worker), or the gateway again with it"
    )
