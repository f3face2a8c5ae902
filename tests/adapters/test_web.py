"""The web room: apps of Starlette and FastAPI, asked over ASGI, their money looked at."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import socket
import threading
from typing import Annotated

import anyio
import httpx
import httpx2
import openai
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from scheduler import (
    Budget,
    BudgetExceeded,
    BudgetUnknown,
    ConfigError,
    CostTooHigh,
    DeadlineExceeded,
    HeldByCallers,
    KeyConflict,
    PriceUnknown,
    PromptTooLong,
    ProviderUnavailable,
    QueueFull,
    Request,
    RequestRejected,
    Scheduler,
    SchedulerClosed,
    Simulated,
    StoreError,
    WaitsForItself,
    WrongLoop,
)
from scheduler.adapters.web import (
    HangUpMiddleware,
    TagMiddleware,
    add_error_handlers,
    begin,
    get_scheduler,
    lifespan,
    refusal_of,
    scheduler_of,
)
from scheduler.errors import LedgerInconsistent, StoreForeign, StoreLocked, StoreTooNew
from scheduler.providers.simulated.bill import SIMULATED_PRICES
from scheduler.testing import START_MS, VirtualClock, run

pytestmark = pytest.mark.anyio
KINDS = pytest.mark.parametrize("kind", [Starlette, FastAPI], ids=["starlette", "fastapi"])
Shared = Annotated[Scheduler, Depends(get_scheduler)]
NOTHING, ONE, PLENTY = "$0", "$0.00004/day", "$1"  # one call reserves $0.00003375, costs less


class Now:
    """A clock that stands still."""

    def now_ms(self):
        return START_MS


def make(budgets=PLENTY, **options):
    options.setdefault("providers", Simulated(output_tokens=2))
    return Scheduler(budgets=budgets, **options)


def chat(**options):
    return Request.chat("sim-small", "Hi", max_tokens=20, **options)


@contextlib.asynccontextmanager
async def alive(app):
    """A client of an app whose life has begun, as a server begins it."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as web,
    ):
        yield web


async def ask(http):
    response = await scheduler_of(http).run(chat(), on_exceeded="raise")
    return JSONResponse({"text": response.text})


async def wait(http):
    return PlainTextResponse((await scheduler_of(http).run(chat())).text)


async def stream(http):
    """Begins, and waits, when its answer is on its way."""

    async def parts():
        async with scheduler_of(http).stream(chat()) as events:
            async for event in events:
                yield event.data

    return StreamingResponse(parts())


def app_of(kind=Starlette, scheduler=make, *, details=False, ensure=(), **routes):
    """An app with an endpoint for each name given."""
    app = kind(lifespan=lifespan(scheduler, ensure=ensure))
    for name, endpoint in (routes or {"ask": ask}).items():
        app.router.add_route(f"/{name}", endpoint, methods=["GET", "POST"])
    add_error_handlers(app, details=details)
    return app


async def until(condition):
    """Poll for what other tasks or threads are about to do."""
    with anyio.fail_after(60):
        while not condition():
            await asyncio.sleep(0.005)


def counted_nusd(s):
    (status,) = s.stats().budgets
    return status.caps[0].posted + status.caps[0].reserved


# A scheduler for an app


@KINDS
async def test_an_app_has_an_open_scheduler_as_long_as_it_lives(kind):
    app = app_of(kind)
    async with alive(app) as web:
        answer = await web.get("/ask")
        s = app.state.scheduler

        assert (answer.status_code, len(answer.json()["text"].split())) == (200, 2)
        assert counted_nusd(s) > 0
    assert s.is_closed
    async with alive(app) as web:  # and another one in its next life
        assert (await web.get("/ask")).status_code == 200


async def test_fastapi_gives_it_to_whoever_depends_on_it():
    app = FastAPI(lifespan=lifespan(make))

    @app.get("/ask")
    async def ask(q: str, s: Shared) -> str:
        return (await s.run(Request.chat("sim-small", q, max_tokens=2))).text

    async with alive(app) as web:
        assert (await web.get("/ask", params={"q": "Hi"})).status_code == 200


async def test_an_app_with_a_lifespan_of_its_own_enters_ours_within_it():
    @contextlib.asynccontextmanager
    async def life(app):
        async with lifespan(make)(app) as state:
            app.state.other = state["scheduler"]
            yield state

    app = Starlette(routes=[Route("/ask", ask)], lifespan=life)
    async with alive(app) as web:
        assert (await web.get("/ask")).status_code == 200
        assert app.state.other is app.state.scheduler


@pytest.mark.parametrize(
    ("ensure", "name"),
    [("$1", "default"), (Budget("app", "$1"), "app"), ([Budget("app", "$1")], "app")],
    ids=["a bare limit", "a budget", "budgets"],
)
async def test_budgets_are_made_once_and_a_restart_undoes_no_raise(tmp_path, ensure, name):
    def scheduler():
        return make((), store=tmp_path / "app.db")

    limits = []
    for _ in range(2):  # two lives, or two workers one after the other
        app = app_of(scheduler=scheduler, ensure=ensure)
        async with alive(app):
            s = app.state.scheduler
            limits += [each.budget.spec for each in s.stats().budgets if each.budget.name == name]
            await s.set_limit(name, "$5")

    assert limits == ["$1", "$5"]


