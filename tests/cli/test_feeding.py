"""What `scheduler run` and `scheduler quote` are fed: files, pipes, and lines that are wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scheduler.cli.feeding import _Chunks

STORE = "sqlite:///x.db"


def line(number: int, **body):
    body = {
        "model": "sim-small",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": 20,
        **body,
    }
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(place, cli):
    def run(*words, command="run"):
        words = (*words, "--store", STORE)
        if "--base-url" not in words:
            words = (*words, "--base-url", "sim:")
        return cli(command, *words)

    return run


def write(rows, name="p.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(name):
    path = Path(name)
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def ids(name):
    return sorted(each["custom_id"] for each in lines(name))


def quoted(run, *words):
    """What `quote` says: requests it counts, bad lines, and its exit code."""
    told = run(*words, "--json", command="quote")
    found = json.loads(told.stdout)
    unknown = sum(found["unknown_prices"].values())
    return found["requests"], found["bad_lines"] + unknown, told.exit_code


HUGE = [
    ({"n": 10**20}, "asks for up to"),
    ({"max_tokens": int("9" * 4000)}, "asks for up to"),
    ({"max_tokens": 10**18, "n": 10**18}, "asks for up to"),
    ({"model": "anthropic:claude-haiku-4-5"}, "no provider is named 'anthropic'"),
    ({"model": "openai:gpt-4o"}, "no provider is named 'openai'"),
    ({"model": "unheard-of"}, "no price is known"),
]


def test_a_line_that_cannot_be_prepared_is_its_own_error_and_the_others_run(run):
    rows = [line(n) for n in range(1100)]
    for place, (body, _) in enumerate(HUGE):
        rows[600 + place] = line(600 + place, **body)
    write(rows)
    with open("p.jsonl", "a") as file:
        file.write('{"custom_id": "deep", "body": {"model": "sim-small", "messages": [], "x": %s}}\n'
                   % ("[" * 5000 + "]" * 5000))  # fmt: skip
        file.write(
            '{"custom_id": "big", "prompt": "x", "model": "sim-small", "n": %s}\n' % ("9" * 5000)
        )

    done = run("p.jsonl", "--budget", "$1", "--json")

    assert done.exit_code == 1, done.stderr
    told = json.loads(done.stdout)
    assert (told["succeeded"], told["bad_lines"], told["left"]) == (1094, 8, 0)
    assert told["reserved_usd"] == "0.00"
    for place, (_, problem) in enumerate(HUGE):
        assert any(
            text.startswith(f"error: p.jsonl:{601 + place}: ") and problem in text
            for text in done.stderr.splitlines()
        )
    errors = {each["custom_id"]: each["error"] for each in lines("p.errors.jsonl")}
    assert errors.keys() == {*(f"r{600 + place}" for place in range(6)), "deep", "big"}
    assert quoted(run, "p.jsonl", "-o", "other.jsonl")[:2] == (1094, 8)  # as if it were new
    assert quoted(run, "p.jsonl")[:2] == (0, 8)
    again = run("p.jsonl", "--budget", "$1", "--json")
    assert json.loads(again.stdout)["known_before"] == 1094


@pytest.mark.parametrize(
    "error", [OverflowError("x"), RecursionError(), TypeError("x"), KeyError("x")]
)
def test_whatever_an_error_is_it_is_that_of_its_line(run, monkeypatch, error):
    from scheduler.core.intake import Intake

    prepare = Intake.prepare

    def failing(self, request, on_exceeded):
        if request.key == "r1":
            raise error
        return prepare(self, request, on_exceeded)

    monkeypatch.setattr(Intake, "prepare", failing)
    write([line(0), line(1), line(2)])

    done = run("p.jsonl")

    assert done.exit_code == 1
    assert ids("p.results.jsonl") == ["r0", "r2"]
    assert "error: p.jsonl:2: " in done.stderr


@pytest.mark.parametrize("command", ["run", "quote"])
def test_what_all_lines_would_meet_ends_the_command(run, monkeypatch, command):
    from scheduler.core.intake import Intake
    from scheduler.errors import StoreError

    def failing(self, *_):
        raise StoreError("the disk is gone")

    monkeypatch.setattr(Intake, "prepare", failing)
    monkeypatch.setattr(Intake, "check", failing)
    write([line(0), line(1)])

    done = run("p.jsonl", command=command)

    assert done.exit_code == 3
    assert done.stderr.count("the disk is gone") == 1


# Where it comes from


def feed(path, data):
    thread = threading.Thread(target=lambda: Path(path).write_bytes(data), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("count", [3, 500])
def test_a_fifo_is_quoted_and_run_whole(run, count):
    data = "".join(json.dumps(line(n)) + "\n" for n in range(count)).encode()
    os.mkfifo("in")

    feed("in", data)
    assert quoted(run, "in") == (count, 0, 0)
    feed("in", data)
    done = run("in", "--budget", "$1")

    assert done.exit_code == 0, done.stderr
    assert ids("in.results.jsonl") == sorted(f"r{n}" for n in range(count))


@pytest.mark.parametrize("words", ["<(cat p.jsonl)", "/dev/stdin < p.jsonl", "- < p.jsonl.gz",
                                   "/dev/fd/0 < <(cat p.jsonl)"])  # fmt: skip
def test_what_a_shell_gives_is_read_whole_and_a_rerun_knows_it(place, words):
    write([{"prompt": f"question {n} {'x' * 50}"} for n in range(400)])
    Path("p.jsonl.gz").write_bytes(gzip.compress(Path("p.jsonl").read_bytes()))
    command = f"{sys.executable} -m scheduler run {words} -m sim-small --base-url sim: --json"

    for known in (0, 400):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["known_before"] == known
    assert ids("stdin.results.jsonl") == sorted(f"line-{n}" for n in range(1, 401))


def test_strict_reads_a_gzip_twice_and_says_what_to_do_with_a_pipe(run):
    good = "".join(json.dumps(line(n)) + "\n" for n in range(3))
    Path("p.gz").write_bytes(gzip.compress(good.encode()))
    assert run("p.gz", "--strict", "--budget", "$1").exit_code == 0
    assert len(lines("p.gz.results.jsonl")) == 3

    os.mkfifo("in")
    feed("in", good.encode())
    done = run("in", "--strict")
    assert done.exit_code == 3
    assert "in is a pipe, which cannot be read twice. Write it to a file first" in done.stderr


def test_strict_minds_what_only_the_prices_know(run):
    write([line(0), line(1, model="unheard-of")])

    done = run("p.jsonl", "--strict")

    assert done.exit_code == 2
    assert "no price is known for model 'unheard-of'" in done.stderr
    assert not lines("p.results.jsonl")


@pytest.mark.parametrize("mode", ["hash", "none"])
def test_without_kept_prompts_a_run_goes_on_from_an_array_or_a_gzip(run, mode):
    rows = [line(n) for n in range(12)]
    Path("p.json").write_text(json.dumps(rows, indent=2))
    Path("p.gz").write_bytes(gzip.compress(Path("p.json").read_bytes()))
    for name in ("p.json", "p.gz"):
        words = (name, "--store-prompts", mode, "--on-exhausted", "stop", "--fresh")
        stopped = run(*words, "--budget", "$0.00005/year")
        assert stopped.exit_code == 75, stopped.stderr
        assert len(lines(f"{name}.parked.jsonl")) + len(lines(f"{name}.results.jsonl")) == 12
        Path("x.db").unlink()


@pytest.mark.parametrize("name", ["store.db", "/dev/null"])
@pytest.mark.parametrize("command", ["run", "quote"])
def test_a_store_that_is_a_pipe_or_a_device_is_refused_at_once(place, cli, name, command):
    write([line(0)])
    if name == "store.db":
        os.mkfifo(name)

    done = cli(command, "p.jsonl", "--base-url", "sim:", "--store", f"sqlite:///{name}")

    assert done.exit_code == 3
    assert "is a pipe or a device, not a file; nothing was sent" in done.stderr


@pytest.mark.parametrize("output", ["pipe", "/dev/null", "/dev/full"])
def test_an_output_that_is_a_pipe_or_a_device_is_refused_before_a_store_is_made(run, output):
    write([line(0)])
    os.mkfifo("pipe")

    done = run("p.jsonl", "-o", output)

    assert done.exit_code == 3
    assert f"{output} is no regular file; '-' writes to stdout" in done.stderr
    assert not Path("x.db").exists()


# What it is


@pytest.mark.parametrize("command", ["run", "quote"])
@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", b"prompt,label\nSay hello,1\n", "is CSV"),
        ("a.txt", b"Say hello\n", "is plain text"),
        ("a.parquet", b"PAR1" + bytes(9), "a Parquet file"),
        ("a.jsonl", b"", "is empty"),
    ],
)
def test_what_is_not_read_makes_no_store_and_no_files(run, command, name, data, told):
    Path(name).write_bytes(data)

    done = run(name, command=command)

    assert done.exit_code == 2
    assert told in done.stderr
    assert [path.name for path in Path().iterdir()] == [name]


def test_the_command_that_is_told_makes_lines_of_a_csv(run):
    Path("a.csv").write_text('prompt,id\n"Say ""hi"", you",7\nSay bye,8\n')
    told = run("a.csv").stderr.split("Make JSON lines of it: ")[1]

    subprocess.run(["bash", "-c", told], check=True, timeout=60)

    assert run("a.jsonl", "-m", "sim-small").exit_code == 0
    assert ids("a.results.jsonl") == ["7", "8"]


@pytest.mark.parametrize(
    "make", [json.dumps, lambda rows: json.dumps({"requests": rows}, indent=1)]
)
def test_an_array_is_run_as_it_is(run, make):
    Path("p.json").write_text(make([line(n) for n in range(30)]))

    assert quoted(run, "p.json") == (30, 0, 0)
    assert run("p.json", "--budget", "$1").exit_code == 0
    assert len(ids("p.json.results.jsonl")) == 30


# What quote says, and run does


FORMS = [
    {"url": "/chat/completions", "body": line(0)["body"]},
    {"custom_id": "a", "params": {**line(0)["body"], "system": "Be brief"}},
    {**line(0)["body"], "stop_sequences": ["x"]},
    {"key": "k", "request": {"contents": []}},
    {"recordId": "r", "modelInput": {}},
    {"prompt": "x", "model": "sim-small", "label": None},
    {"instruction": "x", "input": "y", "output": "z", "model": "sim-small"},
    {"url": "/v1/moderations", "body": {"input": "x"}},
    {"model": "sim-embedding", "input": "x"},
    {"model": "unheard-of", "messages": []},
    {**line(1), "custom_id": "twice"},
    {**line(1), "custom_id": "twice"},
    {**line(2), "custom_id": "twice"},
    {**line(3), "customId": "x", "custom_id": None},
    line(4, n=10**20),
]


def test_quote_tells_what_run_will(run):
    write(FORMS)

    requests, bad, code = quoted(run, "p.jsonl")
    said = run("p.jsonl", command="quote").stderr
    done = run("p.jsonl", "--json")

    told = json.loads(done.stdout)
    assert (told["succeeded"], told["bad_lines"]) == (requests, bad) == (7, 8)
    assert (code, done.exit_code) == (3, 1)
    assert "custom_id 'twice' stands on an earlier line too (line 11)" in said
    assert "custom_id 'twice' was used before for another body (line 11)" in said
    assert "'label'" in said


ANTHROPIC = ("--base-url", "https://api.openai.com/v1")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"n": 2}, "'n' above 1 has no translation"),
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"logit_bias": {}}, "'logit_bias' has no translation"),
        ({"messages": ["x"]}, "have not the form that OpenAI's have"),
        ({"tools": [{"type": "function"}]}, "have not the form that OpenAI's have"),
    ],
)
def test_what_cannot_be_translated_is_told_before_anything_is_sent(run, monkeypatch, body, problem):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    write([line(0, model="anthropic:claude-haiku-4-5", **body)])

    done = run("p.jsonl")

    assert done.exit_code == 1
    assert problem in done.stderr
    assert lines("p.errors.jsonl")[0]["response"] is None
    assert problem in run("p.jsonl", command="quote").stderr


def test_endpoints_that_a_provider_has_not_are_told_before_anything_is_sent(run, monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-none")
    write([
        {"model": "gpt-4o-mini", "messages": [], "max_tokens": 5, "system": "s"},
        {"model": "anthropic:claude-haiku-4-5", "input": "x", "url": "/v1/responses"},
    ])  # fmt: skip
    words = ("p.jsonl", "--base-url", "https://api.openai.com/v1")

    done = run(*words)

    assert done.exit_code == 1
    assert "p.jsonl:1: request: api.openai.com has no /v1/messages" in done.stderr
    assert "p.jsonl:2: request: Anthropic has no /v1/responses" in done.stderr
    assert quoted(run, *words)[:2] == (0, 2)


# What is told


def test_columns_are_told_once_and_are_not_sent(run):
    write([{"prompt": f"q{n}", "id": n, "category": "x", "label": None} for n in range(600)])

    done = run("p.jsonl", "-m", "sim-small")

    assert done.exit_code == 0
    assert done.stderr.count("no such parameters: 'category', 'label' (first on line 1;") == 1
    assert ids("p.results.jsonl") == sorted(str(n) for n in range(600))


def test_a_row_without_an_id_that_moved_is_told_what_happened(run):
    rows = [{"prompt": f"q{n}"} for n in range(3)]
    write(rows)
    run("p.jsonl", "-m", "sim-small")
    write([{"prompt": "new"}, *rows])

    done = run("p.jsonl", "-m", "sim-small")

    assert done.exit_code == 1
    assert "p.jsonl:2: has no id, so it is known as 'line-2'" in done.stderr
    assert "lines were added, moved or changed" in done.stderr
    assert "--fresh" in done.stderr
    assert "custom_id 'line-2'" not in done.stderr
    assert run("p.jsonl", "-m", "sim-small", "--fresh").exit_code == 0
    assert len(lines("p.results.jsonl")) == 4


def test_an_id_that_has_another_body_now_is_told_with_ways_out(run):
    write([line(0)])
    run("p.jsonl")
    write([line(0, max_tokens=9)])

    told = run("p.jsonl").stderr

    assert "custom_id 'r0' was used before for another body" in told
    assert "another -o keeps both" in told


# Names of outputs


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("prompts.jsonl", "prompts.results.jsonl"),
        ("a.v1", "a.v1.results.jsonl"),
        ("a.v2", "a.v2.results.jsonl"),
        ("a.v2.jsonl", "a.v2.results.jsonl"),
        ("a.json", "a.json.results.jsonl"),
        ("a.jsonl.gz", "a.jsonl.gz.results.jsonl"),
        ("a", "a.results.jsonl"),
    ],
)
def test_inputs_of_other_names_have_results_of_other_names(run, name, results):
    write([line(0)], name)

    assert run(name).exit_code == 0
    assert ids(results) == ["r0"]


@pytest.mark.parametrize("name", ["a", "a.v2"])
def test_a_name_that_would_collide_is_refused(run, name):
    write([line(0)], name)
    write([line(1)], f"{name}.jsonl")

    done = run(name)

    assert done.exit_code == 2
    assert "name them with -o" in " ".join(done.stderr.replace("│", " ").split())
    assert run(f"{name}.jsonl").exit_code == 0
    assert run(name, "-o", "out.jsonl").exit_code == 0
    assert ids("out.jsonl") == ["r0"]


async def test_lines_that_are_read_while_nobody_waits_any_more_are_the_next():
    more = threading.Event()

    def lines():
        yield 1
        more.wait(10)
        yield from (2, 3)

    chunks = _Chunks(lines())
    assert await chunks.take() == [1]
    waiting = asyncio.create_task(chunks.take())
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    more.set()

    assert await chunks.take() == [2, 3]
    chunks.put_back([2, 3])
    assert await chunks.take() == [2, 3]
    assert await chunks.take() == []
