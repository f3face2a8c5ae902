"""Which process this is, and whether another one is still there."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

GONE_MS = 86_400_000  # so long silent, a process nobody can see is taken for gone


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one with the same pid."""

    host: str  # machine, boot and pid namespace: where pids mean the same
    pid: int
    started: str


def this_process() -> Process:
    """The running process."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    pid = os.getpid()
    return Process(f"{platform.node()} {boot} {namespace}".strip(), pid, _started(pid))


def is_dead(me: Process, other: Process) -> bool:
    """Whether `other` has certainly ended; False if that cannot be seen from here."""
    if other.host != me.host:
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(other.started) and _started(other.pid) != other.started


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where it cannot be read."""
    stat = _read(f"/proc/{pid}/stat")
    # The second field, the program's name in brackets, may itself hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
