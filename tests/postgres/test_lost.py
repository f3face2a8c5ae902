"""Connections that are lost: a transaction happens once, and whoever called hears of nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import psycopg
import pytest

from scheduler.budget import Budget
from scheduler.errors import StoreError, StoreLocked
from scheduler.request import RequestState
from scheduler.stores.base import Outcome
from scheduler.stores.postgres import session as sessions
from scheduler.stores.postgres.connection import PostgresConnection, lock_key
from scheduler.stores.postgres.link import Unreachable
from tests.postgres.database import Database
from tests.stores.conformance import FAILED, QUEUED, T0, Bench, end, new, post

TEAM = Budget("team", "$0.0000001/day")  # 100 nano-dollars


@pytest.fixture
async def bench(opened):
    made = Bench(await opened())
    await made.define(TEAM)
    return made


def cut(bench: Bench) -> None:
    """End its session, as a server does that is restarted."""
    pid = bench.store._session._link.info.backend_pid
    with psycopg.connect(bench.store.address.url.get_secret_value(), autocommit=True) as db:
        db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


MISCOUNTED = (
    "SELECT l.id, l.waiting, count(r.id) FROM lanes l LEFT JOIN requests r"
    " ON r.lane_id = l.id AND r.state = 'queued' GROUP BY l.id, l.waiting HAVING l.waiting <> count(r.id)"
)
"""Lanes in which another number is written than waits."""


class Failing:
    """Cuts a store off at the n-th statement from now on, or around its commit."""

    def __init__(self, bench: Bench, at: int | str, times: int = 1) -> None:
        self.bench, self.at, self.left, self.count = bench, at, times, 0
        failing = self

        class Cut(PostgresConnection):
            def _execute(self, sql, values=()):
                failing.count += 1
                if failing.count == failing.at and failing.left:
                    failing.left -= 1
                    failing.count = 0
                    cut(bench)
                return super()._execute(sql, values)

            def commit(self):
                if not failing.left or not isinstance(failing.at, str):
                    super().commit()
                    return
                failing.left -= 1
                if failing.at == "before it":
                    cut(bench)
                super().commit()
                self._link.close()  # it was committed, and the answer lost
                raise psycopg.OperationalError("server closed the connection unexpectedly")

        bench.store._session.transaction = Cut


async def test_a_connection_lost_between_two_turns_is_made_anew(bench):
    cut(bench)
    claimed = (await bench.submit(new([bench.ids["team"]], 30, key="a"))).claimed
    cut(bench)
    await bench.settle(post(claimed[0], 20))
    cut(bench)

    assert await bench.balance() == (20, 0)
    assert await bench.store.changed(T0) in (True, False)
    assert await bench.is_sound()


@pytest.mark.parametrize("at", ["before it", "after it"])
async def test_a_turn_whose_commit_nobody_knows_of_happens_once(bench, at):
    first = (await bench.submit(new([bench.ids["team"]], 30, key="a"))).claimed
    Failing(bench, at)

    result = await bench.turn(
        submit=[new([bench.ids["team"]], 40, key=key) for key in ("b", "c")],
        settle=[post(first[0], 10)],
    )

    assert result.settled == [True]
    assert [each.request.key for each in result.claimed] == ["b", "c"]
    assert await bench.balance() == (10, 80)
    counts = await bench.store.counts()
    assert (counts.running, counts.succeeded, counts.total) == (2, 1, 3)
    done = await bench.settle(*[post(each, 5) for each in result.claimed])
    assert done.settled == [True, True]
    assert await bench.balance() == (20, 0)
    assert await bench.is_sound()


async def test_a_claim_lost_again_and_again_holds_no_money_for_ever(bench):
    Failing(bench, "before it", times=3)

    result = await bench.submit(*[new([bench.ids["team"]], 40, key=key) for key in "abc"])

    assert len(result.claimed) == 2
    assert await bench.balance() == (0, 80)
    after = await bench.settle(*[post(each, 0) for each in result.claimed])
    assert [each.request.key for each in after.claimed] == ["c"]
    assert await bench.is_sound()


async def test_a_turn_that_is_cut_off_at_any_statement_is_as_if_it_had_not_been(bench, url):
    """Parked, delayed, cancelled, amended and settled ones, and each statement in turn."""
    team = [bench.ids["team"]]
    for at in range(1, 30):
        prefix = f"{at}-"
        running = await bench.submit(new(team, 60, key=f"{prefix}r"), new(team, 70, key=f"{prefix}p"),
                                     new(team, 80, key=f"{prefix}q"), slots=9)  # fmt: skip
        (claimed,) = running.claimed
        parked, queued = [each.id for each in running.submitted[1:]]
        Failing(bench, at)
        result = await bench.turn(
            9, settle=[end(claimed, Outcome.VOID, QUEUED, not_before_ms=bench.now_ms + 50)],
            cancel=[queued], amend=[(parked, new(team, 20, key=f"{prefix}p"))],
            submit=[new(team, 30, key=f"{prefix}s"), new(team, 90, key=f"{prefix}t")],
        )  # fmt: skip
        assert (result.settled, result.cancelled) == ([True], [True])
        assert sorted(each.request.key for each in result.claimed) == [f"{prefix}p", f"{prefix}s"]
        assert await bench.balance() == (0, 50)
        bench.store._session.transaction = PostgresConnection
        assert Database(url)(MISCOUNTED) == []
        (status,) = [each for each in bench.store.lanes() if each.shortfall]
        assert status.waiting == 1
        bench.now_ms += 50
        rest = await bench.settle(*[post(each, 0) for each in result.claimed])
        while rest.claimed:
            rest = await bench.settle(*[post(each, 0) for each in rest.claimed])
        counts = await bench.store.counts()
        assert (counts.running, counts.waiting) == (0, 0)
        assert counts.succeeded == 4 * at
        assert await bench.is_sound()


async def test_what_is_not_kept_whole_is_still_there_after_a_lost_turn(opened):
    bench = Bench(await opened(store_prompts="none"))
    await bench.define(TEAM)
    Failing(bench, "before it", times=2)

    result = await bench.submit(new([bench.ids["team"]], 30, key="a", body="secret words"))

    assert result.claimed[0].request.body["messages"][0]["content"] == "secret words"


@pytest.mark.parametrize("at", ["before it", "after it"])
async def test_what_changes_budgets_happens_once_too(bench, at):
    Failing(bench, at)
    await bench.store.define([Budget("other", "$1")], T0)
    Failing(bench, at)
    await bench.store.pause("other", True, T0)
    Failing(bench, at)
    await bench.store.remove("other", T0)  # twice would raise

    assert [each.budget.name for each in await bench.store.budgets(T0)] == ["team"]
    Failing(bench, at)
    (claimed,) = (await bench.submit(new([bench.ids["team"]], 30, key="a"))).claimed
    await bench.settle(end(claimed, Outcome.SUSPEND, FAILED))
    (unknown,) = await bench.store.suspended()
    Failing(bench, at)
    said = post(claimed, 7, state=RequestState.FAILED)
    assert await bench.store.resolve([said], T0) == [True]
    assert unknown.id == claimed.reservation_id
    assert await bench.balance() == (7, 0)


@pytest.mark.parametrize("at", ["before it", "after it"])
async def test_a_page_is_pruned_once_and_the_next_one_follows_it(bench, at):
    result = await bench.submit(*[new([bench.ids["team"]], 1, key=f"k{n}") for n in range(7)])
    await bench.settle(*[post(each, 1) for each in result.claimed])
    before_ms, found = bench.now_ms + 1, []
    bench.now_ms += 10
    Failing(bench, at)

    while page := await bench.store.prune(before_ms, bench.now_ms, undelivered=True, limit=2):
        found += [each.key for each in page]

    assert sorted(found) == [f"k{n}" for n in range(6)]  # the newest one stays
    assert await bench.balance() == (7, 0)
    assert await bench.is_sound()


async def test_two_processes_that_lose_their_connections_run_nothing_twice(opened):
    one, two = Bench(await opened()), Bench(await opened())
    await one.define(Budget("team", "$1"))
    two.ids = one.ids
    sent: list[int] = []
    for number in range(12):
        bench = (one, two)[number % 2]
        Failing(bench, ("before it", "after it")[number // 2 % 2])
        batch = [new([one.ids["team"]], 10, key=f"{number}-{each}") for each in range(3)]
        for each in batch:
            each.lane = each.lane._replace(is_shared=True)
        result = await bench.submit(*batch, slots=2)
        sent += [each.request_id for each in result.claimed]
        await bench.settle(*[post(each, 1) for each in result.claimed], slots=0)
    rest = await one.turn(100)
    sent += [each.request_id for each in rest.claimed]
    await one.settle(*[post(each, 1) for each in rest.claimed])

    assert len(sent) == len(set(sent)) == 36
    assert await one.balance() == (36, 0)
    assert await two.is_sound()


# Nobody there, or somebody in the way


async def test_a_database_that_is_not_there_is_a_clear_error(opened, url):
    store = type(await opened())("postgresql://ann:the-password@127.0.0.1:1/calls")
    with pytest.raises(Unreachable, match=r"127.0.0.1:1/calls cannot be reached") as failure:
        await store.open(T0)

    assert "the-password" not in f"{failure.value!r} {failure.value.__cause__!r}"


async def test_who_waits_too_long_for_the_database_is_told(opened, monkeypatch):
    bench = Bench(await opened())
    await bench.define(TEAM)
    patient = bench.store._session
    object.__setattr__(patient.address, "patience_s", 0.3)

    def no(address):
        raise Unreachable(f"{address.shown} cannot be reached: nobody there")

    patient._connects = no
    cut(bench)
    with pytest.raises(StoreError, match="nobody there"):
        await bench.submit(new([bench.ids["team"]], 30, key="a"))


async def test_who_holds_the_lock_for_too_long_is_named_as_the_reason(bench, monkeypatch):
    monkeypatch.setattr("scheduler.stores.postgres.connection._LOCKED", HASTY)
    object.__setattr__(bench.store._session.address, "patience_s", 0.5)
    address = bench.store.address
    with psycopg.connect(address.url.get_secret_value()) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key(address.schema),))
        with pytest.raises(StoreLocked, match="held by another process"):
            await bench.submit(new([bench.ids["team"]], 30, key="a"))


HASTY = (
    "SELECT set_config('search_path', $1, true), set_config('statement_timeout', $2, true),"
    " set_config('lock_timeout', '100', true), pg_advisory_xact_lock($3)"
)


async def test_who_stands_still_in_a_transaction_is_cut_off_and_goes_on_later(opened, monkeypatch):
    from scheduler.stores.postgres import connection

    monkeypatch.setattr(
        connection, "_LOCKED", connection._LOCKED.replace(f"'{connection.IDLE_MS}'", "'200'")
    )
    slow, other = Bench(await opened()), Bench(await opened())
    await slow.define(TEAM)
    other.ids = slow.ids
    stands, goes_on, is_first = threading.Event(), threading.Event(), [True]

    class Still(PostgresConnection):
        def mark(self, process, number):
            if is_first.pop() if is_first else False:
                stands.set()
                goes_on.wait(10)
            super().mark(process, number)

    slow.store._session.transaction = Still
    waiting = asyncio.ensure_future(slow.submit(new([slow.ids["team"]], 60, key="slow")))
    await asyncio.to_thread(stands.wait, 10)
    (claimed,) = (await other.submit(new([slow.ids["team"]], 60, key="quick"))).claimed
    goes_on.set()
    result = await waiting

    assert result.claimed == []  # its money has gone to the other one meanwhile
    assert await other.balance() == (0, 60)
    after = await other.settle(post(claimed, 10))
    assert after.settled == [True]
    assert await slow.is_sound()


async def test_prepared_statements_that_are_gone_are_done_without(bench):
    await bench.submit(new([bench.ids["team"]], 1, key="a"))
    link = bench.store._session._link
    assert link.prepare_threshold == 0
    link.pgconn.exec_(b"DEALLOCATE ALL")  # as a proxy's other connection knows none of them

    result = await bench.submit(new([bench.ids["team"]], 1, key="b"))

    assert len(result.claimed) == 1
    assert bench.store._session._link.prepare_threshold is None
    assert await bench.is_sound()


async def test_nothing_is_kept_in_a_session(bench, monkeypatch):
    """As behind a proxy that gives each transaction another connection, wiped clean."""
    session = bench.store._session
    session._may_prepare = False
    session.close()
    links = [session._connects(session.address) for _ in range(3)]
    for link in links:
        link.prepare_threshold = None
    turn = iter(range(10**6))

    def another():
        link = session._link = links[next(turn) % 3]
        link.execute("DISCARD ALL")
        return link

    monkeypatch.setattr(session, "_connected", another)
    team = [bench.ids["team"]]
    result = await bench.submit(new(team, 30, key="a"), new(team, 30, key="b"))
    await bench.settle(*[post(each, 10) for each in result.claimed])
    await bench.define(Budget("team", "$0.000001"))
    assert len((await bench.submit(new(team, 500, key="c"))).claimed) == 1
    assert await bench.is_sound()
    assert [row.posted_nusd for row in await bench.store.spend("job")] == [20]
    await bench.store.aclose()
    for link in links:
        with contextlib.suppress(psycopg.Error):
            link.close()


async def test_a_forked_process_does_not_use_its_parents_connection(bench, monkeypatch):
    here = os.getpid()
    monkeypatch.setattr("scheduler.stores.postgres.store.os.getpid", lambda: here + 1)
    with pytest.raises(StoreError, match="before this process was forked"):
        await bench.turn()
    monkeypatch.undo()
    await bench.turn()


def test_pauses_grow_and_end(monkeypatch):
    patience = sessions._Patience(0.0, threading.Event())
    with pytest.raises(StoreError, match="enough"):
        patience.wait(StoreError("enough"))
