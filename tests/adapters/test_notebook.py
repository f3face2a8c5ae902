"""Schedulers that block: in notebooks, in threads, at Ctrl-C, forgotten, and across a fork."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import scheduler
from scheduler import BlockingScheduler, Budget, Request, Scheduler, SchedulerClosed, Simulated
from scheduler.providers.simulated.bill import SIMULATED_PRICES
from tests import warm
from tests.warm import running_server

PROMPTLY_S = 5.0  # with much room, for slow machines; it takes tenths


def ask(name: object = "", **options: Any) -> Request:
    return Request.chat("sim-small", f"Hi {name}", max_tokens=5, **options)


def within(s: BlockingScheduler, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives in the scheduler's own loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, s.scheduler.loop).result(10)


def spend(s: BlockingScheduler) -> dict[str, int]:
    """How many attempts there were, by job."""
    return {row.name: row.attempts for row in within(s, s.scheduler.store.spend("job"))}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program, which has to end by itself."""
    return warm.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=90, check=False
    )


@pytest.fixture
def url() -> Iterator[str]:
    with running_server() as url:
        yield url


# Where a loop runs already, as in Jupyter


@pytest.mark.parametrize("store", [None, "s.db"])
def test_it_works_where_a_loop_is_running(store, tmp_path):
    async def cell() -> None:
        with scheduler.open(store and tmp_path / store, budgets="$1", providers=Simulated()) as s:
            assert s.run(ask()).cost > 0
            assert s.submit(ask()).result(10).cost > 0
            answers = list(s.map((ask(n) for n in range(300)), ordered=True))
            assert [answer.index for answer in answers] == list(range(300))
            with s.stream(ask(stream=True)) as stream:
                assert len(list(stream)) > 2
            assert s.stats().succeeded == 303

    asyncio.run(cell())


def test_beside_it_is_one_in_the_loop_itself_on_the_same_file(tmp_path):
    path, provider = tmp_path / "s.db", Simulated()

    async def cells() -> None:
        s = scheduler.open(path, budgets="$1", providers=provider)
        keyed = [ask(n, key=str(n)) for n in range(10)]
        first = list(s.map(keyed, ordered=True))
        async with Scheduler(path, providers=provider) as t:
            again = [answer async for answer in t.map(keyed, ordered=True)]
            assert [a.text for a in again] == [a.text for a in first]
            in_thread, here = await asyncio.gather(
                asyncio.to_thread(s.run, ask("thread")), t.run(ask("here"))
            )
            assert in_thread.cost == here.cost or in_thread.text != here.text
        s.close()

    asyncio.run(cells())
    assert provider.calls == 12


def test_many_threads_share_it_and_its_budget():
    provider = Simulated(latency="5ms")
    beginning = threading.Barrier(12)
    with scheduler.open(budgets="$0.0002", providers=provider, concurrency=32) as s:
        ceiling = s.quote(ask("00 00")).ceiling_nusd
        too_much = []
        s.on(
            scheduler.events.Admitted,
            lambda e: too_much.extend(
                cap
                for cap in s.scheduler.stats().budgets[0].caps
                if cap.limit is not None and cap.posted + cap.reserved > cap.limit
            ),
        )

        def work(thread: int) -> int:
            beginning.wait(10)
            if thread % 3 == 0:
                answers = list(s.map([ask(f"{thread:02} {n:02}") for n in range(20)]))
            elif thread % 3 == 1:
                answers = [s.run(ask(f"{thread:02} {n:02}")) for n in range(20)]
            else:
                futures = [s.submit(ask(f"{thread:02} {n:02}")) for n in range(20)]
                answers = [future.result(30) for future in futures]
            return sum(answer.cost_nusd for answer in answers)

        with ThreadPoolExecutor(12) as pool:
            costs = [pool.submit(work, thread) for thread in range(12)]
            while provider.billed_nusd + ceiling < 200_000:
                time.sleep(0.01)
            s.set_limit("default", "$1")  # by then some wait for money
            total = sum(cost.result(60) for cost in costs)

        assert not too_much
        assert provider.calls == 240
        assert total == provider.billed_nusd == s.stats().posted_nusd


