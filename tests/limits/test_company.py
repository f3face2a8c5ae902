"""Several processes at one provider that tells no limit: how many calls at once is found together."""

import asyncio
import heapq
import itertools
import json
import random

import pytest

from scheduler import Scheduler
from scheduler.limits import Gates, Heard, ProviderRules, Report
from scheduler.limits.meter import Limits
from scheduler.request import Tokens
from tests.conftest import Bench, ask

ASKS = Tokens(100, 50)
LATENCY_MS = 2_000
HOUR_MS = 3_600_000


class Process:
    """The gates of one process, which takes over and writes their common row in each turn."""

    def __init__(self, me, fleet, wants=64):
        self.me, self.fleet, self.wants = me, fleet, wants
        self.gates = Gates({"p": ProviderRules(concurrency=wants)})
        self.heard, self.under_way = [], 0
        self.answered = self.refused = 0

    def turn(self, now_ms):
        """Hear what came back, and send as many as may go."""
        fleet = self.fleet
        if fleet.is_shared:
            self.gates.meet(self.me, frozenset(fleet.there - {self.me}))
        front, gate = self.gates.of("p", "m")
        if fleet.row is not None and fleet.row[0] != gate.version:
            gate.version = fleet.row[0]
            gate.load(json.loads(fleet.row[1]), now_ms)
        self.gates.hear(self.heard)
        self.heard = []
        while self.under_way < self.wants and all(
            each.opens_at_ms(ASKS, now_ms) <= now_ms for each in (front, gate)
        ):
            request_id = next(fleet.ids)
            for each in (front, gate):
                each.take(request_id, ASKS, now_ms)
            self.under_way += 1
            fleet.send(self, request_id, now_ms)
        for each in self.gates.take_dirty():
            if each is gate:
                gate.version += 1
                fleet.row = gate.version, json.dumps(gate.dump())

    def hear(self, heard, request_id, now_ms):
        self.under_way -= 1
        self.answered += heard is Heard.ANSWERED
        self.refused += heard is Heard.LIMITED
        self.heard.append(Report(request_id, "p", "m", heard, now_ms))


class Fleet:
    """Processes, and a provider that serves so many calls at once, in virtual time."""

    def __init__(self, count, serves, is_shared=True, wants=64):
        self.ids, self.row, self.serves, self.is_shared = (
            itertools.count(1),
            None,
            serves,
            is_shared,
        )
        self.processes = [Process(me, self, wants) for me in range(1, count + 1)]
        self.there = {each.me for each in self.processes}
        self.now_ms, self._events, self._served = 0, [], 0
        self._rng = random.Random(7)
        self.used_ms = 0

    def send(self, process, request_id, now_ms):
        is_served = self._served < self.serves
        self._served += is_served
        spread = LATENCY_MS * (0.7 + 0.6 * self._rng.random())
        at_ms = now_ms + (spread if is_served else 20)
        heapq.heappush(self._events, (int(at_ms), request_id, process, is_served))

    def run(self, until_ms, step_ms=200):
        """All take their turns, as often as something comes back, and now and then."""
        for now_ms in range(self.now_ms, until_ms, step_ms):
            for process in self.processes:
                process.turn(now_ms)
            for process, at_ms in self.listen(now_ms + step_ms):
                process.turn(at_ms)
        self.now_ms = until_ms

    def listen(self, until_ms):
        """What comes back by then: to whom, and when."""
        while self._events and self._events[0][0] < until_ms:
            at_ms, request_id, process, is_served = heapq.heappop(self._events)
            self._served -= is_served
            process.hear(Heard.ANSWERED if is_served else Heard.LIMITED, request_id, at_ms)
            yield process, at_ms

    @property
    def utilisation(self):
        answered = sum(each.answered for each in self.processes)
        return answered * LATENCY_MS / (self.serves * self.now_ms)

    @property
    def refused_share(self):
        answered, refused = (sum(getattr(each, name) for each in self.processes)
                             for name in ("answered", "refused"))  # fmt: skip
        return refused / (answered + refused)


