"""``scheduler run … -- COMMAND``: programs as they are, within a budget."""

import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest

from scheduler.cli.child import environment, passing_on, split
from scheduler.errors import ConfigError
from tests import warm

pytestmark = pytest.mark.filterwarnings("default")

ASKS = """
import sys, {module}
client = {make}
print(len({answer}.split()))
"""
SAID = 'model="sim-small", messages=[{"role": "user", "content": "hi"}], max_tokens=100'
PROGRAMS = {
    "openai": ("openai", "openai.OpenAI()",
               f"client.chat.completions.create({SAID}).choices[0].message.content"),
    "anthropic": ("anthropic", "anthropic.Anthropic()",
                  f"client.messages.create({SAID}).content[0].text"),
    "groq": ("groq", "groq.Groq()",
             f"client.chat.completions.create({SAID}).choices[0].message.content"),
    "google": ("google.genai", "google.genai.Client()",
               'client.models.generate_content(model="sim-small", contents="hi").text'),
}  # fmt: skip


@pytest.fixture
def run(tmp_path, provider):
    def run(*words, **options):
        to = ("--base-url", provider.url, "--price", "sim-small=0/1000", "--store", "s.db")
        return warm.run(
            [sys.executable, "-m", "scheduler", "run", *to, *words], cwd=tmp_path,
            capture_output=True, text=True, timeout=60, **options,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("sdk", PROGRAMS)
def test_a_program_that_is_not_changed_is_within_the_budget(run, tmp_path, sdk):
    module, make, answer = PROGRAMS[sdk]
    pytest.importorskip(module)
    (tmp_path / "old.py").write_text(ASKS.format(module=module, make=make, answer=answer))
    options = ("--cap-output", "100", "--budget", "$5")
    done = run(*options, "--", sys.executable, "old.py")

    assert done.stdout == "10\n", done.stderr
    assert done.stderr.splitlines()[-1] == "1 call answered, $0.01 spent · $4.99 left of 'default'"
    assert done.returncode == 0


def test_its_calls_are_known_by_its_name(run, tmp_path):
    module, make, answer = PROGRAMS["openai"]
    pytest.importorskip(module)
    (tmp_path / "old.py").write_text(ASKS.format(module=module, make=make, answer=answer))
    run("--", sys.executable, "old.py")
    told = warm.run(
        [sys.executable, "-m", "scheduler", "spend", "--by", "job", "--store", "s.db"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "old.py" in told.stdout


@pytest.mark.parametrize(
    ("words", "code"), [(("sh", "-c", "exit 7"), 7), (("true",), 0), (("sh", "-c", "kill -9 $$"), 137),
                        (("no-such-command",), 127), (("/",), 126)],
)  # fmt: skip
def test_it_ends_with_the_commands_own_exit_code(run, words, code):
    assert run("--", *words).returncode == code


def test_signals_go_to_the_command(tmp_path, provider):
    words = ["-m", "scheduler", "run", "--base-url", provider.url, "--store", "s.db", "--", "sh", "-c",
             "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    assert out == "told\n"
    assert process.returncode == 3


def test_options_of_lines_say_nothing_of_a_command(run):
    done = run("-o", "x.jsonl", "--", "true")

    assert done.returncode == 2
    assert "a command has none" in done.stderr


def test_its_variables_lead_to_the_gateway_and_keep_what_was_said(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Scheduler-Tags: user=ann")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Scheduler-Job: mine")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "real")
    env = environment("http://h:1", "secret", ["python", "-u", "dir/old.py"])

    assert env["OPENAI_BASE_URL"] == "http://h:1/v1"
    assert env["ANTHROPIC_BASE_URL"] == env["GOOGLE_GEMINI_BASE_URL"] == "http://h:1"
    assert env["GROQ_BASE_URL"] == "http://h:1/at/groq"
    assert {env[name] for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GROQ_API_KEY",
                                   "GEMINI_API_KEY", "GOOGLE_API_KEY")} == {"secret"}  # fmt: skip
    assert "ANTHROPIC_AUTH_TOKEN" not in env
    assert env["OPENAI_CUSTOM_HEADERS"] == "X-Scheduler-Tags: user=ann\nX-Scheduler-Job: old.py"
    assert env["ANTHROPIC_CUSTOM_HEADERS"] == "X-Scheduler-Job: mine"


@pytest.mark.parametrize("words", [["serve"], ["run", "--", "true"]])
def test_without_the_extra_it_says_what_to_install(words, tmp_path):
    program = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['scheduler', *sys.argv[1:]]\n"
        "from scheduler.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 3
    assert "pip install 'llm-budget-scheduler[server]'" in done.stderr


def test_what_stands_behind_the_dashes_is_the_command():
    assert split(["--budget", "$1", "--", "a", "--b", "--", "c"]) == (
        ["--budget", "$1"], ["a", "--b", "--", "c"],
    )  # fmt: skip
    assert split(["a.jsonl"]) == (["a.jsonl"], None)
    with pytest.raises(ConfigError, match="no command"):
        split(["--"])


def test_a_signal_that_comes_before_the_command_is_there_is_passed_on():
    class Child:
        told: ClassVar = []

        def send_signal(self, number):
            self.told.append(number)

    with passing_on() as begin:
        os.kill(os.getpid(), signal.SIGTERM)
        assert Child.told == []
        begin(Child())
        os.kill(os.getpid(), signal.SIGUSR1)

    assert Child.told == [signal.SIGTERM, signal.SIGUSR1]


UNFINISHED = """
import openai
client = openai.OpenAI()
body = {"model": "sim-small", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
file = client.files.create(file=__import__("json").dumps(line).encode(), purpose="batch")
client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
client.responses.create(model="sim-small", input="hi", max_output_tokens=100, background=True)
"""


@pytest.mark.parametrize("store", ["s.db", "memory://"])
def test_batches_that_are_not_finished_are_told_of(run, tmp_path, store):
    (tmp_path / "old.py").write_text(UNFINISHED)
    done = run("--store", store, "--budget", "$0.05", "--", sys.executable, "old.py")
    last = done.stderr.splitlines()[-1]
    what, _, rest = last.partition(" not finished")

    assert what == "1 batch and 1 response in the background"
    assert "scheduler serve --store" in rest
    assert ("lost" in rest) == (store != "s.db")
    assert done.returncode == 0