def depends(app):
    @app.get("/ask")
    async def ask(s: Shared) -> None: ...


def handles(app):
    app.router.add_route("/ask", ask)


def tags(app):
    app.add_middleware(TagMiddleware, tag=lambda http: {})


@pytest.mark.parametrize("use", [depends, handles, tags])
async def test_an_app_whose_life_has_not_begun_says_so(use):
    app = FastAPI(lifespan=lifespan(make))
    use(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as web:
        with pytest.raises(ConfigError, match=r"^app: has no scheduler.*its life has not begun"):
            await web.get("/ask")


async def test_middleware_around_no_app_says_so():
    with pytest.raises(ConfigError, match="has no scheduler"):
        await Caller(TagMiddleware(app_of(), lambda http: {})).answer()


async def test_a_mounted_app_uses_the_scheduler_of_the_app_around_it():
    inner = Starlette(routes=[Route("/ask", ask)])
    app = app_of(around=ask)
    app.router.routes.append(Mount("/inner", inner))
    async with app.router.lifespan_context(app) as state:
        caller = Caller(app, "/inner/ask", state=dict(state))  # as servers hand it on
        await caller.answer()

        assert caller.status == 200
        assert counted_nusd(app.state.scheduler) > 0


@KINDS
async def test_two_apps_in_one_process_keep_money_and_tags_apart(kind):
    inner = app_of(kind, lambda: make(Budget("default", "$1")))

    async def both(http):
        seen = [scheduler_of(http).marks, inner.state.scheduler.marks]
        answer = await http.app.state.web.get("/ask")
        return JSONResponse([*seen, answer.status_code])

    outer = app_of(kind, lambda: make([Budget("default", "$1"), Budget("other", "$1")]), both=both)
    outer.add_middleware(TagMiddleware, tag=lambda http: {"budget": "other"})
    async with alive(inner) as to_inner, alive(outer) as web:
        outer.state.web = to_inner

        assert (await web.get("/both")).json() == [{"budget": "other"}, {}, 200]
        assert counted_nusd(inner.state.scheduler) > 0
        assert outer.state.scheduler.stats().posted_nusd == 0


async def test_who_depends_on_it_needs_no_thread_which_may_all_be_waiting():
    app = FastAPI(lifespan=lifespan(make))
    go = threading.Event()

    @app.get("/slow")
    def slow() -> None:
        go.wait(10)

    @app.get("/quick")
    async def quick(s: Shared) -> str:
        return "quick"

    limiter = anyio.to_thread.current_default_thread_limiter()
    most = limiter.total_tokens
    async with alive(app) as web:
        limiter.total_tokens = 1
        try:
            waiting = asyncio.create_task(web.get("/slow"))
            await until(lambda: limiter.borrowed_tokens)
            with anyio.fail_after(60):
                assert (await web.get("/quick")).json() == "quick"
        finally:
            limiter.total_tokens = most
            go.set()
        await waiting


# Refusals

SOON_MS = START_MS + 90_500
REFUSALS = [
    (BudgetExceeded("hush", 7_000, 1, 2, 3, SOON_MS), 429, "budget_exceeded", "91"),
    (BudgetExceeded("hush", 7_000, 1, 2, 3, START_MS - 1), 429, "budget_exceeded", "1"),
    (BudgetExceeded("hush", 7_000, 1, 2, 3), 402, "budget_exceeded", None),
    (ProviderUnavailable("hush", "provider_down", "hush", SOON_MS), 429, "provider_down", "91"),
    (ProviderUnavailable("hush", "provider_credit", "hush"), 429, "provider_credit", None),
    (CostTooHigh(7_000, 700), 402, "cost_too_high", None),
    (PromptTooLong(7_000, 700), 402, "prompt_too_long", None),
    (PriceUnknown("hush"), 402, "price_unknown", None),
    (DeadlineExceeded(7_000, "hush"), 429, "deadline_exceeded", None),
    (QueueFull(7_000, 700), 429, "queue_full", None),
    (HeldByCallers("hush", 7_000, 1, 2, 3), 402, "budget_exceeded", None),
    (WaitsForItself("hush"), 409, "waits_for_itself", None),
    (KeyConflict("hush"), 409, "key_conflict", None),
    (BudgetUnknown("hush", ("hush",)), 400, "budget_unknown", None),
    (SchedulerClosed("hush"), 503, "scheduler_closed", None),
    (WrongLoop("hush"), 503, "wrong_loop", None),
    (StoreError("hush"), 503, "store_error", None),
    (StoreLocked("hush"), 503, "store_locked", None),
    (StoreForeign("hush"), 503, "store_foreign", None),
    (StoreTooNew("hush", 7_000, 700), 503, "store_too_new", None),
    (LedgerInconsistent("hush"), 503, "ledger_inconsistent", None),
]


def leaves(*kinds):
    below = [leaf for kind in kinds for leaf in leaves(*kind.__subclasses__())]
    return {*kinds, *below}


def test_the_table_of_refusals_is_complete():
    told = {type(error) for error, *_ in REFUSALS}

    assert told == leaves(RequestRejected, StoreError) - {RequestRejected}


@KINDS
@pytest.mark.parametrize("details", [False, True], ids=["to strangers", "in detail"])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    REFUSALS,
    ids=[f"{code}-{status}-{after}" for _, status, code, after in REFUSALS],
)
async def test_a_refusal_has_its_status_and_a_time_where_there_is_one_and_tells_strangers_nothing(
    kind, details, error, status, code, retry_after
):
    async def fail(http):
        raise error

    async with alive(app_of(kind, lambda: make(clock=Now()), details=details, fail=fail)) as web:
        answer = await web.get("/fail")

        assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
        assert answer.json()["error"]["code"] == code
        assert (answer.json()["error"]["message"] == str(error)) == details
        for secret in ("hush", "7", "0.00"):
            assert details or secret not in answer.text