def test_closed_by_another_thread_nobody_waits_on():
    s = scheduler.open(budgets="$0", providers=Simulated())
    parked = threading.Event()
    s.on(scheduler.events.Parked, lambda e: parked.set())
    waiting = [
        lambda: s.run(ask()),
        lambda: s.submit(ask()).result(),
        lambda: list(s.map([ask()])),
        lambda: list(s.map([ask(), ask()], ordered=True)),
        lambda: s.stream(ask()).response(),
    ]
    with ThreadPoolExecutor(len(waiting)) as pool:
        futures = [pool.submit(wait) for wait in waiting]
        assert parked.wait(10)
        s.close()
        for future in futures:
            assert isinstance(future.exception(10), SchedulerClosed)


def test_a_future_that_is_cancelled_takes_its_request_along():
    with scheduler.open(budgets="$0", providers=Simulated()) as s:
        parked = threading.Event()
        s.on(scheduler.events.Parked, lambda e: parked.set())
        waiting, sure = s.submit(ask()), s.submit(ask())
        assert parked.wait(10)

        assert waiting.cancel()

        while s.stats().cancelled < 1:
            time.sleep(0.01)
        s.set_limit("default", None)
        assert sure.result(10).cost > 0
        assert s.stats().succeeded == 1


def test_its_own_thread_is_not_blocked():
    with scheduler.open(budgets="$1", providers=Simulated()) as s:
        ways = [s.stats, s.close, lambda: s.run(ask()), lambda: list(s.map([ask()]))]
        found: list[str] = []
        more: list[Any] = []

        def settled(event: object) -> None:
            stop()
            for way in ways:
                try:
                    way()
                except RuntimeError as error:
                    found.append(str(error))
            more.append(s.submit(ask()))

        stop = s.on(scheduler.events.Settled, settled)
        s.run(ask())
        while not more:
            time.sleep(0.01)
        assert more[0].result(10).cost > 0
        assert found == ["this would wait for itself: it is the scheduler's own thread"] * 4


# Tags


def test_tags_of_the_calling_thread_reach_its_requests(url):
    import openai

    budgets = [Budget("default", "$1"), Budget("ann", "1 request", tags={"user": "ann"})]
    with scheduler.open(budgets=budgets, providers=Simulated(), prices=SIMULATED_PRICES) as s:
        bare = openai.OpenAI(api_key="none", base_url=url)
        client, strict = s.wrap(bare), s.wrap(bare, on_exceeded="raise")
        message: Any = {"role": "user", "content": "Hi"}

        def complete(client: openai.OpenAI = client, **options: Any) -> Any:
            return client.chat.completions.create(
                model="sim-small", messages=[message], max_tokens=5, **options
            )

        def complete_for_call(**options: Any) -> Any:
            return {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}

        with s.tag(job="run"):
            s.run(ask())
        with s.tag(job="submit"):
            future = s.submit(ask())
        future.result(10)
        with s.tag(job="map"):
            list(s.map([ask(), ask(job="its own")]))
        with s.tag(job="stream"), s.stream(ask()) as stream:
            stream.response()
        with s.tag(job="wrapped"):
            complete()
        with s.tag(job="wrapped stream"):
            assert list(complete(stream=True))
        with s.tag(job="call"):
            s.call(complete_for_call, model="sim-small", messages=[message], max_tokens=5)
        with s.tag(job="outer", tags={"user": "ann"}), s.tag(job="inner"):
            s.run(ask())
            with pytest.raises(scheduler.BudgetExceeded) as info:
                s.run(ask(), on_exceeded="raise")  # only the tag says that it is Ann's
            assert info.value.budget == "ann"
            with pytest.raises(openai.APIStatusError) as refused:
                complete(strict)
            assert "budget 'ann'" in str(refused.value)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(s.run, ask()).result(10)  # other threads know nothing of it

        assert spend(s) == {
            "": 1, "run": 1, "submit": 1, "map": 1, "its own": 1, "stream": 1, "wrapped": 1,
            "wrapped stream": 1, "call": 1, "inner": 1,
        }  # fmt: skip


