"""What a command that wrote results says at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scheduler.cli.exits import Exit
from scheduler.cli.output import emit_json, plural, say
from scheduler.duration import format_duration
from scheduler.guards.plain import command, without_password
from scheduler.money import format_usd

if TYPE_CHECKING:
    from scheduler.cli.delivery import Files
    from scheduler.cli.outcome import Outcome

OF_ONE_RUN = ("--fresh", "--retry-failed")  # a rerun that goes on has them no more


def tell(outcome: Outcome, files: Files, as_json: bool) -> None:
    """Say how it ended, where everything is, and how to go on."""
    say(" · ".join(_parts(outcome)))
    if files.results is not None and files.results.exists():
        say(f"results: {files.results}")
    if files.has_errors:
        say(f"errors: {files.errors}")
    if outcome.left or outcome.exit in (Exit.PARKED, Exit.INTERRUPTED, Exit.CREDENTIALS):
        if files.parked.exists():
            say(f"not done yet: {files.parked}")
        say(f"resume: {_resume_command(sys.argv[1:])}")
    if as_json:
        emit_json(outcome.as_json(files))


def _parts(outcome: Outcome) -> list[str]:
    parts = [f"{outcome.succeeded + outcome.known + outcome.elsewhere:,} succeeded"]
    shares = [
        f"{count:,} of them {where}"
        for count, where in (
            (outcome.known, "before"), (outcome.elsewhere, "by another process"),
        ) if count
    ]  # fmt: skip
    if shares:
        parts[0] += f" ({', '.join(shares)})"
    if outcome.failed + outcome.failed_elsewhere:
        parts.append(f"{outcome.failed + outcome.failed_elsewhere:,} failed")
    if outcome.known_failed:
        parts.append(f"{outcome.known_failed:,} failed before (--retry-failed sends them again)")
    if outcome.bad:
        parts.append(plural(outcome.bad, "bad line"))
    if outcome.left:
        parts.append(f"{outcome.left:,} left")
    parts.append(f"{format_usd(outcome.cost_nusd)} spent")
    if outcome.reserved_nusd:
        parts.append(
            f"{format_usd(outcome.reserved_nusd)} kept reserved (outcome unknown: "
            "'scheduler queue --state suspense')"
        )
    if outcome.overruns:
        parts.append(f"{plural(outcome.overruns, 'call')} above their ceiling")
    return [*parts, f"in {format_duration(int(outcome.seconds * 1000))}"]


def _resume_command(given: Sequence[str]) -> str:
    words = [word for word in given if word not in OF_ONE_RUN]
    return command("scheduler", *map(without_password, words))
