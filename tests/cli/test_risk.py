"""A risk on the command line, and in the file."""

from __future__ import annotations

import json

import pytest

from scheduler.config import load_config
from scheduler.errors import ConfigError


def test_a_risk_is_set_shown_and_taken_back(cli, tmp_path):
    store = f"sqlite:///{tmp_path / 's.db'}"
    made = cli("budget", "set", "team", "$5/day", "--create", "--risk", "low", "--store", store)
    listed = cli("budget", "list", "--store", store)
    (row,) = json.loads(cli("budget", "list", "--json", "--store", store).stdout)
    raised = cli("budget", "set", "team", "$8", "--store", store)
    ended = cli("budget", "set", "team", "$8 risk none", "--store", store)

    assert "team: made, $5/day risk low" in made.stdout
    assert "team: risk low; calls under way count at their ceilings, which fit" in listed.stdout
    assert (row["risk"], row["kept_usd"]) == ("low", "0.00")
    assert "$5/day risk low → $8/day risk low" in raised.stdout
    assert "$8/day risk low → $8/day" in ended.stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--risk", "low"), "needs --budget"),
        (("--budget", "$5", "--risk", "lots"), "'lots' is not one of 'none', 'low'"),
        (("--budget", "$5 risk low", "--risk", "high"), "'high' and, in the limit, 'low'"),
    ],
)
def test_a_wrong_risk_is_said_before_anything_is_sent(cli, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')

    done = cli(
        "run",
        "p.jsonl",
        "--base-url",
        "sim:",
        "-m",
        "sim-small",
        *words,
    )

    assert done.exit_code == 3
    assert problem in " ".join(done.stderr.split())


def test_a_run_takes_the_risk_of_its_file_unless_it_says_another(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi", "max_tokens": 5}\n')
    (tmp_path / "scheduler.toml").write_text('[defaults]\nrisk = "high"\n')
    run_it = ("run", "p.jsonl", "--base-url", "sim:", "-m", "sim-small", "--budget", "$5")

    def risk():
        return json.loads(cli("budget", "list", "--json").stdout)[0]["risk"]

    cli(*run_it)
    assert risk() == "high"
    cli(*run_it, "--risk", "none")
    assert risk() == "none"


def test_a_wrong_risk_in_the_file_is_named_with_its_place(tmp_path):
    path = tmp_path / "scheduler.toml"
    path.write_text('[defaults]\nrisk = "huge"\n')

    with pytest.raises(ConfigError, match=r"defaults\.risk"):
        load_config(path)
