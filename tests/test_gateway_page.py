"""docs/gateway.md: its commands, in their order, say what stands below them; its program, too, and
that of docs/batches.md.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from scheduler.server.gateway import COUNTED, FREE
from tests import warm

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "gateway.md").read_text()
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
STEPS = re.findall(r"^\$ (scheduler .+)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)
BATCHES = (ROOT / "docs" / "batches.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE + BATCHES, re.DOTALL)
ASKS = """
import json, os, urllib.request

body = {"model": "sim-small", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as told:
    print(json.load(told)["choices"][0]["message"]["content"])
"""


@pytest.fixture
def environment(tmp_path):
    hidden = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE", "SCHEDULER_CONFIG")
    bin = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"PATH": bin}


def test_the_commands_say_what_stands_below_them(tmp_path, environment):
    (tmp_path / "ask.py").write_text(ASKS)
    assert len(STEPS) == CONSOLE.count("$ scheduler") == 5
    for command, said in STEPS:
        _, *words = shlex.split(command)
        done = warm.run(
            [sys.executable, "-m", "scheduler", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        pattern = ".*".join(map(re.escape, said.split("…")))
        assert re.fullmatch(pattern, done.stdout + done.stderr, re.DOTALL), (command, done.stdout)
        assert done.returncode == 0


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_the_program_prints_what_stands_below_it(program, output, tmp_path, environment):
    assert len(PROGRAMS) == (PAGE + BATCHES).count("```python") == 2
    done = warm.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=environment, check=False,
    )  # fmt: skip

    assert done.stdout == output, done.stderr


def test_it_names_what_is_served():
    for path in (*COUNTED, *FREE):
        assert path.rpartition("/")[2] in PAGE
