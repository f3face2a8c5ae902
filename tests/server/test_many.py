"""Many clients at once: each is answered once, and the budget holds."""

import asyncio
import contextlib
import json
import os
import socket

import pytest

from tests.server.conftest import ASKED, PRICE, Gateway

pytestmark = pytest.mark.filterwarnings("default")

CLIENTS = int(os.environ.get("GATEWAY_CLIENTS", "2000"))


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


@pytest.fixture
def many_files():
    """Each client is a file here, too."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CLIENTS + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"no process may open more than {hard} files here")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_all_are_answered_once_and_the_budget_holds(start, provider, many_files):
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


@pytest.mark.parametrize(("hard", "comes", "in_all"), [(4_000, 700, 700), (200, 246, 150)])
def test_more_come_than_a_shell_allows_at_first_and_those_who_fit_are_served(
    tmp_path, provider, hard, comes, in_all
):
    pytest.importorskip("resource")
    begin = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, {hard}));"
        " from scheduler.cli.app import main; sys.argv[0] = 'scheduler'; main()"
    )
    to = ("--base-url", provider.url, "--price", PRICE, "--budget", "$10")
    made = Gateway(tmp_path, to, program=("-c", begin)).start()
    asked = json.dumps(ASKED).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
        f"{made.token}\r\ncontent-length: {len(asked)}\r\n\r\n"
    )
    with contextlib.ExitStack() as lines:
        lines.callback(made.kill)
        connected = [
            lines.enter_context(socket.create_connection(("127.0.0.1", made.port), timeout=60))
            for _ in range(comes)
        ]
        answers = []
        for each in connected:
            try:
                each.sendall(head.encode() + asked)
                answers.append(each.recv(65536)[9:12])
            except ConnectionError:  # told before it had asked, which is lost then
                answers.append(b"503")

        assert answers[:in_all] == [b"200"] * in_all
        assert set(answers[in_all:]) <= {b"503"}
        assert made.process.poll() is None
