"""What a run may do, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scheduler.batch.input import LineOptions
from scheduler.cli.delivery import Files
from scheduler.cli.exits import Exit, exit_for
from scheduler.cli.output import plural
from scheduler.errors import SchedulerError
from scheduler.money import decimal_usd, format_usd

GRACE_S = 30.0  # from what ends a run until what still runs is cancelled


@dataclass(slots=True)
class RunOptions:
    """What a run may do.

    Attributes:
        stops: End with `Exit.PARKED` when the money is spent, instead of waiting.
        max_wait_ms: Wait at most so long; None: as long as it takes.
        is_strict: Send nothing if any line is bad.
        is_fresh: Earlier outcomes were forgotten.
        grace_s: How long calls under way may take once the run is to end.
        store_option: ``" --store URL"`` for commands shown to people, or empty.
    """

    lines: LineOptions
    stops: bool = False
    max_wait_ms: int | None = None
    retry_failed: bool = False
    is_strict: bool = False
    is_fresh: bool = False
    grace_s: float = GRACE_S
    store_option: str = ""


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    exit: Exit = Exit.DONE
    succeeded: int = 0
    failed: int = 0
    bad: int = 0
    known: int = 0  # succeeded before
    known_failed: int = 0
    elsewhere: int = 0  # succeeded in another process that works on the same
    failed_elsewhere: int = 0
    left: int = 0
    cost_nusd: int = 0
    reserved_nusd: int = 0
    overruns: int = 0
    seconds: float = 0.0
    message: str = ""

    def as_json(self, files: Files) -> dict[str, Any]:
        """The final object of ``--json``."""
        return {
            "exit": int(self.exit),
            "succeeded": self.succeeded,
            "failed": self.failed,
            "bad_lines": self.bad,
            "known_before": self.known,
            "failed_before": self.known_failed,
            "succeeded_elsewhere": self.elsewhere,
            "failed_elsewhere": self.failed_elsewhere,
            "left": self.left,
            "cost_usd": decimal_usd(self.cost_nusd),
            "reserved_usd": decimal_usd(self.reserved_nusd),
            "overruns": self.overruns,
            "seconds": round(self.seconds, 3),
            "results": None if files.results is None else str(files.results),
            "errors": str(files.errors) if files.has_errors else None,
            "parked": str(files.parked) if files.parked.exists() else None,
            "message": self.message,
        }

    def tell_failure(self, error: Exception, say: Callable[[str], None]) -> None:
        """An error ended the run; what was sent before has its outcome all the same.

        Raises:
            Exception: The error itself, where it is no error of the run, or nothing was sent.
        """
        sent = self.succeeded + self.failed
        is_bug = not isinstance(error, SchedulerError | OSError)
        if is_bug or not (sent or self.cost_nusd or self.reserved_nusd):
            raise error
        self.exit = exit_for(error) if isinstance(error, SchedulerError) else Exit.FAILED
        kept = ""
        if self.reserved_nusd:
            kept = f" and {format_usd(self.reserved_nusd)} is kept reserved"
        self.message = (
            f"{of_itself(error)}. That ended the run; {plural(sent, 'request')} had an outcome by "
            f"then, {format_usd(self.cost_nusd)} was spent{kept}. A rerun goes on from here"
        )
        say(f"error: {self.message}")


def of_itself(error: Exception) -> str:
    """An error's words; what they say of money holds for what it stopped, not for the run."""
    return str(error).replace("othing was sent", "othing was sent of this")
