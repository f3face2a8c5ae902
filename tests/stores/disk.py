"""What tests of crashes and bad disks share: a provider's truth, and how work is taken up again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import apsw

from scheduler.budget import Budget
from scheduler.request import RequestState
from scheduler.stores import sqlite as stores_sqlite
from scheduler.stores.base import Claimed, Outcome, Settlement, Unknown
from scheduler.stores.process import Process, this_process
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import T0, Bench, end, new, post

COST = 7  # what every answer costs, in nano-dollars
NEED = 10  # what is put aside for it
PLENTY = Budget("team", "$0.000001/day")
KEYS = ("post-1", "post-2", "void-1", "lost-1", "later-1", "post-3", "over-1", "post-4")
QUEUED, SUCCEEDED, FAILED = RequestState.QUEUED, RequestState.SUCCEEDED, RequestState.FAILED
NOW_DEAD = 2**22 + 1  # above the largest pid Linux gives


class World:
    """What the provider knows: which attempts reached it, and what it billed for them."""

    def __init__(self) -> None:
        self.bills: dict[int, int] = {}  # by reservation
        self.paid: Counter[str] = Counter()  # answers billed, by key
        self.asked: dict[int, str] = {}  # the key of every attempt that was sent
        self.unseen: dict[int, str] = {}  # of those billed whose answer nobody saw

    @property
    def billed(self) -> int:
        return sum(self.bills.values())

    def copy(self) -> World:
        twin = World()
        twin.bills, twin.paid = dict(self.bills), self.paid.copy()
        twin.asked, twin.unseen = dict(self.asked), dict(self.unseen)
        return twin

    def _bill(self, claimed: Claimed, nusd: int) -> None:
        self.bills[claimed.reservation_id] = nusd
        self.paid[claimed.request.key or ""] += 1

    def answer(self, claimed: Claimed, now_ms: int) -> Settlement:
        """Send it; its key says how it goes."""
        kind = (claimed.request.key or "post").partition("-")[0]
        is_first = claimed.request.key not in self.asked.values()
        self.asked[claimed.reservation_id] = claimed.request.key or ""
        if kind == "void":
            return end(claimed, Outcome.VOID, FAILED, error={"code": "bad"})
        if kind == "later" and is_first:
            return end(claimed, Outcome.VOID, QUEUED, not_before_ms=now_ms + 300)
        self._bill(claimed, NEED + 5 if kind == "over" else COST)
        if kind == "lost" and is_first:
            return end(claimed, Outcome.SUSPEND, QUEUED)
        return post(claimed, self.bills[claimed.reservation_id])


def bench_on(store: SqliteStore, *, dead: bool = False, now_ms: int = T0) -> Bench:
    """Shorthands for a store; `dead`: it takes itself for a process that others see is gone."""
    if dead:
        me = this_process()
        store._transactions.process = Process(me.host, NOW_DEAD, "1")
    bench = Bench(store)
    bench.now_ms = now_ms
    return bench


async def counted(bench: Bench) -> int:
    """All that the ledger holds against the budget."""
    return sum(await bench.balance())


async def take_up(bench: Bench, world: World) -> Counter[str]:
    """Do the same work again to its end, as a program that is started again does.

    Returns:
        How many attempts of each key were billed, and nobody saw the answer.
    """
    await bench.define(PLENTY)
    assert await counted(bench) >= world.billed
    await bench.store.pause("team", False, bench.now_ms)
    await bench.store.forget("j", bench.now_ms)
    ids = [bench.ids["team"]]
    result = await bench.submit(*[new(ids, NEED, key=key) for key in KEYS])
    while result.claimed or result.look_again_at_ms is not None:
        assert await counted(bench) >= world.billed
        if not result.claimed:
            bench.now_ms = max(bench.now_ms, result.look_again_at_ms)
        answers = [world.answer(claimed, bench.now_ms) for claimed in result.claimed]
        result = await bench.settle(*answers)
    unknown = await bench.store.suspended()
    await _tell_the_truth(bench, world, unknown)
    assert await bench.balance() == (world.billed, 0)
    assert await bench.is_sound()
    return Counter(world.unseen.values())


async def _tell_the_truth(bench: Bench, world: World, unknown: Sequence[Unknown]) -> None:
    """Settle what nobody knew with what the provider says."""
    world.unseen |= {each.id: each.key or "" for each in unknown if each.id in world.bills}
    truths = [
        Settlement(
            each.id, each.request_id,
            Outcome.POST if each.id in world.bills else Outcome.VOID, FAILED,
            nusd=world.bills.get(each.id, 0), is_assumed=True,
        )
        for each in unknown
    ]  # fmt: skip
    assert all(await bench.store.resolve(truths, bench.now_ms))


async def outcomes(bench: Bench) -> dict[str, str]:
    """How every key of the work ended."""
    ended = [each async for each in bench.store.finished("", undelivered=False)]
    assert len({each.key for each in ended}) == len(ended)
    assert all(each.response is not None for each in ended if each.state is SUCCEEDED)
    return {each.key: each.state.value for each in ended}


def dump(path: Path) -> dict[str, list[Any]]:
    """Every row of every table of a file nobody has open."""
    db = stores_sqlite.sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables}
    finally:
        db.close()


# The work


async def work(bench: Bench, world: World, step: Callable[[], None]) -> None:
    """Some of everything a store does; `step` is called when something was answered."""

    async def did(doing: Awaitable):
        result = await doing
        step()
        return result

    def answered(result, position: int = 0):
        return world.answer(result.claimed[position], bench.now_ms)

    store = bench.store
    await did(store.open(bench.now_ms))
    await did(store.define([PLENTY, Budget("tight", "$0.00000003/day")], bench.now_ms))
    bench.ids = {each.budget.name: each.id for each in await store.budgets(bench.now_ms)}
    ids, both = [bench.ids["team"]], sorted(bench.ids.values())
    await did(store.set_price("m", "1/2"))
    first = await did(
        bench.submit(*[new(ids, NEED, key=f"post-{n}") for n in (1, 2)], new(ids, NEED), slots=2)
    )
    second = await did(bench.settle(answered(first), slots=2))  # claims the one without a key
    third = await did(
        bench.turn(
            3,
            settle=[answered(first, 1), answered(second)],
            submit=[new(ids, NEED, key=key) for key in ("void-1", "lost-1", "later-1")],
        )
    )
    lost = await did(bench.settle(*[answered(third, n) for n in range(3)], slots=1))
    await did(bench.settle(answered(lost), slots=None))
    bench.now_ms += 300
    later = await did(bench.turn(1))
    await did(bench.settle(answered(later), slots=None))
    waiting = await did(
        bench.submit(
            new(ids, NEED, key="post-3"),
            new(ids, NEED, key="over-1", expires_at_ms=bench.now_ms + 100),
            new(both, 31, may_wait=False),
            slots=0,
        )
    )
    await did(bench.turn(0, cancel=[waiting.submitted[0].id]))
    bench.now_ms += 100
    expired = await did(bench.turn(1))
    assert (len(expired.expired), len(waiting.refused + expired.refused)) == (1, 1)
    await did(store.pause("team", True, bench.now_ms))
    paused = await did(bench.submit(new(ids, NEED, key="post-4")))
    assert paused.claimed == []
    await did(store.pause("team", False, bench.now_ms))
    await did(store.define([Budget("team", "$0.000002/day")], bench.now_ms))
    mine = await did(bench.turn(1))
    await did(bench.settle(answered(mine), slots=None))
    keys = ("post-j1", "lost-j2", "post-j3")
    job = await did(bench.submit(*[new(ids, NEED, key=key, job="j") for key in keys], slots=2))
    await did(bench.settle(answered(job), answered(job, 1), slots=None))
    (unknown,) = await store.suspended(job="j")
    guess = Settlement(
        unknown.id, unknown.request_id, Outcome.POST, FAILED, nusd=COST, is_assumed=True
    )
    assert await did(store.resolve([guess], bench.now_ms)) == [True]
    await did(store.delivered([job.submitted[0].id]))
    await did(store.forget("j", bench.now_ms))
    await did(store.prune(bench.now_ms, bench.now_ms))
    await did(bench.submit(new(ids, NEED, key="over-1"), slots=1))  # claimed, never answered
    await did(store.aclose())


# What is on a disk

SUFFIXES = ("", "-journal", "-wal")


@dataclass(frozen=True)
class Files:
    """The files at one instant."""

    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, path: Path) -> Files:
        found = [(suffix, path.with_name(path.name + suffix)) for suffix in SUFFIXES]
        return cls(tuple((suffix, file.read_bytes()) for suffix, file in found if file.exists()))

    def write(self, path: Path) -> None:
        for suffix in (*SUFFIXES, "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        for suffix, content in self.files:
            path.with_name(path.name + suffix).write_bytes(content)


# A disk that fails, or whose power is cut


@dataclass(frozen=True)
class Fault:
    """What goes wrong, from which operation on, and whether it stays wrong."""

    on: frozenset[str]  # kinds of operations that count: write, sync, truncate, delete, open
    code: int  # what SQLite is told
    at: int
    stays: bool = True
    is_short: bool = False  # half of what should be written is written


def error(fault: Fault) -> apsw.Error:
    """What SQLite would say by itself."""
    made = apsw.exception_for(fault.code)
    made.args = (
        "database or disk is full" if fault.code == apsw.SQLITE_FULL else "disk I/O error",
    )
    return made


Change = Callable[[bytes | None], bytes | None]


class Disk(apsw.VFS):
    """A file system that keeps apart what was synced from what a power cut may lose."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "unix")
        self.name = name
        self.fault: Fault | None = None
        self.counts: Counter[str] = Counter()
        self._matched = 0
        self._synced: dict[str, bytes | None] = {}
        self._changes: dict[str, list[Change]] = {}

    def forget(self) -> None:
        """What there was before is of no interest any more."""
        self._synced.clear()
        self._changes.clear()

    def arm(self, fault: Fault | None) -> None:
        self.fault, self._matched = fault, 0

    @property
    def has_failed(self) -> bool:
        return self.fault is not None and self._matched > self.fault.at

    def meet(self, kind: str) -> Fault | None:
        """One operation more; the fault it meets."""
        self.counts[kind] += 1
        fault = self.fault
        if fault is None or kind not in fault.on:
            return None
        self._matched += 1
        is_met = self._matched > fault.at if fault.stays else self._matched == fault.at + 1
        return fault if is_met else None

    def pass_or_raise(self, kind: str) -> None:
        fault = self.meet(kind)
        if fault is not None:
            raise error(fault)

    def changed(self, path: str, change: Change) -> None:
        self._changes.setdefault(path, []).append(change)

    def synced(self, path: str) -> None:
        for change in self._changes.pop(path, []):
            self._synced[path] = change(self._synced.get(path))

    def synced_folder(self, folder: Path) -> None:
        """What was deleted there stays deleted."""
        for path, changes in self._changes.items():
            while Path(path).parent == folder and DELETE in changes:
                del changes[: changes.index(DELETE) + 1]
                self._synced[path] = None

    def after_power_cut(self, chance: Random, old: Path, new: Path) -> None:
        """Write what is left of a folder: all that was synced, and of the rest what chance kept."""
        for path in sorted({*self._synced, *self._changes}):
            if Path(path).parent != old:
                continue
            content = self._synced.get(path)
            for change in self._changes.get(path, []):
                if chance.random() < 0.5:
                    content = change(content)
                elif isinstance(change, Write) and chance.random() < 0.5:
                    content = change.torn(chance)(content)
            if content is not None:
                (new / Path(path).name).write_bytes(content)

    def excepthook(self, *_error: object) -> None:
        """SQLite was told; nobody else need be."""

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        self.pass_or_raise("open")
        return DiskFile(self, name, flags)

    def xDelete(self, path: str, sync_folder: bool) -> None:
        self.pass_or_raise("delete")
        super().xDelete(path, sync_folder)
        self.changed(path, DELETE)
        if sync_folder:
            self.synced_folder(Path(path).parent)