@pytest.mark.parametrize(
    ("budget", "status", "is_timed"), [(NOTHING, 402, False), (ONE, 429, True)]
)
async def test_a_budget_that_is_spent_refuses_and_what_is_hidden_is_in_the_log(
    budget, status, is_timed, caplog
):
    async with alive(app_of(scheduler=lambda: make(Budget("default", budget)))) as web:
        with caplog.at_level("INFO", "scheduler.web"):
            while (answer := await web.get("/ask")).status_code == 200:
                pass

        assert (answer.status_code, "retry-after" in answer.headers) == (status, is_timed)
        (record,) = caplog.records
        assert record.getMessage().startswith("'/ask': Cost tracking budget exceeded")
        assert "(budget 'default': spent" in record.getMessage()
        assert record.levelname == "INFO"


async def test_a_store_that_cannot_be_written_gives_503_and_an_error_in_the_log(caplog):
    async def broken(turn):
        raise StoreError("disk full")

    app = app_of()
    async with alive(app) as web:
        app.state.scheduler.store.turn = broken
        for _ in range(2):  # the one that meets it, and those that come later
            answer = await web.get("/ask")
            assert answer.status_code == 503
            assert "disk" not in answer.text
    told = [each.levelname for each in caplog.records if each.name == "scheduler.web"]
    assert told == ["ERROR", "ERROR"]


async def test_what_a_provider_says_is_the_apps_own_business():
    def fail(url, body, number):
        return "400"

    provider = Simulated(fail=fail)
    async with alive(app_of(scheduler=lambda: make(providers=provider))) as web:
        with pytest.raises(Exception, match="HTTP 400"):
            await web.get("/ask")


async def test_an_app_with_a_scheduler_of_its_own_making_is_answered_too():
    async def fail(http):
        raise BudgetExceeded("b", 1, 1, 0, 1, 1)

    app = Starlette(routes=[Route("/fail", fail)])
    add_error_handlers(app)
    async with alive(app) as web:
        answer = await web.get("/fail")

        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


# Wrapped SDKs


def connect(kind, http_kind, provider):
    """A client of OpenAI's SDK and, without a network, a provider behind it."""

    def answer(request):
        url, body = request.url.path, json.loads(request.content)
        if body["messages"][0]["content"] == "bad":
            return httpx2.Response(400, json={"error": {"message": "hush"}})
        reply = provider.reply(url, body)
        provider.settle(reply, url, body)
        return httpx2.Response(reply.status, headers=reply.headers, content=reply.encoded())

    http_client = http_kind(transport=httpx2.MockTransport(answer))
    return kind(api_key="sk-test", base_url="http://model/v1", http_client=http_client)


def sdk_app(budgets, provider, **options):
    """A FastAPI app that asks through wrapped clients: async, and sync in threads."""
    options |= {"providers": provider, "prices": SIMULATED_PRICES}
    app = FastAPI(lifespan=lifespan(lambda: make(budgets, **options)))
    add_error_handlers(app, also=(openai.APIStatusError,))
    said = {"model": "sim-small", "max_tokens": 20}

    @app.get("/async")
    async def ask(s: Shared, q: str = "Hi") -> str:
        client = s.wrap(connect(openai.AsyncOpenAI, httpx2.AsyncClient, provider))
        asked = [{"role": "user", "content": q}]
        answer = await client.chat.completions.create(messages=asked, **said)
        return answer.choices[0].message.content

    @app.get("/sync")
    def ask_sync(s: Shared, q: str = "Hi") -> str:
        client = s.wrap(connect(openai.OpenAI, httpx2.Client, provider))
        asked = [{"role": "user", "content": q}]
        answer = client.chat.completions.create(messages=asked, **said)
        return answer.choices[0].message.content

    return app


ways = pytest.mark.parametrize("way", ["/async", "/sync"])


@ways
async def test_a_wrapped_client_waits_for_money_in_an_endpoint_and_in_its_thread(way):
    provider = Simulated(output_tokens=20)
    app = sdk_app(ONE, provider)
    async with alive(app) as web:
        s = app.state.scheduler
        calls = [asyncio.create_task(web.get(way)) for _ in range(4)]
        await until(lambda: s.stats().parked.get("window_spent") == 3 and not s.stats().running)
        assert counted_nusd(s) == provider.billed_nusd <= 40_000

        await s.set_limit("default", PLENTY)
        answers = await asyncio.gather(*calls)

        assert [answer.status_code for answer in answers] == [200] * 4
        assert counted_nusd(s) == provider.billed_nusd
        assert provider.calls == 4


