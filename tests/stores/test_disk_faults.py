"""Disks that are full, broken or without power: clear errors, nothing lost, nothing half done."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from scheduler import Scheduler
from scheduler.budget import Budget
from scheduler.errors import StoreError
from scheduler.request import Request
from scheduler.stores.sqlite import SqliteStore
from tests import warm
from tests.conftest import Bench as Provider
from tests.conftest import ask
from tests.stores import newest
from tests.stores.conformance import T0
from tests.stores.disk import Disk, Fault, Files, World, bench_on, dump, outcomes, take_up, work

# Of failures at which SQLite itself shrugs, apsw tells the interpreter.
SHRUGGED = (
    r"ignore:(?s)Exception ignored in. None.*apsw.IOError:pytest.PytestUnraisableExceptionWarning"
)
pytestmark = pytest.mark.filterwarnings(SHRUGGED)

LATER = T0 + 60_000
FIRST, SETTLING = 1, 6  # answers before the first step, and before a turn that does everything
EVERY = frozenset({"write", "sync", "truncate", "delete", "open"})
FAULTS = {
    "full": Fault(frozenset({"write"}), apsw.SQLITE_FULL, 0),
    "full for a moment": Fault(frozenset({"write"}), apsw.SQLITE_FULL, 0, stays=False),
    "short write": Fault(frozenset({"write"}), apsw.SQLITE_FULL, 0, is_short=True),
    "gone": Fault(EVERY, apsw.SQLITE_IOERR_WRITE, 0, is_short=True),
    "no sync": Fault(frozenset({"sync"}), apsw.SQLITE_IOERR_FSYNC, 0),
    "no sync once": Fault(frozenset({"sync"}), apsw.SQLITE_IOERR_FSYNC, 0, stays=False),
    "one failure": Fault(EVERY, apsw.SQLITE_IOERR_WRITE, 0, stays=False),
}
_names = count()


@dataclass
class Rig:
    """A disk, and what a store's file holds after every step when nothing goes wrong."""

    disk: Disk
    states: list[dict[str, list[Any]]]
    operations: dict[int, int]  # done after so many answers
    ends: dict[str, str]


