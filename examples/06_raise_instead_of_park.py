"""For those who want an error at once: the message LiteLLM users know, made exact.

You should see:

    Cost tracking budget exceeded: current usage 0% of limit 0.00001 USD (budget 'team': spent 0.00, reserved 0.00; this request needs up to 0.0000849; does not reset by itself, raise the limit)
    needed 84900 nano-dollars, limit 10000
"""

import asyncio

from scheduler import Budget, BudgetExceeded, Request, Scheduler, Simulated


async def main() -> None:
    budget = Budget("team", "$0.00001")
    async with Scheduler(budgets=budget, providers=Simulated(), on_exceeded="raise") as s:
        try:
            await s.run(Request.chat("sim-small", "Tell me everything", max_tokens=100))
        except BudgetExceeded as error:
            print(error)
            print(f"needed {error.needed} nano-dollars, limit {error.limit}")


asyncio.run(main())
