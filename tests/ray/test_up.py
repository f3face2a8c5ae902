"""``scheduler ray up`` on a real cluster: processes and nodes die, money runs out, it is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from scheduler.budget import Budget
from tests.postgres.server import PASSWORD
from tests.processes.harness import server, wait_for
from tests.ray.harness import KEY

pytestmark = pytest.mark.timeout(300)


def everybody(count):
    return sorted(f"r{n}" for n in range(count))


def test_a_process_and_a_node_die_mid_batch_and_nothing_is_lost_or_overspent(place):
    count, limit_nusd = 200, 1_600_000
    place.base.define(Budget("default", f"${limit_nusd / 1e9:.7f}"))
    place.submit(count)
    up = place.up("--workers", "4", "-c", "3", "--until-idle", "--json")
    place.wait_for_answers(15)
    wait_for(lambda: "4 of 4 up" in place.said(up), "all of them")

    os.kill(place.pids()[0], signal.SIGKILL)
    again_at_most = 3
    wait_for(lambda: "is up again" in place.said(up), "another process")
    place.check_books()
    *_, node = re.findall(r"up \(\S+/(\w+): \d", place.said(up))  # as it is now
    place.nodes.kill(node)
    again_at_most += 4 * 3
    wait_for(lambda: "4 of 4 up" in place.said(up).rpartition("is lost")[2], "a place elsewhere")

    def is_spent():
        posted, reserved = place.counted()
        assert posted + reserved <= limit_nusd
        return "is spent for now" in place.said(up) or "exceeds" in place.said(up)

    wait_for(is_spent, "the budget to be spent")
    assert place.provider.billed_nusd() <= limit_nusd
    place.base.define(Budget("default", "$1"))
    out, _ = up.communicate(timeout=90)

    said = place.said(up)
    assert up.returncode == 0, said
    told = json.loads(out)
    assert told["restarts"] >= 2, said
    assert place.base.states() == {"succeeded": count}
    assert place.collect() == everybody(count)
    assert count <= place.provider.bill()["calls"] <= count + again_at_most
    place.check_books()


def test_told_to_stop_workers_finish_what_runs_and_hand_back_the_rest(place):
    place.submit(150)
    up = place.up("--workers", "2", "-c", "3")
    place.wait_for_answers(10)

    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0, place.said(up)

    said = place.said(up)
    assert "stopping 2 workers; what waits stays in the store" in said
    assert set(place.base.states()) == {"succeeded", "queued"}, said
    assert place.base("SELECT count(*) FROM workers") == [(0,)]  # each has signed off
    answered = place.base.states()["succeeded"]
    assert f"2 workers · {answered} succeeded" in said
    assert place.provider.bill()["calls"] == answered
    assert place.base.counted_nusd() == place.provider.billed_nusd()


def test_a_second_signal_cancels_what_runs_and_it_keeps_counting(place):
    with server("--latency", "30s") as slow:
        place.provider = slow
        place.submit(6)
        up = place.up("--workers", "1", "-c", "3")
        wait_for(lambda: place.base.in_flight() == 3, "calls")
        up.send_signal(signal.SIGTERM)
        wait_for(lambda: "let finish" in place.said(up), "it to stop")
        up.send_signal(signal.SIGTERM)
        assert up.wait(30) == 130, place.said(up)

        assert place.base.states() == {"queued": 6}
        assert place.base("SELECT count(*) FROM reservations WHERE state = 'suspense'") == [(3,)]


# What nobody may see


def test_keys_come_from_the_nodes_or_are_given_and_nobody_is_shown_one_or_the_password(place):
    own, password = "sk-given-0123456789abcdefghijklmnop", PASSWORD
    place.submit(4)
    words = ("--workers", "2", "--until-idle", "--store", place.base.url)
    up = place.up(*words, "--env", "OPENAI_API_KEY", OPENAI_API_KEY=own)
    wait_for(lambda: "2 of 2 up" in place.said(up) or up.poll() is not None, "both")
    shown = place.nodes.told()
    shown += processes()
    assert up.wait(60) == 0, place.said(up)

    assert "scheduler-worker-1" in shown
    assert "SchedulerWorker.run" in shown
    assert "scheduler ray up" in shown
    assert place.base.states() == {"succeeded": 4}
    shown += place.said(up)
    for path in place.nodes.folder.rglob("*"):
        if path.is_file():
            shown += path.read_bytes().decode(errors="replace")
    assert "worker.py" in shown  # Ray's own logs are there
    assert shown.count("serves openai") > 1  # on stderr, and in the logs of the actors
    for secret in (KEY, own, password):
        assert secret not in shown


def processes() -> str:
    """The command lines of all that runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return "\n".join(found)


# What cannot be done


def test_it_says_what_is_in_the_way_and_starts_nothing(place, tmp_path):
    place.submit(1)

    up = place.up("--workers", "9", "--cpus", "0.5")
    assert up.wait(60) == 3
    said = place.said(up)
    assert "of 9 workers with 0.5 CPUs each 4 fit into the cluster" in said
    assert "2 free CPUs on 3 nodes" in said

    up = place.up("--store", str(tmp_path / "file.db"))
    assert up.wait(60) == 3
    assert "is a file, and the cluster has 3 nodes" in place.said(up)

    lacking = tmp_path / "scheduler.toml"
    lacking.write_text('[provider.far]\nkind = "openai"\napi_key_env = "FAR_API_KEY"\n')
    up = place.up("--workers", "2", "--config", str(lacking), "--provider", "far")
    assert up.wait(60) == 4, place.said(up)
    said = place.said(up)
    assert re.search(r"worker \d: has ended with 4: FAR_API_KEY", said), said
    assert place.base.states() == {"queued": 1}


def test_more_workers_than_fit_wait_for_room_if_that_is_wanted(place):
    place.submit(60)
    up = place.up("--workers", "3", "--cpus", "1", "-c", "1", "--when-room")
    wait_for(lambda: "2 of 3 up" in place.said(up), "those that fit")
    place.nodes.fill(3)
    wait_for(lambda: "3 of 3 up" in place.said(up), "the last")
    up.send_signal(signal.SIGTERM)
    assert up.wait(60) == 0, place.said(up)
