"""Urgent requests go first, however long the others have waited.

You should see:

    interactive
    normal
    batch
    idle
"""

import asyncio

from scheduler import Request, Scheduler, Simulated


async def main() -> None:
    async with Scheduler(providers=Simulated(), concurrency=1) as s:
        words = ["idle", "batch", "normal", "interactive"]
        requests = [Request.chat("sim-small", word, priority=word, max_tokens=5) for word in words]
        futures = [s.submit(request) for request in requests]
        for future in asyncio.as_completed(futures):
            response = await future
            print(words[[f.done() and f.result() is response for f in futures].index(True)])


asyncio.run(main())
