from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from scheduler import Scheduler, SchedulerClosed
from scheduler.answer import Answer
from scheduler.budget import Budget
from scheduler.errors import ConfigError, StoreError, StoreForeign, StoreLocked, StoreTooNew
from scheduler.providers.base import Provider
from scheduler.request import Priority, Request, RequestState
from scheduler.stores import open_store, tagged
from scheduler.stores.base import Outcome, Turn
from scheduler.stores.file import SCHEMA_VERSION, version_of
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.process import Process
from scheduler.stores.sql.codec import decode_request, encode_request
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import FixedTariff, until
from tests.stores.conformance import T0, Bench, Conformance, end, new, post
from tests.stores.strict import StrictConnection


@pytest.fixture
def strict(monkeypatch):
    """Every transaction is over a connection that takes only what PostgreSQL takes as well."""
    monkeypatch.setattr("scheduler.stores.file.SqliteConnection", StrictConnection)


class TestSqlite(Conformance):
    @pytest.fixture
    async def store(self, tmp_path, strict):
        store = SqliteStore(tmp_path / "s.db")
        await store.open(T0)
        yield store
        await store.aclose()


async def opened(path: Path, **options) -> SqliteStore:
    store = SqliteStore(path, **options)
    await store.open(T0)
    return store


@pytest.fixture
async def bench(tmp_path):
    made = Bench(await opened(tmp_path / "s.db"))
    await made.define(Budget("team", "$0.0000001/day"))
    yield made
    await made.store.aclose()


def other_process(bench: Bench, *, dead: bool) -> Bench:
    """A store on the same file that takes itself for another process."""
    store = SqliteStore(bench.store.path)
    me = store._transactions.process
    pid = 2**22 + 1 if dead else me.pid  # above the largest pid Linux gives
    store._transactions.process = Process(me.host if dead else "elsewhere", pid, "1")
    made = Bench(store)
    made.ids = bench.ids
    return made


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (None, MemoryStore),
        ("memory://", MemoryStore),
        ("sqlite:///a.db", SqliteStore),
        ("a.db", SqliteStore),
        (Path("a"), SqliteStore),
    ],
)
def test_a_url_names_a_store(url, kind):
    assert isinstance(open_store(url), kind)


def test_an_unknown_url_is_a_clear_error():
    with pytest.raises(ConfigError, match="'redis://x' is not memory://"):
        open_store("redis://x")


@pytest.mark.anyio
async def test_what_was_acknowledged_is_there_after_reopening(bench):
    ids = [bench.ids["team"]]
    result = await bench.submit(new(ids, 30, key="a"), new(ids, 30, key="b"), slots=1)
    await bench.settle(post(result.claimed[0], 20), slots=None)
    await bench.store.aclose()

    bench.store = await opened(bench.store.path)

    assert await bench.balance() == (20, 0)
    counts = await bench.store.counts()
    assert (counts.succeeded, counts.queued) == (1, 1)
    (finished,) = [each async for each in bench.store.finished("")]
    assert finished.key == "a"
    assert await bench.is_sound()


@pytest.mark.anyio
async def test_what_waited_goes_on_when_its_key_comes_again(bench):
    await bench.submit(new(key="a"), slots=None)
    await bench.store.aclose()
    bench.store = await opened(bench.store.path)

    untouched = await bench.turn()
    result = await bench.submit(new(key="a"))

    assert untouched.claimed == []
    assert [claimed.request.key for claimed in result.claimed] == ["a"]
    assert (await bench.store.counts()).total == 1


@pytest.mark.anyio
async def test_what_a_dead_process_was_sending_keeps_counting_and_is_sent_again(bench):
    dead = other_process(bench, dead=True)
    await dead.store.open(T0)
    ids = [bench.ids["team"]]
    await dead.submit(new(ids, 30, key="a"), new(ids, 30, key="b"), slots=1)

    result = await bench.submit(new(ids, 30, key="a"), new(ids, 30, key="b"))

    assert [claimed.request.key for claimed in result.claimed] == ["a", "b"]
    assert await bench.balance() == (0, 90)
    (status,) = await bench.store.budgets(bench.now_ms)
    assert status.caps[0].suspense == 30
    assert result.claimed[0].spent_nusd == 30
    assert await bench.is_sound()
    await dead.store.aclose()


