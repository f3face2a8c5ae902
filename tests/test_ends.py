"""Every way out of a call ends its future; every death of the pump closes the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from functools import wraps

import pytest

import scheduler as package
from scheduler import (
    Budget,
    CallFailed,
    CallInterrupted,
    FunctionProvider,
    Request,
    Scheduler,
    SchedulerClosed,
    StoreError,
    StreamEvent,
    WrongLoop,
    events,
)
from scheduler.answer import Answer
from scheduler.stores.memory.store import MemoryStore
from scheduler.stores.sqlite import SqliteStore
from scheduler.testing import VirtualClock, run
from tests.conftest import Bench, ask

LIMIT = Budget("team", "$0.000001")


def opened(provider=None, store=None, **options):
    options.setdefault("budgets", LIMIT)
    return Scheduler(store, providers=provider or Bench(), **options)


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "s.db")


def looped(test):
    """Run an async test in a loop in which nothing else is."""

    @wraps(test)
    def wrapped(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return wrapped


def others() -> list[asyncio.Task]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def ended(*futures, within_s=10.0):
    """What futures ended with, in time."""
    await asyncio.wait(futures, timeout=within_s)
    assert all(future.done() for future in futures), "a future never ended"
    return [asyncio.CancelledError() if f.cancelled() else f.exception() for f in futures]


async def check_closed(s: Scheduler) -> None:
    """Nothing waits for ever: not the closing, nor whoever asks again."""
    with pytest.raises((SchedulerClosed, StoreError)):
        await asyncio.wait_for(s.run(ask(9)), 60)
    await asyncio.wait_for(s.aclose(), 15)
    with pytest.raises(SchedulerClosed):
        await asyncio.wait_for(s.run(ask(9)), 60)


async def two(s: Scheduler) -> tuple[asyncio.Future, asyncio.Future]:
    """One call that runs, and one request that waits for its money."""
    running = s.submit(ask(0, seconds=60, ceiling=900, key="running"))
    waiting = s.submit(ask(1, ceiling=900, key="waiting"))
    async with asyncio.timeout(60):
        while not (s._intake.providers["bench"].running and waiting.parked):
            await asyncio.sleep(0.001)
    return running, waiting


# The usual shutdown


@pytest.mark.parametrize("times", [1, 2, 3])
@looped
async def test_cancelling_all_tasks_closes_it_and_settles_what_ran(store, times):
    s = await opened(store=store).__aenter__()
    running, waiting = await two(s)

    for _ in range(times):
        for task in others():
            task.cancel()
        await asyncio.sleep(0)

    one, other = await ended(running, waiting)
    assert isinstance(one, CallInterrupted)
    assert (one.attempts, one.cost_nusd) == (1, 900)
    assert isinstance(other, SchedulerClosed)
    assert s.stats().suspense_nusd == 900
    await check_closed(s)


@pytest.mark.parametrize("seconds", [0, 0.001, 0.01])
@looped
async def test_cancelling_all_tasks_in_the_middle_of_anything(store, seconds):
    s = await opened(store=store, concurrency=2, budgets=Budget("team", "$1")).__aenter__()
    futures = [s.submit(ask(n, seconds=0.002, key=f"k{n}")) for n in range(20)]
    await asyncio.sleep(seconds)

    for task in others():
        task.cancel()

    for error in await ended(*futures):
        assert error is None or isinstance(error, CallInterrupted | SchedulerClosed)
    await check_closed(s)


def test_a_program_that_never_closes_it_leaves_a_file_that_adds_up(tmp_path):
    """`asyncio.run` cancels all tasks when it ends."""
    path, told = tmp_path / "s.db", []

    async def main():
        s = await opened(store=SqliteStore(path)).__aenter__()
        for future in await two(s):
            future.add_done_callback(lambda done: told.append(type(done.exception())))

    async def again():
        async with opened(store=SqliteStore(path)) as s:
            (unknown,) = await s.suspended()
            assert (await s.store.audit(s.now_ms())).discrepancies == ()
            return unknown.ceiling_nusd, (await s.store.counts()).waiting

    asyncio.run(main())
    gc.collect()

    assert told == [CallInterrupted, SchedulerClosed]
    assert asyncio.run(again()) == (900, 2)


@looped
async def test_each_task_of_it_may_be_cancelled_alone(tmp_path):
    for name in ("scheduler pump", "scheduler poll"):
        s = await opened(store=SqliteStore(tmp_path / f"{name[-4:]}.db")).__aenter__()
        futures = await two(s)

        (task,) = [each for each in others() if each.get_name() == name]
        task.cancel()

        one, other = await ended(*futures)
        assert (type(one), type(other)) == (CallInterrupted, SchedulerClosed)
        await check_closed(s)


@looped
async def test_the_task_of_a_call_may_be_cancelled_by_anybody(store):
    s = await opened(store=store).__aenter__()
    running, _ = await two(s)

    (call,) = s._pump._flight.tasks()
    call.cancel()

    (error,) = await ended(running)
    assert isinstance(error, CallInterrupted)
    assert "somebody else cancelled" in str(error)
    await s.aclose()


async def test_a_call_cancelled_by_somebody_before_it_has_begun_is_sent_all_the_same():
    provider = Bench()
    async with opened(provider) as s:
        s._pump._flight.start = _struck(s._pump._flight.start)
        future = s.submit(ask(1))
        assert (await asyncio.wait_for(future, 60)).body == {"answer": 1}
    assert provider.billed_nusd == 60


def _struck(start: Callable[..., None]) -> Callable[..., None]:
    struck = []

    def start_and_strike(claimed, *rest):
        start(claimed, *rest)
        if not struck:
            struck.append(claimed)
            start.__self__.calls[claimed.request_id].task.cancel()

    return start_and_strike


async def test_the_resolver_begins_again_after_somebody_has_cancelled_it():
    provider = Bench()
    provider.on_unknown = "input_only"
    async with opened(provider, max_attempts=1) as s:
        await asyncio.sleep(0.01)
        s._resolver._task.cancel()
        await asyncio.sleep(0.01)

        with pytest.raises(CallFailed):
            await s.run(ask(fail=RuntimeError("odd")))
        async with asyncio.timeout(60):
            while await s.suspended():
                await asyncio.sleep(0.01)
        assert s.stats().suspense_nusd == 0


# What a provider may do


class Odd(Exception):
    pass


def raising(error: BaseException) -> Callable[[Request], Answer]:
    async def call(request: Request) -> Answer:
        await asyncio.sleep(0)
        raise error

    return call


async def cancels_itself(request: Request) -> Answer:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)
    raise AssertionError("not reached")


async def cancels_itself_and_answers(request: Request) -> dict:
    asyncio.current_task().cancel()
    return {"ok": True}


def told_of(call) -> BaseException | None:
    """What the caller of a function provider hears."""

    async def main():
        provider = FunctionProvider("p", call, quote="$0.0000001", cost="$0.0000001")
        async with opened(provider, max_attempts=1) as s:
            future = s.submit(ask())
            (error,) = await ended(future, within_s=5)
            assert s.stats().suspense_nusd == (0 if error is None else 100)
            assert s.stats().running == 0
            with pytest.raises(CallFailed) if error is not None else _nothing():
                await asyncio.wait_for(s.run(ask()), 60)  # it works on
            return error

    return asyncio.run(main())


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


@pytest.mark.parametrize("error", [
    GeneratorExit(), asyncio.CancelledError(), Odd("odd"), StopAsyncIteration(), BaseException("x"),
])  # fmt: skip
def test_whatever_a_provider_raises_ends_its_future(error):
    heard = told_of(raising(error))

    assert isinstance(heard, CallFailed)
    assert heard.cost_nusd == 100


def test_a_provider_that_raises_stop_iteration_without_being_a_coroutine():
    def call(request):
        raise StopIteration

    provider = Bench()
    provider.send = call

    async def main():
        async with opened(provider, max_attempts=1) as s:
            with pytest.raises(CallFailed, match="StopIteration"):
                await asyncio.wait_for(s.run(ask()), 60)

    asyncio.run(main())


def test_a_provider_that_cancels_its_own_task_is_asked_once():
    heard = told_of(cancels_itself)

    assert isinstance(heard, CallInterrupted)
    assert heard.attempts == 1


def test_a_provider_that_cancels_its_own_task_and_answers_is_believed():
    assert told_of(cancels_itself_and_answers) is None


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["provider", "send", "event"])
def test_what_ends_the_program_ends_it_and_leaves_no_future_open(kind, where, tmp_path):
    path, futures = tmp_path / "s.db", []

    async def fatal(request):
        raise kind(3)

    async def main():
        provider = Bench()
        async with opened(provider, SqliteStore(path)) as s:
            if where == "event":
                s.on(events.Admitted, _raises(kind))
            elif where == "provider":
                provider.before = fatal
            send = fatal if where == "send" else None
            futures.append(s.submit(ask(1, key="k"), send=send))
            await asyncio.sleep(30)

    with pytest.raises(kind):
        asyncio.run(main())

    (future,) = futures
    assert future.done()
    assert isinstance(future.exception(), CallInterrupted | SchedulerClosed)

    async def again():
        async with opened(Bench(), SqliteStore(path)) as s:
            assert (await s.run(ask(1, key="k"))).body == {"answer": 1}
            audit = await s.store.audit(s.now_ms())
            return audit.discrepancies, (await s.store.counts()).running

    assert asyncio.run(again()) == ((), 0)


def _raises(kind):
    def callback(event):
        raise kind(3)

    return callback


@pytest.mark.parametrize("error", [GeneratorExit(), asyncio.CancelledError(), BaseException("odd")])
async def test_whatever_a_callback_raises_harms_nobody(error):
    async with opened() as s:

        def callback(event):
            raise error

        s.on(events.Event, callback)
        assert (await asyncio.wait_for(s.run(ask(1)), 60)).cost_nusd == 60


async def test_a_retry_strategy_that_raises_ends_the_future():
    def odd(attempt):
        raise Odd

    async with opened(retry_wait_s=odd) as s:
        from scheduler.errors import TransportFailed

        with pytest.raises(CallFailed, match="Odd"):
            await asyncio.wait_for(s.run(ask(fail=TransportFailed("reset"))), 60)
        assert s.stats().running == 0


@pytest.mark.parametrize("error", [
    OSError("disk"), asyncio.CancelledError(), GeneratorExit(), BaseException("x"),
])  # fmt: skip
async def test_whatever_the_store_raises_ends_every_future(error):
    class Failing(MemoryStore):
        is_broken = False

        async def turn(self, turn):
            if self.is_broken:
                raise error
            return await super().turn(turn)

    s = await opened(store=Failing()).__aenter__()
    futures = await two(s)
    s.store.is_broken = True
    late = s.submit(ask(2))

    for each in await ended(*futures, late):
        assert isinstance(each, StoreError)
    with pytest.raises(StoreError, match="failed"):
        await s.run(ask())
    await check_closed(s)


def test_a_call_that_does_not_end_when_it_is_cancelled_is_given_up():
    async def stubborn(request):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if VirtualClock().now_ms() > START + 60_000:
                    raise

    START = VirtualClock(0).start_ms

    async def main():
        provider = Bench()
        provider.before = stubborn
        s = await opened(provider, clock=VirtualClock(0)).__aenter__()
        future = s.submit(ask())
        await asyncio.sleep(1)
        await s.aclose()
        assert VirtualClock(0).now_ms() < 20_000
        assert isinstance(future.exception(), CallInterrupted)
        await asyncio.sleep(100)

    run(main())


# Closing


async def test_closing_twice_at_once_and_being_cancelled_meanwhile():
    s = await opened().__aenter__()
    futures = await two(s)
    closings = [asyncio.create_task(s.aclose()) for _ in range(3)]
    await asyncio.sleep(0)
    closings[0].cancel()

    assert (await asyncio.gather(*closings, return_exceptions=True))[1:] == [None, None]
    await ended(*futures)
    await check_closed(s)


async def test_a_provider_that_fails_to_close_keeps_no_other_open():
    first, second = Bench("first"), Bench("second")

    async def fails():
        raise Odd

    first.aclose = fails
    s = await Scheduler(providers=[first, second]).__aenter__()
    with pytest.raises(Odd):
        await s.aclose()

    assert second.closed
    with pytest.raises(SchedulerClosed):
        s.submit(ask())


@pytest.mark.parametrize("is_stubborn", [False, True])
@pytest.mark.parametrize(
    "closing", [{}, {"drain": True}, {"drain": True, "drain_timeout": None}, None]
)
def test_a_provider_that_never_ends_closing_is_named_and_left(caplog, closing, is_stubborn):
    async def never():
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                if not is_stubborn or VirtualClock().now_ms() > VirtualClock().start_ms + 60_000:
                    raise

    async def main():
        first, second = Bench("first"), Bench("second")
        first.aclose = never
        s = Scheduler(providers=[first, second], clock=VirtualClock())
        if closing is None:  # it was never opened
            await s.aclose()
        else:
            await s.__aenter__()
            await s.run(ask())
            await s.aclose(**closing)
        assert second.closed
        assert round((VirtualClock().now_ms() - VirtualClock().start_ms) / 1000) in (10, 11)
        await asyncio.sleep(100)

    run(main())

    (record,) = [each for each in caplog.records if each.name == "scheduler.ending"]
    assert record.levelname == "WARNING"
    assert "provider 'first' goes on 10 s after it was told to close" in record.message


class NeverSays(Bench):
    """Does not answer what became of a call, nor end when it is cancelled."""

    asked = False

    async def look_up(self, unknown):
        self.asked = True
        while VirtualClock().now_ms() < VirtualClock().start_ms + 3_600_000:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)


def test_a_provider_that_never_says_what_became_of_a_call_is_left_too(caplog):
    async def main():
        provider = NeverSays()
        s = await opened(provider, clock=VirtualClock()).__aenter__()
        future = s.submit(ask(seconds=1000))
        await asyncio.sleep(1)
        future.cancel()
        await asyncio.sleep(5)
        assert provider.asked
        await s.aclose()
        assert provider.closed
        assert VirtualClock().now_ms() <= VirtualClock().start_ms + 20_000
        await asyncio.sleep(7200)

    run(main())
    assert "asking a provider what became of a call goes on 10 s" in caplog.text


def test_who_waits_between_attempts_does_not_hear_that_nothing_was_sent():
    async def main():
        async with opened(Bench(), clock=VirtualClock(), retry_wait_s=lambda n: 60.0) as s:
            future = s.submit(ask(fail=RuntimeError("odd")))
            with pytest.raises(CallFailed):
                await future
            from scheduler.errors import ProviderOverloaded

            future = s.submit(ask(fail=ProviderOverloaded(500, "oops")))
            await asyncio.sleep(1)
        error = future.exception()
        assert isinstance(error, CallInterrupted)
        assert (error.attempts, error.cost_nusd) == (1, 100)
        assert "oops" in str(error)

    run(main())


class Streaming(Bench):
    async def stream(self, request, emit):
        for number in range(50):
            await emit(StreamEvent(str(number)))
        return Answer({"ok": True}, cost_nusd=60)


def test_draining_does_not_wait_for_the_reader_of_a_stream_who_finds_it_all_the_same():
    async def main():
        s = await opened(Streaming(), clock=VirtualClock()).__aenter__()
        stream = s.stream(ask())
        await asyncio.sleep(1)
        assert s.stats().running == 1

        await s.aclose(drain=True)

        assert VirtualClock().now_ms() == VirtualClock().start_ms + 1000
        assert s.stats().posted_nusd == 60
        assert [event.data async for event in stream] == [str(number) for number in range(50)]

    run(main())


@pytest.mark.parametrize(("timeout", "seconds"), [("10s", 10), (None, 1000), ("5m", 300)])
def test_draining_has_a_bound(timeout, seconds):
    async def main():
        s = await opened(clock=VirtualClock()).__aenter__()
        future = s.submit(ask(seconds=1000))
        await asyncio.sleep(0)
        await s.aclose(drain=True, **({} if timeout == "5m" else {"drain_timeout": timeout}))
        assert round((VirtualClock().now_ms() - VirtualClock().start_ms) / 1000) == seconds
        if timeout is None:
            assert future.result().cost_nusd == 60
        else:
            assert isinstance(future.exception(), CallInterrupted)

    run(main())


def test_a_drain_under_way_is_cut_short_by_whoever_is_in_more_haste():
    async def main(**haste):
        s = await opened(clock=VirtualClock()).__aenter__()
        future = s.submit(ask(seconds=1000))
        await asyncio.sleep(0)
        draining = asyncio.create_task(s.aclose(drain=True, drain_timeout=None))
        await asyncio.sleep(1)
        await s.aclose(**haste)
        await draining
        assert isinstance(future.exception(), CallInterrupted)
        return round((VirtualClock().now_ms() - VirtualClock().start_ms) / 1000)

    assert run(main()) == 1
    assert run(main(drain=True, drain_timeout="5s")) == 6


def test_a_program_stopped_while_it_drains_waits_for_nothing_more():
    async def draining(futures):
        async with asyncio.timeout(2), opened(clock=VirtualClock()) as s:
            futures.append(s.submit(ask(seconds=1000)))
            await asyncio.sleep(0)
            await s.aclose(drain=True, drain_timeout=None)

    async def stopped():
        futures = []
        with pytest.raises(TimeoutError):
            await draining(futures)
        assert isinstance(futures[0].exception(), CallInterrupted)
        assert round((VirtualClock().now_ms() - VirtualClock().start_ms) / 1000) == 2

    run(stopped())


def test_leaving_the_block_does_not_cut_a_drain_short():
    async def main():
        async with opened(clock=VirtualClock()) as s:
            future = s.submit(ask(seconds=100))
            await asyncio.sleep(0)
            draining = asyncio.create_task(s.aclose(drain=True))
            await asyncio.sleep(1)
        await draining
        assert future.result().cost_nusd == 60

    run(main())


@pytest.mark.parametrize("where", ["the client", "its scheduler", "nowhere"])
def test_leaving_a_clients_block_does_not_either(where):
    async def main():
        client = package.AsyncClient(provider=Bench(), clock=VirtualClock())
        async with client:
            s = await client.scheduler()
            future = s.submit(ask(seconds=100))
            await asyncio.sleep(1)
            if where != "nowhere":
                closing = client.aclose if where == "the client" else s.aclose
                draining = asyncio.create_task(closing(drain=True))
                await asyncio.sleep(1)
        if where == "nowhere":
            assert isinstance(future.exception(), CallInterrupted)
        else:
            await draining
            assert future.result().cost_nusd == 60

    run(main())


@pytest.mark.parametrize("error", [ValueError("v"), StopIteration(), ZeroDivisionError()])
def test_an_answer_whose_price_cannot_be_told_is_kept_and_its_ceiling_counts(error):
    async def answers(request):
        return {"ok": True}

    def cost(request, result):
        raise error

    async def main():
        provider = FunctionProvider("p", answers, quote="$0.0000001", cost=cost)
        async with opened(provider) as s:
            response = await s.run(ask())
            assert (response.body, response.cost_nusd) == ({"ok": True}, 100)
            assert response.is_estimated
            assert (s.stats().posted_nusd, s.stats().suspense_nusd) == (100, 0)

    asyncio.run(main())


# Other loops and threads


def elsewhere(main: Callable[[], object]) -> BaseException | None:
    """What comes of something done in another thread."""
    found: list[BaseException | None] = []

    def work():
        try:
            main()
            found.append(None)
        except BaseException as exc:
            found.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    return found[0]


USES = {
    "run": lambda s: s.run(ask()),
    "stream": lambda s: _awaited(lambda: s.stream(ask())),
    "submit": lambda s: _awaited(lambda: s.submit(ask())),
    "enqueue": lambda s: s.enqueue([ask()]),
    "map": lambda s: _first(s.map([ask()])),
    "define": lambda s: s.define(Budget("x", "$1")),
    "set_limit": lambda s: s.set_limit("team", "$2"),
    "pause": lambda s: s.pause("team"),
    "join": lambda s: s.join(),
}


async def _awaited(function):
    return function()


async def _first(answers):
    return await anext(answers)


@pytest.mark.parametrize("use", USES)
async def test_asking_in_another_loop_is_refused_and_nothing_is_sent(use):
    provider = Bench()
    async with opened(provider) as s:
        error = await asyncio.to_thread(elsewhere, lambda: asyncio.run(USES[use](s)))
        await asyncio.sleep(0.01)

        assert isinstance(error, WrongLoop)
        assert "scheduler.open()" in str(error)
        assert "BlockingScheduler" in str(error)
        assert (provider.sent, s.stats().queued, s.stats().budgets[0].paused) == ([], 0, False)


async def test_submitting_from_a_thread_without_a_loop_is_refused():
    provider = Bench()
    async with opened(provider) as s:
        error = await asyncio.to_thread(elsewhere, lambda: s.submit(ask()))
        assert isinstance(error, WrongLoop)
    assert provider.sent == []


async def test_a_function_may_be_called_from_another_loop():
    async def double(number):
        return 2 * number

    async with opened() as s:
        budgeted = s.budgeted(quote="$0.0000001", cost=0)(double)
        assert await asyncio.to_thread(lambda: asyncio.run(budgeted(21))) == 42


# Schedulers for code that blocks


@pytest.mark.asyncio_complains  # of the task whose future ends with the loop
def test_what_ends_a_blocking_schedulers_loop_ends_whoever_waits():
    provider = Bench()

    async def fatal(request):
        if request.body["n"] == 1:
            raise SystemExit(3)
        await asyncio.sleep(60)

    provider.before = fatal
    s = package.open(providers=provider, budgets=LIMIT)
    waiting = [s.submit(ask(n)) for n in (0, 1, 2)]
    for future in waiting:
        assert isinstance(future.exception(10), CallInterrupted | SchedulerClosed)
    s._thread.join(10)

    with pytest.raises(SchedulerClosed):
        s.run(ask())
    s.close()
    s.close()


def test_closing_a_blocking_scheduler_tells_those_who_were_sent_the_truth():
    s = package.open(providers=Bench(), budgets=LIMIT)
    begun = threading.Event()
    s.on(events.Admitted, lambda event: begun.set())
    future = s.submit(ask(seconds=60))
    assert begun.wait(10)
    s.close()

    assert isinstance(future.exception(10), CallInterrupted | SchedulerClosed)


# The store's thread


async def test_who_asks_the_file_and_leaves_with_their_loop_takes_its_thread_from_nobody(tmp_path):
    gate = threading.Event()

    def ask_and_leave(s):
        loop = asyncio.new_event_loop()
        asking = loop.create_task(s.store._run(lambda db: gate.wait(10)))
        loop.run_until_complete(asyncio.sleep(0.02))
        asking.cancel()
        loop.run_until_complete(asyncio.gather(asking, return_exceptions=True))
        loop.close()

    async with opened(store=SqliteStore(tmp_path / "s.db")) as s:
        await asyncio.to_thread(ask_and_leave, s)
        gate.set()
        assert (await asyncio.wait_for(s.run(ask(1)), 60)).body == {"answer": 1}


@pytest.mark.parametrize("error", [StopIteration(), BaseException("odd")])
async def test_whatever_is_raised_in_the_files_thread_reaches_who_asked(tmp_path, error):
    def work(db):
        raise error

    async with opened(store=SqliteStore(tmp_path / "s.db")) as s:
        with pytest.raises((RuntimeError, type(error))):
            await asyncio.wait_for(s.store._run(work), 60)
        assert (await asyncio.wait_for(s.run(ask(1)), 60)).body == {"answer": 1}
