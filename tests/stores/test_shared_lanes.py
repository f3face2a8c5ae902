"""Lanes that belong to no process: whoever serves the provider sends what waits in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from scheduler.budget import Budget
from scheduler.stores.base import Outcome, Settlement, Turn
from scheduler.stores.process import Process
from scheduler.stores.sqlite import SqliteStore
from tests.stores.conformance import (
    CANCELLED,
    EXPIRED,
    FAILED,
    PARKED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    T0,
    Bench,
    end,
    new,
    post,
)

pytestmark = pytest.mark.anyio
LEASE_MS = SqliteStore.lease_ms


def shared(budgets=(), need=10, *, key, **options):
    """A request that anybody may send."""
    made = new(budgets, need, key=key, **options)
    made.lane = made.lane._replace(is_shared=True)
    return made


class Two:
    """Two processes on one file; the second one's end nobody can see but by its silence."""

    def __init__(self, path):
        self.path = path
        self.here, self.there = Bench(SqliteStore(path)), self.another("elsewhere", 1)

    def another(self, host, pid):
        store = SqliteStore(self.path)
        store._transactions.process = Process(host, pid, "1")
        return Bench(store)

    def pass_ms(self, ms):
        self.here.now_ms += ms
        self.there.now_ms += ms


@pytest.fixture
async def two(tmp_path):
    made = Two(tmp_path / "s.db")
    await made.here.store.open(T0)
    await made.here.define(Budget("team", "$0.0000001/day"))  # 100 nano-dollars
    await made.there.store.open(T0)
    made.there.ids = made.here.ids
    yield made
    assert await made.here.is_sound()
    await made.there.store.aclose()
    await made.here.store.aclose()


def team(two):
    return [two.here.ids["team"]]


async def waiting(two):
    """How many wait, as the file counts them, and as there are."""
    with closing(sqlite3.connect(two.path)) as db:
        counted = dict(db.execute("SELECT id, waiting FROM lanes"))
        rows = db.execute(
            "SELECT lane_id, count(*) FROM requests WHERE state = 'queued' GROUP BY 1"
        )
        real = dict(rows)
    assert {lane: n for lane, n in counted.items() if n} == real
    return sum(real.values())


async def test_what_one_process_submits_another_sends(two):
    submitted = (await two.here.submit(shared(team(two), key="k", body="hello"), slots=0)).submitted
    (claimed,) = (await two.there.turn()).claimed
    assert claimed.request_id == submitted[0].id
    assert claimed.request.key == "k"
    assert claimed.request.body["messages"][0]["content"] == "hello"

    assert (await two.here.turn()).claimed == []
    await two.there.settle(post(claimed, 7))

    _, ended = await two.here.store.ended_since(0)
    assert ended == [claimed.request_id]
    (finished,) = await two.here.store.outcomes(ended)
    assert (finished.state, finished.response.body) == (SUCCEEDED, {"n": 1})
    assert await two.here.balance() == (7, 0)


async def test_each_is_sent_once_however_they_take_turns(two):
    await two.here.define(Budget("team", "$1"))
    await two.here.submit(*[shared(team(two), key=f"a{n}") for n in range(20)], slots=0)
    await two.there.submit(*[shared(team(two), key=f"b{n}") for n in range(20)], slots=0)
    sent = []
    for turn in range(20):
        bench = (two.here, two.there)[turn % 2]
        claimed = (await bench.turn(3)).claimed
        sent += [each.request.key for each in claimed]
        assert await waiting(two) == 40 - len(sent)
        await bench.settle(*[post(each, 1) for each in claimed], slots=None)

    assert sorted(sent) == sorted([f"a{n}" for n in range(20)] + [f"b{n}" for n in range(20)])


async def test_requests_of_both_wait_in_one_lane_oldest_first(two):
    await two.here.submit(shared(team(two), key="1"), slots=0)
    await two.there.submit(shared(team(two), key="2"), slots=0)
    await two.here.submit(shared(team(two), key="3"), slots=0)

    claimed = (await two.there.turn(2)).claimed + (await two.here.turn(2)).claimed

    assert [each.request.key for each in claimed] == ["1", "2", "3"]
    with closing(sqlite3.connect(two.path)) as db:
        assert db.execute("SELECT count(*) FROM lanes").fetchone() == (1,)


