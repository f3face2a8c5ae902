"""A provider that is short of credit: what it can pay for goes, whatever else waits."""

import math
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.admission.plan import LaneKey, LaneView, plan
from scheduler.ledger.account import Waiter
from scheduler.limits import (
    FIRST_PROBE_MS,
    LONGEST_PROBE_MS,
    Closed,
    Gates,
    Heard,
    ProviderRules,
    Report,
)
from scheduler.providers.credit import affords
from scheduler.request import Request, RequestState
from scheduler.shortfall import ParkReason
from scheduler.stores.base import NewRequest, Outcome, Settlement, Turn
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from tests.test_admission import Waiting, account, lane

pytestmark = pytest.mark.anyio
T0 = 1_800_000_000_000
LONGEST_MS = LONGEST_PROBE_MS["provider_credit"]


class Purse:
    """A provider that pays for requests of up to a size, and may say so.

    Attributes:
        spent_by_use: What is answered is taken from it.
        barred: Models that it refuses whatever they need, such as for the credit of their own key.
        poison: Requests that it refuses for themselves, never saying an amount.
    """

    def __init__(self, pays, tells=False, spent_by_use=False, barred=(), poison=()):
        self.pays, self.tells, self.spent_by_use = pays, tells, spent_by_use
        self.barred, self.poison = set(barred), set(poison)
        self.asked, self.refused = [], Counter()

    def ask(self, model, number, size):
        """None: it is answered; else how much it pays for, -1: it does not say."""
        self.asked.append(number)
        if model in self.barred or number in self.poison:
            self.refused[number] += 1
            return -1
        if size <= self.pays:
            self.pays -= size * self.spent_by_use
            return None
        self.refused[number] += 1
        return self.pays if self.tells else -1


class World:
    """A store (or several on one file), a provider with a purse, and a clock."""

    def __init__(self, stores, purse, slots=4):
        self.stores, self.purse, self.slots, self.now_ms = stores, purse, slots, T0
        self.sizes, self.answered, self.ids = {}, set(), {}
        self.due_ms = [T0] * len(stores)
        self.running = [[] for _ in stores]
        self.parked, self.turns = {}, 0
        for store in stores:
            store.use(Gates({"p": ProviderRules()}))

    async def submit(self, sizes, at=0, models=("m",), priorities=(10,), may_wait=True):
        new = []
        for place, size in enumerate(sizes):
            number = len(self.sizes) + 1
            model = models[place % len(models)]
            self.sizes[number] = (model, size)
            key = LaneKey("p", (), priorities[place % len(priorities)], may_wait, model)
            new.append(NewRequest(Request({"model": model, "n": number}), key, size, 7))
        for each in new:
            self.stores[at].prepare(each)
        return await self.turn(at, submit=new)

    async def turn(self, at, submit=()):
        settle, self.running[at] = [self._end(*each) for each in self.running[at]], []
        self.turns += 1
        result = await self.stores[at].turn(
            Turn(self.now_ms, settle=settle, submit=submit, slots={"p": self.slots})
        )
        for each in result.lanes:
            self.parked[at, each.key] = each.shortfall
        for claim in result.claimed:
            number = claim.request.body["n"]
            self.ids[claim.request_id] = number
            model, size = self.sizes[number]
            self.running[at].append((claim, model, size, self.purse.ask(model, number, size)))
        self.due_ms[at] = result.look_again_at_ms
        return result

    def _end(self, claim, model, size, pays):
        is_answer = pays is None
        kind = Heard.ANSWERED if is_answer else Heard.NO_CREDIT
        report = Report(claim.request_id, "p", model, kind, self.now_ms, size=size,
                        words="no credit", affords=None if pays in (None, -1) else pays)  # fmt: skip
        if is_answer:
            self.answered.add(claim.request.body["n"])
        return Settlement(
            claim.reservation_id, claim.request_id, Outcome.POST if is_answer else Outcome.VOID,
            RequestState.SUCCEEDED if is_answer else RequestState.QUEUED,
            size if is_answer else 0, is_attempt=is_answer, report=report,
        )  # fmt: skip

    async def run(self, until=lambda: False, span_ms=math.inf, most_turns=3000):
        """Let time pass until nothing is left to happen, or for a span."""
        end_ms, turns = self.now_ms + span_ms, 0
        while not until() and turns < most_turns:
            turns += 1
            busy = [at for at, running in enumerate(self.running) if running]
            due = [ms for ms in self.due_ms if ms is not None]
            if not busy:
                next_ms = min(due, default=math.inf)
                if next_ms >= end_ms:
                    self.now_ms = self.now_ms if end_ms == math.inf else int(end_ms)
                    return
                self.now_ms = max(self.now_ms, next_ms)
            for at, store in enumerate(self.stores):
                if at in busy or store.is_shared or (self.due_ms[at] or math.inf) <= self.now_ms:
                    if store.is_shared:
                        await store.changed(self.now_ms)
                    await self.turn(at)
            self.now_ms += 1

    def affordable(self):
        return {n for n, (model, size) in self.sizes.items()
                if size <= self.purse.pays and model not in self.purse.barred
                and n not in self.purse.poison}  # fmt: skip

    @property
    def is_done(self):
        return self.affordable() <= self.answered


