"""docs/workers.md: its programs that need no more than the other tests do; see tests/recipes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.recipes.harness import LIMIT, NOTHING, PAGE, PROGRAMS, ROOT, place


@pytest.fixture
def here(tmp_path):
    with place(tmp_path) as made:
        yield made


def test_every_program_of_the_page_is_run_by_a_test():
    tests = [*(ROOT / "tests" / "recipes").glob("test_*.py"), ROOT / "tests" / "test_workers.py"]
    tried = "".join(path.read_text() for path in tests)

    assert len(PROGRAMS) == PAGE.count("```python")
    for name, program in PROGRAMS.items():
        assert f'"{name}"' in tried
        assert LIMIT in program or "llm" in program


def test_the_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)", PAGE):
        assert (ROOT / "docs" / target).exists()


# Module-level clients

ALONE = """
import llm
from scheduler import refusal_of
try:
    llm.ask("too early")
except Exception as error:
    print(type(refusal_of(error)).__name__)
with llm.opened() as s:
    print(bool(llm.ask("Hi")), s.stats().succeeded)
"""
ASYNC = """
import asyncio
import llm
from openai import AsyncOpenAI
from scheduler import Budget

client = llm.s.wrap(AsyncOpenAI())

async def main():
    async with llm.s as s:
        await s.ensure(Budget("default", "$5/day"))
        await client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=20
        )
        print(bool(await asyncio.to_thread(llm.ask, "Hi")), s.stats().succeeded)

asyncio.run(main())
"""
FORKED = """
import os
import llm

for _ in range(2):
    if os.fork() == 0:
        with llm.opened():
            assert llm.ask("Hi")
        os._exit(0)
assert [os.wait()[1] for _ in range(2)] == [0, 0]
with llm.opened() as s:
    print(bool(llm.ask("Hi")), s.stats().succeeded)
"""
POOL = """
import multiprocessing
import llm

def begin():
    llm.blocking = llm.opened()

if __name__ == "__main__":
    pool = multiprocessing.get_context({method!r}).Pool(2, begin)
    print(len(pool.map(llm.ask, ["Hi"] * 6)))
    pool.close()
    pool.join()
"""


def test_a_client_of_a_module_works_from_the_opening_on(here):
    here.write("llm.py")

    assert here.run("-c", ALONE).stdout == "SchedulerClosed\nTrue 1\n"
    here.check_books_exactly(1)


def test_the_same_in_an_async_program(here):
    here.write("llm.py")

    done = here.run("-c", ASYNC)

    assert done.stdout == "True 2\n", done.stderr
    here.check_books_exactly(2)


def test_the_same_in_forks_of_the_process_that_imported_it(here):
    here.write("llm.py")

    done = here.run("-c", FORKED)

    assert done.stdout == "True 1\n", done.stderr
    here.check_books_exactly(3)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_same_in_pools_of_processes(here, method):
    here.write("llm.py")
    (here.path / "main.py").write_text(POOL.replace("{method!r}", repr(method)))

    done = here.run("main.py")

    assert done.stdout == "6\n", done.stderr
    here.check_books()
    assert here.provider.bill()["calls"] == 6


def test_a_limit_that_was_raised_outlives_the_next_process(here):
    here.write("llm.py", limit=NOTHING)
    assert here.run("-c", "import llm; llm.opened()").returncode == 0
    here.raise_limit()

    assert here.run("-c", ALONE).stdout == "SchedulerClosed\nTrue 1\n"


# A scheduler that was opened before a fork

EARLY = """
import asyncio, os, signal, traceback
from scheduler import Request, Scheduler, SchedulerClosed, Simulated

request = Request.chat("sim-small", "Hi", max_tokens=5)

async def child(s):
    for ask in (lambda: s.run(request), lambda: s.enqueue([request]), s.join, s.drain):
        try:
            await ask()
        except SchedulerClosed as error:
            assert "opened before this process was forked" in str(error)
        else:
            raise AssertionError
    await s.aclose()

async def main():
    async with Scheduler("sqlite:///scheduler.db", budgets="$1", providers=Simulated()) as s:
        await s.run(request)
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            try:
                asyncio.run(child(s))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        await s.run(request)
        print(s.stats().succeeded)

asyncio.run(main())
"""


def test_a_fork_inside_of_it_is_told_at_every_door_and_may_close_it(here):
    done = here.run("-c", EARLY, PYTHONWARNINGS="default")

    assert done.stdout == "2\n", done.stderr


# FastAPI


def test_uvicorns_workers_share_the_budget(here):
    here.write("app.py")
    words = ["-m", "uvicorn", "app:app", "--workers", "2", "--timeout-graceful-shutdown", "2"]

    with here.started(*words, "--port", "0") as uvicorn, ThreadPoolExecutor(4) as pool:
        url = uvicorn.wait_for(r"running on (http://\S+)")
        uvicorn.wait_for("Application startup complete", 2)
        answers = list(pool.map(lambda n: httpx.get(f"{url}/ask?text=Hi{n}", timeout=60), range(9)))
        assert [answer.status_code for answer in answers] == [200] * 9, answers[0].text
        uvicorn.end()

    here.check_books_exactly(9)


# Other people's clocks

PARKED = """
import asyncio, anyio, traceback
import llm
from openai import AsyncOpenAI
from scheduler import Budget

client = llm.s.wrap(AsyncOpenAI())
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}

async def bounded(kind):
    create = client.chat.completions.create
    if kind == "wait_for":
        await asyncio.wait_for(create(**ASKED), 2)
    elif kind == "timeout":
        async with asyncio.timeout(2):
            await create(**ASKED)
    elif kind == "anyio":
        with anyio.fail_after(2):
            await create(**ASKED)
    else:
        with llm.s.tag(max_wait="300ms"):
            await create(**ASKED)

async def main():
    async with llm.s as s:
        await s.ensure(Budget("default", LIMIT))
        for kind in ("max_wait", "wait_for", "timeout", "anyio"):  # the first call is slow
            try:
                await bounded(kind)
            except Exception as error:
                told = "".join(traceback.format_exception(error))
                print(kind, type(error).__name__, "budget 'default'" in told)
            await asyncio.sleep(0.05)
            assert s.stats().parked == {}

asyncio.run(main())
"""
PYTEST = """
import llm, pytest

@pytest.mark.timeout(1, method="{method}")
def test_it():
    with llm.opened():
        llm.ask("Hi")
"""


def test_timeouts_of_the_loop_cancel_a_parked_call_at_no_cost_and_say_why_it_waited(here):
    here.write("llm.py")

    done = here.run("-c", PARKED.replace("LIMIT", NOTHING))

    assert done.stdout.splitlines() == [
        "max_wait RateLimitError True",
        "wait_for TimeoutError True",
        "timeout TimeoutError True",
        "anyio TimeoutError True",
    ], done.stderr
    here.check_nothing_was_spent()


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_pytests_timeout_ends_a_parked_test_at_no_cost(here, method):
    here.write("llm.py", limit=NOTHING)
    (here.path / "test_it.py").write_text(PYTEST.replace("{method}", method))

    words = ("-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "test_it.py")
    done = here.run("-m", "pytest", *words, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

    assert done.returncode == 1
    assert "Timeout" in done.stdout + done.stderr
    here.check_nothing_was_spent()
    here.raise_limit()
    assert here.run("-c", ALONE).returncode == 0
    here.check_books_exactly(1)
