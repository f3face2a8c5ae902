"""Processes of Python that need not start one: forked from one that has loaded the package.

`Popen` and `run` are `subprocess`'s, and what they start is a process in all that tests look at: a
pid, a working directory, an environment, streams, signals, files that are locked, kill -9, and an
interpreter that ends as any does. Only its beginning is shared. Nine tenths of what a short command
takes are the interpreter's start and its imports, and tests start a thousand. A command of the
package (``-m scheduler``) leaves out the last step of its end, too: after all that it registered for
that was called and its streams were flushed, modules are not taken down one by one.

Where the beginning is what counts, a real one is started: for options of the interpreter, for an
environment that it reads when it starts (PYTHON..., the locale), for a function to be called before
it, and where the system is not Linux. Tests of how commands begin take `subprocess` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What most commands load, and a gateway; what else one needs it loads itself.
GATEWAY = ("scheduler.cli.serve", "scheduler.server.life", "scheduler.server.page", "uvloop")
LOADED = (
    "scheduler.cli.app",
    "scheduler.cli.run",
    "scheduler.cli.runner",
    "scheduler.cli.child",
    "scheduler.cli.outcome",
    "scheduler.cli.delivery",
    "scheduler.cli.summary",
    "scheduler.cli.look",
    "scheduler.cli.status",
    "scheduler.cli.worker",
    "scheduler.cli.working",
    "scheduler.cli.submitting",
    "scheduler.cli.collecting",
    "scheduler.config",
    "scheduler.providers.http",
    "scheduler.providers.simulated.server",
    "scheduler.rehearsal.remaining",
    "scheduler.stores.sqlite",
    "scheduler.telemetry.webhooks",
    *(("scheduler.stores.postgres.store",) if find_spec("psycopg") else ()),
    *(GATEWAY if all(map(find_spec, ("uvicorn", "uvloop"))) else ()),
    "tenacity",
    "typer._adapters",
)
# What an interpreter reads when it starts; and of that, what can be done later just as well.
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_")
AS_WELL_LATER = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONWARNINGS"}
AS_IT_STARTED = dict(os.environ)
ROOT = Path(__file__).parent.parent
HEADER = struct.Struct("!I")
IS_POSSIBLE = sys.platform == "linux"
_is_command = False  # this process is one of `scheduler`


# -- in the tests


class Popen(subprocess.Popen[Any]):
    """A process, forked where it can be; all else is as in `subprocess`."""

    _told: socket.socket | None = None  # by which its end is told; None: it is our own child

    def _execute_child(self, args: Any, *how: Any) -> None:
        executable, before, _, passed, cwd, env, _, _, shell, *streams_and_rest = how
        streams = streams_and_rest[:6]
        _, *identity, umask, session, group = streams_and_rest[6:]
        words = [os.fspath(word) for word in args] if isinstance(args, list | tuple) else []
        is_plain = not (shell or before or passed) and executable in (None, sys.executable)
        is_plain = is_plain and group in (None, -1) and set(identity) <= {None, -1}
        environment = dict(os.environ if env is None else env)
        where = os.fspath(cwd) if cwd is not None else os.getcwd()
        if not (IS_POSSIBLE and is_plain and _is_forkable(words, environment, where)):
            super()._execute_child(args, *how)  # type: ignore[misc]
            return
        ours, theirs = socket.socketpair()
        fds = [
            given if given != -1 else n for n, given in enumerate(streams[::2][:1] + streams[3::2])
        ]
        what = {"words": words[1:], "env": environment, "session": session, "umask": umask}
        try:
            os.stat(where)
            _server().fork({**what, "cwd": where}, [*fds, theirs.fileno()])
            self.pid = HEADER.unpack(_exactly(ours, HEADER.size))[0]
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            self._close_pipe_fds(*streams)  # type: ignore[attr-defined]
        self._told, self._child_created = ours, True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._told is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if wait_flags & os.WNOHANG and not _has_come(self._told):
            return 0, 0
        (status,) = HEADER.unpack(_exactly(self._told, HEADER.size))
        self._told.close()
        return self.pid, status

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _has_come(told: socket.socket) -> bool:
    looking = select.poll()  # which takes any number, as `select.select` does not
    looking.register(told, select.POLLIN)
    return bool(looking.poll(0))


def run(
    words: Any, *, input: Any = None, capture_output: bool = False, timeout: float | None = None,
    check: bool = False, **options: Any,
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """As `subprocess.run`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(words, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, out, err)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@contextlib.contextmanager
def running_server(*options: str) -> Iterator[str]:
    """As that of `scheduler.providers.simulated.server`: a provider in a process; its base URL."""
    with server_process(*options) as (_, url):
        yield url


@contextlib.contextmanager
def server_process(*options: str) -> Iterator[tuple[Popen, str]]:
    """The same, with the process."""
    words = [sys.executable, "-m", "scheduler.providers.simulated.server", *options]
    with Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.send_signal(signal.SIGCONT)


