"""A budget that is spent: what does not fit is parked, and goes on when money is free again.

You should see:

    parked: window_spent, 2 waiting, money frees by itself: True
    goes on
    5 answers, all paid for
"""

import asyncio

from scheduler import Budget, Request, Scheduler, Simulated, events


async def main() -> None:
    # Each call may cost $0.0000345 and costs $0.0000135: three fit into two seconds.
    provider = Simulated(output_tokens=20)
    budget = Budget("demo", "$0.00007/2s")
    async with Scheduler(budgets=budget, providers=provider, concurrency=1) as s:

        def tell(event: events.Parked) -> None:
            lack = event.shortfall
            if not lack.is_brief:  # not merely held by calls that are about to end
                print(
                    f"parked: {lack.reason}, {event.waiting} waiting, "
                    f"money frees by itself: {lack.resumes_at_ms is not None}"
                )
                s.on(events.Unparked, lambda _: print("goes on"))

        s.on(events.Parked, tell)
        requests = [Request.chat("sim-small", "Hi", max_tokens=20) for _ in range(5)]
        answers = [response async for response in s.map(requests)]
        print(f"{len(answers)} answers, all paid for")


asyncio.run(main())
