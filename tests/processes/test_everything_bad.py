"""Everything bad at once: one batch of bad lines, and a server that answers in every bad way.

Which kinds there are, and how a line of each must end, stands in the tables of
`tests.processes.everything`; a failure names the kinds that did not end so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.processes.everything.check import Findings, check_files, check_ledger
from tests.processes.everything.faults import FAULTS, Fault
from tests.processes.everything.lines import KINDS, MAX_LINE_BYTES, PLAIN, Kind, batch, write
from tests.processes.everything.wire import KEY, PRICE
from tests.processes.harness import File, look, wait_for

LINES = 1_300  # a third of them plain, which bad ones must not disturb
RUN_S = 240  # until a run that should have ended is given up


@contextlib.contextmanager
def bad_server() -> Iterator[str]:
    """Its base URL."""
    words = [sys.executable, "-m", "tests.processes.everything.server"]
    with warm.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@dataclass
class World:
    """A batch, a server, and the files of a run."""

    folder: Path
    url: str
    kinds: tuple[Kind, ...] = KINDS
    faults: tuple[Fault, ...] = FAULTS
    with_twice: bool = True
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = batch(self.kinds, self.faults, LINES, self.with_twice)
        self.source = self.folder / "batch.jsonl"
        self.source.write_bytes(write(self.lines))
        self.results, self.errors = self.folder / "out.jsonl", self.folder / "out.errors.jsonl"
        self.file = File(self.folder / "scheduler.db")
        (self.folder / "scheduler.toml").write_text(
            f'[provider.other]\nkind = "openai"\nbase_url = "{self.url}"\ntimeout = "6s"\n'
        )

    def start(self) -> subprocess.Popen[str]:
        models = [fault.name for fault in self.faults] + [PLAIN]
        prices = [word for model in models for word in ("--price", f"{model}={PRICE}")]
        free = ("--price", "omni-moderation-latest=0/0")
        return self.popen(
            "run", str(self.source), "-o", str(self.results), "--base-url", self.url, "--budget",
            "$1000", "--max-attempts", "5", "--timeout", "6s", "--max-line-bytes", str(MAX_LINE_BYTES), *prices, *free,
        )  # fmt: skip

    def popen(self, *words: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "SCHEDULER_STORE": f"sqlite:///{self.file.path}", "OPENAI_API_KEY": KEY,
        }  # fmt: skip
        environment.pop("ANTHROPIC_API_KEY", None)
        self.process = warm.Popen(
            [sys.executable, "-m", "scheduler", *words], cwd=self.folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def finish(self) -> int:
        """Wait for the run; gives its exit code."""
        assert self.process is not None
        try:
            out, err = self.process.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            err += f"\nit did not end within {RUN_S} s"
        self.said.append(out + err)
        return self.process.returncode

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def ask(self, *words: str) -> Any:
        """What a command with ``--json`` prints."""
        out, err = self.popen(*words, "--json").communicate(timeout=60)
        assert out, err
        return json.loads(out)

    def bill(self) -> dict[str, Any]:
        return self.server("/billed")

    def server(self, path: str) -> dict[str, Any]:
        return look(self.url.removesuffix("/v1") + path)

    def findings(self, is_exact: bool) -> Findings:
        """All that is wrong, after a run."""
        found = check_files(self.source, self.results, self.errors, self.lines)
        spend = self.ask("spend")
        for kind, whats in check_ledger(spend, self.bill(), self.faults, is_exact).found.items():
            found.found[kind] += whats
        if not self.ask("audit")["clean"]:
            found.add("run", "the audit is not clean")
        if KEY in "".join(self.said):
            found.add("run", "the key was printed")
        return found

    def lines_of(self, path: Path) -> list[bytes]:
        return sorted(path.read_bytes().splitlines()) if path.exists() else []

    def check_rerun(self, found: Findings) -> None:
        """The same command again: nothing is sent or paid, no line comes or goes."""
        before = self.bill(), self.lines_of(self.results), self.lines_of(self.errors)
        self.start()
        code = self.finish()
        after = self.bill(), self.lines_of(self.results), self.lines_of(self.errors)
        if code != 1:
            found.add("run", f"a rerun ended with {code}")
        for model, calls in after[0]["calls"].items():
            more = calls - before[0]["calls"].get(model, 0)
            if more:
                found.add(model, f"a rerun made {more} calls more")
        for name, old, new in zip(("results", "errors"), before[1:], after[1:], strict=True):
            if old != new:
                found.add("run", f"a rerun changed the {name}: {len(old)} lines, then {len(new)}")

    def tell(self, found: Findings) -> str:
        return f"{found}\n\nthe runs said:\n" + "\n--\n".join(each[-3_000:] for each in self.said)


@pytest.mark.timeout(600)
def test_every_good_line_is_answered_once_and_every_bad_one_explained_once(tmp_path):
    faults = tuple(fault for fault in FAULTS if not fault.wants_credit)
    with bad_server() as url:
        world = World(tmp_path, url, faults=faults)
        world.start()
        code = world.finish()

        found = world.findings(is_exact=True)
        if code != 1:
            found.add("run", f"it ended with {code}")
        world.check_rerun(found)
    assert not found.found, world.tell(found)


@pytest.mark.timeout(600)
def test_and_also_when_the_run_is_killed_in_the_middle(tmp_path):
    """What was in flight may be paid twice; it is answered once all the same.

    One provider also runs out of credit before, and has some again after.
    """
    with bad_server() as url:
        world = World(tmp_path, url)
        process = world.start()
        wait_for(lambda: _half_done(world) or process.poll() is not None, "half of the answers")
        if process.poll() is not None:
            world.finish()
            pytest.fail(f"it ended before it was killed\n{world.said[0][-3_000:]}")
        bill, counted_nusd = world.bill(), world.file.counted_nusd()
        world.kill()
        killed_after = len(world.lines_of(world.results))
        world.server("/top-up")

        world.start()
        code = world.finish()

        found = world.findings(is_exact=False)
        if code != 1:
            found.add("run", f"it ended with {code}")
        world.check_rerun(found)
    assert counted_nusd >= bill["billed_nusd"]
    assert LINES / 5 < killed_after < LINES * 0.9
    assert not found.found, world.tell(found)


def _half_done(world: World) -> bool:
    quota = "quota" in {fault.name for fault in world.faults}
    with contextlib.suppress(OSError):
        done = world.results.read_bytes().count(b"\n") > LINES / 4
        return done and (not quota or bool(world.bill()["calls"].get("quota")))
    return False
