"""What a batch run writes, with real processes: files that are changed under it, two runs at once,
answers that the store forgot, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tests import warm
from tests.warm import running_server

COMMAND = [sys.executable, "-m", "scheduler"]
SIM = ("--base-url", "sim:", "--budget", "$1")
STARTED: list[subprocess.Popen[str]] = []
PRICE = ("--price", "sim-small=0.15/0.60")


def line(n: int, **body):
    messages = [{"role": "user", "content": f"question {n}"}]
    body = {"model": "sim-small", "messages": messages, "max_tokens": 50, **body}
    return {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def write(*each, name: str = "p.jsonl") -> None:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in each]
    Path(name).write_text("".join(text + "\n" for text in lines))


def start(*words: str) -> subprocess.Popen[str]:
    process = warm.Popen(
        [*COMMAND, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    return process


def run(*words: str):
    return warm.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)


def ids(name: str) -> list[str]:
    path = Path(name)
    texts = path.read_text().splitlines() if path.exists() else []
    return sorted(json.loads(text)["custom_id"] for text in texts)


def all_ids(count: int) -> list[str]:
    return sorted(f"r{n}" for n in range(count))


def spent() -> Decimal:
    return Decimal(json.loads(run("budget", "list", "--json").stdout)[0]["posted_usd"])


def wait_for(condition, seconds: float = 60) -> None:
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, "waited too long"
        time.sleep(0.02)


def written(name: str) -> int:
    path = Path(name)
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Files that are changed while they are written


def replace() -> None:
    text = Path("p.results.jsonl").read_text()
    Path("new").write_text(text.splitlines(keepends=True)[0])  # somebody wanted one line only
    Path("new").replace("p.results.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        replace,
        lambda: Path("p.results.jsonl").unlink(),
        lambda: Path("p.results.jsonl").rename("rotated"),
        lambda: os.truncate("p.results.jsonl", 0),
    ],
    ids=["replaced", "removed", "renamed", "truncated"],
)
def test_answers_are_in_the_file_of_that_name_whatever_is_done_to_it(change):
    write(*map(line, range(12)))
    process = start("run", "p.jsonl", "--base-url", "sim:latency=0.3", "-c", "3", "--budget", "$1")
    wait_for(lambda: written("p.results.jsonl") >= 3)
    change()
    _, told = process.communicate(timeout=60)

    assert process.returncode == 0, told
    assert "p.results.jsonl was " in told
    assert ids("p.results.jsonl") == all_ids(12)
    cost = spent()
    assert run("run", "p.jsonl", *SIM).returncode == 0
    assert ids("p.results.jsonl") == all_ids(12)
    assert spent() == cost


def test_a_rerun_restores_the_lines_that_are_missing_and_no_others():
    write(*map(line, range(8)))
    run("run", "p.jsonl", *SIM)
    kept = Path("p.results.jsonl").read_text().splitlines()[2:6]
    Path("p.results.jsonl").write_text("\n".join(kept))  # as an editor may leave it
    cost = spent()

    done = run("run", "p.jsonl", *SIM)

    assert done.returncode == 0, done.stderr
    assert ids("p.results.jsonl") == all_ids(8)
    assert Path("p.results.jsonl").read_text().splitlines()[:4] == kept
    assert spent() == cost


def test_a_folder_in_place_of_the_results_ends_the_run_and_loses_no_answer():
    write(*map(line, range(9)))
    process = start("run", "p.jsonl", "--base-url", "sim:latency=0.3", "-c", "3", "--budget", "$1")
    wait_for(lambda: written("p.results.jsonl") >= 3)
    Path("p.results.jsonl").unlink()
    Path("p.results.jsonl").mkdir()
    _, told = process.communicate(timeout=60)

    assert process.returncode == 1, told
    assert "cannot write results" in told
    Path("p.results.jsonl").rmdir()
    cost = spent()
    assert run("run", "p.jsonl", *SIM).returncode == 0
    assert ids("p.results.jsonl") == all_ids(9)
    assert spent() >= cost  # some were not sent yet, but for a slow machine


# One writer at a time


@pytest.mark.parametrize("words", [(), ("--fresh",), ("--retry-failed",)])
def test_the_same_command_while_it_runs_touches_nothing_and_says_who_has_it(words):
    write(*map(line, range(6)), "{oops")
    process = start("run", "p.jsonl", "--base-url", "sim:latency=4", "--budget", "$1")
    wait_for(lambda: ids("p.errors.jsonl") == ["line-7"])
    assert written("p.results.jsonl") == 0

    again = run("run", "p.jsonl", *SIM, *words)

    assert again.returncode == 75
    assert f"is being written by process {process.pid} " in again.stderr
    assert Path("p.results.jsonl").exists()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert ids("p.results.jsonl") == all_ids(6)
    assert ids("p.errors.jsonl") == ["line-7"]
    assert not [each for each in Path().iterdir() if each.name.endswith(".lock")]


def test_two_inputs_with_the_same_output_are_not_written_at_once():
    write(*map(line, range(3)))
    write(*map(line, range(3, 5)), name="q.jsonl")
    process = start(
        "run", "p.jsonl", "-o", "out.jsonl", "--base-url", "sim:latency=4", "--budget", "$1"
    )
    wait_for(lambda: Path("out.jsonl").exists())
    other = ("run", "q.jsonl", "-o", "out.jsonl", "--store", "sqlite:///other.db", *SIM)

    refused = run(*other)

    assert refused.returncode == 75
    assert not Path("other.db").exists()
    process.communicate(timeout=60)
    assert run(*other).returncode == 0
    assert ids("out.jsonl") == all_ids(5)


def test_three_runs_begun_at_once_are_one_run():
    write(*map(line, range(40)))
    runs = [start("run", "p.jsonl", "--base-url", "sim:latency=0.2", "--budget", "$1")
            for _ in range(3)]  # fmt: skip
    told = [each.communicate(timeout=60)[1] for each in runs]

    assert sorted(each.returncode for each in runs) in ([0, 75, 75], [0, 0, 75], [0, 0, 0]), told
    assert not any("earlier line" in text for text in told)
    assert not Path("p.errors.jsonl").exists()
    assert run("run", "p.jsonl", *SIM).returncode == 0
    assert ids("p.results.jsonl") == all_ids(40)


def test_a_stopped_run_still_has_its_files_and_a_killed_one_has_not():
    write(*map(line, range(6)))
    process = start("run", "p.jsonl", "--base-url", "sim:latency=0.4", "-c", "2", "--budget", "$1")
    wait_for(lambda: written("p.results.jsonl") >= 2)
    os.kill(process.pid, signal.SIGSTOP)
    assert run("run", "p.jsonl", *SIM).returncode == 75
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    done = run("run", "p.jsonl", *SIM)

    assert done.returncode == 0, done.stderr
    assert ids("p.results.jsonl") == all_ids(6)
    assert not [each for each in Path().iterdir() if each.name.endswith(".lock")]


# Errors are what is wrong now


def test_bad_lines_are_told_once_and_leave_the_file_when_they_are_repaired():
    write(line(0), "{oops", line(2), line(0))
    assert run("run", "p.jsonl", *SIM).returncode == 1
    first = Path("p.errors.jsonl").read_text()
    assert ids("p.errors.jsonl") == ["line-2", "r0"]
    assert run("run", "p.jsonl", *SIM).returncode == 1
    assert Path("p.errors.jsonl").read_text() == first

    write(line(0), line(1), line(2), line(0))
    assert run("run", "p.jsonl", *SIM).returncode == 1
    assert ids("p.errors.jsonl") == ["r0"]
    write(line(0), line(1), line(2))
    assert run("run", "p.jsonl", *SIM).returncode == 0
    assert not Path("p.errors.jsonl").exists()
    assert ids("p.results.jsonl") == all_ids(3)


def test_failures_stay_through_reruns_and_come_back_when_their_file_is_lost():
    write(line(0), line(1), "{oops")
    with running_server("--fail", "400=1") as server:
        run("run", "p.jsonl", "--base-url", server, "--budget", "$1", *PRICE)
    assert ids("p.errors.jsonl") == ["line-3", "r0", "r1"]
    run("run", "p.jsonl", *SIM)
    assert ids("p.errors.jsonl") == ["line-3", "r0", "r1"]
    Path("p.errors.jsonl").unlink()
    run("run", "p.jsonl", *SIM)
    assert ids("p.errors.jsonl") == ["line-3", "r0", "r1"]

    with running_server("--fail", "400=1") as server:  # failed again: once, not twice
        words = ("--base-url", server, "--budget", "$1", "--retry-failed", *PRICE)
        run("run", "p.jsonl", *words)
    assert ids("p.errors.jsonl") == ["line-3", "r0", "r1"]
    run("run", "p.jsonl", *SIM, "--retry-failed")
    assert ids("p.errors.jsonl") == ["line-3"]


# The same keys are the same requests


def billed(server: str) -> int:
    import httpx

    return int(httpx.get(server.removesuffix("/v1") + "/billed").json()["calls"])


@pytest.mark.parametrize("first", ["p.parked.jsonl", "p.jsonl"])
def test_what_is_left_is_sent_once_whichever_command_is_run_first(first):
    write(*map(line, range(30)))
    with running_server() as server:
        words = ("--base-url", server, *PRICE)
        stopped = run("run", "p.jsonl", *words, "--budget", "$0.0003", "--on-exhausted", "stop")
        assert stopped.returncode == 75, stopped.stderr
        left = Path("p.parked.jsonl").read_bytes()
        for name in (first, "p.parked.jsonl", "p.jsonl"):
            if name == "p.parked.jsonl":
                Path(name).write_bytes(left)  # the original removes what is left no more
            done = run("run", name, *words, "--budget", "$1")
            assert done.returncode == 0, done.stderr
        assert billed(server) == 30
    assert ids("p.results.jsonl") == all_ids(30)
    assert ids("p.parked.results.jsonl") == sorted(
        json.loads(text)["custom_id"] for text in left.splitlines()
    )


def test_what_is_left_is_sent_again_only_when_that_is_asked_for():
    write(*map(line, range(10)))
    run("run", "p.jsonl", "--base-url", "sim:", "--budget", "$0.0001", "--on-exhausted", "stop")
    left = len(ids("p.parked.jsonl"))
    assert run("run", "p.parked.jsonl", *SIM).returncode == 0
    assert run("run", "p.parked.jsonl", *SIM, "--fresh").returncode == 0
    assert run("run", "p.jsonl", *SIM).returncode == 0

    (row,) = json.loads(run("spend", "--json").stdout)
    assert row["attempts"] == 10 + left
    assert ids("p.results.jsonl") == all_ids(10)


@pytest.mark.parametrize("is_pruned", [True, False], ids=["pruned", "another store"])
def test_what_the_file_holds_is_neither_sent_nor_written_again(is_pruned):
    write(*map(line, range(10)))
    run("run", "p.jsonl", *SIM)
    before = Path("p.results.jsonl").read_bytes()
    if is_pruned:
        time.sleep(0.05)
        assert "forgotten" in run("prune", "--before", "0s").stdout
    else:
        Path("scheduler.db").unlink()
    write(*map(line, range(12)), line(3))

    done = run("run", "p.jsonl", *SIM, "--json")

    told = json.loads(done.stdout)
    assert (told["known_before"], told["succeeded"], told["bad_lines"]) == (10, 2, 1)
    assert Path("p.results.jsonl").read_bytes().startswith(before)
    assert ids("p.results.jsonl") == all_ids(12)


def test_another_prompt_under_an_id_that_the_file_holds_is_another_request():
    write(*map(line, range(3)))
    run("run", "p.jsonl", *SIM)
    Path("scheduler.db").unlink()
    write(line(0), line(1, max_tokens=7), line(2))

    done = run("run", "p.jsonl", *SIM, "--json")

    told = json.loads(done.stdout)
    assert (told["known_before"], told["succeeded"]) == (2, 1)
    assert ids("p.results.jsonl") == ["r0", "r1", "r1", "r2"]


@pytest.mark.parametrize("kept", ["full", "none"])
@pytest.mark.parametrize("way", ["taken out", "--limit"])
def test_what_a_run_is_not_given_any_more_is_told_and_is_no_work_of_its_own(kept, way):
    write(*map(line, range(30)))
    words = ("--store-prompts", kept, "--budget", "$1")
    process = start("run", "p.jsonl", "--base-url", "sim:latency=0.5", "-c", "2", *words)
    wait_for(lambda: written("p.results.jsonl") >= 2)
    process.kill()
    process.communicate()
    if way == "taken out":
        write(*map(line, range(10)))
    limit = ("--limit", "10") if way == "--limit" else ()

    done = run("run", "p.jsonl", "--base-url", "sim:", *words, *limit)

    assert done.returncode == 0, done.stderr  # 75 would have it tried again, for nothing
    assert "20 requests of earlier runs wait that this run was not given" in done.stderr
    assert "resume:" not in done.stderr
    assert ids("p.results.jsonl") == all_ids(10)
    assert ids("p.parked.jsonl") == sorted(f"r{n}" for n in range(10, 30) if kept == "full")
    if kept == "full":
        assert run("run", "p.parked.jsonl", "--base-url", "sim:", *words).returncode == 0
        assert ids("p.results.jsonl") == all_ids(10)
    else:
        done = run("run", "p.jsonl", "--base-url", "sim:", *words, *limit, "--fresh")
        assert "earlier runs wait" not in done.stderr


# A pipe


def test_what_a_slow_pipe_has_brought_is_sent_before_more_comes():
    process = warm.Popen(
        [*COMMAND, "run", "-", "-o", "out.jsonl", *SIM], stdin=subprocess.PIPE,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    STARTED.append(process)
    for n in range(2):
        process.stdin.write(json.dumps(line(n)) + "\n")
        process.stdin.flush()
        wait_for(lambda n=n: written("out.jsonl") == n + 1)
    _, told = process.communicate(json.dumps(line(2)) + "\n", timeout=60)

    assert process.returncode == 0, told
    assert ids("out.jsonl") == all_ids(3)


# Every way to end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_that_never_ends_is_given_up_after_the_stated_grace(number):
    write(*map(line, range(4)))
    process = start("run", "p.jsonl", "--base-url", "sim:latency=1000", "--budget", "$1",
                    "--grace", "1s")  # fmt: skip
    wait_for(lambda: Path("scheduler.db").exists())
    wait_for(lambda: '"running": 4' in run("status", "--json").stdout)

    process.send_signal(number)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130, told
    assert "by itself after 1s" in told
    assert "stays reserved, since the provider may bill them" in told
    (row,) = json.loads(run("budget", "list", "--json").stdout)
    assert Decimal(row["suspense_usd"]) > 0
    assert ids("p.parked.jsonl") == all_ids(4)


def test_a_terminal_that_is_closed_lets_calls_finish_though_it_is_told_twice():
    write(*map(line, range(6)))
    process = start("run", "p.jsonl", "--base-url", "sim:latency=6", "-c", "3", "--budget", "$1")
    wait_for(lambda: '"running": 3' in run("status", "--json").stdout)

    process.stderr.close()
    for _ in range(2):  # the system tells it, and so does the shell
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert process.wait(timeout=60) == 130

    assert written("p.results.jsonl") == 3
    (row,) = json.loads(run("budget", "list", "--json").stdout)
    assert Decimal(row["suspense_usd"]) == Decimal(row["reserved_usd"]) == 0


def test_an_address_where_nobody_is_ends_the_run_after_the_longest_wait(monkeypatch):
    write(*map(line, range(20)))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    done = run("run", "p.jsonl", "--base-url", "http://127.0.0.1:9/v1", "--budget", "$1",
               "--max-wait", "1s", *PRICE)  # fmt: skip

    assert done.returncode == 75, done.stderr
    assert "does not answer" in done.stderr
    assert "The run ends after 1m without an answer" in done.stderr
    assert ids("p.parked.jsonl") == all_ids(20)
    assert spent() == 0


def test_an_errors_file_without_a_line_is_not_shown():
    write(line(1))
    Path("p.errors.jsonl").touch()  # as a killed run leaves it

    done = run("run", "p.jsonl", "--json", *SIM)

    assert done.returncode == 0
    assert "errors:" not in done.stderr
    assert json.loads(done.stdout)["errors"] is None