class Opened:
    """Stores of one kind, for a while."""

    def __init__(self, kind, path, count=1):
        self.stores = [MemoryStore() if kind == "memory" else SqliteStore(path / "s.db")
                       for _ in range(count)]  # fmt: skip

    async def __aenter__(self):
        for store in self.stores:
            await store.open(T0)
        return self.stores

    async def __aexit__(self, *_):
        for store in self.stores:
            await store.aclose()


KINDS = pytest.mark.parametrize("kind", ["memory", "sqlite"])


@KINDS
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("large", [1, 300])
async def test_what_can_be_paid_for_goes_however_much_waits_before_it(kind, tells, large, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(100, tells))
        await world.submit([1000 - n for n in range(large)] + [20 + n % 60 for n in range(186)])

        await world.run(lambda: world.is_done, 2 * FIRST_PROBE_MS["provider_credit"])

        assert len(world.answered) == 186
        assert world.turns < 120  # four at once, not one after the other
        assert sum(world.purse.refused.values()) <= 4 + (not tells)
        lack = next(iter(world.parked.values()))
        if lack is not None:
            assert lack.reason is ParkReason.PROVIDER_CREDIT


@KINDS
async def test_what_is_said_to_fit_needs_no_probe(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(100, tells=True))
        await world.submit([1000] + [100] * 50)

        await world.run(lambda: world.is_done, 1000)

        assert len(world.answered) == 50
        assert world.purse.refused == {1: 1}
        (lack,) = (lack for lack in world.parked.values() if lack is not None)
        assert (lack.reason, lack.limit, lack.words) == (
            ParkReason.PROVIDER_CREDIT, 100, "no credit")  # fmt: skip
        assert lack.resumes_at_ms > world.now_ms


@KINDS
async def test_who_comes_while_larger_ones_are_parked_goes_at_once_if_it_fits(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(100, tells=True))
        await world.submit([1000] * 9)
        await world.run(span_ms=1000)

        result = await world.submit([101, 100, 99])

        assert [world.ids[claim.request_id] for claim in result.claimed] == [11, 12]


@KINDS
async def test_a_top_up_is_found_by_the_timer_and_lets_all_go(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(100, tells=True))
        await world.submit([1000 + 10 * n for n in range(40)] + [50] * 9)
        await world.run(span_ms=300_000)
        assert len(world.answered) == 9
        asked = len(world.purse.asked)
        assert asked <= 9 + 4 + 4  # those at once, then one at a time, ever more rarely

        world.purse.pays = 10**6
        await world.run(lambda: world.is_done, LONGEST_MS)

        assert len(world.answered) == 49