def test_eight_are_refused_as_seldom_as_one_use_as_much_and_have_equal_shares():
    alone, together, apart = Fleet(1, 40), Fleet(8, 40), Fleet(8, 40, is_shared=False)
    for each in (alone, together, apart):
        each.run(HOUR_MS // 6)

    assert together.refused_share < 2 * alone.refused_share
    assert 5 * together.refused_share < apart.refused_share
    assert together.utilisation > 0.8 * alone.utilisation
    answered = [each.answered for each in together.processes]
    assert min(answered) > 0.75 * max(answered)


def test_of_more_than_there_is_room_for_each_has_its_turn():
    fleet = Fleet(8, 6)
    fleet.run(HOUR_MS // 6)

    answered = [each.answered for each in fleet.processes]
    assert min(answered) > 0.75 * max(answered)
    assert fleet.utilisation > 0.8


@pytest.mark.parametrize(("count", "wants"), [(16, 2), (64, 1), (3, 4), (1, 5)])
def test_many_with_few_places_begin_as_one_with_many(count, wants):
    fleet = Fleet(count, 1_000, wants=wants)
    for each in fleet.processes:
        each.turn(0)

    begun = sum(each.under_way for each in fleet.processes)
    assert min(16, count * wants) <= begun <= 32
    fleet.run(10 * LATENCY_MS)
    assert sum(each.under_way for each in fleet.processes) >= 0.9 * count * wants


def test_more_processes_than_places_do_not_stand_until_the_one_whose_turn_it_is_comes_by():
    """Each comes by once in three seconds, by which time all that was sent has been answered."""
    fleet, rounds, order = Fleet(24, 16, wants=2), 40, random.Random(3)
    now_ms = 0
    for _ in range(rounds):
        for process in order.sample(fleet.processes, 24):
            for _ in fleet.listen(now_ms):
                pass
            process.turn(now_ms)
            now_ms += 3_000 // 24

    answered = [each.answered for each in fleet.processes]
    assert sum(answered) > 0.5 * 16 * rounds
    assert min(answered) > 0.6 * max(answered)


def test_what_others_do_not_use_is_for_whoever_does():
    fleet, alone = Fleet(4, 40), Fleet(1, 40)
    for each in (fleet, alone):
        each.run(HOUR_MS // 12)
    before = fleet.processes[0].answered
    for each in fleet.processes[1:]:
        each.wants = 0
    fleet.run(HOUR_MS // 6)

    assert fleet.processes[0].answered - before > 0.8 * alone.processes[0].answered


@pytest.mark.parametrize("is_noticed", [True, False])
def test_who_stands_still_holds_up_nobody_for_long(is_noticed):
    fleet = Fleet(4, 40)
    fleet.run(HOUR_MS // 12)
    still = fleet.processes.pop(0)  # it said that it waits, perhaps, and has calls under way
    still.turn = lambda now_ms: None
    if is_noticed:
        fleet.there.remove(still.me)
    before = sum(each.answered for each in fleet.processes)
    fleet.run(HOUR_MS // 6)

    answered = sum(each.answered for each in fleet.processes) - before
    least = 0.7 if is_noticed else 0.5  # its share is kept for it as long as it may come back
    assert answered * LATENCY_MS > least * 40 * HOUR_MS / 12


def test_who_comes_later_learns_what_one_had_found_out_alone_and_spoils_it_not():
    fleet = Fleet(1, 40)
    fleet.run(HOUR_MS // 12)
    first, second = fleet.processes[0], Process(2, fleet)
    known = first.gates.of("p", "m")[1].window
    fleet.processes.append(second)
    fleet.there.add(2)
    second.turn(fleet.now_ms)
    first.turn(fleet.now_ms + 1)
    second.turn(fleet.now_ms + 2)

    gates = [each.gates.of("p", "m")[1] for each in (first, second)]
    assert gates[0].window == gates[1].window == known
    assert gates[0]._answers == gates[1]._answers > 1_000


def test_who_knows_its_limits_takes_nothing_over_from_one_that_may_make_fewer_calls():
    def gate(concurrency):
        rules = ProviderRules(Limits(requests_per_minute=600), concurrency=concurrency)
        return Gates({"p": rules}).of("p", "m")[1]

    small, large = gate(8), gate(64)
    small.meet(1, frozenset({2}))
    large.meet(2, frozenset({1}))
    large.load(json.loads(json.dumps(small.dump())), 0)

    assert large.window == 64


def test_those_who_wait_do_not_wake_each_other():
    fleet = Fleet(2, 40)
    fleet.run(60_000)
    versions = []
    for n in range(40):  # nothing comes back for ten seconds
        for each in fleet.processes:
            each.turn(fleet.now_ms + 250 * n)
        versions.append(fleet.row[0])

    assert fleet.processes[0].gates.of("p", "m")[1].waits
    assert len(set(versions[4:])) == 1


def test_a_row_of_an_older_version_and_nonsense_are_read():
    fleet = Fleet(2, 40)
    fleet.run(60_000)
    gate = Process(3, fleet).gates.of("p", "m")[1]
    gate.meet(3, frozenset({1, 2}))
    gate.load(json.loads(fleet.row[1])[:4], 0)
    assert gate.elsewhere == 0
    gate.load(json.loads(fleet.row[1]), 0)
    assert gate.elsewhere > 0
    with pytest.raises((ValueError, TypeError)):
        gate.load([*json.loads(fleet.row[1])[:5], {"1": ["x"]}], 0)
    gate.meet(3, frozenset())
    assert gate.elsewhere == 0


@pytest.mark.anyio
async def test_processes_on_one_file_tell_each_other_of_their_calls_and_hear_who_has_gone(tmp_path):
    go_on = asyncio.Event()

    def scheduler():
        provider = Bench()
        provider.before = lambda request: go_on.wait()
        return Scheduler(tmp_path / "s.db", providers=provider, poll_interval=0.01)

    def told(s):
        return s.store.gates.of("bench", "m")[1].elsewhere

    async def begin(s, n):  # whoever has nothing to do takes no turn, and hears nothing
        future = s.submit(ask(n))
        while not future.is_running:
            await asyncio.sleep(0.01)
        return future

    async with scheduler() as here:
        async with scheduler() as there:
            calls = [await begin(there, n) for n in range(3)]
            mine = [await begin(here, 0)]
            calls.append(await begin(there, 3))
            assert told(there) == 1
            mine.append(await begin(here, 1))
            assert told(here) == 4
            go_on.set()
            await asyncio.gather(*calls)
            go_on.clear()
        await asyncio.gather(*mine)
        mine = [await begin(here, 2)]
        assert told(here) == 0
        assert not here.store._transactions.company  # at once, not when a lease is over
        go_on.set()
        await asyncio.gather(*mine)