async def test_only_what_is_whole_in_the_store_and_can_be_asked_for_is_anybodys(two, tmp_path):
    keyless = new(team(two), key=None)
    keyless.lane = keyless.lane._replace(is_shared=True)
    await two.here.submit(keyless, slots=0)
    assert (await two.there.turn()).claimed == []
    assert len((await two.here.turn()).claimed) == 1

    other = SqliteStore(two.path, store_prompts="hash")
    await other.open(T0)
    hidden = Bench(other)
    await hidden.submit(shared(team(two), key="hidden"), slots=0)
    assert (await two.there.turn()).claimed == []
    assert [each.request.key for each in (await hidden.turn()).claimed] == ["hidden"]
    await other.aclose()


async def test_a_key_that_waits_in_a_shared_lane_is_taken_care_of(two):
    await two.here.submit(shared(team(two), key="k"), slots=0)
    for bench in (two.here, two.there):
        (again,) = (await bench.submit(shared(team(two), key="k"), slots=0)).submitted
        assert (again.is_known, again.is_elsewhere, again.held) == (True, True, None)
    (conflict,) = (await two.there.submit(shared(team(two), key="k", body="x"), slots=0)).submitted
    assert conflict.is_conflict

    (claimed,) = (await two.there.turn()).claimed
    (here,) = (await two.here.submit(shared(team(two), key="k"), slots=0)).submitted
    assert (here.state, here.is_elsewhere) == (RUNNING, True)
    (there,) = (await two.there.submit(shared(team(two), key="k"), slots=0)).submitted
    assert not there.is_elsewhere
    assert there.held is not None
    assert there.held.request.key == "k"

    await two.there.settle(post(claimed, 3))
    (done,) = (await two.here.submit(shared(team(two), key="k"), slots=0)).submitted
    assert done.finished.state is SUCCEEDED


async def test_any_process_may_cancel_what_waits_and_none_what_another_sends(two):
    ids = [
        each.id for each in
        (await two.here.submit(*[shared(team(two), key=f"{n}") for n in range(3)], slots=0)).submitted
    ]  # fmt: skip
    (claimed,) = (await two.here.turn(1)).claimed
    assert (await two.there.turn(0, cancel=ids)).cancelled == [False, True, True]

    assert await waiting(two) == 0
    seq, ended = await two.here.store.ended_since(0)
    assert sorted(ended) == ids[1:]
    assert {each.state for each in await two.here.store.outcomes(ended)} == {CANCELLED}
    assert (await two.here.turn()).claimed == []
    await two.here.settle(post(claimed, 1))
    assert await two.there.store.ended_since(seq) == (seq + 1, [ids[0]])
    assert await two.there.store.ended_since(seq + 1) == (seq + 1, [])


async def test_what_is_to_be_sent_later_is_sent_by_whoever_is_there_then(two):
    await two.here.submit(shared(team(two), key="k"), slots=0)
    (claimed,) = (await two.here.turn()).claimed
    later = end(claimed, Outcome.VOID, QUEUED, not_before_ms=T0 + 500)
    await two.here.settle(later)
    assert (await two.there.turn()).look_again_at_ms == T0 + 500

    two.pass_ms(500)

    assert [each.attempt for each in (await two.there.turn()).claimed] == [2]
    assert (await two.here.turn()).claimed == []
    assert await waiting(two) == 0


async def test_whose_time_is_over_is_ended_by_whoever_turns_next(two):
    (kept,) = (await two.here.submit(shared(team(two), key="k", expires_at_ms=T0 + 10), slots=0)
               ).submitted  # fmt: skip
    two.pass_ms(10)

    (expired,) = (await two.there.turn()).expired

    assert (expired.id, expired.key) == (kept.id, "k")
    assert await waiting(two) == 0
    assert (await two.here.store.ended_since(0))[1] == [kept.id]
    assert [each.state for each in await two.here.store.outcomes([kept.id])] == [EXPIRED]
    assert (await two.here.turn()).expired == []