@KINDS
async def test_the_probe_is_the_smallest_that_waits_not_the_oldest(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(0), slots=1)
        await world.submit([500, 400, 300, 30, 700], models=("a", "b"), priorities=(0, 10, 20))
        await world.run(span_ms=31_000)

        assert world.purse.asked == [1, 4]


@KINDS
async def test_a_model_that_is_refused_for_itself_holds_back_no_other(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(1000, barred=["own"]))
        sizes = [size for n in range(60) for size in (100 - n, 200)]
        await world.submit(sizes, models=("own", "m"))

        await world.run(lambda: world.is_done, 3 * 60_000)

        assert len(world.answered) == 60
        for n in range(20):
            await world.submit([40 - n], models=("own",))
            await world.turn(0)
        assert sum(world.purse.refused.values()) < 20


@KINDS
async def test_a_request_that_is_refused_for_itself_is_not_the_only_one_to_try(kind, tmp_path):
    async with Opened(kind, tmp_path) as stores:
        world = World(stores, Purse(1000, poison=[1]), slots=1)
        await world.submit([10] + [40] * 20)

        await world.run(lambda: world.is_done, 40 * 60_000)

        assert len(world.answered) == 20


async def test_processes_on_one_file_share_what_fits(tmp_path):
    async with Opened("sqlite", tmp_path, 2) as stores:
        world = World(stores, Purse(100, tells=True))
        await world.submit([1000] * 3, at=0)
        await world.turn(0)
        await stores[1].changed(world.now_ms)

        result = await world.submit([1000, 100] * 4, at=1)

        assert {world.sizes[world.ids[c.request_id]][1] for c in result.claimed} == {100}
        await world.run(lambda: world.is_done, 1000)
        assert len(world.answered) == 4
        assert sum(world.purse.refused.values()) <= 4  # who opens the file anew tries at once


@KINDS
async def test_waiting_for_credit_costs_no_more_with_more_that_wait(kind, tmp_path):
    """Whoever is too large is looked at once, not each time that a smaller one goes."""
    seen = []
    for count in (200, 2000):
        (tmp_path / str(count)).mkdir()
        async with Opened(kind, tmp_path / str(count)) as stores:
            world = World(stores, Purse(100, tells=True))
            await world.submit([1000] * count)
            await world.run(span_ms=1000)
            turns = world.turns
            for _ in range(50):
                await world.submit([50])
                await world.turn(0)
            seen.append(world.turns - turns)
            lane = next(iter(stores[0].lanes()))
            assert lane.waiting == count
    assert seen[0] == seen[1]


# Any mix


@st.composite
def mixes(draw):
    purse = Purse(
        draw(st.integers(0, 300)), draw(st.booleans()),
        barred=draw(st.sampled_from([(), (), ("a",)])),
    )  # fmt: skip
    batches = draw(
        st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=25), min_size=1, max_size=4)
    )
    return purse, batches, draw(st.integers(1, 8)), draw(st.sampled_from([300, 50, 0]))


