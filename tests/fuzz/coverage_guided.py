"""Parsers under a coverage-guided fuzzer: ``python -m tests.fuzz.coverage_guided``.

Each target of `tests.fuzz.targets` runs in a process of its own for its share of the time.
An input that breaks one is kept as a file, and tried again with ``--target NAME --replay FILE``.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

FOUND = Path(".fuzz")
MAX_INPUT_BYTES = 4096
SLOWEST_S = 5


def tester(target: str) -> Callable[[bytes], object]:
    """The target as a function of bytes, which choose what it is given.

    The bytes are turned into input by the strategy that the tests use, so that they reach
    what is behind the syntax.
    """
    from tests.fuzz.targets import TARGETS

    parse, given_by = TARGETS[target]

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(given_by)
    def run(value: Any) -> None:
        parse(value)

    return run.hypothesis.fuzz_one_input


def fuzz(target: str, seconds: int, folder: str) -> None:
    """Run one target; ends the process, with another code than 0 if something broke."""
    import atheris

    with atheris.instrument_imports(include=["scheduler"]):  # so nothing of it came before
        test = tester(target)
    FOUND.mkdir(exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0], folder, f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}",
            f"-timeout={SLOWEST_S}", f"-artifact_prefix={FOUND}/{target}-",
            "-print_final_stats=1", "-verbosity=0",
        ],
        test,
    )  # fmt: skip
    atheris.Fuzz()


def run_all(targets: list[str], seconds: int) -> int:
    """Share the time among targets; a line for each, and how many broke."""
    broken = 0
    for target in targets:
        share = max(1, seconds // len(targets))
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", __spec__.name, "--target", target, "--seconds", f"{share}"]
            done = subprocess.run(
                [sys.executable, *words, "--folder", folder], capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            told = done.stdout + done.stderr
            stats = dict(
                line.removeprefix("stat::").split(":", 1)
                for line in told.splitlines()
                if line.startswith("stat::")
            )
            tried = int(stats.get("number_of_executed_units", 0))
            kept = len(list(Path(folder).iterdir()))
        broken += done.returncode != 0
        word = "ok" if done.returncode == 0 else "BROKEN"
        print(f"{target:12} {word:7} {tried:>10,} inputs, {kept:,} that reach new code", flush=True)
        if done.returncode:
            print(told[-4000:])
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage_guided")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", metavar="NAME", help="only this one")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try an input again")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        fuzz(options.target, options.seconds, options.folder)
        return 0
    from tests.fuzz.targets import TARGETS

    targets = sorted(TARGETS) if options.target is None else [options.target]
    if unknown := set(targets) - TARGETS.keys():
        parser.error(f"{unknown.pop()} is not one of {', '.join(sorted(TARGETS))}")
    if options.replay is not None:
        if options.target is None:
            parser.error("--replay needs --target")
        tester(options.target)(options.replay.read_bytes())
        print("nothing broke")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("needs atheris: make fuzz, or pip install 'llm-budget-scheduler[fuzz]'")
        return 2
    return 1 if run_all(targets, options.seconds) else 0


if __name__ == "__main__":
    raise SystemExit(main())
