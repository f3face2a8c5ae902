"""Several processes on one batch: what the others did, and when it is all done.

All of them read the input and put it in the same queue, where each line is once; each sends what it
can. One writes (`batch.pen`): it finds what the others have answered in the store. The others go on
until everything is written, and one of them takes the pen if its holder ends before that.
"""

from __future__ import annotations

import asyncio

from scheduler.batch.pen import Pen
from scheduler.cli.delivery import Delivery
from scheduler.cli.outcome import Outcome
from scheduler.scheduler import Scheduler
from scheduler.stats import Counts

LOOK_S = 0.5  # so often the store is asked what others did
JOINED = "joined: another process works on this file, too; it writes the results"
WRITES = "the process that wrote the results has ended; this one writes them from here on"
LEAVES = "another process goes on with this file"
UNWRITTEN = (
    "all is sent, but the process that is to write the results does not go on. They are safe in the "
    "store, and the same command writes them once it has ended"
)
PATIENCE_S = 25.0  # who has nothing to do waits so long for others with whom nothing happens


class Company:
    """The others on one batch, as one of them sees them.

    Args:
        s: Whose store it is.
        pen: Says who writes.
        delivery: Writes.
        outcome: Takes what others did.

    Attributes:
        job: Whose requests the batch has.
        is_part: Whether others of that job's requests are not of this input.
        was_there: Whether another process ever worked on this store meanwhile.
        is_unwritten: Whether the one with the pen had not written everything, when last seen.
    """

    def __init__(self, s: Scheduler, pen: Pen, delivery: Delivery, outcome: Outcome) -> None:
        self._s, self._pen, self._delivery, self._outcome = s, pen, delivery, outcome
        self._looked_s = 0.0
        self._is_there = self.was_there = not pen.is_held
        self._counts = Counts()
        self._same: object = None  # what was seen last, and since when
        self._since_s = 0.0
        self.job, self.is_part, self.is_unwritten = "", False, False

    async def look(self, now_s: float) -> bool:
        """See what the others have done, and write it, at times; whether this was such a time."""
        if now_s < self._looked_s + LOOK_S:
            return False
        self._looked_s = now_s
        others = len(await self._s.store.processes()) > 1
        self._is_there = others or not self._pen.is_held
        self.was_there |= self._is_there
        if not self._is_there:
            return False
        await self.count()
        if self._pen.is_held and not self.is_part:
            await self._delivery.collect()
        return True

    async def count(self) -> None:
        """Take down what others did."""
        if not self.was_there:
            return
        self._counts = counts = await self._s.store.counts(self.job)
        if not self.is_part:
            mine = self._outcome
            mine.elsewhere = max(0, counts.succeeded - mine.known - mine.succeeded)
            mine.failed_elsewhere = max(0, counts.failed - mine.known_failed - mine.failed)

    async def is_done(self) -> bool:
        """Whether others have nothing left to do for this batch, nor to write."""
        if not self._is_there:
            return True
        await self.count()
        if self._pen.is_held:  # what only waits is nobody's, or theirs who take the pen
            return self._counts.running == 0
        is_written = self.is_part or not await self._delivery.has_undelivered(
            self._s.store, self.job
        )
        if is_written and not self.left:
            self.is_unwritten = False
            return True
        return self._is_still(is_written)

    def _is_still(self, is_written: bool) -> bool:
        """Whether nothing has happened with the others for long."""
        now_s = asyncio.get_running_loop().time()
        if self._same != (self._counts, is_written):
            self._same, self._since_s = (self._counts, is_written), now_s
        self.is_unwritten = not is_written
        return now_s > self._since_s + PATIENCE_S

    @property
    def left(self) -> int:
        """How many have no outcome, as far as was seen."""
        return self._counts.running + self._counts.queued + self._counts.parked

    @property
    def goes_on(self) -> bool:
        """Whether others go on when this process ends, as far as was seen."""
        return self._is_there and self.left > 0