def DELETE(content: bytes | None) -> None:
    """A deletion."""


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes

    def __call__(self, content: bytes | None) -> bytes:
        content = (content or b"").ljust(self.offset, b"\0")
        return content[: self.offset] + self.data + content[self.offset + len(self.data) :]

    def torn(self, chance: Random) -> Write:
        """Only a beginning of it reached the disk, in whole sectors."""
        return Write(self.offset, self.data[: chance.randrange(0, len(self.data) + 1, 512)])


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk, self.path = disk, name if isinstance(name, str) else name.filename()
        self._is_new = not Path(self.path).exists()
        if self.path not in disk._synced and not self._is_new:
            disk._synced[self.path] = Path(self.path).read_bytes()
        super().__init__("unix", name, flags)

    def excepthook(self, *_error: object) -> None:
        """SQLite was told; nobody else need be."""

    def xWrite(self, data: bytes, offset: int) -> None:
        fault = self.disk.meet("write")
        data = bytes(data)
        if fault is not None and fault.is_short:
            data = data[: len(data) // 2]
        if fault is None or fault.is_short:
            super().xWrite(data, offset)
            self.disk.changed(self.path, Write(offset, data))
        if fault is not None:
            raise error(fault)

    def xTruncate(self, size: int) -> None:
        self.disk.pass_or_raise("truncate")
        super().xTruncate(size)
        self.disk.changed(self.path, lambda content: (content or b"")[:size].ljust(size, b"\0"))

    def xSync(self, flags: int) -> None:
        self.disk.pass_or_raise("sync")
        super().xSync(flags)
        self.disk.synced(self.path)
        if self._is_new:  # SQLite syncs the folder of a journal or log it has made
            self.disk.synced_folder(Path(self.path).parent)
            self._is_new = False
