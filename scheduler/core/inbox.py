"""What waits for the next turn of the store: written by callers and calls, taken by the pump.

A turn takes no more than its store can do at once. What is left goes with the next one, in the
order in which one turn would have done it: what is cancelled first, then what is submitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from scheduler.core.calls import Attempt
from scheduler.core.future import RequestFuture
from scheduler.core.tally import Tally
from scheduler.errors import SchedulerError
from scheduler.request import RequestState
from scheduler.stores.base import NewRequest, Submitted

Waiting = tuple[NewRequest, RequestFuture]
Batch = tuple[list[NewRequest], asyncio.Future[list[Submitted]]]
Amend = tuple[int, NewRequest]


class Gathered(NamedTuple):
    """What one turn takes."""

    ended: list[Attempt]
    cancels: list[int]
    amends: list[Amend]
    waiting: list[Waiting]
    batches: list[Batch]

    @property
    def submit(self) -> list[NewRequest]:
        """All that it queues, those with futures first."""
        new = [new for new, _ in self.waiting]
        for batch, _ in self.batches:
            new += batch
        return new


class Inbox:
    """Gathers for one pump.

    Args:
        tally: Knows how many wait.
        wake: Has the pump take a turn.
        most: How much a turn may bring.
        splits: Whether a batch may be stored in parts.
    """

    def __init__(
        self, tally: Tally, wake: Callable[[], None], most: int, *, splits: bool
    ) -> None:  # fmt: skip
        self._tally, self._wake, self._most, self._splits = tally, wake, most, splits
        self._waiting: list[Waiting] = []
        self._batches: list[Batch] = []
        self._ended: list[Attempt] = []
        self._is_pressed = False  # somebody waits for one of these to be settled
        self._cancels: list[int] = []
        self._amends: list[Amend] = []

    def add(self, new: NewRequest, future: RequestFuture) -> None:
        """A request is submitted."""
        self._waiting.append((new, future))
        self._tally.waiting += 1
        self._wake()

    def add_batch(self, batch: Sequence[NewRequest]) -> list[asyncio.Future[list[Submitted]]]:
        """Requests are queued without futures; what is given back is done when they are stored."""
        loop, most = asyncio.get_running_loop(), self._most if self._splits else len(batch)
        parts = [list(batch[start : start + most]) for start in range(0, len(batch), most or 1)]
        done = [loop.create_future() for _ in parts]
        self._batches += zip(parts, done, strict=True)
        self._tally.waiting += len(batch)
        self._wake()
        return done

    def landed(self, ended: Attempt, *, has_time: bool = False) -> None:
        """A call has ended, or was given back unsent; it may have time until others come."""
        self._ended.append(ended)
        if not has_time:
            self._is_pressed = True
            self._wake()

    def amend(self, request_id: int, new: NewRequest) -> None:
        """A request that waits is to ask something else, or on other terms."""
        self._amends.append((request_id, new))
        self._wake()

    def cancel(self, request_id: int) -> None:
        """Nobody wants a request any more."""
        self._cancels.append(request_id)
        self._wake()

    @property
    def cancels(self) -> bool:
        """Whether there are cancellations that are in no turn yet."""
        return bool(self._cancels)

    @property
    def count(self) -> int:
        """How many requests have arrived, and are in no turn yet."""
        return len(self._waiting) + sum(len(batch) for batch, _ in self._batches)

    @property
    def has_ended(self) -> bool:
        """Whether calls have ended that are not settled yet."""
        return bool(self._ended)

    @property
    def has_time(self) -> bool:
        """Whether the next turn would bring nothing that anybody waits for."""
        return not (
            self._waiting or self._batches or self._cancels or self._amends
            or (self._ended and self._is_pressed)
        )  # fmt: skip

    def take(
        self, is_wanted: Callable[[int], bool], amends: Callable[[int], Iterator[Amend]]
    ) -> Gathered:
        """What goes with the next turn.

        Args:
            is_wanted: Whether anybody waits for a request.
            amends: Others that are to be changed, so many at most.
        """  # fmt: skip
        ended, self._ended, self._is_pressed = self._ended, [], False
        taken, self._cancels = self._cancels[: self._most], self._cancels[self._most :]
        # The key may have been submitted again since its caller lost interest.
        cancels = [each for each in taken if not is_wanted(each)]
        own, self._amends = self._amends, []
        gathered = Gathered(ended, cancels, [*own, *amends(self._most)], [], [])
        room = 0 if self._cancels else self._most - len(taken)
        waiting, self._waiting = self._waiting[:room], self._waiting[room:]
        gathered.waiting.extend(self._still_wanted(waiting))
        room -= len(waiting)
        while self._batches and room > 0:  # a batch is stored as a whole
            gathered.batches.append(self._batches.pop(0))
            room -= len(gathered.batches[-1][0])
        return gathered

    def _still_wanted(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Without what was cancelled before it was even stored."""
        wanted = [(new, future) for new, future in waiting if not future.cancelled()]
        for _ in range(len(waiting) - len(wanted)):
            self._tally.end_waiting(RequestState.CANCELLED)
        return wanted

    def put_back(self, gathered: Gathered) -> None:
        """The turn failed: have what it brought here again, to be told of it."""
        self._waiting[:0] = gathered.waiting
        self._batches[:0] = gathered.batches

    def fail(self, error: SchedulerError) -> None:
        """Nothing of it will be stored."""
        for _, future in self._waiting:
            future.fail(error)
        for _, done in self._batches:
            if not done.done():
                done.set_exception(error)
