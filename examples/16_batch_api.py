"""OpenAI's Batch API on a budget of your own: what does not fit is parked, and goes on after a raise.

You should see:

    in_progress: 2 of 4, 2 parked on 'default'
    completed: 4 of 4, $0.0000174
"""

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from openai import OpenAI

SCHEDULER = [sys.executable, "-m", "scheduler"]


def line(number: int) -> str:
    body = {
        "model": "sim-small",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    return json.dumps({
        "custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body
    })  # fmt: skip


def until(condition: Any) -> Any:
    while not (found := condition()):
        time.sleep(0.05)
    return found


with tempfile.TemporaryDirectory() as folder:
    # For real providers: no --base-url, and their keys in the environment.
    options = ["--base-url", "sim:", "--budget", "$0.000032", "--port", "0", "--json"]
    gateway = subprocess.Popen(
        [*SCHEDULER, "serve", *options],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert gateway.stdout is not None
    told = json.loads(gateway.stdout.readline())

    with OpenAI(base_url=told["url"], api_key=told["token"]) as client:
        lines = "\n".join(line(number) for number in range(4)).encode()
        file = client.files.create(file=("in.jsonl", lines), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        def now() -> Any:
            return client.batches.retrieve(batch.id)

        def waits() -> Any:
            seen = now()
            is_still = seen.request_counts.completed == 2 == seen.scheduler.get("parked")
            return is_still and seen

        parked = until(waits)
        counts, why = parked.request_counts, parked.scheduler
        print(f"{parked.status}: {counts.completed} of {counts.total}, "
              f"{why['parked']} parked on {why['budget']!r}")  # fmt: skip

        raised = [*SCHEDULER, "budget", "set", "default", "$1"]
        subprocess.run(raised, cwd=folder, capture_output=True, check=True)
        done = until(lambda: (seen := now()).status == "completed" and seen)
        counts = done.request_counts
        print(f"{done.status}: {counts.completed} of {counts.total}, ${done.scheduler['cost_usd']}")
    gateway.terminate()
    gateway.wait()
