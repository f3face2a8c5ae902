"""However soon a provider says to come back: refused again and again, it is asked ever more rarely."""

import asyncio

import pytest

from scheduler import Provider, RateLimited, Request, Scheduler
from scheduler.answer import Answer
from scheduler.errors import ProviderOverloaded
from scheduler.limits import Gates, Heard, ProviderRules, Report
from scheduler.limits.front import MANY_MODELS
from scheduler.limits.gate import LONGEST_PAUSE_MS, MARGIN_MS
from scheduler.providers.answers import read_error
from scheduler.testing import VirtualClock, run
from tests.conftest import FixedTariff
from tests.limits.test_gates import ASKS, T0, Bench


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


# Many models of one provider


def many(provider, seconds, models=100, requests=2):
    """How often each model was asked in each of these seconds."""

    async def main():
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            futures = [
                s.submit(Request.chat(f"m-{model}", f"{n}"))
                for n in range(requests) for model in range(models)
            ]  # fmt: skip
            counts, before = [], 0
            for _ in range(seconds):
                await asyncio.sleep(1)
                counts.append(provider.calls - before)
                before = provider.calls
            for future in futures:
                future.cancel()
        return counts

    return run(main())


@pytest.mark.parametrize("headers", [{"retry-after": "0"}, {"retry-after-ms": "1"}, {}], ids=str)
def test_a_provider_that_refuses_all_of_its_models_is_asked_ever_more_rarely(headers):
    counts = many(Refusing(refused(headers)), 300)

    assert counts[0] < 64 + 10  # as many as go at once before anything is known
    assert sum(counts[1:60]) < 20
    assert sum(counts[60:]) < 20


class RefusingSome(Refusing):
    """Answers models with an even number."""

    async def send(self, request):
        self.calls += 1
        await asyncio.sleep(0.001)
        if int(request.model.partition("-")[2]) % 2:
            raise self.error()
        return Answer({"model": request.model}, cost_nusd=1)


def test_models_that_are_answered_do_not_wait_for_those_that_are_refused():
    provider = RefusingSome(refused({"retry-after": "0"}))

    async def main():
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            futures = [s.submit(Request.chat(f"m-{n % 8}", f"{n}")) for n in range(400)]
            async with asyncio.timeout(60):
                await asyncio.gather(*(each for n, each in enumerate(futures) if not n % 2))
            for future in futures:
                future.cancel()

    run(main())


@pytest.mark.parametrize("models", [1, MANY_MODELS - 1])
def test_the_limits_of_few_models_are_their_own(models):
    provider = Refusing(refused({"retry-after": "600"}))

    async def main():
        async with Scheduler(providers=provider, clock=VirtualClock()) as s:
            futures = [s.submit(Request.chat(f"m-{n}", "hi")) for n in range(models)]
            await asyncio.sleep(1)
            held = [each for each in s.stats().limited if not each.model]
            for future in futures:
                future.cancel()
        return held

    assert run(main()) == []


def test_a_provider_that_answers_one_model_again_is_open_for_all():
    gates = Gates({"p": ProviderRules()})
    front, now_ms = gates.of("p", "m-0")[0], T0
    for n in range(MANY_MODELS + 12):
        front.take(n, ASKS, now_ms)
        now_ms += 10
        gates.hear([Report(n, "p", f"m-{n % 7}", Heard.LIMITED, now_ms, retry_after_ms=0)])
        now_ms = max(now_ms + 1, front.paused_until_ms)
    assert front.status(now_ms - 1).why == "many of its models were refused in a row"
    front.take(99, ASKS, now_ms)
    assert front.paused_until_ms == now_ms + LONGEST_PAUSE_MS

    gates.hear([Report(99, "p", "m-3", Heard.ANSWERED, now_ms + 10)])

    assert front.opens_at_ms(ASKS, now_ms + 10) <= now_ms + 10
    assert front.status(now_ms + 10) is None


def test_processes_that_share_a_store_share_the_pause_of_a_provider():
    fronts = [Gates({"p": ProviderRules()}).of("p", "m")[0] for _ in range(2)]
    for n in range(MANY_MODELS):
        fronts[0].take(n, ASKS, T0)
        fronts[0].hear(Report(n, "p", f"m-{n}", Heard.LIMITED, T0))

    fronts[1].load(fronts[0].dump(), T0)
    assert fronts[1].opens_at_ms(ASKS, T0) > T0
    fronts[1].load(fronts[0].dump()[:4], T0)  # as older programs wrote it
    assert fronts[1].opens_at_ms(ASKS, T0) <= T0
