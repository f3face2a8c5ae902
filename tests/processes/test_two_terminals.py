"""One batch in two terminals: both work on it, one writes, and either may end."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from scheduler.budget import Budget
from tests.processes.harness import results, server, wait_for, write_prompts

LINES, SOME, MORE = (
    60,
    "$0.0005",
    "$0.001",
)  # which is enough for a third and for two thirds of them
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def terminal(children, tmp_path, monkeypatch):
    """Starts runs of one batch, as somebody types them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    write_prompts(tmp_path / "p.jsonl", LINES)

    def start(url, *words, name="p.jsonl", output="out.jsonl"):
        return children.start(
            "-m", "scheduler", "run", name, "-o", output, "--base-url", url, "--budget", SOME,
            "--price", "sim-small=0.15/0.60", "-c", "3", "--json", *words,
        )  # fmt: skip

    return start


def written():
    return len(results_of("out.jsonl"))


def results_of(name):
    try:
        with open(name) as file:
            return [json.loads(text)["custom_id"] for text in file]
    except FileNotFoundError:
        return []


def end(child, seconds=60):
    out, errors = child.communicate(timeout=seconds)
    return child.returncode, json.loads(out) if out.strip() else {}, errors


def both(terminal, provider, file):
    """The one that writes, and one that has joined: both wait for money."""
    writer = terminal(provider.url)
    wait_for(lambda: written() >= 10, "the first to write what its budget is enough for")
    joined = terminal(provider.url)
    said = joined.stderr.readline()
    assert "joined: another process works on this file, too; it writes the results" in said
    wait_for(lambda: file("SELECT count(*) FROM workers") == [(2,)], "both to be there")
    time.sleep(1.0)  # in which each sees that it is not alone
    return writer, joined


def go_on(file, limit="$10"):
    """There is money again."""
    file.define(Budget("default", limit))


def sends_more(file):
    """They send, and cannot have sent all before somebody looks."""
    go_on(file, MORE)
    wait_for(lambda: written() >= 24, "results")


def check_results(tmp_path):
    ids = results(tmp_path / "out.jsonl")  # no line is torn
    assert sorted(ids) == sorted(f"r{n}" for n in range(LINES))


def test_both_work_on_it_and_each_line_is_sent_and_written_once(terminal, tmp_path, file):
    with server("--latency", "300ms") as provider:
        writer, joined = both(terminal, provider, file)
        go_on(file)
        first, second = end(writer), end(joined)

        assert (first[0], second[0]) == (0, 0), (first, second)
        assert provider.bill()["calls"] == LINES
    check_results(tmp_path)
    for _, told, _ in (first, second):
        assert told["succeeded"] >= 6  # each of them did its share
        assert told["succeeded"] + told["known_before"] + told["succeeded_elsewhere"] == LINES
    assert first[1]["succeeded"] + second[1]["succeeded"] == LINES
    assert sorted(path.name for path in tmp_path.iterdir() if ".db" not in path.name) == [
        "out.jsonl", "p.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["while it waits", "while it sends"])
@pytest.mark.parametrize("who", ["writer", "joined"])
def test_ctrl_c_in_one_lets_the_other_go_on(terminal, tmp_path, file, who, when):
    with server("--latency", "150ms") as provider:
        writer, joined = both(terminal, provider, file)
        stopped, other = (writer, joined) if who == "writer" else (joined, writer)
        if when == "while it sends":
            sends_more(file)
        stopped.send_signal(signal.SIGINT)
        code, told, errors = end(stopped)
        assert (code, "another process goes on with this file" in errors) == (130, True), errors
        go_on(file)
        code, told, errors = end(other)

        assert (code, told["left"]) == (0, 0), errors
        assert ("this one writes them from here on" in errors) is (who == "writer")
        assert provider.bill()["calls"] == LINES
    check_results(tmp_path)
    assert not os.path.exists("out.parked.jsonl")


def test_when_the_writer_is_killed_the_other_takes_the_pen(terminal, tmp_path, file):
    with server("--latency", "150ms") as provider:
        writer, joined = both(terminal, provider, file)
        sends_more(file)
        writer.kill()
        writer.communicate()
        go_on(file)
        code, _, errors = end(joined, 90)

        assert code == 0, errors
        assert "this one writes them from here on" in errors
        assert LINES <= provider.bill()["calls"] <= LINES + 3  # what was under way
    check_results(tmp_path)


def test_when_the_one_that_joined_is_killed_the_writer_finishes(terminal, tmp_path, file):
    with server("--latency", "150ms") as provider:
        writer, joined = both(terminal, provider, file)
        sends_more(file)
        joined.kill()
        joined.communicate()
        go_on(file)
        code, _, errors = end(writer, 90)

        assert code == 0, errors
        assert LINES <= provider.bill()["calls"] <= LINES + 3
    check_results(tmp_path)


def test_three_may_come_and_go(terminal, tmp_path, file):
    with server("--latency", "150ms") as provider:
        writer, joined = both(terminal, provider, file)
        third = terminal(provider.url)
        assert "joined" in third.stderr.readline()
        wait_for(lambda: file("SELECT count(*) FROM workers") == [(3,)], "all to be there")
        writer.send_signal(signal.SIGTERM)
        joined.send_signal(signal.SIGINT)
        ended = [end(each) for each in (writer, joined)]
        go_on(file)
        ended.append(end(third))

        assert [code for code, _, _ in ended] == [130, 130, 0], ended
        assert provider.bill()["calls"] == LINES
    check_results(tmp_path)


@pytest.mark.parametrize(
    "words", [("--fresh",), ("--store", "other.db"), ("--store-prompts", "hash")], ids=" ".join
)
def test_what_cannot_be_done_together_is_refused(terminal, words):
    with server("--latency", "150ms") as provider:
        writer = terminal(provider.url)
        wait_for(lambda: written() >= 3, "the first to write")
        code, _, errors = end(terminal(provider.url, *words))
        assert (code, "out.jsonl is being written by process" in errors) == (75, True), errors
        writer.send_signal(signal.SIGINT)
        assert end(writer)[0] == 130


def test_what_a_run_left_is_sent_by_no_other_batch_on_its_store(terminal, tmp_path, file):
    with server("--latency", "150ms") as provider:
        stopped = terminal(provider.url)
        wait_for(lambda: written() >= 3, "some answers")
        stopped.send_signal(signal.SIGINT)
        assert end(stopped)[0] == 130
        calls = provider.bill()["calls"]
        file.define(Budget("default", "$10"))
        write_prompts(tmp_path / "other.jsonl", 4)
        code, told, errors = end(
            terminal(provider.url, "--budget", "$10", name="other.jsonl", output="o.jsonl")
        )  # fmt: skip
        assert (code, told["succeeded"], provider.bill()["calls"]) == (0, 4, calls + 4), errors

        assert end(terminal(provider.url, "--budget", "$10"))[0] == 0
        assert provider.bill()["calls"] == LINES + 4
    check_results(tmp_path)
