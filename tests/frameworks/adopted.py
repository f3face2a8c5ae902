"""One framework with its line, in front of a simulated provider that keeps its own bill."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import scheduler
from scheduler import Scheduler
from tests.frameworks.table import Row
from tests.sdks.conftest import Service, counted, until

WORDS = 12  # of each answer
TOO_LITTLE, ENOUGH = "$0.00000001", "$1"


class Adopted:
    """What a test does with a row: run its line, ask, compare.

    Attributes:
        s: The scheduler of the line.
        url: Of the provider, without ``/v1``.
        names: What the line sees, and makes.
    """

    def __init__(self, row: Row, s: Scheduler, service: Service) -> None:
        self.row, self.s, self.url, self._service = row, s, service.url, service
        self.names: dict[str, Any] = {"s": s, "scheduler": scheduler, "model": "sim-small"}
        self._has_parked = self._has_streamed = False

    async def line(self, **names: Any) -> Any:
        """Run the row's line; gives what it makes last.

        Args:
            names: What it needs: classes, and the user's own variables.
        """
        self.names |= names
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(self.row.code, f"adoption.md, {self.row.name}", "exec", flags)
        made = eval(code, self.names)
        if inspect.isawaitable(made):
            await made
        last = ast.parse(self.row.code).body[-1]
        if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Name):
            return self.names[last.targets[0].id]
        return None

    async def parks(self, ask: Callable[[], Any], text: Callable[[Any], Any]) -> Any:
        """Ask while there is no money, see that nothing is sent, raise the limit, get the answer.

        Args:
            ask: Asks once; in a thread, if it is not async.
            text: Of what it gives.
        """
        await self.s.set_limit("team", TOO_LITTLE)
        before, spent = self._service.since("received"), self.s.stats().posted_nusd
        call = asyncio.create_task(self._asked(ask))
        await until(lambda: self.s.stats().parked or call.done(), 30)
        if call.done():
            await call
            raise AssertionError("it did not wait")
        await asyncio.sleep(0.05)
        assert not call.done()
        assert self._service.since("received") == before
        await self.s.set_limit("team", ENOUGH)
        answer = await asyncio.wait_for(call, 60)
        self._is_answer(text(answer))
        assert self.s.stats().posted_nusd > spent
        self._has_parked = True
        return answer

    async def streams(self, ask: Callable[[], Any]) -> None:
        """Ask for an answer in pieces.

        Args:
            ask: Gives the text in the end.
        """
        before = self._service.since("calls")
        self._is_answer(await self._asked(ask))
        assert self._service.since("calls") > before
        self._has_streamed = True

    async def _asked(self, ask: Callable[[], Any]) -> Any:
        if inspect.iscoroutinefunction(ask):
            return await ask()
        return await asyncio.to_thread(ask)

    def _is_answer(self, text: Any) -> None:
        assert len(str(text).split()) == WORDS, text

    async def compare(self) -> None:
        """The ledger with the bill, and what was tried with what the table says."""
        await until(lambda: not self.s.stats().running)
        billed_nusd, row = self._service.since("billed_nusd"), self.row
        assert billed_nusd > 0
        assert counted(self.s) >= billed_nusd
        if row.is_exact:
            assert self.s.stats().posted_nusd == counted(self.s) == billed_nusd
        assert self._has_parked == row.parks
        assert self._has_streamed == bool(row.streams)


def of(function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Callable[[], Any]:
    """Asks an async function so."""

    async def ask() -> Any:
        return await function(*args, **options)

    return ask
