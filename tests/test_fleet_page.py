"""docs/fleet.md: its commands, in their order, say what stands below them; its program, too."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from scheduler.cli.app import COMMANDS
from tests import warm

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "fleet.md").read_text()
HERE = re.sub(r"## On a Ray cluster\n.*?(?=\n## )", "", PAGE, flags=re.DOTALL)  # that: in tests/ray
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", HERE, re.DOTALL))
STEPS = re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def environment():
    hidden = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SCHEDULER_STORE", "SCHEDULER_CONFIG")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def test_the_commands_say_what_stands_below_them(tmp_path, environment):
    body = {"model": "sim-small", "max_tokens": 20}
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"custom_id": f"r{n}", "prompt": "hi", **body}) + "\n" for n in range(3))
    )
    assert len(STEPS) == CONSOLE.count("$ scheduler") == 6
    for command, said in STEPS:
        _, *words = shlex.split(command)
        if words[0] == "collect":
            words += ["--progress", "none"]
        done = warm.run(
            [sys.executable, "-m", "scheduler", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        pattern = ".*".join(map(re.escape, said.split("…")))
        assert re.fullmatch(pattern, done.stdout + done.stderr), (command, done.stderr)
        assert done.returncode == 0


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_the_program_prints_what_stands_below_it(program, output, tmp_path, environment):
    assert len(PROGRAMS) == PAGE.count("```python") == 1
    done = warm.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=environment, check=False,
    )  # fmt: skip

    assert done.stdout == output, done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_its_links_lead_somewhere(target):
    assert (ROOT / "docs" / target).exists()


def test_its_options_and_commands_are_those_there_are():
    named = set(re.findall(r"`scheduler ([a-z]+)", PAGE))
    assert named <= COMMANDS.keys()
    helps = "".join(
        warm.run(
            [sys.executable, "-m", "scheduler", *name.split(), "--help"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for name in ("submit", "worker", "collect", "queue", "ray up")
    )  # fmt: skip
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)):
        assert option in helps, option