@ways
@pytest.mark.parametrize(("budget", "status"), [(NOTHING, 402), (ONE, 429)])
async def test_a_wrapped_client_that_is_refused_gives_an_answer_for_refusals(way, budget, status):
    app = sdk_app(budget, Simulated(output_tokens=20), on_exceeded="raise")
    async with alive(app) as web:
        while (answer := await web.get(way)).status_code == 200:
            pass

        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 429)
        assert answer.json()["error"]["code"] == "budget_exceeded"


@ways
async def test_an_error_of_the_provider_itself_is_no_refusal(way):
    app = sdk_app(PLENTY, Simulated())
    async with alive(app) as web:
        with pytest.raises(openai.BadRequestError, match="hush") as raised:
            await web.get(way, params={"q": "bad"})

    assert refusal_of(raised.value) is None
    assert refusal_of(ValueError()) is None


async def test_a_thread_that_waits_is_told_when_the_app_ends():
    app = sdk_app(NOTHING, Simulated())
    async with contextlib.AsyncExitStack() as stack:
        async with alive(app):
            web = await stack.enter_async_context(
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
            )
            waiting = asyncio.create_task(web.get("/sync"))
            await until(lambda: app.state.scheduler.stats().parked)

        answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "scheduler_closed")


# Tags


def seen_everywhere(kind):
    """An app that tells in which places of an answer what was tagged holds."""
    seen = {}

    def see(http, place):
        seen[place] = scheduler_of(http).marks.get("budget")

    async def endpoint(http):
        see(http, "endpoint")
        seen["task"] = None
        await asyncio.create_task(look(http, "task"))
        return PlainTextResponse("", background=BackgroundTask(see, http, "background"))

    def thread(http):
        see(http, "thread")
        return PlainTextResponse("", background=BackgroundTask(look, http, "background"))

    async def look(http, place):
        await asyncio.sleep(0)
        see(http, place)

    async def stream(http):
        async def parts():
            for n in range(3):
                await look(http, f"part {n}")
                yield "."

        return StreamingResponse(parts())

    def stream_thread(http):
        def parts():
            for n in range(3):
                see(http, f"part {n}")
                yield "."

        return StreamingResponse(parts())

    app = app_of(
        kind, lambda: make([Budget("default", PLENTY), Budget("ann", PLENTY)]),
        endpoint=endpoint, thread=thread, stream=stream, stream_thread=stream_thread,
    )  # fmt: skip
    return app, seen


def who(http):
    return {"budget": http.headers["x-user"]}


async def look_up(http):
    await asyncio.sleep(0)
    return {"budget": http.headers["x-user"]}


@KINDS
@pytest.mark.parametrize("tag", [who, look_up], ids=["at once", "looked up"])
@pytest.mark.parametrize("path", ["endpoint", "thread", "stream", "stream_thread"])
async def test_a_tag_holds_in_all_of_an_answer_and_no_longer(kind, tag, path):
    app, seen = seen_everywhere(kind)
    app.add_middleware(TagMiddleware, tag=tag)
    async with alive(app) as web:
        assert (await web.get(f"/{path}", headers={"X-User": "ann"})).status_code == 200

        assert set(seen.values()) == {"ann"}
        assert len(seen) >= 2
        assert app.state.scheduler.marks == {}


async def test_a_stream_that_is_begun_late_is_paid_by_whom_the_tag_says():
    budgets = [Budget("default", PLENTY), Budget("ann", PLENTY)]
    app = app_of(scheduler=lambda: make(budgets), stream=stream)
    app.add_middleware(TagMiddleware, tag=who)
    async with alive(app) as web:
        await web.get("/stream", headers={"X-User": "ann"})

        posted = {each.budget.name: each.caps[0].posted
                  for each in app.state.scheduler.stats().budgets}  # fmt: skip
        assert posted["ann"] > 0 == posted["default"]


async def test_many_users_at_once_are_not_taken_for_each_other():
    async def mine(http):
        marks = [scheduler_of(http).marks["budget"]]
        await asyncio.sleep(0.002)
        marks.append(scheduler_of(http).marks["budget"])
        return JSONResponse(marks)

    app = app_of(mine=mine)
    app.add_middleware(TagMiddleware, tag=who)
    async with alive(app) as web:
        users = [f"u{n}" for n in range(30)]
        answers = await asyncio.gather(*(web.get("/mine", headers={"X-User": u}) for u in users))

    assert [answer.json() for answer in answers] == [[user, user] for user in users]


async def test_a_user_has_a_budget_from_their_first_request_on():
    async def tag(http):
        user = http.headers["x-user"]
        await scheduler_of(http).ensure(Budget(user, ONE, parent="default"))
        return {"budget": user}

    app = app_of()
    app.add_middleware(TagMiddleware, tag=tag)
    async with alive(app) as web:
        answers = [await web.get("/ask", headers={"X-User": "ann"}) for _ in range(40)]

        assert {answer.status_code for answer in answers} == {200, 429}
        assert (await web.get("/ask", headers={"X-User": "ben"})).status_code == 200


