"""How much the bodies of calls may take at once, from when they are read until their answers are told.

One body is bounded by itself (`line`); this bounds what all of them take together. Who does not fit
waits a little, in turn, and is refused then, before anything of it is read. Those up to 64 KB are not
counted, since each connection takes as much anyway. Large ones, above 1 MB, may take half of it all,
so that they never shut out the others.
"""

from __future__ import annotations

import asyncio
from collections import deque

from scheduler.server.refusals import Unserved

MOST_BYTES = 512 * 1024 * 1024  # of all bodies
LARGE_BYTES = 1024 * 1024  # a body above that is large
FREE_BYTES = 64 * 1024  # one up to that is not counted
PATIENCE_S, AGAIN_S = 10.0, 5


class Bodies:
    """See the module.

    Args:
        most_bytes: Of all bodies that are counted; of large ones half of it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = {False: most_bytes, True: most_bytes // 2}  # by whether only large ones count
        self._taken = {False: 0, True: 0}
        self._waiting = {
            is_large: deque[tuple[int, asyncio.Future[None]]]() for is_large in self._taken
        }

    async def take(self, size: int, patience_s: float = PATIENCE_S) -> None:
        """Have room for a body; to be given back by `give_back`.

        Raises:
            Unserved: There is none, and nobody gave any back in time.
        """
        if size <= FREE_BYTES:
            return
        is_large = size > LARGE_BYTES
        waiting = self._waiting[is_large]
        if not waiting and self._fits(size):
            self._add(size, is_large)
            return
        turn = asyncio.get_running_loop().create_future()
        waiting.append((size, turn))
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except BaseException as exc:
            if not turn.cancelled():  # it had its turn just now
                self.give_back(size)
            self._let_in()  # who comes behind it may be smaller
            if isinstance(exc, TimeoutError):
                raise self._full(size) from None
            raise

    def give_back(self, size: int) -> None:
        """A body is not held any more."""
        self.shrink(size, 0)

    def shrink(self, size: int, now: int) -> None:
        """One for which `size` was taken has become shorter."""
        if size > FREE_BYTES:
            self._add(-size, size > LARGE_BYTES)
            if now > FREE_BYTES:
                self._add(now, now > LARGE_BYTES)
            self._let_in()

    def _fits(self, size: int) -> bool:
        kinds = (False, True) if size > LARGE_BYTES else (False,)
        return all(self._taken[each] + size <= self._most[each] for each in kinds)

    def _add(self, size: int, is_large: bool) -> None:
        self._taken[False] += size
        if is_large:
            self._taken[True] += size

    def _let_in(self) -> None:
        for is_large, waiting in self._waiting.items():  # smaller ones first
            while waiting and (waiting[0][1].done() or self._fits(waiting[0][0])):
                size, turn = waiting.popleft()
                if not turn.done():  # it may have given up just now
                    self._add(size, is_large)
                    turn.set_result(None)

    def _full(self, size: int) -> Unserved:
        is_large = size > LARGE_BYTES
        which = f"large bodies (above {LARGE_BYTES:,} bytes)" if is_large else "bodies"
        return Unserved(
            503, "bodies_too_large",
            f"this body has up to {size:,} bytes, and {which} of calls under way or held take "
            f"{self._taken[is_large]:,} of the {self._most[is_large]:,} that they may at once; nothing was "
            "sent or spent. Ask again, with fewer at once",
            (b"retry-after", str(AGAIN_S).encode()), is_final=False,
        )  # fmt: skip
