"""How workers on a cluster are doing, and how that is told. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.dollars import format_usd

QUIET_S = 60.0  # what one worker has said others need not say again
FINE = 0  # as the exit code of a command
# Of exit codes, from the worst that a fleet of workers can end with to the best.
_WORST = (130, 4, 3, 2, 1, 75)
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker did since it began, and what it saw last of the queue."""

    succeeded: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0  # of what it serves; others may see the same
    cost_nusd: int = 0
    reserved_nusd: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        exit: As the exit code of ``scheduler worker``.
        message: Why; empty: there is nothing to say.
        counts: None: as it told last.
        is_final: Only a person can mend it, or there is nothing to mend: it is not begun again.
    """

    exit: int
    message: str = ""
    counts: Counts | None = None
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker tells when it is asked.

    Attributes:
        life: Tells this process from the one before it.
        said: What it said since it was asked last, and `heard`: how much it has said in all.
    """

    life: str
    node_id: str
    pid: int
    counts: Counts
    said: tuple[str, ...]
    heard: int


class State(StrEnum):
    """Where a worker is in its life."""

    WAITING = "waiting"  # for a place on some node
    UP = "up"
    LOST = "lost"  # Ray looks for a place to start it again
    ENDED = "ended"


@dataclass(slots=True)
class Member:
    """One worker, in all its lives."""

    number: int
    state: State = State.WAITING
    life: str = ""
    node: str = ""
    pid: int | None = None
    restarts: int = 0
    heard: int = 0
    ended: Ended | None = None
    _before: Counts = Counts()  # of the lives before this one, as far as they had told
    _now: Counts = Counts()

    def hears(self, told: Told, node: str) -> str:
        """Take over what it tells; returns what of that is news: that it is up, or up again."""
        if self.state is State.ENDED:
            return ""
        is_news = self.state is not State.UP or told.life != self.life
        if told.life != self.life:
            self.restarts += bool(self.life)
            self._before, self.life = self.counts, told.life
        self.state, self.node, self.pid = State.UP, node, told.pid
        self._now, self.heard = told.counts, told.heard
        if not is_news or not self.restarts:
            return ""
        return f"worker {self.number} is up again on {node} (restart {self.restarts})"

    def is_lost(self) -> str:
        """Its process or its node is gone; returns what to say of it."""
        if self.state is not State.UP:
            return ""
        self.state, self.heard = State.LOST, 0
        return f"worker {self.number} on {self.node} is lost; Ray starts it again"

    def ends(self, ended: Ended) -> None:
        """It has ended for good."""
        self.state, self.ended, self._now = State.ENDED, ended, ended.counts or self._now

    @property
    def counts(self) -> Counts:
        """Of all its lives, as far as it told; what runs and waits is of this one."""
        before, now = self._before, self._now
        is_there = self.state in (State.UP, State.ENDED)
        return Counts(
            before.succeeded + now.succeeded, before.failed + now.failed,
            now.running if is_there else 0, now.waiting if is_there else 0,
            before.cost_nusd + now.cost_nusd, before.reserved_nusd + now.reserved_nusd,
        )  # fmt: skip


@dataclass(slots=True)
class Fleet:
    """All of them."""

    members: Sequence[Member]

    @property
    def restarts(self) -> int:
        """How often one of them was started again."""
        return sum(each.restarts for each in self.members)

    @property
    def exit(self) -> int:
        """The worst that one of them ended with."""
        ends = {each.ended.exit for each in self.members if each.ended is not None}
        return next((code for code in _WORST if code in ends), FINE)

    @property
    def counts(self) -> Counts:
        """Of all together; each sees all that waits, so that is not added up."""
        found = [each.counts for each in self.members]
        return Counts(
            sum(each.succeeded for each in found), sum(each.failed for each in found),
            sum(each.running for each in found), max((each.waiting for each in found), default=0),
            sum(each.cost_nusd for each in found), sum(each.reserved_nusd for each in found),
        )  # fmt: skip

    def in_state(self, state: State) -> list[Member]:
        """Those that are."""
        return [each for each in self.members if each.state is state]

    @property
    def places(self) -> str:
        """How many are up on which node: ``left: 2, right: 1``."""
        found = Counter(each.node for each in self.in_state(State.UP))
        return ", ".join(f"{node}: {count}" for node, count in sorted(found.items()))

    def as_line(self) -> str:
        """How they are doing, for people."""
        up = f"{len(self.in_state(State.UP))} of {len(self.members)} up"
        parts = [f"{up} ({self.places})" if self.places else up]
        if waiting := len(self.in_state(State.WAITING)):
            parts.append(f"{waiting} wait{'s' * (waiting == 1)} for a place")
        if lost := len(self.in_state(State.LOST)):
            parts.append(f"{lost} {'is' if lost == 1 else 'are'} being started again")
        if ended := len(self.in_state(State.ENDED)):
            parts.append(f"{ended} ended")
        return " · ".join([*parts, *self._work()])

    def as_sum(self, span: str) -> str:
        """How they ended, for people; `span`: in how much time."""
        return " · ".join([f"{len(self.members)} workers", *self._work(), f"in {span}"])

    def _work(self) -> Iterable[str]:
        if restarts := self.restarts:
            yield f"{restarts} restart{'s' * (restarts != 1)}"
        counts = self.counts
        yield f"{counts.succeeded:,} succeeded"
        for count, word in (
            (counts.failed, "failed"), (counts.running, "running"), (counts.waiting, "wait"),
        ):  # fmt: skip
            if count:
                yield f"{count:,} {word}"
        yield f"{format_usd(counts.cost_nusd)} spent"
        if counts.reserved_nusd and not counts.running:
            yield f"{format_usd(counts.reserved_nusd)} kept reserved (outcome unknown)"


@dataclass(slots=True)
class Echo:
    """Says what workers say, but not what another one said a moment ago, but for its numbers."""

    say: Callable[[str], object]
    _said: dict[str, float] = field(default_factory=dict)

    def hear(self, number: int, text: str, now_s: float) -> None:
        """A worker says something."""
        gist = _DIGITS.sub("#", text)
        if now_s - self._said.get(gist, -QUIET_S) >= QUIET_S:
            self.say(f"worker {number}: {text}")
        self._said = {each: at_s for each, at_s in self._said.items() if now_s - at_s < QUIET_S}
        self._said.setdefault(gist, now_s)
