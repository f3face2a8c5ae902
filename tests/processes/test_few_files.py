"""A process that may open few files sends less at once, says so once, and loses nothing."""

import json
import subprocess
import sys

import pytest

from scheduler.providers import descriptors
from tests import warm

resource = pytest.importorskip("resource")

RUN = """
import asyncio, json, resource, sys
soft, hard = map(int, sys.argv[2:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from scheduler import Request, Scheduler
from scheduler.providers.openai import OpenAI

async def main():
    provider = OpenAI(api_key="sk-12345678", base_url=sys.argv[1])
    async with Scheduler(sys.argv[4], providers=provider, prices={"m": "1/1"}, concurrency=256,
                         max_attempts=1) as s:
        asked = (s.run(Request.chat("m", f"hi {n}", max_tokens=5)) for n in range(300))
        done = await asyncio.gather(*asked, return_exceptions=True)
        failed = [repr(each) for each in done if isinstance(each, Exception)]
        print(json.dumps([failed, s.stats().suspense_nusd, resource.getrlimit(resource.RLIMIT_NOFILE)[0]]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def url():
    words = [sys.executable, "-m", "scheduler", "simulate", "-p", "0", "--latency", "100ms",
             "--price", "m=1/1", "--json"]  # fmt: skip
    server = warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield json.loads(server.stdout.readline())["url"]
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@pytest.mark.parametrize(("soft", "hard", "warnings"), [(64, 64, 1), (64, 4096, 0), (256, 256, 1)])
def test_calls_at_once_stay_below_the_limit_of_files(url, tmp_path, soft, hard, warnings):
    done = warm.run(
        [sys.executable, "-c", RUN, url, str(soft), str(hard), str(tmp_path / "s.db")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    failed, suspense_nusd, limit = json.loads(done.stdout)
    assert (failed, suspense_nusd) == ([], 0)
    assert done.stderr.count("calls at once are wanted") == warnings
    assert done.stderr.count("\n") == warnings
    assert limit == soft if soft == hard else limit > soft
    assert "Raise the limit with 'ulimit -n" in done.stderr or not warnings


def test_what_is_wanted_is_shared_among_providers(monkeypatch):
    monkeypatch.setattr(descriptors, "_places", lambda wanted: 10)
    assert descriptors.fitting({"a": 100, "b": 100, "c": 1}) == {"a": 4, "b": 4, "c": 1}
    assert descriptors.fitting({"a": 5, "b": 5}) == {"a": 5, "b": 5}
    monkeypatch.setattr(descriptors, "_places", lambda wanted: None)
    assert descriptors.fitting({"a": 10**6}) == {"a": 10**6}


def test_a_system_without_such_a_limit_has_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert descriptors._places(10**6) is None