@pytest.mark.parametrize("nothing", [lambda http: None, lambda http: {}])
async def test_a_tag_may_say_nothing(nothing):
    app = app_of()
    app.add_middleware(TagMiddleware, tag=nothing)
    async with alive(app) as web:
        assert (await web.get("/ask")).status_code == 200


@KINDS
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (HTTPException(401, "who are you?", {"WWW-Authenticate": "Basic"}), 401, "who are you?"),
        (BudgetExceeded("hush", 1, 1, 0, 1, 1), 429, "this has to wait"),
        (StoreError("hush"), 503, "this cannot be answered now"),
        (LookupError("mine"), 418, "mine"),
    ],
    ids=["of the framework", "a refusal", "the store", "of the app"],
)
async def test_what_a_tag_raises_is_answered_as_if_an_endpoint_had_raised_it(
    kind, error, status, text
):
    async def raised(http):
        raise error

    async def tag(http):
        if http.url.path == "/tagged":
            raise error
        return {}

    async def teapot(http, exc):
        return PlainTextResponse(str(exc), 418)

    app = app_of(kind, raised=raised, tagged=raised)
    app.add_exception_handler(LookupError, teapot)
    app.add_middleware(TagMiddleware, tag=tag)
    async with alive(app) as web:
        by_tag, by_endpoint = await web.get("/tagged"), await web.get("/raised")

        assert (by_tag.status_code, by_tag.content) == (status, by_endpoint.content)
        assert by_tag.headers == by_endpoint.headers
        assert text in by_tag.text


@pytest.mark.parametrize("error", [KeyError("x-user"), ConfigError("tag", "wrong")])
async def test_what_nobody_handles_is_an_error_of_the_app(error):
    def tag(http):
        raise error

    handled = []

    async def note(http, exc):
        handled.append(exc)
        return PlainTextResponse("", 500)

    app = app_of()
    app.add_exception_handler(Exception, note)
    app.add_middleware(TagMiddleware, tag=tag)
    async with alive(app) as web:
        with pytest.raises(type(error)):
            await web.get("/ask")
    assert handled == [error]  # by the one for what has passed all others, which raises it on


async def test_a_mark_that_does_not_exist_is_an_error_of_the_app():
    app = app_of()
    app.add_middleware(TagMiddleware, tag=lambda http: {"user": "ann"})
    async with alive(app) as web:
        with pytest.raises(ConfigError, match="'user' is not one of"):
            await web.get("/ask")


async def test_a_dependency_may_tag_as_well_also_for_threads_and_streams():
    app = FastAPI(lifespan=lifespan(lambda: make([Budget("default", PLENTY)])))
    add_error_handlers(app)
    seen = {}

    async def pays(x_user: Annotated[str, Header()], s: Shared):
        await s.ensure(Budget(x_user, PLENTY))
        with s.tag(budget=x_user):
            yield x_user

    dependencies = [Depends(pays)]

    @app.get("/endpoint", dependencies=dependencies)
    async def endpoint(s: Shared) -> None:
        seen["endpoint"] = s.marks.get("budget")

    @app.get("/thread", dependencies=dependencies)
    def thread(s: Shared) -> None:
        seen["thread"] = s.marks.get("budget")

    @app.get("/stream", dependencies=dependencies)
    async def stream(s: Shared) -> StreamingResponse:
        async def parts():
            await asyncio.sleep(0)
            seen["stream"] = s.marks.get("budget")
            yield "."

        return StreamingResponse(parts())

    async with alive(app) as web:
        for path in ("endpoint", "thread", "stream"):
            assert (await web.get(f"/{path}", headers={"X-User": path})).status_code == 200
        assert (await web.get("/endpoint")).status_code == 422  # who are you?
        assert app.state.scheduler.marks == {}

    assert seen == {"endpoint": "endpoint", "thread": "thread", "stream": "stream"}


# Streams


def streaming(budgets, provider=None):
    async def stream(http):
        events = await begin(scheduler_of(http).stream(chat(), on_exceeded="raise"))
        return StreamingResponse(event.data + "\n" async for event in events)

    return app_of(scheduler=lambda: make(budgets, providers=provider or Simulated()), stream=stream)


async def test_a_stream_that_is_refused_has_a_status_for_it():
    async with alive(streaming(NOTHING)) as web:
        assert (await web.get("/stream")).status_code == 402


async def test_a_stream_that_has_begun_is_whole_and_settled():
    provider = Simulated(output_tokens=12)
    app = streaming(PLENTY, provider)
    async with alive(app) as web:
        lines = (await web.get("/stream")).text.splitlines()

        deltas = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines]
        assert len("".join(deltas).split()) == 12
        await until(lambda: app.state.scheduler.stats().succeeded)
        assert counted_nusd(app.state.scheduler) == provider.billed_nusd


@pytest.mark.parametrize("reads", [0, 1])
async def test_a_stream_that_is_left_ends_its_call(reads):
    async with make(providers=Simulated(output_tokens=20, tokens_per_s=200)) as s:
        stream = s.stream(chat())
        events = await begin(stream)
        assert s.stats().running == 1
        for _ in range(reads):
            await anext(events)
            await events.aclose()
        if not reads:  # as when a client is gone before its answer begins
            del events, stream
            gc.collect()

        await until(lambda: not s.stats().running)
        assert s.stats().suspense_nusd > 0  # it may have been billed


