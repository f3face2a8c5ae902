"""What is told of the processes that send what others submit, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scheduler.cli.output import iso, plural, table
from scheduler.guards.plain import without_password
from scheduler.request import RequestState

if TYPE_CHECKING:
    from scheduler.stats import QueueRow, Unserved, WorkerStatus


def unserved_sentence(each: Unserved, store: str = "") -> str:
    """That nobody sends what waits, and what to do; `store` as `store_option` has it."""
    wait = "waits" if each.waiting == 1 else "wait"
    service = without_password(each.service)
    return (
        f"{plural(each.waiting, 'request')} {wait} for provider {each.provider!r} ({service}), which "
        f"no live worker serves. Start one that has its key: scheduler worker{store}"
    )


def is_unserved(row: QueueRow, unserved: Sequence[Unserved]) -> bool:
    """Whether a request waits for a provider that nobody serves."""
    return bool(row.service) and row.state is RequestState.QUEUED and any(
        (row.provider, row.service) == (each.provider, each.service) for each in unserved
    )  # fmt: skip


def unserved_row(each: Unserved) -> dict[str, Any]:
    """The same for programs."""
    return {
        "provider": each.provider,
        "service": without_password(each.service),
        "requests": each.waiting,
    }


def worker_row(each: WorkerStatus) -> dict[str, Any]:
    """A worker for programs."""
    return {
        "id": each.id,
        "host": each.host,
        "pid": each.pid,
        "live": each.is_live,
        "serves": [
            {"provider": name, "service": without_password(service), "own_only": name in each.own}
            for name, service in each.serves.items()
        ],
        "concurrency": each.concurrency,
        "running": each.running,
        "since": iso(each.since_ms),
        "seen": iso(each.seen_at_ms),
    }


def worker_table(workers: Sequence[WorkerStatus], at_ms: int) -> str:
    """Workers for people."""
    from scheduler.duration import format_duration

    def ago(then_ms: int) -> str:
        return format_duration(max(0, at_ms - then_ms) // 1000 * 1000)

    rows = [
        (
            each.id,
            f"{each.host} {each.pid}",
            ", ".join(
                f"{name} ({without_password(service)}{': its own batch' if name in each.own else ''})"
                for name, service in each.serves.items()
            ),
            f"{each.running}/{each.concurrency}",
            ago(each.since_ms),
            f"{ago(each.seen_at_ms)} ago{'' if each.is_live else ', lost'}",
        )
        for each in workers
    ]
    columns = ("worker", "host and pid", "serves", "running", "for", "seen")
    return table(columns, rows, right="worker running")