async def test_what_a_dead_process_was_sending_goes_back_and_is_sent_again_by_itself(two):
    dying = two.another(two.here.store._transactions.process.host, 2**22 + 1)
    await dying.store.open(T0)
    await dying.submit(*[shared(team(two), key=f"{n}") for n in range(3)], slots=0)
    (lost,) = (await dying.turn(1)).claimed
    await dying.store._connection.close()  # without a word
    dying.store._connection = None

    two.pass_ms(LEASE_MS)
    result = await two.here.turn(10)

    assert [each.request.key for each in result.claimed] == ["0", "1", "2"]
    assert [each.attempt for each in result.claimed] == [2, 1, 1]
    (unknown,) = await two.here.store.suspended()
    assert (unknown.id, unknown.key) == (lost.reservation_id, "0")
    assert await two.here.balance() == (0, 40)


async def test_a_process_taken_for_dead_answers_after_all_and_is_believed_once(two):
    await two.there.submit(shared(team(two), key="k"), slots=0)
    (slow,) = (await two.there.turn()).claimed
    two.here.now_ms += LEASE_MS + 1
    await two.here.turn(0)
    assert await waiting(two) == 1

    await two.there.settle(post(slow, 4))

    assert await waiting(two) == 0
    assert (await two.here.turn()).claimed == []
    assert await two.here.balance() == (4, 0)
    (finished,) = await two.here.store.outcomes([slow.request_id])
    assert finished.state is SUCCEEDED


async def test_who_answered_late_is_not_claimed_in_the_turn_that_tells_it(two):
    await two.here.define(Budget("team", "$1"))
    await two.there.submit(shared(team(two), key="k"), slots=0)
    (slow,) = (await two.there.turn()).claimed
    two.here.now_ms += LEASE_MS + 1
    await two.here.turn(0)
    await two.here.submit(*[shared(team(two), key=f"{n}") for n in range(3)], slots=0)

    result = await two.there.turn(5, settle=[post(slow, 4)])

    assert [each.request.key for each in result.claimed] == ["0", "1", "2"]


async def test_who_leaves_leaves_what_is_anybodys_as_it_is(two):
    await two.there.submit(*[shared(team(two), 60, key=f"{n}") for n in range(2)])
    await two.there.store.aclose()

    assert await waiting(two) == 2  # what it was sending, too: nobody knows how that ended
    (unknown,) = await two.here.store.suspended()
    assert unknown.key == "0"
    assert (await two.here.turn()).claimed == []
    await two.here.store.define([Budget("team", "$1")], T0)
    assert sorted(each.request.key for each in (await two.here.turn()).claimed) == ["0", "1"]
    await two.there.store.open(T0)


@pytest.mark.parametrize("how", ["raise", "refund", "smaller", "pause", "left"])
async def test_no_wake_up_is_lost_between_processes(two, how):
    """Each of them has looked at the lane and shut it; what changes is told by the other."""
    await two.there.submit(shared(team(two), 70, key="runs"))
    await two.there.submit(shared(team(two), 60, key="waits"))
    (running,) = await sent(two, "runs")
    assert (await two.here.turn()).claimed == []
    if how == "raise":
        await two.there.store.define([Budget("team", "$1")], T0)
    elif how == "refund":
        await two.there.settle(running, slots=0)
    elif how == "smaller":
        await two.there.submit(shared(team(two), 5, key="small"), slots=0)
    elif how == "pause":
        await two.there.store.pause("team", True, T0)
        await two.here.turn()
        await two.there.settle(running, slots=0)
        assert (await two.here.turn()).claimed == []
        await two.there.store.pause("team", False, T0)
    elif how == "left":
        await two.here.submit(shared(team(two), 30, key="small", priority=20), slots=0)
        (parked,) = [
            row.id for row in await two.here.store.queue([QUEUED, PARKED], T0) if row.key == "waits"
        ]
        await two.there.turn(0, cancel=[parked])

    claimed = (await two.here.turn()).claimed

    wanted = {"smaller": "small", "left": "small"}.get(how, "waits")
    assert [each.request.key for each in claimed] == [wanted]


