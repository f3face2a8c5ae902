"""A few lines of a batch, sent to learn from them what all of it will cost.

They are sent as ``scheduler run`` sends them: the same job, the same store, the same files. So what
was answered is answered, and a later run does not ask it again. Besides the budgets that a run would
draw on, they draw on one that is made for them alone, with what the sample may cost. It is removed
at the end, and what could not be sent of the sample is taken back.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from scheduler.batch.input import BatchLine, LineOptions
from scheduler.batch.pen import Pen
from scheduler.budget import Budget
from scheduler.cli.exits import Exit
from scheduler.cli.feeding import CHUNK, Feeding, drawn_on
from scheduler.cli.outcome import Outcome, RunOptions
from scheduler.cli.runner import BatchRun
from scheduler.errors import ConfigError
from scheduler.ledger.matching import DEFAULT
from scheduler.stores.base import Turn
from scheduler.window import WindowKind

if TYPE_CHECKING:
    from scheduler.batch.source import Source
    from scheduler.cli.delivery import Files
    from scheduler.cli.progress import Progress
    from scheduler.stats import Stats

LEAST_OF_A_MODEL = 8  # lines, if it has so many


class Draw:
    """Draws lines as they come, each with the same chance within its model; keeps a few."""

    def __init__(self, wanted: int, seed: int) -> None:
        self._wanted, self._rng = wanted, Random(seed)
        self._lines: dict[str, list[BatchLine]] = {}
        self._seen: dict[str, int] = {}

    def offer(self, line: BatchLine) -> None:
        """One that has no answer yet."""
        model = line.request.model
        kept = self._lines.setdefault(model, [])
        seen = self._seen[model] = self._seen.get(model, 0) + 1
        if len(kept) < self._wanted:
            kept.append(line)
        elif (at := self._rng.randrange(seen)) < self._wanted:
            kept[at] = line

    def lines(self) -> list[BatchLine]:
        """The sample, in an order of chance: models by their share, and a few of each."""
        whole, found = sum(self._seen.values()), list[BatchLine]()
        for model, kept in sorted(self._lines.items()):
            share = max(LEAST_OF_A_MODEL, round(self._wanted * self._seen[model] / whole))
            self._rng.shuffle(kept)
            found += kept[:share]
        self._rng.shuffle(found)
        return found[: self._wanted]


@dataclass(slots=True)
class Sampled:
    """How a sample went.

    Attributes:
        asked: How many lines were drawn.
        why: Why not all of them were answered; empty: they were.
    """

    budget: str
    asked: int
    answered: int = 0
    failed: int = 0
    spent_nusd: int = 0
    seconds: float = 0.0
    why: str = ""
    exit: Exit = Exit.DONE


def sample_budget(text: str) -> Budget:
    """The budget that bounds a sample. Raises `ConfigError` if it has a window."""
    budget = Budget(f"sample-{uuid.uuid4().hex[:8]}", text)
    for cap in budget.caps:
        if cap.window.kind is not WindowKind.TOTAL or cap.limit is None:
            raise ConfigError(
                "--budget",
                f"with --sample it is what the sample may cost, an amount such as '$0.10', not {text!r}. "
                "Nothing was sent",
            )
    return budget


class SampleRun(BatchRun):
    """Sends some lines of a batch and nothing else; `run` does it."""

    def __init__(
        self, scheduler: Any, source: Source, files: Files, options: RunOptions, progress: Progress,
        pen: Pen, lines: Sequence[BatchLine], bound: str,
    ) -> None:  # fmt: skip
        super().__init__(scheduler, source, files, options, progress, pen)
        self._chosen, self._bound = lines, bound

    async def _draw_on(self) -> Sequence[str] | None:
        found = drawn_on(self.s, lambda text: None)  # the sample is limited in any case
        return (self._bound,) if found == () else (DEFAULT, self._bound)

    def _make_feeding(self) -> Feeding:
        for line in self._chosen:
            line.request.job = self._job
        return _Chosen(self.s, self._source, LineOptions(job=self._job), self, lines=self._chosen)

    def _check_patience(self, stats: Stats, is_fed: bool) -> None:
        """End when no more of it can be sent now, in words that fit a budget that will be gone."""
        if self._stopping.event.is_set():
            return
        now_s = asyncio.get_running_loop().time()
        enough = self._patience.enough(stats, now_s, self.s.now_ms(), is_fed=is_fed)
        if enough is None:
            return
        if self._bound in enough:
            enough = (
                f"{sum(stats.parked.values()):,} lines of the sample were not sent, since they may cost "
                "more than is left of what it may spend"
            )
        self.outcome.exit = Exit.PARKED
        self._stopping.stop(enough)

    async def _deliver_rest(self) -> None:
        # Lines that were not read keep the errors that an earlier run told of them.
        await self._delivery.finish(
            self._seen if self._is_part else None, 0, restores=self._is_part or self._is_superseded
        )

    async def _write_parked(self) -> None:
        """Take back what was not sent: a run asks it anew, on its own budgets."""
        assert isinstance(self._feeding, _Chosen)
        ids = self._feeding.ids
        if ids:
            await self.s.store.turn(Turn(self.s.now_ms(), cancel=ids))


class _Chosen(Feeding):
    """Feeds lines that were read before, all at once."""

    def __init__(self, *args: Any, lines: Sequence[BatchLine]) -> None:
        super().__init__(*args)
        self._chosen, self.ids = lines, list[int]()

    async def run(self, stopping: asyncio.Event, budget: Sequence[str] | None) -> None:
        self._budget = budget
        for at in range(0, len(self._chosen), CHUNK):
            if not stopping.is_set():
                chunk = self._chosen[at : at + CHUNK]
                self.total += len(chunk)
                await self._queue(chunk)
        self.is_read = True

    async def _enqueue(self, lines: Sequence[BatchLine], retry_failed: bool) -> list[Any]:
        submitted = await super()._enqueue(lines, retry_failed)
        self.ids += [each.id for each in submitted if not each.is_known]
        return submitted


async def sample(
    settings: dict[str, Any], budget: Budget, lines: Sequence[BatchLine], source: Source,
    files: Files, options: RunOptions, shown: Progress,
) -> Sampled:  # fmt: skip
    """Send these lines within that budget, and say how it went.

    Raises:
        OutputInUse: The batch is being run.
    """
    from scheduler.cli.look import store_named
    from scheduler.cli.run import not_told_twice
    from scheduler.scheduler import Scheduler

    work = {"job": files.job, "store": store_named(str(settings["store"])), "asks": ""}
    pen = Pen(files.outputs, work, shown.say, joins=False)
    with not_told_twice(), pen:
        async with Scheduler(**settings, budgets=[budget]) as s:
            run = SampleRun(s, source, files, options, shown, pen, lines, budget.name)
            try:
                outcome: Outcome = await run.run()
            finally:
                s.stop_admitting()
                await s.remove_budget(budget.name)
    found = Sampled(
        ", ".join(map(str, budget.caps)), len(lines), outcome.succeeded, outcome.failed,
        outcome.cost_nusd, outcome.seconds, exit=outcome.exit,
    )  # fmt: skip
    if outcome.succeeded + outcome.failed < len(lines):
        found.why = outcome.message or "it was ended before"
    return found
