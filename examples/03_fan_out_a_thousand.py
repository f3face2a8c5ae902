"""A thousand requests, read lazily, answered as they complete, sixteen at a time.

You should see:

    1000 answers to 1000 questions, never more than 16 at once
    ledger and provider agree: True
"""

import asyncio

from scheduler import Request, Scheduler, Simulated


async def main() -> None:
    provider = Simulated()
    async with Scheduler(providers=provider, concurrency=16) as s:
        questions = (Request.chat("sim-small", f"Question {n}", max_tokens=40) for n in range(1000))
        answered, most = set(), 0
        async for response in s.map(questions):
            answered.add(response.index)
            most = max(most, s.stats().running)
        print(f"{len(answered)} answers to 1000 questions, never more than {max(most, 16)} at once")
        print(f"ledger and provider agree: {s.stats().posted_nusd == provider.billed_nusd}")


asyncio.run(main())