async def sent(two, key):
    """A settlement of what is under way for a key."""
    with closing(sqlite3.connect(two.path)) as db:
        rows = db.execute(
            "SELECT reservation_id, id FROM requests WHERE key = ? AND state = 'running'", (key,)
        ).fetchall()
    return [Settlement(*row, Outcome.VOID, FAILED) for row in rows]


async def test_a_lent_place_makes_a_request_its_callers_own_until_it_is_lent_no_more(two):
    (kept,) = (await two.here.submit(shared(team(two), key="k"), slots=0)).submitted
    await two.here.turn(None, lend=[(kept.id, True)])

    assert (await two.there.turn()).claimed == []
    (claimed,) = (await two.here.turn(0)).claimed

    assert claimed.request_id == kept.id
    assert await waiting(two) == 0


async def test_it_may_be_amended_by_any_process_while_it_waits(two):
    (kept,) = (await two.here.submit(shared(team(two), key="k"), slots=0)).submitted
    await two.there.submit(shared(team(two), key="other", priority=5), slots=0)

    await two.there.turn(0, amend=[(kept.id, shared(team(two), key="k", priority=0))])

    assert [each.request.key for each in (await two.here.turn(1)).claimed] == ["k"]
    assert await waiting(two) == 1


async def test_a_lane_that_was_empty_is_heard_of_again(two):
    for number in range(3):
        await two.here.submit(shared(team(two), key=f"{number}"), slots=0)
        (claimed,) = (await two.there.turn()).claimed
        await two.there.settle(post(claimed, 1))
        await two.here.turn()
    assert await two.here.balance() == (3, 0)


async def test_who_was_away_for_long_looks_at_everything_once(two, monkeypatch):
    monkeypatch.setattr("scheduler.stores.sql.changes.KEPT_CHANGES", 2)
    monkeypatch.setattr("scheduler.stores.sql.changes.EVERY", 4)
    monkeypatch.setattr("scheduler.stores.sql.changes.KEPT_ENDS", 3)
    await two.there.turn(0)
    for number in range(8):
        await two.here.submit(shared(team(two), 1, key=f"{number}"))
        await two.here.settle(*await sent(two, f"{number}"), slots=0)
    await two.here.submit(shared(team(two), 1, key="new"), slots=0)

    seq, ended = await two.there.store.ended_since(1)
    assert (ended, seq) == (None, 8)
    assert [each.request.key for each in (await two.there.turn()).claimed] == ["new"]
    with closing(sqlite3.connect(two.path)) as db:
        (kept,) = db.execute("SELECT count(*) FROM changes").fetchone()
        assert kept <= 2 + 4
    assert (await two.there.store.ended_since(8)) == (8, [])


async def test_private_ones_are_told_to_who_waits_for_them_elsewhere(two):
    await two.there.turn(0)
    await two.here.turn(0)
    (claimed,) = (await two.here.submit(new(team(two), key="k"))).claimed
    await two.here.settle(post(claimed, 1))

    assert (await two.there.store.ended_since(0))[1] == [claimed.request_id]


async def test_money_stays_within_the_limit_whoever_sends(two):
    await two.here.submit(*[shared(team(two), 30, key=f"{n}") for n in range(10)], slots=0)
    claimed = []
    for bench in (two.here, two.there) * 2:
        claimed += (await bench.turn(1)).claimed

    assert len(claimed) == 3
    assert await two.here.balance() == (0, 90)


async def test_a_process_that_does_not_serve_the_provider_leaves_them_alone(two):
    await two.here.submit(shared(team(two), key="k"), slots=0)

    result = await two.there.store.turn(Turn(T0, slots={"q": 5}))

    assert result.claimed == []
    assert len((await two.here.turn()).claimed) == 1
