"""`scheduler run` with several providers, limits, an empty purse at the provider, and prevention."""

import json
import os
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import warm
from tests.warm import running_server

KEY = "sk-test-1234567890"
PRICE = ("--price", "sim-small=0.15/0.60")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*os.environ,):
        if name.endswith("_API_KEY") or name.startswith("SCHEDULER_"):
            monkeypatch.delenv(name)
    return tmp_path


def write(models, **more):
    Path("p.jsonl").write_text("".join(
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": model, "max_tokens": 20, "messages": [{"role": "user", "content": f"q{n}"}],
            **more}}) + "\n"
        for n, model in enumerate(models)))  # fmt: skip


def run(*words, command="run"):
    return warm.run(
        [sys.executable, "-m", "scheduler", command, "p.jsonl", *words],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def lines(name):
    return [json.loads(text) for text in Path(name).read_text().splitlines()]


def bill(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/billed") as told:
        return json.load(told)


def test_one_batch_mixes_providers_and_a_quote_knows_them_too(place, monkeypatch):
    monkeypatch.setenv("GOOD_KEY", KEY)
    with ExitStack() as stack:
        one, two = (stack.enter_context(running_server("--api-key", KEY)) for _ in range(2))
        Path("scheduler.toml").write_text(f"""
            [provider.one]
            kind = "openai"
            base_url = "{one}"
            api_key_env = "GOOD_KEY"
            price = "0.15/0.60"
            [provider.claude]
            kind = "anthropic"
            base_url = "{two}"
            api_key_env = "GOOD_KEY"
            price = "1/5"
            [route]
            "sim-large" = "claude"
            [defaults]
            provider = "one"
        """)
        write(["sim-small", "claude:sim-small", "sim-large", "one:sim-small"])
        quoted = run("--json", command="quote")
        done = run("--budget", "$1/day")

        assert json.loads(quoted.stdout)["requests"] == 4
        assert done.returncode == 0, done.stderr
        assert (bill(one)["calls"], bill(two)["calls"]) == (2, 2)
    assert all(each["response"]["body"]["choices"] for each in lines("p.results.jsonl"))


def test_a_key_that_is_refused_stops_its_provider_and_not_the_others(place, monkeypatch):
    monkeypatch.setenv("GOOD_KEY", KEY)
    monkeypatch.setenv("BAD_KEY", "sk-wrong-123456")
    with ExitStack() as stack:
        one, two = (stack.enter_context(running_server("--api-key", KEY, "--latency", "50ms"))
                    for _ in range(2))  # fmt: skip
        Path("scheduler.toml").write_text("".join(f"""
            [provider.{name}]
            kind = "openai"
            base_url = "{url}"
            api_key_env = "{key}"
            price = "0.15/0.60"
        """ for name, url, key in (("one", one, "GOOD_KEY"), ("two", two, "BAD_KEY"))))  # fmt: skip
        write(["one:sim-small", "two:sim-small"] * 30)
        done = run("-c", "4")

        assert done.returncode == 4, done.stderr
        assert "Check the key of 'two'" in done.stderr
        assert "sk-wrong" not in done.stderr
        assert len(lines("p.results.jsonl")) == 30
        assert len(lines("p.parked.jsonl")) == 30

        monkeypatch.setenv("BAD_KEY", KEY)
        again = run("-c", "4")
        assert again.returncode == 0, again.stderr
        assert len(lines("p.results.jsonl")) == 60
        assert (bill(one)["calls"], bill(two)["calls"]) == (30, 30)


def test_a_limit_that_was_given_is_kept_and_told(place):
    # The server takes twice as many at once as the limit lets go: where a machine stands still for
    # a moment, calls that left one after another arrive together.
    with running_server("--rpm", "1200", "--style", "silent") as url:
        write(["sim-small"] * 40)
        done = run("--base-url", url, *PRICE, "--max-requests-per-minute", "600",
                   "--progress", "json")  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert bill(url)["received"] == 40
    told = [json.loads(text) for text in done.stderr.splitlines() if text.startswith("{")]
    assert any("at its limit of 600 requests a minute" in (each.get("limited") or "")
               for each in told)  # fmt: skip


@pytest.mark.parametrize("fault", ["no_credit"])
def test_an_empty_purse_at_the_provider_ends_a_run_that_may_not_wait_and_loses_nothing(
    place, fault
):
    write(["sim-small"] * 30)
    with running_server("--fail", f"{fault}=1") as url:
        done = run("--base-url", url, *PRICE, "--on-exhausted", "stop")
        status = warm.run([sys.executable, "-m", "scheduler", "status", "--json"],
                                capture_output=True, text=True, check=True)  # fmt: skip

    assert done.returncode == 75, done.stderr
    assert "says that its own credit is used up (No credit is left (simulated).)" in done.stderr
    assert "one request tries again" in done.stderr
    assert len(lines("p.parked.jsonl")) == 30
    assert json.loads(status.stdout)["requests"]["failed"] == 0

    with running_server() as url:
        again = run("--base-url", url, *PRICE)
        assert again.returncode == 0, again.stderr
        assert len(lines("p.results.jsonl")) == 30


def test_long_prompts_dear_requests_and_fallbacks_by_option(place):
    write(["sim-large", "sim-large"])
    with running_server() as url:
        price = ["--price", "sim-large=1000/1000", "--price", "sim-small=0.1/0.1"]
        refused = run("--base-url", url, *price, "--max-cost", "0.01")
        long = run("--base-url", url, *price, "--max-prompt-tokens", "3", "--fresh")
        done = run("--base-url", url, *price, "--budget", "$0.01", "--fallback", "sim-small",
                   "--fresh")  # fmt: skip

    assert refused.returncode == 1
    assert "above its max_cost of $0.01" in refused.stderr
    assert "above the most allowed of 3" in long.stderr
    assert done.returncode == 0, done.stderr
    for each in lines("p.results.jsonl"):
        assert each["response"]["body"]["model"] == "sim-small"
        assert each["scheduler"]["instead_of"]["model"] == "sim-large"
