"""A process may die before any statement, and after any commit: nothing is lost, nothing is half done.

The work runs once on a connection that keeps, at every statement, what a crash there would
leave on the disk: the files as they are, the journal included. Each of these is then looked
at, opened by another process, and the work done again from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scheduler.stores.process import Process, this_process
from scheduler.stores.sqlite import SqliteStore
from tests.stores import newest
from tests.stores.conformance import T0
from tests.stores.disk import (
    KEYS,
    NOW_DEAD,
    Files,
    World,
    bench_on,
    dump,
    outcomes,
    take_up,
    work,
)

MOST_RUN = 6  # after so many answers two billed calls are under way
LATER = T0 + 60_000


@dataclass
class Point:
    """A crash: what was on the disk, and what was known by then."""

    files: Files
    answered: int  # steps that were answered
    is_committed: bool  # the step under way had committed
    world: World


@dataclass
class Recorder:
    """Keeps every point of a run at which a crash leaves something new."""

    path: Path
    world: World
    statements: int = 0
    is_committed: bool = False
    answers: list[Files] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    _seen: set[tuple[Files, int, bool]] = field(default_factory=set)

    def note(self) -> None:
        files, answered = Files.of(self.path), len(self.answers)
        if (files, answered, self.is_committed) not in self._seen:
            self._seen.add((files, answered, self.is_committed))
            self.points.append(Point(files, answered, self.is_committed, self.world.copy()))

    def around(self, db: Any, sql: str, run: Callable[[], Any]) -> Any:
        self.statements += 1
        self.note()
        done = run()
        if sql == "COMMIT" or (not db.in_transaction and sql.startswith("INSERT")):
            self.is_committed = True
            self.note()
        return done

    def answer(self) -> None:
        self.answers.append(Files.of(self.path))
        self.is_committed = False


class Recorded:
    """A connection, or a cursor of it, whose recorder hears of every statement."""

    def __init__(self, inner: Any, recorder: Recorder, db: Any = None) -> None:
        self._inner, self._recorder, self._db = inner, recorder, db or inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, sql: str, *values: Any) -> Any:
        return self._recorder.around(self._db, sql, lambda: self._inner.execute(sql, *values))

    def executemany(self, sql: str, rows: Any) -> Any:
        return self._recorder.around(self._db, sql, lambda: self._inner.executemany(sql, rows))

    def cursor(self) -> Recorded:
        return Recorded(self._inner.cursor(), self._recorder, self._inner)


class RecordedStore(SqliteStore):
    def __init__(self, path: Path, recorder: Recorder) -> None:
        super().__init__(path)
        self.recorder = recorder

    def _connect(self):
        return Recorded(super()._connect(), self.recorder)


@pytest.fixture(scope="module", params=["the system's SQLite", "the newest"])
def run(request, tmp_path_factory):
    """The work, done once without a crash: its recorder."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "the newest":
            newest.install(patch.setattr)
        path = tmp_path_factory.mktemp("run") / "s.db"
        world = World()
        recorder = Recorder(path, world)

        async def do() -> None:
            bench = bench_on(RecordedStore(path, recorder), dead=True)
            recorder.answers.append(Files((("", b""),)))
            await work(bench, world, recorder.answer)

        asyncio.run(do())
        yield recorder


async def taken_up(files: Files, path: Path, world: World, *, crashes: int = 1) -> dict[str, str]:
    """Do the work again from these files; how every key ended."""
    files.write(path)
    bench = bench_on(SqliteStore(path), now_ms=LATER)
    await bench.store.open(bench.now_ms)
    try:
        assert await bench.is_sound()
        unknown = await take_up(bench, world)
        ends = await outcomes(bench)
    finally:
        await bench.store.aclose()
    for key in KEYS:
        assert world.paid[key] == (ends[key] == "succeeded") + unknown[key], key
        assert unknown[key] <= crashes + key.startswith("lost"), key
    return ends


def test_the_work_is_worth_crashing(run):
    assert run.statements > 300
    assert len(run.answers) > 25
    assert run.world.billed > 50


def test_a_crash_before_any_statement_and_after_any_commit_keeps_what_was_answered(run, tmp_path):
    """The file is as after the last answer, or as after the next one, row for row."""
    states = [written(files, tmp_path) for files in run.answers]
    for point in run.points:
        expected = states[point.answered - 1 + point.is_committed]
        assert written(point.files, tmp_path) == expected


def written(files: Files, folder: Path) -> dict[str, list[Any]]:
    files.write(folder / "s.db")
    return dump(folder / "s.db")


async def test_after_a_crash_anywhere_the_same_work_ends_the_same(run, tmp_path):
    """Every key has one outcome, and is paid once and once for every answer nobody saw."""
    expected = await taken_up(run.answers[-1], tmp_path / "whole.db", run.world.copy())
    assert len(expected) == len(KEYS)
    for point in run.points:
        assert await taken_up(point.files, tmp_path / "s.db", point.world.copy()) == expected


async def test_a_crash_while_the_work_is_taken_up_again_ends_the_same_too(run, tmp_path):
    expected = await taken_up(run.answers[-1], tmp_path / "whole.db", run.world.copy())
    busy = next(point for point in run.points if point.answered == MOST_RUN)
    world = busy.world.copy()
    again = Recorder(tmp_path / "again.db", world)
    busy.files.write(again.path)
    bench = bench_on(RecordedStore(again.path, again), dead=True, now_ms=LATER)
    bench.store._transactions.process = Process(this_process().host, NOW_DEAD + 1, "1")
    await bench.store.open(LATER)
    unknown = await take_up(bench, world)
    await bench.store.aclose()
    assert sum(unknown.values()) == 3  # those two, and one that is lost in any run

    for point in again.points:
        end = await taken_up(point.files, tmp_path / "s.db", point.world.copy(), crashes=2)
        assert end == expected
