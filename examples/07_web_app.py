"""A web app that awaits results: one budget for all, and an answer that says when to come back.

Run it for real with ``uvicorn --app-dir examples 07_web_app:app`` after
``pip install 'llm-budget-scheduler[web]'``.

You should see:

    200 {'text': 'cost no', 'cost_usd': '0.0000024'}
    402 budget 'app' is spent, retry after a while: True
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scheduler import Budget, BudgetExceeded, Request, Scheduler, Simulated


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    provider = Simulated(output_tokens=2)
    async with Scheduler(budgets=Budget("app", "$0.00003/day"), providers=provider) as s:
        app.state.scheduler = s
        yield


async def ask(http: HttpRequest) -> Response:
    question = Request.chat("sim-small", http.query_params["q"], max_tokens=2)
    try:
        # In a request handler nobody wants to wait until midnight.
        response = await http.app.state.scheduler.run(question, on_exceeded="raise")
    except BudgetExceeded as error:
        resets = error.resets_at
        headers = {} if resets is None else {"X-Resets-At": resets.isoformat()}
        return JSONResponse({"error": f"budget {error.budget!r} is spent"}, 402, headers)
    return JSONResponse({"text": response.text, "cost_usd": f"{response.cost.normalize():f}"})


app = Starlette(routes=[Route("/ask", ask)], lifespan=lifespan)


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://app") as web:
        answer = await web.get("/ask", params={"q": "Hi"})
        print(answer.status_code, answer.json())
        while answer.status_code == 200:
            answer = await web.get("/ask", params={"q": "And again, at some more length?"})
        later = "X-Resets-At" in answer.headers
        print(answer.status_code, f"{answer.json()['error']}, retry after a while: {later}")


if __name__ == "__main__":
    asyncio.run(main())
