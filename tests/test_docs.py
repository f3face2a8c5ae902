"""What the README and the examples say is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^\$ (scheduler [a-z]+)", README, re.MULTILINE)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_prints_what_its_docstring_says(path):
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, check=False
    )

    says = path.read_text().partition("You should see:\n\n")[2].partition('"""')[0]
    expected = [line.removeprefix("    ") for line in says.strip("\n").splitlines()]
    assert done.stdout.splitlines() == expected, done.stderr


def test_there_are_examples_and_programs_to_run():
    assert len(EXAMPLES) == 16
    assert len(PROGRAMS) == README.count("```python") == 3
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_of_the_readme_prints_what_stands_below_it(program, output, tmp_path):
    done = warm.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.stdout == output, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command):
    words = [sys.executable, "-m", *command.split(), "--help"]
    done = warm.run(words, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_the_readme_links_to_what_is_there(target):
    assert (ROOT / target).exists()


def test_make_shows_and_has_the_targets_that_are_talked_about():
    makefile = (ROOT / "Makefile").read_text()
    for target in (
        "demo",
        "test",
        "bench",
        "check",
        "format",
        "lint",
        "types",
        "simulate",
        "soak",
        "fuzz",
    ):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


def test_the_example_configuration_is_one(monkeypatch):
    from scheduler.config import load_config

    config = load_config(ROOT / "examples" / "scheduler.toml")

    assert set(config.tables) == {"openai", "claude", "azure", "local"}
    assert config.defaults.fallback == ["gpt-4o-mini", "local:llama-3.3-8b"]


def test_the_program_in_the_page_on_providers_runs():
    (program,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "providers.md").read_text(), re.DOTALL
    )
    done = warm.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


OBSERVING = (ROOT / "docs" / "observability.md").read_text()


def test_the_program_in_the_page_on_watching_prints_what_stands_below_it(tmp_path):
    ((program, output),) = re.findall(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", OBSERVING, re.DOTALL
    )
    done = warm.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.stdout == output, done.stderr


def test_the_webhooks_of_that_page_are_taken(tmp_path, monkeypatch):
    from scheduler.config import load_config
    from scheduler.telemetry.hooks import configured
    from scheduler.telemetry.news import KINDS

    monkeypatch.setenv("OPS_WEBHOOK_SECRET", "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/T/B/x")
    (text,) = re.findall(r"```toml\n(.*?)```", OBSERVING, re.DOTALL)
    path = tmp_path / "scheduler.toml"
    path.write_text(text)

    hooks = configured(load_config(path))

    assert [each.name for each in hooks] == ["ops", "slack", "pager"]
    assert set(re.findall(r"^\| `(\w+\.\w+)` \|", OBSERVING, re.MULTILINE)) == set(KINDS)


def test_the_commands_and_files_of_that_page_exist():
    for words in re.findall(r"^\$ scheduler (\w+)", OBSERVING, re.MULTILINE):
        assert warm.run([sys.executable, "-m", "scheduler", words, "--help"]).returncode == 0
    for target in re.findall(r"\]\((\.\./[^)]+)\)", OBSERVING):
        assert (ROOT / "docs" / target).exists()
