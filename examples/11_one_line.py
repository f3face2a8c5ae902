"""Working code changes one line: its calls wait for money instead of crashing.

Needs ``pip install openai``; the provider is simulated, behind real HTTP.

You should see:

    2 answers, 4 calls parked: none failed, though the SDK's own timeout has passed
    6 answers of type ChatCompletion
    spent as billed: True
"""

import asyncio

import httpx
from openai import AsyncOpenAI

from scheduler import Budget, Scheduler
from scheduler.providers.simulated.server import running_server

PRICES = {"sim-small": "0.15/0.60"}  # in dollars a million tokens; real models are known


async def main(url: str) -> None:
    async with Scheduler(budgets=Budget("team", "2 requests, $1"), prices=PRICES) as s:
        client = AsyncOpenAI(base_url=url, api_key="any", timeout=0.5)
        client = s.wrap(client)  # this is the line

        async def ask(question: str) -> object:
            return await client.chat.completions.create(
                model="sim-small", messages=[{"role": "user", "content": question}], max_tokens=30
            )

        calls = [asyncio.create_task(ask(f"Question {n}")) for n in range(6)]
        while sum(call.done() for call in calls) < 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.6)  # longer than that timeout
        done = sum(call.done() for call in calls)
        parked = sum(s.stats().parked.values())
        print(
            f"{done} answers, {parked} calls parked: none failed, though the SDK's own timeout has passed"
        )

        await s.set_limit("team", "100 requests")
        answers = await asyncio.gather(*calls)
        print(f"{len(answers)} answers of type {type(answers[0]).__name__}")
        async with httpx.AsyncClient() as http:
            bill = (await http.get(url.removesuffix("/v1") + "/billed")).json()
        print(f"spent as billed: {s.stats().posted_nusd == bill['billed_nusd']}")


if __name__ == "__main__":
    with running_server("--latency", "10ms") as url:
        asyncio.run(main(url))
