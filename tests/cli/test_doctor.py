import json
import os
import sys

import pytest

from scheduler.cli import doctor
from scheduler.cli.doctor import Verdict
from tests import warm

CHECKS = [
    "python",
    "install",
    "packages",
    "engine",
    "sqlite",
    "store",
    "key",
    "config",
    "clock",
    "prices",
]
SECRET = "sk-very-secret-0123456789"


def examined(cli, *words, env=None):
    done = cli("doctor", "--json", *words, env=env)
    return done, {row["name"]: row for row in json.loads(done.stdout)}


def test_the_doctor_looks_at_everything_and_makes_nothing(cli, tmp_path):
    missing = tmp_path / "scheduler.db"

    done, found = examined(cli, "--store", missing)

    assert done.exit_code == 0
    assert list(found) == [*CHECKS, "sdks"]
    assert found["store"]["verdict"] == "note"
    assert not missing.exists()


def test_the_doctor_reads_the_store(cli, filled):
    _, found = examined(cli, "--store", filled)

    assert found["store"]["verdict"] == "ok"
    assert "7 requests, 1 budget" in found["store"]["finding"]
    assert "the store's file: write-ahead log" in found["sqlite"]["finding"]
    assert found["sqlite"]["verdict"] == "ok"


def test_the_doctor_says_why_a_file_has_no_log(cli, filled, monkeypatch):
    why = "it is on a nfs4 file system"
    monkeypatch.setattr("scheduler.stores.places.why_no_log", lambda path: why)
    monkeypatch.setattr("scheduler.stores.file.why_no_log", lambda path: why)
    examined(cli, "--store", filled)  # which opens it, and so gives it the journal that it can have
    _, found = examined(cli, "--store", filled)

    assert found["sqlite"]["verdict"] == "note"
    assert f"file: rollback journal; no write-ahead log for it: {why}" in found["sqlite"]["finding"]
    assert found["store"]["verdict"] == "ok"


def test_the_doctor_never_shows_a_key(cli, tmp_path):
    env = {"OPENAI_API_KEY": SECRET, "OPENAI_BASE_URL": f"https://me:{SECRET}@proxy.test/v1"}

    done, found = examined(cli, "--store", tmp_path / "x.db", env=env)

    assert SECRET not in done.output
    assert found["key"]["verdict"] == "ok"
    assert "https://proxy.test/v1" in found["key"]["finding"]


@pytest.mark.parametrize(
    ("key", "verdict"),
    [
        ("", Verdict.NOTE),
        ("sk-fine", Verdict.OK),
        ("sk-fine\n", Verdict.OK),  # it is no part of the key, and is not sent
        ("sk-fi\nne", Verdict.BAD),
        ("sk-f\u00efne", Verdict.BAD),
        ("sk fine", Verdict.BAD),
    ],
)
def test_a_key_with_a_line_break_in_it_is_found(monkeypatch, key, verdict):
    monkeypatch.setenv("OPENAI_API_KEY", key)

    assert doctor.check_key().verdict is verdict


def test_a_file_that_is_not_ours_is_told_and_exits_3(cli, tmp_path):
    foreign = tmp_path / "notes.db"
    foreign.write_text("not a database " * 100)

    done, found = examined(cli, "--store", foreign)

    assert done.exit_code == 3
    assert found["store"]["verdict"] == "bad"
    assert foreign.read_text().startswith("not a database")


def test_a_folder_that_is_missing_is_told(cli, tmp_path):
    _, found = examined(cli, "--store", tmp_path / "nowhere" / "scheduler.db")

    assert found["store"]["verdict"] == "bad"
    assert "nowhere" in found["store"]["finding"]


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(monkeypatch, tmp_path):
    def broken():
        raise OSError("no such luck")

    monkeypatch.setattr(doctor, "check_python", broken)

    found = list(doctor.examine(str(tmp_path / "x.db")))

    assert [check.name for check in found] == CHECKS
    assert found[0].verdict is Verdict.BAD
    assert "no such luck" in found[0].finding


@pytest.mark.parametrize(
    ("at_ms", "verdict"), [(1_000_000_000, Verdict.BAD), (1_796_000_000_000, Verdict.OK)]
)
def test_a_clock_that_is_not_set_is_found(at_ms, verdict):
    assert doctor.check_clock(at_ms).verdict is verdict


def test_old_prices_are_told():
    fresh = doctor.check_prices(1_796_000_000_000)
    aged = doctor.check_prices(1_796_000_000_000 + 400 * 86_400_000)

    assert "genai-prices" in fresh.finding
    assert aged.verdict in (Verdict.NOTE, Verdict.OK)
    assert "dated" in aged.finding


def test_the_help_tells_the_commands_and_the_exit_codes(cli):
    done = cli("--help")

    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    for name in ("demo", "run", "quote", "status", "queue", "budget", "spend", "audit", "prices",
                 "doctor", "simulate"):  # fmt: skip
        assert f" {name} " in text
    assert "75 stopped with parked work that a rerun resumes" in text


def test_the_version_is_told(cli):
    done = cli("--version")

    assert done.exit_code == 0
    assert done.stdout.startswith("scheduler ")


@pytest.mark.parametrize(
    "words", [["bugdet"], ["status", "--nope"], ["budget", "set", "default"], ["queue", "-n", "0"]]
)
def test_usage_errors_exit_2(cli, words):
    assert cli(*words).exit_code == 2


def test_usage_errors_are_an_object_too_when_json_is_asked_for(cli):
    done = cli("queue", "--json", "--state", "asleep")

    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["kind"] == "UsageError"
    assert "asleep" in done.stderr


def test_a_file_that_may_not_be_read_is_one_clear_line(cli, filled, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(filled))

    monkeypatch.setattr("scheduler.cli.audit.with_store", refuse)

    done = cli("audit", "--store", filled)

    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Permission denied" in done.stderr


def test_debugging_shows_where_an_error_comes_from(tmp_path):
    words = [sys.executable, "-m", "scheduler", "status", "--store", str(tmp_path / "x.db")]
    env = {**os.environ, "SCHEDULER_DEBUG": "1"}

    told = warm.run(words, capture_output=True, text=True, timeout=60, env=env)
    quiet = warm.run(words, capture_output=True, text=True, timeout=60)

    assert told.returncode == quiet.returncode == 3
    assert "Traceback" in told.stderr
    assert "Traceback" not in quiet.stderr
    assert len(quiet.stderr.splitlines()) == 1