async def test_a_stream_given_up_before_it_began_costs_nothing():
    async with make(NOTHING) as s:
        stream = s.stream(chat())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(begin(stream), 0.05)

        await until(lambda: s.stats().cancelled == 1)
        assert counted_nusd(s) == 0


# Websockets and hanging up, message by message


class Caller:
    """A client of an app, as its server stands between them."""

    def __init__(self, app, path="/ask", type="http", **scope):
        self.app, self.said, self.heard = app, asyncio.Queue(), []
        method = {"method": "GET", "http_version": "1.1"} if type == "http" else {}
        self.scope = {
            "type": type, "asgi": {"version": "3.0", "spec_version": "2.3"}, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [], "server": ("app", 80), "client": ("me", 1), **method, **scope,
        }  # fmt: skip

    def say(self, kind, **message):
        self.said.put_nowait({"type": kind, **message})

    def body(self, *parts):
        for part in parts:
            self.say("http.request", body=part, more_body=part is not parts[-1])

    def hang_up(self):
        self.say(f"{self.scope['type']}.disconnect", code=1001)

    async def hear(self, message):
        self.heard.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.hang_up()  # what servers say after an answer

    async def run(self):
        await self.app(self.scope, self.said.get, self.hear)

    async def answer(self):
        self.body(b"")
        await self.run()

    @property
    def status(self):
        return self.heard[0]["status"]

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.heard[1:]).decode()


def socket_app(error=None, *, details=False, **scope):
    """An app with a websocket that fails: before it is one, as one, and when it was one."""

    async def early(ws):
        raise error

    async def open(ws):
        await ws.accept()
        raise error

    async def late(ws):
        await ws.accept()
        await ws.close()
        raise error

    async def tells(ws):
        await ws.accept()
        await ws.send_json(scheduler_of(ws).marks)
        await ws.close()

    app = Starlette(
        routes=[WebSocketRoute(f"/{each.__name__}", each) for each in (early, open, late, tells)],
        lifespan=lifespan(make),
    )
    add_error_handlers(app, details=details)
    return app


async def over_websocket(app, path, **scope):
    caller = Caller(app, path, "websocket", subprotocols=[], **scope)
    caller.say("websocket.connect")
    async with app.router.lifespan_context(app):
        await caller.run()
    return caller


LATER, NEVER = BudgetExceeded("hush", 1, 1, 0, 1, 1), BudgetExceeded("hush", 1, 1, 0, 1)
SAYS_NO = {"websocket.http.response": {}}


@pytest.mark.parametrize(("error", "code"), [(LATER, 1013), (NEVER, 1008), (StoreError(), 1013)])
@pytest.mark.parametrize("path", ["/early", "/open"])
async def test_a_websocket_that_is_refused_is_closed_with_a_code_for_it(path, error, code):
    caller = await over_websocket(socket_app(error), path)

    accepted = [{"type": "websocket.accept"}] if path == "/open" else []
    assert [each["type"] for each in caller.heard[:-1]] == [each["type"] for each in accepted]
    closed = caller.heard[-1]
    assert (closed["type"], closed["code"]) == ("websocket.close", code)
    assert "sh" not in closed["reason"].replace("this", "")


@pytest.mark.parametrize("name", ["ü" * 99, "u" + "ü" * 99])  # one of them is cut within a letter
async def test_the_reason_of_a_closed_websocket_is_cut_to_what_fits_into_it(name):
    error = BudgetUnknown(name)
    caller = await over_websocket(socket_app(error, details=True), "/open")

    reason = caller.heard[-1]["reason"]
    assert str(error).startswith(reason)
    assert 120 < len(reason.encode()) <= 123


async def test_a_server_that_can_say_no_in_the_form_of_an_answer_does():
    caller = await over_websocket(socket_app(LATER), "/early", extensions=SAYS_NO)

    assert caller.heard[0]["type"] == "websocket.http.response.start"
    assert (b"retry-after", b"1") in caller.heard[0]["headers"]
    assert caller.status == 429


async def test_it_does_not_once_there_is_a_websocket():
    caller = await over_websocket(socket_app(LATER), "/open", extensions=SAYS_NO)

    assert [each["type"] for each in caller.heard] == ["websocket.accept", "websocket.close"]


async def test_a_websocket_that_was_closed_already_is_left_alone():
    caller = await over_websocket(socket_app(LATER), "/late")

    assert [each["type"] for each in caller.heard] == ["websocket.accept", "websocket.close"]


async def test_websockets_are_tagged_too():
    app = socket_app()
    app.add_middleware(TagMiddleware, tag=lambda ws: {"job": ws.url.path})
    app.add_middleware(HangUpMiddleware)
    caller = await over_websocket(app, "/tells")

    assert json.loads(caller.heard[1]["text"]) == {"job": "/tells"}
    await asyncio.sleep(0)
    assert "scheduler hang-up" not in {task.get_name() for task in asyncio.all_tasks()}


