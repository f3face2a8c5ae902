"""To look at a store nothing has to be written; and a store's password is shown to nobody."""

import asyncio
import json
import os
import sqlite3
import sys
from contextlib import closing

import anyio
import pytest

from scheduler import Budget, Request, Scheduler, Simulated
from scheduler.errors import ConfigError, StoreError
from scheduler.stores import open_store
from tests import warm
from tests.test_hidden_keys import frames
from tests.test_secrets import MARKER, shown

LOOKS = (
    "status",
    "queue",
    "spend",
    "audit",
    "budget list",
    "queue --state suspense",
    "prices show",
)
OVERRIDES = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: what lets root write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files have other rights there")


# Rights of files hold for root, too, in a process that begins with this.
POWERLESS = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and those beyond 32
assert libc.capget(header, sets) == 0
for each in {OVERRIDES}:
    for number in range(3):
        sets[number] &= ~(1 << each)
assert libc.capset(header, sets) == 0
"""
COMMAND = """
import sys
sys.argv[0] = "scheduler"
from scheduler.cli.entry import main
main()
"""


def limited(folder, *words):
    """A command of somebody for whom the rights of files hold."""
    program = POWERLESS + COMMAND if os.geteuid() == 0 else COMMAND
    done = warm.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    tmp_path.chmod(0o755)


def make(path):
    async def fill():
        async with Scheduler(path, budgets=Budget("team", "$1"), providers=Simulated()) as s:
            await s.run(Request.chat("sim-small", "Hi", max_tokens=5, key="one"))

    anyio.run(fill)


def files(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def crash_in(path, journal):
    """Leave what a writer leaves behind that is killed within a transaction, or before a checkpoint."""
    script = f"""
import os, sqlite3
db = sqlite3.connect({str(path)!r}, isolation_level=None)
db.execute("PRAGMA journal_mode = {journal}")
db.execute("PRAGMA cache_size = 1")
db.execute("PRAGMA synchronous = FULL")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE budgets SET name = 'team-2'")
if {journal!r} == "wal":
    db.execute("COMMIT")
else:
    db.execute("CREATE TABLE much (x)")
    db.executemany("INSERT INTO much VALUES (?)", [("x" * 5000,)] * 500)
