"""What is wrong with the outcome of a run, told by kind; nothing, if all is as it must be."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes.everything.faults import Fault
from tests.processes.everything.lines import Line
from tests.processes.everything.wire import KEY, answer_text


@dataclass
class Findings:
    """What is wrong, by kind of line; "run" for what concerns all of them."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, what: str) -> None:
        self.found[kind].append(what)

    def __str__(self) -> str:
        lines = [f"{len(self.found)} kinds are not as they must be:"]
        for kind, whats in sorted(self.found.items()):
            more = f" (and {len(whats) - 2} more)" if len(whats) > 2 else ""
            lines.append(f"  {kind}: {'; '.join(whats[:2])}{more}")
        return "\n".join(lines)


def read_strictly(path: Path, findings: Findings) -> list[dict[str, Any]]:
    """Lines of JSON as the standard has it, which knows no NaN."""

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    rows = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(text.decode(), parse_constant=refuse)
            row["custom_id"], row["error"], row["response"]
            json.loads(text, parse_float=_finite)
            rows.append(row)
        except (ValueError, KeyError, TypeError) as exc:
            findings.add("run", f"{path.name}:{number} is no result line ({exc!r}): {text[:80]!r}")
    return rows


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is beyond every double")
    return value


def check_files(source: Path, results: Path, errors: Path, lines: Sequence[Line]) -> Findings:
    """Each line has the one outcome it must have."""
    findings = Findings()
    answered = read_strictly(results, findings)
    failed = read_strictly(errors, findings)
    by_number, by_key = _sorted_errors(source.name, failed, findings)
    answers = Counter(row["custom_id"] for row in answered)
    _check_answers(answered, lines, findings)
    known = {line.number for line in lines if line.ends in ("bad", "either")}
    for number in by_number.keys() - known:
        line = next((each for each in lines if each.number == number), None)
        kind = "run" if line is None else line.kind
        findings.add(kind, f"line {number} was called bad: {by_number[number][0]['error']}")
    for line in lines:
        _check_line(line, answers, by_number.get(line.number, []), by_key, findings)
    expected = {line.key for line in lines} | {f"line-{line.number}" for line in lines}
    expected |= {key for line in lines for key in line.keys}
    for key in answers.keys() - expected:
        if not any(key.startswith(each.key) for each in lines if each.ends == "either"):
            findings.add("run", f"an answer to {key!r}, which no line asked for")
    if errors.exists() and KEY in errors.read_text():
        findings.add("run", "the key stands in the errors file")
    return findings


def _sorted_errors(
    source: str, failed: Sequence[dict[str, Any]], findings: Findings
) -> tuple[dict[int, list[dict[str, Any]]], Counter[str]]:
    """Errors of lines by their numbers, failures of calls by their ids."""
    by_number: dict[int, list[dict[str, Any]]] = defaultdict(list)
    by_key: Counter[str] = Counter()
    for row in failed:
        message = str((row["error"] or {}).get("message"))
        number = re.search(rf"{re.escape(source)}:(\d+):", message)
        if row["id"] is None and number is not None:
            by_number[int(number[1])].append(row)
        elif row["id"] is None:
            findings.add("run", f"an error without a line's number: {message[:100]}")
        else:
            by_key[row["custom_id"]] += 1
        if not (row["error"] or {}).get("code"):
            findings.add("run", f"an error without a code: {message[:100]}")
    return by_number, by_key


def _check_answers(
    answered: Sequence[dict[str, Any]], lines: Sequence[Line], findings: Findings
) -> None:
    by_key = {line.key: line for line in lines if line.ends in ("answered", "either")}
    for row in answered:
        line = by_key.get(row["custom_id"])
        body = row["response"]["body"]
        if line is None or line.prompt is None or "choices" not in body:
            continue
        text = body["choices"][0]["message"]["content"]
        if text != answer_text(line.prompt):
            findings.add(line.kind, f"{line.key} got {text!r}")
        if KEY in str(row["response"]["request_id"]):
            findings.add(line.kind, "the key stands in request_id")


def _check_line(
    line: Line,
    answers: Mapping[str, int],
    called_bad: Sequence[dict[str, Any]],
    failures: Mapping[str, int],
    findings: Findings,
) -> None:
    # Where an id stands twice, the answer belongs to the line before.
    is_again = line.kind in ("twice", "conflict")
    got = 0 if is_again else answers.get(line.key, 0)
    failed = 0 if is_again else failures.get(line.key, 0)
    outcomes = got, failed, len(called_bad)
    right = {"answered": (1, 0, 0), "failed": (0, 1, 0), "bad": (0, 0, 1)}
    if line.ends == "either":
        got += answers.get(f"line-{line.number}", 0) + answers.get(f"{line.key}\0", 0)
        failed += failures.get(f"line-{line.number}", 0) + failures.get(f"{line.key}\0", 0)
        if (got, failed, len(called_bad)) not in right.values():
            findings.add(line.kind, f"{line.key} has {_counts(got, failed, len(called_bad))}")
        return
    if outcomes != right[line.ends]:
        findings.add(line.kind, f"{line.key} must be {line.ends}, has {_counts(*outcomes)}")
    for row in called_bad:
        if line.ends == "bad" and row["custom_id"] not in line.keys:
            findings.add(line.kind, f"line {line.number} is called {row['custom_id']!r}")


def _counts(answers: int, failures: int, bad: int) -> str:
    return f"{answers} answers, {failures} failures, {bad} errors of the line"


def check_ledger(
    spend: Sequence[Mapping[str, Any]],
    bill: Mapping[str, Any],
    faults: Sequence[Fault],
    is_exact: bool,
) -> Findings:
    """What is counted for each model is what the server billed for it, or more."""
    findings = Findings()
    counted = {row["model"]: _nusd(row["spent_usd"]) + _nusd(row["reserved_usd"]) for row in spend}
    posted = {row["model"]: _nusd(row["spent_usd"]) for row in spend}
    exact = {fault.name for fault in faults if fault.is_exact} | {"plain"}
    for model, billed_nusd in bill["nusd"].items():
        if counted.get(model, 0) < billed_nusd:
            findings.add(model, f"billed {billed_nusd:,}, counted {counted.get(model, 0):,}")
        elif is_exact and model in exact and posted[model] != billed_nusd:
            findings.add(model, f"billed {billed_nusd:,}, posted {posted[model]:,}")
    if sum(counted.values()) < bill["billed_nusd"]:
        findings.add("run", f"billed {bill['billed_nusd']:,}, counted {sum(counted.values()):,}")
    if bill["strangers"]:
        findings.add("run", f"{bill['strangers']} calls came without the key")
    return findings


def _nusd(usd: str) -> int:
    from decimal import Decimal

    return int(Decimal(usd) * 10**9)
