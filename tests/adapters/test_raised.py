"""Whatever user code within a call raises: its caller gets the very object, and nobody waits on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import httpx
import httpx2
import pytest

from scheduler import FunctionProvider, Request
from scheduler.adapters.blocking import BlockingScheduler
from scheduler.errors import CallFailed
from tests.adapters.test_bytes import Pieces, chunk
from tests.adapters.test_http import ANSWER, BODY, URL, make_scheduler, wrapped

pytestmark = pytest.mark.anyio
STREAMED = BODY | {"stream": True}
FAMILIES = pytest.mark.parametrize("family", [httpx, httpx2])


class Mute(Exception):
    def __str__(self):
        raise ValueError("says nothing")

    __repr__ = __str__


class Silent(Mute):
    def __str__(self):
        raise KeyboardInterrupt

    __repr__ = __str__


class Rigid(Exception):
    """Takes no notes, and no copies of it can be made."""

    def __init__(self, one, two):
        super().__init__()

    def __copy__(self):
        raise TypeError

    __deepcopy__ = __reduce__ = __copy__

    def add_note(self, note):
        raise TypeError("frozen")


class Own(BaseException):
    pass


ERRORS = {
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "asyncio.CancelledError": asyncio.CancelledError,
    "futures.CancelledError": concurrent.futures.CancelledError,
    "futures.InvalidStateError": concurrent.futures.InvalidStateError,
    "asyncio.InvalidStateError": asyncio.InvalidStateError,
    "BaseException": Own,
    "group": lambda: ExceptionGroup("two", [ValueError(), StopIteration()]),
    "base group": lambda: BaseExceptionGroup("two", [Own(), asyncio.CancelledError()]),
    "mute": Mute,
    "silent": Silent,
    "rigid": lambda: Rigid(1, 2),
    "ours": lambda: CallFailed("an agent's inner call"),
    "TimeoutError": TimeoutError,
    "RecursionError": RecursionError,
}
EVERY = pytest.mark.parametrize("name", ERRORS)
ENDING = {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": lambda: SystemExit(3)}


def is_itself(exc, error):
    """Whether it is the very object, with the frame that raised it."""
    names, trace = [], exc.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return exc is error and names[-1] == "strike"


def striking(error):
    def strike(*args, **kwargs):
        raise error

    return strike


def raised_in_thread(function, *args, **kwargs):
    """What it raises: no future could carry it."""
    try:
        function(*args, **kwargs)
    except BaseException as exc:
        return exc
    return None


async def raised(awaitable):
    """As `raised_in_thread`, for what is awaited."""
    try:
        await awaitable
    except BaseException as exc:
        return exc
    return None


async def in_thread(function, *args, **kwargs):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(raised_in_thread(function, *args, **kwargs)), daemon=True
    )
    thread.start()
    async with asyncio.timeout(20):
        while thread.is_alive():
            await asyncio.sleep(0.005)
    return found[0]


class Strikes(httpx.Auth):
    """A way to log in that raises."""

    def __init__(self, error):
        self.error = error

    def sync_auth_flow(self, request):
        striking(self.error)()

    def async_auth_flow(self, request):
        striking(self.error)()


class Strikes2(Strikes, httpx2.Auth):
    pass


def options_of(way, error, family, sync):
    """A client that raises somewhere."""
    if way == "auth":
        return {"auth": (Strikes if family is httpx else Strikes2)(error)}
    if way == "transport":
        return {}
    if sync:
        return {"event_hooks": {way: [striking(error)]}}

    async def hook(_):
        striking(error)()

    return {"event_hooks": {way: [hook]}}


async def settles(s, paid=None):
    """Nothing runs any more, and nothing of it is free that may have been sent."""
    async with asyncio.timeout(20):
        while s.stats().running:
            await asyncio.sleep(0.005)
    stats = s.stats()
    assert stats.reserved_nusd == 0
    return stats


@EVERY
@FAMILIES
@pytest.mark.parametrize("way", ["transport", "auth", "request", "response"])
async def test_a_sync_client(name, family, way):
    error = ERRORS[name]()
    async with make_scheduler(concurrency=1) as s:
        answer = (
            striking(error) if way == "transport" else lambda r: family.Response(200, json=ANSWER)
        )
        client = wrapped(s, answer, family, True, **options_of(way, error, family, True))
        for _ in range(2):  # with a single place, which is free again
            assert is_itself(await in_thread(client.post, URL, json=BODY), error)
        stats = await settles(s)
        assert stats.suspense_nusd > 0 == stats.posted_nusd


@pytest.mark.parametrize("name", ENDING)
async def test_what_ends_a_program_in_a_sync_client(name):
    error = ENDING[name]()
    async with make_scheduler(concurrency=1) as s:
        client = wrapped(s, striking(error), sync=True)
        assert is_itself(await in_thread(client.post, URL, json=BODY), error)
        assert (await settles(s)).suspense_nusd > 0


@EVERY
@FAMILIES
@pytest.mark.parametrize("way", ["transport", "request", "response"])
async def test_an_async_client(name, family, way):
    error = ERRORS[name]()

    async def answer(request):
        if way == "transport":
            striking(error)()
        return family.Response(200, json=ANSWER)

    options = options_of(way, error, family, False)
    bare = family.AsyncClient(transport=family.MockTransport(answer), **options)
    async with make_scheduler(concurrency=1) as s, asyncio.timeout(20):
        client = wrapped(s, answer, family, **options)
        for each in (bare, client, client):
            exc = await raised(each.post(URL, json=BODY))
            if name == "StopIteration":  # no coroutine raises one
                assert isinstance(exc, RuntimeError)
                assert exc.__cause__ is error
            else:
                assert is_itself(exc, error)
        assert (await settles(s)).suspense_nusd > 0


@EVERY
async def test_an_async_client_in_another_loop(name):
    error = ERRORS[name]()

    async def answer(request):
        striking(error)()

    async with make_scheduler(concurrency=1) as s:
        client, found = wrapped(s, answer), []
        thread = threading.Thread(
            target=lambda: found.append(asyncio.run(raised(client.post(URL, json=BODY))))
        )
        thread.start()
        async with asyncio.timeout(20):
            while thread.is_alive():
                await asyncio.sleep(0.005)
        if name == "StopIteration":
            assert isinstance(found[0], RuntimeError)
        else:
            assert is_itself(found[0], error)
        assert (await settles(s)).suspense_nusd > 0


class Breaks(Pieces):
    """A stream that raises half-way, or at once."""

    def __init__(self, pieces, error):
        super().__init__(iter(pieces))
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self.pieces, None)
        return striking(self.error)() if piece is None else piece

    def __aiter__(self):
        return self

    async def __anext__(self):
        return self.__next__()


HALF = {name: make for name, make in ERRORS.items() if "Iteration" not in name}  # ends of it


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@FAMILIES
async def test_a_stream_half_way(name, sync, begun, family):
    error = ERRORS[name]()
    headers = {"content-type": "text/event-stream"}

    def answer(request):
        pieces = [chunk("a").encode()] * begun
        return family.Response(200, headers=headers, stream=Breaks(pieces, error))

    async with make_scheduler(concurrency=1, max_attempts=1) as s, asyncio.timeout(20):
        client = wrapped(s, answer, family, sync)

        def read_sync():
            with client.stream("POST", URL, json=STREAMED) as response:
                response.read()

        for _ in range(2):
            if sync:
                exc = await in_thread(read_sync)
            else:
                try:
                    async with client.stream("POST", URL, json=STREAMED) as response:
                        await response.aread()
                except BaseException as raised:
                    exc = raised
            assert is_itself(exc, error)
        assert (await settles(s)).suspense_nusd > 0


@EVERY
@pytest.mark.parametrize("way", ["call", "budgeted"])
async def test_an_async_function(name, way):
    error = ERRORS[name]()

    async def function(**kwargs):
        striking(error)()

    async with make_scheduler(concurrency=1) as s, asyncio.timeout(20):
        for _ in range(2):
            if way == "call":
                asked = s.call(function, model="m", messages=BODY["messages"], max_tokens=5)
            else:
                asked = s.budgeted(quote="$0.001")(function)()
            exc = await raised(asked)
            assert (
                isinstance(exc, RuntimeError) if name == "StopIteration" else is_itself(exc, error)
            )
        assert (await settles(s)).suspense_nusd > 0


@EVERY
def test_a_function_that_blocks(name):
    error = ERRORS[name]()
    with BlockingScheduler(make_scheduler(concurrency=1)) as s:
        for _ in range(2):
            exc = raised_in_thread(
                s.call, striking(error), model="m", messages=BODY["messages"], max_tokens=5
            )
            assert is_itself(exc, error)


@EVERY
async def test_a_function_provider(name):
    error = ERRORS[name]()

    async def answer(request):
        striking(error)()

    provider = FunctionProvider("f", answer, quote="$0.001")
    async with make_scheduler(providers=provider, concurrency=1) as s, asyncio.timeout(20):
        for _ in range(2):
            with pytest.raises(CallFailed):
                await s.run(Request({"x": 1}))
        assert (await settles(s)).suspense_nusd > 0


@EVERY
@pytest.mark.parametrize("sync", [False, True])
async def test_what_counts_tokens(name, sync):
    """It is called in the scheduler's loop, while its caller waits elsewhere."""
    from scheduler import PriceBook

    error = ERRORS[name]()
    prices = PriceBook({"m": "1/4"}, count_tokens=striking(error))
    async with make_scheduler(prices=prices, concurrency=1) as s, asyncio.timeout(20):
        client = wrapped(s, None, sync=sync)
        if sync:  # raised, or said in a refusal, but nobody waits for ever
            await in_thread(client.post, URL, json=BODY)
        else:
            await raised(client.post(URL, json=BODY))
        assert (await settles(s)).suspense_nusd == 0
