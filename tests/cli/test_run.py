"""`scheduler run` as a user sees it: files, exit codes, resuming, interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from tests import warm
from tests.warm import running_server

COMMAND = [sys.executable, "-m", "scheduler"]


def line(n: int, **body):
    body = {
        "model": "sim-small",
        "messages": [{"role": "user", "content": f"question {n}"}],
        "max_tokens": 50,
        **body,
    }
    return {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(count: int, name: str = "p.jsonl", **body) -> None:
    Path(name).write_text("".join(json.dumps(line(n, **body)) + "\n" for n in range(count)))


def run(*words: str, command: str = "run", stdin: str | None = None):
    words = (command, *words)
    if command == "run" and "--base-url" not in words:
        words = (*words, "--base-url", "sim:")
    return warm.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, input=stdin, check=False
    )


def lines(name: str) -> list[dict]:
    path = Path(name)
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def ids(name: str) -> list[str]:
    return sorted(each["custom_id"] for each in lines(name))


def spent(words: tuple[str, ...] = ()) -> Decimal:
    rows = json.loads(run("list", "--json", *words, command="budget").stdout)
    return Decimal(rows[0]["posted_usd"])


def test_a_batch_runs_to_its_end(place):
    write(20)

    done = run("p.jsonl", "--budget", "$1/day", "--json")

    assert done.returncode == 0, done.stderr
    results = lines("p.results.jsonl")
    assert sorted(each["custom_id"] for each in results) == sorted(f"r{n}" for n in range(20))
    first = results[0]
    assert set(first) == {"id", "custom_id", "response", "error", "scheduler"}
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    assert first["response"]["body"]["choices"][0]["message"]["content"]
    extras = first["scheduler"]
    assert extras["attempts"] == 1
    assert extras["output_tokens"] <= 50
    total = sum(Decimal(each["scheduler"]["cost_usd"]) for each in results)
    told = json.loads(done.stdout)
    assert (told["succeeded"], Decimal(told["cost_usd"])) == (20, total)
    assert spent() == total
    assert run(command="audit").returncode == 0
    assert sorted(path.name for path in place.iterdir() if "journal" not in path.name) == [
        "p.jsonl", "p.results.jsonl", "scheduler.db", "scheduler.db.write-lock",
    ]  # fmt: skip
    assert Path("p.results.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_same_command_again_sends_and_pays_nothing(place):
    write(10)
    run("p.jsonl", "--budget", "$1/day")
    before = Path("p.results.jsonl").read_bytes(), spent()

    again = run("p.jsonl", "--budget", "$1/day", "--json")

    assert (again.returncode, json.loads(again.stdout)["known_before"]) == (0, 10)
    assert (Path("p.results.jsonl").read_bytes(), spent()) == before


def test_new_lines_are_added_and_lost_results_come_back_without_paying(place):
    write(10)
    run("p.jsonl", "--budget", "$1/day")
    first, cost = lines("p.results.jsonl"), spent()
    Path("p.results.jsonl").unlink()

    again = run("p.jsonl")
    assert again.returncode == 0
    assert ids("p.results.jsonl") == sorted(each["custom_id"] for each in first)
    assert spent() == cost

    write(12)
    assert run("p.jsonl").returncode == 0
    assert len(ids("p.results.jsonl")) == 12
    assert spent() > cost


def test_every_form_of_line_is_taken_and_stdin_too(place):
    forms = [
        {"prompt": "hi", "max_tokens": 5},
        {"messages": [{"role": "user", "content": "hi"}], "model": "sim-large"},
        {"custom_id": "raw", "messages": [{"role": "user", "content": "hi"}]},
        {"input": "hi", "model": "sim-embedding"},
        {"url": "/v1/responses", "body": {"model": "sim-small", "input": "hi"}},
    ]
    text = "\n".join(map(json.dumps, forms)) + "\n\n"

    done = run("-", "-o", "-", "-m", "sim-small", stdin=text)

    assert done.returncode == 0, done.stderr
    results = {each["custom_id"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert set(results) == {"line-1", "line-2", "raw", "line-4", "line-5"}
    assert results["line-2"]["response"]["body"]["model"] == "sim-large"
    assert "no limit (spend is tracked)" in done.stderr


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{oops", "not JSON: "),
        ("[1]", "not a JSON object but list"),
        ('{"prompt": "no model"}', "names no model"),
        ('{"model": "sim-small"}', "has none of body, messages, input or prompt"),
        ('{"custom_id": [5], "prompt": "x"}', "custom_id [5] is not a text"),
        ('{"body": {"model": "sim-small"}, "url": "/v1/x"}', "url '/v1/x' is not one of"),
        ('{"body": [], "url": "/v1/chat/completions"}', "body is not an object"),
        ('{"method": "GET", "body": {}}', "method 'GET' is not 'POST'"),
        ('{"model": "unheard-of", "messages": []}', "no price is known for model 'unheard-of'"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_the_good_ones_run(place, bad, problem):
    write(3)
    with open("p.jsonl", "a") as file:
        file.write(bad + "\n")

    done = run("p.jsonl")

    assert done.returncode == 1
    assert f"error: p.jsonl:4: {problem}" in done.stderr
    assert len(lines("p.results.jsonl")) == 3
    (error,) = lines("p.errors.jsonl")
    assert problem in error["error"]["message"]


def test_strict_sends_nothing_if_a_line_is_bad(place):
    write(3)
    with open("p.jsonl", "a") as file:
        file.write("{oops\n")

    done = run("p.jsonl", "--strict", "--budget", "$1")

    assert done.returncode == 2
    assert "with --strict nothing was sent" in done.stderr
    assert spent() == 0


def test_strict_forgets_moves_and_writes_nothing_if_a_line_is_bad(place):
    write(3)
    assert run("p.jsonl", "--budget", "$1").returncode == 0
    paid, good = spent(), Path("p.jsonl").read_text()
    Path("p.jsonl").write_text(good + "{oops\n")

    assert run("p.jsonl", "--fresh", "--strict").returncode == 2

    assert sorted(map(str, Path().glob("p.*"))) == ["p.jsonl", "p.results.jsonl"]
    Path("p.jsonl").write_text(good)
    assert run("p.jsonl").returncode == 0
    assert (spent(), len(lines("p.results.jsonl"))) == (paid, 3)


def test_an_id_used_twice_is_told_with_its_line(place):
    write(3)
    with open("p.jsonl", "a") as file:
        file.write(json.dumps(line(1)) + "\n" + json.dumps(line(2, max_tokens=7)) + "\n")

    done = run("p.jsonl")

    assert done.returncode == 1
    assert "p.jsonl:4: custom_id 'r1' stands on an earlier line too" in done.stderr
    assert "p.jsonl:5: custom_id 'r2' was used before for another body" in done.stderr
    assert len(lines("p.results.jsonl")) == 3


def test_a_changed_body_under_a_known_id_is_told(place):
    write(3)
    run("p.jsonl")
    write(3, max_tokens=9)

    done = run("p.jsonl")

    assert done.returncode == 1
    assert done.stderr.count("was used before for another body") == 3


def test_stop_ends_with_75_and_what_is_left_is_a_batch_file(place):
    write(30)

    done = run("p.jsonl", "--budget", "$0.0003/day", "--on-exhausted", "stop")

    assert done.returncode == 75, done.stderr
    assert "budget 'default' is spent for now" in done.stderr
    assert "scheduler budget set default 'MORE'" in done.stderr
    assert "resume: scheduler run p.jsonl" in done.stderr
    parked = lines("p.parked.jsonl")
    assert len(parked) + len(lines("p.results.jsonl")) == 30
    assert set(parked[0]) == {"custom_id", "method", "url", "body"}

    resumed = run("p.jsonl", "--budget", "$1/day", "--on-exhausted", "stop")
    assert resumed.returncode == 0, resumed.stderr
    assert ids("p.results.jsonl") == sorted(f"r{n}" for n in range(30))
    assert not Path("p.parked.jsonl").exists()


def test_max_wait_ends_with_75_when_the_reset_is_further_away(place):
    write(30)

    started_s = time.monotonic()
    done = run("p.jsonl", "--budget", "$0.0003/year", "--max-wait", "1h")

    assert done.returncode == 75
    assert time.monotonic() - started_s < 30


def test_waiting_goes_on_by_itself_at_the_reset(place):
    write(12)

    done = run("p.jsonl", "--budget", "$0.0002/1s", "--progress", "plain")

    assert done.returncode == 0, done.stderr
    assert "parked" in done.stderr
    assert max(each["scheduler"]["parked_seconds"] for each in lines("p.results.jsonl")) > 0.5


def test_without_a_key_nothing_is_sent_and_the_exit_is_4(place):
    write(3)

    done = run("p.jsonl", "--base-url", "https://api.example.com/v1")

    assert done.returncode == 4
    assert "OPENAI_API_KEY: is not set" in done.stderr


def test_an_unknown_price_everywhere_ends_with_3(place):
    write(3, model="unheard-of")

    done = run("p.jsonl")

    assert done.returncode == 3
    assert "scheduler prices set unheard-of --in" in done.stderr
    priced = run("p.jsonl", "--price", "unheard-of=0.1/0.2")
    assert priced.returncode == 0, priced.stderr


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: None, "cannot read p.jsonl: No such file"),
        (lambda: Path("p.jsonl").mkdir(), "cannot read p.jsonl: Is a directory"),
        (lambda: Path("p.jsonl").write_text("\n \n"), "p.jsonl is empty"),
        (lambda: Path("p.jsonl").write_bytes(b"PK\3\4\0\0"), "p.jsonl is not text"),
    ],
)
def test_an_input_that_cannot_be_one_is_a_usage_error(place, make, problem):
    make()

    done = run("p.jsonl")

    assert done.returncode == 2
    assert problem in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--budget", "-5"), 3, "is not an amount of dollars"),
        (("--budget", "$5/day @Nowhere"), 3, "there is no time zone 'Nowhere'"),
        (("--budget", "$99999999999"), 3, "is not between 0 and"),
        (("-o", "p.jsonl"), 2, "is the input file itself"),
        (("-o", "no/such/out.jsonl"), 3, "cannot write no/such/out"),
        (("--on-exhausted", "x"), 2, "is neither 'wait' nor 'stop'"),
        (("--price", "x"), 3, "is not MODEL=IN/OUT"),
        (("--store", "redis://x"), 3, "is not memory://"),
        (("--store", "p.jsonl.db"), 3, "is not a SQLite database"),
    ],
)
def test_a_wrong_option_is_a_clear_error(place, words, code, problem):
    write(1)
    Path("p.jsonl.db").write_text("something else")

    done = run("p.jsonl", *words)

    assert done.returncode == code
    assert problem in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_torn_last_line_is_cut_and_its_result_written_again(place):
    write(5)
    run("p.jsonl")
    whole = Path("p.results.jsonl").read_bytes()
    Path("p.results.jsonl").write_bytes(whole + b'{"id": "torn')

    done = run("p.jsonl")

    assert "cut the torn last line" in done.stderr
    assert Path("p.results.jsonl").read_bytes() == whole


def test_fresh_forgets_and_keeps_the_old_results_aside(place):
    write(5)
    run("p.jsonl", "--budget", "$1")
    cost = spent()

    done = run("p.jsonl", "--fresh")

    assert done.returncode == 0
    assert "moved p.results.jsonl to p.results.jsonl.1" in done.stderr
    assert len(lines("p.results.jsonl")) == len(lines("p.results.jsonl.1")) == 5
    assert spent() == 2 * cost


def test_failures_go_to_their_own_file_and_are_tried_again_when_asked(place):
    write(6)
    with running_server("--fail", "400=1") as server:
        failed = run("p.jsonl", "--base-url", server, "--max-attempts", "1",
                     "--price", "sim-small=0.15/0.60")  # fmt: skip
    assert failed.returncode == 1, failed.stderr
    errors = lines("p.errors.jsonl")
    assert len(errors) == 6
    assert errors[0]["error"]["code"]

    again = run("p.jsonl")
    assert again.returncode == 1
    assert "0 succeeded · 6 failed before (--retry-failed sends them again)" in again.stderr
    assert lines("p.results.jsonl") == []
    assert run("p.jsonl", "--retry-failed").returncode == 0
    assert len(lines("p.results.jsonl")) == 6


def test_a_wrong_key_stops_the_batch_with_4_and_a_rerun_goes_on(place, monkeypatch):
    write(40)
    prices = ("--price", "sim-small=0.15/0.60")
    with running_server("--api-key", "right") as server:
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        done = run("p.jsonl", "--base-url", server, "-c", "2", *prices)
        assert done.returncode == 4, done.stderr
        assert "wrong" not in done.stdout + done.stderr.replace("went wrong", "")
        assert lines("p.errors.jsonl") == []

        monkeypatch.setenv("OPENAI_API_KEY", "right")
        again = run("p.jsonl", "--base-url", server, *prices)
    assert again.returncode == 0, again.stderr
    assert len(lines("p.results.jsonl")) == 40


def as_if_killed_before_writing() -> None:
    """The outcomes are in the store; nothing says that they reached a file."""
    with contextlib.closing(sqlite3.connect("scheduler.db")) as db:
        db.execute("UPDATE requests SET is_delivered = 0")
        db.commit()


def test_a_result_lost_in_a_crash_is_written_although_a_bad_line_has_its_id(place):
    write(3)
    with open("p.jsonl", "a") as file:
        file.write(json.dumps(line(1)) + "\n")
    run("p.jsonl")
    kept = [each for each in lines("p.results.jsonl") if each["custom_id"] != "r1"]
    Path("p.results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept))
    as_if_killed_before_writing()

    run("p.jsonl")

    assert next(each["custom_id"] for each in lines("p.errors.jsonl")) == "r1"
    assert ids("p.results.jsonl") == ["r0", "r1", "r2"]


def test_a_results_file_with_a_line_twice_is_no_obstacle(place):
    write(3)
    run("p.jsonl")
    whole = Path("p.results.jsonl").read_text()
    Path("p.results.jsonl").write_text(whole * 2)
    as_if_killed_before_writing()

    done = run("p.jsonl")

    assert done.returncode == 0, done.stderr
    assert Path("p.results.jsonl").read_text() == whole * 2


def test_failures_lost_in_a_crash_are_written_though_there_is_no_result(place):
    write(3)
    with running_server("--fail", "400=1") as server:
        run("p.jsonl", "--base-url", server, "--price", "sim-small=0.15/0.60")
    Path("p.errors.jsonl").unlink()
    as_if_killed_before_writing()

    assert run("p.jsonl").returncode == 1
    assert ids("p.errors.jsonl") == ["r0", "r1", "r2"]
    run("p.jsonl")
    assert ids("p.errors.jsonl") == ["r0", "r1", "r2"]


def test_what_the_credentials_did_not_do_for_is_in_the_parked_file(place, monkeypatch):
    write(5)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    with running_server("--api-key", "right") as server:
        prices = ("--price", "sim-small=0.15/0.60")
        done = run("p.jsonl", "--base-url", server, "-c", "2", "--json", *prices)

    assert (done.returncode, json.loads(done.stdout)["left"]) == (4, 5)
    assert ids("p.parked.jsonl") == [f"r{n}" for n in range(5)]


def test_what_has_the_name_of_the_parked_file_and_is_none_is_left_as_it_is(place):
    write(3)
    Path("p.parked.jsonl").write_text("my notes, dear")

    done = run("p.jsonl")

    assert (done.returncode, Path("p.results.jsonl").exists()) == (3, False)
    assert "p.parked.jsonl holds something else than lines of JSON" in done.stderr
    assert Path("p.parked.jsonl").read_text() == "my notes, dear"


def test_a_parked_file_is_not_written_over_while_it_is_the_input(place):
    write(3, "p.parked.jsonl")
    before = Path("p.parked.jsonl").read_bytes()

    done = run("p.parked.jsonl", "-o", "p.results.jsonl")

    assert done.returncode == 2
    assert "is the input file itself" in " ".join(done.stderr.replace("│", " ").split())
    assert Path("p.parked.jsonl").read_bytes() == before
    assert run("p.parked.jsonl").returncode == 0
    assert Path("p.parked.jsonl").read_bytes() == before


def test_an_output_that_is_no_regular_file_is_refused_and_left_alone(place):
    write(1)
    os.mkfifo("pipe")

    done = run("p.jsonl", "-o", "pipe")

    assert done.returncode == 3
    assert "pipe is no regular file; '-' writes to stdout" in done.stderr
    assert Path("pipe").is_fifo()


def test_a_results_file_removed_while_it_runs_is_written_again_by_the_next_run(place):
    write(4)
    process = start("run", "p.jsonl", "--base-url", "sim:latency=0.5", "-c", "1")
    wait_for(lambda: lines("p.results.jsonl"))
    Path("p.results.jsonl").unlink()
    _, told = process.communicate(timeout=60)

    assert process.returncode == 0, told
    assert run("p.jsonl").returncode == 0
    assert ids("p.results.jsonl") == ["r0", "r1", "r2", "r3"]


def test_an_interrupt_does_not_wait_for_whoever_writes_to_stdin(place):
    process = warm.Popen(
        [*COMMAND, "run", "-", "-o", "out.jsonl", "--base-url", "sim:"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(line(0)) + "\n")
    process.stdin.flush()
    assert "no budget" in process.stderr.readline()

    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    told = process.stderr.read()
    process.stdin.close()
    process.stderr.close()

    assert code == 130, told
    assert "are let finish" in told


def start(*words: str) -> subprocess.Popen[str]:
    return warm.Popen([*COMMAND, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60) -> None:
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, "waited too long"
        time.sleep(0.05)


def test_the_first_interrupt_lets_calls_finish_and_a_rerun_goes_on(place):
    write(60)
    words = ("run", "p.jsonl", "--base-url", "sim:latency=0.3", "-c", "5", "--budget", "$1")
    process = start(*words)
    wait_for(lambda: len(lines("p.results.jsonl")) >= 5)

    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130, told
    assert "are let finish; interrupt again to cancel them" in told
    assert "resume: scheduler run p.jsonl" in told
    done = len(lines("p.results.jsonl"))
    assert 5 <= done < 60
    assert len(lines("p.parked.jsonl")) == 60 - done
    balance = json.loads(run("list", "--json", command="budget").stdout)[0]
    assert balance["reserved_usd"] == "0.00"

    assert run("p.jsonl").returncode == 0
    assert len(ids("p.results.jsonl")) == len(set(ids("p.results.jsonl"))) == 60


def test_the_second_interrupt_cancels_and_reservations_stay(place):
    write(20)
    words = ("run", "p.jsonl", "--base-url", "sim:latency=30", "-c", "5", "--budget", "$1")
    process = start(*words)
    wait_for(lambda: Path("scheduler.db").exists())
    wait_for(lambda: '"running": 5' in run("--json", command="status").stdout)

    process.send_signal(signal.SIGINT)
    assert any("interrupt again" in said for said in process.stderr)  # two at once would be one
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)

    assert process.returncode == 130, told
    assert "stays reserved, since the provider may bill them" in told
    balance = json.loads(run("list", "--json", command="budget").stdout)[0]
    assert Decimal(balance["suspense_usd"]) > 0
    assert len(lines("p.parked.jsonl")) == 20


def test_after_kill_9_the_same_command_finishes_and_the_ledger_covers_the_bill(place):
    write(60)
    with running_server("--latency", "100ms") as server:
        words = ("p.jsonl", "--base-url", server, "-c", "5", "--budget", "$1",
                 "--price", "sim-small=0.15/0.60")  # fmt: skip
        process = start("run", *words)
        wait_for(lambda: len(lines("p.results.jsonl")) >= 10)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

        done = run(*words)

        assert done.returncode == 0, done.stderr
        assert len(ids("p.results.jsonl")) == len(set(ids("p.results.jsonl"))) == 60
        bill = httpx.get(server.removesuffix("/v1") + "/billed").json()
    balance = json.loads(run("list", "--json", command="budget").stdout)[0]
    counted = Decimal(balance["posted_usd"]) + Decimal(balance["reserved_usd"])
    assert counted >= Decimal(bill["billed_usd"])
    assert bill["calls"] <= 60 + 5
    assert run(command="audit").returncode == 0


def test_a_raise_from_another_terminal_lets_a_waiting_batch_go_on(place):
    write(20)
    process = start(
        "run", "p.jsonl", "--base-url", "sim:", "--budget", "$0.0002/year", "--progress", "plain"
    )
    wait_for(lambda: Path("scheduler.db").exists())
    wait_for(lambda: '"window_spent"' in run("--json", command="status").stdout)

    raised = run("set", "default", "$1", command="budget")
    _, told = process.communicate(timeout=60)

    assert raised.returncode == 0, raised.stderr
    assert process.returncode == 0, told
    assert len(lines("p.results.jsonl")) == 20


# Prompts that are not kept


@pytest.mark.parametrize("mode", ["hash", "none"])
def test_without_prompts_in_the_store_the_input_file_is_what_a_run_goes_on_from(place, mode):
    write(12)
    words = ("--store-prompts", mode, "--budget", "$0.0001", "--on-exhausted", "stop")
    first = run("p.jsonl", *words)

    assert first.returncode == 75, first.stderr
    assert b"question" not in Path("scheduler.db").read_bytes()
    left = lines("p.parked.jsonl")
    assert sorted(ids("p.results.jsonl") + [each["custom_id"] for each in left]) == sorted(
        f"r{n}" for n in range(12)
    )
    assert all(each["body"]["messages"][0]["content"].startswith("question") for each in left)
    done = run("p.jsonl", "--store-prompts", mode, "--budget", "$1")
    assert done.returncode == 0, done.stderr
    assert len(ids("p.results.jsonl")) == 12
    assert b"question" not in Path("scheduler.db").read_bytes()


def test_from_stdin_without_prompts_it_says_that_the_input_is_needed_again(place):
    write(6)
    words = ("-", "--store-prompts", "none", "--budget", "$0.00005", "--on-exhausted", "stop")
    stopped = run(*words, stdin=Path("p.jsonl").read_text())

    assert stopped.returncode == 75
    assert "came from stdin and their prompts are not kept" in stopped.stderr
    done = run("-", "--store-prompts", "none", "--budget", "$1", stdin=Path("p.jsonl").read_text())
    assert done.returncode == 0, done.stderr
    assert len(ids("stdin.results.jsonl")) == 6


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [("--store-prompts", "some", "not one of full, hash, none"), ("--on-unknown", "free", "free")],
)
def test_a_wrong_word_for_what_is_kept_or_assumed_is_told_before_anything_is_sent(
    place, option, value, problem
):
    write(1)
    done = run("p.jsonl", option, value)

    assert done.returncode == 3
    assert problem in done.stderr
    assert not Path("scheduler.db").exists()
