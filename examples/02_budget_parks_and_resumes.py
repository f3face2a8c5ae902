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
        told: list[str] = []  # the first time is enough

        def parked(event: events.Parked) -> None:
            lack = event.shortfall
            if lack.is_brief or told:  # merely held by calls that are about to end
                return
            told.append("parked")
            frees = lack.resumes_at_ms is not None
            print(f"parked: {lack.reason}, {event.waiting} waiting, money frees by itself: {frees}")

        def goes_on(event: events.Unparked) -> None:
            if told == ["parked"]:
                told.append("goes on")
                print("goes on")

        s.on(events.Parked, parked)
        s.on(events.Unparked, goes_on)
        requests = [Request.chat("sim-small", "Hi", max_tokens=20) for _ in range(5)]
        answers = [response async for response in s.map(requests)]
        print(f"{len(answers)} answers, all paid for")


asyncio.run(main())
