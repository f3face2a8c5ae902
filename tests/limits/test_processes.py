"""Several real processes on one file, one provider with a limit: together they stay within it."""

import json
import subprocess
import sys
import urllib.request

from tests import warm
from tests.warm import running_server

ASK = """
import asyncio, sys
from scheduler import Limits, OpenAI, Request, Scheduler

async def main(path, url, name):
    provider = OpenAI(base_url=url, api_key="sk-test")
    provider.limits = Limits(requests_per_minute=1200)
    async with Scheduler(path, providers=provider, prices={"sim-small": "0.15/0.60"}) as s:
        requests = [Request.chat("sim-small", f"{name} {n}", max_tokens=9) for n in range(50)]
        print(len(await asyncio.gather(*map(s.run, requests))))

asyncio.run(main(*sys.argv[1:]))
"""


def test_three_processes_share_a_limit_and_none_is_refused(tmp_path):
    with running_server("--rpm", "1200", "--latency", "50ms") as url:
        words = [sys.executable, "-c", ASK, str(tmp_path / "scheduler.db"), url]
        asking = [
            warm.Popen([*words, f"p{n}"], stdout=subprocess.PIPE, text=True) for n in range(3)
        ]
        answers = [each.communicate(timeout=90)[0].strip() for each in asking]
        with urllib.request.urlopen(url.removesuffix("/v1") + "/billed") as told:
            bill = json.load(told)

    assert answers == ["50", "50", "50"]
    assert bill["received"] == bill["calls"] == 150
