"""What cost nothing uses up patience, what may have cost something uses up attempts."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from scheduler import Budget, CallFailed, CallTimeout, ConfigError, Retry, Scheduler
from scheduler.errors import ProviderOverloaded, RateLimited, TransportFailed
from scheduler.limits.retry import BATCH_ATTEMPTS
from scheduler.stores.sqlite import SqliteStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask, until


def opened(provider, **options):
    return Scheduler(
        budgets=Budget("team", "$1"), providers=provider, clock=VirtualClock(), **options
    )


def busy() -> ProviderOverloaded:
    error = ProviderOverloaded(503, "busy", "overloaded")
    error.is_billed = False
    return error


KINDS = [
    lambda: ProviderOverloaded(500, "oops"),
    busy,
    lambda: RateLimited(429, "slow down"),
]


class Flaky(Bench):
    """Fails some calls, by chance, and of each kind."""

    def __init__(self, chance: float, kinds=KINDS, seed: int = 0) -> None:
        super().__init__()
        self.chance, self.kinds, self.random = chance, kinds, random.Random(seed)
        self.tries = Counter()

    async def send(self, request):
        self.tries[request.body["n"]] += 1
        for kind in self.kinds:
            if self.random.random() < self.chance:
                raise kind()
        return await super().send(request)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("attempts", [BATCH_ATTEMPTS])
def test_no_line_of_a_batch_fails_for_errors_that_pass(seed, attempts):
    async def main():
        async with opened(Flaky(0.08, seed=seed), max_attempts=attempts, concurrency=16) as s:
            answers = await asyncio.gather(*(s.submit(ask(n)) for n in range(150)))
            assert [answer.body["answer"] for answer in answers] == list(range(150))

    run(main())


@pytest.mark.parametrize("kind", [busy, lambda: TransportFailed("refused", is_billed=False)])
def test_what_costs_nothing_uses_up_no_attempt(kind):
    async def main():
        # Longer than chance can need: how long it is by itself is another test's.
        provider = Flaky(0.6, [kind])
        async with opened(provider, max_attempts=3, patience="1h") as s:
            await asyncio.gather(*(s.submit(ask(n)) for n in range(150)))
            assert max(provider.tries.values()) > 3
            assert s.stats().posted_nusd == 150 * 60

    run(main())


def count(provider, error, **options) -> tuple[int, float]:
    """How often one request is tried while others are answered, and for how long."""
    tries = []

    async def before(request):
        if request.body["n"] == "bad":
            tries.append(VirtualClock().now_ms())
            raise error()

    provider.before = before

    async def main():
        async with opened(provider, retry_wait_s=lambda n: 5.0, **options) as s:

            async def others():
                while True:
                    await s.run(ask())
                    await asyncio.sleep(1)

            busy = asyncio.create_task(others())
            with pytest.raises(CallFailed):
                await s.run(ask("bad"))
            busy.cancel()

    run(main())
    return len(tries), (tries[-1] - tries[0]) / 1000


def refused() -> TransportFailed:
    return TransportFailed("refused", is_billed=False)


def test_patience_has_an_end_and_then_attempts_count():
    tries, seconds = count(Bench(), refused)

    assert tries == 24 + 3
    assert 120 <= seconds <= 140


def test_patience_can_be_set():
    assert count(Bench(), refused, patience="20s")[0] == 4 + 3
    assert count(Bench(), refused, patience=0)[0] == 3
    assert count(Bench(), refused, patience="20s", max_attempts=6)[0] == 4 + 6


def test_who_wants_one_attempt_gets_one():
    assert count(Bench(), refused, max_attempts=1) == (1, 0)


def test_what_may_have_cost_something_uses_up_attempts():
    assert count(Bench(), lambda: ProviderOverloaded(500, "oops"))[0] == 3
    assert count(Bench(), lambda: CallTimeout("slow"), max_attempts=6)[0] == 6


def test_patience_begins_with_the_first_failure_not_with_the_submission():
    async def main():
        provider = Bench()
        failures = [refused() for _ in range(4)]

        async def before(request):
            if failures:
                raise failures.pop()

        provider.before = before
        async with opened(provider, retry_wait_s=lambda n: 5.0, max_attempts=2) as s:
            await s.pause("team")
            future = s.submit(ask())
            await asyncio.sleep(3600)
            await s.resume("team")
            assert (await future).attempts == 5

    run(main())


def test_a_strategy_of_ones_own_decides_alone_unless_it_has_patience():
    from tenacity import stop_after_attempt, wait_none

    alone = Retry(stop_after_attempt(2), wait_none())
    patient = Retry(stop_after_attempt(2), wait_none(), patience="1m")
    split = Retry(on={TransportFailed: alone})

    assert alone.free_delay_ms(1, refused(), 0, 0) is None
    assert patient.free_delay_ms(9, refused(), 0, 59_999) == 0
    assert patient.free_delay_ms(9, refused(), 0, 60_000) is None
    assert patient.free_delay_ms(1, TransportFailed("reset"), 0, 0) is None
    assert split.free_delay_ms(1, refused(), 0, 0) is None
    assert split.free_delay_ms(1, busy(), 0, 0) is not None


def test_a_wrong_patience_is_told_at_once():
    with pytest.raises(ConfigError, match="patience"):
        Scheduler(patience="soon")


# Deadlines


def test_time_does_not_begin_anew_when_a_request_is_submitted_again():
    async def main():
        async with opened(Bench(), retry_wait_s=lambda n: 1.0) as s:
            await s.pause("team")
            future = s.submit(ask(max_wait="2m", key="k"))
            await asyncio.sleep(90)
            for taken in s._pump._desk.waiters.take(future.request_id):
                s._pump._desk._again.submit(taken)  # as when its lease was lost
            await asyncio.wait([future])
            waited_s = (VirtualClock().now_ms() - VirtualClock().start_ms) / 1000
            assert waited_s == 120

    run(main())


async def test_what_is_not_yet_in_the_store_is_not_parked():
    async with Scheduler(budgets=Budget("team", "$0"), providers=Bench()) as s:
        first = s.submit(ask(1))
        await until(lambda: first.parked)
        second = s.submit(ask(2))
        assert (second.request_id, second.parked, second.state) == (None, None, "queued")
        await until(lambda: second.parked)
        assert second.request_id is not None
        first.cancel()
        second.cancel()


async def test_who_takes_a_key_over_from_a_lost_process_waits_on_their_own_terms(tmp_path):
    from scheduler.stores.process import Process

    ours, theirs = SqliteStore(tmp_path / "s.db"), SqliteStore(tmp_path / "s.db")
    for store, host in ((ours, "here"), (theirs, "there")):
        store._transactions.process = Process(host, 1, "1")
        store.lease_ms = store._transactions.lease_ms = 300
    async with Scheduler(ours, budgets=Budget("team", "$0"), providers=Bench()) as s:
        first = s.submit(ask(1, key="k", deadline="5m"))
        plain = s.submit(ask(2, key="plain"))
        await until(lambda: first.parked and plain.parked)
        (expires_ms, _) = _expiries(tmp_path)
        s._pump._tasks[1].tear()  # the process stands still
        await asyncio.sleep(0.5)
        async with Scheduler(theirs, providers=Bench()) as other:
            again = other.submit(ask(1, key="k", deadline="1h"))
            plain_again = other.submit(ask(2, key="plain", deadline="1h"))
            await until(lambda: again.parked and plain_again.parked)
            assert _expiries(tmp_path)[0] > expires_ms + 3_000_000
            assert _expiries(tmp_path)[1] is not None
        for future in (first, plain):
            future.cancel()


def _expiries(folder) -> list[int | None]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "s.db")) as db:
        return [row[0] for row in db.execute("SELECT expires_at_ms FROM requests ORDER BY id")]


@pytest.mark.parametrize(
    ("has_spoken", "waits_s"),
    [pytest.param(True, 0, id="it has begun to answer"), pytest.param(False, 1, id="silence")],
)
def test_only_who_says_nothing_is_taken_for_down(has_spoken, waits_s):
    class Broken(Bench):
        async def send(self, request):
            if request.body["n"] == 99:
                return await super().send(request)
            error = TransportFailed("broke off")
            error.has_spoken = has_spoken
            raise error

    async def main():
        async with opened(Broken(), max_attempts=1) as s:
            for n in range(8):
                with pytest.raises(TransportFailed):
                    await s.run(ask(n))
                if not has_spoken and n == 4:
                    break
            began_s = asyncio.get_running_loop().time()
            await s.run(ask(99))
            assert round(asyncio.get_running_loop().time() - began_s) == waits_s

    run(main())


def test_who_makes_a_call_hears_of_its_failures_after_its_attempts():
    tried = []

    async def refused(request):
        tried.append(request)
        raise TransportFailed("refused", is_billed=False)

    async def main():
        async with opened(Bench(), max_attempts=3, retry_wait_s=lambda attempt: 0) as s:
            with pytest.raises(TransportFailed):
                await s.submit(ask(), send=refused)

    run(main())
    assert len(tried) == 3