@pytest.mark.anyio
async def test_a_process_taken_for_dead_settles_truthfully(bench):
    zombie = other_process(bench, dead=True)
    await zombie.store.open(T0)
    ids = [bench.ids["team"]]
    (claimed,) = (await zombie.submit(new(ids, 30, key="a"))).claimed
    (again,) = (await bench.submit(new(ids, 30, key="a"))).claimed

    late = await zombie.settle(post(claimed, 12), slots=None)
    await bench.settle(post(again, 13), slots=None)

    assert late.settled == [True]
    assert await bench.balance() == (25, 0)
    assert (await bench.store.counts()).succeeded == 1
    assert await bench.is_sound()
    await zombie.store.aclose()


@pytest.mark.anyio
async def test_a_silent_process_elsewhere_is_reclaimed_after_its_lease(bench):
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    await far.submit(new(key="a"))

    early = await bench.submit(new(key="a"))
    bench.now_ms += bench.store.lease_ms + 1
    late = await bench.submit(new(key="a"))

    assert (early.submitted[0].is_elsewhere, early.claimed) == (True, [])
    assert len(late.claimed) == 1
    await far.store.aclose()


@pytest.mark.anyio
async def test_a_living_process_renews_its_lease(bench):
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    await far.submit(new(key="a"))
    for _ in range(4):
        far.now_ms += far.store.lease_ms // 2
        await far.turn()
    bench.now_ms = far.now_ms

    assert (await bench.submit(new(key="a"))).submitted[0].is_elsewhere
    await far.store.aclose()


@pytest.mark.anyio
async def test_two_processes_never_spend_more_than_the_limit_together(bench):
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    ids = [bench.ids["team"]]

    one = await bench.submit(*[new(ids, 30) for _ in range(3)], slots=2)
    two = await far.submit(*[new(ids, 30) for _ in range(3)])

    assert (len(one.claimed), len(two.claimed)) == (2, 1)
    assert await bench.balance() == await far.balance() == (0, 90)
    await far.store.aclose()


@pytest.mark.anyio
async def test_two_processes_keep_no_more_values_of_a_tag_apart_than_one(bench, monkeypatch):
    monkeypatch.setattr(tagged, "MOST_VALUES", 2)
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    for each, user in ((bench, "ann"), (far, "bob"), (bench, "eve"), (far, "ann")):
        (claimed,) = (await each.submit(new((), 5, tags={"user": user}))).claimed
        await each.settle(post(claimed, 1))

    told = {row.name: row.attempts for row in await far.store.spend("tag:user")}
    assert told == {"ann": 2, "bob": 1, "(other)": 1}
    await far.store.aclose()


@pytest.mark.anyio
async def test_what_another_process_runs_is_not_ours_to_cancel(bench):
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    waiting = await far.submit(new(key="a"), slots=None)
    await bench.submit(new(key="a"))

    result = await bench.turn(None, cancel=[waiting.submitted[0].id])

    assert result.cancelled == [False]
    assert len((await far.turn()).claimed) == 1
    await far.store.aclose()


