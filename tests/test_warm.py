"""What is forked is in all that tests look at what `subprocess` would have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import warm

LOOK = """
import json, os, signal, sys, threading
umask = os.umask(0)
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "umask": umask,
    "env": dict(os.environ), "is_leader": os.getsid(0) == os.getpid(), "name": __name__,
    "streams": [[s.encoding, s.errors, s.line_buffering, s.isatty(), s.fileno(), s.name]
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD)],
    "threads": threading.active_count(), "fds": sorted(os.listdir("/proc/self/fd"))[:3],
    "files": len(os.listdir("/proc/self/fd")), "main": sys.modules["__main__"].__name__,
}), end="")
print("told", file=sys.stderr)
"""
only_there = pytest.mark.skipif(not warm.IS_POSSIBLE, reason="nothing is forked here")


def program(words, **options):
    """What both ways give: of `subprocess`, and of ours."""
    return [
        start([sys.executable, *words], capture_output=True, text=True, timeout=60, **options)
        for start in (subprocess.run, warm.run)
    ]


@only_there
@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_it_finds_the_world_as_a_real_one_does(how, tmp_path):
    (tmp_path / "look.py").write_text(LOOK)
    words = {"-c": ["-c", LOOK], "-m": ["-m", "look"], "file": [str(tmp_path / "look.py")]}[how]
    env = {**os.environ, "MARK": "é\udcff", "PYTHONPATH": str(tmp_path)}
    options = {"cwd": tmp_path, "env": env, "umask": 0o027, "start_new_session": True}

    real, ours = program([*words, "one", "--two"], stdin=subprocess.DEVNULL, **options)

    assert json.loads(ours.stdout) == json.loads(real.stdout)
    assert (ours.stderr, ours.returncode) == (real.stderr, real.returncode) == ("told\n", 0)


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(7)", "raise SystemExit('no')", "import os; os._exit(9)", "1 / 0",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'the last word')",
        "import threading; threading.Timer(0.1, print, ['after the end']).start()",
        "import sys; print(sys.stdin.read().upper())",
        "import warnings; warnings.warn('of this')",
    ],
)  # fmt: skip
def test_it_ends_as_a_real_one_does(text):
    real, ours = program(["-c", text], input="given")

    assert (ours.returncode, ours.stdout) == (real.returncode, real.stdout)
    assert ours.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_it_is_signalled_polled_and_waited_for():
    words = [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)"]
    with warm.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        os.kill(process.pid, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == process.poll() == -signal.SIGTERM
        process.kill()  # is gone: nothing is killed in its place


@only_there
@pytest.mark.parametrize(
    ("words", "env", "is_forked"),
    [
        (["-c", "pass"], {}, True),
        (["-m", "scheduler"], {"PYTHONWARNINGS": "ignore"}, True),
        (["-X", "dev", "-c", "pass"], {}, False),
        (["-S", "-c", "pass"], {}, False),
        (["-c", "pass"], {"PYTHONIOENCODING": "latin-1"}, False),
        (["-c", "pass"], {"LC_ALL": "C"}, False),
        (["-c", "pass"], {"PYTHONWARNINGS": "error::UserWarning"}, False),
    ],
)
def test_where_the_beginning_counts_it_is_a_real_one(words, env, is_forked):
    words = [sys.executable, *words]

    assert warm._is_forkable(words, warm.AS_IT_STARTED | env, "/") is is_forked


@only_there
def test_another_package_is_not_taken_for_the_one_that_is_loaded(tmp_path):
    (tmp_path / "scheduler.py").write_text("")
    words = [sys.executable, "-c", "import scheduler; print(scheduler.__file__)"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = warm.run(words, capture_output=True, text=True, env=env, cwd="/")

    assert done.stdout.strip() == str(tmp_path / "scheduler.py")
