"""A terminal, pipe or file that knows few characters gets others in their place, never an error."""

import json
import os
import subprocess
import sys

import anyio
import pytest

from scheduler import Budget, Request, Scheduler, Simulated
from scheduler.cli.output import fit_streams

ODD = "büdget→€"
ENVIRONMENTS = {
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX"},
    "C, no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "utf-8, strict": {"PYTHONIOENCODING": "utf-8:strict"},
}
COMMANDS = (
    ("status",), ("queue",), ("budget", "list"), ("budget", "set", ODD, "$7"), ("spend",), ("audit",),
    ("spend", "--by", "budget", "--csv"), ("doctor",), ("prices", "show", "gpt-4o-mini"), ("--help",),
    ("run", "--help"), ("status", "--store", f"{ODD}.db"), ("run", f"no {ODD}.jsonl"), ("status", "--json"),
    ("budget", "explain", "$5/day"), ("status", "--store", "\udce9.db"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("encodings")

    async def fill():
        budgets = [Budget(ODD, "$5/day"), Budget("none", "$0")]
        async with Scheduler(place / "scheduler.db", budgets=budgets, providers=Simulated()) as s:
            await s.run(Request.chat("sim-small", "Hi", max_tokens=5, key=ODD, budget=ODD, job=ODD))
            s.submit(Request.chat("sim-small", "Hi", max_tokens=5, key=f"{ODD}2", budget="none"))
            while not s.stats().parked:
                await anyio.sleep(0.02)

    anyio.run(fill)
    line = {
        "custom_id": ODD,
        "body": {"model": "sim-small", "messages": [{"role": "user", "content": "x"}]},
    }
    (place / "p.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n[no\n")
    return place


def environment(more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return {**kept, "LANG": "en_US.UTF-8", **more}


# All of them in one process, for the time it takes to begin one: each as it were alone.
ALL = """
import json, sys
from scheduler.cli.app import app
for words in json.loads(sys.argv[1]):
    try:
        app(words, prog_name="scheduler")
    except SystemExit:
        pass
"""


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_command_writes_what_the_stream_can_take(folder, name):
    env, words = ENVIRONMENTS[name], json.dumps(COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", ALL, words], cwd=folder, capture_output=True, env=environment(env),
        timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Error:" not in done.stderr.replace(b"ConfigError:", b"")
    encoding = env.get("PYTHONIOENCODING", "ascii").partition(":")[0]
    text = done.stdout.decode(encoding)
    if encoding == "ascii":
        assert "b\\xfcdget\\u2192\\u20ac" in text or "b\\xfcdget->\\u20ac" in text
        assert "[#" in text or "[." in text  # a bar
    assert "$5/day" in text


@pytest.mark.parametrize("name", ["LC_ALL=C", "C, no UTF-8 mode", "cp1252"])
@pytest.mark.parametrize("mode", ["plain", "json"])
def test_a_run_does_too_and_its_results_are_whole(folder, name, mode):
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "run", "p.jsonl", "--base-url", "sim:", "-o", "-", "--progress",
         mode, "--store", f"{mode}-{name[:3]}.db"],
        cwd=folder, capture_output=True, env=environment(ENVIRONMENTS[name]), timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["custom_id"] == ODD


def test_streams_that_are_none_of_pythons_own_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", object())
    fit_streams()


@pytest.mark.skipif(sys.platform != "linux", reason="names there are texts")
@pytest.mark.parametrize("name", ["utf-8, strict", "C, no UTF-8 mode"])
def test_a_file_whose_name_is_no_utf_8_is_run_and_gone_on_with(tmp_path, name):
    line = {"body": {"model": "sim-small", "messages": [{"role": "user", "content": "x"}]}}
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jsonl")
    with open(path, "w") as file:
        file.write(json.dumps(line) + "\n")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "scheduler", "run", path, "--base-url", "sim:", "--store", "s.db"],
            cwd=tmp_path, capture_output=True, env=environment(ENVIRONMENTS[name]), timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with open(path.replace(b".jsonl", b".results.jsonl")) as file:
            assert len(file.readlines()) == 1


NO_TEXT = [
    ("budget", "set", "a\udce9", "$5"), ("budget", "set", "default", "$5\udce9"),
    ("budget", "pause", "a\udce9"), ("budget", "resume", "a\udce9"), ("budget", "explain", "$5/d\udce9"),
    ("prices", "show", "gpt-4o-mini", "a\udce9"), ("prices", "set", "a\udce9", "--in", "1", "--out", "1"),
    ("prices", "set", "a", "--in", "\udce9", "--out", "1"), ("queue", "--job", "a\udce9"),
    ("status", "--job", "a\udce9"), ("spend", "--since", "a\udce9"), ("resolve", "a\udce9", "--void"),
    ("run", "p.jsonl", "--model", "a\udce9"), ("run", "p.jsonl", "--price", "a\udce9=1/1"),
    ("run", "p.jsonl", "--base-url", "http://a\udce9/v1"), ("quote", "p.jsonl", "--budget", "$5\udce9"),
    ("quote", "p.jsonl", "--id-column", "a\udce9"), ("prune", "--before", "1\udce9"),
    ("simulate", "--api-key", "a\udce9"),
]  # fmt: skip


@pytest.mark.parametrize("words", NO_TEXT, ids=" ".join)
def test_an_argument_that_is_no_utf_8_is_a_wrong_use_of_any_command(
    folder, cli, words, monkeypatch
):
    monkeypatch.chdir(folder)
    before = sorted(each.name for each in folder.iterdir())

    done = cli(*words)

    assert done.exit_code == 2
    said = "".join(done.stderr.replace("│", " ").split())  # it may be broken anywhere
    assert "isnotvalidUTF-8" in said
    assert "surrogates" not in said
    assert sorted(each.name for each in folder.iterdir()) == before


def test_it_is_told_as_json_too(folder, cli, monkeypatch):
    monkeypatch.chdir(folder)

    done = cli("budget", "pause", "a\udce9", "--json")

    assert (done.exit_code, json.loads(done.stdout)["error"]["kind"]) == (2, "UsageError")


@pytest.mark.skipif(sys.platform != "linux", reason="names there are texts")
def test_every_option_that_names_a_file_takes_any_name(tmp_path):
    line = {"body": {"model": "sim-small", "messages": [{"role": "user", "content": "x"}]}}
    path = os.fsencode(tmp_path)
    for name, text in {b"p\xe9.jsonl": json.dumps(line), b"c\xe9.toml": ""}.items():
        with open(os.path.join(path, name), "w") as file:
            file.write(text + "\n")
    for words in (
        (b"run", b"p\xe9.jsonl", b"-o", b"o\xe9.jsonl", b"--base-url", b"sim:", b"--config", b"c\xe9.toml"),
        (b"quote", b"p\xe9.jsonl", b"--base-url", b"sim:"), (b"status",),
        (b"prune", b"--before", b"0s", b"--archive", b"a\xe9.jsonl"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "scheduler", *words, b"--store", b"s\xe9.db"], cwd=tmp_path,
            capture_output=True, env=environment({"LANG": "C.UTF-8"}), timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
    assert {b"o\xe9.jsonl", b"s\xe9.db"} <= set(os.listdir(path))
