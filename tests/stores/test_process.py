"""Whether a process is there is known on every system, and never found out by a signal."""

import os
import subprocess
import sys

import psutil
import pytest

from scheduler.stores import process
from scheduler.stores.process import Process, is_dead, this_process


@pytest.fixture
def no_proc(monkeypatch):
    """A system without /proc, as macOS and Windows are."""
    monkeypatch.setattr(process, "_read", lambda path: "")
    monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(OSError(path)))


@pytest.fixture
def no_kill(monkeypatch):
    """On Windows it ends the other process, or interrupts it."""

    def kill(pid, number):
        raise AssertionError(f"a signal {number} to {pid}")

    monkeypatch.setattr(os, "kill", kill)


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.stdin.close()


def started(pid):
    return process._ticks(pid) or process._since_1970(pid)


def mark_of(me, pid):
    return Process(me.host, pid, started(pid))


def test_one_that_lives_is_not_dead_and_one_that_ended_is(child):
    me, other = this_process(), mark_of(this_process(), child.pid)
    assert me.started
    assert not is_dead(me, other)
    child.stdin.close()
    child.wait(20)
    assert is_dead(me, other)


def test_so_it_is_where_there_is_no_proc(no_proc, no_kill, monkeypatch, child):
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid in (os.getpid(), child.pid))
    me = this_process()
    assert me.started.startswith("ms:")
    other = mark_of(me, child.pid)
    assert not is_dead(me, other)
    assert is_dead(me, Process(me.host, 2**22 + 1, other.started))
    # The pid is used again by a later process.
    hour = int(other.started.removeprefix("ms:")) - 3_600_000
    assert is_dead(me, Process(me.host, child.pid, f"ms:{hour}"))
    # A clock that was corrected by a second makes no other process of it.
    second = int(other.started.removeprefix("ms:")) - 1_000
    assert not is_dead(me, Process(me.host, child.pid, f"ms:{second}"))


def test_a_mark_of_an_earlier_version_is_read_as_it_was_meant(child, no_kill, monkeypatch):
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid == child.pid)
    me, ticks = this_process(), process._ticks(child.pid)
    assert ticks
    assert not is_dead(me, Process(me.host, child.pid, ticks))
    assert is_dead(me, Process(me.host, child.pid, str(int(ticks) - 1)))
    assert not is_dead(me, Process(me.host, child.pid, ""))  # of macOS: it knew the pid only
    assert is_dead(me, Process(me.host, 2**22 + 1, ""))


@pytest.mark.parametrize("mark", ["12345", "ms:", "ms:x", "ms:99999999999999999999999"])
def test_where_a_mark_cannot_be_compared_a_live_pid_is_not_called_dead(mark, no_proc, monkeypatch):
    monkeypatch.setattr(process, "_since_1970", lambda pid: "")
    me = Process("h", os.getpid(), "")
    assert not is_dead(me, Process("h", os.getpid(), mark))


def test_one_of_another_user_is_there(no_proc, monkeypatch):
    def refused(pid):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "pid_exists", lambda pid: True)
    monkeypatch.setattr(psutil, "Process", refused)
    assert not is_dead(Process("h", 1, ""), Process("h", 2, "ms:5"))


def test_nothing_is_said_of_a_process_on_another_host(no_kill):
    me = this_process()
    assert not is_dead(me, Process(f"not {me.host}", 2**22 + 1, "1"))


def test_what_is_read_is_loaded_only_when_it_is_needed():
    code = "import sys, scheduler; sys.exit('psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
