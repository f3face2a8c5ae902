"""Many clients at once: each is answered once, and the budget holds."""

import asyncio
import json
import os

import pytest

from tests.server.conftest import ASKED

pytestmark = pytest.mark.filterwarnings("default")

CLIENTS = int(os.environ.get("GATEWAY_CLIENTS", "200"))


async def one(gateway, number):
    """One client with a connection of its own, every fourth of them with a stream."""
    body = json.dumps({**ASKED, "stream": number % 4 == 0, "user": f"u{number}"}).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "host: localhost", "connection: close",
            f"authorization: Bearer {gateway.token}", f"content-length: {len(body)}",
            "x-scheduler-wait: forever", "x-stainless-read-timeout: 3"]  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)
    came = await reader.read()
    writer.close()
    return came


async def test_all_are_answered_once_and_the_budget_holds(start, provider):
    made = start(provider, budget="$0.50")
    before = provider.billed()
    asking = [asyncio.create_task(one(made, number)) for number in range(CLIENTS)]
    most_usd = 0.5
    while await asyncio.to_thread(lambda: made.states().get("parked", 0)) < CLIENTS - 50:
        found = await asyncio.to_thread(made.budget)
        assert float(found["posted_usd"]) + float(found["reserved_usd"]) <= most_usd
    await asyncio.to_thread(made.cli, "budget", "set", "default", f"${CLIENTS}")
    answers = await asyncio.gather(*asking)

    assert [each[:12] for each in answers] == [b"HTTP/1.1 200"] * CLIENTS
    good = [b'"finish_reason":"stop"' in each for each in answers]
    assert all(good)
    after = provider.billed()
    assert after["calls"] - before["calls"] == CLIENTS
    billed_usd = float(after["billed_usd"]) - float(before["billed_usd"])
    found = await asyncio.to_thread(made.settled)
    assert float(found["posted_usd"]) == pytest.approx(billed_usd) == pytest.approx(CLIENTS / 100)
    await asyncio.to_thread(made.cli, "audit")
