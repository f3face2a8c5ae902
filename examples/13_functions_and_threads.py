"""Any async function, quoted by its own rules; and a scheduler for code that blocks.

You should see:

    three reports, $0.006 of $0.01, a fourth has to wait: True
    ten answers from plain code, at most two at once
"""

import asyncio

import scheduler
from scheduler import Budget, Request, Scheduler, Simulated


async def functions() -> None:
    async with Scheduler(budgets=Budget("reports", "$0.01"), providers=Simulated()) as s:

        @s.budgeted(quote="$0.004", cost=lambda report: report["usd"])
        async def write_report(topic: str) -> dict[str, object]:
            await asyncio.sleep(0.01)  # any API, any number of calls
            return {"text": f"On {topic}", "usd": 0.002}

        for topic in ("bees", "rain", "owls"):
            await write_report(topic)
        spent = s.stats().posted_nusd / 1e9
        await s.set_limit("reports", "$0.008")
        fourth = asyncio.create_task(write_report("mice"))
        await asyncio.sleep(0.1)
        print(f"three reports, ${spent:g} of $0.01, a fourth has to wait: {not fourth.done()}")
        await s.set_limit("reports", "$1")
        await fourth


def plain_code() -> None:
    with scheduler.open(budgets="$1/day", providers=Simulated(), concurrency=2) as s:
        questions = (Request.chat("sim-small", f"Question {n}", max_tokens=9) for n in range(10))
        answers = [response.text for response in s.map(questions, ordered=True)]
    if len(answers) == 10:
        print("ten answers from plain code, at most two at once")


if __name__ == "__main__":
    asyncio.run(functions())
    plain_code()
