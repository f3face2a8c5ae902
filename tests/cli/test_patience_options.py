"""How often a line of a batch is tried: by default, by the file, by an option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.cli import run as command
from scheduler.cli.app import app
from scheduler.cli.runner import Outcome


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Runs the command, and gives what it makes its scheduler of."""
    monkeypatch.chdir(tmp_path)
    line = {"model": "sim-small", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    Path("p.jsonl").write_text(json.dumps(line) + "\n")
    seen = {}

    async def note(given, *rest):
        seen.update(given)
        return Outcome()

    monkeypatch.setattr(command, "_run", note)

    def run(*words):
        seen.clear()
        done = CliRunner().invoke(app, ["run", "p.jsonl", "--base-url", "sim:", *words])
        assert done.exit_code == 0, done.output
        return seen.get("max_attempts"), seen.get("patience")

    return run


def test_a_line_is_tried_six_times(settings):
    assert settings() == (6, None)  # and for as long as the scheduler's own patience


def test_options_come_before_the_file_and_the_file_before_what_is_usual(settings):
    Path("scheduler.toml").write_text('[defaults]\nmax_attempts = 4\npatience = "30s"\n')

    assert settings() == (4, "30s")
    assert settings("--max-attempts", "1", "--patience", "5m") == (1, "5m")


def test_no_patience_is_a_choice(settings):
    Path("scheduler.toml").write_text('[defaults]\npatience = "30s"\n')

    assert settings("--patience", "0s") == (6, "0s")
