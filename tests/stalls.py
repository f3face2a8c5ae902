"""A pytest plugin: event loops, and the threads of files, stand still now and then, as on a busy machine.

``make stalls`` runs the tests with it. What fails then, and passes without, is a race: in the test, or in
what it tests. Virtual time, in which nothing takes long, is left alone, and so are processes that tests start.

``STALL_S`` says for how long one may stand still (0.3), ``STALL_SHARE`` how often (0.02 of all rounds).
"""

from __future__ import annotations

import os
import random
import threading
import time
from asyncio import base_events
from typing import Any

from scheduler.testing import VirtualTimeLoop

LONGEST_S = float(os.environ.get("STALL_S", "0.3"))
SHARE = float(os.environ.get("STALL_SHARE", "0.02"))
MOST_S = 1.5  # of one loop, or one thread, in all: a test is to be slowed down, not to be stopped


class Stalls:
    """How one loop, or one thread, stands still."""

    def __init__(self) -> None:
        self._left_s = MOST_S

    def may_stand_still(self) -> None:
        if self._left_s > 0 and random.random() < SHARE:
            stall_s = random.uniform(0, LONGEST_S)
            self._left_s -= stall_s
            time.sleep(stall_s)


class Requests:
    """What aiosqlite's thread is asked to do, each with a moment before and after it."""

    def __init__(self, requests: Any) -> None:
        self._requests, self._stalls = requests, Stalls()

    def get(self) -> tuple[Any, Any]:
        future, work = self._requests.get()

        def slowly() -> Any:
            self._stalls.may_stand_still()
            done = work()
            self._stalls.may_stand_still()
            return done

        return future, slowly


def pytest_configure() -> None:
    turn = base_events.BaseEventLoop._run_once  # type: ignore[attr-defined]
    begin = threading.Thread.__init__

    def slow_turn(loop: Any) -> None:
        if not isinstance(loop, VirtualTimeLoop):
            vars(loop).setdefault("stalls", Stalls()).may_stand_still()
        turn(loop)

    def slow_thread(thread: Any, *args: Any, **options: Any) -> None:
        if str(getattr(options.get("target"), "__module__", "")).startswith("aiosqlite"):
            requests, *others = options["args"]
            options["args"] = (Requests(requests), *others)
        begin(thread, *args, **options)

    base_events.BaseEventLoop._run_once = slow_turn  # type: ignore[attr-defined]
    threading.Thread.__init__ = slow_thread  # type: ignore[method-assign]
