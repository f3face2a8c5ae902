"""A provider with a rate limit, whose own credit runs out: nothing is refused twice, nothing fails.

You should see:

    parked: provider_credit (No credit is left (simulated).)
    paid the bill; one request tries, the others follow
    30 answers, attempts used up by it: 0
"""

import asyncio

from scheduler import Limits, ParkReason, Request, Scheduler, Simulated, events

is_empty = True


def purse(url: str, body: object, number: int) -> str | None:
    return "no_credit" if is_empty else None


async def main() -> None:
    global is_empty
    provider = Simulated(fail=purse, rpm=6000)
    provider.limits = Limits(requests_per_minute=6000)
    async with Scheduler(providers=provider) as s:
        parked = asyncio.Event()

        def tell(event: events.Parked) -> None:
            if event.shortfall.reason is ParkReason.PROVIDER_CREDIT and not parked.is_set():
                print(f"parked: {event.shortfall.reason} ({event.shortfall.words})")
                parked.set()

        s.on(events.Parked, tell)
        futures = [s.submit(Request.chat("sim-small", f"{n}", max_tokens=9)) for n in range(30)]
        await parked.wait()

        is_empty = False
        print("paid the bill; one request tries, the others follow")
        s.probe("simulated")  # without this within half a minute, then ever more rarely
        responses = await asyncio.gather(*futures)
        used_up = sum(response.attempts - 1 for response in responses)
        print(f"{len(responses)} answers, attempts used up by it: {used_up}")


asyncio.run(main())
