"""Clients that hang up, gateways that are stopped or killed: the ledger stays right."""

import json
import signal
import socket
import time

import pytest

from tests.server.conftest import ASKED, wait_for

pytestmark = pytest.mark.filterwarnings("default")


def question(gateway, body=ASKED, **headers):
    content = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: localhost",
             f"authorization: Bearer {gateway.token}", f"content-length: {len(content)}",
             *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def asking(gateway, body=ASKED, **headers):
    """A client that has asked, and has heard nothing yet."""
    line = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
    line.sendall(question(gateway, body, **headers))
    return line


def heard(line):
    """One whole answer."""
    came = b""

    def more():
        piece = line.recv(65536)
        assert piece, came
        return came + piece

    while b"\r\n\r\n" not in came:
        came = more()
    head, _, rest = came.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if length:
        size = len(came) - len(rest) + int(length)
        while len(came) < size:
            came = more()
    while not length and not came.endswith(b"\r\n0\r\n\r\n"):
        came = more()
    return came


def running(gateway, count=1):
    wait_for(lambda: gateway.states().get("running") == count, f"{count} running")


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_while_parked_costs_nothing(start, provider, stream):
    made = start(provider, budget="$0.05")
    received = provider.billed()["received"]
    line = asking(made, {**ASKED, "stream": stream}, x_scheduler_wait="forever")
    wait_for(lambda: made.states().get("parked") == 1, "it to be parked")
    line.close()

    wait_for(lambda: made.states().get("cancelled") == 1, "it to be given up")
    made.cli("budget", "set", "default", "$10")
    assert made.ask().status == 200
    assert provider.billed()["received"] == received + 1
    assert float(made.settled()["posted_usd"]) == 0.01


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_while_it_runs_settles_at_what_it_cost(start, held, stream):
    made = start(held)
    line = asking(made, {**ASKED, "stream": stream})
    running(made)
    line.close()
    time.sleep(0.2)  # in which it is seen to have left; the outcome is the same if it was not
    held.go_on()

    wait_for(lambda: made.states().get("succeeded") == 1, "it to be settled")
    assert float(made.budget()["posted_usd"]) == 0.01
    assert float(made.budget()["reserved_usd"]) == 0


def test_killed_with_calls_parked_and_under_way(start, held):
    made = start(held, budget="$0.25")
    lines = [asking(made, x_scheduler_wait="forever") for _ in range(5)]
    wait_for(lambda: made.states().get("running") == 2, "two to run")
    wait_for(lambda: made.states().get("parked") == 3, "three to be parked")
    made.kill()
    for line in lines:
        line.close()
    held.go_on()
    wait_for(lambda: held.billed()["calls"] == held.before["calls"] + 2, "both to be billed")

    again = start(held, budget="$0.25")
    wait_for(lambda: "parked" not in again.states() or not again.states()["parked"], "none parked")
    found = again.budget()
    assert float(found["posted_usd"]) + float(found["reserved_usd"]) >= float(
        held.billed()["billed_usd"]
    ) - float(held.before["billed_usd"])
    assert float(found["reserved_usd"]) == pytest.approx(0.2)  # nobody knows what became of two
    again.cli("audit")
    assert again.ask(x_scheduler_wait="0").status in (402, 429)
    again.cli("budget", "set", "default", "$1")
    assert again.ask().status == 200


def test_told_to_stop_it_finishes_what_runs_and_tells_the_others(start, held):
    made = start(held, budget="$0.15")
    under_way = asking(made)
    running(made)
    parked = asking(made, x_scheduler_wait="forever")
    wait_for(lambda: made.states().get("parked") == 1, "one to be parked")
    made.process.send_signal(signal.SIGTERM)

    refused = heard(parked)
    late = asking(made)
    assert heard(late).startswith(b"HTTP/1.1 503")
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"stopping" in refused
    held.go_on()
    assert heard(under_way).startswith(b"HTTP/1.1 200")
    said = made.end()
    assert made.process.returncode == 0
    assert "answered 1 call, $0.01 spent" in said
    for line in (under_way, parked, late):
        line.close()


def test_told_twice_it_cuts_short_and_keeps_counting(start, held):
    made = start(held)
    line = asking(made)
    running(made)
    made.process.send_signal(signal.SIGTERM)
    assert any(
        "again to cut them short" in said for said in made.process.stderr
    )  # two at once would be one
    made.process.send_signal(signal.SIGTERM)

    assert heard(line).startswith(b"HTTP/1.1 503")
    line.close()
    made.end()
    assert float(made.budget()["reserved_usd"]) == pytest.approx(0.1)


def test_two_gateways_share_the_budget_of_one_file(start, held):
    one = start(held, budget="$0.25")
    two = start(held, budget="$0.25")
    lines = [asking(each, x_scheduler_wait="forever") for each in (one, two, one, two)]
    wait_for(lambda: one.states().get("running", 0) >= 2, "two to run")

    found = one.budget()
    assert float(found["posted_usd"]) + float(found["reserved_usd"]) <= 0.25
    held.go_on()
    assert [heard(line)[:12] for line in lines] == [b"HTTP/1.1 200"] * 4
    wait_for(lambda: float(two.budget()["posted_usd"]) == pytest.approx(0.04), "four to be settled")
    two.cli("audit")
    for line in lines:
        line.close()
