"""An endpoint that hands its clients' headers on lets nobody pay from another's budget."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from scheduler import Budget, Scheduler
from scheduler.adapters.web import TagMiddleware, scheduler_of
from scheduler.core.marks import within
from scheduler.errors import ConfigError

URL = "https://api.example.com/v1/chat/completions"
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
          "id": "1", "data": [1]}  # fmt: skip
BUDGETS = [Budget("ann", "$1"), Budget("bob", "$1"), Budget("bob-slow", "$1")]


def app_of(s, mark):
    """A naive proxy: it hands everything on."""
    wrapped = s.wrap(
        httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER)))
    )

    async def proxy(request):
        headers = {n: v for n, v in request.headers.items() if n not in ("host", "content-length")}
        answer = await wrapped.post(URL, content=await request.body(), headers=headers)
        return JSONResponse(answer.json(), answer.status_code)

    app = Starlette(routes=[Route("/chat", proxy, methods=["POST"])])
    app.add_middleware(TagMiddleware, tag=lambda http: mark)
    app.state.scheduler = s
    assert scheduler_of
    return app


async def asked(mark, headers):
    """Who paid, under which job, and the request as it was queued."""
    async with Scheduler(budgets=BUDGETS, prices={"m": "1/1"}) as s:
        seen = []
        prepare = s._intake.prepare

        def keep(request, on_exceeded):
            seen.append(request)
            return prepare(request, on_exceeded)

        s._intake.prepare = keep
        transport = httpx.ASGITransport(app_of(s, mark))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            answer = await client.post("/chat", json=BODY, headers=headers)
        paid = {row.name for row in await s.store.spend("budget") if row.attempts}
        jobs = {row.name for row in await s.store.spend("job") if row.attempts}
        return answer.status_code, paid, jobs, seen[0] if seen else None


@pytest.mark.parametrize("name", ["X-Scheduler-Budget", "x-scheduler-budget", "X-SCHEDULER-BUDGET"])
@pytest.mark.parametrize("value", ["ann", "ann,bob", "ann, bob-slow", "bob-slow"])
async def test_a_clients_header_does_not_beat_the_middlewares_budget(name, value):
    status, paid, _, _ = await asked({"budget": "bob"}, {name: value})

    assert (status, paid) == (200, {"bob"})


async def test_nor_does_it_beat_that_nothing_is_drawn_on():
    _, paid, _, request = await asked({"budget": ()}, {"X-Scheduler-Budget": "ann"})

    assert request.budget == ()
    assert "ann" not in paid


@pytest.mark.parametrize(("value", "paid_by"), [("bob-slow", "bob-slow"), ("ann", "bob"),
                                                ("bob-slow,ann", "bob"), ("nobody", "bob"), ("", "bob")])  # fmt: skip
async def test_it_chooses_among_those_it_was_given(value, paid_by):
    mark = {"budget": "bob", "client_budgets": ["bob-slow"]}
    _, paid, _, _ = await asked(mark, {"X-Scheduler-Budget": value})

    assert paid == {paid_by}


async def test_what_the_app_says_nothing_of_is_open():
    _, paid, jobs, request = await asked(
        {}, {"X-Scheduler-Budget": "ann", "X-Scheduler-Job": "j", "X-Scheduler-Priority": "idle"}
    )

    assert (paid, jobs, request.priority) == ({"ann"}, {"j"}, "idle")


async def test_a_job_that_was_said_stays():
    _, _, jobs, _ = await asked({"budget": "bob", "job": "bobs"}, {"X-Scheduler-Job": "anns"})

    assert jobs == {"bobs"}


TIGHTER = [
    ("priority", "normal", "interactive", "normal"), ("priority", "normal", "idle", "idle"),
    ("priority", 40, 3, 40), ("max_cost", "$0.50", "$9", "$0.50"), ("max_cost", 1, "$0.1", "$0.1"),
    ("deadline", "2m", "1h", "2m"), ("deadline", "2m", "10s", "10s"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said", "by_header", "holds"), TIGHTER)
async def test_a_header_makes_a_call_tighter_never_looser(name, said, by_header, holds):
    header = f"X-Scheduler-{name.replace('_', '-')}"
    _, _, _, request = await asked({"budget": "bob", name: said}, {header: str(by_header)})

    assert getattr(request, name) == holds


def test_a_deadline_that_is_an_instant_is_compared_with_a_span():
    now_ms = 1_000_000
    soon = datetime.fromtimestamp(1_000, UTC) + timedelta(seconds=5)

    assert within({"deadline": soon}, {"deadline": "1h"}, now_ms)["deadline"] is soon
    assert within({"deadline": soon}, {"deadline": "1s"}, now_ms)["deadline"] == "1s"
    assert within({"deadline": None}, {"deadline": "1s"}, now_ms)["deadline"] == "1s"


@pytest.mark.parametrize("headers", [{"X-Scheduler-Priority": "now!"}, {"X-Scheduler-Bugdet": "a"},
                                     {"X-Scheduler-Deadline": "soon"}, {"X-Scheduler-Max-Cost": "x"}])  # fmt: skip
async def test_nonsense_in_a_header_is_refused_and_costs_nothing(headers):
    mark = {"budget": "bob", "deadline": "1m", "max_cost": "$1", "priority": "normal"}
    status, paid, _, _ = await asked(mark, headers)

    assert (status, paid) == (400, set())


async def test_what_was_wrapped_with_a_budget_keeps_it():
    async with Scheduler(budgets=BUDGETS, prices={"m": "1/1"}) as s:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER))
        wrapped = s.wrap(httpx.AsyncClient(transport=transport), budget="bob")
        await wrapped.post(URL, json=BODY, headers={"X-Scheduler-Budget": "ann"})
        assert {row.name for row in await s.store.spend("budget") if row.attempts} == {"bob"}

        with s.tag(budget="bob-slow"):  # the app's own, nearer word
            await wrapped.post(URL, json=BODY, headers={"X-Scheduler-Budget": "ann"})
        assert {row.name for row in await s.store.spend("budget") if row.attempts} == {
            "bob",
            "bob-slow",
        }


async def test_a_mark_for_headers_is_none_of_a_request():
    async with Scheduler(budgets=BUDGETS, prices={"m": "1/1"}) as s:

        @s.budgeted(quote="$0.01", cost="$0.001", budget="bob", client_budgets=("ann",))
        async def work():
            return 1

        with s.tag(client_budgets=("ann",)):
            assert await work() == 1
        with pytest.raises(ConfigError, match="is not one of"):
            s.wrap(httpx.AsyncClient(), client_budget="ann")
