"""What the bodies of all calls may take at once: a rule, and a gateway to which many large ones are sent."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.server.bodies import FREE_BYTES, LARGE_BYTES, Bodies
from scheduler.server.line import Line
from scheduler.server.refusals import Unserved
from tests.server.conftest import MODEL, Gateway, wait_for

MB = 1024 * 1024


@pytest.mark.anyio
async def test_large_ones_may_take_half_and_shut_out_no_small_one():
    bodies = Bodies(200 * MB)
    await bodies.take(60 * MB)

    with pytest.raises(Unserved) as refused:
        await bodies.take(60 * MB, 0)
    for _ in range(100):
        await bodies.take(LARGE_BYTES, 0)  # not above it

    assert refused.value.status == 503
    assert (b"retry-after", b"5") in refused.value.headers
    assert "62,914,560 of the 104,857,600" in refused.value.problem
    assert "nothing was sent or spent" in refused.value.problem
    for _ in range(40):
        await bodies.take(LARGE_BYTES, 0)
    with pytest.raises(Unserved, match="and bodies of calls"):
        await bodies.take(LARGE_BYTES, 0)
    await bodies.take(FREE_BYTES, 0)  # a connection takes as much


@pytest.mark.anyio
async def test_who_waits_goes_in_turn_when_others_give_back():
    bodies = Bodies(200 * MB)
    await bodies.take(90 * MB)
    came = []

    async def wait(size):
        await bodies.take(size * MB)
        came.append(size)

    tasks = [asyncio.create_task(wait(size)) for size in (50, 40, 5)]
    await asyncio.sleep(0)
    assert came == []  # the small one of them too: nobody passes
    bodies.give_back(90 * MB)
    await asyncio.gather(*tasks)

    assert came == [50, 40, 5]
    with pytest.raises(Unserved):
        await bodies.take(6 * MB, 0)


@pytest.mark.anyio
async def test_who_gives_up_lets_those_behind_it_in():
    bodies = Bodies(200 * MB)
    await bodies.take(60 * MB)
    first = asyncio.create_task(bodies.take(60 * MB))
    await asyncio.sleep(0)
    second = asyncio.create_task(bodies.take(40 * MB))
    await asyncio.sleep(0)

    first.cancel()
    await second

    with pytest.raises(asyncio.CancelledError):
        await first
    bodies.give_back(60 * MB)
    await bodies.take(60 * MB, 0)


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 4)), max_size=40))
def test_no_more_is_taken_than_may_be_and_all_is_given_back(asked):
    async def run():
        bodies, held = Bodies(200 * MB), []
        for size, gives_back in asked:
            try:
                await bodies.take(size * MB, 0)
                held.append(size)
            except Unserved:
                assert size
            assert sum(held) <= 200
            assert sum(each for each in held if each > 1) <= 100
            for _ in range(min(gives_back, len(held))):
                bodies.give_back(held.pop(0) * MB)
        for each in held:
            bodies.give_back(each * MB)
        await bodies.take(100 * MB, 0)  # nothing is lost

    asyncio.run(run())


@pytest.mark.anyio
async def test_one_whose_length_nobody_says_counts_as_the_largest_until_it_is_known():
    bodies = Bodies(200 * MB)
    pieces = [b"x" * 40_000] * 3
    seen = []

    async def receive():
        piece = pieces.pop()
        seen.append(bodies._taken[False])
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        raise AssertionError(message)

    line = Line({"headers": []}, receive, send, bodies)
    assert len(await line.body()) == 120_000
    assert seen == [0, 0, 64 * MB]
    assert bodies._taken == {False: 120_000, True: 0}
    line.let_go()
    line.let_go()
    assert bodies._taken == {False: 0, True: 0}


# The command, with less patience than it has, so that a test need not have it.
HASTY = """
import sys
from scheduler.server import bodies
bodies.Bodies.take.__defaults__, sys.argv[0] = (0.2,), "scheduler"
from scheduler.cli.app import main
main()
"""


def large(text_mb):
    turns = [{"role": "user", "content": "x" * (text_mb * MB)}]
    return json.dumps({"model": MODEL, "max_tokens": 5, "messages": turns}).encode()


@pytest.mark.filterwarnings("default")
def test_many_large_ones_are_told_to_come_again_and_small_ones_are_answered(
    start, provider, tmp_path
):
    # What is large costs more than there is, and its client waits for that.
    options = ("--base-url", provider.url, "--price", f"{MODEL}=1/1", "--budget", "$1")
    made = Gateway(tmp_path, options, store="memory://", program=("-c", HASTY))
    start.running.append(made)
    made.start()
    body = large(40)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-scheduler-wait: forever\r\n"
        f"authorization: Bearer {made.token}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    held = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(6)]
    for each in held:  # 240 of the 256 MB
        each.sendall(head + body)

    refused = made.ask(body)
    small = made.ask()

    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert "x-should-retry" not in refused.headers  # an SDK may
    assert refused.error["code"] == "bodies_too_large"
    assert "nothing was sent or spent" in refused.error["message"]
    assert small.status == 200
    for each in held:
        each.close()  # they are given up, and so is what they took
    again = wait_for(
        lambda: (told := made.ask(body, x_scheduler_wait="0")).status != 503 and told, "room", 60
    )
    assert again.status == 402
    assert again.error["code"] != "bodies_too_large"
