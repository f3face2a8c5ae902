"""With which code does the command end, and what does it say when it fails?"""

from __future__ import annotations

import json
import os
import sys
import traceback
from enum import IntEnum

from scheduler.cli.streams import is_of_stdout
from scheduler.errors import (
    BudgetUnknown,
    ConfigError,
    CredentialsRefused,
    InputError,
    LedgerInconsistent,
    OutputInUse,
    PriceUnknown,
    SchedulerError,
    StoreError,
)
from scheduler.guards.plain import one_line, plain_line


class Exit(IntEnum):
    """Exit codes of every command; `CODES` tells them to people."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    CREDENTIALS = 4
    PARKED = 75  # EX_TEMPFAIL: cron and workflow engines know it as "try again later"
    INTERRUPTED = 130


CODES = {
    Exit.DONE: "done",
    Exit.FAILED: "some failed",
    Exit.USAGE: "usage",
    Exit.CONFIG: "configuration or price",
    Exit.CREDENTIALS: "credentials",
    Exit.PARKED: "stopped with parked work that a rerun resumes",
    Exit.INTERRUPTED: "interrupted",
}


def exit_for(error: SchedulerError) -> Exit:
    """The code for an error that ends the command."""
    if isinstance(error, CredentialsRefused):
        return Exit.CREDENTIALS
    if isinstance(error, ConfigError):
        if error.key == "input":
            return Exit.USAGE
        return Exit.CREDENTIALS if error.key.upper().endswith("API_KEY") else Exit.CONFIG
    if isinstance(error, InputError):
        return Exit.USAGE
    if isinstance(error, OutputInUse):
        return Exit.PARKED
    if isinstance(error, LedgerInconsistent):
        return Exit.FAILED
    if isinstance(error, PriceUnknown | BudgetUnknown | StoreError):
        return Exit.CONFIG
    return Exit.FAILED


def report(error: BaseException, as_json: bool = False) -> None:
    """Tell an error: one line on stderr, and with `as_json` as an object on stdout too.

    ``SCHEDULER_DEBUG=1`` adds the traceback.
    """
    if os.environ.get("SCHEDULER_DEBUG", "") not in ("", "0"):
        for part in traceback.format_exception(error):
            is_ours = part.startswith("  File ")  # the rest quotes what may come from outside
            lines = part.splitlines() if is_ours else [one_line(part)]
            print("\n".join(map(plain_line, lines)), file=sys.stderr)
    message = one_line(str(error)) or type(error).__name__
    if isinstance(error, OSError) and is_of_stdout(error):
        message, as_json = f"cannot write to stdout: {error.strerror}", False
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(envelope(type(error).__name__, message))


def envelope(kind: str, message: str) -> str:
    """An error as a line of JSON."""
    return json.dumps({"error": {"kind": kind, "message": one_line(message)}})
