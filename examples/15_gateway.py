"""A gateway for clients in any language: over budget they are held, and go on by themselves.

You should see:

    answered, $0.00000435
    held, and answered when the limit was raised
    spent $0.0000087
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import Any

SCHEDULER = [sys.executable, "-m", "scheduler"]
BODY = {"model": "sim-small", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


def ask(told: dict[str, str], **headers: str) -> tuple[Any, str | None]:
    """What any HTTP client does; SDKs take told["url"] as base_url and told["token"] as api_key."""
    headers = {"authorization": f"Bearer {told['token']}", **headers}
    url = f"{told['url']}/chat/completions"
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(BODY).encode(), headers)
    ) as answer:
        return json.loads(answer.read()), answer.headers.get("x-scheduler-cost-usd")


def command(folder: str, *words: str) -> Any:
    done = subprocess.run(
        [*SCHEDULER, *words, "--json"], cwd=folder, capture_output=True, check=True
    )
    return json.loads(done.stdout)


with tempfile.TemporaryDirectory() as folder:
    # For real providers: no --base-url, and their keys in the environment.
    options = ["--base-url", "sim:", "--budget", "$0.00003", "--port", "0", "--json"]
    gateway = subprocess.Popen(
        [*SCHEDULER, "serve", *options],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert gateway.stdout is not None
    told = json.loads(gateway.stdout.readline())
    print(f"answered, ${ask(told)[1]}")

    command(folder, "budget", "set", "default", "$0.00002")
    answers: list[Any] = []
    waits = {"x-scheduler-wait": "forever"}
    client = threading.Thread(target=lambda: answers.append(ask(told, **waits)))
    client.start()
    while not command(folder, "status")["requests"]["parked"]:
        time.sleep(0.05)
    command(folder, "budget", "set", "default", "$1")
    client.join()
    print("held, and answered when the limit was raised" if answers else "nothing came")

    print("spent $" + command(folder, "budget", "list")[0]["posted_usd"])
    gateway.terminate()
    gateway.wait()
