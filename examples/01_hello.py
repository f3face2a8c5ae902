"""One answer, and what it cost.

No key is needed: the simulated provider answers. For the real thing use
``OpenAI()`` in its place and a model of theirs.

You should see:

    The answer has 12 words and cost $0.0000087.
"""

import asyncio

from scheduler import Request, Scheduler, Simulated


async def main() -> None:
    async with Scheduler(providers=Simulated(output_tokens=12)) as s:
        response = await s.run(Request.chat("sim-small", "Say hello", max_tokens=50))
        print(
            f"The answer has {len(response.text.split())} words and cost ${response.cost.normalize():f}."
        )


asyncio.run(main())