@KINDS
@settings(max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(mix=mixes())
async def test_whatever_can_be_paid_for_goes_within_few_probes(kind, mix, tmp_path_factory):
    """Any sizes in any order, of three models, with amounts told or not, and a top-up.

    The bound: two refused probes for each model, and the wait for as many.
    """
    purse, batches, slots, raised = mix
    folder = tmp_path_factory.mktemp("mix")
    async with Opened(kind, folder) as stores:
        world = World(stores, purse, slots)
        for batch in batches:
            await world.submit(batch, models=("a", "b", "c"), priorities=(10, 0))
            await world.run(span_ms=5_000)

        most_ms = sum(min(LONGEST_MS, FIRST_PROBE_MS["provider_credit"] << n) for n in range(7))
        await world.run(lambda: world.is_done, most_ms)
        assert world.is_done, (world.affordable() - world.answered, purse.pays)

        purse.pays += raised
        purse.barred.clear()
        await world.run(lambda: world.is_done, 7 * LONGEST_MS)
        assert world.is_done, (world.affordable() - world.answered, purse.pays)
        assert max(purse.refused.values(), default=0) < 40


# What refusals say


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("This request requires more credits, or fewer max_tokens. You requested up to 16384 tokens, but"
         " can only afford 3919. To increase, visit https://openrouter.ai/settings/credits", 239_196),
        ("Prompt tokens limit exceeded: 12000 > 5311. To increase, visit the settings", 442_583),
        ("You can only afford 1,000 tokens", 50_000),
        ("This request costs $0.50, but your balance is $0.10", 200_000),
        ("requires at least $0.50, only $0.10 available", 200_000),
        ("requires $2.00 but you have $0.50 remaining", 250_000),
        ("can only afford $0.0001", 100_000),
        ("Not enough credits: required 400, available 120", 300_000),
        ("Insufficient credits. Required: $0.50, available: $0.10", 200_000),
        ("required=400 available=120", 300_000),
        ("you can afford only 12 tokens of 400", 30_000),
        ("we can afford just 100 out of 400", 250_000),
        ("400 credits are required, 120 available", 300_000),
        ("insufficient balance: $0.10 < $0.50", 200_000),
        ("available credit 900 < 400", None),
        ("This request requires at least $0.50", None),
        ("max_tokens 16384 exceeds credits", None),
        ("Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", None),
        ("Exceeded budget for provider openai: 0.0007350000000000001 >= 1e-12", None),
        ("Insufficient Balance", None), ("Insufficient credits", None), ("", None),
        ("You requested up to 10 tokens, but can only afford 99", None),
    ],
)  # fmt: skip
async def test_amounts_are_read_in_the_unit_of_what_was_asked_for(words, size):
    told = affords(words)

    assert (None if told is None else told.size(1_000_000, 20_000)) == size


async def test_a_row_of_an_older_version_is_read_and_one_of_nonsense_is_not():
    front = Gates({"p": ProviderRules()}).of("p", "m")[0]
    front.load([1.0, 300.0, [], ["provider_credit", "quota", T0, T0 + 9, 30_000, None, 0]], T0)
    assert front.closed.reach("m") == -1
    assert front.closed.may_probe(T0 + 9)

    for wrong in ({"refused": [1]}, {"allowed": "x"}, {"tried": 7}, {"seen": {"m": None}}):
        fields = dict(zip(Closed.__slots__, front.dump()[3], strict=True)) | wrong
        with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
            front.load([1.0, 300.0, [], list(fields.values())], T0)


async def test_a_clock_that_is_set_back_does_not_make_pauses_end_at_once():
    async with Opened("memory", None) as stores:
        world = World(stores, Purse(100))
        await world.submit([1000])
        await world.run(lambda: len(world.purse.asked) == 2)
        world.now_ms -= 3_600_000
        for _ in range(50):
            await world.turn(0)

        assert len(world.purse.asked) <= 3


async def test_who_waits_for_credit_is_first_in_line_for_no_money():
    front, gate = Gates({"p": ProviderRules()}).of("p", "m")
    front.closed = Closed("provider_credit", "", 0, 9_000, 30_000, allowed=40)
    shared = account(reserved=95)
    shared.waiter = Waiter(10, 1, 90, 99, 0)
    key = LaneKey("p", (shared.id,), 10, True, "m")
    poor = LaneView(
        key, [shared], iter(()), (front, gate), lambda: iter([Waiting(1, 90)]), {1: 90}.get
    )

    result = plan([poor, lane([shared], [5], first_id=2, provider="q")], {"p": 1, "q": 1}, 1)
    again = plan([lane([shared], [5], first_id=2, provider="q")], {"q": 1}, 2)

    assert shared.waiter is None
    assert [each.id for each in [*result.admitted, *again.admitted]] == [2]
