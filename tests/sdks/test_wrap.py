"""Every vendor's own SDK, wrapped: it waits for money, and notices nothing else."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from importlib.metadata import version

import pytest

from scheduler import BudgetExceeded, ConfigError, SchedulerClosed, events, refusal_of
from scheduler.adapters.http import family_of
from scheduler.money import usd
from tests.sdks.conftest import counted, make_scheduler, until
from tests.sdks.kits import (
    EXPECTED,
    FAMILY,
    KITS,
    NAMES,
    TIMEOUT_S,
    TWO_IN_ONE,
    ask_sync,
    inner_clients,
    stream_sync,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("default"),  # what SDKs warn of is theirs
]
every = pytest.mark.parametrize("kit", KITS, ids=NAMES)


async def stream(kit, client, prompt, headers=None):
    """The chunks of a streamed answer."""
    made = kit.stream(client, prompt, headers)
    chunks = await made if inspect.isawaitable(made) else made
    return [chunk async for chunk in chunks]


async def parked(s, count):
    """Wait until so many requests are parked, and nothing runs."""
    await until(lambda: sum(s.stats().parked.values()) == count and not s.stats().running)


async def room_for_one_more(s, call):
    """Have it called, then leave money for exactly one more such call, as it is reserved."""
    ceilings = []
    stop = s.on(events.Admitted, lambda event: ceilings.append(event.reserved_nusd))
    await call
    stop()
    await s.set_limit("team", usd(s.stats().posted_nusd + ceilings[0]))


def test_the_versions_are_the_ones_that_are_meant():
    found = {package: version(package).partition(".")[0] for package in EXPECTED}

    assert found == EXPECTED


@every
async def test_calls_park_beyond_the_sdks_own_timeout_and_go_on_after_a_raise(
    kit, service, connect
):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, False, TIMEOUT_S))
        await room_for_one_more(s, kit.ask(client, "Question 0"))
        calls = [asyncio.create_task(kit.ask(client, f"Question {n}")) for n in range(1, 7)]
        await parked(s, 5)
        await asyncio.sleep(1.5 * TIMEOUT_S)
        assert [call.done() for call in calls].count(True) == 1
        assert service.since("calls") == 2

        await s.set_limit("team", "$1")
        answers = await asyncio.gather(*calls)

        assert all(len(kit.text(answer).split()) == 12 for answer in answers)
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")
        assert service.since("calls") == 7


@every
async def test_answers_and_chunks_are_what_the_bare_sdk_gives(kit, service, connect):
    bare = connect(kit, service.url, False)
    async with make_scheduler() as s:
        wrapped = s.wrap(connect(kit, service.url, False))
        answers = [await kit.ask(client, "Same question") for client in (bare, wrapped)]
        plain, followed = [await stream(kit, client, "Same") for client in (bare, wrapped)]

        assert type(answers[0]) is type(answers[1])
        assert kit.text(answers[0]) == kit.text(answers[1])
        assert kit.tokens(answers[0]) == kit.tokens(answers[1])
        assert [type(chunk) for chunk in plain] == [type(chunk) for chunk in followed]
        texts = [[kit.chunk_text(chunk) for chunk in chunks] for chunks in (plain, followed)]
        assert texts[0] == texts[1]
        assert len("".join(texts[1]).split()) == 12
        # Half of what was billed went past the scheduler.
        assert 2 * s.stats().posted_nusd == service.since("billed_nusd")
        assert counted(s) == s.stats().posted_nusd


@every
async def test_a_refusal_is_the_sdks_own_error_once_and_nothing_is_sent(kit, service, connect):
    async with make_scheduler("$0.00000001/day") as s:
        client = s.wrap(connect(kit, service.url, False), on_exceeded="raise")
        seen = []
        with pytest.raises(kit.error()) as caught:
            await kit.ask(client, "Too dear")
        with pytest.raises(kit.error()) as streamed:
            seen += await stream(kit, client, "Too dear")

        for error in (caught.value, streamed.value):
            assert kit.status(error) in (402, 429)
            assert "budget" in str(error)
            assert "team" in str(error)
        assert s.stats().failed == 2  # each was submitted once: no SDK tried again
        assert not seen
        assert service.since("received") == 0


@every
async def test_the_reason_of_a_refusal_is_found_in_the_sdks_error(kit, service, connect):
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(connect(kit, service.url, False), on_exceeded="raise")
        with pytest.raises(kit.error()) as caught:
            await kit.ask(client, "Too dear")

        reason = refusal_of(caught.value)
        assert isinstance(reason, BudgetExceeded)
        assert reason.budget == "team"
        assert kit.status(caught.value) == 402  # no reset will help


@every
async def test_a_deadline_that_passes_while_parked_is_a_refusal(kit, service, connect):
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(connect(kit, service.url, False), max_wait=0.1)
        with pytest.raises(kit.error()) as caught:
            await kit.ask(client, "Too late")

        assert kit.status(caught.value) == 429
        assert "not sent in time" in str(caught.value)
        assert service.since("received") == 0


@every
async def test_an_unknown_price_is_a_refusal_that_says_how_to_set_it(kit, service, connect):
    async with make_scheduler(prices={}) as s:
        client = s.wrap(connect(kit, service.url, False))
        with pytest.raises(kit.error()) as caught:
            await kit.ask(client, "At what price?")

        assert kit.status(caught.value) == 402
        assert "scheduler prices set sim-small" in str(caught.value)
        assert service.since("received") == 0


@every
async def test_the_providers_own_refusal_comes_through_once(kit, guarded, connect):
    bare = connect(kit, guarded, False)
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, guarded, False))
        with pytest.raises(kit.error()) as caught:
            await kit.ask(client, "Who is it?")
        with pytest.raises(kit.error()) as plain:
            await kit.ask(bare, "Who is it?")

        assert kit.status(caught.value) == 401
        assert type(caught.value) is type(plain.value)
        assert str(caught.value).partition("req-")[0] == str(plain.value).partition("req-")[0]
        assert s.stats().failed == 1
        assert counted(s) == 0


@every
async def test_cancelling_a_parked_call_costs_nothing(kit, service, connect):
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(connect(kit, service.url, False))
        call = asyncio.create_task(_awaited(kit.ask(client, "Never mind")))
        await parked(s, 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await s.join()

        assert s.stats().cancelled == 1
        assert counted(s) == 0
        assert service.since("received") == 0


async def _awaited(awaitable):
    return await awaitable


@every
async def test_cancelling_a_call_that_was_sent_keeps_counting(kit, slow_service, connect):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, slow_service.url, False))
        call = asyncio.create_task(_awaited(kit.ask(client, "Too slow")))
        await until(lambda: slow_service.since("received"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await s.join()

        assert s.stats().suspense_nusd == counted(s) >= slow_service.since("billed_nusd") > 0
        (unknown,) = await s.suspended()
        assert unknown.why == "cancelled after it was sent"


@every
async def test_a_stream_that_is_left_keeps_counting_and_frees_its_place(kit, service, connect):
    # Dropped generators within generators complain of each other, those of a bare SDK as well.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with make_scheduler(concurrency=1) as s:
        client = s.wrap(connect(kit, service.url, False))
        gc.freeze()  # what SDKs loaded, else each round looks at all of it
        made = kit.stream(client, "Left half-way")
        chunks = await made if inspect.isawaitable(made) else made
        async for _ in chunks:
            break
        del chunks, made  # without closing it, as people do
        call = asyncio.create_task(_awaited(kit.ask(client, "The next")))
        # SDKs let go of it in circles: it takes a few rounds.
        await until(lambda: gc.collect() >= 0 and s.stats().cancelled == 1)
        answer = await call

        assert len(kit.text(answer).split()) == 12
        assert s.stats().suspense_nusd > 0
        assert counted(s) >= service.since("billed_nusd")


@every
async def test_tags_arrive_and_are_taken_off(kit, service, connect):
    headers = {
        "X-Scheduler-Job": "by header",
        "X-Scheduler-Priority": "batch",
        "X-Scheduler-Max-Cost": "$0.5",
    }
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, False), job="by wrap")
        await kit.ask(client, "One")
        with s.tag(job="by tag"):
            await kit.ask(client, "Two")
            await asyncio.create_task(_awaited(kit.ask(client, "Three", headers)))
        await kit.ask(s.wrap(connect(kit, service.url, False)), "Four", headers)

        rows = await s.store.spend("job")
        assert {row.name: row.attempts for row in rows} == {
            "by wrap": 1,
            "by tag": 2,
            "by header": 1,
        }
        assert [each["headers"] for each in service.records] == [{}] * 4


@every
async def test_other_endpoints_are_left_alone(kit, service, connect):
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(connect(kit, service.url, False))
        listed = kit.models(client)
        listed = await listed if inspect.isawaitable(listed) else [each async for each in listed]

        assert listed
        assert s.stats().queued == s.stats().succeeded == 0


@every
async def test_sync_clients_wait_in_their_threads(kit, service, connect):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, True, TIMEOUT_S))

        def ask(n):
            return asyncio.create_task(asyncio.to_thread(ask_sync, kit, client, f"Question {n}"))

        await room_for_one_more(s, ask(0))
        calls = [ask(n) for n in range(1, 5)]
        await parked(s, 3)
        await asyncio.sleep(1.5 * TIMEOUT_S)
        assert [call.done() for call in calls].count(True) == 1

        await s.set_limit("team", "$1")
        answers = await asyncio.gather(*calls)
        chunks = await asyncio.to_thread(lambda: list(stream_sync(kit, client, "In pieces")))

        assert all(len(kit.text(answer).split()) == 12 for answer in answers)
        assert len("".join(map(kit.chunk_text, chunks)).split()) == 12
        assert s.stats().posted_nusd == counted(s) == service.since("billed_nusd")


@every
async def test_a_sync_call_inside_the_schedulers_own_loop_is_told_at_once(kit, service, connect):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, True))
        with pytest.raises(kit.error(), match="inside the scheduler's own event loop"):
            ask_sync(kit, client, "Never")

        assert service.since("received") == 0


@every
async def test_wrapping_twice_or_by_a_closed_scheduler_is_told(kit, service, connect):
    async with make_scheduler() as s:
        client = s.wrap(connect(kit, service.url, False))
        with pytest.raises(ConfigError, match="wrapped already"):
            s.wrap(client)
    with pytest.raises(SchedulerClosed, match="it can wrap no client"):
        s.wrap(connect(kit, service.url, False))
    with pytest.raises(kit.error()) as caught:
        await kit.ask(client, "After aclose")

    assert kit.status(caught.value) == 503
    assert "the scheduler is closed; nothing was sent" in str(caught.value)
    assert service.since("received") == 0


@every
async def test_a_scheduler_that_is_not_open_yet_may_wrap(kit, service, connect):
    s = make_scheduler()
    client = s.wrap(connect(kit, service.url, False))
    with pytest.raises(kit.error(), match="nothing was sent"):
        await kit.ask(client, "Too early")
    async with s:
        assert len(kit.text(await kit.ask(client, "In time")).split()) == 12


@every
async def test_what_was_wrapped_keeps_its_own_client_open(kit, service, connect):
    original = connect(kit, service.url, False)
    async with make_scheduler() as s:
        wrapped = s.wrap(original)
        if wrapped is original:
            assert kit in TWO_IN_ONE
            return
        del wrapped
        gc.collect()

        assert len(kit.text(await kit.ask(original, "Still there?")).split()) == 12
        assert s.stats().succeeded == 0


@pytest.mark.parametrize("kit", [each for each in KITS if each.package != "groq"])
async def test_the_family_of_the_client_is_the_sdks(kit, service, connect):
    inner = inner_clients(connect(kit, service.url, False))[-1]

    assert family_of(inner).__name__ == FAMILY


@every
async def test_a_scheduler_that_closes_while_a_call_waits_says_so(kit, service, connect):
    async with make_scheduler("$0.00000001") as s:
        client = s.wrap(connect(kit, service.url, False))
        call = asyncio.create_task(_awaited(kit.ask(client, "Parked")))
        await parked(s, 1)
    began_s = time.monotonic()
    with pytest.raises(kit.error()) as caught:
        await call

    assert kit.status(caught.value) == 503
    assert time.monotonic() - began_s < 5
    assert service.since("received") == 0


@every
async def test_a_broken_connection_is_tried_again_by_the_scheduler_only(kit, connect):
    async with make_scheduler(max_attempts=2, retry_wait_s=lambda attempt: 0) as s:
        client = s.wrap(connect(kit, "http://127.0.0.1:9", False))
        tried = []
        s.on(events.Settled, tried.append)
        with pytest.raises(Exception, match="onnect"):
            await kit.ask(client, "Anybody there?")

        assert (len(tried), s.stats().failed) == (2, 1)
        assert counted(s) == 0
