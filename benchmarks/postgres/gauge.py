"""Gauges: what client and server spent, and what went between them."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.waiting import Ready

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Told:
    """What a worker counts of itself, or several of them together.

    Attributes:
        trips: Times that it sent something and waited for the server.
        held_s: Within transactions, from BEGIN to the answer to COMMIT.
        net_bytes: Through its connections, both ways, as TCP counts them.
    """

    lifecycles: int = 0
    turns: int = 0
    statements: int = 0
    trips: int = 0
    cpu_s: float = 0.0
    held_s: float = 0.0
    net_bytes: int = 0
    wall_s: float = 0.0

    def __add__(self, other: Told) -> Told:
        sums = {name: getattr(self, name) + value for name, value in asdict(other).items()}
        return Told(**sums)


class Counting:
    """Counts statements and round trips of psycopg's connections in this process, whoever uses them."""

    def __init__(self) -> None:
        self.statements = self.trips = 0
        counts = self
        execute = psycopg.Cursor._execute_gen
        wait, wait_async = psycopg.Connection.wait, psycopg.AsyncConnection.wait

        def executed(self: Any, *args: Any, **kwargs: Any) -> Any:
            counts.statements += 1
            return execute(self, *args, **kwargs)

        def waited(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return wait(self, counts._watched(gen), *args, **kwargs)

        async def waited_async(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return await wait_async(self, counts._watched(gen), *args, **kwargs)

        base = next(each for each in psycopg.Cursor.__mro__ if "_execute_gen" in vars(each))
        base._execute_gen = executed  # type: ignore[attr-defined]
        psycopg.Connection.wait = waited  # type: ignore[method-assign]
        psycopg.AsyncConnection.wait = waited_async  # type: ignore[method-assign]

    def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same steps; one that has to wait for something to read is a round trip."""
        has_read = False
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not has_read and ready & Ready.R:
                    has_read = True
                    self.trips += 1
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


_BYTES = struct.Struct("QQ")  # of tcp_info: acknowledged, received
_BYTES_AT = 120


def net_bytes() -> int:
    """What went through this process's connections up to now."""
    found = 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(each))) as one:
            told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            found += sum(_BYTES.unpack_from(told, _BYTES_AT))
    return found


@dataclass
class Server:
    """The server's gauges: its processes' CPU time, and how far its log has come."""

    pid: int
    dsn: str

    def read(self) -> tuple[float, int]:
        """Seconds of CPU, and bytes of WAL, up to now."""
        with psycopg.connect(self.dsn, autocommit=True) as db:
            row = db.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None
        return self._cpu_s(), int(row[0])

    def _cpu_s(self) -> float:
        spent = _ticks(self.pid, with_children=True)
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return (spent + sum(_ticks(int(each)) for each in children)) * TICK_S


def _ticks(pid: int, *, with_children: bool = False) -> int:
    """Of a process; and of its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, children_s_user, children_s_system = map(int, fields[11:15])
        return user + system + (children_s_user + children_s_system if with_children else 0)
    return 0


class Watch:
    """How long something took, summed up."""

    def __init__(self) -> None:
        self.s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.s += time.perf_counter() - self._began_s


def load() -> str:
    """How busy the machine is, as it says."""
    return Path("/proc/loadavg").read_text().split()[0]
