"""What is kept of a batch, and how it is changed by several at once: clients, and gateways.

Of its requests only the number is noted: they are in the queue, under the name of the batch as their
job. What becomes of them is counted there until it has ended, and then written down.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from scheduler.stores.base import Store
from scheduler.stores.papers import Paper

KINDS = ("batch", "message-batch")  # of papers: OpenAI's, Anthropic's
_PREFIXES = ("batch_", "msgbatch_")
BACKGROUND = "background"  # the job of responses that nobody stays on the line for
REFUSED = "refused"  # the kind of the pages with lines that could not be queued
MAX_ERRORS = 100
_ID = re.compile(r"[a-zA-Z0-9_-]{1,100}")


class Phase(StrEnum):
    """How far a batch has come."""

    VALIDATING = "validating"  # its lines are read
    IN_PROGRESS = "in_progress"  # they are in the queue, or on their way there
    FINALIZING = "finalizing"  # all have ended, and it is summed up
    FAILED = "failed"  # nothing of it was queued
    ENDED = "ended"


@dataclass(slots=True)
class Batch:
    """See the module.

    Attributes:
        id: Also the job of its requests.
        owner: The token by which it was made.
        is_messages: It is one of Anthropic's, else one of OpenAI's.
        endpoint: Of all its requests.
        input_id: The file with its lines.
        window: As it was asked for.
        deadline_ms: When what was not sent by then is dropped. None: never.
        wanted: The provider that its path named; empty: none.
        said: What its headers and its token say of its requests, as fields of `Request`.
        metadata: Its client's own.
        output_stays_s: How long its result files stay. None: as long as the store has them.
        digest: Of how it was asked for, by which it is known if its client asks again.
        phase: How far it has come.
        cancelled_ms: Since when it is to be ended.
        is_fed: All its lines are in the queue, or refused; or it was cancelled, and no more will be.
        is_whole: All of them are sent from the store, whichever process is there.
        by: The process that reads its lines, or did; see `scheduler.stores.process`, and a name of its
            own, since there may be several of that kind in it.
        seen_ms: When that was last at work on it.
        total: Its lines.
        refused: Of these, those that could not be queued.
        dropped: And those that were not, since it was cancelled before.
        errors: What was wrong with it, where it failed.
        model: What its first line asks.
        ended: How many ended in which state, once all have.
        usage: Their tokens, likewise.
        cost_nusd: What they cost, likewise.
        files: Its output and error files, by which.
    """

    id: str
    owner: str
    is_messages: bool
    endpoint: str
    input_id: str
    window: str
    made_ms: int
    deadline_ms: int | None = None
    wanted: str = ""
    said: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    output_stays_s: int | None = None
    digest: str = ""
    phase: str = Phase.VALIDATING
    begun_ms: int | None = None
    cancelled_ms: int | None = None
    finalizing_ms: int | None = None
    ended_ms: int | None = None
    is_fed: bool = False
    is_whole: bool = False
    by: list[Any] = field(default_factory=list)
    seen_ms: int = 0
    total: int = 0
    refused: int = 0
    dropped: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    ended: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    cost_nusd: int = 0
    files: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Of its paper."""
        return KINDS[self.is_messages]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.phase in (Phase.FAILED, Phase.ENDED)

    @property
    def asked(self) -> dict[str, Any]:
        """What is said of each of its requests, as fields of `Request`."""
        if self.deadline_ms is None:
            return self.said
        return {**self.said, "deadline": datetime.fromtimestamp(self.deadline_ms / 1000, UTC)}

    def as_text(self) -> str:
        """All but what its paper says."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Batch:
        """The other way."""
        said: Mapping[str, Any] = json.loads(text)
        return cls(**{name: said[name] for name in cls.__slots__ if name in said})


def new_id(prefix: str) -> str:
    """A name that nobody can guess."""
    return f"{prefix}{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether anything here could be called so: a store may not even be able to look for others."""
    return _ID.fullmatch(text) is not None


def new_batch_id(*, is_messages: bool) -> str:
    """The same for a batch."""
    return new_id(_PREFIXES[is_messages])


def _kind_of(name: str) -> str:
    return KINDS[name.startswith(_PREFIXES[True])]


def cancel(batch: Batch, now_ms: int) -> None:
    """Have it end; gateways do the rest, each as far as it can."""
    if not batch.is_over and batch.cancelled_ms is None:
        batch.cancelled_ms = now_ms


async def keep(store: Store, batch: Batch) -> None:
    """Keep a new one."""
    paper = Paper(batch.kind, batch.id, batch.owner, batch.as_text(), batch.made_ms, is_open=True)
    await store.add_paper(paper)


async def find(store: Store, name: str) -> Batch | None:
    """One of them; None: there is none of that name."""
    paper = await store.paper(_kind_of(name), name) if is_id(name) else None
    return None if paper is None else Batch.read(paper.text)


async def open_ones(store: Store) -> list[Batch]:
    """Those that are not over, whoever owns them."""
    papers = [each for kind in KINDS for each in await store.open_papers(kind)]
    return [Batch.read(each.text) for each in papers]


async def listed(
    store: Store, owner: str, limit: int, after: str | None = None, *, is_messages: bool,
    newest_first: bool = True,
) -> list[Batch]:  # fmt: skip
    """So many of an owner's, from behind one of them."""
    if after is not None and not is_id(after):
        return []
    papers = await store.papers(
        KINDS[is_messages], owner, limit=limit, after=after, newest_first=newest_first
    )
    return [Batch.read(each.text) for each in papers]


async def amend(store: Store, name: str, change: Callable[[Batch], object]) -> Batch | None:
    """Change it, whatever others do to it meanwhile.

    Args:
        store: Where it is.
        name: Its id.
        change: Changes what it is given; called again with what it is then, if others were first.

    Returns:
        What it is now. None: there is none.
    """
    while True:
        paper = await store.paper(_kind_of(name), name)
        if paper is None:
            return None
        batch = Batch.read(paper.text)
        change(batch)
        text = batch.as_text()
        if text == paper.text or await store.change_paper(paper, text, not batch.is_over):
            return batch
