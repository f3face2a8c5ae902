"""Runs of a suite in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.suites.catalogue import Suite
from tests.suites.ground import Ground
from tests.suites.results import Results, read

INSIDE = Path(__file__).parent / "inside"
PER_TEST_S, PER_RUN_S = 30, 3600
NOT_THEIRS = ("OPENAI_", "ANTHROPIC_", "GROQ_", "MISTRAL_", "GEMINI_", "GOOGLE_", "AZURE_",
              "AWS_", "PYTEST_", "SCHEDULER_")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """How suites are run.

    Attributes:
        folder: For the results of each run, and what pytest printed.
        workers: How many processes share the tests.
    """

    folder: Path
    workers: int

    def __call__(
        self, suite: Suite, ground: Ground, mode: str, only: Collection[str] | None = None
    ) -> Results:
        """Run a suite, or some tests of it.

        Args:
            suite: Which.
            ground: Where.
            mode: ``"bare"``, ``"wrapped"`` or ``"instrumented"``.
            only: The ids of tests; None: all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{suite.name}.{mode}" + (".again" if only is not None else "")
        lines, said = self.folder / f"{name}.jsonl", self.folder / f"{name}.txt"
        lines.write_text("")
        env = {key: value for key, value in os.environ.items() if not key.startswith(NOT_THEIRS)}
        env |= {"SUITES_MODE": mode, "SUITES_RESULTS": str(lines), "PYTHONPATH": str(INSIDE),
                "SUITES_CLIENTS": " ".join(suite.clients), "SUITES_SERVED": " ".join(suite.served), **suite.env}  # fmt: skip
        if only is not None:
            listed = self.folder / f"{name}.ids"
            listed.write_text("\n".join(only))
            env["SUITES_ONLY"] = str(listed)
        with said.open("w") as out:
            try:
                subprocess.run(
                    self._command(suite, ground, only), cwd=ground.source, env=env, stdout=out,
                    stderr=subprocess.STDOUT, timeout=PER_RUN_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                out.write(f"\nstopped after {PER_RUN_S} s\n")
        return read(lines.read_text().splitlines())

    def _command(self, suite: Suite, ground: Ground, only: Collection[str] | None) -> list[str]:
        places = suite.tests
        if only is not None:
            places = tuple(sorted({test.partition("::")[0] for test in only}))
        workers = min(self.workers, 1 if only is not None and len(only) < 20 else self.workers)
        return [
            "nice", "-n", "10", str(ground.python), "-m", "pytest", *places,
            "-p", "scheduler_suites", "-p", "no:cacheprovider", *suite.args,
            *(f"--ignore={path}" for path in suite.ignore),
            "-n", str(workers if workers > 1 else 0), "--timeout", str(PER_TEST_S), "-q",
            "--tb", "native",  # pytest's own looks into sources, and some of these bring that down
        ]  # fmt: skip
