"""Take the picture in docs/dashboard.md: ``python -m tests.server.picture``.

A batch within a paced budget, against the simulated provider; half a minute. It needs a Chromium.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from scheduler.providers.simulated.server import running_server
from tests.server.browser import chromium, seen
from tests.server.test_page_in_a_browser import dashboard, running

TARGET = Path(__file__).parents[2] / "docs" / "dashboard.png"
ROWS, AFTER_S = 2_000, 25


def main() -> None:
    """Take it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/chat/completions", "body": {
                "model": "sim-large" if n % 3 else "sim-small", "max_tokens": 300,
                "messages": [{"role": "user", "content": "word " * (n % 50 + 5)}]}}
            for n in range(ROWS)
        ]  # fmt: skip
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = (
            "run", "in.jsonl", "-o", "out.jsonl", "--store", "./s.db", "--budget", "$1.50/hour paced",
            "--price", "sim-small=1/2", "--price", "sim-large=3/12", "--concurrency", "24",
            "--progress", "none",
        )  # fmt: skip
        with (
            running_server("--latency", "300ms", "--fail", "reset=0.005") as url,
            running(*words, "--base-url", url, cwd=folder),
            chromium() as browser,
        ):
            time.sleep(AFTER_S)
            with dashboard(folder, "--allow-changes") as link:
                page = browser.new_page(viewport={"width": 1180, "height": 940})
                page.goto(link)
                page.wait_for_selector("#live.is-live")
                page.wait_for_selector("#burn-chart svg")
                seen(page.locator("#finish")).to_contain_text("done about")
                page.screenshot(path=TARGET)
                page.close()


if __name__ == "__main__":
    main()
