"""The programs of docs/workers.md, in a folder of their own, beside a provider that keeps a bill."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scheduler.budget import parse_caps
from tests import warm
from tests.processes.harness import File, Server, server, wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "workers.md").read_text()
PROGRAMS = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
LIMIT, NOTHING = '"$5/day"', '"$0.00000001"'


@dataclass
class Place:
    """A folder with programs, the file they share, and the provider they ask."""

    path: Path
    provider: Server
    file: File

    def write(self, *names: str, limit: str = LIMIT) -> None:
        """Have the page's programs here, with another limit than the page's."""
        for name in names:
            (self.path / name).write_text(PROGRAMS[name].replace(LIMIT, limit))

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "OPENAI_BASE_URL": self.provider.url,
            "OPENAI_API_KEY": "any",
            "PYTHONPATH": str(self.path),
            "HOME": str(self.path),  # some leave sockets and settings there
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        return os.environ | ours

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python here, to its end."""
        return warm.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=110, check=False,
            cwd=self.path, env=self.environment | more,
        )  # fmt: skip

    @contextlib.contextmanager
    def started(self, *words: str, **more: str) -> Iterator[Started]:
        """Python with these words, in a group of processes of which none outlives the block."""
        log = self.path / f"log-{len(list(self.path.glob('log-*')))}"
        with log.open("w") as out:
            process = warm.Popen(
                [sys.executable, *words], stdout=out, stderr=out, cwd=self.path,
                env=self.environment | more, start_new_session=True,
            )  # fmt: skip
        try:
            yield Started(process, log)
        except BaseException:
            print(log.read_text())
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    # Looking

    def raise_limit(self, to: str = "$5/day") -> None:
        """As in another terminal."""
        done = self.run("-m", "scheduler", "budget", "set", "default", to)
        assert done.returncode == 0, done.stderr

    def wait_until_parked(self, count: int = 1) -> None:
        wait_for(lambda: self.file.is_ready and self.waiting() == count, "calls that wait")

    def waiting(self) -> int:
        return self.file.states().get("queued", 0)

    def counted_usd(self) -> float:
        return self.file.counted_nusd() / 1e9

    def check_books(self) -> None:
        """The ledger has what was billed, in one budget, and adds up."""
        assert self.file.counted_nusd() >= self.provider.billed_nusd()
        assert self.file.audit().discrepancies == ()
        assert parse_caps("$5/day")[0].limit >= self.file.counted_nusd()

    def check_books_exactly(self, calls: int) -> None:
        """So many calls were billed, and the ledger has exactly that."""
        bill = self.provider.bill()
        assert (bill["calls"], int(bill["billed_nusd"])) == (calls, self.file.counted_nusd())
        self.check_books()

    def check_nothing_was_spent(self) -> None:
        assert self.provider.bill()["received"] == 0
        assert self.file.counted_nusd() == 0
        self.check_books()


@dataclass
class Started:
    """A process under way, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """Wait until it has said this so often; gives the first group of it."""

        def said() -> list[str]:
            assert self.process.poll() is None, self.log.read_text()
            found = re.findall(pattern, self.log.read_text())
            return found if len(found) >= count else []

        found: list[str] = wait_for(said, pattern)
        return found[0]

    def end(self) -> int:
        """Ask it to end, and wait."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def place(folder: Path) -> Iterator[Place]:
    with server("--output-tokens", "12", "--output-sigma", "0") as provider:
        yield Place(folder, provider, File(folder / "scheduler.db"))
