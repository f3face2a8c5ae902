"""A real cluster of several nodes on this machine, a real database, and a provider that keeps a bill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.postgres.test_processes import Database
from tests.processes.harness import Server, wait_for, write_prompts

# On the nodes alone: who starts workers there need not have them.
KEY = "sk-ray-0123456789abcdefghijklmnop"
PRICE = ("--price", "sim-small=0.15/0.60")
# Ray's own patience with a node that says nothing, so that a test need not have it.
BRISK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head without room for anything, and nodes with one CPU each."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder),
                "_system_config": BRISK,
            },
        )  # fmt: skip
        self._nodes: list[Any] = []
        self.fill()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def fill(self, count: int = 2) -> None:
        """Have so many nodes beside the head."""
        while len(self._nodes) < count:
            self._nodes.append(self._cluster.add_node(num_cpus=1))

    def kill(self, node_id: str) -> None:
        """As when its power fails: the raylet and all that it runs, at once."""
        node = next(each for each in self._nodes if each.node_id.startswith(node_id))
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def told(self) -> str:
        """What `ray list actors`, `jobs` and `tasks`, and the dashboard, are made of."""
        from ray._raylet import GcsClientOptions, GlobalStateAccessor

        head = GlobalStateAccessor(GcsClientOptions.create(self.address, None, True, False))
        head.connect()
        rows = [*head.get_actor_table(None, None), *head.get_task_events()]
        rows += head.get_job_table(
            skip_submission_job_info_field=True, skip_is_running_tasks_field=True
        )
        return b"".join(rows).decode(errors="replace")

    def end(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    # Whatever folder it is given, it notes there where the last cluster is.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = Nodes(Path(folder))
        try:
            yield made
        finally:
            made.end()


@dataclass
class Place:
    """A cluster, a store and a provider, and the commands that bring them together."""

    nodes: Nodes
    base: Database
    provider: Server
    folder: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever starts commands and programs: no key is there."""
        hidden = {"OPENAI_API_KEY", "SCHEDULER_CONFIG", "OPENAI_BASE_URL", "RAY_ADDRESS"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return kept | {"SCHEDULER_STORE": self.base.url, "PYTHONUNBUFFERED": "1"}

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Python with these words; it ends with the test."""
        number = len(self.running)
        with (self.folder / f"{number}.err").open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, *words], stdout=subprocess.PIPE, stderr=errors, text=True,
                cwd=self.folder, env=self.environment | more, start_new_session=True,
            )  # fmt: skip
        self.running.append(child)
        return child

    def said(self, child: subprocess.Popen[str]) -> str:
        """What it has said on stderr so far."""
        return (self.folder / f"{self.running.index(child)}.err").read_text()

    def end(self) -> None:
        for child in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
            child.communicate()

    def done(self, *words: str, code: int = 0, **more: str) -> tuple[str, str]:
        child = self.start(*words, **more)
        out, _ = child.communicate(timeout=90)
        assert child.returncode == code, self.said(child)
        return out, self.said(child)

    # Commands

    def submit(self, count: int, job: str = "j") -> None:
        path = self.folder / f"{job}.jsonl"
        write_prompts(path, count)
        self.done(
            "-m", "scheduler", "submit", str(path), "--job", job, "--base-url", self.provider.url,
            *PRICE,
        )  # fmt: skip

    def up(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """``scheduler ray up`` on the cluster."""
        return self.start(
            "-m", "scheduler", "ray", "up", "--address", self.nodes.address,
            "--base-url", self.provider.url, *PRICE, "--every", "1s", *words, **more,
        )  # fmt: skip

    def collect(self, job: str = "j") -> list[str]:
        """Ids of what was answered, as often as they were written."""
        out = self.folder / f"{job}.out.jsonl"
        self.done("-m", "scheduler", "collect", "--job", job, "-o", str(out))
        return sorted(json.loads(line)["custom_id"] for line in out.read_text().splitlines())

    # Looking

    def wait_for_answers(self, count: int) -> None:
        wait_for(lambda: self.base.states().get("succeeded", 0) >= count, f"{count} answers", 60)

    def pids(self) -> list[int]:
        """Of the processes that said they are there last."""
        return [pid for (pid,) in self.base("SELECT pid FROM workers ORDER BY id")]

    def node_of(self, pid: int) -> str:
        """The id of the node where a process is, as it is written in its own log."""
        (path,) = self.nodes.folder.glob(f"session_2*/logs/python-core-worker-*_{pid}.log")
        found = re.search(r"node_id=(\w+)", path.read_text(errors="replace"))
        assert found is not None
        return found[1]

    def logged(self) -> str:
        """What Ray keeps of what all its processes said."""
        logs = self.nodes.folder.glob("session_2*/logs/**/*")
        return "".join(path.read_text(errors="replace") for path in logs if path.is_file())

    def counted(self) -> tuple[int, int]:
        """What is posted and what is reserved of all budgets, in one look."""
        ((posted, reserved),) = self.base(
            "SELECT coalesce(sum(posted), 0), coalesce(sum(reserved), 0) FROM balances"
        )
        return int(posted), int(reserved)

    def check_books(self) -> None:
        """The ledger has what was billed, at least, and adds up."""
        billed_nusd = self.provider.billed_nusd()
        assert self.base.counted_nusd() >= billed_nusd
        assert self.base.audit().discrepancies == ()