# Ctrl-C

INTERRUPTED = """
import signal, sys
import scheduler
from scheduler import Request, Simulated
from scheduler.providers.simulated_bill import SIMULATED_PRICES

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is ignored
how, url, store, limit, latency = sys.argv[1:]
provider, quick = Simulated(latency=latency), Simulated("quick")
s = scheduler.open(
    store or None, budgets=limit, providers=[provider, quick], prices=SIMULATED_PRICES
)
s.on(scheduler.events.Parked, lambda e: print("waits", flush=True))
s.on(scheduler.events.Admitted, lambda e: print("waits", flush=True))

def ask(n=0, **options):
    return Request.chat("sim-small", f"Hi {n}", max_tokens=5, key=f"{n}", **options)

def asks():
    return map(ask, range(1000))

def wrapped(**options):
    import openai
    client = s.wrap(openai.OpenAI(api_key="none", base_url=url))
    messages = [{"role": "user", "content": "Hi"}]
    return client.chat.completions.create(
        model="sim-small", messages=messages, max_tokens=5, **options
    )

def in_jupyter():
    import asyncio
    async def cell():
        s.run(ask())
    loop = asyncio.new_event_loop()  # ipykernel's leaves Ctrl-C alone, unlike asyncio.run
    loop.run_until_complete(cell())

def in_threads():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool, s:
        list(pool.map(lambda n: wrapped(), range(100)))

WAYS = {
    "run": lambda: s.run(ask()),
    "submit": lambda: s.submit(ask()).result(),
    "map": lambda: list(s.map(asks())),
    "ordered map": lambda: list(s.map(asks(), ordered=True)),
    "stream": lambda: list(s.stream(ask())),
    "wrapped": wrapped,
    "wrapped stream": lambda: list(wrapped(stream=True)),
    "in Jupyter": in_jupyter,
    "in threads": in_threads,
}
try:
    WAYS[how]()
except KeyboardInterrupt:
    if how != "in threads":
        s.set_limit("default", None)  # what still waited would go on now
        s.run(Request.chat("sim-small", "The last", max_tokens=5, provider="quick"))
        print(s.stats(), "|", provider.calls, "calls", flush=True)
    raise
"""


def interrupt(how: str, url: str, store: str = "", limit: str = "$0", latency: str = "0s") -> str:
    """Interrupt a program that waits; what it prints."""
    words = [sys.executable, "-c", INTERRUPTED, how, url, store, limit, latency]
    with warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            time.sleep(0.3)  # its main thread is about to wait, too
            began_s = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            took_s = time.monotonic() - began_s
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT, err
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert "Exception ignored" not in err
    assert took_s < PROMPTLY_S
    return out


WAITS = ["run", "submit", "map", "ordered map", "stream", "wrapped", "wrapped stream", "in Jupyter"]


@pytest.mark.parametrize("how", WAITS)
def test_interrupted_while_it_waits_for_money_it_ends_and_costs_nothing(how, url):
    out = interrupt(how, url)

    if how == "submit":  # its future is still its holder's, as any other of its kind
        assert "2 done" in out
    else:
        assert "0 queued, 0 parked | 1 done" in out  # the last, and nothing else
        assert out.endswith("| 0 calls\n")
    assert received(url) == 0


@pytest.mark.parametrize("how", ["run", "ordered map", "wrapped"])
def test_so_it_does_on_a_file(how, url, tmp_path):
    out = interrupt(how, url, f"sqlite:///{tmp_path}/s.db")

    assert "0 queued, 0 parked | 1 done" in out
    assert out.endswith("| 0 calls\n")
    assert received(url) == 0