@contextlib.asynccontextmanager
async def served(app):
    """The port at which uvicorn serves an app, in this loop."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server.serve([listening]))
        await until(lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        await task


def virtual(test):
    """Run an async test in virtual time."""

    @functools.wraps(test)
    def wrapped(**arguments):
        run(test(**arguments))
        gc.collect()  # a future's forgotten exception would be reported here

    return wrapped


def patient(budget, *, latency=0, grace=None, **routes):
    """An app whose clients wait, in virtual time; with and without somebody who listens."""

    provider = Simulated(latency=latency, output_tokens=2)
    scheduler = make(Budget("default", budget), providers=provider, clock=VirtualClock())
    app = app_of(scheduler=lambda: scheduler, wait=wait, stream=stream, **routes)
    if grace is not None:
        options = {} if grace == "by default" else {"grace": grace}
        app.add_middleware(HangUpMiddleware, **options)
    return app, provider


@contextlib.asynccontextmanager
async def calling(app, path="/wait", **scope):
    """A client that has asked."""
    async with app.router.lifespan_context(app):
        caller = Caller(app, path, **scope)
        if caller.scope["type"] == "http":
            caller.body(b"")
        task = asyncio.create_task(caller.run())
        await asyncio.sleep(1)
        yield caller, task, app.state.scheduler
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@virtual
async def test_without_somebody_who_listens_a_call_is_paid_whose_client_has_gone():
    app, provider = patient(NOTHING)
    async with calling(app) as (caller, task, s):
        caller.hang_up()
        await asyncio.sleep(3600)
        assert s.stats().parked == {"larger_than_limit": 1}  # Starlette does not care

        await s.set_limit("default", PLENTY)
        await task

        assert counted_nusd(s) == provider.billed_nusd > 0


@virtual
@pytest.mark.parametrize(("grace", "seconds"), [("by default", 30), ("2m", 120), (0, 0)])
async def test_a_call_that_waits_is_given_up_and_costs_nothing_when_its_client_hangs_up(
    grace, seconds
):
    app, provider = patient(NOTHING, grace=grace)
    async with calling(app) as (caller, task, s):
        await asyncio.sleep(600)
        assert s.stats().parked == {"larger_than_limit": 1}
        clock_ms = s.now_ms()
        caller.hang_up()
        await task

        assert s.now_ms() == clock_ms + 1000 * seconds
        await asyncio.sleep(1)
        assert (s.stats().parked, s.stats().cancelled) == ({}, 1)
        await s.set_limit("default", PLENTY)
        await asyncio.sleep(60)
        assert (counted_nusd(s), provider.calls, caller.heard) == (0, 0, [])


@virtual
async def test_a_call_under_way_may_end_and_is_settled_at_what_it_cost():
    app, provider = patient(PLENTY, latency=20, grace="30s")
    async with calling(app) as (caller, task, s):
        caller.hang_up()
        await task

        assert s.stats().succeeded == 1
        assert counted_nusd(s) == provider.billed_nusd > 0
        assert s.stats().suspense_nusd == 0


@virtual
async def test_a_call_that_takes_longer_than_the_grace_keeps_counting_what_it_reserved():
    app, provider = patient(PLENTY, latency=20, grace="10s")
    async with calling(app) as (caller, task, s):
        caller.hang_up()
        await task
        await asyncio.sleep(1)

        assert s.stats().suspense_nusd == counted_nusd(s) > provider.billed_nusd


@virtual
async def test_who_stays_is_answered_however_long_it_takes():
    app, _ = patient(NOTHING, grace=0)
    async with calling(app) as (caller, task, s):
        await asyncio.sleep(86_400)
        await s.set_limit("default", PLENTY)
        await task

        assert (caller.status, len(caller.text.split())) == (200, 2)


@virtual
@pytest.mark.parametrize("grace", [None, "30s"], ids=["by itself", "with somebody who listens"])
async def test_a_stream_that_has_not_begun_notices_by_itself_and_costs_nothing(grace):
    app, provider = patient(NOTHING, grace=grace)
    async with calling(app, "/stream") as (caller, task, s):
        clock_ms = s.now_ms()
        caller.hang_up()
        await task
        await asyncio.sleep(1)

        assert s.now_ms() == clock_ms + 1000  # at once
        assert (s.stats().cancelled, counted_nusd(s), provider.calls) == (1, 0, 0)


NEWER = {"version": "3.0", "spec_version": "2.4"}  # of such streams learn it when they send


@virtual
async def test_servers_of_whom_streams_do_not_ask_are_listened_to():
    app, _ = patient(NOTHING, grace="30s")
    async with calling(app, "/stream", asgi=NEWER) as (caller, task, s):
        caller.hang_up()
        await task
        await asyncio.sleep(1)

        assert (s.stats().cancelled, counted_nusd(s)) == (1, 0)


@virtual
async def test_so_are_streams_that_have_begun_to_answer():
    async def slow(http):
        async def parts():
            yield "one moment"
            await scheduler_of(http).run(chat())

        return StreamingResponse(parts())

    app, _ = patient(NOTHING, grace="30s", slow=slow)
    async with calling(app, "/slow", asgi=NEWER) as (caller, task, s):
        assert caller.text == "one moment"
        caller.hang_up()
        await task
        await asyncio.sleep(1)

        assert (s.stats().cancelled, counted_nusd(s)) == (1, 0)


@virtual
async def test_what_is_left_to_do_after_an_answer_is_not_cut_off():
    done = []

    async def later():
        await asyncio.sleep(3600)
        done.append(True)

    async def quick(http):
        return PlainTextResponse("", background=BackgroundTask(later))

    async def slow(http):  # its client is gone by then, but the grace is not over
        await asyncio.sleep(20)
        return PlainTextResponse("", background=BackgroundTask(later))

    app, _ = patient(PLENTY, grace="30s", quick=quick, slow=slow)
    async with calling(app, "/quick") as (_, task, _):
        await task
    scheduler = make(clock=VirtualClock())
    app.router.lifespan_context = lifespan(lambda: scheduler)
    async with calling(app, "/slow") as (caller, task, _):
        caller.hang_up()
        await task

    assert done == [True, True]


@virtual
async def test_a_websocket_whose_client_hangs_up_while_it_waits_is_given_up():
    async def wait(ws):
        await ws.accept()
        for _ in range(2):
            assert await ws.receive_text() == "go on"
        await scheduler_of(ws).run(chat())

    app, provider = patient(NOTHING, grace="30s")
    app.router.routes.append(WebSocketRoute("/socket", wait))
    async with calling(app, "/socket", type="websocket", subprotocols=[]) as (caller, task, s):
        caller.say("websocket.connect")
        caller.say("websocket.receive", text="go on")
        caller.say("websocket.receive", text="go on")
        await asyncio.sleep(60)
        assert s.stats().parked == {"larger_than_limit": 1}
        caller.hang_up()
        await task
        await asyncio.sleep(1)

        assert (s.stats().cancelled, provider.calls) == (1, 0)


@virtual
async def test_a_body_is_read_no_faster_than_the_app_reads_it_and_arrives_whole():
    left = []

    async def upload(http):
        await asyncio.sleep(10)
        left.append(caller.said.qsize())
        return PlainTextResponse(await http.body())

    app, _ = patient(PLENTY, grace="30s", upload=upload)
    async with app.router.lifespan_context(app):
        caller = Caller(app, "/upload", method="POST")
        caller.body(b"a", b"b", b"c", b"d")
        await caller.run()

    assert (left, caller.text) == ([3], "abcd")  # one of four was read ahead


@virtual
async def test_an_error_while_reading_is_the_apps_to_answer():
    async def upload(http):
        return PlainTextResponse(await http.body())

    app, _ = patient(PLENTY, grace="30s", upload=upload)
    async with app.router.lifespan_context(app):
        caller = Caller(RequestBodyLimitMiddleware(app, max_body_size=3), "/upload", method="POST")
        caller.body(b"abc", b"def")
        await caller.run()

    assert caller.status == 413


@virtual
async def test_an_app_that_asks_whether_its_client_is_there_is_told():
    told = []

    async def asks(http):
        await http.body()
        for _ in range(3):
            await asyncio.sleep(2)
            told.append(await http.is_disconnected())
        told.append((await http.receive())["type"])
        return PlainTextResponse("")

    app, _ = patient(PLENTY, grace="30s", asks=asks)
    async with calling(app, "/asks") as (caller, task, _):
        await asyncio.sleep(2)
        caller.hang_up()
        await task

    assert told == [False, True, True, "http.disconnect"]


async def test_a_thread_cannot_be_cancelled_but_what_it_asks_can_be_bounded():
    provider = Simulated()
    app = sdk_app(NOTHING, provider)
    app.add_middleware(HangUpMiddleware, grace=0)
    app.add_middleware(TagMiddleware, tag=lambda http: {"max_wait": "300ms"})
    async with app.router.lifespan_context(app):
        s = app.state.scheduler
        caller = Caller(app, "/sync")
        caller.body(b"")
        task = asyncio.create_task(caller.run())
        await until(lambda: s.stats().parked)
        caller.hang_up()
        await task

        assert (s.stats().expired, s.stats().cancelled) == (1, 0)
        assert (counted_nusd(s), provider.calls) == (0, 0)


async def test_a_real_server_tells_who_has_hung_up():
    provider = Simulated()
    app = app_of(scheduler=lambda: make(NOTHING, providers=provider), wait=wait)
    app.add_middleware(HangUpMiddleware, grace=0)
    app.add_middleware(TagMiddleware, tag=lambda http: {})
    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: app\r\n\r\n")
        s = app.state.scheduler
        await until(lambda: s.stats().parked)
        writer.close()
        await until(lambda: s.stats().cancelled)

        assert (counted_nusd(s), provider.calls, s.stats().parked) == (0, 0, {})


async def test_what_is_no_connection_passes_through_untouched():
    seen = []

    async def inner(*told):
        seen.append(told)

    told = ({"type": "lifespan"}, object(), object())
    await HangUpMiddleware(inner)(*told)
    await TagMiddleware(inner, who)(*told)

    assert seen == [told, told]


def test_a_grace_that_is_no_time_is_told_where_it_is_given():
    with pytest.raises(ConfigError, match="grace"):
        HangUpMiddleware(None, grace="soon")
