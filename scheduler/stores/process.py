"""Which process this is, and whether another one is still there.

psutil knows it on every system. Where a process has a ``/proc``, its start is told in clock ticks,
as files of earlier versions have it; elsewhere by psutil, in thousandths of a second since 1970.
"""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GONE_MS = 86_400_000  # so long silent, a process nobody can see is taken for gone
SAME_START_MS = 2_000  # systems round the start of a process, and correct their clocks
_BY_PSUTIL = "ms:"


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one with the same pid."""

    host: str  # machine, boot and pid namespace: where pids mean the same
    pid: int
    started: (
        str  # ticks since boot, or "ms:" and thousandths of a second since 1970; empty: unknown
    )


def this_process() -> Process:
    """The running process."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    pid = os.getpid()
    started = _ticks(pid) or _since_1970(pid)
    return Process(f"{platform.node()} {boot} {namespace}".strip(), pid, started)


def is_dead(me: Process, other: Process) -> bool:
    """Whether `other` has certainly ended; False if that cannot be seen from here."""
    if other.host != me.host:
        return False
    if not _is_there(other.pid):
        return True
    if not other.started:
        return False  # it is there, and nothing tells it from a later one
    if not other.started.startswith(_BY_PSUTIL):
        ticks = _ticks(other.pid)
        return bool(ticks) and ticks != other.started
    was_ms, is_ms = _ms(other.started), _ms(_since_1970(other.pid))
    return bool(was_ms and is_ms) and abs(is_ms - was_ms) > SAME_START_MS


def _is_there(pid: int) -> bool:
    """Whether there is a process with the pid.

    Not asked by a signal: on Windows ``os.kill(pid, 0)`` interrupts the other process.
    """
    return bool(_psutil().pid_exists(pid))


def _psutil() -> Any:
    """Loaded when it is needed: many processes never ask."""
    return importlib.import_module("psutil")


def _ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is no such ``/proc``."""
    stat = _read(f"/proc/{pid}/stat")
    # The second field, the program's name in brackets, may itself hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _since_1970(pid: int) -> str:
    """The same by the clock, marked as such; empty if it cannot be seen."""
    psutil = _psutil()
    try:
        return f"{_BY_PSUTIL}{int(psutil.Process(pid).create_time() * 1000)}"
    except (psutil.Error, OSError):
        return ""


def _ms(started: str) -> int:
    text = started.removeprefix(_BY_PSUTIL)
    return int(text) if text.isdecimal() else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