def test_interrupted_in_a_pool_its_threads_are_let_go(url):
    interrupt("in threads", url)

    assert received(url) == 0


@pytest.mark.parametrize("how", ["run", "wrapped"])
def test_interrupted_while_it_is_sent_it_keeps_counting(how):
    with running_server("--latency", "60s") as url:
        out = interrupt(how, url, limit="$1", latency="60s")
        assert received(url) == (how == "wrapped")

    assert "1 done" in out
    assert "unknown" in out


STRUCK = """
import signal, sys, time
import scheduler
from scheduler import Request, Simulated

def strike(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, strike)
provider = Simulated()
s = scheduler.open(sys.argv[2] or None, budgets="$0", providers=provider)

def ask(n=0):
    return Request.chat("sim-small", f"Hi {n}", max_tokens=5)

WAYS = {
    "run": lambda: s.run(ask()),
    "map": lambda: list(s.map(map(ask, range(1000)))),
    "ordered map": lambda: list(s.map(map(ask, range(1000)), ordered=True)),
    "stream": lambda: list(s.stream(ask())),
}
for trial in range(1, 101):
    try:
        # Once more later: Python ignores exceptions in some places, and says so.
        signal.setitimer(signal.ITIMER_REAL, trial * 0.0001, 0.5)
        WAYS[sys.argv[1]]()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    until_s = time.monotonic() + 5
    while (stats := s.stats()).queued or stats.parked:
        assert time.monotonic() < until_s, (trial, stats)
        time.sleep(0.001)
s.set_limit("default", None)
s.run(ask("the last"))
print(provider.calls)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no such timers here")
@pytest.mark.parametrize("store", ["", "s.db"])
@pytest.mark.parametrize("how", ["run", "map", "ordered map", "stream"])
def test_interrupted_at_any_step_nothing_is_left_waiting(how, store, tmp_path):
    done = run("-c", STRUCK, how, str(tmp_path / store) if store else "")

    assert done.stdout == "1\n", done.stderr


DROPPED = """
import time
import scheduler
from scheduler import Request, Simulated

def ask():
    return Request.chat("sim-small", "Hi", max_tokens=5)

def until(condition):
    while not condition():
        time.sleep(0.01)

with scheduler.open(budgets="$0.00003", providers=Simulated(latency="60s")) as s:
    stream = s.stream(ask())
    until(lambda: s.stats().running)
    del stream
    until(lambda: not s.stats().running)
    assert s.stats().suspense_nusd  # it keeps counting, so the next one has to wait
    stream = s.stream(ask())
    until(lambda: s.stats().parked)
    del stream
    until(lambda: not s.stats().parked)
    print(s.stats().cancelled)
"""


def test_a_stream_that_is_dropped_ends_in_the_thread_it_belongs_to():
    # In development mode asyncio tells of calls from other threads.
    done = run("-X", "dev", "-c", DROPPED)

    assert (done.stdout, unparked(done.stderr)) == ("2\n", "")


def unparked(stderr: str) -> str:
    """What is on stderr besides that a budget parks something, which is meant."""
    return "".join(line for line in stderr.splitlines(True) if not line.startswith("parked: "))


def received(url: str) -> int:
    """How many calls a server got."""
    number: int = httpx.get(f"{url.removesuffix('/v1')}/billed").json()["received"]
    return number


# Forgotten

FORGOTTEN = """
import sys, threading, time
import scheduler
from scheduler import Request, Simulated

what, store = sys.argv[1:]
latency = "60s" if what == "running" else "0s"
provider = Simulated(output_tokens=5, latency=latency)
s = scheduler.open(store or None, budgets="$0.00004", providers=provider)

def ask(n):
    return Request.chat("sim-small", f"Hi {n:03}", max_tokens=5, key=f"{n}")

