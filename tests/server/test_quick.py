"""What makes a call quick changes nothing that its client sees, nor what is counted."""

import asyncio
import gc
import json
import weakref

import pytest

from scheduler import Scheduler
from scheduler.core import pump
from scheduler.server import line as lines
from scheduler.server.exchange import Exchange
from scheduler.server.line import Line
from scheduler.server.listen import bind, listening, url_at
from scheduler.server.nurse import LOOK_S, Nurse
from scheduler.server.refusals import JSON, Whole
from scheduler.stores.memory import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.conftest import until
from tests.server.test_bytes import ANSWER, ASKED, Recorder, ask, gateway_to

WHOLES = [
    Whole(200, [JSON, (b"x-request-id", b"r")], b'{"a":1}'),
    Whole(429, [JSON, (b"retry-after", b"1")], b"x" * 200_000),
    Whole(503, [JSON, (b"connection", b"close")], b""),
    Whole(204, [], b""),
    Whole(200, [(b"x-odd", b"a\r\nset-cookie: b=1")], b"never"),
]
ASKS = [
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
]


async def heard(whole, asked):
    """All that a client hears that asks so."""

    async def app(scope, receive, send):
        await Line(scope, receive, send).answer(whole)

    at = bind("127.0.0.1", 0)
    async with listening(app, at):
        port = int(url_at(at).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asked)
        await asyncio.sleep(0.05)
        writer.write_eof()
        came = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await writer.wait_closed()
        return came


@pytest.mark.parametrize("asked", ASKS, ids=["get", "head", "old", "close", "two"])
@pytest.mark.parametrize("whole", WHOLES, ids=["small", "large", "closes", "empty", "forged"])
async def test_an_answer_in_one_piece_is_the_same_bytes(monkeypatch, whole, asked):
    taken = []

    def at_once(send, whole):
        taken.append(original(send, whole))
        return taken[-1]

    original = lines.answer_at_once
    monkeypatch.setattr(lines, "answer_at_once", at_once)
    quick = await heard(whole, asked)
    monkeypatch.setattr(lines, "answer_at_once", lambda send, whole: False)
    slow = await heard(whole, asked)

    assert quick == slow
    assert b"set-cookie" not in quick
    is_usual = whole in WHOLES[:2] and asked in (ASKS[0], ASKS[4])
    assert all(taken) is is_usual


class Slow(MemoryStore):
    """A disk that takes its time to settle anything."""

    def __init__(self):
        super().__init__()
        self.may_settle = asyncio.Event()

    async def turn(self, turn):
        if turn.settle:
            await self.may_settle.wait()
        return await super().turn(turn)


def money(store):
    """What of the only budget is spent, and what is promised."""
    (cap,) = store.balances([1])[0].caps
    return cap.posted, cap.reserved


async def test_an_answer_is_told_before_its_cost_is_on_the_disk():
    store = Slow()
    async with gateway_to(Recorder(), store=store) as (opened, _):
        try:
            start, said = await asyncio.wait_for(ask(opened, ASKED), 10)
            before = money(store)
        finally:
            store.may_settle.set()
        while money(store)[1]:
            await asyncio.sleep(0.01)
        after = money(store)

    assert said == ANSWER
    assert "x-scheduler-cost-usd: 0.000002" in start
    assert "x-scheduler-budget-remaining-usd: 9.999998" in start
    assert before == (0, 168_000)  # it counts at its ceiling
    assert after == (2_000, 0)
    assert opened.gateway.succeeded == 1


async def test_a_stream_is_ended_then_too():
    store, recorder = Slow(), Recorder()
    recorder.says = (b"text/event-stream", (
        b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
        b"data: [DONE]\n\n",
    ))  # fmt: skip
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 5, "stream": True}).encode()
    async with gateway_to(recorder, store=store) as (opened, _):
        try:
            _, said = await asyncio.wait_for(ask(opened, body), 10)
        finally:
            store.may_settle.set()
    assert said.endswith(b"data: [DONE]\n\n")


