"""However an interpreter ends, it ends, and leaves a file that goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests import warm

BEGINNING = """
import asyncio, sys
from scheduler import Budget, FunctionProvider, Quote, Request, Scheduler

async def think(request):
    await asyncio.sleep(0 if request.body["n"] == 0 else 30)
    return {"n": request.body["n"]}

def make():
    provider = FunctionProvider("f", think, quote=Quote(100, 50, 10), cost="$0.00000006")
    return Scheduler(sys.argv[1], budgets=Budget("team", "$0.0000005"), providers=provider)

def submit(s):
    # One is answered at once, four run, the others are parked.
    return [s.submit(Request({"n": n}, budget="team", key=f"k{n}")) for n in range(9)]

async def begin(s):
    futures = submit(s)
    await futures[0]
    await asyncio.sleep(0.1)
    return futures
"""

ENDINGS = {
    "the loop is closed without closing the scheduler": (0, """
        loop = asyncio.new_event_loop()
        s = make()
        async def main():
            await s.__aenter__()
            await begin(s)
        loop.run_until_complete(main())
        loop.close()
    """),
    "asyncio.run ends without closing it": (0, """
        async def main():
            s = make()
            await s.__aenter__()
            await begin(s)
        asyncio.run(main())
    """),
    "sys.exit inside": (7, """
        async def main():
            async with make() as s:
                await begin(s)
                sys.exit(7)
        asyncio.run(main())
    """),
    "an interrupt in the main coroutine": (130, """
        async def main():
            async with make() as s:
                await begin(s)
                raise KeyboardInterrupt
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(130)
    """),
    "an error in the body": (1, """
        async def main():
            async with make() as s:
                await begin(s)
                raise RuntimeError("the body fails")
        asyncio.run(main())
    """),
    "a task group torn down": (0, """
        async def fail():
            await asyncio.sleep(0.2)
            raise ValueError
        async def main():
            async with make() as s:
                try:
                    async with asyncio.TaskGroup() as group:
                        for future in await begin(s):
                            group.create_task(asyncio.wait_for(future, 60))
                        group.create_task(fail())
                except* ValueError:
                    pass
        asyncio.run(main())
    """),
    "closing is cancelled": (0, """
        async def main():
            s = make()
            await s.__aenter__()
            await begin(s)
            closing = asyncio.create_task(s.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await s.aclose()
        asyncio.run(main())
    """),
}  # fmt: skip

CHECK = """
import asyncio, sys, sqlite3
from scheduler import Budget, FunctionProvider, Quote, Request, Scheduler
from scheduler.clock import SystemClock

async def think(request):
    return {"n": request.body["n"]}

async def main():
    provider = FunctionProvider("f", think, quote=Quote(100, 50, 10), cost="$0.00000006")
    async with Scheduler(sys.argv[1], budgets=Budget("team", None), providers=provider) as s:
        answers = await asyncio.gather(
            *(s.run(Request({"n": n}, budget="team", key=f"k{n}")) for n in range(9))
        )
        assert [a.body["n"] for a in answers] == list(range(9))
        now_ms = SystemClock().now_ms()
        assert (await s.store.audit(now_ms)).discrepancies == ()
        (status,) = await s.store.budgets(now_ms)
        cap = status.caps[0]
        assert cap.reserved == cap.suspense == 100 * len(await s.suspended()) <= 400
        print(cap.posted, cap.suspense)
asyncio.run(main())
"""


@pytest.mark.parametrize("name", ENDINGS)
def test_the_interpreter_ends_and_the_next_one_goes_on(name, tmp_path):
    code, ending = ENDINGS[name]
    path = str(tmp_path / "s.db")

    ended = run(BEGINNING + textwrap.dedent(ending), path)

    assert ended.returncode == code, ended.stderr
    for complaint in (
        "Task was destroyed",
        "never awaited",
        "Exception ignored",
        "never retrieved",
    ):
        # A loop that is thrown away with tasks in it says so itself, once for each.
        if complaint != "Task was destroyed" or "loop is closed" not in name:
            assert complaint not in ended.stderr, ended.stderr
    after = run(CHECK, path)
    assert after.returncode == 0, after.stderr


def run(program: str, path: str) -> subprocess.CompletedProcess[str]:
    return warm.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