def _is_forkable(words: list[Any], environment: dict[Any, Any], where: str) -> bool:
    texts = [*words, *environment, *environment.values()]
    if not all(isinstance(each, str) and "\0" not in each for each in texts):
        return False
    if len(words) < 2 or words[0] != sys.executable:
        return False
    if words[1].startswith("-") and (words[1] not in ("-m", "-c") or len(words) < 3):
        return False
    if "PYTHONWARNINGS" in environment and not environment["PYTHONWARNINGS"].isalpha():
        return False  # more than one word
    for place in [where, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]:
        has_one = any(Path(place, name).exists() for name in ("scheduler", "scheduler.py"))
        if has_one and Path(place).resolve() != ROOT:
            return False  # another package than the one that is loaded
    return _at_start(environment) == _at_start(AS_IT_STARTED)


def _at_start(environment: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_START) and name not in AS_WELL_LATER
    }


class _Server:
    """The process that forks, as tests see it: one for each process of tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        ours = {k: v for k, v in AS_IT_STARTED.items() if k not in AS_WELL_LATER}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env=ours | {"PYTHONFAULTHANDLER": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                cwd=ROOT,
            )  # fmt: skip

    def fork(self, what: dict[str, Any], fds: list[int]) -> None:
        text = json.dumps(what).encode()
        with self._lock:
            socket.send_fds(self._control, [HEADER.pack(len(text))], fds)
            self._control.sendall(text)

    def end(self) -> None:
        self._control.close()
        self.process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()


def end() -> None:
    """End the process that forks, if there is one."""
    if _server.cache_info().currsize:
        _server().end()
        _server.cache_clear()


def _exactly(of: socket.socket, size: int) -> bytes:
    found = of.recv(size, socket.MSG_WAITALL)
    if len(found) != size:
        raise ChildProcessError("the process that forks has ended")
    return found


# -- in the process that forks


def _serve(control: socket.socket) -> Callable[[], None] | None:
    """Fork until the tests end; in a process that was forked, gives what it is to do."""
    atexit.register(_leave)  # the first, and so the last that is called
    for name in LOADED:
        importlib.import_module(name)
    kept: list[Any] = [each for name, each in sys.modules.items() if name != "__main__"]
    kept.append(kept)  # a circle that is frozen is never collected
    gc.collect()
    gc.freeze()
    watched, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    told: dict[int, int] = {}  # by pid: where its end is told
    while True:
        ready, _, _ = select.select([control, watched], [], [])
        if watched in ready:
            os.read(watched, 4096)
            _reap(told)
        if control not in ready:
            continue
        header, fds, _, _ = socket.recv_fds(control, HEADER.size, 4)
        if not header:
            return None
        what = json.loads(_exactly(control, HEADER.unpack(header)[0]))
        pid = os.fork()
        if not pid:
            control.detach()
            return functools.partial(_become, what, fds[:3])
        told[pid] = fds.pop()
        os.write(told[pid], HEADER.pack(pid))
        for fd in fds:
            os.close(fd)


def _leave() -> None:
    """Let a command of the package take down nothing but what it made itself.

    To take all modules down is most of what a short one does, and other processes do it, too.
    """
    if _is_command:
        for name in sys.modules.keys() - {"__main__", "builtins", "sys"}:
            del sys.modules[name]


def _reap(told: dict[int, int]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        fd = told.pop(pid)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(fd, HEADER.pack(status))
        os.close(fd)


def _become(what: dict[str, Any], fds: list[int]) -> None:
    """Be the process that was asked for, from its first line to its last."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if what["session"]:
        os.setsid()
    if what["umask"] >= 0:
        os.umask(what["umask"])
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    os.chdir(what["cwd"])
    if begun := sys.modules.get("multiprocessing.process"):
        begun.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]  # where what it starts finds the program
    os.environ.clear()
    os.environ.update(what["env"])
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = (_stream(n) for n in range(3))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    if told := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(told)  # type: ignore[arg-type]
        sys.warnoptions.append(told)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    first, *rest = what["words"]
    if first == "-m":
        global _is_command
        _is_command = rest[0].partition(".")[0] == "scheduler"
        sys.path[0], sys.argv = os.getcwd(), rest
        if not hasattr(sys.modules.get(rest[0]), "__path__"):
            sys.modules.pop(rest[0], None)  # it begins as the main module, and as no other
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _stream(number: int) -> Any:
    """A standard stream, as the interpreter makes it."""
    like = (sys.stdin, sys.stdout, sys.stderr)[number]
    raw: Any = open(number, "rb" if number == 0 else "wb", buffering=0, closefd=False)  # noqa: SIM115
    raw.name = like.name
    if number == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), like.encoding, like.errors, "\n")
    is_raw = bool(os.environ.get("PYTHONUNBUFFERED"))
    buffer = raw if is_raw else io.BufferedWriter(raw)
    is_flushed = not is_raw and (number == 2 or raw.isatty())
    return io.TextIOWrapper(buffer, like.encoding, like.errors, "\n", is_flushed, is_raw)


if __name__ == "__main__":
    begin = _serve(socket.socket(fileno=int(sys.argv[1])))
    if begin is not None:
        begin()