async def test_the_next_call_of_a_client_finds_what_the_last_one_left():
    """The budget has room for one ceiling; each answer leaves it for the next at once."""
    async with gateway_to(Recorder(), budgets="$0.00018") as (opened, _):
        for _ in range(5):
            start, _ = await ask(opened, ASKED, "x-scheduler-wait: 5s")
            assert start.startswith("HTTP/1.1 200"), start


async def test_a_call_leaves_no_circles_to_the_garbage_collector():
    async with gateway_to(Recorder()) as (opened, _):
        await ask(opened, ASKED)
        gc.collect()
        gc.disable()
        try:
            kept = weakref.WeakSet[Exchange]()
            enter = opened.gateway.enter
            opened.gateway.enter = lambda each: (kept.add(each), enter(each))
            for _ in range(3):
                await ask(opened, ASKED)
            await until(lambda: not list(kept))
        finally:
            gc.enable()


class Noted(SqliteStore):
    """A file, and how many each transaction took in and settled."""

    def __init__(self, path):
        super().__init__(path)
        self.turns = []

    async def turn(self, turn):
        if turn.submit or turn.settle:
            self.turns.append((len(turn.submit), len(turn.settle)))
        return await super().turn(turn)


async def test_what_nobody_waits_for_is_settled_with_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.setattr(pump, "COMPANY_S", 60.0)
    store = Noted(tmp_path / "s.db")
    async with gateway_to(Recorder(), store=store) as (opened, _):
        for _ in range(3):
            await ask(opened, ASKED)
            await asyncio.sleep(0.05)
        assert store.turns == [(1, 0), (1, 1), (1, 1)]

    assert store.turns[-1] == (0, 1)  # before it is closed
    async with Scheduler(tmp_path / "s.db") as s:
        assert money(s.store) == (3 * 2_000, 0)


async def test_nor_is_it_waited_for_long(tmp_path):
    store = Noted(tmp_path / "s.db")
    async with gateway_to(Recorder(), store=store, poll="60s") as (opened, _):
        await ask(opened, ASKED)
        async with asyncio.timeout(20):
            while money(store) != (2_000, 0):
                await asyncio.sleep(0.01)
        assert store.turns == [(1, 0), (0, 1)]


async def test_whose_money_others_wait_for_is_settled_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pump, "COMPANY_S", 60.0)
    store = Noted(tmp_path / "s.db")
    async with gateway_to(Recorder(), store=store, budgets="$0.00018") as (opened, _):
        came = await asyncio.wait_for(
            asyncio.gather(*(ask(opened, ASKED, "x-scheduler-wait: 30s") for _ in range(3))), 20
        )
    assert all(start.startswith("HTTP/1.1 200") for start, _ in came)


class Patient:
    def __init__(self, look_at_s, needs):
        self.look_at_s, self.needs, self.looks = look_at_s, needs, 0

    def glance(self):
        self.looks += 1
        return self.looks >= self.needs


async def test_one_timer_looks_after_all_and_none_while_there_is_nobody():
    loop = asyncio.get_running_loop()
    nurse, armed = Nurse(loop), []
    later, loop.call_later = loop.call_later, lambda *args: (armed.append(args[0]), later(*args))[1]
    try:
        now_s = loop.time()
        soon, twice, gone, late = (
            Patient(now_s, 1), Patient(now_s, 2), Patient(now_s, 1), Patient(now_s + 60, 1)
        )  # fmt: skip
        for each in (soon, twice, gone, late):
            nurse.take(each)
        assert armed == [LOOK_S]
        nurse.leave(gone)
        while twice.looks < 2:
            await asyncio.sleep(0.01)
        assert [each.looks for each in (soon, twice, gone, late)] == [1, 2, 0, 0]

        nurse.leave(late)
        await asyncio.sleep(4 * LOOK_S)
        before = armed.count(LOOK_S)
        await asyncio.sleep(4 * LOOK_S)
        assert armed.count(LOOK_S) == before
    finally:
        loop.call_later = later
