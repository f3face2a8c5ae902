import json
import signal
import subprocess
import sys

import httpx
import pytest

from scheduler.cli.simulate import pairs
from scheduler.errors import ConfigError
from tests import warm


def test_the_simulated_provider_answers_and_keeps_its_own_bill():
    words = [sys.executable, "-m", "scheduler", "simulate", "--port", "0", "--json",
             "--output-tokens", "7", "--price", "mine=1000/2000"]  # fmt: skip
    question = {"model": "mine", "messages": [{"role": "user", "content": "hello"}]}
    process = warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, httpx.Client(trust_env=False) as client:
        try:
            url = json.loads(process.stdout.readline())["url"].removesuffix("/v1")
            answer = client.post(f"{url}/v1/chat/completions", json=question).json()
            billed = client.get(f"{url}/billed").json()
        finally:
            process.send_signal(signal.SIGINT)
        told = process.stderr.read()

    usage = answer["usage"]
    assert usage["completion_tokens"] == 7
    nusd = usage["prompt_tokens"] * 1_000_000 + 7 * 2_000_000
    assert (billed["calls"], billed["billed_nusd"]) == (1, nusd)
    assert "billed 1 call" in told
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a=1", "b=2"], [("a", "1"), ("b", "2")]),
        (["org/model=v=1/2"], [("org/model=v", "1/2")]),
        ([], []),
    ],
)
def test_pairs_split_at_the_last_equals_sign(words, found):
    assert pairs(words, "--price") == found


@pytest.mark.parametrize("word", ["a", "=1", "a="])
def test_a_pair_of_another_form_names_its_option(word):
    with pytest.raises(ConfigError, match="--price"):
        pairs([word], "--price")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fail", "gremlins=0.1"], "gremlins"),
        (["--fail", "timeout=often"], "often"),
        (["--price", "m=cheap"], "cheap"),
        (["--latency", "soon"], "soon"),
        (["--rpm", "0"], "rpm"),
        (["--host", "0.0.0.0"], "0.0.0.0"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_listens(cli, words, told):
    done = cli("simulate", "--port", 0, *words)

    assert done.exit_code == 3
    assert told in done.stderr
    assert done.stdout == ""
