"""A batch is killed in the middle; the same command finishes it and pays for nothing twice.

You should see:

    killed with results missing: True
    second run: exit 0, 40 results, each once: True
    sent twice: at most the 4 that were in flight: True
    audit: every balance adds up: True
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from scheduler.providers.simulated.server import running_server

SCHEDULER = [sys.executable, "-m", "scheduler"]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_server("--latency", "100ms") as url:
        place = Path(folder)
        prompts, results = place / "prompts.jsonl", place / "results.jsonl"
        prompts.write_text(
            "".join(
                json.dumps({"prompt": f"Question {n}", "max_tokens": 9}) + "\n" for n in range(40)
            )
        )
        store = f"sqlite:///{place}/scheduler.db"
        run = [*SCHEDULER, "run", str(prompts), "-o", str(results), "--store", store, "-c", "4",
               "-m", "sim-small", "--price", "sim-small=0.15/0.60", "--base-url", url]  # fmt: skip

        first = subprocess.Popen(run, stderr=subprocess.DEVNULL)
        while len(lines(results)) < 8:
            time.sleep(0.05)
        first.kill()
        first.wait()
        print(f"killed with results missing: {len(lines(results)) < 40}")

        second = subprocess.run(run, stderr=subprocess.DEVNULL, check=False)
        ids = [json.loads(line)["custom_id"] for line in lines(results)]
        print(
            f"second run: exit {second.returncode}, {len(ids)} results, each once: {len(set(ids)) == 40}"
        )

        billed = httpx.get(url.removesuffix("/v1") + "/billed").json()
        print(f"sent twice: at most the 4 that were in flight: {billed['calls'] <= 44}")
        audit = subprocess.run(
            [*SCHEDULER, "audit", "--store", store], capture_output=True, check=False
        )
        print(f"audit: every balance adds up: {audit.returncode == 0}")


main()
