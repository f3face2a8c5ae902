"""A streamed answer: read as it is written, paid by its last word.

You should see:

    more than ten pieces: True
    the pieces are the answer: True
    output tokens: 40, its cost is what was billed: True
"""

import asyncio

from scheduler import Budget, Request, Scheduler, Simulated


async def main() -> None:
    provider = Simulated(latency=0.2, output_tokens=40)
    async with Scheduler(budgets=Budget("team", "$1"), providers=provider) as s:
        pieces = []
        async with s.stream(Request.chat("sim-small", "Tell me", max_tokens=60)) as events:
            async for event in events:
                delta = event.json()["choices"][0]["delta"]
                pieces.append(delta.get("content", ""))
            response = await events.response()  # the whole, as run() gives it
        print("more than ten pieces:", len(pieces) > 10)
        print("the pieces are the answer:", "".join(pieces) == response.text)
        tokens = response.usage.output_tokens if response.usage is not None else 0
        is_billed = response.cost_nusd == provider.billed_nusd
        print(f"output tokens: {tokens}, its cost is what was billed: {is_billed}")


asyncio.run(main())