class Slow(Provider):
    """Counts what it was asked and takes a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.name, self.seconds, self.sent = "slow", seconds, 0
        self.tariff = FixedTariff(10)

    async def send(self, request):
        self.sent += 1
        await asyncio.sleep(self.seconds)
        return Answer({}, cost_nusd=5)


@pytest.mark.anyio
async def test_a_key_that_another_process_leaves_unanswered_is_taken_over(tmp_path):
    path, near = tmp_path / "s.db", Slow()
    owner = Scheduler(path, providers=Slow(30), concurrency=1, poll_interval=0.05)
    async with Scheduler(path, providers=near, poll_interval=0.05) as s:
        await owner.__aenter__()
        owner.submit(Request({"n": 0}))
        waiting = owner.submit(Request({"n": 1}, key="k"))
        await until(lambda: waiting.request_id)
        future = s.submit(Request({"n": 1}, key="k"))
        await asyncio.sleep(0.2)
        assert (near.sent, future.done()) == (0, False)

        await owner.aclose()

        assert (await asyncio.wait_for(future, 60)).cost_nusd == 5
        assert near.sent == 1
    assert isinstance(waiting.exception(), SchedulerClosed)


@pytest.mark.anyio
@pytest.mark.parametrize("steps", range(6))
async def test_closing_while_the_first_transaction_is_under_way_orphans_nothing(tmp_path, steps):
    path = tmp_path / "s.db"
    async with Scheduler(path, providers=Slow()) as s:
        s.submit(Request({"n": 1}, key="k"))
        for _ in range(steps):
            await asyncio.sleep(0)

    async with Scheduler(path, providers=Slow()) as s:
        assert (await asyncio.wait_for(s.run(Request({"n": 1}, key="k")), 10)).cost_nusd <= 10


@pytest.mark.anyio
async def test_leaving_after_a_failure_leaves_nothing_orphaned(bench):
    ids = [bench.ids["team"]]
    await bench.submit(new(ids, 30, key="a"))
    await bench.store.aclose()  # without settling, as after a failed transaction

    bench.store = await opened(bench.store.path)
    again = await bench.submit(new(ids, 30, key="a"))

    assert [claimed.request.key for claimed in again.claimed] == ["a"]
    assert await bench.balance() == (0, 60)
    assert await bench.is_sound()


@pytest.mark.anyio
async def test_changes_by_others_are_noticed_and_open_lanes(bench):
    far = other_process(bench, dead=False)
    await far.store.open(T0)
    parked = await bench.submit(new([bench.ids["team"]], 150))
    assert parked.claimed == []
    assert not await bench.store.changed(T0)

    await far.define(Budget("team", "$0.0000002/day"))

    assert await bench.store.changed(T0)
    assert not await bench.store.changed(T0)
    assert len((await bench.turn()).claimed) == 1
    await far.store.aclose()


@pytest.mark.anyio
async def test_looking_leaves_no_trace(bench, tmp_path):
    before = bench.store.path.read_bytes()
    looker = await opened(bench.store.path)
    await looker.counts()
    await looker.queue([RequestState.QUEUED], T0)
    await looker.audit(T0)
    await looker.aclose()

    assert bench.store.path.read_bytes() == before


@pytest.mark.anyio
async def test_the_file_is_for_its_owner_only(bench):
    assert stat.S_IMODE(bench.store.path.stat().st_mode) == 0o600


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"hello, I am no database at all", "is not a SQLite database"), (b"\0" * 5000, "is not a")],
)
async def test_a_file_that_is_no_database_is_refused_untouched(tmp_path, content, problem):
    path = tmp_path / "x.db"
    path.write_bytes(content)

    with pytest.raises(StoreForeign, match=problem):
        await opened(path)
    assert path.read_bytes() == content


@pytest.mark.anyio
async def test_a_database_of_another_program_is_refused_untouched(tmp_path):
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (a)")
    db.close()

    with pytest.raises(StoreForeign, match="of another program; nothing was changed"):
        await opened(path)
    db = sqlite3.connect(path)
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    db.close()


@pytest.mark.anyio
async def test_a_newer_database_is_refused(tmp_path):
    path = tmp_path / "x.db"
    await (await opened(path)).aclose()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()

    with pytest.raises(StoreTooNew, match=rf"schema version {SCHEMA_VERSION + 1}.*Upgrade"):
        await opened(path)


@pytest.mark.anyio
async def test_a_folder_a_missing_folder_and_a_missing_file_are_clear_errors(tmp_path):
    with pytest.raises(StoreForeign, match="is a folder"):
        await opened(tmp_path)
    with pytest.raises(StoreError, match="there is no folder"):
        await opened(tmp_path / "no" / "x.db")
    with pytest.raises(StoreError, match="there is no store at"):
        await opened(tmp_path / "x.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_file_held_for_too_long_is_a_clear_error_and_nothing_happens(bench, monkeypatch):
    monkeypatch.setattr("scheduler.stores.file.BUSY_MS", 10)
    impatient = await opened(bench.store.path, patience_s=0.05)
    db = sqlite3.connect(bench.store.path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreLocked, match="is held by another process"):
        await impatient.turn(Turn(T0, submit=[new()]))
    db.execute("ROLLBACK")
    db.close()

    assert (await impatient.counts()).total == 0
    await impatient.aclose()


@pytest.mark.anyio
async def test_a_request_that_is_no_json_is_refused_before_it_is_queued(bench):
    for request in (Request({"model": "m", "x": object()}), Request({"x": float("nan")}),
                    Request({"model": "m"}, key="\ud800")):  # fmt: skip
        bad = new()
        bad.request = request
        with pytest.raises(ConfigError, match=r"cannot be (stored|written).*nothing was sent"):
            bench.store.prepare(bad)


@pytest.mark.parametrize("priority", ["interactive", 7, "idle"])
def test_a_request_survives_the_file(priority):
    request = Request.chat(
        "m", "hi", key="k", tags={"a": "b"}, budget=["x"], priority=priority, metadata={"n": [1]}
    )

    again = decode_request(encode_request(request))

    assert Priority.parse(priority) == again.priority
    again.priority = request.priority
    assert again == request


@pytest.mark.anyio
async def test_lone_surrogates_in_a_prompt_survive(bench):
    (claimed,) = (await bench.submit(new(body="\ud83d!", key="a"))).claimed

    (again,) = (await bench.settle(end(claimed, Outcome.VOID, RequestState.QUEUED))).claimed

    assert again.request.body["messages"][0]["content"] == "\ud83d!"


@pytest.mark.anyio
async def test_time_per_claim_does_not_depend_on_the_number_that_waits(bench):
    """Counts steps of SQLite's machine, not seconds: the same for 100 as for 5,000 waiting."""

    async def steps_per_claim(waiting: int) -> int:
        await bench.submit(*[new(priority=20) for _ in range(waiting)], slots=None)
        await bench.submit(*[new(priority=0) for _ in range(8)], slots=None)
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        await bench.store._run(lambda db: db.set_progress_handler(step, 10))
        await bench.turn(8)
        await bench.store._run(lambda db: db.set_progress_handler(None, 0))
        return count

    few = await steps_per_claim(100)
    many = await steps_per_claim(5_000)

    assert many < few * 1.3


@pytest.mark.anyio
async def test_a_forgotten_store_does_not_keep_the_interpreter_alive(tmp_path):
    store = await opened(tmp_path / "s.db")
    assert store._connection._thread.daemon
    await store.aclose()


def test_pids_of_dead_processes_are_recognised():
    from scheduler.stores.process import is_dead, this_process

    me = this_process()
    assert not is_dead(me, me)
    assert is_dead(me, Process(me.host, 2**22 + 1, ""))
    assert not is_dead(me, Process("elsewhere", 2**22 + 1, ""))
    if me.started:
        assert is_dead(me, Process(me.host, os.getpid(), str(int(me.started) - 1)))


@pytest.mark.parametrize("reads", [1, 2])
def test_a_file_that_another_process_makes_meanwhile_is_no_strangers(tmp_path, reads):
    """Between any two of the reads that tell whose file it is."""
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        done: list[str] = []

        class Watched:
            def execute(self, sql):
                if len(done) == reads:
                    asyncio.run(make(path))
                done.append(sql)
                return db.execute(sql)

        assert version_of(Watched(), path) in (0, SCHEMA_VERSION)
        assert len(done) > reads


async def make(path):
    await (await opened(path)).aclose()
