"""`scheduler run` and `worker` tell the webhooks of scheduler.toml what came of it."""

from __future__ import annotations

import json

import pytest

from tests.telemetry.listening import Endpoint


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    lines = (json.dumps({"custom_id": f"r{n}", "body": body}) for n in range(5))
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    return tmp_path


def configure(place, url):
    (place / "scheduler.toml").write_text(
        f'[provider.simulated]\n[[webhooks]]\nname = "ops"\nurl = "{url}"\non = ["job.done"]\n'
    )


def test_a_run_tells_that_it_is_done_before_it_ends(cli, place):
    with Endpoint() as endpoint:
        configure(place, endpoint.url)
        done = cli("run", "p.jsonl", "-o", "out.jsonl", "--budget", "$1")

    assert done.exit_code == 0, done.output
    (event,) = endpoint.events()
    assert event["data"]["job"].endswith("out.jsonl")
    assert event["data"]["succeeded"] == 5


def test_a_worker_tells_what_it_finished_for_others(cli, place):
    with Endpoint() as endpoint:
        configure(place, endpoint.url)
        submitted = cli("submit", "p.jsonl", "--job", "j", "--budget", "$1")
        assert submitted.exit_code == 0, submitted.output
        done = cli("worker", "--until-idle")

    assert done.exit_code == 0, done.output
    assert [each["data"]["succeeded"] for each in endpoint.events()] == [5]


def test_a_webhook_that_makes_no_sense_is_told_before_anything_is_sent(cli, place):
    (place / "scheduler.toml").write_text(
        '[provider.simulated]\n[[webhooks]]\nurl_env = "NOT_SET_ANYWHERE"\n'
    )

    done = cli("run", "p.jsonl", "-o", "out.jsonl", "--budget", "$1")

    assert done.exit_code == 3
    assert "NOT_SET_ANYWHERE is not set" in done.stderr
    assert not (place / "out.jsonl").exists() or not (place / "out.jsonl").read_text()
