"""A web app with a budget for each user and one for all, kept by all its workers together.

Run it for real after ``pip install 'llm-budget-scheduler[web]' fastapi``:

    uvicorn --app-dir examples 14_shared_web_app:app --workers 2 --timeout-graceful-shutdown 10
    curl -X POST -H 'X-User: ann' 'localhost:8000/ask?q=Hi'
    scheduler budget set app '$1' --store /tmp/shared_web_app.db   # who waits goes on

It asks the service behind ``OPENAI_BASE_URL``, if that is set, and keeps its books in
``SCHEDULER_STORE``. Users are believed what their header says: authentication is yours to add.

You should see:

    ann: 10 answers, then 429, to try again later: True
    ann has $0.000028 left of $0.0001
    ben reads: for the next window or for a raise so nothing
    others: 26 answers, then 402
    cat waited, and after a raise of the limit for all: 200
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Header
from fastapi.responses import StreamingResponse

from scheduler import Budget, OpenAI, Request, Response, Scheduler, Simulated, StreamEvent
from scheduler.adapters.web import (
    HangUpMiddleware,
    add_error_handlers,
    begin,
    get_scheduler,
    lifespan,
)
from scheduler.money import format_usd
from scheduler.providers.simulated.bill import SIMULATED_PRICES

DEFAULT_STORE = Path(tempfile.gettempdir()) / "shared_web_app.db"


def make() -> Scheduler:
    """Each worker's scheduler; all of them have one file."""
    store = os.environ.get("SCHEDULER_STORE", f"sqlite:///{DEFAULT_STORE}")
    provider = OpenAI() if "OPENAI_BASE_URL" in os.environ else Simulated(output_tokens=10)
    return Scheduler(store, providers=provider, prices=SIMULATED_PRICES)


alive = lifespan(make, ensure=Budget("app", "$0.0003"))
app = FastAPI(lifespan=alive)
app.add_middleware(HangUpMiddleware)  # what waits for clients that are gone costs nothing
add_error_handlers(app)  # 402 and 429

Shared = Annotated[Scheduler, Depends(get_scheduler)]


async def payer(
    x_user: Annotated[str, Header(pattern="^[a-z0-9]{1,40}$")], s: Shared
) -> AsyncIterator[str]:
    """Have all that is asked for this user paid from their budget, made when they first come."""
    budget = Budget(f"user {x_user}", "$0.0001/24h", parent="app")
    await s.ensure(budget)
    with s.tag(budget=budget.name):
        yield budget.name


Payer = Annotated[str, Depends(payer)]


@app.post("/ask", dependencies=[Depends(payer)])
async def ask(q: str, s: Shared) -> dict[str, str | int]:
    """An answer now, or 402 or 429."""
    return told(await s.run(Request.chat("sim-small", q, max_tokens=20), on_exceeded="raise"))


@app.post("/wait", dependencies=[Depends(payer)])
async def wait(q: str, s: Shared) -> dict[str, str | int]:
    """An answer as soon as there is money for it, within 20 seconds."""
    return told(await s.run(Request.chat("sim-small", q, max_tokens=20, max_wait="20s")))


@app.post("/stream", dependencies=[Depends(payer)])
async def stream(q: str, s: Shared) -> StreamingResponse:
    """An answer as it is written, or 402 or 429."""
    request = Request.chat("sim-small", q, max_tokens=20)
    events = await begin(s.stream(request, on_exceeded="raise"))
    return StreamingResponse(words(events), media_type="text/plain")


@app.get("/budget")
async def left(name: Payer, s: Shared) -> dict[str, str]:
    """What the user has left, whichever worker it was spent by."""
    found = {status.budget.name: status for status in await s.store.budgets(s.now_ms())}
    (cap,) = found[name].caps
    return {"limit": format_usd(cap.limit or 0), "left": format_usd(cap.available or 0)}


def told(response: Response) -> dict[str, str | int]:
    return {"text": response.text, "cost": format_usd(response.cost_nusd), "worker": os.getpid()}


async def words(events: AsyncIterator[StreamEvent]) -> AsyncIterator[str]:
    async for event in events:
        for choice in event.json()["choices"]:
            yield choice["delta"].get("content") or ""


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with alive(app), httpx.AsyncClient(transport=transport, base_url="http://app") as web:

        async def post(path: str, user: str) -> httpx.Response:
            return await web.post(path, params={"q": "Hi"}, headers={"X-User": user})

        answers = 0
        while (answer := await post("/ask", "ann")).status_code == 200:
            answers += 1
        later = "Retry-After" in answer.headers
        print(f"ann: {answers} answers, then {answer.status_code}, to try again later: {later}")

        budget = (await web.get("/budget", headers={"X-User": "ann"})).json()
        print(f"ann has {budget['left']} left of {budget['limit']}")
        print("ben reads:", (await post("/stream", "ben")).text)

        answers = 0
        while (answer := await post("/ask", f"other{answers}")).status_code == 200:
            answers += 1
        print(f"others: {answers} answers, then {answer.status_code}")

        waiting = asyncio.create_task(post("/wait", "cat"))
        while not app.state.scheduler.stats().parked:
            await asyncio.sleep(0.01)
        await app.state.scheduler.set_limit("app", "$1")  # or from another terminal, see above
        print("cat waited, and after a raise of the limit for all:", (await waiting).status_code)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCHEDULER_STORE"] = f"sqlite:///{folder}/app.db"
        asyncio.run(main())