os._exit(9)
"""
    warm.run([sys.executable, "-c", script], check=False)


@pytest.mark.parametrize(
    "left", ["nothing", "persist", "truncate", "delete", "wal", "wal, no index", "wal, closed"]
)
def test_a_file_that_cannot_be_written_can_be_looked_at_and_stays_as_it_is(folder, left):
    path = folder / "scheduler.db"
    make(path)
    if left == "wal, closed":
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = wal")
            db.execute("UPDATE budgets SET name = 'team-2'")
            db.commit()
    elif left != "nothing":
        crash_in(path, left.partition(",")[0])
        (folder / "scheduler.db-shm").unlink(missing_ok=True) if "no index" in left else None
    for each in folder.iterdir():
        each.chmod(0o444)
    folder.chmod(0o555)
    before = files(folder)
    assert left in ("nothing", "wal, closed") or len(before) > 1

    for words in LOOKS:
        code, said, told = limited(folder, *words.split())
        assert (code, told.count("rror")) == (0, 0), (words, told)
        if words == "budget list":
            assert ("team-2" in said) is ("wal" in left)
    code, said, _ = limited(folder, "status", "--json")
    assert (code, json.loads(said)["requests"]["succeeded"]) == (0, 1)

    assert files(folder) == before


@pytest.mark.parametrize("left", ["wal", "wal, no index", "wal, closed"])
def test_a_look_leaves_nothing_beside_a_file_that_only_its_owner_may_write(folder, left):
    """What somebody else made there, the owner could not write to."""
    path = folder / "scheduler.db"
    make(path)
    if left != "wal, closed":
        crash_in(path, "wal")
        (folder / "scheduler.db-shm").unlink() if "no index" in left else None
    for each in folder.iterdir():
        each.chmod(0o444)
    before = files(folder)
    code, said, told = limited(folder, "budget", "list")

    assert (code, told) == (0, "")
    assert ("team-2" in said) is (left != "wal, closed")
    assert files(folder) == before


def test_a_look_sees_what_others_commit_while_they_have_the_file_open(folder):
    path = folder / "scheduler.db"
    make(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE budgets SET name = 'team-2'")
        db.commit()
        path.chmod(0o444)
        assert (folder / "scheduler.db-wal").stat().st_size > 0
        code, said, told = limited(folder, "budget", "list")
    assert (code, told) == (0, "")
    assert "team-2" in said


@pytest.mark.parametrize("words", ["budget set team $5", "budget pause team", "resolve one --void",
                                   "prices set m --in 1 --out 1", "prune --before 0s"])  # fmt: skip
def test_what_would_change_it_says_that_it_cannot(folder, words):
    path = folder / "scheduler.db"
    make(path)
    path.chmod(0o444)
    before = files(folder)
    code, _, told = limited(folder, *words.split())

    assert code == 3
    assert "cannot be written" in told or "outcome is unknown" in told
    assert files(folder) == before


@pytest.mark.parametrize("version", [1, 2, 0])
def test_one_of_an_older_version_says_so(folder, version):
    path = folder / "scheduler.db"
    make(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    path.chmod(0o444)
    code, _, told = limited(folder, "status")

    assert code == 3
    assert "cannot be brought up to date" in told


def test_doctor_looks_and_says_that_a_run_would_fail(folder):
    path = folder / "scheduler.db"
    make(path)
    path.chmod(0o444)
    folder.chmod(0o555)
    code, said, _ = limited(folder, "doctor")

    assert code == 3
    assert "it cannot be written" in said
    assert "Traceback" not in said
    assert "OperationalError" not in said


def test_a_run_needs_to_write(folder):
    make(folder / "scheduler.db")
    (folder / "scheduler.db").chmod(0o444)
    (folder / "p.jsonl").write_text('{"prompt": "hi", "model": "sim-small"}\n')
    code, _, told = limited(folder, "run", "p.jsonl", "-o", "-", "--base-url", "sim:")

    assert code == 3
    assert "cannot be written" in told


def test_one_copy_at_most_is_made_and_none_is_left(folder, monkeypatch):
    path = folder / "scheduler.db"
    make(path)
    crash_in(path, "delete")
    for each in folder.iterdir():
        each.chmod(0o444)
    folder.chmod(0o555)
    before = set(os.listdir("/tmp"))
    limited(folder, "status")
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("scheduler-look-")}

    assert left == set()


URLS = [
    f"postgresql://ann:{MARKER}@127.0.0.1:1/queue", f"postgres://{MARKER}@127.0.0.1:1/q",
    f"postgresql://ann:x@{MARKER}@h/q", f"postgresql://127.0.0.1:1/q?user=u&password={MARKER}",
    f"mysql+x://ann:{MARKER}@h", f"sqlite://ann:{MARKER}@h/file.db", f"ann:{MARKER}@h/q",
    f"host=h user=ann password={MARKER}", f"host=h password='{MARKER} x' user=u",
    f"POSTGRESQL://ann:{MARKER}@h:x/q",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_stores_password_is_shown_to_nobody(url, tmp_path):
    for words in ("status", "queue", "doctor", "status --json", "audit --json", "budget list", "spend",
                  "prune --before 1d")[:4]:  # fmt: skip
        done = warm.run(
            [sys.executable, "-m", "scheduler", *words.split(), "--store", url], cwd=tmp_path,
            capture_output=True, check=False, env={**os.environ, "SCHEDULER_DEBUG": "1"},
        )  # fmt: skip
        assert done.returncode == 3
        assert MARKER.encode() not in done.stdout + done.stderr

    with pytest.raises((ConfigError, StoreError)) as caught:
        asyncio.run(open_store(url).open(0))
    assert MARKER not in shown(caught.value)
    assert [each for each in frames(caught.value) if MARKER in each[2]] == []
