"""A call breaks off: nobody knows what it cost. The provider is asked, or a person says.

You should see:

    lost: the connection broke off; $0.01 keeps counting
    the provider was asked: $0.004 posted, $0.00 unknown
    lost again: the connection broke off
    a person looked it up: $0.009 posted, $0.00 unknown
"""

import asyncio

from scheduler import Answer, Budget, FunctionProvider, Request, Scheduler, TransportFailed, Unknown
from scheduler.money import format_usd

billed: dict[str, int] = {}  # what the service knows, by question


async def call(request: Request) -> dict[str, str]:
    billed[request.body["n"]] = 4_000_000  # nano-dollars: it works, and bills, before it breaks off
    raise TransportFailed("the connection broke off")


async def look_up(unknown: Unknown) -> Answer | None:
    """Ask the service. OpenRouter's has an endpoint for it, by `unknown.provider_id`."""
    question = unknown.request.body["n"] if unknown.request else None
    if question != "first":
        return None  # it does not know, or not yet: it is asked again later
    return Answer({}, cost_nusd=billed[question])


def told(s: Scheduler) -> str:
    (cap,) = s.stats().budgets[0].caps
    return f"{format_usd(cap.posted)} posted, {format_usd(cap.suspense)} unknown"


async def main() -> None:
    service = FunctionProvider("service", call, quote="$0.01", look_up=look_up)
    async with Scheduler(budgets=Budget("team", "$1/day"), providers=service, max_attempts=1) as s:
        try:
            await s.run(Request({"n": "first"}))
        except TransportFailed as error:
            print(f"lost: {error.message}; {format_usd(error.cost_nusd)} keeps counting")
        while await s.suspended():
            await asyncio.sleep(0.05)
        print(f"the provider was asked: {told(s)}")

        try:
            await s.run(Request({"n": "second"}))
        except TransportFailed as error:
            print(f"lost again: {error.message}")
        (unknown,) = await s.suspended()
        await s.resolve(unknown, charge="$0.005")  # None: it cost nothing
        print(f"a person looked it up: {told(s)}")


asyncio.run(main())
