"""Processes that share a file share a provider's limits, its pauses, and what its credit is."""

import pytest

from scheduler.admission.plan import LaneKey
from scheduler.limits import MARGIN_MS, Gates, Heard, ProviderRules, Report
from scheduler.limits.meter import Limits
from scheduler.request import Request, RequestState, Tokens
from scheduler.shortfall import ParkReason
from scheduler.stores.base import NewRequest, Outcome, Settlement, Turn
from scheduler.stores.sqlite import SqliteStore

pytestmark = pytest.mark.anyio
T0 = 1_800_000_000_000


class Process:
    """A store of its own on the file, with gates of its own."""

    def __init__(self, path, limits=None):
        self.store = SqliteStore(path)
        self.store.use(Gates({"p": ProviderRules(limits or Limits())}))

    async def __aenter__(self):
        await self.store.open(T0)
        return self

    async def __aexit__(self, *_):
        await self.store.aclose()

    async def turn(self, now_ms, submit=0, settle=()):
        new = [
            NewRequest(Request({"model": "m", "n": n}), LaneKey("p", (), 10, True, "m"), 10,
                       tokens=Tokens(100, 50))
            for n in range(submit)
        ]  # fmt: skip
        for each in new:
            self.store.prepare(each)
        return await self.store.turn(Turn(now_ms, settle=settle, submit=new, slots={"p": 64}))


def heard(claimed, kind, now_ms, **told):
    report = Report(claimed.request_id, "p", "m", kind, now_ms, **told)
    is_answer = kind is Heard.ANSWERED
    return Settlement(
        claimed.reservation_id, claimed.request_id,
        Outcome.POST if is_answer else Outcome.VOID,
        RequestState.SUCCEEDED if is_answer else RequestState.QUEUED,
        is_attempt=is_answer, report=report,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scheduler.db"


async def test_two_processes_together_stay_within_one_limit(path):
    limits = Limits(requests_per_minute=600)
    async with Process(path, limits) as one, Process(path, limits) as other:
        sent = 0
        for tick in range(40):
            now_ms = T0 + 50 * tick
            for each in (one, other):
                result = await each.turn(now_ms, submit=5)
                sent += len(result.claimed)
                settle = [heard(c, Heard.ANSWERED, now_ms) for c in result.claimed]
                await each.turn(now_ms, settle=settle)

    assert 9 + 17 <= sent <= 9 + 20  # the burst, and ten a second for two seconds


async def test_a_pause_one_process_was_told_of_holds_for_the_other(path):
    async with Process(path) as one, Process(path) as other:
        (claimed,) = (await one.turn(T0, submit=1)).claimed
        await one.turn(T0, settle=[heard(claimed, Heard.LIMITED, T0, retry_after_ms=5000)])

        result = await other.turn(T0 + 1, submit=1)

        assert result.claimed == []
        assert result.look_again_at_ms == T0 + 5000 + MARGIN_MS
        assert len((await other.turn(T0 + 5000 + MARGIN_MS)).claimed) == 1


async def test_credit_that_is_gone_is_gone_for_all_and_one_of_all_tries(path):
    async with Process(path) as one, Process(path) as other:
        (claimed,) = (await one.turn(T0, submit=1)).claimed
        await one.turn(T0, settle=[heard(claimed, Heard.NO_CREDIT, T0, words="quota")])
        result = await other.turn(T0 + 1, submit=2)
        lack = other.store.shortfall(LaneKey("p", (), 10, True, "m"))
        # A process that has only just heard of it tries once, whatever the timer says.
        (probe,) = result.claimed
        assert (lack.reason, lack.words) == (ParkReason.PROVIDER_CREDIT, "quota")
        assert (await one.turn(T0 + 40_000)).claimed == []
        told = await other.store.limited(T0 + 40_000)
        assert [each.why for each in told] == ["provider credit: quota"]

        await other.turn(T0 + 41_000, settle=[heard(probe, Heard.ANSWERED, T0 + 41_000)])
        await one.store.changed(T0 + 41_000)

        assert len((await one.turn(T0 + 41_001)).claimed) == 1


async def test_whoever_starts_again_tries_at_once(path):
    async with Process(path) as one:
        (claimed,) = (await one.turn(T0, submit=1)).claimed
        await one.turn(T0, settle=[heard(claimed, Heard.NO_CREDIT, T0, words="quota")])
        assert (await one.turn(T0 + 10, submit=1)).claimed == []

    async with Process(path) as later:
        assert len((await later.turn(T0 + 1000, submit=3)).claimed) == 1


async def test_damaged_advice_is_no_failure(path):
    async with Process(path) as one:
        (claimed,) = (await one.turn(T0, submit=1)).claimed
        await one.turn(T0, settle=[heard(claimed, Heard.NO_CREDIT, T0)])
        await one.store._run(lambda db: db.execute("UPDATE gates SET state = '{', version = 9"))

    async with Process(path) as later:
        assert len((await later.turn(T0 + 1000, submit=1)).claimed) == 1
        assert await later.store.limited(T0) == []