if what in ("parked", "running"):
    begun = threading.Event()
    s.on(scheduler.events.Parked, lambda e: begun.set())
    futures = [s.submit(ask(n)) for n in range(100)]
    assert begun.wait(10)
elif what == "just begun":
    futures = [s.submit(ask(n)) for n in range(100)]
elif what == "half a map":
    next(answers := s.map(map(ask, range(100))))
elif what == "half a stream":
    next(stream := s.stream(ask(0)))
elif what == "a client":
    client = scheduler.Client(provider=provider, cost_tracking_budget=1)
    messages = [{"role": "user", "content": "Hi"}]
    client.chat.completions.create(model="sim-small", messages=messages, max_tokens=5)
elif what == "in a loop":
    import asyncio
    async def cell():
        s.run(ask(0))
    asyncio.run(cell())
elif what == "forked":
    import os, signal
    if os.fork() == 0:
        signal.alarm(60)
        sys.exit(0)
    assert os.wait()[1] == 0
print(time.monotonic())
"""

AFTERWARDS = """
import asyncio, sys
from scheduler import Budget, Request, Scheduler, Simulated
from scheduler.clock import SystemClock

async def main():
    budget = Budget("default", None)
    async with Scheduler(sys.argv[1], budgets=budget, providers=Simulated()) as s:
        asks = (Request.chat("sim-small", f"Hi {n:03}", max_tokens=5, key=f"{n}") for n in range(100))
        answers = [answer async for answer in s.map(asks)]
        assert (await s.store.audit(SystemClock().now_ms())).discrepancies == ()
        print(len(answers))

asyncio.run(main())
"""


@pytest.mark.parametrize("store", ["", "s.db"])
@pytest.mark.parametrize(
    "what",
    [
        "nothing", "parked", "running", "just begun", "half a map", "half a stream", "a client",
        "in a loop", "forked",
    ],
)  # fmt: skip
def test_a_program_that_forgets_to_close_it_ends(what, store, tmp_path):
    if what == "forked" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    path = str(tmp_path / store) if store else ""

    done = run("-c", FORGOTTEN, what, path)

    assert done.returncode == 0, done.stderr
    assert time.monotonic() - float(done.stdout) < PROMPTLY_S
    assert what == "forked" or unparked(done.stderr) == ""  # newer Pythons warn of threads in forks
    if store:
        after = run("-c", AFTERWARDS, path)
        assert after.stdout == "100\n", after.stderr


# Forks

FORKED = """
import os
import signal
import sys
import scheduler
from scheduler import Request, SchedulerClosed, Simulated

s = scheduler.open(sys.argv[1] or None, budgets="$1", providers=Simulated())
client = scheduler.Client(provider=Simulated(), cost_tracking_budget=1)
request = Request.chat("sim-small", "Hi", max_tokens=5)
messages = [{"role": "user", "content": "Hi"}]

def create():
    return client.chat.completions.create(model="sim-small", messages=messages, max_tokens=5)

create()
WAYS = [
    lambda: s.run(request),
    lambda: s.submit(request),
    lambda: list(s.map([request])),
    lambda: s.stream(request),
    lambda: s.call(print, model="sim-small", messages=messages),
    lambda: s.set_limit("default", "$2"),
    lambda: s.stats(),
    create,
]
if os.fork() == 0:
    signal.alarm(60)
    for way in WAYS:
        try:
            way()
        except SchedulerClosed as error:
            assert "forked" in str(error)
        else:
            raise AssertionError
    with s:
        pass
    with scheduler.open(budgets="$1", providers=Simulated()) as own:
        own.run(request)
    sys.exit(0)
assert os.wait()[1] == 0
s.run(request)
create()
s.close()
print("goes on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("store", ["", "s.db"])
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on(store, tmp_path):
    done = run("-c", FORKED, str(tmp_path / store) if store else "")

    assert done.stdout == "goes on\n", done.stderr
