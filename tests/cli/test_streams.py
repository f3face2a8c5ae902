"""The standard streams as shells, daemons and full disks leave them, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shells, /dev/full")
COMMAND = (sys.executable, "-m", "scheduler")
RUN = ("run", "p.jsonl", "--base-url", "sim:latency=0.05", "-c", "2", "--budget", "$1")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messages = [{"role": "user", "content": "x"}]
    lines = [
        {"custom_id": f"r{n}", "body": {"model": "sim-small", "messages": messages}}
        for n in range(20)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def shell(redirection: str, *words: str):
    script = f'"$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", script, "x", *COMMAND, *words], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def answered(name: str = "p.results.jsonl") -> set[str]:
    path = Path(name)
    texts = path.read_text().splitlines() if path.exists() else []
    return {json.loads(text)["custom_id"] for text in texts}


@pytest.mark.parametrize("mode", ["plain", "json", "none"])
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_run_goes_on_whatever_becomes_of_what_it_tells(where, mode):
    done = shell(where, *RUN, "--progress", mode)

    assert done.returncode == 0
    assert len(answered()) == 20


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "words",
    [
        ("budget", "explain", "$5"),
        ("quote", "p.jsonl", "--base-url", "sim:", "--json"),
        ("--help",),
    ],
)
def test_data_that_cannot_be_written_is_one_clear_error(where, words):
    done = shell(where, *words)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot write to stdout: ")


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_results_that_stdout_does_not_take_are_not_taken_for_delivered(where):
    done = shell(where, *RUN, "-o", "-")

    assert done.returncode == 1
    assert "cannot write results: " in done.stderr
    assert "Traceback" not in done.stderr
    again = shell("", *RUN, "-o", "-")
    assert len(again.stdout.splitlines()) == 20


def test_a_closed_stream_lends_its_number_to_no_file_of_ours():
    """What a library says on stderr would end up in the results."""
    done = shell("<&- >&- 2>&-", *RUN)

    assert done.returncode == 0
    assert len(answered()) == 20


def test_standard_input_that_is_closed_is_an_empty_one():
    done = shell("<&-", "run", "-", "--base-url", "sim:")

    assert done.returncode == 2
    assert "<stdin> is empty" in done.stderr


def test_a_reader_that_takes_its_time_gets_every_line_of_a_pipe_that_does_not_block():
    read, write = os.pipe()
    os.set_blocking(write, False)
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "x" * 3000}]}
    Path("p.jsonl").write_text(
        "".join(json.dumps({"custom_id": f"r{n}", "body": body}) + "\n" for n in range(400))
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "p.jsonl", "--base-url", "sim:", "-o", "-"], stdout=write,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    with open(read) as file:
        lines = [json.loads(line)["custom_id"] for line in file]
    _, told = process.communicate(timeout=60)

    assert process.returncode == 0, told
    assert sorted(lines) == sorted(f"r{n}" for n in range(400))
