"""One store at a time writes or checkpoints, whatever ends, forks or removes files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from scheduler.errors import StoreError, StoreLocked
from scheduler.stores.lockfile import LockFile
from tests import warm


@pytest.fixture
def path(tmp_path):
    (tmp_path / "s.db").touch(0o600)
    return tmp_path / "s.db"


@pytest.fixture
def lock(path):
    made = LockFile(path)
    yield made
    made.close()


def is_free(path) -> bool:
    other = LockFile(path)
    try:
        with other.held(0):
            return True
    except StoreLocked:
        return False
    finally:
        other.close()


def test_two_stores_of_one_process_keep_each_other_out(path, lock):
    with lock.held(0):
        assert not is_free(path)
        assert not is_free(path)  # and what the first one closed has freed nothing
    assert is_free(path)


def test_who_waits_gets_it_when_it_is_free_and_hears_what_patience_is_left(path, lock):
    other, left_s = LockFile(path), []

    def wait():
        with other.held(30):
            left_s.append(other.is_held)

    with lock.held(0):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        assert left_s == []
    thread.join(20)
    assert left_s == [True]
    with lock.held(30) as left:
        assert 0 < left <= 30
    other.close()


def test_who_waits_for_too_long_is_told(path, lock):
    other = LockFile(path)
    with (
        lock.held(0),
        pytest.raises(
            StoreLocked, match=rf"{path} is held by another process \(s.db.write-lock is"
        ),
        other.held(0.02),
    ):
        pytest.fail("both had it")
    assert not other.is_held
    with other.held(0):  # and it can try again
        pass
    other.close()


def test_an_error_frees_it(path, lock):
    with pytest.raises(ZeroDivisionError), lock.held(0):
        raise ZeroDivisionError
    assert is_free(path)


@pytest.mark.skipif(os.name != "posix", reason="links need rights there")
def test_another_name_of_the_file_has_the_same_lock(path, lock):
    link = path.with_name("link.db")
    link.symlink_to(path)
    with lock.held(0):
        assert not is_free(link)


@pytest.mark.skipif(os.name != "posix", reason="an open file keeps its name there")
def test_a_lock_that_was_removed_is_not_taken_for_the_one_that_others_take(path, lock):
    with lock.held(0):
        pass
    lock.path.unlink()
    other = LockFile(path)
    with other.held(0), pytest.raises(StoreLocked), lock.held(0):
        pytest.fail("both had it")
    with lock.held(0):
        assert not is_free(path)
    other.close()


@pytest.mark.skipif(os.name != "posix", reason="files have other rights there")
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_its_file_is_for_whom_the_store_is_for(path, lock, mode):
    path.chmod(mode)
    before = os.umask(0o077)
    try:
        with lock.held(0):
            assert lock.path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_lock_that_cannot_be_made_is_a_clear_error(path, lock):
    lock.path.mkdir()
    told = r"s\.db cannot be locked: .*nothing was changed"
    with pytest.raises(StoreError, match=told), lock.held(0):
        pytest.fail("there is none")
    assert not lock.is_held


HOLD = r"""
import os, pathlib, sys, time
from scheduler.stores.lockfile import LockFile
lock = LockFile(pathlib.Path(sys.argv[1]))
with lock.held(0):
    if sys.argv[2] == "forks" and os.fork() == 0:
        os.write(1, b"forked\n")
        time.sleep(60)
        os._exit(0)
    if sys.argv[2] == "starts":
        import subprocess
        subprocess.Popen([sys.executable, "-c", "print('forked', flush=True); import time; time.sleep(60)"])
    os.write(1, b"held\n")
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no kill -9")
@pytest.mark.parametrize("way", ["alone", "forks", "starts"])
def test_who_is_killed_holds_it_no_longer_whoever_was_forked(path, way):
    process = warm.Popen(
        [sys.executable, "-c", HOLD, str(path), way], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        told = {process.stdout.readline() for _ in range(1 if way == "alone" else 2)}
        assert told == {"held\n"} | ({"forked\n"} if way != "alone" else set())
        assert not is_free(path)
        process.kill()
        process.wait(10)

        assert is_free(path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # of this test's own session: the child that was forked
        process.stdout.close()
