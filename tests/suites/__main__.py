"""Run the SDKs' own test suites bare, wrapped and instrumented, and tell the difference."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tests.suites import reasons, report
from tests.suites.catalogue import Suite, load
from tests.suites.difference import Difference, Verdict, candidates, judge, settled, stale
from tests.suites.ground import KEPT, ROOT, NoGround, make_ground
from tests.suites.reasons import MODES, Reason
from tests.suites.results import Results
from tests.suites.running import Run
from tests.suites.serving import answering

RESULTS, PAGE = KEPT / "results.json", ROOT / "docs" / "adoption.md"
BY_NATURE = Path(__file__).parent / "by_nature.toml"


def measure(suite: Suite, run: Run, known: list[Reason], checkout: Path | None) -> Verdict:
    """Run a suite three times, and what differed once more.

    Raises:
        NoGround: It cannot be run here.
    """
    ground = make_ground(suite, checkout)
    runs: dict[str, Results] = {}
    for mode in ("bare", *MODES):
        runs[mode] = run(suite, ground, mode)
        say(f"  {suite.name} {ground.version} {mode}: {len(runs[mode].passed):,} passed")
    bare = runs["bare"]
    if bare.broken:
        place, error = next(iter(bare.broken.items()))
        last = (error.strip().splitlines() or [""])[-1]
        say(f"  {len(bare.broken)} places cannot be collected bare, such as {place}: {last[:200]}")
    if not bare.passed:
        raise NoGround(f"no test of it passes bare; see {run.folder}/{suite.name}.bare.txt")
    found = {mode: candidates(bare, runs[mode]) for mode in MODES}
    differences: list[Difference] = []
    if asked := sorted(set().union(*found.values())):
        again = run(suite, ground, "bare", asked)
        for mode in MODES:
            if found[mode]:
                outcomes = settled(
                    found[mode], again, run(suite, ground, mode, sorted(found[mode]))
                )
                differences += judge(suite.name, mode, outcomes, known)
    adopted = {
        mode: len(bare.passed) - sum(found.mode == mode for found in differences) for mode in MODES
    }
    refused = dict(runs["wrapped"].refused)
    return Verdict(suite.name, ground.version, len(bare.tests), len(bare.passed), adopted,
                   differences, refused)  # fmt: skip


def say(text: str) -> None:
    """Tell how it goes, beside the report."""
    print(text, file=sys.stderr, flush=True)


def show(verdicts: list[Verdict], known: list[Reason]) -> None:
    """Print the report."""
    print(report.table(verdicts))
    for verdict in verdicts:
        if verdict.ours:
            print(f"\n{verdict.suite}: {len(verdict.ours)} tests end otherwise")
            print(report.listing(verdict.differences))
        for reason in stale(verdict.suite, verdict.differences, known):
            print(f"\n{verdict.suite}: {reason.pattern} differs no more; take it out of "
                  f"{BY_NATURE.relative_to(ROOT)}")  # fmt: skip
        for client, times in Counter(verdict.refused).most_common():
            print(f"\n{verdict.suite}: not wrapped, {times} times: {client}")


def keep(verdicts: list[Verdict], order: list[str]) -> None:
    """Write the report down, for programs and for the page, beside those of other suites' last runs.

    Args:
        verdicts: Of the suites that were run.
        order: Of the suites on the page.
    """
    KEPT.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept |= {verdict.suite: report.as_data(verdict) for verdict in verdicts}
    RESULTS.write_text(json.dumps(kept, indent=1))
    all_of_them = [report.from_data(kept[name]) for name in order if name in kept]
    PAGE.write_text(report.spliced(PAGE.read_text(), report.markdown(all_of_them)))
    print(f"\n{RESULTS.relative_to(ROOT)} has all of it, {PAGE.relative_to(ROOT)} the table")


def main() -> int:
    """Exit status: 0 if nothing differs but by nature."""
    suites = load()
    parser = argparse.ArgumentParser(prog="make suites", description=__doc__)
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(suites)}; all, if none is named")
    parser.add_argument("--checkout", type=Path, help="the source of the one suite that is named")
    parser.add_argument("--workers", type=int, default=2, help="processes for each run")
    options = parser.parse_args()
    unknown = set(options.suite) - set(suites)
    if unknown or (options.checkout and len(options.suite) != 1):
        parser.error(f"no such suite: {', '.join(unknown)}" if unknown else
                     "--checkout is of one suite: name it")  # fmt: skip
    known = reasons.read(BY_NATURE.read_text())
    verdicts, failures = [], []
    run = Run(KEPT / "runs", options.workers)
    with answering():
        for name in options.suite or suites:
            try:
                checkout = options.checkout and options.checkout.resolve()
                verdicts.append(measure(suites[name], run, known, checkout))
            except NoGround as error:
                failures.append(name)
                say(f"{name} was not run: {error}")
    if verdicts:
        show(verdicts, known)
        if options.checkout is None:
            keep(verdicts, list(suites))
    return 1 if failures or any(verdict.ours for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