@pytest.fixture(scope="module", params=["wal", "persist"])
def rig(request, tmp_path_factory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    disk = Disk(f"disk-{next(_names)}")
    no_log = None if request.param == "wal" else "a network"
    with pytest.MonkeyPatch.context() as patch:
        newest.install(patch.setattr, disk.name, no_log)
        made = Rig(disk, [{}], {}, {})
        world, path = World(), folder / "s.db"

        def step() -> None:
            Files.of(path).write(folder / "copy.db")
            made.operations[len(made.states)] = disk.counts.total()
            made.states.append(dump(folder / "copy.db"))

        async def do() -> None:
            await work(bench_on(SqliteStore(path), dead=True), world, step)
            made.ends = await taken_up(path, world)

        asyncio.run(do())
        yield made
        disk.unregister()


async def taken_up(path: Path, world: World) -> dict[str, str]:
    """Another process does the work again; how every key ended."""
    bench = bench_on(SqliteStore(path), now_ms=LATER)
    await bench.store.open(LATER)
    try:
        assert await bench.is_sound()
        await take_up(bench, world)
        return await outcomes(bench)
    finally:
        await bench.store.aclose()


@dataclass
class Broken:
    """How far the work came on a disk that fails."""

    world: World
    answered: int = 1
    error: StoreError | None = None
    files: Files | None = None  # as they were when the step failed


async def break_at(rig: Rig, path: Path, after: int, fault: Fault) -> Broken:
    """Do the work; after so many answers the disk begins to count to its fault."""
    done = Broken(World())
    rig.disk.forget()

    def step() -> None:
        done.answered += 1
        if done.answered == after:
            rig.disk.arm(fault)

    if after == done.answered:
        rig.disk.arm(fault)
    bench = bench_on(SqliteStore(path), dead=True)
    try:
        await work(bench, done.world, step)
    except StoreError as exc:
        done.error = exc
    assert done.error is None or str(path) in str(done.error)
    done.files = Files.of(path)
    await bench.store.aclose()
    rig.disk.arm(None)
    return done


async def check(rig: Rig, files: Files, done: Broken, path: Path, *, go_on: bool) -> None:
    """They hold the last answered step, or the next one whole; the work can go on from them."""
    files.write(path)
    last = done.answered - 1 if done.error is not None else len(rig.states) - 2
    assert dump(path) in rig.states[last : last + 2]
    if go_on:
        files.write(path)
        assert await taken_up(path, done.world.copy()) == rig.ends


def at_operation(fault: Fault, at: int) -> Fault:
    return Fault(fault.on, fault.code, at, fault.stays, fault.is_short)


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_fault_at_any_operation_of_a_turn_is_a_clear_error_and_loses_nothing(
    rig, kind, tmp_path
):
    for at in count():
        path, copy = tmp_path / f"{at}.db", tmp_path / f"{at}.copy.db"
        done = await break_at(rig, path, SETTLING, at_operation(FAULTS[kind], at))
        if done.answered > SETTLING:
            break  # the turn was over before so many operations
        await check(rig, done.files, done, copy, go_on=False)
        if at % 8 == 0:  # and on the file as its process left it
            assert await taken_up(path, done.world.copy()) == rig.ends
    assert at > 0


@pytest.mark.parametrize("kind", ["gone", "full", "no sync"])
async def test_a_fault_anywhere_in_the_work_is_a_clear_error_and_loses_nothing(rig, kind, tmp_path):
    for at in range(0, max(rig.operations.values()), 60):
        path = tmp_path / f"{at}.db"
        done = await break_at(rig, path, FIRST, at_operation(FAULTS[kind], at))
        await check(rig, done.files, done, tmp_path / f"{at}.copy.db", go_on=True)
        if done.error is None:
            break
    assert at > 0


# Power cuts: whatever was not synced may be lost, or be there in part

CUT = Fault(EVERY, apsw.SQLITE_IOERR_WRITE, 0, is_short=True)


async def cut_and_check(rig: Rig, folder: Path, after: int, at: int) -> Broken:
    """Cut the power at an operation, look at what chance has kept, and go on from there."""
    here = folder / str(at)
    here.mkdir()
    done = await break_at(rig, here / "s.db", after, at_operation(CUT, at))
    for seed in range(2):
        there = here / str(seed)
        there.mkdir()
        rig.disk.after_power_cut(Random(f"{at} {seed}"), here, there)
        kept = Files.of(there / "s.db")
        await check(rig, kept, done, there / "s.db", go_on=(at + seed) % 10 == 0)
    return done


async def test_a_power_cut_at_any_operation_of_a_turn_loses_nothing(rig, tmp_path):
    for at in count():
        done = await cut_and_check(rig, tmp_path, SETTLING, at)
        if done.answered > SETTLING:
            return


async def test_a_power_cut_anywhere_in_the_work_loses_nothing(rig, tmp_path):
    for at in range(3, max(rig.operations.values()), 61):
        await cut_and_check(rig, tmp_path, FIRST, at)


# The scheduler on such a disk


@pytest.mark.timeout(40)
async def test_on_a_disk_that_is_full_a_scheduler_sends_nothing_more_and_says_so(rig, tmp_path):
    provider, path, sent = Provider(), tmp_path / "s.db", asyncio.Event()

    async def tell(request: Request) -> None:
        if request.key == "b":
            sent.set()

    provider.before = tell
    store = bench_on(SqliteStore(path), dead=True).store
    budget = Budget("team", "$0.001")
    async with Scheduler(store, budgets=budget, providers=provider, poll_interval=0.05) as s:
        assert (await s.run(ask(0, key="a"))).body == {"answer": 0}
        running = s.submit(ask(1, key="b", seconds=60))
        await asyncio.wait_for(sent.wait(), 10)
        rig.disk.arm(FAULTS["full"])
        for waiting in (s.submit(ask(2, key="c")), running, s.submit(ask(3, key="d"))):
            with pytest.raises(StoreError, match="disk is full"):
                await asyncio.wait_for(waiting, 60)
        with pytest.raises(StoreError, match=r"store failed.*disk is full"):
            await asyncio.wait_for(s.join(), 10)
    assert [request.key for request in provider.sent] == ["a", "b"]
    rig.disk.arm(None)

    async with Scheduler(path, budgets=budget, providers=provider) as s:
        assert await held(s.store) >= provider.billed_nusd
        answers = [await s.run(ask(n, key=key)) for n, key in enumerate("abcd") if key != "b"]
        assert [each.body["answer"] for each in answers] == [0, 2, 3]
        assert [request.key for request in provider.sent] == ["a", "b", "c", "d"]
        assert await held(s.store) >= provider.billed_nusd


async def held(store: SqliteStore) -> int:
    """All that counts against the budget."""
    (status,) = await store.budgets(LATER)
    return status.caps[0].posted + status.caps[0].reserved


# A disk that is full for the whole command: no file may grow past `room` bytes


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(250_000, id="while it is queued"),
        pytest.param(
            600_000,
            id="while it runs",
        ),
    ],
)
def test_a_batch_on_a_full_disk_ends_with_a_clear_error_and_finishes_when_there_is_room(
    room, tmp_path
):
    content = "many words " * 60
    body = {"model": "sim-small", "messages": [{"role": "user", "content": content}]}
    names = [f"r{n}" for n in range(300)]
    lines = [json.dumps({"custom_id": name, "body": body}) + "\n" for name in names]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    words = ["scheduler", "run", "p.jsonl", "--base-url", "sim:", "--budget", "$1",
             "--store", "sqlite:///s.db", "-o", "out.jsonl"]  # fmt: skip

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        code = (
            "import resource, runpy, sys\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            f"sys.argv = {words}\n"
            "runpy.run_module('scheduler', run_name='__main__')"
        )
        return warm.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    full = run(room)
    size = (tmp_path / "s.db").stat().st_size
    again = run(resource.RLIM_INFINITY)

    assert full.returncode not in (0, 75), full.stderr
    (message,) = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert "s.db" in message
    assert "Traceback" not in full.stderr
    assert size <= room
    assert again.returncode == 0, again.stderr
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(each["custom_id"] for each in results) == sorted(names)
