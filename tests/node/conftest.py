"""Node, and the clients that ``make node`` installs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import ASKED, Gateway, provider, start

__all__ = ["provider", "start"]  # pytest looks for fixtures here

HERE = Path(__file__).parent
CLIENTS = HERE.parents[1] / ".node-clients"
collect_ignore_glob = [] if (CLIENTS / "node_modules").is_dir() else ["test_*.py"]


class Asking:
    """A call by a client of Node's that is under way.

    Args:
        gateway: Whom it asks.
        sdk: "openai" or "anthropic".
        way: One of those in client.mjs.
    """

    def __init__(self, gateway: Gateway, sdk: str, way: str, **more: Any) -> None:
        asked = {
            "sdk": sdk, "way": way, "token": gateway.token, "body": ASKED,
            "url": gateway.url if sdk == "openai" else gateway.root, **more,
        }  # fmt: skip
        # From stdin, so that what it imports is looked for where it is run.
        with (HERE / "client.mjs").open() as program:
            self.process = subprocess.Popen(
                ["node", "--input-type=module", "-"], cwd=CLIENTS, text=True, stdin=program,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "ASKED": json.dumps(asked)},
            )  # fmt: skip

    def outcome(self) -> dict[str, Any]:
        """What came of it."""
        out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return json.loads(out)


@pytest.fixture
def ask():
    made: list[Asking] = []

    def asked(*words: Any, **more: Any) -> Asking:
        made.append(Asking(*words, **more))
        return made[-1]

    yield asked
    for each in made:
        each.process.kill()
        each.process.communicate()
