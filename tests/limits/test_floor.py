"""However soon a provider says to come back: refused again and again, it is asked ever more rarely."""

import asyncio

import pytest

from scheduler import Provider, RateLimited, Request, Scheduler
from scheduler.errors import ProviderOverloaded
from scheduler.gates import Heard
from scheduler.gates.model import LONGEST_PAUSE_MS, MARGIN_MS
from scheduler.providers.answers import read_error
from scheduler.testing import VirtualClock, run
from tests.conftest import FixedTariff
from tests.limits.test_gates import Bench


class Refusing(Provider):
    """Refuses all, or all but each so many."""

    name, tariff = "refusing", FixedTariff(100)

    def __init__(self, error, answers_each=0):
        self.error, self.each, self.calls = error, answers_each, 0

    async def send(self, request):
        self.calls += 1
        await asyncio.sleep(0.001)
        raise self.error()


def refused(headers, body=b'{"error": {"message": "Rate limit reached"}}', status=429):
    return lambda: read_error(status, headers, body)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "0"}, {"retry-after": "-1"}, {"retry-after-ms": "1"}, {"retry-after": "0.001"},
        {"retry-after": "Tue, 01 Dec 2020 00:00:00 GMT"}, {"retry-after": "1000000000"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("waiting", [1, 30])
def test_come_back_at_once_for_ever_is_obeyed_ever_more_slowly(headers, waiting):
    async def main():
        provider = Refusing(refused(headers))
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            futures = [s.submit(Request.chat("m", f"{n}")) for n in range(waiting)]
            await asyncio.sleep(60)
            in_a_minute = provider.calls
            await asyncio.sleep(600)
            later = provider.calls - in_a_minute
            for future in futures:
                future.cancel()
        return in_a_minute, later

    in_a_minute, later = run(main())
    assert in_a_minute < 16 + 3 * waiting
    assert later < 40 * max(1, waiting // 10)  # some each half minute


def test_the_floor_grows_to_its_most_and_an_answer_resets_it():
    bench, pauses = Bench(), []
    for _ in range(14):
        bench.hear(bench.send(), Heard.LIMITED, retry_after_ms=0)
        pauses.append(bench.gate.paused_until_ms - bench.now_ms)
        bench.now_ms = bench.gate.paused_until_ms + 1000

    assert pauses[0] <= 2 * MARGIN_MS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_MS
    bench.hear(bench.send())
    bench.hear(bench.send(), Heard.LIMITED, retry_after_ms=0)
    assert bench.gate.paused_until_ms - bench.now_ms <= 2 * MARGIN_MS


def test_what_is_asked_for_is_waited_where_it_is_more():
    bench = Bench()
    bench.hear(bench.send(), Heard.LIMITED, retry_after_ms=7_000)

    assert bench.gate.paused_until_ms == bench.now_ms + 7_000 + MARGIN_MS
    assert issubclass(type(refused({}, status=503)()), ProviderOverloaded | RateLimited)
